//! The pure half of the proxy: no async, no I/O, no clock of its own.

pub mod failure;
pub mod filter;
pub mod model;
