//! Finished exchanges as spans of OTLP (opentelemetry-proto 1.x, `trace/v1/trace.proto`), named after OpenTelemetry's semantic conventions
//! for HTTP and RPC (of the version that [`SCHEMA_URL`] names), written directly in protobuf's wire format: a message object per span would cost ten times the writing.

use std::net::SocketAddr;

use engine::failure::{Blame, Reason};
use engine::model::{PathMatch, Settings};
use http::Version;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_semantic_conventions::SCHEMA_URL;
use prost::Message;

use super::batch::{Batch, Record};
use super::ending::{Ending, KeepCause};
use super::event::EventKind;
use super::labels::{CODE_NONE, Direction, Wire};
use super::record::Word;
use super::secrets::without_user;
use super::shape::{Party, Shape, SpanParts};
use super::under_way::TraceLink;
use super::wire::{bytes, fixed32, fixed64, int_attribute, text_attribute, true_or_false_attribute, varint_field};

/// Fields of `Span`.
const TRACE_ID: u32 = 1;
const SPAN_ID: u32 = 2;
const PARENT_SPAN_ID: u32 = 4;
const NAME: u32 = 5;
const KIND: u32 = 6;
const START: u32 = 7;
const END: u32 = 8;
const DROPPED_EVENTS: u32 = 12;
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
/// Field of `ScopeSpans` that holds one span; of it and of `ResourceSpans` that names the conventions.
pub(super) const SPANS: u32 = 2;
const SCHEMA: u32 = 3;
/// Longest name of a span, but for its method; longest method of a call.
const NAME_BYTES_MAX: usize = 256;
/// What the conventions do not know.
const OTHER: &str = "_OTHER";

/// Writes spans; keeps its room.
#[derive(Debug, Default)]
pub(super) struct Spans {
    one: Vec<u8>,
    small: Vec<u8>,
    full: String,
}

impl Spans {
    /// Adds a record's span to `out`, as a field of `ScopeSpans`. False: it has none.
    pub(super) fn push(&mut self, out: &mut Vec<u8>, batch: &Batch, record: &Record) -> bool {
        let Some(context) = record.context.filter(|context| context.sampled || record.kept.is_some()) else { return false };
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
        let ending = Ending { server: inbound, code: record.code, grpc: record.grpc, reason: record.reason };
        if record.wire == Wire::Grpc {
            bytes(one, NAME, method_of(batch, record).unwrap_or("grpc").as_bytes());
            call(one, batch, record, &ending);
        } else {
            small.clear();
            small.extend_from_slice(batch.word(record, Word::Method).and_then(known_method).unwrap_or("HTTP").as_bytes());
            small.extend_from_slice(parts.name.as_bytes());
            bytes(one, NAME, small);
            request(one, &mut self.full, (batch, parts), record);
        }
        varint_field(one, KIND, if inbound { SERVER } else { CLIENT });
        fixed64(one, START, record.started_nanos);
        let nanos = u64::try_from(record.duration.as_nanos()).unwrap_or(u64::MAX);
        fixed64(one, END, record.started_nanos.saturating_add(nanos));
        outcome(one, record, &ending);
        for (name, word) in POLICIES {
            text(one, name, batch.word(record, word).unwrap_or_default());
        }
        one.extend_from_slice(&parts.attributes);
        match record.client {
            Some(client) => address(one, "client.address", SocketAddr::new(client, 0)),
            None => socket(one, ["client.address", "client.port"], record.downstream),
        }
        if !parts.destination_known {
            socket(one, ["network.peer.address", "network.peer.port"], record.local);
        }
        events(one, small, batch, record);
        status(one, small, batch.word(record, Word::Cause), &ending);
        let remote = context.parent.is_some() && record.link != TraceLink::Inferred;
        let flags = REMOTE_KNOWN | if context.sampled { SAMPLED } else { 0 } | if remote { REMOTE } else { 0 };
        fixed32(one, FLAGS, flags);
        bytes(out, SPANS, one);
        true
    }
}

impl SpanParts {
    fn of(shape: &Shape) -> Self {
        let mut all = Vec::with_capacity(512);
        if let Some(rule) = shape.rule.as_ref().map(|rule| &rule.source) {
            text(&mut all, "meshwright.route", &rule.label);
            text(&mut all, "meshwright.rule", &rule.rule);
        }
        text(&mut all, "meshwright.direction", shape.direction.text());
        true_or_false_attribute(&mut all, "meshwright.mtls", shape.mtls);
        of_party(&mut all, &shape.source(), &SOURCE);
        let destination = shape.destination();
        of_party(&mut all, &destination, &DESTINATION);
        if let Some(address) = destination.address {
            socket(&mut all, ["network.peer.address", "network.peer.port"], address);
        }
        for (name, value) in shape.settings.iter().flat_map(|settings| &settings.span_attributes) {
            text(&mut all, name, value);
        }
        // Of the inbound side the request's own host name, `server.address`, says more than the address it led to.
        let destination_known = destination.address.is_some() || shape.direction == Direction::Inbound;
        let template = shape.rule.as_ref().and_then(|rule| template(&rule.matches.path));
        let name = template.as_ref().map_or_else(|| name(&destination), |template| format!(" {template}"));
        Self { attributes: all, name, template: template.unwrap_or_default(), destination_known }
    }
}

/// What a rule says of paths, as a template: of few values, whatever the paths. `None`: nothing.
fn template(path: &PathMatch) -> Option<String> {
    let whole = match path {
        PathMatch::Any => return None,
        PathMatch::Exact(path) => path.clone(),
        PathMatch::Prefix(prefix) if prefix.is_empty() => return None,
        PathMatch::Prefix(prefix) => format!("{prefix}/*"),
        PathMatch::StringPrefix(prefix) if prefix == "/" || prefix.is_empty() => return None,
        PathMatch::StringPrefix(prefix) => format!("{prefix}*"),
        // As it was written, without its anchors.
        PathMatch::Regex(pattern) => pattern.as_str().trim_start_matches(r"\A(?:").trim_end_matches(r")\z").to_owned(),
    };
    Some(clipped(&whole, NAME_BYTES_MAX).to_owned())
}

/// ` {service}.{namespace}`: few values, too.
fn name(destination: &Party<'_>) -> String {
    match (destination.service, destination.namespace) {
        (Some(service), Some(namespace)) => format!(" {service}.{namespace}"),
        (Some(service), None) => format!(" {service}"),
        (None, _) => String::new(),
    }
}

/// A method that the conventions know.
fn known_method(method: &str) -> Option<&str> {
    const KNOWN: [&str; 10] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE", "QUERY"];
    Some(method).filter(|method| KNOWN.contains(method))
}

/// `package.Service/Method`. `None`: the path is none of a gRPC call.
fn method_of<'a>(batch: &'a Batch, record: &Record) -> Option<&'a str> {
    let path = batch.word(record, Word::Path)?.strip_prefix('/')?;
    let (service, method) = path.split_once('/')?;
    let word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_'));
    (path.len() <= NAME_BYTES_MAX && word(service) && word(method)).then_some(path)
}

/// Conventions for RPC.
fn call(out: &mut Vec<u8>, batch: &Batch, record: &Record, ending: &Ending) {
    text(out, "rpc.system.name", "grpc");
    match method_of(batch, record) {
        Some(method) => text(out, "rpc.method", method),
        None => {
            text(out, "rpc.method", OTHER);
            let path = batch.word(record, Word::Path).unwrap_or_default();
            let path = path.split_once('?').map_or(path, |(path, _)| path);
            text(out, "rpc.method_original", clipped(path.trim_start_matches('/'), NAME_BYTES_MAX));
        }
    }
    match ending.grpc_code() {
        Some(code) => text(out, "rpc.response.status_code", code),
        None if record.code != CODE_NONE => int_attribute(out, "http.response.status_code", u64::from(record.code)),
        None => {}
    }
    server(out, batch, record);
}

/// Conventions for HTTP.
fn request(out: &mut Vec<u8>, full: &mut String, (batch, parts): (&Batch, &SpanParts), record: &Record) {
    let Some(version) = record.version else { return };
    let (shape, word) = (batch.shape(record), |word| batch.word(record, word).unwrap_or_default());
    let method = word(Word::Method);
    text(out, "http.request.method", known_method(method).unwrap_or(OTHER));
    if known_method(method).is_none() {
        text(out, "http.request.method_original", method);
    }
    let target = shape.secret_parameters().redact(word(Word::Path));
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let scheme = if record.https { "https" } else { "http" };
    text(out, "url.path", path);
    text(out, "url.query", query);
    text(out, "url.scheme", scheme);
    let host = without_user(word(Word::Host));
    if shape.direction == Direction::Inbound {
        text(out, "http.route", &parts.template);
    } else {
        text(out, "url.template", &parts.template);
        if !host.is_empty() {
            full.clear();
            [scheme, "://", host, &target].into_iter().for_each(|part| full.push_str(part));
            text(out, "url.full", full);
        }
        if record.attempts > 1 {
            int_attribute(out, "http.request.resend_count", u64::from(record.attempts - 1));
        }
    }
    if record.code != CODE_NONE {
        int_attribute(out, "http.response.status_code", u64::from(record.code));
    }
    let version = match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    };
    text(out, "network.protocol.version", version);
    server(out, batch, record);
}

/// Whom the request was for by its own word, and who made it.
fn server(out: &mut Vec<u8>, batch: &Batch, record: &Record) {
    let (host, port) = host_and_port(without_user(batch.word(record, Word::Host).unwrap_or_default()));
    if !host.is_empty() {
        text(out, "server.address", host);
        int_attribute(out, "server.port", u64::from(port.unwrap_or(if record.https { 443 } else { 80 })));
    }
    text(out, "user_agent.original", batch.word(record, Word::UserAgent).unwrap_or_default());
}

fn outcome(out: &mut Vec<u8>, record: &Record, ending: &Ending) {
    text(out, "error.type", ending.error_type(&mut itoa::Buffer::new()).unwrap_or_default());
    text(out, "meshwright.reason", record.reason.map_or("", Reason::text));
    text(out, "meshwright.blame", record.blame.map_or("", Blame::text));
    int_attribute(out, "meshwright.epoch", record.epoch);
    int_attribute(out, "meshwright.attempts", u64::from(record.attempts));
    text(out, "meshwright.kept", record.kept.map_or("", KeepCause::text));
    match record.link {
        TraceLink::None => {}
        TraceLink::Inferred => text(out, "meshwright.link", "inferred"),
        TraceLink::Candidates(count) => int_attribute(out, "meshwright.link_candidates", u64::from(count)),
    }
}

/// What happened, in order.
fn events(out: &mut Vec<u8>, small: &mut Vec<u8>, batch: &Batch, record: &Record) {
    let (mut attempts, mut faults, mut room) = (0, 0, [0; 46]);
    for event in batch.events(record) {
        let word = |word| batch.word(record, word).unwrap_or_default();
        let said = match event.kind {
            EventKind::Attempt | EventKind::Retry | EventKind::Hedge | EventKind::Overtaken => "",
            EventKind::Fault => {
                faults += 1;
                word(Word::Fault).split(", ").nth(faults - 1).unwrap_or_default()
            }
            EventKind::Denied => word(Word::Policy),
            EventKind::WouldDeny => word(Word::WouldDeny),
            EventKind::Limited => word(Word::Limit),
        };
        attempts += u64::from(event.kind == EventKind::Attempt);
        let address = event.address.map_or("", |address| ip_text(&mut room, address));
        event.write((out, small), record.started_nanos, attempts, (said, address));
    }
    if record.events_dropped > 0 {
        varint_field(out, DROPPED_EVENTS, u64::from(record.events_dropped));
    }
}

/// An unset status says nothing.
fn status(out: &mut Vec<u8>, small: &mut Vec<u8>, cause: Option<&str>, ending: &Ending) {
    if !ending.is_error() {
        return;
    }
    small.clear();
    bytes(small, STATUS_MESSAGE, cause.unwrap_or_default().as_bytes());
    varint_field(small, STATUS_CODE, ERROR);
    bytes(out, STATUS, small);
}

/// A text attribute. An empty one says nothing and is left out.
fn text(out: &mut Vec<u8>, name: &str, value: &str) {
    if !value.is_empty() {
        text_attribute(out, name, value);
    }
}

/// The host, and its port where it has one.
pub(super) fn host_and_port(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => (name, port.parse().ok()),
        _ => (host, None),
    }
}

/// The beginning of a text.
fn clipped(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
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
        text(out, name, value.unwrap_or_default());
    }
}

fn socket(out: &mut Vec<u8>, [name, port]: [&str; 2], socket: SocketAddr) {
    address(out, name, socket);
    int_attribute(out, port, u64::from(socket.port()));
}

fn address(out: &mut Vec<u8>, name: &str, socket: SocketAddr) {
    text_attribute(out, name, ip_text(&mut [0; 46], socket));
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
    InstrumentationScope::builder("meshwright").with_version(env!("CARGO_PKG_VERSION")).with_schema_url(SCHEMA_URL).build()
}

/// What stands before the spans of a request to the collector, whose `ScopeSpans` come from one proxy.
pub(super) fn envelope(settings: Option<&Settings>, instance: &str, spans: usize) -> Vec<u8> {
    let mut resource = Vec::new();
    bytes(&mut resource, 1, &Resource::from(&resource_of(settings, instance)).encode_to_vec());
    let scope = opentelemetry_proto::tonic::common::v1::InstrumentationScope::from((scope(), None));
    let mut scope_field = Vec::new();
    bytes(&mut scope_field, 1, &scope.encode_to_vec());
    bytes(&mut scope_field, SCHEMA, SCHEMA_URL.as_bytes());
    bytes(&mut resource, SCHEMA, SCHEMA_URL.as_bytes());
    let mut out = Vec::new();
    let of_scope = scope_field.len() + spans;
    let of_resource = resource.len() + super::wire::field_length(2, of_scope);
    // ExportTraceServiceRequest.resource_spans, ResourceSpans.resource, .schema_url and .scope_spans, ScopeSpans.scope and .schema_url.
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
    opentelemetry_sdk::Resource::builder().with_service_name(name.to_owned()).with_schema_url(attributes, SCHEMA_URL).build()
}
