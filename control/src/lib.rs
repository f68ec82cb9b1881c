//! The control plane: manifests in, xDS and status out.

pub mod api;
pub mod app;
pub mod clock;
pub mod node;
pub mod publish;
pub mod serve;
pub mod settings;
pub mod source;
pub mod store;
pub mod translate;
pub mod world;
