//! The control plane: manifests in, xDS and status out.
