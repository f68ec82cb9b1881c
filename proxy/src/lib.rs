//! The sidecar and edge proxy: see docs/architecture.md for the order of its modules.

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "tests may use the machine's own clock and sockets")
)]

pub mod callout;
pub mod dns;
pub mod ground;
pub mod http;
pub mod identity;
pub mod intercept;
pub mod io;
pub mod leases;
pub mod observe;
pub mod pool;
pub mod reports;
pub mod road;
pub mod shell;
pub mod snapshots;
pub mod status;
pub mod stores;
pub mod tcp;
pub mod tls;
pub mod workload_api;
pub mod xds;

#[cfg(test)]
mod tests;
