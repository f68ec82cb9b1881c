//! Telemetry: what proxies tell about their traffic. Every field is honoured or refused (`kinds.md`).

mod access_log;
mod metrics;
mod tracing;

use std::collections::BTreeMap;
use std::time::Duration;

use engine::model::MetricLabel;

use super::door::Fields;
use super::key::Kind;
use super::own::{Selector, read_selector};
use super::traffic::{PolicyTarget, TARGETS_MAX};

/// The form of the access log's lines.
#[derive(Clone, Debug, PartialEq)]
pub enum LogForm {
    /// One JSON object each.
    Json,
    /// As Apache and nginx write them.
    Combined,
    /// By a template that the proxies' engine has read.
    Text(String),
}

/// What a proxy tells about its traffic. `None` leaves a field to the next wider object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Telemetry {
    /// For whom.
    pub selector: Selector,
    /// Or for which Gateways.
    pub gateways: Vec<PolicyTarget>,
    /// Whether each exchange is logged.
    pub access_log: Option<bool>,
    /// In which form.
    pub log_format: Option<LogForm>,
    /// OTLP/gRPC endpoint of spans.
    pub otlp_endpoint: Option<String>,
    /// Share of new traces.
    pub sample_percent: Option<f64>,
    /// Attributes of every span.
    pub attributes: Option<BTreeMap<String, String>>,
    /// Bound on metric label sets.
    pub series_max: Option<u32>,
    /// Labels that metrics of traffic do without.
    pub dropped_labels: Option<Vec<MetricLabel>>,
    /// Labels that they have in addition.
    pub added_labels: Option<Vec<MetricLabel>>,
    /// OTLP/gRPC endpoint of metrics, and how often they are sent there.
    pub metrics_otlp: Option<(String, Duration)>,
}

impl Telemetry {
    pub(super) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let mut read = Self { selector: read_selector(&mut fields), ..Self::default() };
        if let Some(at) = fields.get("targetRefs") {
            let targets = at.list(TARGETS_MAX);
            read.gateways = targets.iter().filter_map(|at| PolicyTarget::read_of(at, &[("Gateway", Kind::Gateway)])).collect();
            for (target, at) in read.gateways.iter().zip(&targets) {
                if target.section.is_some() {
                    at.error("a proxy writes one log for all of its listeners", "remove sectionName");
                }
            }
            if read.selector.is_some() && !targets.is_empty() {
                at.error("it has both targetRefs and a selector", "keep one of them");
            }
        }
        if let Some(at) = fields.get("accessLog") {
            read.read_access_log(at.fields());
        }
        if let Some(at) = fields.get("tracing") {
            read.read_tracing(at.fields());
        }
        if let Some(at) = fields.get("metrics") {
            read.read_metrics(at.fields());
        }
        fields.done();
        Some(read)
    }
}
