//! The proxy's own certificate: when to renew it ([`rotation`], pure) and how ([`Agent`], the task).
//!
//! [`follow`] hears of the bundles that leaves and tokens are verified by, for whoever has no ADS stream.
//!
//! Keys are made here and never travel. A first leaf is had by a one-time token, later ones by the leaf in use.

mod agent;
mod bundles;
#[cfg(test)]
mod clock_tests;
pub mod rotation;
pub mod token;

pub use agent::{Agent, Exposed, Subject, certificate_request, judge};
pub use bundles::{Bundles, follow};
pub use token::{Bearer, Token, TokenFile};
