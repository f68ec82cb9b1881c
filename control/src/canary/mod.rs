//! Progressive delivery: what the requests of two versions say of the candidate ([`evidence`]), and who else is asked ([`gates`]).
//!
//! [`tally`] is what was counted of a version, [`wager`] one bet on two shares, [`evidence`] all bets of a canary and what follows from them.
//! Those are arithmetic: no clock, no I/O.

pub mod evidence;
pub mod gates;
pub mod tally;
mod wager;

#[cfg(test)]
mod evidence_tests;
#[cfg(test)]
mod runs_tests;
