//! Budgets: how many attempts beyond the first a destination may get, so that retries of many callers do not drown who is already down.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::Moment;

/// Time in which what was earned and not spent fades (to 1/e); nothing is left of what was earned in one gap that long.
const WINDOW: Duration = Duration::from_secs(10);

const SECOND: Duration = Duration::from_secs(1);

/// Bound on retries: this share of requests, and so many per second besides.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryBudget {
    /// Of requests, per cent.
    pub percent: f64,
    /// Retries per second that are free.
    pub min_per_second: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20.0, min_per_second: 10 }
    }
}

/// What a cluster's requests earned and its retries spent.
///
/// In any span of time there are at most as many retries as `percent` of the requests in it, what is left from before, and
/// `min_per_second` for each of its seconds and one more; from the first retry on, after the first second, without the one more.
#[derive(Debug, Default)]
pub struct Budget {
    requests: AtomicU64,
    retries: Mutex<Purse>,
    hedges: Mutex<Purse>,
}

#[derive(Debug, Default)]
struct Purse {
    /// Requests that were counted in.
    seen: u64,
    /// When that was.
    at: Option<Moment>,
    /// Earned by requests and not spent.
    earned: f64,
    /// Free by time and not spent.
    free: f64,
    /// Up to when that was counted.
    free_at: Option<Moment>,
}

impl Budget {
    /// A request makes its first attempt.
    pub fn deposit(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// First attempts ever made.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Whether one more attempt may be made; it is then paid for.
    pub fn spend(&self, policy: &RetryBudget, now: Moment) -> bool {
        let mut purse = self.retries.lock().unwrap_or_else(PoisonError::into_inner);
        purse.fill(self.requests(), policy.percent, policy.min_per_second, now);
        purse.take()
    }

    /// Whether a second attempt may be made while the first is under way: it is bounded by its own share of requests, per cent, and by the
    /// budget of retries.
    pub fn hedge(&self, policy: &RetryBudget, max_percent: f64, now: Moment) -> bool {
        let mut purse = self.hedges.lock().unwrap_or_else(PoisonError::into_inner);
        purse.fill(self.requests(), max_percent, 0, now);
        purse.earned >= 1.0 && self.spend(policy, now) && purse.take()
    }
}

impl Purse {
    fn fill(&mut self, requests: u64, percent: f64, min_per_second: u32, now: Moment) {
        let new = requests.saturating_sub(self.seen) as f64 * percent / 100.0;
        let past = self.at.map_or(WINDOW, |at| now.since(at)).as_secs_f64();
        let window = WINDOW.as_secs_f64();
        // New requests are taken for even over the time since the last look, of which only the window counts.
        let fresh = if past > window { new * window / past } else { new };
        self.earned = self.earned * (1.0 - past / window).max(0.0) + fresh;
        let most = f64::from(min_per_second);
        // What is free in the first second is there at its beginning, so that even the first failure of all may be tried again. Time without
        // requests is counted when one comes: the last ones' retries shall not live on it.
        if self.free_at.is_none() || requests > self.seen {
            self.free = self.free_at.map_or(most, |at| (self.free + now.since(at).as_secs_f64() * most).min(most));
            self.free_at = Some(self.free_at.map_or_else(|| now.plus(SECOND), |at| at.max(now)));
        } else if let Some(counted) = self.free_at.filter(|_| most > 0.0) {
            // What would not have found room until now is not counted later either.
            let beyond = now.since(counted).as_secs_f64() - (most - self.free) / most;
            self.free_at = Some(counted.plus(Duration::from_secs_f64(beyond.max(0.0))));
        }
        (self.seen, self.at) = (requests, Some(self.at.map_or(now, |at| at.max(now))));
    }

    /// What is free goes first: what was earned lasts longer.
    fn take(&mut self) -> bool {
        let from = if self.free >= 1.0 { &mut self.free } else { &mut self.earned };
        let enough = *from >= 1.0;
        if enough {
            *from -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::after_start(Duration::from_millis(millis))
    }

    fn spent(budget: &Budget, policy: &RetryBudget, now: Moment) -> u32 {
        (0..10_000).take_while(|_| budget.spend(policy, now)).count() as u32
    }

    #[test]
    fn time_that_found_no_room_is_not_made_up_for() {
        // Aim: after a rest the floor holds one second, before and after the request that ends the rest taken together.
        let (budget, policy) = (Budget::default(), RetryBudget::default());
        assert!(budget.spend(&policy, at(0)));
        let before = (0..3).filter(|_| budget.spend(&policy, at(1_191))).count();
        budget.deposit();
        let after = spent(&budget, &policy, at(1_300));
        assert_eq!((before, after), (3, 8));
    }

    #[test]
    fn a_budget_is_a_share_of_requests_and_a_floor() {
        // Aim: the floor refills by time, the share by requests; what is older than the window is not hoarded.
        let (budget, policy) = (Budget::default(), RetryBudget::default());
        assert_eq!(spent(&budget, &policy, at(1_000)), 10, "the floor");
        budget.deposit();
        assert_eq!(spent(&budget, &policy, at(2_000)), 0, "they were the first second's");
        assert_eq!(spent(&budget, &policy, at(2_500)), 0, "nobody has asked since");
        budget.deposit();
        assert_eq!(spent(&budget, &policy, at(2_500)), 5, "half a second later");
        (0..100).for_each(|_| budget.deposit());
        assert_eq!(spent(&budget, &policy, at(2_500)), 20, "a fifth of a hundred");
        (0..1_000_000).for_each(|_| budget.deposit());
        let hoard = spent(&budget, &policy, at(1_002_500));
        assert!((2_000..=2_020).contains(&hoard), "of a thousand seconds ten count: {hoard}");
        let none = RetryBudget { percent: 0.0, min_per_second: 0 };
        assert_eq!(spent(&Budget::default(), &none, at(5_000)), 0);
        assert_eq!(budget.requests(), 1_000_102);
    }

    #[test]
    fn hedges_are_bounded_twice() {
        // Aim: by their own share, and by the budget of retries, from which they are paid.
        let policy = RetryBudget { percent: 20.0, min_per_second: 0 };
        let budget = Budget::default();
        (0..100).for_each(|_| budget.deposit());
        let hedges = (0..100).filter(|_| budget.hedge(&policy, 5.0, at(1))).count();
        assert_eq!((hedges, spent(&budget, &policy, at(1))), (5, 15));
        assert!(!budget.hedge(&policy, 100.0, at(1)), "nothing is left to pay it from");
    }

    proptest! {
        /// Aim: however requests and failures come, attempts are at most 1.2 per request and the floor of each second since the first of them.
        #[test]
        fn amplification_is_bounded(steps in prop::collection::vec((0..3_000_u64, 0..200_u32, 0..200_u32), 1..60)) {
            let (budget, policy) = (Budget::default(), RetryBudget::default());
            let mut now = 0;
            let (mut requests, mut retries, mut first) = (0_u32, 0_u32, None);
            for (wait, asked, wanted) in steps {
                now += wait;
                if wanted > 0 {
                    first.get_or_insert(now);
                }
                for _ in 0..asked {
                    budget.deposit();
                }
                requests += asked;
                retries += (0..wanted).filter(|_| budget.spend(&policy, at(now))).count() as u32;
                let floor = 10.0 * ((now - first.unwrap_or(now)) as f64 / 1_000.0).max(1.0);
                prop_assert!(f64::from(retries) <= f64::from(requests) * 0.2 + floor + 1e-6, "{retries} of {requests} at {now}");
            }
        }

        /// Aim: the same holds for every span of time, with what the time before it earned and has not faded.
        #[test]
        fn no_span_overspends(steps in prop::collection::vec((0..4_000_u64, 0..200_u32, 1..200_u32), 2..40)) {
            let (budget, policy) = (Budget::default(), RetryBudget::default());
            let mut now = 0;
            let mut told = Vec::new();
            for (wait, asked, wanted) in steps {
                now += wait;
                (0..asked).for_each(|_| budget.deposit());
                let granted = (0..wanted).filter(|_| budget.spend(&policy, at(now))).count() as u32;
                told.push((now, asked, granted));
            }
            for first in 0..told.len() {
                for last in first..told.len() {
                    let (from, to) = (told[first].0, told[last].0);
                    let spent: u32 = told[first..=last].iter().map(|step| step.2).sum();
                    let kept = |step: &(u64, u32, u32)| (-(from.saturating_sub(step.0) as f64) / 10_000.0).exp();
                    let earned: f64 = told[..=last].iter().map(|step| f64::from(step.1) * kept(step)).sum();
                    let floor = 10.0 + (to - from) as f64 / 1_000.0 * 10.0;
                    prop_assert!(f64::from(spent) <= earned * 0.2 + floor + 1e-6, "{spent} from {from} to {to}");
                }
            }
        }
    }
}
