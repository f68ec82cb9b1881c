//! What a rule says of what is told of its requests.

use std::sync::Arc;
use std::time::Duration;

use proto::mesh::RouteTelemetry;

use super::LogFilter;
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
    /// What it does not hold for is not logged.
    pub log_filter: Option<Arc<LogFilter>>,
    /// Share of those that went well that is logged, of 2^32.
    pub log_success_threshold: Option<u64>,
}

impl RuleTelemetry {
    /// What it says, in words.
    pub(crate) fn story(&self) -> String {
        let Self { sample_threshold, keep_errors, keep_slower, log_enabled, log_filter, log_success_threshold } = self;
        let share = |threshold: u64| threshold as f64 * 100.0 / (1_u64 << 32) as f64;
        let parts = [
            sample_threshold.map(|threshold| format!("{:.3} % of new traces", share(threshold))),
            keep_errors.map(|keep| format!("{} spans of errors", if keep { "all" } else { "sampled" })),
            keep_slower.map(|bound| match bound.is_zero() {
                true => "sampled spans of slow requests".to_owned(),
                false => format!("all spans of requests over {bound:?}"),
            }),
            log_enabled.map(|logged| format!("{} in the access log", if logged { "lines" } else { "no lines" })),
            log_filter.as_ref().map(|filter| format!("lines where {}", filter.text())),
            log_success_threshold.map(|threshold| format!("lines of {:.3} % of successes", share(threshold))),
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
            log_filter: log_filter.as_deref().map_or(Ok(None), |text| filter_of(text, "log_filter"))?,
            log_success_threshold: log_sample_success_percent
                .map(|percent| Ok(threshold(percent_of(percent, "log_sample_success_percent")?)))
                .transpose()?,
        })
    }
}

/// A filter of the access log; empty: none.
pub(super) fn filter_of(text: &str, field: &str) -> Result<Option<Arc<LogFilter>>, Wrong> {
    if text.is_empty() {
        return Ok(None);
    }
    LogFilter::compile(text).map(|filter| Some(Arc::new(filter))).map_err(|why| Wrong::new(field, why))
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
