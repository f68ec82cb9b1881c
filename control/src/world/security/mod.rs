//! Kinds that say who may do what.

pub mod authorization;
