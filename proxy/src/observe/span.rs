//! Finished exchanges as spans of OTLP (opentelemetry-proto 1.x, `trace/v1/trace.proto`), named after OpenTelemetry's semantic conventions
//! for HTTP, written directly in protobuf's wire format: a message object per span would cost ten times the writing.

use std::net::SocketAddr;

use engine::failure::{Blame, Reason};
use engine::model::Settings;
use http::Version;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;

use super::batch::{Batch, Record};
use super::labels::{CODE_NONE, Direction, GRPC_NONE};
use super::record::Word;
use super::secrets::without_user;
use super::shape::{Party, Shape, SpanParts};
use super::wire::{bytes, fixed32, fixed64, int_attribute, text_attribute, true_or_false_attribute, varint_field};

/// Fields of `Span`.
const TRACE_ID: u32 = 1;
const SPAN_ID: u32 = 2;
const PARENT_SPAN_ID: u32 = 4;
const NAME: u32 = 5;
const KIND: u32 = 6;
const START: u32 = 7;
const END: u32 = 8;
const STATUS: u32 = 15;
const FLAGS: u32 = 16;
/// `SpanKind`.
const SERVER: u64 = 2;
const CLIENT: u64 = 3;
/// Fields of `Status`, and `STATUS_CODE_ERROR`.
const STATUS_MESSAGE: u32 = 2;
const STATUS_CODE: u32 = 3;
const ERROR: u64 = 2;
/// `SpanFlags`: sampled; whether the parent is remote is known; it is.
const SAMPLED: u32 = 1;
const REMOTE_KNOWN: u32 = 0x100;
const REMOTE: u32 = 0x200;
/// Field of `ScopeSpans` that holds one span.
pub(super) const SPANS: u32 = 2;

/// Writes spans; keeps its room.
#[derive(Debug, Default)]
pub(super) struct Spans {
    one: Vec<u8>,
    small: Vec<u8>,
}

impl Spans {
    /// Adds a record's span to `out`, as a field of `ScopeSpans`. False: it was not sampled.
    pub(super) fn push(&mut self, out: &mut Vec<u8>, batch: &Batch, record: &Record) -> bool {
        let Some(context) = record.context.filter(|context| context.sampled) else { return false };
        let shape = batch.shape(record);
        let parts = shape.span.get_or_init(|| SpanParts::of(shape));
        let inbound = shape.direction == Direction::Inbound;
        let (one, small) = (&mut self.one, &mut self.small);
        one.clear();
        bytes(one, TRACE_ID, &context.trace_id.to_be_bytes());
        bytes(one, SPAN_ID, &context.span_id.to_be_bytes());
        if let Some(parent) = context.parent {
            bytes(one, PARENT_SPAN_ID, &parent.to_be_bytes());
        }
        small.clear();
        small.extend_from_slice(batch.word(record, Word::Method).unwrap_or("TCP").as_bytes());
        small.extend_from_slice(parts.name.as_bytes());
        bytes(one, NAME, small);
        varint_field(one, KIND, if inbound { SERVER } else { CLIENT });
        fixed64(one, START, record.started_nanos);
        let nanos = u64::try_from(record.duration.as_nanos()).unwrap_or(u64::MAX);
        fixed64(one, END, record.started_nanos.saturating_add(nanos));
        head(one, batch, record);
        outcome(one, record);
        for (name, word) in POLICIES {
            if let Some(text) = batch.word(record, word) {
                text_attribute(one, name, text);
            }
        }
        one.extend_from_slice(&parts.attributes);
        socket(one, ["client.address", "client.port"], record.downstream);
        if !parts.destination_known {
            socket(one, ["network.peer.address", "network.peer.port"], record.local);
        }
        status(one, small, batch, record, inbound);
        fixed32(one, FLAGS, SAMPLED | REMOTE_KNOWN | if context.parent.is_some() { REMOTE } else { 0 });
        bytes(out, SPANS, one);
        true
    }
}

impl SpanParts {
    fn of(shape: &Shape) -> Self {
        let mut all = Vec::with_capacity(512);
        if let Some(rule) = shape.rule.as_ref().map(|rule| &rule.source) {
            text_attribute(&mut all, "meshwright.route", &rule.label);
            text_attribute(&mut all, "meshwright.rule", &rule.rule);
        }
        text_attribute(&mut all, "meshwright.direction", shape.direction.text());
        true_or_false_attribute(&mut all, "meshwright.mtls", shape.mtls);
        of_party(&mut all, &shape.source(), &SOURCE);
        let destination = shape.destination();
        of_party(&mut all, &destination, &DESTINATION);
        if let Some(address) = destination.address {
            socket(&mut all, ["network.peer.address", "network.peer.port"], address);
        }
        for (name, value) in shape.settings.iter().flat_map(|settings| &settings.span_attributes) {
            text_attribute(&mut all, name, value);
        }
        // Of the inbound side the request's own host name, `server.address`, says more than the address it led to.
        let destination_known = destination.address.is_some() || shape.direction == Direction::Inbound;
        Self { attributes: all, name: name(&destination), destination_known }
    }
}

/// ` {service}.{namespace}`: few values, whatever the paths.
fn name(destination: &Party<'_>) -> String {
    match (destination.service, destination.namespace) {
        (Some(service), Some(namespace)) => format!(" {service}.{namespace}"),
        (Some(service), None) => format!(" {service}"),
        (None, _) => String::new(),
    }
}

fn head(out: &mut Vec<u8>, batch: &Batch, record: &Record) {
    let Some(version) = record.version else { return };
    let word = |word| batch.word(record, word);
    text_attribute(out, "http.request.method", word(Word::Method).unwrap_or_default());
    let target = batch.shape(record).secret_parameters().redact(word(Word::Path).unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    text_attribute(out, "url.path", path);
    if !query.is_empty() {
        text_attribute(out, "url.query", query);
    }
    text_attribute(out, "url.scheme", if record.https { "https" } else { "http" });
    text_attribute(out, "server.address", host_name(without_user(word(Word::Host).unwrap_or_default())));
    text_attribute(out, "network.protocol.name", "http");
    let version = match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    };
    text_attribute(out, "network.protocol.version", version);
    if let Some(agent) = word(Word::UserAgent) {
        text_attribute(out, "user_agent.original", agent);
    }
}

fn outcome(out: &mut Vec<u8>, record: &Record) {
    if record.code != CODE_NONE {
        int_attribute(out, "http.response.status_code", u64::from(record.code));
    }
    if record.grpc != GRPC_NONE {
        text_attribute(out, "rpc.system", "grpc");
        int_attribute(out, "rpc.grpc.status_code", u64::from(record.grpc));
    }
    if let Some(reason) = record.reason.map(Reason::text) {
        text_attribute(out, "error.type", reason);
        text_attribute(out, "meshwright.reason", reason);
    }
    if let Some(blame) = record.blame.map(Blame::text) {
        text_attribute(out, "meshwright.blame", blame);
    }
    int_attribute(out, "meshwright.epoch", record.epoch);
    int_attribute(out, "meshwright.attempts", u64::from(record.attempts));
}

/// Client spans take 4xx as errors, server spans do not (semantic conventions for HTTP spans, "Status").
fn status(out: &mut Vec<u8>, small: &mut Vec<u8>, batch: &Batch, record: &Record, inbound: bool) {
    let lowest = if inbound { 500 } else { 400 };
    let failed_grpc = record.grpc != GRPC_NONE && record.grpc != 0;
    if record.reason.is_none() && !failed_grpc && (record.code == CODE_NONE || record.code < lowest) {
        return;
    }
    small.clear();
    bytes(small, STATUS_MESSAGE, batch.word(record, Word::Cause).unwrap_or_default().as_bytes());
    varint_field(small, STATUS_CODE, ERROR);
    bytes(out, STATUS, small);
}

/// The host without its port.
pub(super) fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Attributes that only requests have that policies have said something of.
const POLICIES: [(&str, Word); 3] =
    [("meshwright.policy", Word::Policy), ("meshwright.policy.would_deny", Word::WouldDeny), ("meshwright.policy.audited", Word::Audited)];

const SOURCE: [&str; 4] =
    ["meshwright.source.namespace", "meshwright.source.service", "meshwright.source.workload", "meshwright.source.identity"];
const DESTINATION: [&str; 4] = [
    "meshwright.destination.namespace",
    "meshwright.destination.service",
    "meshwright.destination.workload",
    "meshwright.destination.identity",
];

fn of_party(out: &mut Vec<u8>, party: &Party<'_>, names: &[&'static str; 4]) {
    let identity = party.identity.map(|identity| identity.to_string());
    let values = [party.namespace, party.service, party.workload, identity.as_deref()];
    for (name, value) in names.iter().zip(values) {
        if let Some(value) = value {
            text_attribute(out, name, value);
        }
    }
}

fn socket(out: &mut Vec<u8>, [address, port]: [&str; 2], socket: SocketAddr) {
    let mut room = [0; 46];
    text_attribute(out, address, ip_text(&mut room, socket));
    int_attribute(out, port, u64::from(socket.port()));
}

/// The address alone, without formatting machinery for the common family.
fn ip_text(room: &mut [u8; 46], socket: SocketAddr) -> &str {
    use std::io::Write;
    let mut out = std::io::Cursor::new(&mut room[..]);
    // The longest IPv6 address fits.
    let _ = match socket {
        SocketAddr::V4(v4) => {
            let mut digits = itoa::Buffer::new();
            v4.ip().octets().into_iter().enumerate().try_for_each(|(n, part)| {
                out.write_all(if n > 0 { b"." } else { b"" })?;
                out.write_all(digits.format(part).as_bytes())
            })
        }
        SocketAddr::V6(v6) => write!(out, "{}", v6.ip()),
    };
    let length = usize::try_from(out.position()).unwrap_or(0);
    std::str::from_utf8(&room[..length]).unwrap_or_default()
}

/// The scope of all our spans.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("meshwright").with_version(env!("CARGO_PKG_VERSION")).build()
}

/// What stands before the spans of a request to the collector, whose `ScopeSpans` come from one proxy.
pub(super) fn envelope(settings: Option<&Settings>, instance: &str, spans: usize) -> Vec<u8> {
    let mut resource = Vec::new();
    bytes(&mut resource, 1, &Resource::from(&resource_of(settings, instance)).encode_to_vec());
    let scope = opentelemetry_proto::tonic::common::v1::InstrumentationScope::from((scope(), None));
    let mut scope_field = Vec::new();
    bytes(&mut scope_field, 1, &scope.encode_to_vec());
    let mut out = Vec::new();
    let of_scope = scope_field.len() + spans;
    let of_resource = resource.len() + super::wire::field_length(2, of_scope);
    // ExportTraceServiceRequest.resource_spans, ResourceSpans.resource and .scope_spans, ScopeSpans.scope.
    super::wire::prefix(&mut out, 1, of_resource);
    out.extend_from_slice(&resource);
    super::wire::prefix(&mut out, 2, of_scope);
    out.extend_from_slice(&scope_field);
    out
}

/// Who sends the spans.
pub(super) fn resource_of(settings: Option<&Settings>, instance: &str) -> opentelemetry_sdk::Resource {
    let mut attributes = vec![KeyValue::new("service.instance.id", instance.to_owned())];
    let name = settings.map_or(instance, |settings| &settings.workload);
    if let Some(settings) = settings {
        attributes.push(KeyValue::new("service.namespace", settings.namespace.clone()));
    }
    opentelemetry_sdk::Resource::builder().with_service_name(name.to_owned()).with_attributes(attributes).build()
}
