//! Finished spans leave by OTLP/gRPC, in batches, from the control thread. The endpoint is that of each span's own snapshot, so a
//! change of the mesh's configuration takes effect with the next span.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use engine::model::Settings;
use opentelemetry_otlp::{SpanExporter as Otlp, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::sync::mpsc;

use super::collector::channel;
use super::span::{SpanRecord, resource};
use super::telemetry::Telemetry;

/// Spans waiting for export; beyond, spans are dropped and counted.
pub(super) const SPAN_QUEUE_MAX: usize = 4096;
/// Spans of one request to the collector.
const BATCH_SPANS_MAX: usize = 512;
/// Pause between batches, unless one is full before: a request to the collector costs a hundred times what a span in it costs.
const BATCH_EVERY: Duration = Duration::from_secs(2);
/// How often the pause looks whether a batch is full.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A collector that does not answer for so long has failed.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// What is still queued at the end gets so long to leave.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// A failing collector is complained about once in this time.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// A span on its way.
#[derive(Debug)]
pub(super) enum Finished {
    Exchange(Box<SpanRecord>),
    Own(Box<SpanData>),
}

/// Drains the queue of spans; made by [`Telemetry::new`].
#[derive(Debug)]
pub struct Exporter {
    telemetry: Arc<Telemetry>,
    queue: mpsc::Receiver<Finished>,
    open: Option<Open>,
    complained: Option<Instant>,
}

/// The connection to one collector.
#[derive(Debug)]
struct Open {
    endpoint: String,
    settings: Option<Arc<Settings>>,
    otlp: Otlp,
}

impl Exporter {
    pub(super) fn new(telemetry: Arc<Telemetry>, queue: mpsc::Receiver<Finished>) -> Self {
        Self { telemetry, queue, open: None, complained: None }
    }

    /// Exports until `stop` is done, then sends what is queued, for at most two seconds. Runs inside a tokio runtime.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut batch = Vec::with_capacity(BATCH_SPANS_MAX);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                received = self.queue.recv_many(&mut batch, BATCH_SPANS_MAX) => if received == 0 { break },
            }
            let full = batch.len() == BATCH_SPANS_MAX;
            self.export(&mut batch).await;
            if !full {
                tokio::select! { biased; () = &mut stop => break, () = self.pause() => {} }
            }
        }
        self.queue.close();
        let last = async {
            while self.queue.recv_many(&mut batch, BATCH_SPANS_MAX).await > 0 {
                self.export(&mut batch).await;
            }
        };
        // Nobody is left who could act on spans that did not make it.
        let _ = tokio::time::timeout(LAST_EXPORT_TIMEOUT, last).await;
    }

    /// Until the next batch is due, or full.
    async fn pause(&self) {
        let due = tokio::time::Instant::now() + BATCH_EVERY;
        while tokio::time::Instant::now() < due && self.queue.len() < BATCH_SPANS_MAX {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Sends a batch, one request for each run of spans that share endpoint and resource.
    async fn export(&mut self, batch: &mut Vec<Finished>) {
        let mut spans: Vec<SpanData> = Vec::with_capacity(batch.len());
        for finished in batch.drain(..) {
            let (settings, span) = match finished {
                Finished::Exchange(record) => (record.seen.snapshot.settings.clone(), record.span()),
                Finished::Own(span) => (self.telemetry.settings.load_full(), Some(*span)),
            };
            if !self.is_open_for(settings.as_ref()) {
                self.send(std::mem::take(&mut spans)).await;
                self.open = self.connect(settings);
            }
            spans.extend(span);
        }
        self.send(spans).await;
    }

    /// The next queued span of traffic, without sending it.
    #[cfg(test)]
    pub(super) fn next_record(&mut self) -> Option<Box<SpanRecord>> {
        match self.queue.try_recv() {
            Ok(Finished::Exchange(record)) => Some(record),
            _ => None,
        }
    }

    /// Name of the next queued span of the proxy's own tasks.
    #[cfg(test)]
    pub(super) fn next_own(&mut self) -> Option<String> {
        match self.queue.try_recv() {
            Ok(Finished::Own(span)) => Some(span.name.into_owned()),
            _ => None,
        }
    }

    fn is_open_for(&self, settings: Option<&Arc<Settings>>) -> bool {
        let same = |open: &Open| match (&open.settings, settings) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        self.open.as_ref().is_some_and(same)
    }

    /// A client for these settings; the old one where only other settings changed. Connects with the first batch.
    fn connect(&mut self, settings: Option<Arc<Settings>>) -> Option<Open> {
        let endpoint = self.telemetry.otlp_endpoint(settings.as_deref())?.to_owned();
        if let Some(open) = self.open.take().filter(|open| open.endpoint == endpoint && open.same_resource(settings.as_deref())) {
            return Some(Open { settings, ..open });
        }
        match self.client(&endpoint) {
            Ok(mut otlp) => {
                otlp.set_resource(&resource(settings.as_deref(), &self.telemetry.options.instance));
                Some(Open { endpoint, settings, otlp })
            }
            Err(error) => {
                self.complain(&endpoint, &*error);
                None
            }
        }
    }

    fn client(&self, endpoint: &str) -> Result<Otlp, Box<dyn std::error::Error + Send + Sync>> {
        let channel = channel(endpoint, &self.telemetry.options.network, EXPORT_TIMEOUT)?;
        Ok(Otlp::builder().with_tonic().with_channel(channel).with_timeout(EXPORT_TIMEOUT).build()?)
    }

    async fn send(&mut self, spans: Vec<SpanData>) {
        let count = spans.len() as u64;
        if count == 0 {
            return;
        }
        let result = match &self.open {
            Some(open) => open.otlp.export(spans).await.map_err(|error| (open.endpoint.clone(), error)),
            // No endpoint is configured any more, or it is no address; said when it was opened.
            None => {
                self.telemetry.spans_lost.fetch_add(count, Ordering::Relaxed);
                return;
            }
        };
        match result {
            Ok(()) => {
                self.telemetry.spans_exported.fetch_add(count, Ordering::Relaxed);
            }
            Err((endpoint, error)) => {
                self.telemetry.spans_lost.fetch_add(count, Ordering::Relaxed);
                self.complain(&endpoint, &error);
            }
        }
    }

    fn complain(&mut self, endpoint: &str, error: &dyn std::error::Error) {
        let now = self.telemetry.clock.now();
        if self.complained.is_some_and(|last| now.saturating_duration_since(last) < COMPLAIN_EVERY) {
            return;
        }
        self.complained = Some(now);
        tracing::warn!(
            %endpoint,
            %error,
            "spans cannot be exported and are dropped; check that an OTLP/gRPC collector listens there (said once a minute)"
        );
    }
}

impl Open {
    fn same_resource(&self, settings: Option<&Settings>) -> bool {
        let names = |settings: Option<&Settings>| settings.map(|s| (s.namespace.clone(), s.workload.clone()));
        names(self.settings.as_deref()) == names(settings)
    }
}
