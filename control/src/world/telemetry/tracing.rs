//! `tracing` of a Telemetry.

use super::super::door::{Cursor, Fields};
use super::Telemetry;

impl Telemetry {
    pub(super) fn read_tracing(&mut self, mut fields: Fields<'_>) {
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
pub(super) fn endpoint(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    let uri: Option<http::Uri> = text.parse().ok();
    let fits = uri.is_some_and(|uri| uri.scheme_str() == Some("http") && uri.port_u16().is_some() && matches!(uri.path(), "" | "/"));
    if !fits {
        at.error(format!("`{text}` is no OTLP/gRPC endpoint"), "write it as http://HOST:4317");
        return None;
    }
    Some(text.trim_end_matches('/').to_owned())
}
