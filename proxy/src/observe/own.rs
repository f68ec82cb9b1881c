//! Spans of the proxy's own tasks: certificate and configuration work, not traffic.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, Span, SpanData, SpanProcessor};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use super::drops::DropReason;
use super::span::scope;
use super::telemetry::Telemetry;

/// Modules whose spans are exported. Not all: a span about exporting spans would never end.
const TARGETS: [&str; 4] = ["proxy::identity", "proxy::xds", "proxy::reports", "proxy::dns"];

/// A layer for the proxy's subscriber: spans of its own tasks join the queue of the traffic's spans while an endpoint is
/// known, and are dropped otherwise.
pub fn own_tasks_layer<S>(telemetry: &Arc<Telemetry>) -> impl Layer<S> + Send + Sync + use<S>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let queue = Queue { telemetry: Arc::clone(telemetry) };
    let provider = SdkTracerProvider::builder().with_span_processor(queue).build();
    let tracer = provider.tracer_with_scope(scope());
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(|metadata| TARGETS.iter().any(|target| metadata.target().starts_with(target))))
}

#[derive(Debug)]
struct Queue {
    telemetry: Arc<Telemetry>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        let settings = self.telemetry.settings.load();
        if self.telemetry.traces(settings.as_deref()) && self.telemetry.own_spans.try_send(Box::new(span)).is_err() {
            self.telemetry.spans_dropped.add(DropReason::QueueFull, 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}
