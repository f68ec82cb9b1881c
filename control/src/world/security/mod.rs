//! Kinds that say who may do what.

pub mod authentication;
#[cfg(test)]
mod tests;
