//! `tracing` of a Telemetry.

use super::super::door::{Cursor, Fields};
use super::Telemetry;

/// Where spans go by OTLP. Both facts are of one object: one without the other says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Otlp {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub endpoint: String,
    /// How they travel.
    pub protocol: OtlpProtocol,
}

/// How spans travel by OTLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// As calls of gRPC.
    #[default]
    Grpc,
    /// As protobuf in requests of HTTP, to `/v1/traces`.
    Http,
}

impl Telemetry {
    pub(super) fn read_tracing(&mut self, mut fields: Fields<'_>) {
        if let Some(at) = fields.get("otlp") {
            let mut otlp = at.fields();
            let protocol = otlp.get("protocol").and_then(|at| at.word(&[("Grpc", OtlpProtocol::Grpc), ("Http", OtlpProtocol::Http)]));
            let protocol = protocol.unwrap_or_default();
            let endpoint = otlp.need("endpoint").and_then(|at| otlp_endpoint(&at, protocol));
            self.otlp = endpoint.map(|endpoint| Otlp { endpoint, protocol });
            otlp.done();
        }
        if let Some(at) = fields.get("zipkin") {
            let mut zipkin = at.fields();
            self.zipkin_endpoint = zipkin.need("endpoint").and_then(|at| zipkin_endpoint(&at));
            zipkin.done();
        }
        self.sample_percent = fields.get("samplePercent").and_then(|at| at.percent());
        self.attributes = fields.get("attributes").map(|at| at.text_map());
        self.keep_errors = fields.get("keepErrors").and_then(|at| at.flag());
        self.keep_slower = fields.get("keepSlowerThan").and_then(|at| at.duration());
        self.infer_links = fields.get("inferLinks").and_then(|at| at.flag());
        fields.done();
    }
}

/// `http://HOST:PORT` or `https://HOST:PORT`; behind it a path where requests of HTTP go, below which `/v1/traces` is.
pub(super) fn otlp_endpoint(at: &Cursor<'_>, protocol: OtlpProtocol) -> Option<String> {
    let text = at.text()?;
    let bare = |uri: &http::Uri| uri.query().is_none() && (protocol == OtlpProtocol::Http || matches!(uri.path(), "" | "/"));
    if !collector(&text).as_ref().is_some_and(bare) {
        at.error(format!("`{text}` is no OTLP endpoint"), "write it as http://HOST:4317, with protocol Http as http://HOST:4318");
        return None;
    }
    if text.trim_end_matches('/').ends_with("/v1/traces") {
        at.error(format!("`{text}` is where spans alone go"), "leave out /v1/traces, which is added");
        return None;
    }
    Some(text.trim_end_matches('/').to_owned())
}

/// The same with the path that Zipkin takes spans at.
fn zipkin_endpoint(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    if collector(&text).is_none_or(|uri| matches!(uri.path(), "" | "/")) {
        at.error(format!("`{text}` is no endpoint of Zipkin"), "write it as http://HOST:9411/api/v2/spans");
        return None;
    }
    Some(text)
}

/// A URL of HTTP with a host and a port, and no credentials: they would be in everybody's configuration.
pub(super) fn collector(text: &str) -> Option<http::Uri> {
    let uri: http::Uri = text.parse().ok()?;
    let authority = uri.authority()?;
    let fits = matches!(uri.scheme_str(), Some("http" | "https")) && authority.port_u16().is_some() && !authority.as_str().contains('@');
    fits.then_some(uri)
}
