//! The pure half of the proxy: no async, no I/O, no clock of its own.
//!
//! [`model::build::Parts`] turns resources into a [`model::Snapshot`]; [`sniff::sniff`] judges first bytes; [`decide::decide`] turns
//! (table, request, draw) into a value; [`balance::pick`] chooses an endpoint; [`health`] says which are well;
//! [`budget`], [`gate`] and [`sketch`] bound what a destination gets; [`retry::next`] judges a failed attempt;
//! [`limit`] counts what comes; [`callout`] bounds what others are asked; [`authenticate`] judges tokens, [`login`] sessions of browsers; [`dns`] says what a name of the mesh leads to; [`explain`] says why, and dumps what runs.

#![cfg_attr(test, allow(clippy::iter_over_hash_type, reason = "these tests look at each, in any order"))]

pub mod authenticate;
pub mod authorize;
pub mod balance;
pub mod budget;
pub mod callout;
pub mod claims;
pub mod client;
pub mod consumers;
pub mod decide;
pub mod dns;
pub mod explain;
pub mod failure;
pub mod filter;
#[cfg(test)]
mod fixture;
pub mod gate;
pub mod health;
pub mod limit;
pub mod login;
pub(crate) mod matching;
pub mod model;
mod moment;
pub(crate) mod raw;
pub(crate) mod rejected;
pub mod retry;
mod seeded;
pub mod sketch;
pub mod sniff;
pub(crate) mod spread;
pub mod versions;

pub use moment::Moment;
