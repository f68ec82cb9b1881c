//! Kinds that say who may do what.

pub mod authorization;
pub mod egress;
