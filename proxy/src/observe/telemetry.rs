//! The part that all workers and the shell share: the registry of shards, readings, queues.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwapOption;
use engine::Moment;
use engine::callout::{CalloutKind, Callouts};
use engine::limit::LimitMemories;
use engine::model::{OtlpProtocol, Settings};
use opentelemetry_sdk::trace::SpanData;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use super::access::AccessLog;
use super::auth::AuthCounts;
use super::batch::Outboxes;
use super::calls::CallShard;
use super::cgroup::CgroupFiles;
use super::collector::Way;
use super::drops::Drops;
use super::edge::EdgeReadings;
use super::egress::EgressCalls;
use super::kept::KeptRequests;
use super::labels::Direction;
use super::load::Load;
use super::plaintext::PlaintextPeers;
use super::series::Registry;
use super::sinks::{LogLines, SinkMeans, ToServices};
use super::tap::{TapFeed, TapTerms, Taps};

use crate::ground::tally::Floods;
use crate::io::{Clock, Network};
use crate::tls::Tls;

/// Spans of the proxy's own tasks that wait; beyond, they are dropped and counted.
const OWN_SPANS_MAX: usize = 256;

/// What a proxy's telemetry is started with.
#[derive(Debug)]
pub struct TelemetryOptions {
    /// Name of the instance, for `service.instance.id`.
    pub instance: String,
    /// OTLP endpoint given by flag; wins over the mesh's configuration.
    pub otlp_endpoint: Option<String>,
    /// Endpoint used where neither flag nor configuration names one: `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub otlp_fallback: Option<String>,
    /// How spans travel to either.
    pub otlp_protocol: OtlpProtocol,
    /// Where access log lines go.
    pub log: LogLines,
    /// How collectors are reached: as the proxy's own connections, which redirection leaves alone.
    pub network: Network,
    /// For collectors that prove a name; `None`: those are not reached.
    pub tls: Option<Arc<Tls>>,
}

impl Default for TelemetryOptions {
    fn default() -> Self {
        Self {
            instance: String::new(),
            otlp_endpoint: None,
            otlp_fallback: None,
            otlp_protocol: OtlpProtocol::Grpc,
            log: LogLines::Stdout,
            network: Network::Kernel { mark: None },
            tls: None,
        }
    }
}

/// What other modules know and metrics show. Written by their owners at any time.
#[derive(Debug, Default)]
pub struct Readings {
    /// Number of the epoch in force.
    pub config_epoch: AtomicU64,
    /// When the leaf expires, seconds since 1970; 0: no leaf yet.
    pub cert_expiry_unix_secs: AtomicI64,
    /// Fetches of token issuers' keys that failed.
    pub key_fetches_failed: AtomicU64,
    /// Questions for names outside the mesh that are backends, both families together.
    pub outside_lookups: AtomicU64,
    /// Those that nobody has answered, in one family at least.
    pub outside_lookups_failed: AtomicU64,
    /// Places that keys cannot be fetched from now, and why; there are as many as the live rules name, and no more.
    pub keys_away: Mutex<BTreeMap<String, String>>,
    /// Providers of logins that are not found now, by issuer, and why; as many as the live snapshot names, and no more.
    pub providers_away: Mutex<BTreeMap<String, String>>,
    /// Resources refused since the start.
    pub config_rejected: AtomicU64,
    /// Resources that came and are not in force yet.
    pub config_staged: AtomicU64,
    /// Endpoints ejected since the start.
    pub ejections: AtomicU64,
    /// Conditions of policies that could not be evaluated.
    pub conditions_failed: AtomicU64,
    /// What came of asking who calls from outside the mesh.
    pub auth: AuthCounts,
    /// Copies of requests for mirrors that were not made.
    pub mirrors_dropped: AtomicU64,
    /// Bodies that are coming in over HTTP/2.
    pub http2_bodies: Arc<AtomicI64>,
    /// HTTP/2 connections that were ended because their frames asked for nothing.
    pub http2_floods: Floods,
    /// Of an edge's clients.
    pub edge: Arc<EdgeReadings>,
    /// What limits counted, of the objects that the live snapshot names.
    pub limits: Mutex<Arc<LimitMemories>>,
    /// What is known of services that policies ask, of those that the live snapshot names.
    pub callouts: Mutex<Arc<Callouts>>,
    inbound: Occupancy,
    outbound: Occupancy,
}

impl Readings {
    /// Downstream connections of a direction.
    pub const fn occupancy(&self, direction: Direction) -> &Occupancy {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }
}

/// Downstream connections of one direction, over all workers.
#[derive(Debug, Default)]
pub struct Occupancy {
    /// Now here.
    pub open: AtomicU64,
    /// How often a worker's bound was reached.
    pub full: AtomicU64,
}

/// Shared by all workers, the admin listener, reports and the span exporter.
#[derive(Debug)]
pub struct Telemetry {
    /// See [`Readings`].
    pub readings: Readings,
    pub(super) registry: Mutex<Registry>,
    pub(super) plaintext: Mutex<PlaintextPeers>,
    pub(super) egress: Mutex<EgressCalls>,
    /// One per worker.
    pub(super) calls: Mutex<Vec<Arc<CallShard>>>,
    /// Of traffic.
    pub(super) spans: Outboxes,
    /// Of the proxy's own tasks.
    pub(super) own_spans: mpsc::Sender<Box<SpanData>>,
    pub(super) access: AccessLog,
    pub(super) taps: Arc<Taps>,
    pub(super) kept: KeptRequests,
    pub(super) options: TelemetryOptions,
    pub(super) clock: Clock,
    pub(super) started: SystemTime,
    /// The fixed point of [`Moment`].
    begun: Instant,
    pub(super) settings: Arc<ArcSwapOption<Settings>>,
    /// Services that policies ask and that are away, since when; seconds since 1970. As many as the live snapshot names.
    pub(super) services_away: Mutex<BTreeMap<(CalloutKind, Arc<str>), u64>>,
    pub(super) spans_exported: AtomicU64,
    pub(super) spans_dropped: Drops,
    /// Of the proxy itself.
    pub(super) load: Load,
    pub(super) kernel_files: OnceLock<CgroupFiles>,
    /// Where metrics are sent has changed.
    pub(super) metrics_redirected: Notify,
    pub(super) points_exported: AtomicU64,
    pub(super) points_dropped: AtomicU64,
}

impl Telemetry {
    /// Now, as the engine wants to know it.
    pub fn moment(&self) -> Moment {
        Moment::after_start(self.clock.now().saturating_duration_since(self.begun))
    }

    /// Begins to show exchanges as they end. `None`: [`super::TAPS_MAX`] do already.
    pub fn tap(&self, terms: TapTerms, lines_per_sec: u32) -> Option<TapFeed> {
        self.taps.begin(terms, lines_per_sec)
    }

    /// Access log lines of requests that failed or were slow of late, by `x-request-id` or trace id; an array.
    pub fn find(&self, id: &str) -> serde_json::Value {
        self.kept.find(id)
    }

    /// A moment as nanoseconds since the start.
    pub(super) fn nanos_at(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.begun).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Time, and the moment that the engine counts from: the same for the whole process.
    pub const fn times(&self) -> (Clock, Instant) {
        (self.clock, self.begun)
    }

    /// Empty counters, and where spans of the proxy's own tasks will come out.
    pub(super) fn new(options: TelemetryOptions, clock: Clock) -> (Arc<Self>, mpsc::Receiver<Box<SpanData>>) {
        let (own_spans, own) = mpsc::channel(OWN_SPANS_MAX);
        let (started, begun) = (clock.wall(), clock.now());
        let settings = Arc::<ArcSwapOption<Settings>>::default();
        let means = SinkMeans {
            clock,
            way: Way { network: options.network.clone(), tls: options.tls.clone() },
            instance: options.instance.clone(),
            services: Arc::default(),
            losses: Arc::default(),
        };
        let telemetry = Arc::new(Self {
            readings: Readings::default(),
            registry: Mutex::default(),
            plaintext: Mutex::default(),
            egress: Mutex::default(),
            calls: Mutex::default(),
            spans: Outboxes::default(),
            own_spans,
            access: AccessLog::new(options.log.clone(), means, Arc::clone(&settings)),
            taps: Arc::default(),
            kept: KeptRequests::default(),
            options,
            clock,
            started,
            begun,
            settings,
            services_away: Mutex::default(),
            spans_exported: AtomicU64::new(0),
            spans_dropped: Drops::default(),
            load: Load::default(),
            kernel_files: OnceLock::new(),
            metrics_redirected: Notify::new(),
            points_exported: AtomicU64::new(0),
            points_dropped: AtomicU64::new(0),
        });
        (telemetry, own)
    }

    /// Tells the settings in force, for the spans of the proxy's own tasks. Traffic carries its own snapshot.
    pub fn configured(&self, settings: &Arc<Settings>) {
        let before = self.settings.swap(Some(Arc::clone(settings)));
        if before.as_ref().and_then(|before| before.metrics_otlp.as_ref()) != settings.metrics_otlp.as_ref() {
            self.metrics_redirected.notify_one();
        }
    }

    /// What waits in queues, by their names.
    pub(super) fn queues(&self) -> Vec<(&'static str, u64)> {
        let own_spans = self.own_spans.max_capacity() - self.own_spans.capacity();
        vec![
            ("access_log", self.access.waiting()),
            ("spans", self.spans.waiting()),
            ("own_spans", own_spans as u64),
            ("config", self.readings.config_staged.load(Ordering::Relaxed)),
        ]
    }

    /// How Services of the mesh are reached that take the access log; told once.
    pub fn reach_services(&self, services: Arc<dyn ToServices>) {
        self.access.reach_services(services);
    }

    /// Writes out what the access log still holds, and stops it. Waits at most a second.
    pub fn close_log(&self) {
        self.access.close();
    }
}
