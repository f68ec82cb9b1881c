//! The one request at a time that may try a half-open endpoint.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Moment;

/// A trial that neither was told of nor ended is over after this time: a backstop, for a trial ends with the request that makes it.
const TRIAL_MAX: Duration = Duration::from_secs(30);

/// The endpoint is not half-open.
const SHUT: u64 = 0;
/// No request tries it.
const FREE: u64 = 1;
/// Set where the request that tries it is under way, and not where it was only picked.
const ENTERED: u64 = 1;

/// Whether a half-open endpoint is being tried, in one word, so that a pick takes no lock. Beside the two states above: when the trial
/// began, in nanoseconds, with a mark.
#[derive(Debug, Default)]
pub(crate) struct Trials(AtomicU64);

/// A trial that is under way; none is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Underway(u64);

impl Trials {
    /// The endpoint is half-open from now on.
    pub(crate) fn open(&self) {
        self.0.store(FREE, Ordering::Relaxed);
    }

    /// And now no more.
    pub(crate) fn shut(&self) {
        self.0.store(SHUT, Ordering::Relaxed);
    }

    /// Whether this request may be the one that tries it; then it is.
    pub(crate) fn take(&self, now: Moment) -> bool {
        let held = self.0.load(Ordering::Relaxed);
        let free = match held {
            SHUT => false,
            FREE => true,
            begun => now.since(Moment::of_nanos(begun & !ENTERED)) >= TRIAL_MAX,
        };
        let begun = (now.nanos() & !ENTERED).max(2);
        free && self.0.compare_exchange(held, begun, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// A request to the endpoint begins. If that is the one which was picked to try it, the trial ends with it.
    pub(crate) fn enter(&self) -> Underway {
        let held = self.0.load(Ordering::Relaxed);
        if held <= FREE || held & ENTERED != 0 {
            return Underway::default();
        }
        let entered = self.0.compare_exchange(held, held | ENTERED, Ordering::Relaxed, Ordering::Relaxed);
        entered.map_or_else(|_| Underway::default(), |_| Underway(held | ENTERED))
    }

    /// That request has ended, whatever was told of it: another may be the next.
    pub(crate) fn leave(&self, trial: Underway) {
        if trial != Underway::default() {
            let _ = self.0.compare_exchange(trial.0, FREE, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// The trial says nothing: the next may begin.
    pub(crate) fn free(&self) {
        let freed = |held: u64| (held > FREE).then_some(FREE);
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, freed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Moment {
        Moment::after_start(Duration::from_secs(secs))
    }

    #[test]
    fn one_request_at_a_time_tries_an_endpoint() {
        // Aim: none while it is shut; one while it is open; the next when that has ended, told or not, and no sooner.
        let trials = Trials::default();
        assert!(!trials.take(at(1)) && trials.enter() == Underway::default());
        trials.open();
        assert!(trials.take(at(1)) && !trials.take(at(2)));
        let (first, other) = (trials.enter(), trials.enter());
        assert!(first != Underway::default() && other == Underway::default(), "others under way are no trials");
        trials.leave(other);
        assert!(!trials.take(at(3)));
        trials.leave(first);
        assert!(trials.take(at(3)), "an end that nobody told makes room");
        trials.leave(first);
        assert!(!trials.take(at(4)), "and does so once");
        trials.free();
        assert!(trials.take(at(4)), "and so does a trial that was cancelled");
        let last = trials.enter();
        trials.shut();
        trials.leave(last);
        trials.free();
        assert!(!trials.take(at(5)), "an old request opens nothing");
    }

    #[test]
    fn a_trial_that_got_lost_is_over_by_and_by() {
        // Aim: a pick that no request followed blocks an endpoint for thirty seconds at most, also at the clock's first moment.
        for begin in [0, 100] {
            let trials = Trials::default();
            trials.open();
            assert!(trials.take(at(begin)) && !trials.take(at(begin + 29)) && trials.take(at(begin + 31)));
        }
    }
}
