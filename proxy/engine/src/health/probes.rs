//! How many requests of a cluster may go where connects fail, to see whether one succeeds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Moment;

/// Least time between two.
const GAP: Duration = Duration::from_millis(100);
/// Least number of the cluster's requests between two.
const REQUESTS: u64 = 20;

/// When the next probe may be, however many endpoints wait for one: who is dead is to cost few requests an attempt, and none the last. Asked
/// only where an endpoint was drawn whose connects fail. The first may be at once.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    /// In nanoseconds.
    next_at: AtomicU64,
    /// As a count of the cluster's requests.
    next_request: AtomicU64,
}

impl Probes {
    /// Whether this request, after so many of the cluster with itself, may be one; then it is. `None`: a copy, of which it costs nobody
    /// anything if it fails.
    pub(crate) fn begin(&self, requests: Option<u64>, now: Moment) -> bool {
        let next_at = self.next_at.load(Ordering::Relaxed);
        let may = now.nanos() >= next_at && requests.is_none_or(|requests| requests >= self.next_request.load(Ordering::Relaxed));
        // Two at the same time are told apart here; the count beside it need not be exact.
        let after = now.plus(GAP).nanos();
        let begun = may && self.next_at.compare_exchange(next_at, after, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if let Some(requests) = requests.filter(|_| begun) {
            self.next_request.store(requests.saturating_add(REQUESTS), Ordering::Relaxed);
        }
        begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_few_by_time_and_by_number() {
        // Aim: the first at once, the next after a tenth of a second and twenty requests; copies go by time alone and take nobody's turn.
        let probes = Probes::default();
        let begin = |requests, millis| probes.begin(requests, Moment::after_start(Duration::from_millis(millis)));
        assert!(begin(Some(1), 0) && !begin(Some(2), 0));
        assert!(!begin(Some(20), 1_000), "too few requests");
        assert!(!begin(Some(900), 99), "too soon");
        assert!(begin(Some(21), 1_000) && !begin(None, 1_099) && begin(None, 1_100));
        assert!(!begin(Some(40), 1_200) && begin(Some(41), 1_200));
    }
}
