//! The certificate authority.
//!
//! A request's road: `serve` (who speaks) -> `attest` (token or current leaf -> identity) -> `csr` (does it ask for that identity
//! and nothing else) -> `authority` (sign) -> `store` (token taken, book and `audit` log written) -> answer. [`Ca`] joins them. `minting`
//! has the keys of JWT-SVIDs and signs these.

pub mod attest;
pub mod audit;
pub mod authority;
pub mod book;
mod ca;
pub mod csr;
mod external;
mod held;
pub mod minting;
mod own;
mod policy;
pub mod roots;
pub mod serve;
pub mod store;

pub use ca::{Application, Ca, CaError, Clock, Proof, Seat, ServerNames, Step, TokenOrder};
pub use external::{ExternalError, ExternalFiles};
pub use policy::{EXPIRED_GRACE, Policy};
