//! The sidecar and edge proxy: see docs/architecture.md for the order of its modules.

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "tests may use the machine's own clock and sockets")
)]

pub mod admin;
pub mod app;
pub mod arrival;
pub mod attempt;
pub mod body;
pub mod chain;
pub mod dial;
pub mod dns;
pub mod doors;
pub mod drain;
pub mod forward;
pub mod gateway;
pub mod guests;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod inspect;
pub mod intercept;
pub mod io;
pub mod lifecycle;
pub mod limits;
pub mod line;
pub mod listener;
pub mod logs;
pub mod observe;
pub mod outbound;
pub mod pool;
pub mod ports;
pub mod reports;
pub mod rights;
pub mod settings;
pub mod shared;
pub mod snapshots;
pub mod tcp;
pub mod tls;
pub mod wakes;
pub mod watch;
pub mod windows;
pub mod worker;
pub mod xds;

#[cfg(test)]
mod tests;
