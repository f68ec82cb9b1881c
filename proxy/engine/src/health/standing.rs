//! An endpoint's standing with outlier detection: good, thrown out, or half-open until one request succeeds.

use std::time::Duration;

use super::{Check, Ejection, Outlier};
use crate::Moment;

/// Longest ejection; and who was well for as long begins again from the first.
const EJECTION_MAX: Duration = Duration::from_secs(300);

/// What this proxy thinks of an endpoint; for dumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wellness {
    /// Nothing is held against it.
    Well,
    /// Thrown out until then.
    Ejected(Ejection, Moment),
    /// Was thrown out; one request at a time goes there until one succeeds.
    HalfOpen(Ejection),
    /// Fails its active checks.
    FailsChecks,
}

/// The standing of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    phase: Phase,
    /// Ejections since it was last well for long.
    times: u32,
    /// Since when it is in good standing again.
    back: Moment,
    /// What active checks say.
    pub(crate) check: Check,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Good,
    Ejected {
        cause: Ejection,
        until: Moment,
    },
    HalfOpen {
        cause: Ejection,
    },
}

impl Standing {
    /// Throws it out, from good standing or after a failed trial; for how long.
    pub(crate) fn eject(&mut self, cause: Ejection, outlier: &Outlier, now: Moment) -> Duration {
        if self.phase == Phase::Good && now.since(self.back) >= EJECTION_MAX {
            self.times = 0;
        }
        self.times = self.times.saturating_add(1);
        let lasts = outlier.eject_for.saturating_mul(self.times).min(EJECTION_MAX.max(outlier.eject_for));
        self.phase = Phase::Ejected { cause, until: now.plus(lasts) };
        lasts
    }

    /// Opens it by half when its time is over; whether that is so now.
    pub(crate) fn wake(&mut self, now: Moment) -> bool {
        match self.phase {
            Phase::Ejected { cause, until } if now >= until => {
                self.phase = Phase::HalfOpen { cause };
                true
            }
            _ => false,
        }
    }

    /// A request to it has ended, well or not. What becomes of it where it was half-open.
    pub(crate) fn tried(&mut self, good: bool, outlier: &Outlier, now: Moment) -> Trial {
        let Phase::HalfOpen { cause } = self.phase else { return Trial::Nothing };
        if !good {
            return Trial::Ejected(cause, self.eject(cause, outlier, now));
        }
        (self.phase, self.back) = (Phase::Good, now);
        Trial::Back
    }

    /// Whether it is thrown out, half-open included.
    pub(crate) fn out(&self) -> bool {
        self.phase != Phase::Good
    }

    /// Whether requests may try it.
    pub(crate) fn half_open(&self) -> bool {
        matches!(self.phase, Phase::HalfOpen { .. })
    }

    /// When it opens by half.
    pub(crate) fn until(&self) -> Option<Moment> {
        match self.phase {
            Phase::Ejected { until, .. } => Some(until),
            Phase::Good | Phase::HalfOpen { .. } => None,
        }
    }

    /// In one word.
    pub(crate) fn wellness(&self) -> Wellness {
        match self.phase {
            Phase::Ejected { cause, until } => Wellness::Ejected(cause, until),
            Phase::HalfOpen { cause } => Wellness::HalfOpen(cause),
            Phase::Good if self.check.failing() => Wellness::FailsChecks,
            Phase::Good => Wellness::Well,
        }
    }
}

/// What came of a request to a half-open endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trial {
    /// It was none.
    Nothing,
    /// The endpoint is back.
    Back,
    /// It is thrown out again, for so long.
    Ejected(Ejection, Duration),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlier() -> Outlier {
        Outlier {
            consecutive_errors: Some(5),
            consecutive_connect_failures: None,
            success_rate_min_percent: None,
            latency_factor: None,
            interval: Duration::from_secs(10),
            eject_for: Duration::from_secs(30),
            max_ejected_percent: 50.0,
        }
    }

    fn at(secs: u64) -> Moment {
        Moment::after_start(Duration::from_secs(secs))
    }

    #[test]
    fn an_ejection_ends_half_open_and_one_success_ends_that() {
        // Aim: out for its time, back by a success, out for longer after a failure.
        let (mut standing, outlier) = (Standing::default(), outlier());
        assert_eq!(standing.eject(Ejection::Latency, &outlier, at(100)), Duration::from_secs(30));
        assert!(standing.out() && !standing.half_open() && !standing.wake(at(129)));
        assert_eq!(standing.tried(true, &outlier, at(129)), Trial::Nothing, "an old answer says nothing");
        assert!(standing.wake(at(130)) && !standing.wake(at(131)) && standing.half_open());
        let again = Trial::Ejected(Ejection::Latency, Duration::from_secs(60));
        assert_eq!(standing.tried(false, &outlier, at(164)), again);
        assert_eq!(standing.wellness(), Wellness::Ejected(Ejection::Latency, at(224)));
        assert!(standing.wake(at(224)));
        assert_eq!(standing.tried(true, &outlier, at(225)), Trial::Back);
        assert_eq!((standing.out(), standing.wellness()), (false, Wellness::Well));
    }

    #[test]
    fn ejections_grow_within_a_bound_and_are_forgiven() {
        // Aim: the n-th lasts n times as long, five minutes at most; five good minutes and it is the first again.
        let (mut standing, outlier) = (Standing::default(), outlier());
        let mut now = at(1_000);
        for n in 1..20 {
            let lasts = standing.eject(Ejection::SuccessRate, &outlier, now);
            assert_eq!(lasts, Duration::from_secs((30 * n).min(300)), "{n}");
            now = now.plus(lasts);
            standing.wake(now);
            assert_eq!(standing.tried(true, &outlier, now), Trial::Back);
            now = now.plus(Duration::from_secs(299));
        }
        let long = Outlier { eject_for: Duration::from_secs(900), ..outlier.clone() };
        now = now.plus(Duration::from_secs(1));
        assert_eq!(standing.eject(Ejection::SuccessRate, &outlier, now), Duration::from_secs(30));
        standing.eject(Ejection::SuccessRate, &long, now);
        assert_eq!(standing.eject(Ejection::SuccessRate, &long, now), Duration::from_secs(900), "as asked for, but no longer");
    }
}
