//! Progressive delivery. Proxies count what each version of a canary answers (`publish::versions`); from that [`evidence`] says whether the candidate
//! is worse, [`gates`] ask others, `decide` says what becomes of it, and `driver` has that put in force and kept.
//!
//! [`tally`] is what was counted of a version, `wager` one bet on two shares, [`evidence`] all bets of a canary and what follows from them.
//! Those and `decide` are arithmetic: no clock, no I/O.

mod counts;
mod decide;
mod driver;
pub mod evidence;
pub mod gates;
mod kept;
mod panel;
mod show;
pub mod tally;
mod wager;

pub use counts::CanaryMetrics;
pub use decide::{
    CanaryDecision, CanaryNext, CanaryRun, CanarySight, CanaryTurn, CanaryVerb, DECISIONS_MAX, ENOUGH_TIMES, GatesSay, PauseCause,
    TurnKind, VersionNumbers,
};
pub use driver::{CanaryDriver, CanaryHelm};
pub use kept::KeptCanary;

#[cfg(test)]
mod evidence_tests;
#[cfg(test)]
mod runs_tests;
