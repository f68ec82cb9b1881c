//! Telemetry: what proxies tell about their traffic. Every field is honoured or refused (`kinds.md`).

use std::collections::BTreeMap;

use engine::model::LogTemplate;
use proto::mesh::access_log::Format;

use super::door::{Cursor, Fields};
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
            let mut metrics = at.fields();
            read.series_max = metrics.get("seriesMax").and_then(|at| at.int(1..=1_000_000)).and_then(|max| u32::try_from(max).ok());
            metrics.unsupported(&["labels", "otlp"]);
            metrics.done();
        }
        fields.done();
        Some(read)
    }

    fn read_access_log(&mut self, mut fields: Fields<'_>) {
        self.access_log = fields.get("enabled").and_then(|at| at.flag());
        let words = [("Json", Format::Json), ("Combined", Format::Combined), ("Text", Format::Text)];
        let format = fields.get("format").and_then(|at| Some((at.word(&words)?, at)));
        let template = fields.get("template").and_then(|at| Some((at.text()?, at))).filter(|(text, _)| !text.is_empty());
        self.log_format = match (format, template) {
            (Some((Format::Text, _)), Some((text, at))) => match LogTemplate::parse(&text) {
                Ok(_) => Some(LogForm::Text(text)),
                Err(why) => {
                    at.error(why, "write for example `{client_address} \"{method} {path}\" {status} {duration_ms}`");
                    None
                }
            },
            (Some((Format::Text, at)), None) => {
                at.error("the format Text has no template", "add accessLog.template, or use Json or Combined");
                None
            }
            (_, Some((_, at))) => {
                at.error("only the format Text has a template", "add `format: Text`, or remove it");
                None
            }
            (format, None) => format.map(|(format, _)| if format == Format::Combined { LogForm::Combined } else { LogForm::Json }),
        };
        fields.unsupported(&["fields", "filter", "sampleSuccessPercent", "sinks"]);
        fields.done();
    }

    fn read_tracing(&mut self, mut fields: Fields<'_>) {
        if let Some(at) = fields.get("otlp") {
            let mut otlp = at.fields();
            if let Some(at) = otlp.need("endpoint") {
                self.otlp_endpoint = endpoint(&at);
            }
            if let Some(at) = otlp.get("protocol") {
                at.word(&[("Grpc", ())]);
            }
            otlp.done();
        }
        self.sample_percent = fields.get("samplePercent").and_then(|at| at.percent());
        self.attributes = fields.get("attributes").map(|at| at.text_map());
        fields.unsupported(&["keepErrors", "keepSlowerThan"]);
        fields.done();
    }
}

/// `http://HOST:PORT`, nothing behind it.
fn endpoint(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    let uri: Option<http::Uri> = text.parse().ok();
    let fits = uri.is_some_and(|uri| uri.scheme_str() == Some("http") && uri.port_u16().is_some() && matches!(uri.path(), "" | "/"));
    if !fits {
        at.error(format!("`{text}` is no OTLP/gRPC endpoint"), "write it as http://HOST:4317");
        return None;
    }
    Some(text.trim_end_matches('/').to_owned())
}
