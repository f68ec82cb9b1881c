//! From the encoder to one collector: a bounded queue, and the task that sends what is in it, one parcel at a time. A collector that fails
//! holds up nobody else: what waits for too long, or is too much, is dropped and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use engine::model::{OtlpProtocol, Settings};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::collector::Way;
use super::drops::DropReason;
use super::otlp::{OtlpClient, TRACES};
use super::parcel::{Packed, Parcel};
use super::refusal::Refusal;
use super::span::{envelope, resource_of};
use super::telemetry::Telemetry;
use super::zipkin::ZipkinClient;
use crate::io::Draw;

/// Encoded spans that wait for one collector, in bytes, and parcels of them; beyond, they are dropped.
pub(super) const WAITING_BYTES_MAX: usize = 4 << 20;
const PARCELS_MAX: usize = 256;
/// How long a parcel is kept, from when it was handed over: a collector that restarts takes less.
pub(super) const KEPT_MAX: Duration = Duration::from_secs(30);
/// First pause after a failure; twice as long each time, and no longer than the second.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Longest pause that a collector's word is taken for.
const ASKED_MAX: Duration = Duration::from_secs(300);
/// A failing collector is complained about once in this time.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// What collectors are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Make {
    Otlp,
    Zipkin,
}

/// The encoder's end.
#[derive(Debug)]
pub(super) struct Lane {
    make: Make,
    parcels: mpsc::Sender<(Parcel, Instant)>,
    /// Of the parcel that was given last.
    newest: watch::Sender<Option<Arc<Settings>>>,
    waiting: Arc<AtomicUsize>,
}

/// The task's end.
#[derive(Debug)]
pub(super) struct Carrier {
    telemetry: Arc<Telemetry>,
    parcels: mpsc::Receiver<(Parcel, Instant)>,
    newest: watch::Receiver<Option<Arc<Settings>>>,
    waiting: Arc<AtomicUsize>,
    sink: Sink,
    way: Way,
    pace: Pace,
    complained: Option<std::time::Instant>,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a proxy has one of each")]
enum Sink {
    Otlp(Option<OtlpClient>),
    Zipkin(Option<ZipkinClient>),
}

/// When a collector is tried again.
#[derive(Debug)]
struct Pace {
    draw: Draw,
    pause: Duration,
    not_before: Option<Instant>,
}

/// What became of a parcel.
type Sent = Result<u64, (DropReason, String)>;

impl Lane {
    pub(super) fn new(make: Make, telemetry: &Arc<Telemetry>, way: Way) -> (Self, Carrier) {
        let ((sender, parcels), (newest, follows)) = (mpsc::channel(PARCELS_MAX), watch::channel(None));
        let waiting = Arc::new(AtomicUsize::new(0));
        let sink = match make {
            Make::Otlp => Sink::Otlp(None),
            Make::Zipkin => Sink::Zipkin(None),
        };
        let carrier = Carrier {
            telemetry: Arc::clone(telemetry),
            parcels,
            newest: follows,
            waiting: Arc::clone(&waiting),
            sink,
            way,
            pace: Pace::new(&telemetry.options.instance),
            complained: None,
        };
        (Self { make, parcels: sender, newest, waiting }, carrier)
    }

    /// Hands a parcel over, if it goes this way at all. Never waits.
    pub(super) fn give(&self, parcel: &Parcel, telemetry: &Telemetry) {
        let settings = parcel.settings.as_deref();
        let goes = match self.make {
            Make::Otlp => telemetry.otlp_to(settings).is_some(),
            Make::Zipkin => telemetry.zipkin_to(settings).is_some(),
        };
        self.newest.send_if_modified(|newest| {
            let other = newest.as_ref().map(Arc::as_ptr) != parcel.settings.as_ref().map(Arc::as_ptr);
            if other {
                newest.clone_from(&parcel.settings);
            }
            other
        });
        if !goes {
            return;
        }
        let (size, now) = (parcel.size(), Instant::now());
        let room = self.waiting.fetch_add(size, Ordering::Relaxed) + size <= WAITING_BYTES_MAX;
        if !room || self.parcels.try_send((parcel.clone(), now)).is_err() {
            self.waiting.fetch_sub(size, Ordering::Relaxed);
            telemetry.spans_dropped.add(DropReason::QueueFull, parcel.count);
        }
    }
}

impl Carrier {
    /// Sends what comes until the other end is dropped, and what is left then.
    pub(super) async fn run(mut self) {
        while let Some((parcel, since)) = self.parcels.recv().await {
            let sent = self.deliver(&parcel, since + KEPT_MAX).await;
            self.waiting.fetch_sub(parcel.size(), Ordering::Relaxed);
            self.told(parcel.count, sent);
        }
    }

    /// Tries until the parcel is taken, refused, or too old.
    async fn deliver(&mut self, parcel: &Parcel, until: Instant) -> Sent {
        let mut why = "it failed before, and is not asked before it is time".to_owned();
        loop {
            if let Err(error) = self.meet(parcel) {
                return Err((DropReason::BadEndpoint, error));
            }
            if let Some(not_before) = self.pace.not_before.filter(|not_before| *not_before > Instant::now()) {
                if not_before > until || self.is_left_behind(parcel) {
                    return Err((DropReason::Expired, why));
                }
                tokio::select! {
                    () = sleep_until(not_before) => {}
                    Ok(()) = self.newest.changed() => {}
                }
                continue;
            }
            match self.attempt(parcel).await {
                Ok(rejected) => {
                    self.pace.succeeded();
                    return Ok(rejected);
                }
                Err(Refusal::Never(why)) => return Err((DropReason::Refused, why)),
                Err(Refusal::Again { why: told, after }) => {
                    self.pace.failed(after);
                    why = told;
                }
            }
        }
    }

    /// Makes sure that the client is that of the parcel's collector. Another collector has another pace.
    fn meet(&mut self, parcel: &Parcel) -> Result<(), String> {
        let settings = parcel.settings.as_deref();
        let nowhere = || "there is no endpoint any more".to_owned();
        match &mut self.sink {
            Sink::Otlp(client) => {
                let to = self.telemetry.otlp_to(settings).ok_or_else(nowhere)?;
                if client.as_ref().is_none_or(|client| !client.is_of(to)) {
                    *client = Some(OtlpClient::new(to, &self.way)?);
                    self.pace.succeeded();
                }
            }
            Sink::Zipkin(client) => {
                let to = self.telemetry.zipkin_to(settings).ok_or_else(nowhere)?;
                if client.as_ref().is_none_or(|client| !client.is_of(to)) {
                    *client = Some(ZipkinClient::new(to, &self.way)?);
                    self.pace.succeeded();
                }
            }
        }
        Ok(())
    }

    /// Whether newer spans go to another collector: they do not wait for one that fails.
    fn is_left_behind(&self, parcel: &Parcel) -> bool {
        let (own, newest) = (parcel.settings.as_deref(), self.newest.borrow());
        match self.sink {
            Sink::Otlp(_) => self.telemetry.otlp_to(own) != self.telemetry.otlp_to(newest.as_deref()),
            Sink::Zipkin(_) => self.telemetry.zipkin_to(own) != self.telemetry.zipkin_to(newest.as_deref()),
        }
    }

    async fn attempt(&mut self, parcel: &Parcel) -> Result<u64, Refusal> {
        let (settings, instance) = (parcel.settings.as_deref(), &self.telemetry.options.instance);
        let now_unix_secs = self.telemetry.clock.unix().as_secs();
        match (&mut self.sink, &parcel.spans) {
            (Sink::Otlp(Some(client)), Packed::Encoded(bytes)) => {
                let envelope = Arc::new(envelope(settings, instance, bytes.len()));
                client.send(TRACES, [envelope, Arc::clone(bytes)], now_unix_secs).await
            }
            (Sink::Otlp(Some(client)), Packed::Own(spans)) => {
                client.send_own(&resource_of(settings, instance), spans.to_vec()).await.map(|()| 0)
            }
            (Sink::Zipkin(Some(client)), spans) => {
                let resource = resource_of(settings, instance);
                client.send(&resource, spans, now_unix_secs).await.map(|()| 0)
            }
            // `meet` comes before.
            (Sink::Otlp(None) | Sink::Zipkin(None), _) => Err(Refusal::Never("there is no client".to_owned())),
        }
    }

    /// Counts what became of `count` spans: how many of them were refused, or why all are lost.
    fn told(&mut self, count: u64, sent: Sent) {
        let dropped = &self.telemetry.spans_dropped;
        match sent {
            Ok(rejected) => {
                let rejected = rejected.min(count);
                dropped.add(DropReason::Rejected, rejected);
                self.telemetry.spans_exported.fetch_add(count - rejected, Ordering::Relaxed);
            }
            Err((reason, why)) => {
                dropped.add(reason, count);
                self.complain(&why);
            }
        }
    }

    fn complain(&mut self, why: &str) {
        let now = self.telemetry.clock.now();
        if self.complained.is_some_and(|last| now.saturating_duration_since(last) < COMPLAIN_EVERY) {
            return;
        }
        self.complained = Some(now);
        let endpoint = match &self.sink {
            Sink::Otlp(client) => client.as_ref().map(OtlpClient::endpoint),
            Sink::Zipkin(client) => client.as_ref().map(ZipkinClient::endpoint),
        };
        tracing::warn!(
            endpoint = endpoint.unwrap_or_default(),
            error = why,
            "spans cannot be exported and are dropped; check that a collector listens there, and the protocol (said once a minute)"
        );
    }
}

impl Pace {
    /// Instances that fail at once come again one after the other.
    fn new(instance: &str) -> Self {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let mut hasher = DefaultHasher::new();
        instance.hash(&mut hasher);
        Self { draw: Draw::seeded(hasher.finish()), pause: PAUSE, not_before: None }
    }

    fn succeeded(&mut self) {
        (self.pause, self.not_before) = (PAUSE, None);
    }

    /// `asked`: by the collector. Otherwise half of the pause, and up to the other half by chance.
    fn failed(&mut self, asked: Option<Duration>) {
        let half = self.pause / 2;
        let drawn = half + half.mul_f64((self.draw.next() % 1024) as f64 / 1024.0);
        let pause = asked.map_or(drawn, |asked| asked.min(ASKED_MAX));
        self.not_before = Some(Instant::now() + pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

/// Where spans go under settings.
impl Telemetry {
    /// By OTLP: flag, then configuration, then environment.
    pub(super) fn otlp_to<'a>(&'a self, settings: Option<&'a Settings>) -> Option<(&'a str, OtlpProtocol)> {
        let own = self.options.otlp_protocol;
        let configured = settings.and_then(|settings| Some((settings.otlp_endpoint.as_deref()?, settings.otlp_protocol)));
        let flag = self.options.otlp_endpoint.as_deref().map(|endpoint| (endpoint, own));
        flag.or(configured).or(self.options.otlp_fallback.as_deref().map(|endpoint| (endpoint, own)))
    }

    /// As Zipkin's JSON.
    pub(super) fn zipkin_to<'a>(&self, settings: Option<&'a Settings>) -> Option<&'a str> {
        settings.and_then(|settings| settings.zipkin_endpoint.as_deref())
    }

    /// Whether spans go anywhere.
    pub(super) fn traces(&self, settings: Option<&Settings>) -> bool {
        self.otlp_to(settings).is_some() || self.zipkin_to(settings).is_some()
    }
}
