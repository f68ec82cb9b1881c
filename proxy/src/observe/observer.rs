//! Where the roads begin the record of what they carry.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engine::model::{Ejected, Endpoint, Keep, MetricLabel, Snapshot};
use engine::versions::has_streams;
use http::header::CONTENT_TYPE;
use http::request::Parts;

use super::account::Account;
use super::downstream::Downstream;
use super::edge::EdgeReadings;
use super::labels::{Direction, MethodLabel, MetricFamily, Wire};
use super::record::{Outline, Word, text};
use super::telemetry::Telemetry;
use super::trace::Forms;
use super::worker::{Recorder, SOURCE_UNKNOWN, TraceTerms, Traced, X_REQUEST_ID};
use crate::io::Draw;
use crate::tls::{Peer, TlsFacts};

/// Of one worker; clones share it. Not `Send`: nothing here is locked between threads.
#[derive(Clone, Debug)]
pub struct Observer {
    pub(super) worker: Rc<Recorder>,
}

impl Observer {
    /// A new worker's observer. `draw` decides on sampling and makes trace ids.
    pub fn new(telemetry: Arc<Telemetry>, draw: Draw) -> Self {
        Self { worker: Rc::new(Recorder::new(telemetry, draw)) }
    }

    /// What this worker saw of itself at its tick: how late that came, how many connections its pool has, and how many requests wait for one.
    pub fn ticked(&self, lag: Duration, open: usize, waiting: usize) {
        self.worker.load.lagged(lag);
        self.worker.load.pooled(open, waiting);
    }

    /// A copy of a request was not made: too many are under way.
    #[cold]
    pub fn mirror_dropped(&self) {
        self.worker.telemetry.readings.mirrors_dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// What is counted of an edge's clients.
    pub fn edge(&self) -> &EdgeReadings {
        &self.worker.telemetry.readings.edge
    }

    /// An endpoint was thrown out because of how an opaque connection to it could not be opened.
    pub fn ejected(&self, endpoint: &Endpoint, ejected: Ejected) {
        self.worker.ejected(endpoint, ejected);
    }

    /// A call past the mesh was cut, or (not `cut`) would be if an audit were enforced. `name` is what it asked for, if anything.
    #[cold]
    pub fn egress(&self, to: SocketAddr, name: &str, why: &'static str, cut: bool) {
        let telemetry = &self.worker.telemetry;
        telemetry.egress.lock().note(to, name, (why, cut), telemetry.clock.wall());
    }

    /// Facts of an accepted connection, once per connection. Takes note of a plaintext peer on the inbound side.
    pub fn downstream(
        &self,
        direction: Direction,
        snapshot: &Snapshot,
        (address, local): (SocketAddr, SocketAddr),
        peer: Option<Arc<Peer>>,
        tls: Option<TlsFacts>,
    ) -> Downstream {
        if direction == Direction::Inbound && peer.is_none() {
            let telemetry = &self.worker.telemetry;
            let own = snapshot.settings.as_deref();
            telemetry.plaintext.lock().note(address.ip(), local.port(), own, telemetry.clock.wall());
        }
        let own = snapshot.settings.as_deref().map(|settings| settings.trust_domain.as_str());
        // Names of another trust domain's namespaces and workloads are not ours.
        let source = |peer: &Arc<Peer>| match own {
            Some(own) if own != peer.identity.trust_domain() => (SOURCE_UNKNOWN, Arc::clone(peer)),
            _ => self.worker.source(peer),
        };
        let (source, caller) = peer.as_ref().map(source).unzip();
        Downstream {
            address,
            local,
            peer,
            tls,
            client_tls: None,
            certificate: None,
            place: None,
            source: source.unwrap_or(SOURCE_UNKNOWN),
            caller,
        }
    }

    /// The same of an inbound caller that tried to prove itself and failed: not one that speaks plaintext.
    pub const fn stranger((address, local): (SocketAddr, SocketAddr)) -> Downstream {
        Downstream {
            address,
            local,
            peer: None,
            tls: None,
            client_tls: None,
            certificate: None,
            place: None,
            source: SOURCE_UNKNOWN,
            caller: None,
        }
    }

    /// Begins the record of one HTTP request; its trace headers are rewritten in `parts`. Allocates for headers only: trace context where
    /// tracing is on, and a request's id where the access log is on.
    pub fn begin_http(&self, direction: Direction, snapshot: &Arc<Snapshot>, parts: &mut Parts, downstream: &Downstream) -> Account {
        let forms = Forms::of(&parts.headers);
        let mut account = self.begin_walked(direction, snapshot, (parts, forms), downstream);
        if direction == Direction::Inbound {
            account.asks(downstream, parts);
        }
        account
    }

    /// The same of a head that was walked already: which forms of trace context it has. What it asks for is told when the head was judged
    /// ([`Account::asks`]).
    pub fn begin_walked(
        &self,
        direction: Direction,
        snapshot: &Arc<Snapshot>,
        (parts, forms): (&mut Parts, Forms),
        downstream: &Downstream,
    ) -> Account {
        let worker = &self.worker;
        let started = worker.telemetry.clock.now();
        let mtls = direction == Direction::Inbound && downstream.peer.is_some();
        let mut seen = Outline::new(Arc::clone(snapshot), MetricFamily::Http, direction, wire(parts), downstream.source, mtls);
        if seen.labels.has(MetricLabel::Method) {
            seen.method = MethodLabel::of(&parts.method);
        }
        let settings = snapshot.settings.as_deref();
        let logged = settings.is_some_and(|settings| settings.access_log);
        let tracing = worker.telemetry.traces(settings);
        let watched = worker.watched(started, direction, Some(parts));
        let noted = watched.as_ref().is_some_and(|watched| watched.noted);
        if !logged && !tracing && !noted {
            return Account::new(Rc::clone(worker), seen, None, started).watched(watched);
        }
        let keep = settings.filter(|_| tracing).map_or(Keep::default(), |settings| settings.keep);
        let infers = tracing && settings.is_some_and(|settings| settings.infer_links);
        let threshold = settings.map_or(0, |settings| settings.sample_threshold);
        let infers_now = (infers && direction == Direction::Outbound).then_some(started);
        let terms = TraceTerms { tracing, threshold, keeps: keep.is_any(), infers: infers_now };
        let traced = worker.trace(parts, forms, terms);
        let context = traced.context;
        let sampled = context.is_some_and(|context| context.sampled);
        let detail = (logged || sampled || keep.is_any() || noted).then(|| {
            let mut detail = worker.notes(logged, traced, keep, (direction, downstream));
            // Mesh TLS is ours; the application speaks plain HTTP inside it.
            let referer = logged && settings.is_some_and(|settings| settings.log_format.tells_referer());
            detail.read_head(parts, downstream.tls.is_some() && downstream.peer.is_none(), referer);
            if logged {
                worker.request_id(parts, &mut detail);
            } else if noted && let Some(id) = text(&parts.headers, &X_REQUEST_ID) {
                // A tap changes nothing of what it shows.
                detail.word(Word::RequestId, id);
            }
            detail
        });
        let mut account = Account::new(Rc::clone(worker), seen, detail, started).watched(watched);
        account.traced(traced.headers);
        if infers
            && direction == Direction::Inbound
            && let Some(context) = context
        {
            account.answers(context);
        }
        account
    }

    /// Begins the record of one opaque connection. No span: there is no context to continue.
    pub fn begin_tcp(&self, direction: Direction, snapshot: &Arc<Snapshot>, downstream: &Downstream) -> Account {
        let started = self.worker.telemetry.clock.now();
        let mtls = direction == Direction::Inbound && downstream.peer.is_some();
        let mut seen = Outline::new(Arc::clone(snapshot), MetricFamily::Tcp, direction, Wire::Tcp, downstream.source, mtls);
        if direction == Direction::Inbound {
            seen.call = self.worker.connection(downstream);
        }
        let logged = snapshot.settings.as_deref().is_some_and(|settings| settings.access_log);
        let watched = self.worker.watched(started, direction, None);
        let noted = watched.as_ref().is_some_and(|watched| watched.noted);
        let detail = (logged || noted).then(|| self.worker.notes(logged, Traced::default(), Keep::default(), (direction, downstream)));
        Account::new(Rc::clone(&self.worker), seen, detail, started).watched(watched)
    }
}

fn wire(parts: &Parts) -> Wire {
    if !has_streams(parts.version) {
        return Wire::Http1;
    }
    match parts.headers.get(CONTENT_TYPE) {
        Some(kind) if kind.as_bytes().starts_with(b"application/grpc") => Wire::Grpc,
        _ => Wire::Http2,
    }
}
