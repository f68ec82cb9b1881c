//! Kinds that say who may do what.

pub mod authentication;
pub mod authorization;
pub mod egress;

#[cfg(test)]
mod tests;
