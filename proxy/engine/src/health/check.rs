//! Active checks: when an endpoint is asked, and what its answers come to. Who asks is the shell.

use std::time::Duration;

use crate::Moment;
use crate::spread::mix;

/// How endpoints are asked whether they are well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveCheck {
    /// What is asked.
    pub question: CheckQuestion,
    /// Time between two checks of an endpoint, give or take a tenth.
    pub interval: Duration,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// Good answers in a row that make an endpoint well again.
    pub healthy_after: u32,
    /// Failures in a row that make it unwell.
    pub unhealthy_after: u32,
}

/// What an active check asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckQuestion {
    /// A GET; one of these statuses is a good answer.
    Http {
        /// Path and query.
        path: String,
        /// Good statuses.
        expect: Vec<u16>,
        /// Host to name; empty: the endpoint's address.
        host: String,
    },
    /// gRPC health checking (`grpc.health.v1`): SERVING is a good answer.
    Grpc {
        /// Service to ask for; empty: the server as a whole.
        service: String,
    },
    /// A connection is a good answer.
    Tcp,
}

/// What active checks know of one endpoint. Until they say otherwise it is well.
#[derive(Debug, Default)]
pub(crate) struct Check {
    failing: bool,
    /// Results in a row that speak against what is held.
    run: u32,
    /// Checks begun; the source of jitter.
    begun: u64,
    /// When it is asked next; `None` before it was ever thought of.
    due: Option<Moment>,
}

/// What a result changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turned {
    /// Nothing.
    Not,
    /// The endpoint is well again.
    Well,
    /// It is unwell from now on.
    Unwell,
}

impl Check {
    /// Takes a result.
    pub(crate) fn on(&mut self, check: &ActiveCheck, good: bool) -> Turned {
        // What is held is confirmed: the run against it is over.
        if good != self.failing {
            self.run = 0;
            return Turned::Not;
        }
        self.run = self.run.saturating_add(1);
        let enough = if good { check.healthy_after } else { check.unhealthy_after };
        if self.run < enough {
            return Turned::Not;
        }
        (self.failing, self.run) = (!good, 0);
        if good { Turned::Well } else { Turned::Unwell }
    }

    /// Whether it is to be asked now; if so the next time is set, answer or no answer. The first time falls anywhere in an interval, by
    /// the endpoint's key, so that neither one proxy asks all at once nor all proxies one.
    pub(crate) fn take_due(&mut self, check: &ActiveCheck, key: u64, now: Moment) -> bool {
        let Some(due) = self.due else {
            self.due = Some(now.plus(part(check.interval, mix(key))));
            return false;
        };
        if now < due {
            return false;
        }
        self.begun += 1;
        let jitter = part(check.interval / 5, mix(key.wrapping_add(self.begun)));
        self.due = Some(now.plus(check.interval * 9 / 10 + jitter));
        true
    }

    /// When it is asked next.
    pub(crate) fn due(&self) -> Option<Moment> {
        self.due
    }

    pub(crate) fn failing(&self) -> bool {
        self.failing
    }
}

/// A part of a duration by uniform bits.
fn part(whole: Duration, bits: u64) -> Duration {
    whole.mul_f64((bits >> 11) as f64 / (1_u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> ActiveCheck {
        let (interval, timeout) = (Duration::from_secs(10), Duration::from_secs(1));
        ActiveCheck { question: CheckQuestion::Tcp, interval, timeout, healthy_after: 2, unhealthy_after: 3 }
    }

    #[test]
    fn results_in_a_row_turn_an_endpoint() {
        // Aim: three failures in a row make it unwell, two good answers well; a result that confirms starts the count anew.
        let mut state = Check::default();
        for (good, wanted) in [
            (true, Turned::Not),
            (false, Turned::Not),
            (false, Turned::Not),
            (true, Turned::Not),
            (false, Turned::Not),
            (false, Turned::Not),
            (false, Turned::Unwell),
            (false, Turned::Not),
            (true, Turned::Not),
            (false, Turned::Not),
            (true, Turned::Not),
            (true, Turned::Well),
        ] {
            assert_eq!(state.on(&check(), good), wanted);
        }
        assert!(!state.failing());
    }

    #[test]
    fn checks_are_spread_over_time() {
        // Aim: first times fall all over an interval; later ones come once per interval, a tenth off at most, answered or not.
        let start = Moment::after_start(Duration::from_secs(100));
        let mut thirds = [0; 3];
        for key in 0..300 {
            let mut state = Check::default();
            assert!(!state.take_due(&check(), key, start));
            let first = state.due().unwrap();
            thirds[(first.since(start).as_secs_f64() / 10.0 * 3.0) as usize] += 1;
            assert!(!state.take_due(&check(), key, Moment::of_nanos(first.nanos() - 1)) && state.take_due(&check(), key, first));
            let mut last = first;
            for _ in 0..5 {
                let next = state.due().unwrap();
                let gap = next.since(last).as_secs_f64();
                assert!((9.0..=11.0).contains(&gap), "{gap}");
                assert!(state.take_due(&check(), key, next));
                last = next;
            }
        }
        assert!(thirds.iter().all(|count| (60..140).contains(count)), "{thirds:?}");
    }
}
