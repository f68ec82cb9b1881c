//! Limits by tables and by chance.

use std::time::Duration;

use super::*;
use crate::Moment;

mod calendar;
mod numbers;
mod remote;
mod shared;
mod table;

/// So long after the start, which was at that wall time.
fn now(millis: u64) -> Now {
    Now { moment: Moment::of_nanos(millis * 1_000_000), wall_secs: 1_700_000_000 + millis / 1000 }
}

fn rate(amount: u64, per_millis: u64, burst: u64) -> Numbers {
    Numbers::Rate(Rate::new(amount, Duration::from_millis(per_millis), burst).unwrap())
}

fn quota(amount: u64, every: Every, zone: &str) -> Numbers {
    Numbers::Quota(Quota::new(amount, Calendar::new(every, zone).unwrap()).unwrap())
}
