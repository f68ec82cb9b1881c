//! What a rule says of what is told of its requests.

use std::time::Duration;

use proto::mesh::RouteTelemetry;

use crate::raw::duration;
use crate::rejected::Wrong;

/// Which spans are kept, sampled or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Those of failed requests.
    pub errors: bool,
    /// Those of requests that took longer; zero: none.
    pub slower: Duration,
}

impl Keep {
    /// Whether any is.
    pub const fn is_any(self) -> bool {
        self.errors || !self.slower.is_zero()
    }

    /// The same where a rule says something else.
    #[must_use]
    pub fn of_rule(self, rule: &RuleTelemetry) -> Self {
        Self { errors: rule.keep_errors.unwrap_or(self.errors), slower: rule.keep_slower.unwrap_or(self.slower) }
    }
}

/// What is told of a rule's requests. `None` leaves a field to the proxy's own [`super::Settings`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuleTelemetry {
    /// Chance of a new trace to be sampled, of 2^32.
    pub sample_threshold: Option<u64>,
    /// Whether spans of failed requests are kept, sampled or not.
    pub keep_errors: Option<bool>,
    /// The same of requests that took longer; zero: of none.
    pub keep_slower: Option<Duration>,
    /// Whether they are logged.
    pub log_enabled: Option<bool>,
    /// A condition in CEL: what it does not hold for is not logged.
    pub log_filter: Option<String>,
    /// Share of those that succeeded that is logged, 0 to 100.
    pub log_sample_success_percent: Option<f64>,
}

impl RuleTelemetry {
    /// What it says, in words.
    pub(crate) fn story(&self) -> String {
        let Self { sample_threshold, keep_errors, keep_slower, log_enabled, log_filter, log_sample_success_percent } = self;
        let share = |threshold: u64| threshold as f64 * 100.0 / (1_u64 << 32) as f64;
        let parts = [
            sample_threshold.map(|threshold| format!("{:.3} % of new traces", share(threshold))),
            keep_errors.map(|keep| format!("{} spans of errors", if keep { "all" } else { "sampled" })),
            keep_slower.map(|bound| match bound.is_zero() {
                true => "sampled spans of slow requests".to_owned(),
                false => format!("all spans of requests over {bound:?}"),
            }),
            log_enabled.map(|logged| format!("{} in the access log", if logged { "lines" } else { "no lines" })),
            log_filter.as_ref().map(|filter| format!("lines where {filter}")),
            log_sample_success_percent.map(|percent| format!("lines of {percent} % of successes")),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    pub(super) fn compile(raw: &RouteTelemetry) -> Result<Self, Wrong> {
        let RouteTelemetry { sample_percent, keep_errors, keep_slower, log_enabled, log_filter, log_sample_success_percent } = raw;
        Ok(Self {
            sample_threshold: sample_percent.map(|percent| Ok(threshold(percent_of(percent, "sample_percent")?))).transpose()?,
            keep_errors: *keep_errors,
            keep_slower: duration(keep_slower.as_ref(), "keep_slower")?,
            log_enabled: *log_enabled,
            log_filter: log_filter.clone(),
            log_sample_success_percent: log_sample_success_percent
                .map(|percent| percent_of(percent, "log_sample_success_percent"))
                .transpose()?,
        })
    }
}

/// A share, 0 to 100.
pub(super) fn percent_of(percent: f64, field: &str) -> Result<f64, Wrong> {
    match (0.0..=100.0).contains(&percent) {
        true => Ok(percent),
        false => Err(Wrong::new(field, format!("{percent} is not between 0 and 100"))),
    }
}

/// The same as a chance of 2^32.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "0 to 2^32")]
pub(super) fn threshold(percent: f64) -> u64 {
    (percent / 100.0 * (1_u64 << 32) as f64) as u64
}
