//! Whether a service that did not answer is asked again: a rest after failures, longer each time, and then one question before all others.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::Moment;

/// Questions one after the other that were not answered in time: then it is away for a while. One alone was slow.
const SILENT_MAX: u32 = 3;
/// First rest; each is twice as long as the one before.
const REST: Duration = Duration::from_millis(100);
/// Longest rest.
const REST_MAX: Duration = Duration::from_secs(2);

/// See the module. Of all workers.
#[derive(Debug, Default)]
pub struct ServiceRests {
    /// Questions since the last answer that met silence.
    silent: AtomicU32,
    /// Rests since the last answer.
    rests: AtomicU32,
    /// Until when nobody else asks, nanoseconds; 0: everybody may.
    until: AtomicU64,
    /// A rest is over, and one has asked.
    trial: AtomicBool,
}

impl ServiceRests {
    /// Whether it is asked now. After a rest one request asks, and others when it has been answered, or was given so long.
    pub fn may_ask(&self, now: Moment, within: Duration) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        if until == 0 {
            return true;
        }
        let first =
            now.nanos() >= until && self.until.compare_exchange(until, after(now, within), Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if first {
            self.trial.store(true, Ordering::Relaxed);
        }
        first
    }

    /// It has answered.
    pub fn answered(&self) {
        // Rarely anything but 0: no line of memory is to go from worker to worker for nothing.
        for number in [&self.silent, &self.rests] {
            if number.load(Ordering::Relaxed) != 0 {
                number.store(0, Ordering::Relaxed);
            }
        }
        if self.until.load(Ordering::Relaxed) != 0 {
            self.until.store(0, Ordering::Relaxed);
        }
    }

    /// It has not; `slow`: it was waited for in vain. True: it is away from now on, and was not before.
    pub fn failed(&self, slow: bool, now: Moment) -> bool {
        let rests = self.rests.load(Ordering::Relaxed);
        if slow && rests == 0 && self.silent.fetch_add(1, Ordering::Relaxed) + 1 < SILENT_MAX {
            return false;
        }
        // Who asked before the rest began lengthens nothing.
        if now.nanos() < self.until.load(Ordering::Relaxed) && !self.trial.load(Ordering::Relaxed) {
            return false;
        }
        self.trial.store(false, Ordering::Relaxed);
        self.until.store(after(now, REST.saturating_mul(1 << rests.min(8)).min(REST_MAX)), Ordering::Relaxed);
        self.rests.store(rests.saturating_add(1), Ordering::Relaxed);
        rests == 0
    }
}

fn after(now: Moment, time: Duration) -> u64 {
    now.nanos().saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_asks_after_a_rest_and_all_when_there_is_an_answer() {
        // Aim: a failure begins a rest at once, silence at the third in a row; rests grow to 2 s; what was under way lengthens none; one question
        // ends a rest, and another when that one was given up.
        let at = |millis: u64| Moment::of_nanos(millis * 1_000_000);
        let within = Duration::from_millis(50);
        let rests = ServiceRests::default();
        assert!(rests.may_ask(at(0), within) && !rests.failed(true, at(0)) && !rests.failed(true, at(1)));
        rests.answered();
        assert!(!rests.failed(true, at(2)) && !rests.failed(true, at(2)) && rests.may_ask(at(2), within));
        assert!(rests.failed(true, at(3)) && !rests.failed(false, at(4)));
        assert!(!rests.may_ask(at(102), within) && rests.may_ask(at(103), within) && !rests.may_ask(at(104), within));
        assert!(rests.may_ask(at(153), within), "the first was given up");
        assert!(!rests.failed(false, at(154)));
        assert!(!rests.may_ask(at(353), within) && rests.may_ask(at(354), within));
        let mut now = 354;
        for rest in [400, 800, 1600, 2000, 2000] {
            assert!(!rests.failed(true, at(now)));
            assert!(!rests.may_ask(at(now + rest - 1), within) && rests.may_ask(at(now + rest), within), "{rest}");
            now += rest;
        }
        rests.answered();
        assert!(rests.may_ask(at(now), within) && rests.may_ask(at(now), within) && rests.failed(false, at(now)));
    }
}
