//! Finished spans leave for collectors, in requests of many, from the control thread. Where they go is said by each span's own snapshot, so a
//! change of the mesh's configuration takes effect with the next span.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use engine::model::Settings;
use opentelemetry_sdk::trace::SpanData;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::batch::{Batch, Outbox};
use super::collector::Way;
use super::lane::{Carrier, Lane, Make};
use super::parcel::{Packed, Parcel};
use super::span;
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
/// Buffers kept for the next request while spans come.
const ROOMS_MAX: usize = 2;

/// Encodes the spans that workers and own tasks leave, and hands them to the lanes; made by [`start`].
#[derive(Debug)]
pub struct Exporter {
    telemetry: Arc<Telemetry>,
    own: mpsc::Receiver<Box<SpanData>>,
    rung: Arc<Notify>,
    spans: span::Spans,
    request: Request,
    /// Of requests that were sent, to be used again.
    rooms: Vec<Arc<Vec<u8>>>,
    /// Of the proxy's own tasks.
    own_waiting: Vec<SpanData>,
    /// Those that they ended under.
    own_settings: Option<Arc<Settings>>,
    /// When they are sent at the latest; `None`: there are none.
    own_due: Option<Instant>,
    lanes: [Lane; 2],
    /// Until it runs.
    carriers: Vec<Carrier>,
}

/// Spans that share endpoint and resource, encoded.
#[derive(Debug, Default)]
struct Request {
    settings: Option<Arc<Settings>>,
    /// As fields of `ScopeSpans`.
    spans: Vec<u8>,
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
        let way = Way { network: telemetry.options.network.clone(), tls: telemetry.options.tls.clone() };
        let (otlp, carries_otlp) = Lane::new(Make::Otlp, &telemetry, way.clone());
        let (zipkin, carries_zipkin) = Lane::new(Make::Zipkin, &telemetry, way);
        Self {
            telemetry,
            own,
            rung,
            spans: span::Spans::default(),
            request: Request::default(),
            rooms: Vec::new(),
            own_waiting: Vec::new(),
            own_settings: None,
            own_due: None,
            lanes: [otlp, zipkin],
            carriers: vec![carries_otlp, carries_zipkin],
        }
    }

    /// Exports until `stop` is done, then sends what is queued, for at most two seconds. Runs inside a tokio runtime.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut own_end = false;
        let mut carried = JoinSet::new();
        for carrier in std::mem::take(&mut self.carriers) {
            carried.spawn(carrier.run());
        }
        loop {
            if !self.gather() && self.due().is_none() {
                self.telemetry.spans.forget_spares();
                self.rooms.clear();
                // Once more after having said so: see `Bell::rest`.
                self.telemetry.spans.bell.rest();
                self.gather();
            }
            let due = self.due();
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = self.rung.notified() => {}
                span = self.own.recv(), if !own_end => match span {
                    Some(span) => self.add_own(*span),
                    None => own_end = true,
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.gather();
                    self.send_all();
                }
            }
        }
        self.own.close();
        while let Some(span) = self.own.recv().await {
            self.add_own(*span);
        }
        self.gather();
        self.send_all();
        // The carriers end with what they have.
        drop(self);
        // Nobody is left who could act on spans that did not make it.
        let _ = tokio::time::timeout(LAST_EXPORT_TIMEOUT, async { while carried.join_next().await.is_some() {} }).await;
    }

    /// Encodes what the workers have left; full requests are sent. Whether there was anything.
    fn gather(&mut self) -> bool {
        let mut any = false;
        for outbox in self.telemetry.spans.all() {
            let Some(batch) = outbox.take() else { continue };
            any = true;
            self.encode(&outbox, batch);
        }
        any
    }

    fn encode(&mut self, outbox: &Outbox, batch: Box<Batch>) {
        for record in &batch.records {
            let settings = &batch.shape(record).settings;
            if !self.request.is_for(settings) || self.request.spans.len() >= REQUEST_BYTES {
                self.send();
            }
            let (request, spans) = (&mut self.request, &mut self.spans);
            request.add(settings, |out| spans.push(out, &batch, record));
        }
        outbox.give_back(batch);
        if self.request.spans.len() >= REQUEST_BYTES {
            self.send();
        }
    }

    /// A span of the proxy's own tasks.
    fn add_own(&mut self, span: SpanData) {
        let settings = self.telemetry.settings.load_full();
        let same = self.own_settings.as_ref().map(Arc::as_ptr) == settings.as_ref().map(Arc::as_ptr);
        if self.own_waiting.len() >= OWN_SPANS_TOGETHER_MAX || !same {
            self.send_own();
        }
        self.own_settings = settings;
        self.own_waiting.push(span);
        self.own_due.get_or_insert_with(|| Instant::now() + REQUEST_EVERY);
    }

    fn send_own(&mut self) {
        let spans = std::mem::take(&mut self.own_waiting);
        let count = spans.len() as u64;
        if count > 0 {
            self.give(&Parcel { settings: self.own_settings.clone(), spans: Packed::Own(Arc::new(spans)), count });
        }
        self.own_due = None;
    }

    /// Hands the request at hand to the lanes.
    fn send(&mut self) {
        if self.request.count == 0 {
            return;
        }
        let next = Request { spans: self.room(), ..Request::default() };
        let Request { settings, spans, count, .. } = std::mem::replace(&mut self.request, next);
        let spans = Arc::new(spans);
        self.give(&Parcel { settings, spans: Packed::Encoded(Arc::clone(&spans)), count });
        if self.rooms.len() < ROOMS_MAX {
            self.rooms.push(spans);
        }
    }

    /// A buffer that nobody needs any more, or a new one.
    fn room(&mut self) -> Vec<u8> {
        let free = self.rooms.iter().position(|room| Arc::strong_count(room) == 1);
        let mut room = free.and_then(|free| Arc::into_inner(self.rooms.swap_remove(free))).unwrap_or_default();
        room.clear();
        room.shrink_to(2 * REQUEST_BYTES);
        room
    }

    fn give(&self, parcel: &Parcel) {
        self.lanes.iter().for_each(|lane| lane.give(parcel, &self.telemetry));
    }

    /// Sends all there is.
    fn send_all(&mut self) {
        self.send();
        self.send_own();
    }

    /// When something is sent at the latest.
    fn due(&self) -> Option<Instant> {
        [self.request.due, self.own_due].into_iter().flatten().min()
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
        if write(&mut self.spans) {
            self.count += 1;
            self.due.get_or_insert_with(|| Instant::now() + REQUEST_EVERY);
        }
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
