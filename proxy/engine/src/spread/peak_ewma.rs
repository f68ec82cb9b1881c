//! `PeakEwma`: latency remembered with a decaying average that follows a peak at once and forgets it slowly, as Finagle made it known.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Moment;

/// Time in which what is remembered fades to 1/e.
const DECAY: Duration = Duration::from_secs(10);
/// What a failed attempt at least counts as: quick failures must not attract requests.
const FAILURE: Duration = Duration::from_millis(100);
/// What repeated failures at most count as.
const FAILURE_MAX: Duration = Duration::from_secs(60);
/// Who is better by less than this factor is as good: then the first that was drawn is taken, so that shares of equals are their weights',
/// and not for whom silence has worn down the little more.
const NOISE: f64 = 1.05;

/// The remembered latency of one endpoint. Written without a lock: of two writers at once one may be lost, which the next sample mends.
#[derive(Debug, Default)]
pub(crate) struct PeakEwma {
    /// Nanoseconds; 0: nothing is known yet.
    nanos: AtomicU64,
    /// When that was.
    at: AtomicU64,
}

impl PeakEwma {
    /// A good answer, and what it took.
    pub(crate) fn took(&self, took: Duration, now: Moment) {
        self.observe(nanos(took), now);
    }

    /// No good answer: twice what is remembered.
    pub(crate) fn failed(&self, now: Moment) {
        let doubled = self.nanos.load(Ordering::Relaxed).saturating_mul(2);
        self.observe(doubled.clamp(nanos(FAILURE), nanos(FAILURE_MAX)), now);
    }

    fn observe(&self, sample: u64, now: Moment) {
        let known = self.nanos.load(Ordering::Relaxed);
        let next = if sample >= known {
            sample
        } else {
            let kept = self.kept(now);
            (known as f64 * kept + sample as f64 * (1.0 - kept)) as u64
        };
        self.nanos.store(next.max(1), Ordering::Relaxed);
        self.at.store(now.nanos(), Ordering::Relaxed);
    }

    /// What is remembered now, in nanoseconds; `None` before the first answer.
    pub(crate) fn at(&self, now: Moment) -> Option<f64> {
        let known = self.nanos.load(Ordering::Relaxed);
        (known > 0).then(|| known as f64 * self.kept(now))
    }

    /// What is remembered, as it was last written.
    pub(crate) fn last(&self) -> Option<Duration> {
        let known = self.nanos.load(Ordering::Relaxed);
        (known > 0).then(|| Duration::from_nanos(known))
    }

    fn kept(&self, now: Moment) -> f64 {
        let idle = now.since(Moment::of_nanos(self.at.load(Ordering::Relaxed)));
        (-idle.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }

    /// Whether `other` is the better choice, by (latency, requests in flight, weight). An endpoint of which nothing is known is tried at once
    /// while it is idle, and weighs like the other while its first answer is out: it is neither starved nor flooded.
    ///
    /// What is in flight counts by weight, of the mean of the two. Latency does not: the two were drawn by weight, and a heavy endpoint
    /// does not answer sooner.
    pub(crate) fn other_is_better(own: (Option<f64>, u32, u64), other: (Option<f64>, u32, u64)) -> bool {
        let mean = (own.2 as f64 + other.2 as f64) / 2.0;
        let cost = |(known, in_flight, weight): (Option<f64>, u32, u64), stand_in: Option<f64>| {
            let latency = known.or(stand_in.filter(|_| in_flight > 0)).unwrap_or(if in_flight > 0 { 1.0 } else { 0.0 });
            latency * (f64::from(in_flight) * mean / weight as f64 + 1.0)
        };
        cost(other, own.0) * NOISE < cost(own, other.0)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_followed_at_once_and_forgotten_slowly() {
        // Aim: a slow answer counts at once; quick ones and silence wear it down; failures weigh more each time.
        let ewma = PeakEwma::default();
        let at = |secs: u64| Moment::after_start(Duration::from_secs(secs));
        assert_eq!(ewma.at(at(1)), None);
        ewma.took(Duration::from_millis(10), at(1));
        ewma.took(Duration::from_millis(500), at(1));
        assert_eq!(ewma.at(at(1)), Some(5e8));
        ewma.took(Duration::from_millis(10), at(2));
        let after = ewma.at(at(2)).unwrap();
        assert!(after < 4.7e8 && after > 4.0e8, "{after}");
        assert!(ewma.at(at(32)).unwrap() < after * 0.06, "fades in silence");
        let quick = PeakEwma::default();
        for wanted in [100, 200, 400] {
            quick.failed(at(1));
            assert_eq!(quick.at(at(1)), Some(f64::from(wanted) * 1e6));
        }
    }

    #[test]
    fn the_unknown_are_neither_starved_nor_flooded() {
        // Aim: idle and unknown wins; unknown with its first request out weighs like the other; known by latency and load per weight.
        let better = PeakEwma::other_is_better;
        for (own, other, wanted) in [
            ((Some(1e6), 0, 1), (None, 0, 1), true),
            ((Some(1e6), 0, 1), (None, 1, 1), false),
            ((Some(1e6), 3, 1), (None, 1, 1), true),
            ((None, 2, 1), (None, 1, 1), true),
            ((None, 0, 1), (None, 0, 1), false),
            ((Some(1e6), 0, 1), (Some(2e6), 0, 1), false),
            ((Some(1e6), 2, 1), (Some(2e6), 0, 1), true),
            ((Some(1e6), 0, 1), (Some(2e6), 0, 3), false),
            ((Some(1e6), 0, 1), (Some(1e6), 0, 3), false),
            ((Some(1e6), 1, 1), (Some(1e6), 2, 3), true),
            ((Some(1e6), 1, 1), (Some(1e6), 3, 3), false),
            ((Some(1e6), 3, 3), (Some(1e6), 1, 1), false),
            ((Some(1e6), 0, 1), (Some(0.97e6), 0, 1), false),
            ((Some(1e6), 0, 1), (Some(0.9e6), 0, 1), true),
        ] {
            assert_eq!(better(own, other), wanted, "{own:?} {other:?}");
        }
    }
}
