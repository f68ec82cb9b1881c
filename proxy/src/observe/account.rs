//! One request or opaque connection, from its first byte to its last; recorded once, when dropped.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use engine::authenticate::Authentication;
use engine::authorize::{CallVerdict, Judgement, Ruling};
use engine::failure::{Blame, Failure, LocalReply, REASON_HEADER, Reason};
use engine::filter::guard::{Denied, Found};
use engine::model::{Action, ClientRules, Cluster, Ejected, Endpoint, InboundPort, MetricLabel, Rule, VersionCounts};
use http::header::{ALT_SVC, HeaderName, STRICT_TRANSPORT_SECURITY};
use http::request::Parts;
use http::{HeaderMap, StatusCode, Version};

use super::calls::CALL_NONE;
use super::downstream::{Downstream, FromOutside};
use super::event::{EventKind, SpanEvent};
use super::labels::{CODE_NONE, Direction, GRPC_NONE, MetricFamily, Ruled, Wire, is_server_error};
use super::record::{Detail, Outline, RETRIES_LISTED_MAX, Word};
use super::series::Series;
use super::tap::FittingTaps;
use super::trace::Context;
use super::under_way::UnderWayPlace;
use super::worker::{HeadersSay, Recorder};
use crate::tls::TlsFacts;

/// Highest gRPC status that is kept apart; codes beyond the sixteen known count as UNKNOWN.
const GRPC_STATUS_MAX: u32 = 16;
const GRPC_UNKNOWN: u8 = 2;
const GRPC_UNIMPLEMENTED: u8 = 12;
/// No place among a rule's backends.
const NOWHERE: u8 = u8::MAX;
/// Says of an answer put together from several which of its parts are missing (edge-kinds.md, Aggregate).
const PARTIAL_HEADER: HeaderName = HeaderName::from_static("x-meshwright-partial");

/// Told by the road what happens; its drop records metrics, log line and span, exactly once. Dropped at any point it records what
/// was known by then: without an answer that is `client_gone`.
#[derive(Debug)]
pub struct Account {
    pub(super) worker: Rc<Recorder>,
    pub(super) seen: Outline,
    pub(super) detail: Option<Box<Detail>>,
    started: Instant,
    /// The series that takes the bytes of an opaque connection while it lives.
    live: Option<Arc<Series>>,
    outside: Option<FromOutside>,
    /// What every answer says of encryption, where it does.
    strictly: Option<Arc<ClientRules>>,
    /// What the request's headers say of its trace.
    pub(super) headers: HeadersSay,
    /// Inbound: where it stands among what the application is answering.
    place: UnderWayPlace,
    /// Which of its rule's backends counts it as a version of a canary; [`NOWHERE`]: none.
    counted_at: u8,
    /// Taps that may show it: seldom any, so they lie elsewhere.
    watched: Option<Box<FittingTaps>>,
}

impl Account {
    pub(super) fn new(worker: Rc<Recorder>, seen: Outline, detail: Option<Box<Detail>>, started: Instant) -> Self {
        let (headers, place) = (HeadersSay::Theirs, UnderWayPlace::NONE);
        Self {
            worker,
            seen,
            detail,
            started,
            live: None,
            outside: None,
            strictly: None,
            headers,
            place,
            counted_at: NOWHERE,
            watched: None,
        }
    }

    /// Whether a tap looks at it.
    pub(super) const fn is_watched(&self) -> bool {
        self.watched.is_some()
    }

    /// The same, watched by taps.
    pub(super) fn watched(mut self, watched: Option<FittingTaps>) -> Self {
        self.watched = watched.map(Box::new);
        self
    }

    /// What its headers say of its trace by now.
    pub(super) fn traced(&mut self, headers: HeadersSay) {
        self.headers = headers;
    }

    /// Inbound: the application finds this in its head, and answers from now on.
    pub(super) fn answers(&mut self, context: Context) {
        // An unsampled one may have gone on as it came: then the caller's span is the one that is known.
        let span_id = if context.span_id == 0 { context.parent.unwrap_or(0) } else { context.span_id };
        self.place = self.worker.under_way.borrow_mut().enter(Context { span_id, ..context }, self.started);
    }

    /// Which road it takes.
    pub fn direction(&self) -> Direction {
        self.seen.direction
    }

    /// It came from outside the mesh, by an edge.
    pub fn came_from_outside(&mut self, takes_json: bool) {
        self.outside = Some(if takes_json { FromOutside::Json } else { FromOutside::Text });
    }

    /// Who asks, where a proxy in front of us may have said that.
    pub fn came_for(&mut self, client: IpAddr) {
        if let Some(detail) = &mut self.detail {
            detail.client = Some(client);
        }
    }

    /// What its answer says of encryption and of HTTP/3, whoever makes it.
    pub fn says_strictly(&mut self, rules: &Arc<ClientRules>) {
        self.strictly = (rules.headers.hsts.is_some() || rules.alt_svc.is_some()).then(|| Arc::clone(rules));
    }

    /// Says it. An application speaks of no other way in: it does not know this one.
    pub fn tell_strictly(&self, headers: &mut HeaderMap, version: Version) {
        let Some(rules) = &self.strictly else { return };
        if let Some(value) = &rules.headers.hsts {
            headers.insert(STRICT_TRANSPORT_SECURITY, value.clone());
        }
        if let Some(other) = rules.alt_svc.as_ref().filter(|other| version != Version::HTTP_3 && other.door.is_open()) {
            headers.insert(ALT_SVC, other.value.clone());
        }
    }

    /// How it is answered where it came from outside.
    pub const fn outside(&self) -> Option<FromOutside> {
        self.outside
    }

    /// Its id, where it is known.
    pub fn request_id(&self) -> Option<&str> {
        self.detail.as_ref()?.get(Word::RequestId)
    }

    /// When it began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Inbound: what the application is asked for, by the path that is sent on.
    pub fn asks(&mut self, downstream: &Downstream, parts: &Parts) {
        self.seen.call = self.worker.request(downstream, parts);
    }

    /// Inbound: the rules for tokens under which it came.
    pub fn authentication(&self) -> Option<&Arc<Authentication>> {
        self.seen.snapshot.authentication.as_ref().filter(|_| self.seen.direction == Direction::Inbound)
    }

    /// Inbound: the port of the application that was meant.
    pub fn at_port(&mut self, port: &Arc<InboundPort>) {
        self.seen.port = Some(Arc::clone(port));
    }

    /// The rule that matched and the cluster chosen.
    pub fn routed(&mut self, rule: &Arc<Rule>, cluster: &Arc<Cluster>) {
        self.matched(rule);
        self.to_cluster(cluster);
    }

    /// It goes to this place among its rule's backends, which is a version of a canary: how it ends is counted there.
    pub fn counted_at(&mut self, place: Option<usize>) {
        self.counted_at = place.and_then(|place| u8::try_from(place).ok()).unwrap_or(NOWHERE);
    }

    /// The rule that matched, where it answers by itself.
    pub fn matched(&mut self, rule: &Arc<Rule>) {
        self.seen.rule = Some(Arc::clone(rule));
    }

    /// The cluster chosen, where no rule is involved.
    pub fn to_cluster(&mut self, cluster: &Arc<Cluster>) {
        self.seen.cluster = Some(Arc::clone(cluster));
    }

    /// An attempt begins on this endpoint. Call again for each attempt, and tell with [`Account::secured`] how its connection is encrypted
    /// once there is one. Until then a mesh peer counts as called by mTLS, since no other way leads to it: a plaintext label must mean
    /// plaintext.
    pub fn attempted(&mut self, endpoint: &Arc<Endpoint>) {
        self.on(endpoint);
        self.attempt();
        self.happened(EventKind::Attempt, Some(endpoint.address), None);
    }

    fn on(&mut self, endpoint: &Arc<Endpoint>) {
        if self.seen.direction == Direction::Outbound {
            self.seen.mtls = endpoint.identity.is_some();
        }
        self.seen.endpoint = Some(Arc::clone(endpoint));
    }

    /// Another attempt begins beside one that is under way. What is told stays that one's, unless this one [overtakes](Account::overtaken).
    pub fn hedged(&mut self, address: SocketAddr) {
        self.seen.attempts += 1;
        self.happened(EventKind::Hedge, Some(address), None);
        self.worker.count(&self.seen, MetricFamily::Hedge, None, |series| series.count.add(1));
    }

    /// Of two attempts, the one that began later, then and on this endpoint, is the one whose answer counts.
    pub fn overtaken(&mut self, endpoint: &Arc<Endpoint>, began: Instant) {
        self.happened(EventKind::Overtaken, Some(endpoint.address), None);
        self.on(endpoint);
        self.attempt();
        // It was counted as it began.
        self.seen.attempts -= 1;
        if let Some(detail) = &mut self.detail {
            detail.attempt_started = Some(began);
        }
    }

    /// An attempt begins on the application itself or another place that is no endpoint.
    pub fn attempted_locally(&mut self) {
        if self.seen.direction == Direction::Outbound {
            self.seen.mtls = false;
        }
        self.attempt();
        self.happened(EventKind::Attempt, None, None);
    }

    /// Notes what happened, where there may be a span.
    fn happened(&mut self, kind: EventKind, address: Option<SocketAddr>, reason: Option<Reason>) {
        if let Some(detail) = &mut self.detail {
            let (clock, started) = (&self.worker.telemetry.clock, self.started);
            detail.happened(|| SpanEvent { kind, after: clock.now().saturating_duration_since(started), address, reason });
        }
    }

    fn attempt(&mut self) {
        self.seen.attempts += 1;
        if let Some(detail) = &mut self.detail {
            detail.attempt_started = Some(self.worker.telemetry.clock.now());
            if self.seen.direction == Direction::Outbound {
                detail.tls = None;
            }
        }
    }

    /// The attempt's connection is there: how it is encrypted. Counts an opaque connection as opened. Only the outbound side's encryption
    /// counts: on the inbound side it is the caller's connection that the mesh secures.
    pub fn secured(&mut self, tls: Option<&TlsFacts>) {
        if self.seen.direction == Direction::Outbound {
            self.seen.mtls = tls.is_some();
            if let Some(detail) = &mut self.detail {
                detail.tls = tls.copied();
            }
        }
        if self.seen.family == MetricFamily::Tcp {
            self.open();
            self.called();
        }
    }

    /// The application was called, once: not when it is over, because streams and connections may last for days.
    fn called(&mut self) {
        let call = std::mem::replace(&mut self.seen.call, CALL_NONE);
        // What the application knows nothing of was tried, not used.
        let unknown = matches!(self.seen.code, 404 | 405) || self.seen.grpc == GRPC_UNIMPLEMENTED;
        if call != CALL_NONE && !unknown {
            self.worker.called(call);
        }
    }

    /// The attempt on that address failed and is made again.
    pub fn retried(&mut self, address: SocketAddr, reason: Reason) {
        self.worker.count(&self.seen, MetricFamily::Retry, Some(reason), |series| series.count.add(1));
        self.happened(EventKind::Retry, Some(address), Some(reason));
        if let Some(detail) = &mut self.detail
            && detail.retries.len() < RETRIES_LISTED_MAX
        {
            detail.retries.push((address, reason));
        }
    }

    /// What was done to it on purpose, and by which object. Before it fails, if it does.
    pub fn faulted(&mut self, what: fmt::Arguments<'_>, policy: &str) {
        if let Some(detail) = &mut self.detail {
            let by = if policy.is_empty() { "" } else { " by " };
            detail.more(Word::Fault, &format!("{what}{by}{policy}"));
        }
        self.happened(EventKind::Fault, None, None);
    }

    /// The limit that refuses it, `NAMESPACE/NAME/LIMIT`.
    pub fn limited(&mut self, limit: &str) {
        if let Some(detail) = &mut self.detail {
            detail.word(Word::Limit, limit);
        }
        self.happened(EventKind::Limited, None, None);
    }

    /// What authorization policies said of it. What denies it is told as its failure.
    pub fn judged(&mut self, judgement: &Judgement<'_>) {
        if let Some(ruling) = judgement.would_deny {
            self.ruled(Ruled::WouldDeny, ruling);
        }
        for ruling in &judgement.audited {
            self.ruled(Ruled::Audited, ruling);
        }
        if judgement.unanswered > 0 {
            self.worker.telemetry.readings.conditions_failed.fetch_add(u64::from(judgement.unanswered), Ordering::Relaxed);
        }
        match judgement.verdict {
            CallVerdict::Allowed => {}
            CallVerdict::Denied(ruling) => self.denied(Reason::Denied, Some(ruling)),
            CallVerdict::Unavailable => self.denied(Reason::PolicyUnavailable, None),
        }
    }

    /// Who called from outside the mesh, or why nobody is let on: once.
    pub fn identified(&mut self, found: &mut Found) {
        if !found.is_news() {
            return;
        }
        let ruling = found.ruling().cloned();
        let denied = found.denied();
        if let (Some(ruling), None) = (&ruling, denied) {
            self.ruled(Ruled::WouldDeny, ruling);
        }
        let method = found.identified().map(|who| who.method).or(found.shown());
        if self.seen.labels.has(MetricLabel::Consumer) {
            self.seen.consumer = found.identified().and_then(|who| who.consumer.clone());
        }
        if let (Some(detail), Some(who)) = (&mut self.detail, found.identified()) {
            if let Some(consumer) = &who.consumer {
                detail.word(Word::Consumer, &consumer.path);
            }
            detail.word(Word::AuthMethod, who.method.text());
            if !who.credential_name().is_empty() {
                detail.word(Word::Credential, who.credential_name());
            }
        }
        // What a policy forbids is counted as its word.
        self.worker.telemetry.readings.auth.count(method, denied.filter(|denied| *denied != Denied::Forbidden));
        match denied {
            None => {}
            Some(Denied::Forbidden) => self.denied(Reason::Denied, ruling.as_ref()),
            Some(denied) => {
                self.happened(EventKind::Denied, None, Some(denied.reason()));
                self.seen.reason = Some(denied.reason());
                self.seen.blame = Some(denied.reason().blame());
                if let Some(detail) = &mut self.detail {
                    detail.word(Word::Cause, denied.text());
                }
            }
        }
    }

    /// A policy denies it, or there is none that could allow it.
    #[cold]
    pub fn denied(&mut self, reason: Reason, ruling: Option<&Arc<Ruling>>) {
        self.seen.reason = Some(reason);
        self.seen.blame = Some(reason.blame());
        self.happened(EventKind::Denied, None, Some(reason));
        if let Some(ruling) = ruling {
            self.ruled(Ruled::Denied, ruling);
        }
        if let Some(detail) = &mut self.detail {
            let cause = match ruling {
                None if reason == Reason::Denied => "its port has become Strict, and it came in plaintext".to_owned(),
                None => "the policies of this workload were refused, and none were in force before".to_owned(),
                Some(ruling) if ruling.rule.is_empty() => format!("no rule of {} allows it", ruling.policy),
                Some(ruling) => format!("rule {} of {} denies it", ruling.rule, ruling.policy),
            };
            detail.word(Word::Cause, &cause);
        }
    }

    fn ruled(&mut self, ruled: Ruled, ruling: &Arc<Ruling>) {
        self.worker.ruled(&self.seen, ruled, ruling);
        if ruled == Ruled::WouldDeny {
            self.happened(EventKind::WouldDeny, None, None);
        }
        if let Some(detail) = &mut self.detail {
            let word = match ruled {
                Ruled::Denied => Word::Policy,
                Ruled::WouldDeny => Word::WouldDeny,
                Ruled::Audited => Word::Audited,
            };
            detail.more(word, &ruling.label);
        }
    }

    /// Says why something was not done that might have been.
    pub fn remarked(&mut self, why: &str) {
        if let Some(detail) = &mut self.detail {
            detail.more(Word::Cause, why);
        }
    }

    /// An endpoint was thrown out because of how this exchange ended.
    #[cold]
    pub fn ejected(&mut self, endpoint: &Endpoint, ejected: Ejected) {
        self.worker.ejected(endpoint, ejected);
    }

    /// It failed for good. The last failure told counts.
    pub fn failed(&mut self, failure: &Failure) {
        self.seen.reason = Some(failure.reason);
        self.seen.blame = Some(failure.blame);
        if let Some(detail) = &mut self.detail {
            detail.word(Word::Cause, &failure.cause);
        }
    }

    /// The mesh itself answers.
    pub fn replied(&mut self, reply: &LocalReply) {
        self.seen.code = reply.status.as_u16();
        if let Some(reason) = reply.reason {
            self.seen.reason = Some(reason);
            self.seen.blame.get_or_insert(reason.blame());
        }
    }

    /// The upstream's answer has come.
    pub fn response(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.seen.code = status.as_u16();
        if self.seen.wire == Wire::Grpc
            && let Some(status) = headers.get("grpc-status").and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok())
        {
            self.grpc_status(status);
        }
        // What the server's own proxy refused, it says by header; believed of a mesh peer only.
        if (status.is_client_error() || status.is_server_error())
            && self.seen.mtls
            && self.seen.direction == Direction::Outbound
            && let Some(code) = headers.get(REASON_HEADER)
        {
            self.seen.reason = code.to_str().ok().and_then(Reason::parse);
            self.seen.blame = self.seen.reason.map(Reason::blame);
        }
        self.called();
        if let Some(detail) = &mut self.detail
            && let Some(started) = detail.attempt_started
        {
            detail.upstream = Some(self.worker.telemetry.clock.now().saturating_duration_since(started));
        }
        if let Some(detail) = &mut self.detail
            && detail.logged
            && let Some(parts) = headers.get(PARTIAL_HEADER).and_then(|value| value.to_str().ok())
        {
            detail.word(Word::Partial, parts);
        }
    }

    /// The gRPC status, from trailers, headers or of the mesh's own making.
    pub fn grpc_status(&mut self, status: u32) {
        self.seen.grpc = if status > GRPC_STATUS_MAX { GRPC_UNKNOWN } else { u8::try_from(status).unwrap_or(GRPC_UNKNOWN) };
    }

    /// Whether this is a gRPC call.
    pub fn is_grpc(&self) -> bool {
        self.seen.wire == Wire::Grpc
    }

    /// Body bytes, or bytes of an opaque connection, that came from downstream.
    pub fn add_request_bytes(&mut self, more: u64) {
        self.seen.request_bytes += more;
        if let Some(series) = &self.live {
            series.request_bytes.add(more);
        }
    }

    /// The same towards downstream.
    pub fn add_response_bytes(&mut self, more: u64) {
        self.seen.response_bytes += more;
        if let Some(series) = &self.live {
            series.response_bytes.add(more);
        }
    }

    /// Counts an opaque connection as opened and lets its bytes be seen while it lives.
    fn open(&mut self) {
        let before = self.live.take();
        let (seen, worker) = (&self.seen, &self.worker);
        self.live = Some(worker.count(seen, MetricFamily::Tcp, None, |series| {
            series.opened.add(u64::from(before.is_none()));
            series.live.add(1);
            Arc::clone(series)
        }));
        if let Some(before) = before {
            before.live.less(1);
        }
    }

    fn close(&mut self) {
        if self.live.is_none() {
            if self.seen.attempts == 0 && self.seen.direction == Direction::Outbound {
                self.seen.mtls = self.seen.cluster.as_deref().is_some_and(leads_to_peers);
            }
            self.open();
            let Some(series) = &self.live else { return };
            series.request_bytes.add(self.seen.request_bytes);
            series.response_bytes.add(self.seen.response_bytes);
        }
        self.worker.count(&self.seen, MetricFamily::Tcp, self.seen.reason, |series| series.count.add(1));
        if let Some(series) = self.live.take() {
            series.live.less(1);
        }
    }
}

/// Who counts an exchange that went to this place of its rule.
fn version(rule: Option<&Rule>, place: u8) -> Option<&Arc<VersionCounts>> {
    match &rule?.action {
        Action::Forward(forward) => forward.counts_at(Some(usize::from(place))),
        Action::Reply(_) => None,
    }
}

/// Whether a version of a canary is to blame, as whoever asked has seen it: never the caller, nor a policy.
fn is_versions_failure(seen: &Outline) -> bool {
    let innocent = matches!(seen.blame, Some(Blame::Client | Blame::Policy));
    !innocent && (seen.code == CODE_NONE || seen.code >= 500 || is_server_error(seen.grpc))
}

/// Whether mesh peers are behind it: what could not be opened there would have been encrypted.
fn leads_to_peers(cluster: &Cluster) -> bool {
    let endpoints = cluster.endpoints.load();
    endpoints.ready.iter().chain(&endpoints.other).any(|endpoint| endpoint.identity.is_some())
}

impl Drop for Account {
    fn drop(&mut self) {
        let clock = &self.worker.telemetry.clock;
        let duration = clock.now().saturating_duration_since(self.started);
        let mut noted = self.detail.take().map(|detail| (detail, clock.wall()));
        if self.place != UnderWayPlace::NONE {
            self.worker.under_way.borrow_mut().leave(self.place);
        }
        if self.seen.family == MetricFamily::Tcp {
            self.close();
        } else {
            if self.seen.code == CODE_NONE && self.seen.reason.is_none() {
                self.seen.reason = Some(Reason::ClientGone);
                self.seen.blame = Some(Reason::ClientGone.blame());
            }
            if self.seen.wire != Wire::Grpc {
                self.seen.grpc = GRPC_NONE;
            }
            if self.counted_at != NOWHERE
                && let Some(counts) = version(self.seen.rule.as_deref(), self.counted_at)
            {
                // A tunnel's life is no latency.
                let lasted = (self.seen.code != StatusCode::SWITCHING_PROTOCOLS.as_u16()).then_some(duration);
                counts.count(is_versions_failure(&self.seen), lasted);
            }
            if let Some((detail, ended)) = &mut noted {
                self.worker.judge(&self.seen, detail, duration, *ended);
            }
            let exemplar = noted.as_ref().and_then(|(detail, ended)| Recorder::exemplar(detail, duration, *ended));
            let (request_bytes, response_bytes, sketched) = (self.seen.request_bytes, self.seen.response_bytes, self.seen.sketched);
            self.worker.count(&self.seen, MetricFamily::Http, self.seen.reason, |series| {
                series.count.add(1);
                series.request_bytes.add(request_bytes);
                series.response_bytes.add(response_bytes);
                let bucket = series.observe(duration);
                if sketched {
                    series.sketch(duration, clock);
                }
                // One that a scrape is reading is as good as this one.
                if exemplar.is_some()
                    && let Some(mut exemplars) = series.exemplars.try_lock()
                {
                    exemplars[bucket] = exemplar;
                }
            });
        }
        let telemetry = &self.worker.telemetry;
        let now = || telemetry.nanos_at(self.started + duration);
        if let Some(watched) = &self.watched {
            let (detail, ended) =
                noted.as_ref().map_or_else(|| (None, telemetry.clock.wall()), |(detail, ended)| (Some(&**detail), *ended));
            watched.ended(now(), &self.seen, detail, (duration, ended));
        }
        if let Some((detail, ended)) = noted {
            telemetry.kept.note(now, &self.seen, &detail, (duration, ended));
            self.worker.record(&self.seen, detail, duration, ended);
        }
    }
}
