//! Telemetry: what proxies tell about their traffic. Every field is honoured or refused (`kinds.md`).

mod access_log;
mod metrics;
mod tracing;

pub use access_log::LogTarget;
pub use tracing::{Otlp, OtlpProtocol};

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engine::model::MetricLabel;

use super::door::{Cursor, Fields};
use super::key::{Kind, ObjectKey};
use super::own::{Selector, read_selector};
use super::traffic::{Place, PolicyTarget, TARGETS_MAX};
use super::{Object, Spec};

/// The form of the access log's lines.
#[derive(Clone, Debug, PartialEq)]
pub enum LogForm {
    /// One JSON object each.
    Json,
    /// The same of some fields, in that order.
    Fields(Vec<String>),
    /// As Apache and nginx write them.
    Combined,
    /// By a template that the proxies' engine has read.
    Text(String),
}

/// The content of a Telemetry.
pub fn content(object: &Object) -> Option<&Telemetry> {
    if let Spec::Telemetry(spec) = &object.spec { Some(spec) } else { None }
}

/// What a proxy tells about its traffic. `None` leaves a field to the next wider object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Telemetry {
    /// For whom.
    pub selector: Selector,
    /// Or of what, by name: Gateways, whose proxies tell it, or routes and Services, of whose calls it is told.
    pub targets: Vec<PolicyTarget>,
    /// Whether each exchange is logged.
    pub access_log: Option<bool>,
    /// In which form.
    pub log_format: Option<LogForm>,
    /// Where spans go by OTLP.
    pub otlp: Option<Otlp>,
    /// Where they go as Zipkin's JSON.
    pub zipkin_endpoint: Option<String>,
    /// Share of new traces.
    pub sample_percent: Option<f64>,
    /// Attributes of every span.
    pub attributes: Option<BTreeMap<String, String>>,
    /// Bound on metric label sets.
    pub series_max: Option<u32>,

    /// Whether spans of failed requests are kept, sampled or not.
    pub keep_errors: Option<bool>,
    /// The same of those that took longer; zero: none.
    pub keep_slower: Option<Duration>,
    /// Whether requests without a trace are taken for parts of the only one that the application is answering.
    pub infer_links: Option<bool>,
    /// A condition in CEL: what it does not hold for is not logged.
    pub log_filter: Option<String>,
    /// Share of requests that succeeded that is logged.
    pub log_success_percent: Option<f64>,

    /// Where lines of the access log go.
    pub log_sinks: Option<Vec<LogTarget>>,
    /// Labels that metrics of traffic do without.
    pub dropped_labels: Option<Vec<MetricLabel>>,
    /// Labels that they have in addition.
    pub added_labels: Option<Vec<MetricLabel>>,
    /// OTLP/gRPC endpoint of metrics, and how often they are sent there.
    pub metrics_otlp: Option<(String, Duration)>,
}

/// What may be said of a route or a Service, block by block: a proxy has one exporter and one log.
const OF_CALLS: [(&str, &[&str]); 2] =
    [("tracing", &["samplePercent", "keepErrors", "keepSlowerThan"]), ("accessLog", &["enabled", "filter", "sampleSuccessPercent"])];

/// What to do about something that may not.
const REMEDY: &str = "say it of the workloads or the Gateway, in an object of its own";

impl Telemetry {
    pub(super) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let mut read = Self { selector: read_selector(&mut fields), ..Self::default() };
        if let Some(at) = fields.get("targetRefs") {
            let targets = at.list(TARGETS_MAX);
            for at in &targets {
                let Some(target) = PolicyTarget::read(at) else { continue };
                if target.kind == Kind::Gateway && target.section.is_some() {
                    at.error("a proxy writes one log for all of its listeners", "remove sectionName");
                }
                read.targets.push(target);
            }
            if read.selector.is_some() && !targets.is_empty() {
                at.error("it has both targetRefs and a selector", "keep one of them");
            }
        }
        if let Some(target) = read.targets.iter().find(|target| target.kind != Kind::Gateway) {
            judge_of_calls(fields.at(), target);
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

    /// The routes and Services of whose calls it is told.
    pub fn places(&self, key: &ObjectKey) -> BTreeSet<Place> {
        self.targets.iter().filter(|target| target.kind != Kind::Gateway).map(|target| target.place(&key.namespace)).collect()
    }
}

/// What is said of a route or Service and belongs to a whole proxy is an error.
fn judge_of_calls(spec: &Cursor<'_>, target: &PolicyTarget) {
    for (name, at) in spec.entries() {
        if name == "metrics" {
            at.error(format!("`metrics` belongs to a whole proxy, and not to {} {}", target.kind, target.name), REMEDY);
        }
        let Some((_, fields)) = OF_CALLS.iter().find(|(block, _)| *block == name) else { continue };
        for (field, at) in at.entries().into_iter().filter(|(field, _)| !fields.contains(field)) {
            let message = format!("`{name}.{field}` belongs to a whole proxy, and not to {} {}", target.kind, target.name);
            at.error(message, REMEDY);
        }
    }
}
