//! Puts the sidecar into pods.
