//! The proxy's own certificate: when to renew it ([`rotation`], pure) and how ([`Agent`], the task).
//!
//! Keys are made here and never travel. A first leaf is had by a one-time token, later ones by the leaf in use.

mod agent;
pub mod rotation;
pub mod token;

pub use agent::{Agent, Subject, certificate_request, judge};
pub use token::{Token, TokenFile};
