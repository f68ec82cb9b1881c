//! What one worker counts and notes, and what it knows again.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use engine::authorize::Ruling;
use engine::consumers::Consumer;
use engine::failure::Reason;
use engine::model::{Ejected, Endpoint, Keep, MetricLabel};
use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use proto::defaults::METRIC_SERIES_MAX;
use proto::identity::Identity;

use super::batch::{Outbox, Sink};
use super::calls::{CALL_UNCOUNTED, CallShard, CallTable, Calling};
use super::downstream::Downstream;
use super::labels::{CODE_NONE, Direction, Extra, GRPC_NONE, Labels, MetricFamily, Ruled, Wire, went_well};
use super::load::WorkerLoad;
use super::record::{Detail, Outline, Word, text};
use super::series::{Exemplar, Series, Shard};
use super::shapes::Shapes;
use super::tap::{FittingTaps, KnownTaps};
use super::telemetry::Telemetry;
use super::trace::{self, Context, Forms, Remote};
use super::under_way::{Guess, TraceLink, UnderWay};
use crate::ground::fold::Folding;
use crate::io::Draw;
use crate::tls::Peer;

/// Interned handles of one worker; beyond, they are interned anew.
const HANDLES_MAX: usize = 4096;
/// Callers told apart by one worker; further ones are `unknown`.
const SOURCES_MAX: usize = 4096;
/// Spans that one worker keeps in a second although they were not sampled; further ones are dropped and counted.
const KEPT_EACH_SECOND_MAX: u32 = 256;
/// Of so many records that do not fit, one asks for a place of its own once more.
const OVERFLOW_LOOK: u64 = 1024;
/// Notes kept for the next exchanges that are logged or sampled.
const NOTES_KEPT_MAX: usize = 64;
/// A share of 2^32 that is all.
const ALL: u64 = 1 << 32;
/// Number of the source `unknown`.
pub(super) const SOURCE_UNKNOWN: u32 = 0;

pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// See the module. Not `Send`: nothing here is locked between threads.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) telemetry: Arc<Telemetry>,
    shard: Arc<Shard>,
    pub(super) load: Arc<WorkerLoad>,
    handles: RefCell<HashMap<SeriesKey, Handle, Folding>>,
    /// The same of exchanges whose metrics have labels that others have not.
    wide_handles: RefCell<HashMap<WideKey, WideHandle, Folding>>,
    /// By rule, what it came to, caller, service and encryption; each holds its rule, so that an address cannot come to mean another.
    rulings: RefCell<HashMap<RulingKey, (Handle, Arc<Ruling>), Folding>>,
    sources: RefCell<Sources>,
    shapes: RefCell<Shapes>,
    calls: RefCell<CallTable>,
    // Each goes with its exchange from hand to hand and comes back: the boxes themselves are what is kept.
    #[allow(clippy::vec_box)]
    notes: RefCell<Vec<Box<Detail>>>,
    pub(super) under_way: RefCell<UnderWay>,
    log: Output,
    spans: Output,
    /// Of the last second in which spans were kept that were not sampled: which, and how many.
    kept: Cell<(u64, u32)>,
    taps: RefCell<KnownTaps>,
    draw: Draw,
}

/// How a request's trace is made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TraceTerms {
    /// Spans go somewhere.
    pub(super) tracing: bool,
    /// Chance of a new trace to be sampled, of 2^32.
    pub(super) threshold: u64,
    /// A span may be kept that is not sampled: it needs an id.
    pub(super) keeps: bool,
    /// It may be taken for a part of what the application is answering now.
    pub(super) infers: Option<Instant>,
}

/// What the headers of a request say of its trace by now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum HeadersSay {
    /// What they came with.
    #[default]
    Theirs,
    /// Our span.
    Ours,
    /// The same, and a draw of ours has decided on it: this one. As bytes, which need no padding in an account.
    Drawn([u8; 4]),
}

/// A trace that was continued or started.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traced {
    /// `None`: no trace.
    pub(super) context: Option<Context>,
    pub(super) headers: HeadersSay,
    pub(super) link: TraceLink,
}

/// Where records of one kind go; opened with the first.
#[derive(Debug, Default)]
struct Output {
    outbox: OnceCell<Arc<Outbox>>,
    /// Of the last batch begun.
    serial: Cell<u64>,
}

#[derive(Debug)]
struct Sources {
    numbers: HashMap<(Arc<Identity>, Arc<str>), u32>,
    all: Vec<Source>,
}

#[derive(Debug)]
struct Source {
    namespace: Arc<str>,
    workload: Arc<str>,
    caller: Option<Arc<Peer>>,
}

/// What tells one series from another, as numbers. Addresses of label texts stand for the texts: [`Handle::held`] keeps them alive,
/// so that an address cannot come to mean something else.
type SeriesKey = [u64; 5];
/// With where the endpoint runs and who calls from outside, by their addresses, which [`WideHandle`] keeps theirs.
type WideKey = (SeriesKey, [u64; 2]);
type WideHandle = (Handle, Option<Arc<Endpoint>>, Option<Arc<Consumer>>);
type RulingKey = (usize, Ruled, u32, u64, bool, u16);

#[derive(Debug)]
struct Handle {
    series: Arc<Series>,
    overflow: bool,
    #[allow(dead_code, reason = "held so that the addresses in the key stay theirs")]
    held: Option<(Arc<str>, Arc<str>)>,
}

impl Recorder {
    /// Counts that an endpoint was thrown out, and says so.
    #[cold]
    pub(super) fn ejected(&self, endpoint: &Endpoint, ejected: Ejected) {
        let Ejected { cause, endpoints, lasts } = ejected;
        self.telemetry.readings.ejections.fetch_add(u64::from(endpoints), Ordering::Relaxed);
        let (address, workload) = (endpoint.address, &endpoint.workload);
        tracing::info!(%address, %workload, cause = cause.text(), endpoints, ?lasts, "endpoints are out of balancing for a while");
    }

    pub(super) fn new(telemetry: Arc<Telemetry>, draw: Draw) -> Self {
        let shard = telemetry.registry.lock().add_shard();
        let calls: Arc<CallShard> = Arc::default();
        telemetry.calls.lock().push(Arc::clone(&calls));
        let unknown: Arc<str> = Arc::from("unknown");
        let unknown = Source { namespace: Arc::clone(&unknown), workload: unknown, caller: None };
        let sources = RefCell::new(Sources { numbers: HashMap::new(), all: vec![unknown] });
        Self {
            load: telemetry.load.add_worker(),
            telemetry,
            shard,
            handles: RefCell::default(),
            wide_handles: RefCell::default(),
            rulings: RefCell::default(),
            sources,
            shapes: RefCell::default(),
            calls: RefCell::new(CallTable::new(calls)),
            notes: RefCell::default(),
            under_way: RefCell::default(),
            log: Output::default(),
            spans: Output::default(),
            kept: Cell::default(),
            taps: RefCell::default(),
            draw,
        }
    }

    /// Continues or starts a trace. The caller's decision holds; without one a draw decides.
    pub(super) fn trace(&self, parts: &mut Parts, forms: Forms, terms: TraceTerms) -> Traced {
        let mut found = trace::read(&parts.headers, forms);
        if !terms.tracing {
            let of_caller = |Remote { trace_id, span_id }| Context { trace_id, span_id: 0, parent: Some(span_id), sampled: false };
            return Traced { context: found.remote.map(of_caller), ..Traced::default() };
        }
        let mut link = TraceLink::None;
        if let Some(now) = terms.infers
            && !(forms.traceparent || forms.b3_single || forms.b3_multi)
        {
            (found.remote, found.sampled, link) = self.guessed(now);
        }
        let parent = found.remote.map(|remote| remote.span_id);
        let (sampled, headers) = match found.sampled {
            Some(sampled) => (sampled, HeadersSay::Ours),
            None => {
                let drawn = (self.draw.next() >> 32) as u32;
                (u64::from(drawn) < terms.threshold, HeadersSay::Drawn(drawn.to_ne_bytes()))
            }
        };
        let trace_id = found.remote.map(|remote| remote.trace_id);
        // A decision travels on as it is, but not without ids: stock B3 propagators drop a bare `b3: 0` and start a sampled trace. Where nobody
        // has decided, ours must travel, lest the next hop draws again.
        let as_it_came = !sampled && headers == HeadersSay::Ours && link == TraceLink::None && !terms.keeps;
        if let Some(trace_id) = trace_id.filter(|_| as_it_came) {
            return Traced { context: Some(Context { trace_id, span_id: 0, parent, sampled }), headers: HeadersSay::Theirs, link };
        }
        let trace_id = trace_id.unwrap_or_else(|| self.wide_draw().max(1));
        let context = Context { trace_id, span_id: self.span_id(), parent, sampled };
        trace::write(&mut parts.headers, &found, &context);
        Traced { context: Some(context), headers, link }
    }

    /// Of what an application's request is a part that says nothing of a trace.
    fn guessed(&self, now: Instant) -> (Option<Remote>, Option<bool>, TraceLink) {
        match self.under_way.borrow().guess(now) {
            Guess::Nothing => (None, None, TraceLink::None),
            Guess::Only(Context { trace_id, span_id, sampled, .. }) => {
                (Some(Remote { trace_id, span_id }), Some(sampled), TraceLink::Inferred)
            }
            Guess::Several(count) => (None, None, TraceLink::Candidates(count)),
        }
    }

    /// A new span's.
    pub(super) fn span_id(&self) -> u64 {
        self.draw.next().max(1)
    }

    fn wide_draw(&self) -> u128 {
        u128::from(self.draw.next()) << 64 | u128::from(self.draw.next())
    }

    /// Whether taps may show an exchange that begins now; `parts`: of a request.
    pub(super) fn watched(&self, now: Instant, direction: Direction, parts: Option<&Parts>) -> Option<FittingTaps> {
        let taps = &self.telemetry.taps;
        if taps.turn() == 0 {
            return None;
        }
        self.taps.borrow_mut().judge(taps, self.telemetry.nanos_at(now), direction, parts)
    }

    /// Fresh notes, in the room of used ones where there are any.
    pub(super) fn notes(&self, logged: bool, traced: Traced, keep: Keep, (direction, downstream): (Direction, &Downstream)) -> Box<Detail> {
        let kept = self.notes.borrow_mut().pop();
        let mut notes = kept.unwrap_or_else(|| Box::new(Detail::new(downstream.address, downstream.local)));
        (notes.downstream, notes.local) = (downstream.address, downstream.local);
        (notes.logged, notes.context, notes.link, notes.keep) = (logged, traced.context, traced.link, keep);
        notes.caller.clone_from(&downstream.caller);
        notes.tls = if direction == Direction::Inbound { downstream.tls } else { None };
        if let Some(told) = &downstream.client_tls {
            notes.word(Word::ClientTls, told);
        }
        notes
    }

    /// Notes the request's id, made and put into the request where there is none.
    pub(super) fn request_id(&self, parts: &mut Parts, detail: &mut Detail) {
        if let Some(id) = text(&parts.headers, &X_REQUEST_ID) {
            return detail.word(Word::RequestId, id);
        }
        // A random UUID (RFC 9562, section 5.4).
        let bits = self.wide_draw() & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
        let hex = trace::hex_of_u128(bits);
        let mut id = [b'-'; 36];
        for (from, to) in [(0..8, 0), (8..12, 9), (12..16, 14), (16..20, 19), (20..32, 24)] {
            id[to..to + from.len()].copy_from_slice(&hex[from]);
        }
        detail.word(Word::RequestId, std::str::from_utf8(&id).unwrap_or_default());
        if let Ok(value) = HeaderValue::from_bytes(&id) {
            parts.headers.insert(X_REQUEST_ID, value);
        }
    }

    /// The number of a caller for labels, and the one [`Peer`] that stands for it.
    pub(super) fn source(&self, peer: &Arc<Peer>) -> (u32, Arc<Peer>) {
        let mut sources = self.sources.borrow_mut();
        let key = (Arc::clone(&peer.identity), Arc::clone(&peer.workload));
        if let Some(number) = sources.numbers.get(&key) {
            let known = sources.all[*number as usize].caller.as_ref();
            return (*number, Arc::clone(known.unwrap_or(peer)));
        }
        if sources.all.len() >= SOURCES_MAX {
            return (SOURCE_UNKNOWN, Arc::clone(peer));
        }
        let number = u32::try_from(sources.all.len()).unwrap_or(SOURCE_UNKNOWN);
        let namespace = Arc::from(peer.identity.namespace());
        sources.all.push(Source { namespace, workload: Arc::clone(&peer.workload), caller: Some(Arc::clone(peer)) });
        sources.numbers.insert(key, number);
        (number, Arc::clone(peer))
    }

    /// The row of a request to the application.
    pub(super) fn request(&self, downstream: &Downstream, parts: &Parts) -> u32 {
        let Some(caller) = told_apart(downstream) else { return CALL_UNCOUNTED };
        self.calls.borrow_mut().request(caller, downstream.local.port(), &parts.method, parts.uri.path())
    }

    /// The row of an opaque connection to the application.
    pub(super) fn connection(&self, downstream: &Downstream) -> u32 {
        let Some(caller) = told_apart(downstream) else { return CALL_UNCOUNTED };
        self.calls.borrow_mut().connection(caller, downstream.local.port())
    }

    /// Counts a call of a row.
    pub(super) fn called(&self, call: u32) {
        self.calls.borrow().count(call);
    }

    /// Counts into the series of what was seen. `family`, `code` and `reason` may differ from it, for retries and opened connections.
    pub(super) fn count<R>(
        &self,
        seen: &Outline,
        family: MetricFamily,
        reason: Option<Reason>,
        count: impl FnOnce(&Arc<Series>) -> R,
    ) -> R {
        let key = key(seen, family, reason);
        if seen.labels.adds() {
            return self.count_wide(key, seen, family, reason, count);
        }
        let mut handles = self.handles.borrow_mut();
        if handles.len() >= HANDLES_MAX && !handles.contains_key(&key) {
            handles.clear();
        }
        let handle = handles.entry(key).or_insert_with(|| self.handle(seen, family, reason));
        if handle.is_stale(&self.shard) {
            *handle = self.handle(seen, family, reason);
        }
        count(&handle.series)
    }

    fn count_wide<R>(
        &self,
        key: SeriesKey,
        seen: &Outline,
        family: MetricFamily,
        reason: Option<Reason>,
        count: impl FnOnce(&Arc<Series>) -> R,
    ) -> R {
        let endpoint = seen.endpoint.as_ref().filter(|_| seen.labels.has(MetricLabel::DestinationZone));
        let consumer = seen.consumer.as_ref();
        let zone = endpoint.map_or(0, |endpoint| address_of(&endpoint.locality.zone));
        let key = (key, [zone, consumer.map_or(0, |consumer| Arc::as_ptr(consumer).addr() as u64)]);
        let mut handles = self.wide_handles.borrow_mut();
        if handles.len() >= HANDLES_MAX && !handles.contains_key(&key) {
            handles.clear();
        }
        let fresh = || (self.handle(seen, family, reason), endpoint.cloned(), consumer.cloned());
        let (handle, ..) = handles.entry(key).or_insert_with(fresh);
        if handle.is_stale(&self.shard) {
            *handle = self.handle(seen, family, reason);
        }
        count(&handle.series)
    }

    #[cold]
    fn handle(&self, seen: &Outline, family: MetricFamily, reason: Option<Reason>) -> Handle {
        self.interned(seen, self.labels(seen, family, reason))
    }

    fn interned(&self, seen: &Outline, labels: Labels) -> Handle {
        let max = seen.settings().map_or(usize::from(METRIC_SERIES_MAX), |settings| settings.metric_series_max);
        let labels = labels.without(seen.labels);
        let clock = &self.telemetry.clock;
        let (series, overflow) = self.telemetry.registry.lock().series(labels, &self.shard, max, (clock.now(), clock.wall()));
        let held = seen.destination().map(|(namespace, service)| (Arc::clone(namespace), Arc::clone(service)));
        Handle { series, overflow, held }
    }

    /// Counts what a rule said of an exchange.
    pub(super) fn ruled(&self, seen: &Outline, ruled: Ruled, ruling: &Arc<Ruling>) {
        let destination = seen.destination().map_or(0, |(_, service)| address_of(service));
        let key = (Arc::as_ptr(ruling).addr(), ruled, seen.source, destination, seen.mtls, seen.labels.bits());
        let mut rulings = self.rulings.borrow_mut();
        if rulings.len() >= HANDLES_MAX && !rulings.contains_key(&key) {
            rulings.clear();
        }
        let (handle, _) = rulings.entry(key).or_insert_with(|| (self.ruling_handle(seen, ruled, ruling), Arc::clone(ruling)));
        if handle.is_stale(&self.shard) {
            *handle = self.ruling_handle(seen, ruled, ruling);
        }
        handle.series.count.add(1);
    }

    #[cold]
    fn ruling_handle(&self, seen: &Outline, ruled: Ruled, ruling: &Arc<Ruling>) -> Handle {
        let labels = Labels {
            route: Arc::from(""),
            wire: Wire::Tcp,
            code: CODE_NONE,
            grpc_code: GRPC_NONE,
            ruled: Some((ruled, Arc::clone(&ruling.label))),
            extra: Extra::default(),
            ..self.labels(seen, MetricFamily::Ruling, None)
        };
        self.interned(seen, labels)
    }

    fn labels(&self, seen: &Outline, family: MetricFamily, reason: Option<Reason>) -> Labels {
        let own = |of: fn(&engine::model::Settings) -> &str| Arc::<str>::from(seen.settings().map_or("", of));
        let (own_namespace, own_workload) = (own(|own| &own.namespace), own(|own| &own.workload));
        let destination = seen.destination();
        let service = destination.map_or_else(|| Arc::from(""), |(_, service)| Arc::clone(service));
        let (source, to_namespace, to_workload) = match seen.direction {
            Direction::Inbound => {
                let sources = self.sources.borrow();
                let Source { namespace, workload, .. } = &sources.all[seen.source as usize];
                ((Arc::clone(namespace), Arc::clone(workload)), own_namespace, own_workload)
            }
            Direction::Outbound => (
                (own_namespace, own_workload),
                destination.map_or_else(|| Arc::from(""), |(namespace, _)| Arc::clone(namespace)),
                seen.endpoint.as_ref().map_or_else(|| Arc::from(""), |endpoint| Arc::clone(&endpoint.workload)),
            ),
        };
        Labels {
            family,
            direction: seen.direction,
            source_namespace: source.0,
            source_workload: source.1,
            destination_namespace: to_namespace,
            destination_service: service,
            destination_workload: to_workload,
            route: seen.rule.as_ref().map_or_else(|| Arc::from(""), |rule| Arc::clone(&rule.source.label)),
            wire: seen.wire,
            code: seen.code,
            grpc_code: seen.grpc,
            reason,
            mtls: seen.mtls,
            ruled: None,
            extra: extra(seen),
        }
    }

    /// Leaves the record of a finished exchange to those who write log and spans.
    pub(super) fn record(&self, seen: &Outline, detail: Box<Detail>, duration: Duration, ended: SystemTime) {
        let started = ended.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(duration);
        let times = (u64::try_from(started.as_nanos()).unwrap_or(u64::MAX), duration);
        if detail.logged && self.is_kept(seen, &detail) {
            let outbox = self.log.outbox.get_or_init(|| self.telemetry.access.open());
            if self.put(outbox, &self.log.serial, Sink::Log, seen, &detail, times) {
                self.telemetry.access.added(outbox);
            } else {
                self.shard.lines_dropped.add(1);
            }
        }
        if detail.has_span() {
            let outbox = self.spans.outbox.get_or_init(|| self.telemetry.spans.open());
            if !self.put(outbox, &self.spans.serial, Sink::Spans, seen, &detail, times) {
                self.shard.spans_dropped.add(1);
            }
        }
        self.take_back(detail);
    }

    /// Notes that are used no more.
    pub(super) fn take_back(&self, detail: Box<Detail>) {
        let mut notes = self.notes.borrow_mut();
        if notes.len() < NOTES_KEPT_MAX {
            notes.extend(detail.emptied());
        }
    }

    /// Whether a line is kept: of the exchanges that went well a share may be enough. The trace decides, so that all hops decide alike; without
    /// one a draw does.
    fn is_kept(&self, seen: &Outline, detail: &Detail) -> bool {
        let said = seen.rule.as_deref().and_then(|rule| rule.telemetry()?.log_success_threshold);
        let threshold = said.or(seen.settings().map(|settings| settings.log_success_threshold)).unwrap_or(ALL);
        if threshold >= ALL || !went_well(seen.code, seen.grpc, seen.reason) {
            return true;
        }
        let chance = detail.context.map_or_else(|| self.draw.next(), |context| trace::chance(context.trace_id));
        chance >> 32 < threshold
    }

    /// Whether a span is made of what was not sampled: at most so many a second, so that an outage of a busy service is not one of its collector.
    pub(super) fn judge(&self, seen: &Outline, detail: &mut Detail, duration: Duration, ended: SystemTime) {
        if !detail.keep.is_any() || detail.is_sampled() || detail.context.is_none() {
            return;
        }
        let Some(kept) = seen.ending().kept(detail.keep, duration) else { return };
        let second = ended.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (last, count) = self.kept.get();
        let count = if last == second { count } else { 0 };
        if count >= KEPT_EACH_SECOND_MAX {
            return self.shard.spans_dropped.add(1);
        }
        self.kept.set((second, count + 1));
        detail.kept = Some(kept);
    }

    fn put(&self, outbox: &Outbox, serial: &Cell<u64>, sink: Sink, seen: &Outline, detail: &Detail, times: (u64, Duration)) -> bool {
        outbox.add(serial, |batch| {
            let shape = self.shapes.borrow_mut().number(seen, detail, batch, sink);
            batch.add((shape, sink), seen, detail, times);
        })
    }

    /// The exemplar of a sampled exchange.
    pub(super) fn exemplar(detail: &Detail, duration: Duration, at: SystemTime) -> Option<Exemplar> {
        let context = detail.context.filter(|_| detail.has_span())?;
        Some(Exemplar { trace_id: context.trace_id, span_id: context.span_id, duration, at })
    }
}

impl Handle {
    /// Counts what does not fit. Whether its series is read no more, or another look may find a place: room is made from time to time.
    fn is_stale(&self, shard: &Shard) -> bool {
        if self.overflow {
            shard.overflow.add(1);
            if shard.overflow.get().is_multiple_of(OVERFLOW_LOOK) {
                return true;
            }
        }
        !self.series.is_read()
    }
}

/// Labels that are there where a Telemetry asks for them.
fn extra(seen: &Outline) -> Extra {
    if !seen.labels.adds() {
        return Extra::default();
    }
    let endpoint = seen.endpoint.as_ref().filter(|_| seen.labels.has(MetricLabel::DestinationZone));
    Extra {
        method: seen.method,
        destination_zone: endpoint.map(|endpoint| Arc::clone(&endpoint.locality.zone)),
        consumer: seen.consumer.as_ref().map(|consumer| Arc::from(&*consumer.path)),
    }
}

/// `None`: there are so many callers that this one has no number of its own.
fn told_apart(downstream: &Downstream) -> Option<Calling<'_>> {
    let identity = downstream.peer.as_ref().map(|peer| &peer.identity);
    let known = identity.is_none() || downstream.source != SOURCE_UNKNOWN;
    known.then_some(Calling { number: downstream.source, identity })
}

fn key(seen: &Outline, family: MetricFamily, reason: Option<Reason>) -> SeriesKey {
    let (namespace, service) = seen.destination().map_or((0, 0), |(namespace, service)| (address_of(namespace), address_of(service)));
    let rule = seen.rule.as_ref().map_or(u32::MAX, |rule| rule.id);
    let workload = match seen.direction {
        Direction::Inbound => u32::MAX,
        Direction::Outbound => seen.endpoint.as_ref().map_or(u32::MAX, |endpoint| endpoint.workload_id),
    };
    let reason = reason.map_or(u8::MAX, |reason| reason as u8);
    let told = u64::from(seen.method.number()) << 48 | u64::from(seen.labels.bits()) << 32;
    let flags = told | (family as u64) << 24 | (seen.direction as u64) << 16 | (seen.wire as u64) << 8 | u64::from(seen.mtls);
    [
        u64::from(rule) << 32 | u64::from(workload),
        namespace,
        service,
        u64::from(seen.source) << 32 | u64::from(seen.code) << 16 | u64::from(seen.grpc) << 8 | u64::from(reason),
        flags,
    ]
}

fn address_of(text: &Arc<str>) -> u64 {
    Arc::as_ptr(text).cast::<u8>() as u64
}
