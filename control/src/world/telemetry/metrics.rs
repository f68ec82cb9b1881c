//! `metrics` of a Telemetry.

use super::super::door::Fields;
use super::Telemetry;

impl Telemetry {
    pub(super) fn read_metrics(&mut self, mut fields: Fields<'_>) {
        self.series_max = fields.get("seriesMax").and_then(|at| at.int(1..=1_000_000)).and_then(|max| u32::try_from(max).ok());
        fields.unsupported(&["labels", "otlp"]);
        fields.done();
    }
}
