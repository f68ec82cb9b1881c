//! Carrying out a decided request.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use engine::client::Admitted;
use engine::failure::{Blame, Failure, LocalReply, REASON_HEADER, Reason};
use engine::filter::Answered;
use engine::filter::guard::{Counted, Found};
use engine::limit::Now;
use engine::model::{ClientTimeouts, Cluster, Forward, Policy, Protocol};
use engine::versions::has_streams;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, request};
use http_body::Frame;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Sleep, sleep};

use crate::ground::body::{Body, Cut, Follower, Received};
use crate::ground::line::Line;
use crate::ground::patience::{Overdue, Spoilt};
use crate::http::{
    Hop, Patient, Tunnel, Upgrade, WebForm, clean_response, declared_length, frame_for_http1, grpc_status, grpc_trailers, judge_answer,
    names_http, pack, to_http1, to_http2, tunnel,
};
use crate::observe::Account;
use crate::pool::{Lease, To};
use crate::road::attempt::Tries;
use crate::road::call::{Call, Terms};
use crate::road::mirror::mirror;
use crate::road::reply::{close_after, failed, failed_as, too_late};
use crate::road::session::Sticky;
use crate::road::shared::Shared;
use crate::road::standing::Stand;
use crate::road::upload::{UploadBounds, upload};
use crate::tls::{Carries, Peer, bound};

/// What is known of a request's way beside the decision.
pub struct Leg {
    /// The one place it can go to.
    pub only: Option<To>,
    /// Stands in for a host that the request does not name.
    pub destination: SocketAddr,
    /// What the application speaks.
    pub speaks: Protocol,
    /// The client holds its body back until it is asked for.
    pub expects: bool,
    /// Whether its connection is to become something else.
    pub upgrade: Upgrade,
    /// The downstream's.
    pub version: Version,
    /// Who sent it.
    pub at: Hop,
    /// The same by name, where it was proved and its connection may become something else.
    pub caller: Option<Arc<Peer>>,
    /// What its answer needs to know of it.
    pub answered: Answered,
    /// How long its caller waits, from its coming on.
    pub patient: Patient,
    /// How long it has waited since: for configuration, or on purpose.
    pub waited: Duration,
    /// For clusters balanced by hash.
    pub hash: Option<u64>,
    /// Its client's session.
    pub sticky: Option<Box<Sticky>>,
    /// Its place among what is asked again where policies change, if it may become a tunnel.
    pub stand: Option<Box<Stand>>,
    /// Who calls from outside, as guards have found out.
    pub found: Found,
    /// What limits have to say on its answer, and its places among requests under way.
    pub counted: Counted,
    /// The chance of this request.
    pub draw: u64,
    /// Who asks.
    pub client: IpAddr,
    /// How long a client from outside may take.
    pub timeouts: Option<ClientTimeouts>,
    /// How a browser that calls gRPC reads its answer.
    pub web: Option<WebForm>,
    /// Its place among the clients of an edge, which a tunnel keeps.
    pub place: Option<Arc<Admitted>>,
}

impl Leg {
    /// Time that is left; `None`: there is no bound.
    pub fn left(&self, policy: &Policy) -> Option<Duration> {
        let whole = policy.request_timeout.into_iter().chain(self.patient.left).min()?;
        Some(whole.saturating_sub(self.waited))
    }
}

/// A downstream that has asked to become something else.
struct Upgrading {
    stream: OnUpgrade,
    caller: Option<Arc<Peer>>,
    place: Option<Arc<Admitted>>,
}

/// An answer's bytes that have come and have a pace.
#[derive(Default)]
struct Portions {
    rest: Bytes,
    /// Goes on next.
    next: Bytes,
    /// Until when it waits.
    wait: Option<Pin<Box<Sleep>>>,
}

/// A decided request and all it needs on its way there and back. Boxed once, because hyper moves what answers a request from hand to hand:
/// first it is sent, then it follows the answer to its end, where the connection goes back and the exchange is recorded.
pub struct Journey {
    shared: Rc<Shared>,
    call: Call,
    /// Why it goes nowhere.
    refused: Option<Reason>,
    account: Option<Account>,
    /// The downstream's.
    line: Option<Arc<Line>>,
    overdue: Overdue,
    upgraded: Option<Box<Upgrading>>,
    /// Of its rule's backends; a word would be as much again.
    place: Option<u32>,
    answered: Answered,
    rare: Option<Box<Rare>>,
    counted: Counted,
    web: Option<WebForm>,
    version: Version,
    connect: bool,
    /// The downstream is a mesh peer.
    peer: bool,
    /// The answer's body goes on in chunks.
    chunked: bool,
    over: bool,
}

/// What few journeys have.
#[derive(Default)]
struct Rare {
    sticky: Option<Box<Sticky>>,
    stand: Option<Box<Stand>>,
    /// What of the answer waits for its time.
    portions: Portions,
}

impl Journey {
    /// Makes a request that was judged and decided ready to be sent: where the decision leaves no choice to that one place, else to the
    /// cluster's endpoints.
    #[inline]
    #[allow(clippy::too_many_lines, reason = "one thing after the other, and written in its place")]
    pub fn begin(
        shared: &Rc<Shared>,
        (mut parts, received): (request::Parts, Received),
        (forward, place, cluster): (&Arc<Forward>, Option<usize>, &Arc<Cluster>),
        leg: Leg,
        mut account: Account,
    ) -> Box<Self> {
        let policy = &forward.policy;
        if forward.counts_at(place).is_some() {
            account.counted_at(place);
        }
        let whole = leg.left(policy);
        let Leg {
            only,
            destination,
            speaks,
            expects,
            upgrade,
            version,
            at,
            caller,
            answered,
            patient,
            hash,
            sticky,
            stand,
            counted,
            draw,
            timeouts,
            web,
            place: admitted,
            ..
        } = leg;
        let connect = parts.method == Method::CONNECT;
        let class = policy.priority.as_ref().map_or(0, |priority| priority.class(&parts.headers));
        let carries = carries(speaks, version, upgrade);
        match carries {
            Carries::H2 => to_http2(&mut parts, destination),
            Carries::H1 | Carries::Tcp => {
                to_http1(&mut parts, destination);
                if has_streams(version) {
                    frame_for_http1(&mut parts, received.is_end_stream(), received.size_hint().exact());
                }
            }
        }
        let until = whole.map(|whole| tokio::time::Instant::now() + whole);
        let overdue = Overdue::new(&shared.patience, policy.idle_timeout, whole);
        let over = whole.is_some_and(|left| left.is_zero()).then_some(Reason::RequestTimeout);
        let long = policy.body_bytes_max > 0 && received.size_hint().lower() > policy.body_bytes_max;
        let refused = received.refused().or(over);
        let line = received.line().cloned();
        // HTTP/1.0 knows neither interim answers nor what asks for them.
        let holds_back = expects && version != Version::HTTP_10;
        let ends = account.is_grpc() && has_streams(version);
        // Over HTTP/2 CONNECT is an exchange like others, whose bodies do not end by themselves.
        let upgrades = upgrade == Upgrade::Asked;
        // Whoever speaks in messages says the next one when it is time, and a tunnel has a life of its own: neither is slow.
        let pace = timeouts.filter(|_| !(upgrades || (ends && matches!(carries, Carries::H2))));
        let bounds = UploadBounds::of(policy.body_bytes_max, pace);
        let held = line.as_ref().filter(|_| holds_back);
        let mut request = Request::from_parts(parts, upload(received, (&overdue, bounds), held, (&account, ends)));
        if let Some(web) = web {
            request = request.map(|body| web.request(body));
        }
        if long {
            overdue.wait.upload().spoil(Spoilt::TooLong);
        }
        let upgraded = (upgrades && !has_streams(version))
            .then(|| Box::new(Upgrading { stream: hyper::upgrade::on(&mut request), caller, place: admitted }));
        if !forward.is_bare() && forward.is_mirrored(place) && refused.is_none() && !upgrades {
            mirror(shared, (forward, place, draw), &mut request, carries);
        }
        let session = sticky.as_ref().and_then(|sticky| sticky.endpoint.clone());
        let terms = Terms {
            cluster: Arc::clone(cluster),
            forward: Arc::clone(forward),
            carries,
            tries: Tries::new(only, hash, session),
            upgrades,
            grpc: account.is_grpc(),
            patient,
            until,
            class,
        };
        let call = Call::new(request, terms, shared);
        let rare = (sticky.is_some() || stand.is_some()).then(|| Box::new(Rare { sticky, stand, ..Rare::default() }));
        // Written in its place: built first and boxed then, it would be copied.
        let room = Box::new_uninit();
        Box::write(
            room,
            Self {
                shared: Rc::clone(shared),
                call,
                refused,
                account: Some(account),
                line,
                overdue,
                upgraded,
                place: place.and_then(|place| u32::try_from(place).ok()),
                answered,
                rare,
                counted,
                web,
                version,
                connect,
                peer: at == Hop::Inner,
                chunked: false,
                over: false,
            },
        )
    }

    /// Sends it, as often as its route and its luck ask for, and waits for the head of the answer.
    pub async fn go(&mut self) -> Result<(), Failure> {
        if let Some(reason) = self.refused {
            return Err(not_sent(reason));
        }
        if let Some(spoilt) = self.overdue.wait.spoilt() {
            return Err(cut_short(spoilt).0);
        }
        let Some(account) = &mut self.account else {
            return Err(Failure::new(Reason::UpstreamReset, "the exchange is over"));
        };
        let downstream = self.line.as_ref().filter(|_| self.version != Version::HTTP_10);
        self.call.make(&self.shared, (account, &mut self.overdue), downstream).await
    }

    /// Makes the answer of what came of it.
    pub fn end(mut self: Box<Self>, sent: Result<(), Failure>) -> Response<Body> {
        if let Err(failure) = sent {
            return self.fail(&failure);
        }
        let Some(mut response) = self.call.take_response() else {
            return self.fail(&Failure::new(Reason::UpstreamReset, "there is no answer"));
        };
        self.overdue.wait.touch();
        if let Some(rest) = self.call.forward().policy.stream_timeout {
            self.overdue.bound(rest);
        }
        let switching = switches(self.upgraded.is_some(), self.connect, response.status());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS && (!switching || names_http(response.headers())) {
            return self.fail(&Failure::new(Reason::UpstreamProtocol, "the server switched protocols, to one which nobody had asked for"));
        }
        let mesh_peer = self.call.lease().is_some_and(Lease::is_hop);
        let there = match judge_answer(response.headers_mut(), if mesh_peer { Hop::Inner } else { Hop::First }) {
            Ok(there) => there,
            Err(failure) => return self.fail(&failure),
        };
        clean_response(response.headers_mut(), there, switching, self.version, mesh_peer);
        let mut draining = false;
        if let Some(account) = &mut self.account {
            account.response(response.status(), response.headers());
            draining = self.shared.draining(account.direction());
            account.tell_strictly(response.headers_mut(), self.version);
        }
        if !self.call.forward().is_bare() {
            self.call.forward().back(self.place(), &self.answered, response.headers_mut());
            if self.counted.is_open() {
                let now = Now { moment: self.shared.moment(self.shared.clock.now()), wall_secs: self.shared.wall_secs().into() };
                self.counted.settle(response.headers(), now);
            }
            self.counted.tell(response.headers_mut());
        }
        let sticky = self.rare.as_ref().and_then(|rare| rare.sticky.as_ref());
        if let (Some(sticky), Some(session), Some(endpoint)) = (sticky, &self.call.forward().policy.session, self.call.endpoint()) {
            sticky.tell(session, (self.call.cluster(), endpoint), self.shared.wall_secs(), &mut response);
        }
        *response.version_mut() = Version::HTTP_11;
        if self.peer && !has_streams(self.version) {
            pack(response.headers_mut());
        }
        if draining && !has_streams(self.version) && !switching {
            close_after(&mut response);
        }
        if switching {
            self.become_tunnel(hyper::upgrade::on(&mut response));
            return response.map(|_| Body::Empty);
        }
        if response.status() == StatusCode::NOT_MODIFIED
            && !has_streams(self.version)
            && let Some(length) = declared_length(response.headers())
        {
            return response.map(|received| self.claim(received, length));
        }
        if !(self.connect && response.status().is_success()) {
            // What is no tunnel is finished as it was begun.
            if let Some(rare) = &mut self.rare {
                rare.stand = None;
            }
        }
        let web = self.web;
        let response = response.map(|received| {
            // With a length there is no place for trailers; a browser reads them in the body.
            self.chunked = self.version == Version::HTTP_11 && web.is_none() && received.size_hint().exact().is_none();
            Body::followed(received, self)
        });
        match web {
            Some(web) => web.answer(response),
            None => response,
        }
    }

    fn place(&self) -> Option<usize> {
        self.place.map(|place| place as usize)
    }

    /// No body, but the length of one: hyper would leave it out.
    fn claim(self: Box<Self>, received: Received, length: u64) -> Body {
        Body::followed(received, self);
        Body::Claimed(length)
    }

    fn fail(mut self: Box<Self>, failure: &Failure) -> Response<Body> {
        let Some(mut account) = self.account.take() else { return Response::default() };
        account.add_request_bytes(self.overdue.wait.uploaded());
        let mut response = match self.overdue.wait.spoilt().map(cut_short) {
            Some((failure, status)) => failed_as(&self.shared, (&failure, status), self.version, account),
            None => failed(&self.shared, failure, self.version, account),
        };
        self.call.forward().show(self.place(), &self.answered, response.headers_mut());
        self.counted.tell(response.headers_mut());
        response
    }

    /// From here on it is bytes both ways.
    fn become_tunnel(&mut self, upstream: OnUpgrade) {
        let (Some(downstream), Some(account)) = (self.upgraded.take(), self.account.take()) else { return };
        let upstreams = self.call.lease().and_then(Lease::line);
        self.line.iter().chain(upstreams).for_each(|line| line.becomes_tunnel());
        // The HTTP/1 connection is over as such and goes on as the tunnel.
        let guest = self.shared.guests.of(account.direction()).enter();
        let policy = &self.call.forward().policy;
        let Upgrading { stream: downstream, caller, place } = *downstream;
        let bonds = &self.shared.bonds;
        let answering = self.call.lease().and_then(Lease::peer);
        let bonds = [caller.as_ref(), answering].map(|peer| peer.map(|peer| bonds.join(peer)));
        let mut stand = self.rare.as_mut().and_then(|rare| rare.stand.take());
        let counted = std::mem::take(&mut self.counted);
        let denied = move |account: &mut Account, cx: &mut Context<'_>| match &mut stand {
            None => Poll::Pending,
            Some(stand) => stand.poll_denied(cx).map(|denial| account.denied(denial.reason, denial.ruling.as_ref())),
        };
        let both = Tunnel { downstream, upstream, account, idle: policy.idle_timeout, longest: policy.stream_timeout, denied };
        let (patience, buffers) = (Rc::clone(&self.shared.patience), Rc::clone(&self.shared.buffers));
        let carrying = bound(bonds, tunnel(both, (self.call.take_held(), guest), patience, buffers));
        tokio::task::spawn_local(async move {
            // A tunnel is a request under way.
            let _under_way = (counted, place);
            if let Err(broken) = carrying.await {
                tracing::debug!(%broken, "a tunnel was cut");
            }
        });
    }
}

impl Follower for Journey {
    fn frame(&mut self, frame: &Frame<Bytes>) {
        self.overdue.wait.touch();
        let Some(account) = &mut self.account else { return };
        if let Some(data) = frame.data_ref() {
            account.add_response_bytes(data.len() as u64);
        } else if let Some(status) = frame.trailers_ref().and_then(|trailers| trailers.get("grpc-status"))
            && let Some(status) = status.to_str().ok().and_then(|text| text.parse().ok())
        {
            account.grpc_status(status);
        }
    }

    fn ended(&mut self, outcome: Result<(), &Cut>) {
        self.over = true;
        match (outcome, self.call.lease_mut(), &mut self.account) {
            (Ok(()), Some(lease), _) => lease.give_back(),
            // Told as it was found.
            (Err(Cut::Overdue(Reason::Denied)), ..) => {}
            (Err(cut), _, Some(account)) => account.failed(&cut_off(cut)),
            _ => {}
        }
    }

    fn is_paced(&self) -> bool {
        self.counted.is_paced()
    }

    fn keep(&mut self, data: Bytes) {
        self.rare.get_or_insert_default().portions.rest = data;
    }

    fn kept_bytes(&self) -> usize {
        self.rare.as_ref().map_or(0, |rare| rare.portions.next.len() + rare.portions.rest.len())
    }

    fn poll_portion(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let Some(Rare { portions, .. }) = self.rare.as_deref_mut() else { return Poll::Ready(Bytes::new()) };
        if portions.next.is_empty() {
            let (bytes, wait) = self.counted.portion(portions.rest.len(), self.shared.moment(self.shared.clock.now()));
            portions.next = portions.rest.split_to(bytes);
            portions.wait = (!wait.is_zero()).then(|| Box::pin(sleep(wait)));
        }
        if let Some(wait) = &mut portions.wait {
            ready!(wait.as_mut().poll(cx));
            portions.wait = None;
            // To wait on purpose is no silence.
            self.overdue.wait.touch();
        }
        Poll::Ready(std::mem::take(&mut portions.next))
    }

    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        // A tunnel over HTTP/2, which goes on as an exchange.
        if let Some(stand) = self.rare.as_mut().and_then(|rare| rare.stand.as_mut())
            && let Poll::Ready(denial) = stand.poll_denied(cx)
        {
            if let Some(account) = &mut self.account {
                account.denied(denial.reason, denial.ruling.as_ref());
            }
            return Poll::Ready(denial.reason);
        }
        self.overdue.poll(cx)
    }

    fn trailers(&mut self, mut trailers: HeaderMap) -> Option<HeaderMap> {
        // The mesh says it in heads only: here it is an application's word.
        trailers.remove(REASON_HEADER);
        match &self.line {
            Some(line) if self.chunked => {
                line.trail(&trailers);
                None
            }
            _ => Some(trailers),
        }
    }

    /// A caller of gRPC looks for the code there; a stream that is cut tells it only that something broke, unless its own clock says more.
    fn farewell(&mut self, reason: Reason) -> Option<HeaderMap> {
        let account = self.account.as_mut().filter(|account| account.is_grpc() && has_streams(self.version))?;
        let reply = LocalReply::of(reason);
        account.grpc_status(u32::from(grpc_status(&reply)));
        // Its stream ends with the trailers, which a client may still send on otherwise.
        self.overdue.wait.stop_upload();
        Some(grpc_trailers(&reply))
    }
}

impl Drop for Journey {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            line.ended();
            if line.holds_back() {
                line.left();
            }
        }
        let Some(account) = &mut self.account else { return };
        account.add_request_bytes(self.overdue.wait.uploaded());
        if !self.over {
            account.failed(&Failure::new(Reason::ClientGone, "the client went away before the answer was complete"));
        }
    }
}

/// HTTP/1.1 stays HTTP/1.1 and HTTP/2 stays HTTP/2, which HTTP/3 becomes, unless the application is known to speak one only. What upgrades is HTTP/1.1.
const fn carries(protocol: Protocol, version: Version, upgrade: Upgrade) -> Carries {
    match (protocol, version, upgrade) {
        (_, Version::HTTP_2 | Version::HTTP_3, Upgrade::Asked) => Carries::H2,
        (_, _, Upgrade::Asked) | (Protocol::Http1, ..) => Carries::H1,
        (Protocol::Http2, ..) | (_, Version::HTTP_2 | Version::HTTP_3, _) => Carries::H2,
        _ => Carries::H1,
    }
}

const fn switches(asked: bool, connect: bool, status: StatusCode) -> bool {
    asked && (matches!(status, StatusCode::SWITCHING_PROTOCOLS) || (connect && status.as_u16() / 100 == 2))
}

#[cold]
fn not_sent(reason: Reason) -> Failure {
    let cause = match reason {
        Reason::TooLarge => "the head is larger than a head may be",
        Reason::RequestTimeout => "its time was over before it could be sent: its caller's, or its route's",
        _ => "this worker takes in as many bodies as it may already",
    };
    Failure::new(reason, cause)
}

/// What a request fails of whose upload this proxy has cut, and the status that says so.
#[cold]
fn cut_short(spoilt: Spoilt) -> (Failure, StatusCode) {
    match spoilt {
        Spoilt::TooLong => (Failure::new(Reason::TooLarge, "the request's body is longer than it may be"), StatusCode::PAYLOAD_TOO_LARGE),
        Spoilt::TooSlow => {
            let failure = Failure::new(Reason::RequestTimeout, "the request's body comes too slowly");
            (Failure { blame: Blame::Client, ..failure }, StatusCode::REQUEST_TIMEOUT)
        }
    }
}

#[cold]
fn cut_off(cut: &Cut) -> Failure {
    match cut {
        Cut::Sender(error) => {
            let reason = crate::pool::reason(error);
            Failure::upstream(reason, format!("the answer broke off: {}", crate::pool::told(error)))
        }
        Cut::Stream(error) => {
            let reason = crate::pool::stream_reason(error);
            Failure::upstream(reason, format!("the answer broke off: {}", crate::pool::told(error)))
        }
        Cut::Overdue(reason) => too_late(*reason),
        Cut::Unwanted => Failure::new(Reason::ClientGone, cut.to_string()),
    }
}
