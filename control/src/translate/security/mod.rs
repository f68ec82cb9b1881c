//! Who may do what, on its way to proxies.

mod advice;
mod authorization;

pub(super) use advice::findings;
pub(super) use authorization::{authorization, content, judge};

#[cfg(test)]
mod tests;
