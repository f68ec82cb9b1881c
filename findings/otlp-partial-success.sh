#!/bin/sh
# opentelemetry-otlp 0.33.1, gRPC span exporter, on a valid answer: a partial success is told as a whole one.
#
# The collector answers the Export call with OK and `partial_success { rejected_spans: 2, error_message: "…" }`, as the OTLP specification
# ("Partial Success") has it for a request of which it keeps a part. Expected: the caller of `SpanExporter::export` can learn that two spans
# were refused, and why. Seen: `Ok(())`, the same as for a collector that kept them all; with the default features a warning goes to the
# library's internal log, without them nothing does. Who counts exported and lost spans counts the refused ones as exported.
#
# Exits non-zero when that changes. Needs cargo; builds in a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat > "$folder/Cargo.toml" <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2024"

[dependencies]
opentelemetry = { version = "=0.33.1", default-features = false, features = ["trace"] }
opentelemetry-otlp = { version = "=0.33.1", default-features = false, features = ["grpc-tonic", "trace"] }
opentelemetry-proto = { version = "=0.33.1", default-features = false, features = ["gen-tonic", "trace"] }
opentelemetry_sdk = { version = "=0.33.1", default-features = false, features = ["trace"] }
tokio = { version = "1", features = ["rt-multi-thread", "net", "macros"] }
tokio-stream = { version = "0.1", features = ["net"] }
tonic = "0.14"

[workspace]
TOML
cat > "$folder/src/main.rs" <<'RUST'
use std::sync::{Arc, Mutex};

use opentelemetry::trace::{Tracer, TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithTonicConfig};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor};
use tonic::{Request, Response, Status};

struct Picky(i64);

#[tonic::async_trait]
impl TraceService for Picky {
    async fn export(&self, _: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let refused = ExportTracePartialSuccess { rejected_spans: self.0, error_message: "quota".to_owned() };
        Ok(Response::new(ExportTraceServiceResponse { partial_success: (self.0 > 0).then_some(refused) }))
    }
}

/// Keeps finished spans, for something to export.
#[derive(Clone, Debug, Default)]
struct Keep(Arc<Mutex<Vec<SpanData>>>);

impl SpanProcessor for Keep {
    fn on_start(&self, _: &mut Span, _: &opentelemetry::Context) {}
    fn on_end(&self, span: SpanData) {
        self.0.lock().unwrap().push(span);
    }
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }
    fn shutdown_with_timeout(&self, _: std::time::Duration) -> OTelSdkResult {
        Ok(())
    }
}

#[tokio::main]
async fn main() {
    let keep = Keep::default();
    let tracer = SdkTracerProvider::builder().with_span_processor(keep.clone()).build().tracer("finding");
    (0..3).for_each(|_| drop(tracer.start("work")));
    let spans = keep.0.lock().unwrap().clone();
    for rejected in [0, 2] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(TraceServiceServer::new(Picky(rejected))).serve_with_incoming(incoming));
        let channel = tonic::transport::Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let exporter = SpanExporter::builder().with_tonic().with_channel(channel).build().unwrap();
        println!("{} spans, {rejected} refused: {:?}", spans.len(), exporter.export(spans.clone()).await);
    }
}
RUST
seen=$(cd "$folder" && cargo run --quiet 2>"$folder/err") || { cat "$folder/err"; exit 1; }
echo "$seen"
[ "$(echo "$seen" | sed -n 1p)" = "3 spans, 0 refused: Ok(())" ] || { echo "the program did not run as it was"; exit 1; }
[ "$(echo "$seen" | sed -n 2p)" = "3 spans, 2 refused: Ok(())" ] || { echo "changed: a partial success can be told now"; exit 1; }
