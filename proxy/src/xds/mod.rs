//! The proxy's end of the control plane's stream: [`Session`] is the protocol, pure; [`Client`] the task around it.
//!
//! Resources are staged as they come and go live as one snapshot when an `Epoch` arrives whose digest fits what was sent
//! (docs/architecture.md). Without a control plane the last good snapshot serves on.

mod backoff;
mod client;
mod session;

pub use backoff::Backoff;
pub use client::{Client, NodeIdentity};
pub use session::{Effect, FIT_WAIT, Session};
