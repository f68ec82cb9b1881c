//! Every ring of tests that needs more than one crate: whole proxies over memory pipes, the whole mesh in simulation.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "what stands beside the product may use the machine's own clock and sockets"
)]

pub mod application;
pub mod authority;
pub mod cases;
pub mod fuzz;
pub mod kube;
pub mod look;
pub mod mesh;
pub mod plane;
pub mod play;
pub mod scan;
pub mod shop;
pub mod sidecar;
pub mod sim;
#[cfg(test)]
mod tidy;
pub mod wire;
pub mod witness;
