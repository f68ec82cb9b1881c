//! The sidecar and edge proxy: see docs/architecture.md for the order of its modules.

pub mod admin;
pub mod app;
pub mod attempt;
pub mod body;
pub mod chain;
pub mod dns;
pub mod gateway;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod intercept;
pub mod io;
pub mod listener;
pub mod observe;
pub mod outbound;
pub mod pool;
pub mod reports;
pub mod settings;
pub mod snapshots;
pub mod tcp;
pub mod tls;
pub mod xds;
