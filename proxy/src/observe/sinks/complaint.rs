//! What is wrong with a sink is said once in a while, not once a line.

use std::time::{Duration, Instant};

use crate::io::Clock;

/// A failing sink is complained about once in this time.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// When a sink was complained about last.
#[derive(Debug)]
pub(super) struct Complaint {
    clock: Clock,
    last: Option<Instant>,
}

impl Complaint {
    pub(super) const fn new(clock: Clock) -> Self {
        Self { clock, last: None }
    }

    /// Whether it is time to say something.
    pub(super) fn is_due(&mut self) -> bool {
        let now = self.clock.now();
        let due = self.last.is_none_or(|last| now.saturating_duration_since(last) >= COMPLAIN_EVERY);
        if due {
            self.last = Some(now);
        }
        due
    }
}
