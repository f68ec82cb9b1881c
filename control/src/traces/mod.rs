//! Spans of the control plane's own work: each change of what holds (`change`), how it came to the proxies (`push`, linked to its change), and
//! each certificate. They go where the mesh's own Telemetry says, and nobody waits for them: what does not fit is dropped and counted.

mod door;
mod export;
mod follow;
mod told;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Context, InstrumentationScope};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span, SpanData, SpanProcessor};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use proto::mesh::Tracing;
use tokio::sync::{mpsc, watch};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::registry::LookupSpan;

pub use export::SpanExport;

/// Spans that wait; beyond, they are dropped and counted.
const SPANS_MAX: usize = 1024;
/// Spans of `tracing` with this target are exported, and no others: one about exporting spans would never end.
pub const TARGET: &str = "meshwright::traces";

/// Where spans are made. Clones share it; the default makes none.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Making>>);

/// Of one process.
struct Making {
    tracer: SdkTracer,
    /// `None`: nobody has read the objects yet, and spans are kept.
    to: watch::Sender<Option<Tracing>>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    exported: AtomicU64,
    dropped: AtomicU64,
}

/// Begins to make spans, in the name of this instance; they leave while the other half runs.
pub fn start(instance: String) -> (Traces, SpanExport) {
    let (sender, spans) = mpsc::channel(SPANS_MAX);
    let (to, follows) = watch::channel(None);
    let counts = Arc::new(Counts::default());
    let provider = SdkTracerProvider::builder().with_span_processor(Queue { spans: sender, counts: counts.clone() }).build();
    let scope = InstrumentationScope::builder("meshwright").with_version(env!("CARGO_PKG_VERSION")).build();
    let making = Making { tracer: provider.tracer_with_scope(scope), to, counts: counts.clone() };
    (Traces(Some(Arc::new(making))), SpanExport::new(instance, spans, follows, counts))
}

impl Traces {
    /// A layer for the process's subscriber, by which other crates' spans of [`TARGET`] join.
    pub fn layer<S>(&self) -> Option<impl Layer<S> + Send + Sync + use<S>>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let tracer = self.0.as_ref()?.tracer.clone();
        let layer = tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false);
        let ours = filter_fn(|metadata| metadata.target() == TARGET).with_max_level_hint(LevelFilter::INFO);
        Some(layer.with_tracked_inactivity(false).with_filter(ours))
    }

    /// What became of spans.
    pub fn counts(&self) -> Box<dyn Collector> {
        Box::new(Told(self.0.as_ref().map(|making| making.counts.clone()).unwrap_or_default()))
    }
}

/// Hands finished spans over.
#[derive(Debug)]
struct Queue {
    spans: mpsc::Sender<SpanData>,
    counts: Arc<Counts>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

#[derive(Debug)]
struct Told(Arc<Counts>);

impl Collector for Told {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, count) in [
            ("spans_exported", "Spans of the control plane that a collector took", &self.0.exported),
            ("spans_dropped", "Spans of the control plane lost to a full queue or a failing collector", &self.0.dropped),
        ] {
            let metric = ConstCounter::new(count.load(Ordering::Relaxed));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
