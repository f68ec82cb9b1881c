//! Spans as Zipkin takes them: JSON of its API's version 2 (zipkin-api, `zipkin2-api.yaml`), made of the same spans of OTLP by the rules of
//! OpenTelemetry's specification, "Zipkin exporter". The making is pure.

use std::fmt::Write as _;

use bytes::Bytes;
use http::HeaderValue;
use opentelemetry::Value;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::{Event, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ScopeSpans, Span};
use opentelemetry_sdk::Resource;
use prost::Message as _;
use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};
use serde_json::json;
use tokio::time::{Duration, timeout};

use super::collector::{CollectorPlace, Way};
use super::parcel::Packed;
use super::poster::{Poster, taken};
use super::refusal::Refusal;

/// Zipkin's usual port.
const PORT: u16 = 9411;
/// A server that has not answered by then has failed.
const ANSWER_MAX: Duration = Duration::from_secs(5);
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A client of one Zipkin server.
#[derive(Debug)]
pub(super) struct ZipkinClient {
    endpoint: String,
    poster: Poster,
}

impl ZipkinClient {
    /// Connects at the first use and again after each loss.
    ///
    /// # Errors
    /// The endpoint is not usable: why, and what to give.
    pub(super) fn new(endpoint: &str, way: &Way) -> Result<Self, String> {
        let place = CollectorPlace::read(endpoint, PORT).map_err(|error| error.to_string())?;
        Ok(Self { endpoint: endpoint.to_owned(), poster: Poster::new(way.clone(), place) })
    }

    /// As it was given.
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Whether it is the client of that server.
    pub(super) fn is_of(&self, endpoint: &str) -> bool {
        self.endpoint == endpoint
    }

    /// Sends spans.
    ///
    /// # Errors
    /// They were not taken, or nobody knows.
    pub(super) async fn send(&self, resource: &Resource, spans: &Packed, now_unix_secs: u64) -> Result<(), Refusal> {
        let spans = match spans {
            Packed::Encoded(bytes) => ScopeSpans::decode(&bytes[..]).map_err(|error| Refusal::Never(error.to_string()))?.spans,
            Packed::Own(spans) => spans.iter().cloned().map(Span::from).collect(),
        };
        let body = Bytes::from(text(resource, &spans));
        let sent = timeout(ANSWER_MAX, self.poster.post("", JSON, body)).await;
        let answer = sent.map_err(|_| Refusal::broken(format!("no answer within {} s", ANSWER_MAX.as_secs())))??;
        taken(answer, now_unix_secs).map(drop)
    }
}

/// A list of spans.
fn text(resource: &Resource, spans: &[Span]) -> String {
    let of = |name: &'static str| resource.get(&name.into()).as_ref().map(Value::to_string);
    let local = of("service.name").unwrap_or_default();
    let about = ["service.namespace", "service.instance.id"].into_iter().filter_map(|name| Some((name, of(name)?))).collect::<Vec<_>>();
    let rows: Vec<Row<'_>> = spans.iter().map(|span| Row::of(&local, &about, span)).collect();
    // Numbers, texts and maps of them: nothing of this can fail.
    serde_json::to_string(&rows).unwrap_or_default()
}

/// `Span`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'s> {
    trace_id: String,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<String>,
    name: &'s str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    /// Microseconds since 1970.
    timestamp: u64,
    /// Microseconds; at least one: 0 means that it is not known.
    duration: u64,
    local_endpoint: Endpoint<'s>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_endpoint: Option<Endpoint<'s>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    annotations: Vec<Annotation>,
    tags: Tags<'s>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint<'s> {
    #[serde(skip_serializing_if = "Option::is_none")]
    service_name: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

#[derive(Debug, Serialize)]
struct Annotation {
    timestamp: u64,
    value: String,
}

/// A map; where a name comes twice, the last one counts for whoever reads it.
#[derive(Debug)]
struct Tags<'s>(Vec<(&'s str, String)>);

impl Serialize for Tags<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// Who is at the other end, first choice first, and where.
const SERVER: ([&str; 2], [&str; 2]) =
    (["meshwright.destination.workload", "meshwright.destination.service"], ["network.peer.address", "network.peer.port"]);
const CLIENT: ([&str; 2], [&str; 2]) = (["meshwright.source.workload", "meshwright.source.service"], ["client.address", "client.port"]);

impl<'s> Row<'s> {
    fn of(local: &'s str, about: &'s [(&'static str, String)], span: &'s Span) -> Self {
        let (start, end) = (span.start_time_unix_nano / 1000, span.end_time_unix_nano / 1000);
        let (kind, other) = match span.kind() {
            SpanKind::Client => (Some("CLIENT"), Some(SERVER)),
            SpanKind::Server => (Some("SERVER"), Some(CLIENT)),
            SpanKind::Producer => (Some("PRODUCER"), None),
            SpanKind::Consumer => (Some("CONSUMER"), None),
            SpanKind::Internal | SpanKind::Unspecified => (None, None),
        };
        let mut tags: Vec<(&str, String)> = about.iter().map(|(name, value)| (*name, value.clone())).collect();
        tags.extend(span.attributes.iter().map(|attribute| (attribute.key.as_str(), shown(attribute.value.as_ref()))));
        if let Some(status) = span.status.as_ref().filter(|status| status.code() != StatusCode::Unset) {
            let failed = status.code() == StatusCode::Error;
            tags.push(("otel.status_code", if failed { "ERROR" } else { "OK" }.to_owned()));
            if failed {
                tags.push(("error", status.message.clone()));
            }
        }
        Self {
            trace_id: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent_id: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
            name: &span.name,
            kind,
            timestamp: start,
            duration: end.saturating_sub(start).max(1),
            local_endpoint: Endpoint { service_name: Some(local), ..Endpoint::default() },
            remote_endpoint: other.and_then(|(names, socket)| Endpoint::of(span, names, socket)),
            annotations: span.events.iter().map(Annotation::of).collect(),
            tags: Tags(tags),
        }
    }
}

impl<'s> Endpoint<'s> {
    /// `None`: nothing is known of it.
    fn of(span: &'s Span, names: [&str; 2], [address, port]: [&str; 2]) -> Option<Self> {
        let value =
            |name: &str| span.attributes.iter().find(|attribute| attribute.key == name).and_then(|at| at.value.as_ref()?.value.as_ref());
        let text = |name: &str| match value(name) {
            Some(Any::StringValue(text)) => Some(text.as_str()),
            _ => None,
        };
        let service_name = names.into_iter().find_map(text);
        let address = text(address);
        let port = match value(port) {
            Some(Any::IntValue(port)) => u16::try_from(*port).ok(),
            _ => None,
        };
        let (ipv6, ipv4) = address.map_or((None, None), |ip| if ip.contains(':') { (Some(ip), None) } else { (None, Some(ip)) });
        (service_name.is_some() || address.is_some()).then_some(Self { service_name, ipv4, ipv6, port })
    }
}

impl Annotation {
    /// The event's name; with attributes an object of them below the name.
    fn of(event: &Event) -> Self {
        let value = if event.attributes.is_empty() {
            event.name.clone()
        } else {
            let attributes = event.attributes.iter().map(|at| (at.key.clone(), plain(at.value.as_ref()))).collect();
            json!({ event.name.as_str(): serde_json::Value::Object(attributes) }).to_string()
        };
        Self { timestamp: event.time_unix_nano / 1000, value }
    }
}

/// A tag's text: texts as they are, all else as in JSON.
fn shown(value: Option<&AnyValue>) -> String {
    match plain(value) {
        serde_json::Value::String(text) => text,
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn plain(value: Option<&AnyValue>) -> serde_json::Value {
    let pairs = |pairs: &[KeyValue]| pairs.iter().map(|pair| (pair.key.clone(), plain(pair.value.as_ref()))).collect();
    match value.and_then(|value| value.value.as_ref()) {
        Some(Any::StringValue(text)) => json!(text),
        Some(Any::BoolValue(yes)) => json!(yes),
        Some(Any::IntValue(number)) => json!(number),
        Some(Any::DoubleValue(number)) => json!(number),
        Some(Any::BytesValue(bytes)) => json!(hex(bytes)),
        Some(Any::ArrayValue(list)) => list.values.iter().map(|value| plain(Some(value))).collect(),
        Some(Any::KvlistValue(list)) => serde_json::Value::Object(pairs(&list.values)),
        _ => serde_json::Value::Null,
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // A text takes whatever is written.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use opentelemetry::KeyValue as Fact;
    use opentelemetry_proto::tonic::common::v1::ArrayValue;
    use opentelemetry_proto::tonic::trace::v1::Status;

    use super::*;

    fn attribute(key: &str, value: Any) -> KeyValue {
        KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
    }

    fn said(text: &str) -> Any {
        Any::StringValue(text.to_owned())
    }

    fn resource() -> Resource {
        let facts = [Fact::new("service.namespace", "shop"), Fact::new("service.instance.id", "frontend-0")];
        Resource::builder_empty().with_service_name("frontend").with_attributes(facts).build()
    }

    /// Aim: a failed call's span is Zipkin's in every part: both ends, times in microseconds, status, events, attributes of every type.
    #[test]
    fn a_span_is_told_whole() {
        let span = Span {
            trace_id: 0x0123_u128.to_be_bytes().to_vec(),
            span_id: 0xabc_u64.to_be_bytes().to_vec(),
            parent_span_id: 7_u64.to_be_bytes().to_vec(),
            name: "GET".into(),
            kind: SpanKind::Client.into(),
            start_time_unix_nano: 1_700_000_000_000_001_999,
            end_time_unix_nano: 1_700_000_000_002_501_000,
            attributes: vec![
                attribute("http.request.method", said("GET")),
                attribute("http.response.status_code", Any::IntValue(503)),
                attribute("meshwright.mtls", Any::BoolValue(true)),
                attribute("meshwright.destination.service", said("catalog")),
                attribute("meshwright.destination.workload", said("catalog-v1")),
                attribute("network.peer.address", said("10.77.0.3")),
                attribute("network.peer.port", Any::IntValue(8080)),
                attribute("many", Any::ArrayValue(ArrayValue { values: vec![AnyValue { value: Some(said("a \"b\"")) }] })),
            ],
            events: vec![
                Event { time_unix_nano: 1_700_000_000_001_000_000, name: "retry".into(), ..Event::default() },
                Event {
                    time_unix_nano: 1_700_000_000_002_000_000,
                    name: "attempt".into(),
                    attributes: vec![attribute("reason", said("connect_failed")), attribute("number", Any::IntValue(2))],
                    ..Event::default()
                },
            ],
            status: Some(Status { code: StatusCode::Error.into(), message: "refused".into() }),
            ..Span::default()
        };
        let told: serde_json::Value = serde_json::from_str(&text(&resource(), &[span])).unwrap();
        let wanted = json!([{
            "traceId": "00000000000000000000000000000123",
            "id": "0000000000000abc",
            "parentId": "0000000000000007",
            "name": "GET",
            "kind": "CLIENT",
            "timestamp": 1_700_000_000_000_001_u64,
            "duration": 2500,
            "localEndpoint": {"serviceName": "frontend"},
            "remoteEndpoint": {"serviceName": "catalog-v1", "ipv4": "10.77.0.3", "port": 8080},
            "annotations": [
                {"timestamp": 1_700_000_000_001_000_u64, "value": "retry"},
                {"timestamp": 1_700_000_000_002_000_u64, "value": "{\"attempt\":{\"number\":2,\"reason\":\"connect_failed\"}}"},
            ],
            "tags": {
                "service.namespace": "shop",
                "service.instance.id": "frontend-0",
                "http.request.method": "GET",
                "http.response.status_code": "503",
                "meshwright.mtls": "true",
                "meshwright.destination.service": "catalog",
                "meshwright.destination.workload": "catalog-v1",
                "network.peer.address": "10.77.0.3",
                "network.peer.port": "8080",
                "many": "[\"a \\\"b\\\"\"]",
                "otel.status_code": "ERROR",
                "error": "refused",
            },
        }]);
        assert_eq!(told, wanted);
    }

    /// Aim: what is not there is left out; a span that took no time is told as the shortest; a root has no parent; an IPv6 caller is named so.
    #[test]
    fn what_is_not_known_is_left_out() {
        let server =
            Span { kind: SpanKind::Server.into(), attributes: vec![attribute("client.address", said("fd00::7"))], ..Span::default() };
        let internal = Span { name: "configuration".into(), kind: SpanKind::Internal.into(), ..Span::default() };
        let told: serde_json::Value = serde_json::from_str(&text(&resource(), &[server, internal])).unwrap();
        assert_eq!((&told[0]["kind"], &told[0]["duration"]), (&json!("SERVER"), &json!(1)));
        assert_eq!(told[0]["remoteEndpoint"], json!({"ipv6": "fd00::7"}));
        let keys: Vec<_> = told[1].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["duration", "id", "localEndpoint", "name", "tags", "timestamp", "traceId"]);
    }
}
