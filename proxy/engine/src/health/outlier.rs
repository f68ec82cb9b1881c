//! Outlier detection: what answers say of an endpoint.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Fewest answers of an endpoint in an interval that its success rate or latency is judged by.
const VOLUME_MIN: u32 = 20;

/// When endpoints are thrown out for how they answer; a cause of `None` is off.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlier {
    /// Answers of 500 to 599, resets and timeouts in a row.
    pub consecutive_errors: Option<u32>,
    /// Failed connects in a row.
    pub consecutive_connect_failures: Option<u32>,
    /// Least share of good answers in an interval, per cent.
    pub success_rate_min_percent: Option<f64>,
    /// This many times the median latency of the others is too slow.
    pub latency_factor: Option<f64>,
    /// Over which rates and latencies are judged.
    pub interval: Duration,
    /// How long the first time; the n-th time in a row n times as long, within a bound.
    pub eject_for: Duration,
    /// Most endpoints thrown out at once, per cent; the last one never is.
    pub max_ejected_percent: f64,
}

impl Outlier {
    /// Whether something is judged interval by interval.
    pub(crate) const fn by_interval(&self) -> bool {
        self.success_rate_min_percent.is_some() || self.latency_factor.is_some()
    }
}

/// How an attempt at an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With the head of an answer.
    Answered {
        /// Its status; of gRPC, the HTTP status that the code comes to.
        status: u16,
        /// From the first byte of the request to the head.
        took: Duration,
    },
    /// With a connection, of opaque bytes that nobody judges further.
    Connected,
    /// No connection, or none that was secure.
    ConnectFailed,
    /// The connection or stream broke before an answer.
    Reset,
    /// The attempt's time was over.
    TimedOut,
    /// The caller went away, or another attempt was faster.
    Cancelled,
}

impl Outcome {
    /// Whether the endpoint did its part; `None`: it says nothing.
    pub const fn good(self) -> Option<bool> {
        match self {
            Self::Answered { status, .. } => Some(status < 500),
            Self::Connected => Some(true),
            Self::ConnectFailed | Self::Reset | Self::TimedOut => Some(false),
            Self::Cancelled => None,
        }
    }
}

/// Why an endpoint was thrown out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejection {
    /// Bad answers in a row.
    ConsecutiveErrors,
    /// Failed connects in a row.
    ConnectFailures,
    /// Too few good answers.
    SuccessRate,
    /// Slower than the others.
    Latency,
}

impl Ejection {
    /// As metrics and dumps spell it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::ConsecutiveErrors => "consecutive_errors",
            Self::ConnectFailures => "connect_failures",
            Self::SuccessRate => "success_rate",
            Self::Latency => "latency",
        }
    }
}

/// Counts of one endpoint. No lock: a good answer of an endpoint without faults costs two loads.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Errors in a row.
    errors: AtomicU32,
    /// Failed connects in a row.
    connects: AtomicU32,
    /// Good answers in this interval.
    good: AtomicU32,
    /// Connections of opaque bytes, which are good and have no latency.
    connected: AtomicU32,
    /// The others.
    bad: AtomicU32,
    /// What the good answers took.
    nanos: AtomicU64,
}

/// An interval of one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Period {
    pub(crate) good: u32,
    pub(crate) connected: u32,
    pub(crate) bad: u32,
    pub(crate) nanos: u64,
}

impl Tally {
    /// Books an outcome; says what is to be held against the endpoint, once per run that is long enough.
    pub(crate) fn book(&self, outlier: &Outlier, outcome: Outcome) -> Option<Ejection> {
        let by_interval = outlier.by_interval();
        if by_interval {
            match (outcome, outcome.good()) {
                (Outcome::Answered { took, .. }, Some(true)) => {
                    self.good.fetch_add(1, Ordering::Relaxed);
                    self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
                }
                (Outcome::Connected, _) => drop(self.connected.fetch_add(1, Ordering::Relaxed)),
                (_, Some(false)) => drop(self.bad.fetch_add(1, Ordering::Relaxed)),
                _ => {}
            }
        }
        match outcome {
            Outcome::Answered { status, .. } => {
                end_run(&self.connects);
                if status < 500 {
                    end_run(&self.errors);
                    return None;
                }
                run_on(&self.errors, outlier.consecutive_errors).then_some(Ejection::ConsecutiveErrors)
            }
            Outcome::Reset | Outcome::TimedOut => run_on(&self.errors, outlier.consecutive_errors).then_some(Ejection::ConsecutiveErrors),
            Outcome::ConnectFailed => run_on(&self.connects, outlier.consecutive_connect_failures).then_some(Ejection::ConnectFailures),
            Outcome::Connected => {
                end_run(&self.connects);
                None
            }
            Outcome::Cancelled => None,
        }
    }

    /// The interval so far; the next begins.
    pub(crate) fn period(&self) -> Period {
        Period {
            good: self.good.swap(0, Ordering::Relaxed),
            connected: self.connected.swap(0, Ordering::Relaxed),
            bad: self.bad.swap(0, Ordering::Relaxed),
            nanos: self.nanos.swap(0, Ordering::Relaxed),
        }
    }

    /// Forgets everything: the endpoint begins anew.
    pub(crate) fn clear(&self) {
        end_run(&self.errors);
        end_run(&self.connects);
        self.period();
    }
}

/// Lengthens a run; whether it is as long as may be, which ends it.
fn run_on(run: &AtomicU32, most: Option<u32>) -> bool {
    let Some(most) = most else { return false };
    let long = run.fetch_add(1, Ordering::Relaxed).saturating_add(1) >= most;
    if long {
        run.store(0, Ordering::Relaxed);
    }
    long
}

fn end_run(run: &AtomicU32) {
    // The load spares the shared cache line a write in the usual case.
    if run.load(Ordering::Relaxed) != 0 {
        run.store(0, Ordering::Relaxed);
    }
}

/// Whose share of good answers is too small, the worst first.
pub(crate) fn underachievers(periods: &[Period], min_percent: f64) -> Vec<usize> {
    let good = |period: &Period| f64::from(period.good) + f64::from(period.connected);
    let all = |period: &Period| good(period) + f64::from(period.bad);
    let rate = |period: &Period| 100.0 * good(period) / all(period);
    let enough = periods.iter().enumerate().filter(|(_, period)| all(period) >= f64::from(VOLUME_MIN));
    let judged = enough.map(|(index, period)| (index, rate(period)));
    let mut low: Vec<(usize, f64)> = judged.filter(|(_, rate)| *rate < min_percent).collect();
    low.sort_by(|a, b| a.1.total_cmp(&b.1));
    low.into_iter().map(|(index, _)| index).collect()
}

/// Who takes more than so many times the median of the others, the slowest first. Who answered too little is neither judged nor counts.
pub(crate) fn latecomers(periods: &[Period], factor: f64) -> Vec<usize> {
    let mean = |period: &Period| period.nanos as f64 / f64::from(period.good);
    let enough = periods.iter().enumerate().filter(|(_, period)| period.good >= VOLUME_MIN);
    let mut means: Vec<(usize, f64)> = enough.map(|(index, period)| (index, mean(period))).collect();
    means.sort_by(|a, b| b.1.total_cmp(&a.1));
    let late = |place: usize| {
        // The others, still in order: all but the one at `place`.
        let count = means.len().checked_sub(1).filter(|count| *count > 0)?;
        let other = |n: usize| means.get(if n >= place { n + 1 } else { n }).map_or(0.0, |(_, mean)| *mean);
        let median = (other((count - 1) / 2) + other(count / 2)) / 2.0;
        let (index, mean) = *means.get(place)?;
        (mean > factor * median).then_some(index)
    };
    (0..means.len()).filter_map(late).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Outcome = Outcome::Answered { status: 404, took: Duration::from_millis(1) };
    const BAD: Outcome = Outcome::Answered { status: 503, took: Duration::from_millis(1) };

    fn outlier() -> Outlier {
        Outlier {
            consecutive_errors: Some(3),
            consecutive_connect_failures: Some(2),
            success_rate_min_percent: None,
            latency_factor: None,
            interval: Duration::from_secs(10),
            eject_for: Duration::from_secs(30),
            max_ejected_percent: 50.0,
        }
    }

    #[test]
    fn runs_of_failures_are_held_against_an_endpoint() {
        // Aim: errors and connects count apart; a good answer ends both, a bad one the connects; who cancelled says nothing.
        use Outcome::{Cancelled, ConnectFailed, Reset, TimedOut};
        for (outcomes, wanted) in [
            (&[BAD, BAD, BAD][..], Some(Ejection::ConsecutiveErrors)),
            (&[BAD, BAD, GOOD, BAD, BAD], None),
            (&[BAD, Cancelled, Reset, TimedOut], Some(Ejection::ConsecutiveErrors)),
            (&[ConnectFailed, ConnectFailed], Some(Ejection::ConnectFailures)),
            (&[ConnectFailed, BAD, ConnectFailed], None),
            (&[BAD, ConnectFailed, Cancelled, ConnectFailed], Some(Ejection::ConnectFailures)),
            (&[BAD, BAD, ConnectFailed, BAD], Some(Ejection::ConsecutiveErrors)),
            (&[GOOD, Cancelled], None),
        ] {
            let tally = Tally::default();
            let said: Vec<_> = outcomes.iter().map(|outcome| tally.book(&outlier(), *outcome)).collect();
            assert_eq!(*said.last().unwrap(), wanted, "{outcomes:?}");
            assert!(said[..said.len() - 1].iter().all(Option::is_none), "{outcomes:?}");
        }
        let off = Outlier { consecutive_errors: None, consecutive_connect_failures: None, ..outlier() };
        let tally = Tally::default();
        assert!((0..100).all(|_| tally.book(&off, BAD).is_none() && tally.book(&off, ConnectFailed).is_none()));
        assert_eq!(tally.period(), Period::default(), "what nobody judges is not counted");
    }

    #[test]
    fn intervals_count_what_is_judged() {
        // Aim: good and bad answers, the time of the good ones, and connections, once each.
        let rated = Outlier { success_rate_min_percent: Some(90.0), ..outlier() };
        let tally = Tally::default();
        for outcome in [GOOD, GOOD, BAD, Outcome::Reset, Outcome::Cancelled, Outcome::ConnectFailed, Outcome::Connected] {
            tally.book(&rated, outcome);
        }
        assert_eq!(tally.period(), Period { good: 2, connected: 1, bad: 3, nanos: 2_000_000 });
        assert_eq!(tally.period(), Period::default());
    }

    fn period(good: u32, bad: u32, mean_ms: u64) -> Period {
        Period { good, connected: 0, bad, nanos: mean_ms * 1_000_000 * u64::from(good) }
    }

    #[test]
    fn the_worst_of_an_interval_come_first() {
        // Aim: an absolute minimum, only with volume, worst first.
        let periods = [period(99, 1, 1), period(50, 50, 1), period(1, 3, 1), period(10, 90, 1), period(0, 0, 0)];
        assert_eq!(underachievers(&periods, 90.0), [3, 1]);
        assert_eq!(underachievers(&periods, 5.0), [0; 0]);
        let opaque = |connected, bad| Period { connected, ..period(0, bad, 0) };
        assert_eq!(underachievers(&[opaque(99, 1), opaque(50, 50)], 90.0), [1], "connections count like answers");
    }

    #[test]
    fn the_slow_are_those_far_from_the_others() {
        // Aim: the median of the others, not one's own; only with volume; nobody is slow alone, and two slow ones are both seen.
        for (means, factor, wanted) in [
            (&[10, 10, 10, 31][..], 3.0, &[3][..]),
            (&[10, 10, 10, 29], 3.0, &[]),
            (&[10, 100, 10, 60, 10], 3.0, &[1, 3]),
            (&[100, 10], 3.0, &[0]),
            (&[100], 3.0, &[]),
            (&[10, 10, 10, 10], 1.5, &[]),
        ] {
            let periods: Vec<Period> = means.iter().map(|mean| period(50, 0, *mean)).collect();
            assert_eq!(latecomers(&periods, factor), wanted, "{means:?}");
        }
        assert_eq!(latecomers(&[period(50, 0, 10), period(5, 0, 1_000)], 3.0), [0; 0]);
        let mixed = |connected, good, mean| Period { connected, ..period(good, 0, mean) };
        assert_eq!(latecomers(&[mixed(500, 50, 10), mixed(0, 50, 10), mixed(500, 50, 10)], 3.0), [0; 0], "connections take no time");
        assert_eq!(latecomers(&[mixed(500, 50, 40), mixed(0, 50, 10), mixed(500, 0, 0)], 3.0), [0], "nor do they hide who is slow");
    }
}
