//! The certificate authority.
//!
//! A request's road: `serve` (who speaks) -> `attest` (token or current leaf -> identity) -> `csr` (does it ask for that identity
//! and nothing else) -> `authority` (sign) -> `store` (token taken, book written) -> answer. [`Ca`] joins them.

pub mod attest;
pub mod authority;
pub mod book;
mod ca;
pub mod csr;
mod external;
mod own;
mod policy;
pub mod roots;
pub mod serve;
pub mod store;

pub use ca::{Ca, CaError, Clock, Proof, Seat, ServerNames, Step, TokenOrder};
pub use external::{ExternalError, ExternalFiles};
pub use policy::{EXPIRED_GRACE, Policy};
