//! Who may do what, on its way to proxies.

mod advice;
pub(super) mod authentication;
mod authorization;
pub(super) mod egress;
mod excess;
mod paths;
mod suggest;
mod sums;
mod undeclared;

pub(super) use advice::findings;
pub(super) use authorization::{authorization, content, judge};
pub(super) use excess::{is_crowded, too_many};
pub use suggest::{Observed, ObservedCall, SuggestedPolicy, Suggestion, suggest};

#[cfg(test)]
mod tests;
