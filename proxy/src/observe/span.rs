//! A finished exchange as a span, named after OpenTelemetry's semantic conventions for HTTP. Made on the exporter's thread.

use std::time::SystemTime;

use engine::model::Settings;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::labels::{CODE_NONE, Direction, GRPC_NONE};
use super::record::{Detail, Head, Party, Record, Seen};

/// What a sampled exchange leaves behind.
#[derive(Debug)]
pub(super) struct SpanRecord {
    pub(super) seen: Seen,
    pub(super) detail: Box<Detail>,
    pub(super) started: SystemTime,
    pub(super) ended: SystemTime,
}

impl SpanRecord {
    /// The span, or `None` of an exchange that was not sampled.
    pub(super) fn span(&self) -> Option<SpanData> {
        let context = self.detail.context.filter(|context| context.sampled)?;
        let record = Record {
            seen: &self.seen,
            detail: &self.detail,
            started: self.started,
            duration: self.ended.duration_since(self.started).unwrap_or_default(),
        };
        Some(SpanData {
            span_context: SpanContext::new(
                TraceId::from_bytes(context.trace_id.to_be_bytes()),
                SpanId::from_bytes(context.span_id.to_be_bytes()),
                TraceFlags::SAMPLED,
                false,
                TraceState::NONE,
            ),
            parent_span_id: context.parent.map_or(SpanId::INVALID, |parent| SpanId::from_bytes(parent.to_be_bytes())),
            parent_span_is_remote: context.parent.is_some(),
            span_kind: if self.seen.direction == Direction::Inbound { SpanKind::Server } else { SpanKind::Client },
            name: name(&record).into(),
            start_time: self.started,
            end_time: self.ended,
            attributes: attributes(&record),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: status(&record),
            instrumentation_scope: scope(),
        })
    }
}

/// The scope of all our spans.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("meshwright").with_version(env!("CARGO_PKG_VERSION")).build()
}

/// Who sends the spans.
pub(super) fn resource(settings: Option<&Settings>, instance: &str) -> Resource {
    let mut attributes = vec![KeyValue::new("service.instance.id", instance.to_owned())];
    let name = settings.map_or(instance, |settings| &settings.workload);
    if let Some(settings) = settings {
        attributes.push(KeyValue::new("service.namespace", settings.namespace.clone()));
    }
    Resource::builder().with_service_name(name.to_owned()).with_attributes(attributes).build()
}

/// `{method} {service}.{namespace}`: few values, whatever the paths.
fn name(record: &Record<'_>) -> String {
    let method = record.detail.head.as_ref().map_or("TCP", |head| head.method.as_str());
    let Party { namespace, service, .. } = record.destination();
    match (service, namespace) {
        (Some(service), Some(namespace)) => format!("{method} {service}.{namespace}"),
        (Some(service), None) => format!("{method} {service}"),
        (None, _) => method.to_owned(),
    }
}

/// Client spans take 4xx as errors, server spans do not (semantic conventions for HTTP spans, "Status").
fn status(record: &Record<'_>) -> Status {
    let code = record.seen.code;
    let lowest = if record.seen.direction == Direction::Inbound { 500 } else { 400 };
    let failed_grpc = record.seen.grpc != GRPC_NONE && record.seen.grpc != 0;
    if record.seen.reason.is_some() || failed_grpc || (code != CODE_NONE && code >= lowest) {
        Status::error(record.detail.cause.clone().unwrap_or_default())
    } else {
        Status::Unset
    }
}

fn attributes(record: &Record<'_>) -> Vec<KeyValue> {
    let seen = record.seen;
    let mut all = Vec::with_capacity(28);
    if let Some(head) = &record.detail.head {
        of_head(&mut all, head);
    }
    if seen.code != CODE_NONE {
        all.push(KeyValue::new("http.response.status_code", i64::from(seen.code)));
    }
    if seen.grpc != GRPC_NONE {
        all.push(KeyValue::new("rpc.system", "grpc"));
        all.push(KeyValue::new("rpc.grpc.status_code", i64::from(seen.grpc)));
    }
    if let Some(reason) = seen.reason {
        all.push(KeyValue::new("error.type", reason.text()));
        all.push(KeyValue::new("meshwright.reason", reason.text()));
    }
    if let Some(blame) = seen.blame {
        all.push(KeyValue::new("meshwright.blame", blame.text()));
    }
    if let Some(rule) = seen.rule.as_ref().map(|rule| &rule.source) {
        all.push(KeyValue::new("meshwright.route", rule.label.to_string()));
        all.push(KeyValue::new("meshwright.rule", rule.rule.to_string()));
    }
    all.push(KeyValue::new("meshwright.epoch", i64::try_from(seen.snapshot.epoch).unwrap_or(i64::MAX)));
    all.push(KeyValue::new("meshwright.direction", seen.direction.text()));
    all.push(KeyValue::new("meshwright.attempts", i64::from(seen.attempts)));
    all.push(KeyValue::new("meshwright.mtls", seen.mtls));
    of_party(&mut all, &record.source(), ["client.address", "client.port"], &SOURCE);
    let peer = if seen.direction == Direction::Inbound {
        ["server.address", "server.port"]
    } else {
        ["network.peer.address", "network.peer.port"]
    };
    of_party(&mut all, &record.destination(), peer, &DESTINATION);
    if let Some(settings) = seen.settings() {
        all.extend(settings.span_attributes.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone())));
    }
    all
}

fn of_head(all: &mut Vec<KeyValue>, head: &Head) {
    all.push(KeyValue::new("http.request.method", head.method.as_str().to_owned()));
    let (path, query) = head.path.split_once('?').unwrap_or((&head.path, ""));
    all.push(KeyValue::new("url.path", path.to_owned()));
    if !query.is_empty() {
        all.push(KeyValue::new("url.query", query.to_owned()));
    }
    all.push(KeyValue::new("url.scheme", head.scheme));
    all.push(KeyValue::new("server.address", host_name(&head.host).to_owned()));
    all.push(KeyValue::new("network.protocol.name", "http"));
    let version = match head.version {
        http::Version::HTTP_10 => "1.0",
        http::Version::HTTP_2 => "2",
        http::Version::HTTP_3 => "3",
        _ => "1.1",
    };
    all.push(KeyValue::new("network.protocol.version", version));
    if let Some(agent) = &head.user_agent {
        all.push(KeyValue::new("user_agent.original", agent.clone()));
    }
}

/// The host without its port.
fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

const SOURCE: [&str; 4] =
    ["meshwright.source.namespace", "meshwright.source.service", "meshwright.source.workload", "meshwright.source.identity"];
const DESTINATION: [&str; 4] = [
    "meshwright.destination.namespace",
    "meshwright.destination.service",
    "meshwright.destination.workload",
    "meshwright.destination.identity",
];

fn of_party(all: &mut Vec<KeyValue>, party: &Party<'_>, [address, port]: [&'static str; 2], names: &[&'static str; 4]) {
    let identity = party.identity.map(|identity| identity.to_string());
    let values = [party.namespace, party.service, party.workload, identity.as_deref()];
    for (name, value) in names.iter().zip(values) {
        if let Some(value) = value {
            all.push(KeyValue::new(*name, value.to_owned()));
        }
    }
    // The host name of the request says more than the address it led to.
    let known = all.iter().any(|attribute| attribute.key.as_str() == address);
    if let Some(socket) = party.address
        && !known
    {
        all.push(KeyValue::new(address, socket.ip().to_string()));
        all.push(KeyValue::new(port, i64::from(socket.port())));
    }
}
