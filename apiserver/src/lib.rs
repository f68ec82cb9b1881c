//! The way to a Kubernetes API server: who we are there, the lease, what is kept there, and reviews of tokens.

pub mod client;
pub mod keep;
pub mod lease;
pub mod pace;
pub mod review;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
