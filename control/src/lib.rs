//! The control plane: manifests in, xDS and status out.

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "tests may use the machine's own clock and sockets")
)]

pub mod acme;
pub mod api;
pub mod app;
pub mod canary;
pub mod clock;
pub mod crds;
pub mod node;
pub mod publish;
pub mod rotation;
pub mod serve;
pub mod settings;
pub mod source;
pub mod status;
pub mod store;
pub mod traces;
pub mod translate;
pub mod world;
