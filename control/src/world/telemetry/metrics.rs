//! `metrics` of a Telemetry.

use std::time::Duration;

use engine::model::MetricLabel;

use super::super::door::{Cursor, Fields};
use super::tracing::otlp_endpoint;
use super::{OtlpProtocol, Telemetry};

/// How often metrics are sent where nobody says it.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(10);
const INTERVAL_MIN: Duration = Duration::from_secs(1);
const INTERVAL_MAX: Duration = Duration::from_secs(3600);

impl Telemetry {
    pub(super) fn read_metrics(&mut self, mut fields: Fields<'_>) {
        self.series_max = fields.get("seriesMax").and_then(|at| at.int(1..=1_000_000)).and_then(|max| u32::try_from(max).ok());
        if let Some(at) = fields.get("labels") {
            let mut labels = at.fields();
            self.dropped_labels = labels.get("drop").map(|at| read_labels(&at, MetricLabel::can_be_dropped));
            self.added_labels = labels.get("add").map(|at| read_labels(&at, MetricLabel::can_be_added));
            labels.done();
        }
        if let Some(at) = fields.get("otlp") {
            let mut otlp = at.fields();
            let endpoint = otlp.need("endpoint").and_then(|at| otlp_endpoint(&at, OtlpProtocol::Grpc));
            let interval = otlp.get("interval").map_or(Some(INTERVAL_DEFAULT), |at| read_interval(&at));
            self.metrics_otlp = endpoint.zip(interval);
            otlp.done();
        }
        fields.done();
    }
}

fn read_labels(at: &Cursor<'_>, fits: impl Fn(MetricLabel) -> bool) -> Vec<MetricLabel> {
    let words: Vec<(&str, MetricLabel)> =
        MetricLabel::ALL.into_iter().filter(|label| fits(*label)).map(|label| (label.text(), label)).collect();
    let mut labels: Vec<_> = at.list(MetricLabel::ALL.len()).iter().filter_map(|at| at.word(&words)).collect();
    labels.sort_unstable();
    labels.dedup();
    labels
}

fn read_interval(at: &Cursor<'_>) -> Option<Duration> {
    let interval = at.duration()?;
    if !(INTERVAL_MIN..=INTERVAL_MAX).contains(&interval) {
        at.error("metrics are sent every 1s to 1h", "write for example `interval: 10s`");
        return None;
    }
    Some(interval)
}
