//! Finished spans leave by OTLP/gRPC, in requests of many, from the control thread. The endpoint is that of each span's own snapshot, so a
//! change of the mesh's configuration takes effect with the next span.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engine::model::Settings;
use opentelemetry_sdk::trace::SpanData;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::batch::{Batch, Outbox};
use super::collector::{Collector, Undelivered};
use super::span::{Spans, envelope, resource_of};
use super::telemetry::{Telemetry, TelemetryOptions};
use crate::io::Clock;

/// A request to the collector is sent when its spans take so much: some two hundred. A collector takes 4 MiB by default, and what is written
/// at once should stay in the processor's cache.
const REQUEST_BYTES: usize = 256 << 10;
/// Longest wait of a span for others: a request to the collector costs a hundred times what a span in it costs.
const REQUEST_EVERY: Duration = Duration::from_secs(2);
/// Own spans that leave together.
const OWN_SPANS_TOGETHER_MAX: usize = 64;
/// What is still queued at the end gets so long to leave.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// A failing collector is complained about once in this time.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Encodes and sends the spans that workers and own tasks leave; made by [`start`].
#[derive(Debug)]
pub struct Exporter {
    telemetry: Arc<Telemetry>,
    own: mpsc::Receiver<Box<SpanData>>,
    rung: Arc<Notify>,
    spans: Spans,
    request: Request,
    /// Of the proxy's own tasks.
    own_waiting: Vec<SpanData>,
    /// Those that they ended under.
    own_settings: Option<Arc<Settings>>,
    /// When they are sent at the latest; `None`: there are none.
    own_due: Option<Instant>,
    collector: Option<Collector>,
    complained: Option<std::time::Instant>,
}

/// Spans that share endpoint and resource, encoded.
#[derive(Debug, Default)]
struct Request {
    settings: Option<Arc<Settings>>,
    /// As fields of `ScopeSpans`; whoever sends them shares it for as long as that takes.
    spans: Arc<Vec<u8>>,
    count: u64,
    /// When it is sent at the latest; `None`: it is empty.
    due: Option<Instant>,
}

/// Starts telemetry with empty counters. The exporter must be run for spans to leave; where it is not, they are dropped and counted.
pub fn start(options: TelemetryOptions, clock: Clock) -> (Arc<Telemetry>, Exporter) {
    let (telemetry, own) = Telemetry::new(options, clock);
    let exporter = Exporter::new(Arc::clone(&telemetry), own);
    (telemetry, exporter)
}

impl Exporter {
    fn new(telemetry: Arc<Telemetry>, own: mpsc::Receiver<Box<SpanData>>) -> Self {
        let rung = Arc::new(Notify::new());
        let ring = Arc::clone(&rung);
        telemetry.spans.bell.rings(move || ring.notify_one());
        Self {
            telemetry,
            own,
            rung,
            spans: Spans::default(),
            request: Request::default(),
            own_waiting: Vec::new(),
            own_settings: None,
            own_due: None,
            collector: None,
            complained: None,
        }
    }

    /// Exports until `stop` is done, then sends what is queued, for at most two seconds. Runs inside a tokio runtime.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut own_end = false;
        loop {
            if !self.gather().await && self.due().is_none() {
                self.telemetry.spans.forget_spares();
                // Once more after having said so: see `Bell::rest`.
                self.telemetry.spans.bell.rest();
                self.gather().await;
            }
            let due = self.due();
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = self.rung.notified() => {}
                span = self.own.recv(), if !own_end => match span {
                    Some(span) => self.add_own(*span).await,
                    None => own_end = true,
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.gather().await;
                    self.send_all().await;
                }
            }
        }
        let last = async {
            self.own.close();
            while let Some(span) = self.own.recv().await {
                self.add_own(*span).await;
            }
            self.gather().await;
            self.send_all().await;
        };
        // Nobody is left who could act on spans that did not make it.
        let _ = tokio::time::timeout(LAST_EXPORT_TIMEOUT, last).await;
    }

    /// Encodes what the workers have left; full requests are sent. Whether there was anything.
    async fn gather(&mut self) -> bool {
        let mut any = false;
        for outbox in self.telemetry.spans.all() {
            let Some(batch) = outbox.take() else { continue };
            any = true;
            self.encode(&outbox, batch).await;
        }
        any
    }

    async fn encode(&mut self, outbox: &Outbox, batch: Box<Batch>) {
        for record in &batch.records {
            let settings = &batch.shape(record).settings;
            if !self.request.is_for(settings) || self.request.spans.len() >= REQUEST_BYTES {
                self.send().await;
            }
            let (request, spans) = (&mut self.request, &mut self.spans);
            request.add(settings, |out| spans.push(out, &batch, record));
        }
        outbox.give_back(batch);
        if self.request.spans.len() >= REQUEST_BYTES {
            self.send().await;
        }
    }

    /// A span of the proxy's own tasks: rare, so the library sends it.
    async fn add_own(&mut self, span: SpanData) {
        let settings = self.telemetry.settings.load_full();
        let same = self.own_settings.as_ref().map(Arc::as_ptr) == settings.as_ref().map(Arc::as_ptr);
        if self.own_waiting.len() >= OWN_SPANS_TOGETHER_MAX || !same {
            self.send_own().await;
        }
        self.own_settings = settings;
        self.own_waiting.push(span);
        self.own_due.get_or_insert_with(|| Instant::now() + REQUEST_EVERY);
    }

    async fn send_own(&mut self) {
        let spans = std::mem::take(&mut self.own_waiting);
        let count = spans.len() as u64;
        if count > 0 {
            let sent = self.sent_own(spans).await;
            self.told(count, sent);
        }
        self.own_due = None;
    }

    async fn sent_own(&mut self, spans: Vec<SpanData>) -> Result<u64, Undelivered> {
        let count = spans.len() as u64;
        let settings = self.own_settings.clone();
        let resource = resource_of(settings.as_deref(), &self.telemetry.options.instance);
        match self.collector(settings.as_deref())? {
            Some(collector) => collector.export_own(&resource, spans).await.map(|()| 0),
            None => Ok(count),
        }
    }

    /// Sends the request at hand.
    async fn send(&mut self) {
        let count = self.request.count;
        if count > 0 {
            let sent = self.sent().await;
            self.told(count, sent);
        }
        self.request.clear();
    }

    /// Sends all there is: traffic's first, which is more and has more to lose.
    async fn send_all(&mut self) {
        self.send().await;
        self.send_own().await;
    }

    /// When something is sent at the latest.
    fn due(&self) -> Option<Instant> {
        [self.request.due, self.own_due].into_iter().flatten().min()
    }

    /// Counts what became of `count` spans: how many of them were refused, or why all are lost.
    fn told(&mut self, count: u64, sent: Result<u64, Undelivered>) {
        let lost = match sent {
            Ok(rejected) => rejected.min(count),
            Err(refused) => {
                self.complain(&refused);
                count
            }
        };
        self.telemetry.spans_exported.fetch_add(count - lost, Ordering::Relaxed);
        self.telemetry.spans_lost.fetch_add(lost, Ordering::Relaxed);
    }

    /// Where spans of these settings go. `None`: nowhere any more, and nobody is missing them.
    fn collector(&mut self, settings: Option<&Settings>) -> Result<Option<&mut Collector>, Undelivered> {
        let Some(endpoint) = self.telemetry.otlp_endpoint(settings) else { return Ok(None) };
        if self.collector.as_ref().is_none_or(|collector| collector.endpoint() != endpoint) {
            self.collector = Some(Collector::new(endpoint, &self.telemetry.options.network)?);
        }
        Ok(self.collector.as_mut())
    }

    /// Sends the request at hand to where its settings say; how many spans were refused.
    async fn sent(&mut self) -> Result<u64, Undelivered> {
        let Request { settings, spans, count, .. } = &self.request;
        let (settings, spans, count) = (settings.clone(), Arc::clone(spans), *count);
        let envelope = envelope(settings.as_deref(), &self.telemetry.options.instance, spans.len());
        match self.collector(settings.as_deref())? {
            Some(collector) => collector.export(envelope, spans).await,
            None => Ok(count),
        }
    }

    fn complain(&mut self, refused: &Undelivered) {
        let now = self.telemetry.clock.now();
        if self.complained.is_some_and(|last| now.saturating_duration_since(last) < COMPLAIN_EVERY) {
            return;
        }
        self.complained = Some(now);
        tracing::warn!(
            endpoint = %refused.endpoint,
            error = %refused.why,
            "spans cannot be exported and are dropped; check that an OTLP/gRPC collector listens there (said once a minute)"
        );
    }
}

impl Request {
    /// Whether spans of these settings may go with it.
    fn is_for(&self, settings: &Option<Arc<Settings>>) -> bool {
        self.count == 0 || self.settings.as_ref().map(Arc::as_ptr) == settings.as_ref().map(Arc::as_ptr)
    }

    fn add(&mut self, settings: &Option<Arc<Settings>>, write: impl FnOnce(&mut Vec<u8>) -> bool) {
        if self.count == 0 {
            self.settings.clone_from(settings);
        }
        // Nobody shares it but while it is sent.
        if write(Arc::make_mut(&mut self.spans)) {
            self.count += 1;
            self.due.get_or_insert_with(|| Instant::now() + REQUEST_EVERY);
        }
    }

    /// Empty again, with its room where that is the usual.
    fn clear(&mut self) {
        let mut spans = std::mem::take(&mut self.spans);
        if let Some(room) = Arc::get_mut(&mut spans) {
            room.clear();
            room.shrink_to(2 * REQUEST_BYTES);
            self.spans = spans;
        }
        (self.count, self.due, self.settings) = (0, None, None);
    }
}

#[cfg(test)]
impl Exporter {
    /// The next spans that workers have left, decoded, without sending them.
    pub(super) fn left(&mut self) -> Vec<opentelemetry_proto::tonic::trace::v1::Span> {
        let mut out = Vec::new();
        for batch in self.telemetry.spans.all().iter().filter_map(|outbox| outbox.take()) {
            for record in &batch.records {
                self.spans.push(&mut out, &batch, record);
            }
        }
        <opentelemetry_proto::tonic::trace::v1::ScopeSpans as prost::Message>::decode(&out[..]).unwrap().spans
    }

    /// Name of the next queued span of the proxy's own tasks.
    pub(super) fn next_own(&mut self) -> Option<String> {
        self.own.try_recv().ok().map(|span| span.name.into_owned())
    }
}
