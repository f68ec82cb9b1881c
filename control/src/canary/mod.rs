//! Progressive delivery: what the requests of two versions say of the candidate ([`evidence`]).
//!
//! [`tally`] is what was counted of a version, [`wager`] one bet on two shares, [`evidence`] all bets of a canary and what follows from them.
//! All of it is arithmetic: no clock, no I/O.

pub mod evidence;
pub mod tally;
mod wager;

#[cfg(test)]
mod evidence_tests;
#[cfg(test)]
mod runs_tests;
