//! From the workers to those who encode: records of one fixed shape, gathered in batches. A worker appends to its open batch, the encoder
//! takes the batch away; neither waits for the other, and the encoder is woken once per batch.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use engine::failure::{Blame, Reason};
use http::Version;
use parking_lot::Mutex;

use super::ending::KeepCause;
use super::event::SpanEvent;
use super::labels::Wire;
use super::record::{Detail, Outline, Word, Words};
use super::shape::Shape;
use super::trace::Context;
use super::under_way::TraceLink;
use crate::io::Mailbox;

/// Records of one worker that wait to be encoded; beyond, they are dropped and counted. At 20,000/s what comes in 0.8 s.
pub(super) const RECORDS_MAX: usize = 16_384;
/// The same in bytes of their texts.
const TEXT_BYTES_MAX: usize = 8 << 20;
/// So many records are worth waking the encoder for; fewer wait for its next look.
pub(super) const WORTH_WAKING: usize = 256;
/// A batch that had room for more is freed instead of used again.
const RECORDS_KEPT_MAX: usize = 1024;
/// Room of a new batch.
const RECORDS_AT_FIRST: usize = 32;
const TEXT_BYTES_AT_FIRST: usize = 4096;

/// What records are encoded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sink {
    Log,
    Spans,
}

/// How many [`Sink`]s there are.
pub(super) const SINKS: usize = 2;

/// A finished exchange that is logged or sampled: numbers only, texts and what is shared by reference into its [`Batch`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// Number in [`Batch::shapes`].
    shape: u32,
    text: u32,
    words: Words,
    retries: (u32, u8),
    events: (u32, u8),
    pub(super) events_dropped: u32,
    /// Our span, or the caller's unsampled trace.
    pub(super) context: Option<Context>,
    /// Why it has a span although it was not sampled.
    pub(super) kept: Option<KeepCause>,
    /// How it came by its trace.
    pub(super) link: TraceLink,
    /// Nanoseconds since 1970.
    pub(super) started_nanos: u64,
    pub(super) duration: Duration,
    pub(super) upstream: Option<Duration>,
    pub(super) epoch: u64,
    pub(super) downstream: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) client: Option<IpAddr>,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    pub(super) attempts: u32,
    pub(super) code: u16,
    pub(super) grpc: u8,
    pub(super) wire: Wire,
    pub(super) https: bool,
    /// `None`: no HTTP.
    pub(super) version: Option<Version>,
    pub(super) reason: Option<Reason>,
    pub(super) blame: Option<Blame>,
}

/// Records and what they refer to.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Tells one filling from another.
    pub(super) serial: u64,
    pub(super) records: Vec<Record>,
    shapes: Vec<Arc<Shape>>,
    text: String,
    retries: Vec<(SocketAddr, Reason)>,
    events: Vec<SpanEvent>,
}

impl Batch {
    fn begun() -> Box<Self> {
        Box::new(Self {
            records: Vec::with_capacity(RECORDS_AT_FIRST),
            text: String::with_capacity(TEXT_BYTES_AT_FIRST),
            ..Self::default()
        })
    }

    fn is_full(&self) -> bool {
        self.records.len() >= RECORDS_MAX || self.text.len() >= TEXT_BYTES_MAX
    }

    /// Adds a shape; its number.
    pub(super) fn add_shape(&mut self, shape: Arc<Shape>) -> u32 {
        self.shapes.push(shape);
        // No more than records.
        u32::try_from(self.shapes.len() - 1).unwrap_or(0)
    }

    /// Adds what is known of an exchange at its end. `started_nanos`: since 1970.
    pub(super) fn add(&mut self, (shape, sink): (u32, Sink), seen: &Outline, detail: &Detail, (started_nanos, duration): (u64, Duration)) {
        let within = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let retries = (within(self.retries.len()), u8::try_from(detail.retries.len()).unwrap_or(u8::MAX));
        self.retries.extend_from_slice(&detail.retries);
        let events = (within(self.events.len()), u8::try_from(detail.events.len()).unwrap_or(u8::MAX));
        if sink == Sink::Spans {
            self.events.extend_from_slice(&detail.events);
        }
        let text = within(self.text.len());
        self.text.push_str(&detail.text);
        self.records.push(Record {
            shape,
            text,
            words: detail.words,
            retries,
            events,
            events_dropped: detail.events_dropped,
            context: detail.context,
            kept: detail.kept,
            link: detail.link,
            started_nanos,
            duration,
            upstream: detail.upstream,
            epoch: seen.snapshot.epoch,
            downstream: detail.downstream,
            local: detail.local,
            client: detail.client,
            request_bytes: seen.request_bytes,
            response_bytes: seen.response_bytes,
            attempts: seen.attempts,
            code: seen.code,
            grpc: seen.grpc,
            wire: seen.wire,
            https: detail.head.is_some_and(|head| head.https),
            version: detail.head.map(|head| head.version),
            reason: seen.reason,
            blame: seen.blame,
        });
    }

    /// What a record shares with others.
    pub(super) fn shape(&self, record: &Record) -> &Shape {
        &self.shapes[record.shape as usize]
    }

    /// A record's text.
    pub(super) fn word(&self, record: &Record, word: Word) -> Option<&str> {
        let start = record.text as usize;
        record.words.get(self.text.get(start..start + record.words.len())?, word)
    }

    /// Attempts of a record that were made again.
    pub(super) fn retries(&self, record: &Record) -> &[(SocketAddr, Reason)] {
        let start = record.retries.0 as usize;
        self.retries.get(start..start + usize::from(record.retries.1)).unwrap_or_default()
    }

    /// What happened to a record's exchange; known to spans only.
    pub(super) fn events(&self, record: &Record) -> &[SpanEvent] {
        let start = record.events.0 as usize;
        self.events.get(start..start + usize::from(record.events.1)).unwrap_or_default()
    }
}

/// Where one worker puts its records of one kind. Only that worker calls [`Outbox::add`].
#[derive(Debug)]
pub(super) struct Outbox {
    open: Mailbox<Batch>,
    /// An empty one, to be filled next.
    spare: Mailbox<Batch>,
    /// Records of the open one, as they were counted last.
    waiting: AtomicUsize,
    bell: Arc<Bell>,
}

impl Outbox {
    /// Adds to the open batch; `serial` is that of a batch to be begun. False: too many wait.
    pub(super) fn add(&self, serial: &std::cell::Cell<u64>, add: impl FnOnce(&mut Batch)) -> bool {
        let mut batch = self.open.take().unwrap_or_else(|| {
            serial.set(serial.get() + 1);
            let mut batch = self.spare.take().unwrap_or_else(Batch::begun);
            batch.serial = serial.get();
            batch
        });
        let full = batch.is_full();
        if !full {
            add(&mut batch);
        }
        self.waiting.store(batch.records.len(), Ordering::Relaxed);
        let worth_it = !full && batch.records.len().is_multiple_of(WORTH_WAKING);
        self.open.put(batch);
        self.bell.put(worth_it);
        !full
    }

    /// Takes the open batch.
    pub(super) fn take(&self) -> Option<Box<Batch>> {
        self.waiting.store(0, Ordering::Relaxed);
        self.open.take()
    }

    /// An encoded batch may be filled again.
    pub(super) fn give_back(&self, mut batch: Box<Batch>) {
        if batch.records.capacity() <= RECORDS_KEPT_MAX {
            batch.records.clear();
            batch.shapes.clear();
            batch.text.clear();
            batch.retries.clear();
            batch.events.clear();
            self.spare.put(batch);
        }
    }
}

/// All workers' outboxes of one kind.
#[derive(Debug, Default)]
pub(super) struct Outboxes {
    all: Mutex<Vec<Arc<Outbox>>>,
    /// Wakes who encodes.
    pub(super) bell: Arc<Bell>,
}

impl Outboxes {
    /// One more worker's.
    pub(super) fn open(&self) -> Arc<Outbox> {
        let (open, spare, waiting) = Default::default();
        let outbox = Arc::new(Outbox { open, spare, waiting, bell: Arc::clone(&self.bell) });
        self.all.lock().push(Arc::clone(&outbox));
        outbox
    }

    /// Those there are now.
    pub(super) fn all(&self) -> Vec<Arc<Outbox>> {
        self.all.lock().clone()
    }

    /// Records in open batches.
    pub(super) fn waiting(&self) -> u64 {
        self.all.lock().iter().map(|outbox| outbox.waiting.load(Ordering::Relaxed) as u64).sum()
    }

    /// Frees what is kept for the next batch.
    pub(super) fn forget_spares(&self) {
        self.all.lock().iter().for_each(|outbox| drop(outbox.spare.take()));
    }
}

/// Wakes the one who encodes, when there is reason to.
#[derive(Default)]
pub(super) struct Bell {
    /// Nobody will look until it is rung.
    resting: AtomicBool,
    ring: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Bell {
    /// How the encoder is woken; told once.
    pub(super) fn rings(&self, ring: impl Fn() + Send + Sync + 'static) {
        let _ = self.ring.set(Box::new(ring));
    }

    /// The encoder will not look again by itself. It must look once more after this, and then rest: what was put before is seen by that
    /// look, what is put later rings.
    pub(super) fn rest(&self) {
        self.resting.store(true, Ordering::SeqCst);
    }

    /// Rings.
    pub(super) fn ring(&self) {
        self.resting.store(false, Ordering::SeqCst);
        if let Some(ring) = self.ring.get() {
            ring();
        }
    }

    fn put(&self, worth_it: bool) {
        if worth_it || self.resting.load(Ordering::SeqCst) {
            self.ring();
        }
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").field("resting", &self.resting).finish_non_exhaustive()
    }
}
