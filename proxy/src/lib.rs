//! The sidecar and edge proxy.
