//! Carrying out a decided request: the part of the road that outbound, inbound and gateway have in common.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use engine::decide::Plan;
use engine::failure::{Blame, Failure, LocalReply, Reason};
use engine::model::{Cluster, Forward, Protocol, Snapshot};
use http::header::CONNECTION;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, request};
use http_body::Frame;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Sleep, sleep};

use crate::attempt::{self, Aim};
use crate::body::{Body, Cut, Follower, Received};
use crate::chain;
use crate::http::{
    Hop, OfHop, Overdue, Tunnel, Upgrade, Upload, Wrong, clean_request, clean_response, declared_length, frame_for_http1, grpc_status,
    judge_answer, local_reply, pack, to_http1, to_http2, tunnel,
};
use crate::limits::CONTINUE_WAIT;
use crate::line::{Continued, Line};
use crate::observe::{Direction, Downstream, Exchange};
use crate::pool::{Lease, To};
use crate::shared::Shared;
use crate::tls::Carries;

/// A request that is being answered. Everything that needs no waiting is done before the future starts.
pub enum Answering {
    /// Answered already.
    Ready(Box<Response<Body>>),
    /// On its way to where it was decided to go.
    Forward(Box<Journey>),
    /// Configuration has to be fetched first.
    Later(Pin<Box<dyn Future<Output = Self>>>),
}

impl Answering {
    /// The answer. Never fails: a failure is an answer. Dropped before it is done, the exchange is recorded as the client's leaving.
    pub fn answer(self) -> impl Future<Output = Result<Response<Body>, Infallible>> {
        let mut answering = self;
        // Captured and used in place: an argument of an `async fn` would be held twice.
        async move {
            loop {
                match answering {
                    Self::Ready(response) => return Ok(*response),
                    Self::Forward(mut journey) => {
                        let sent = journey.go().await;
                        return Ok(journey.end(sent));
                    }
                    Self::Later(later) => answering = later.await,
                }
            }
        }
    }
}

/// A decided request and all it needs on its way there and back. Boxed once, because hyper moves what answers a request from hand to hand:
/// first it is sent, then it follows the answer to its end, where the connection goes back and the exchange is recorded.
pub struct Journey {
    shared: Rc<Shared>,
    request: Option<Request<Body>>,
    /// Why it goes nowhere.
    refused: Option<Reason>,
    exchange: Option<Exchange>,
    lease: Option<Lease>,
    /// The downstream's.
    line: Option<Arc<Line>>,
    overdue: Overdue,
    upgraded: Option<OnUpgrade>,
    cluster: Arc<Cluster>,
    forward: Arc<Forward>,
    backend: usize,
    only: Option<To>,
    carries: Carries,
    version: Version,
    connect: bool,
    /// The downstream is a mesh peer.
    peer: bool,
    /// The answer's body goes on in chunks.
    chunked: bool,
    over: bool,
}

impl Journey {
    /// Makes a request that was judged ready to be sent as decided: to `only` where the decision leaves no choice, else to the cluster's
    /// endpoints. `destination` stands in for a host that the request does not name; `speaks` is what the application speaks.
    pub fn begin(
        shared: &Rc<Shared>,
        (mut parts, received, there, at): (request::Parts, Received, OfHop, Hop),
        plan: &Plan<'_>,
        (only, destination, speaks): (Option<To>, SocketAddr, Protocol),
        exchange: Exchange,
    ) -> Box<Self> {
        let (version, connect) = (parts.version, parts.method == Method::CONNECT);
        let upgrade = clean_request(&mut parts, there);
        let carries = carries(speaks, version, upgrade);
        chain::forth(plan, &mut parts.headers);
        match carries {
            Carries::H2 => to_http2(&mut parts, destination),
            Carries::H1 | Carries::Tcp => {
                to_http1(&mut parts, destination);
                if version == Version::HTTP_2 {
                    frame_for_http1(&mut parts, received.is_end_stream(), received.size_hint().exact());
                }
            }
        }
        let overdue = Overdue::new(&shared.patience, plan.forward.idle_timeout, plan.forward.request_timeout);
        let refused = received.refused();
        let line = received.line().cloned();
        // HTTP/1.0 knows neither interim answers nor what asks for them.
        let holds_back = there.expect && version != Version::HTTP_10;
        let mut request = Request::from_parts(parts, body(received, &overdue, line.as_ref().filter(|_| holds_back)));
        // Over HTTP/2 CONNECT is an exchange like others, whose bodies do not end by themselves.
        let upgraded = (upgrade == Upgrade::Asked && version != Version::HTTP_2).then(|| hyper::upgrade::on(&mut request));
        // Written in its place: built first and boxed then, it would be copied.
        let place = Box::new_uninit();
        Box::write(
            place,
            Self {
                shared: Rc::clone(shared),
                request: Some(request),
                refused,
                exchange: Some(exchange),
                lease: None,
                line,
                overdue,
                upgraded,
                cluster: Arc::clone(plan.cluster),
                forward: Arc::clone(plan.forward),
                backend: plan.place,
                only,
                carries,
                version,
                connect,
                peer: at == Hop::Inner,
                chunked: false,
                over: false,
            },
        )
    }

    async fn go(&mut self) -> Result<Response<Received>, Failure> {
        let Self { shared, request, refused, exchange: Some(exchange), lease, line, overdue, cluster, only, carries, version, .. } = self
        else {
            return Err(Failure::new(Reason::UpstreamReset, "the exchange is over"));
        };
        if let Some(reason) = refused {
            let cause = match reason {
                Reason::TooLarge => "the head is larger than a head may be",
                _ => "this worker takes in as many bodies as it may already",
            };
            return Err(Failure::new(*reason, cause));
        }
        let aim = Aim { cluster: Some(cluster), only: only.as_ref() };
        let downstream = line.as_ref().filter(|_| *version != Version::HTTP_10);
        let mut sending = pin!(attempt::send(shared, request, aim, *carries, (exchange, downstream), lease));
        poll_fn(|cx| match sending.as_mut().poll(cx) {
            Poll::Ready(sent) => Poll::Ready(sent),
            Poll::Pending => overdue.poll(cx).map(|reason| Err(too_late(reason))),
        })
        .await
    }

    /// Makes the answer of what came of it.
    fn end(mut self: Box<Self>, sent: Result<Response<Received>, Failure>) -> Response<Body> {
        let mut response = match sent {
            Ok(response) => response,
            Err(failure) => return self.fail(&failure),
        };
        self.overdue.wait.touch();
        let switching = switches(self.upgraded.is_some(), self.connect, response.status());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS && !switching {
            return self.fail(&Failure::new(Reason::UpstreamProtocol, "the server switched protocols, which nobody had asked for"));
        }
        let mesh_peer = self.lease.as_ref().is_some_and(|lease| lease.tls().is_some());
        let there = match judge_answer(response.headers_mut(), if mesh_peer { Hop::Inner } else { Hop::First }) {
            Ok(there) => there,
            Err(failure) => return self.fail(&failure),
        };
        clean_response(response.headers_mut(), there, switching, self.version, mesh_peer);
        if let Some(exchange) = &mut self.exchange {
            exchange.response(response.status(), response.headers());
        }
        if let Some(backend) = self.forward.backends.get(self.backend) {
            chain::back(backend, &self.forward, response.headers_mut());
        }
        *response.version_mut() = Version::HTTP_11;
        if self.peer && self.version != Version::HTTP_2 {
            pack(response.headers_mut());
        }
        if self.shared.draining() && self.version != Version::HTTP_2 && !switching {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if switching {
            self.become_tunnel(hyper::upgrade::on(&mut response));
            return response.map(|_| Body::Empty);
        }
        if response.status() == StatusCode::NOT_MODIFIED
            && self.version != Version::HTTP_2
            && let Some(length) = declared_length(response.headers())
        {
            return response.map(|received| self.claim(received, length));
        }
        response.map(|received| {
            // With a length there is no place for trailers.
            self.chunked = self.version == Version::HTTP_11 && received.size_hint().exact().is_none();
            Body::followed(received, self)
        })
    }

    /// No body, but the length of one: hyper would leave it out.
    fn claim(self: Box<Self>, received: Received, length: u64) -> Body {
        Body::followed(received, self);
        Body::Claimed(length)
    }

    fn fail(mut self: Box<Self>, failure: &Failure) -> Response<Body> {
        let Some(mut exchange) = self.exchange.take() else { return Response::default() };
        exchange.add_request_bytes(self.overdue.wait.uploaded());
        failed(&self.shared, failure, self.version, exchange)
    }

    /// From here on it is bytes both ways.
    fn become_tunnel(&mut self, upstream: OnUpgrade) {
        let (Some(downstream), Some(exchange)) = (self.upgraded.take(), self.exchange.take()) else { return };
        let upstreams = self.lease.as_ref().and_then(Lease::line);
        self.line.iter().chain(upstreams).for_each(|line| line.becomes_tunnel());
        // The HTTP/1 connection is over as such and goes on as the tunnel.
        let guest = self.shared.guests.of(exchange.direction()).enter();
        let both = Tunnel { downstream, upstream, exchange, idle: self.forward.idle_timeout };
        let (patience, buffers) = (Rc::clone(&self.shared.patience), Rc::clone(&self.shared.buffers));
        tokio::task::spawn_local(tunnel(both, (self.lease.take(), guest), patience, buffers));
    }
}

impl Follower for Journey {
    fn frame(&mut self, frame: &Frame<Bytes>) {
        self.overdue.wait.touch();
        let Some(exchange) = &mut self.exchange else { return };
        if let Some(data) = frame.data_ref() {
            exchange.add_response_bytes(data.len() as u64);
        } else if let Some(status) = frame.trailers_ref().and_then(|trailers| trailers.get("grpc-status"))
            && let Some(status) = status.to_str().ok().and_then(|text| text.parse().ok())
        {
            exchange.grpc_status(status);
        }
    }

    fn ended(&mut self, outcome: Result<(), &Cut>) {
        self.over = true;
        match (outcome, &mut self.lease, &mut self.exchange) {
            (Ok(()), Some(lease), _) => lease.give_back(),
            (Err(cut), _, Some(exchange)) => exchange.failed(&cut_off(cut)),
            _ => {}
        }
    }

    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        self.overdue.poll(cx)
    }

    fn trailers(&mut self, trailers: HeaderMap) -> Option<HeaderMap> {
        match &self.line {
            Some(line) if self.chunked => {
                line.trail(&trailers);
                None
            }
            _ => Some(trailers),
        }
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
        let Some(exchange) = &mut self.exchange else { return };
        exchange.add_request_bytes(self.overdue.wait.uploaded());
        if !self.over {
            exchange.failed(&Failure::new(Reason::ClientGone, "the client went away before the answer was complete"));
        }
    }
}

/// Answers with the mesh's own words.
pub fn reply(shared: &Shared, reply: &LocalReply, version: Version, mut exchange: Exchange) -> Response<Body> {
    let grpc = exchange.is_grpc();
    exchange.replied(reply);
    if grpc {
        exchange.grpc_status(u32::from(grpc_status(reply)));
    }
    let mut response = local_reply(reply, grpc);
    if shared.draining() && version != Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Answers a failure.
#[cold]
pub fn failed(shared: &Shared, failure: &Failure, version: Version, mut exchange: Exchange) -> Response<Body> {
    tracing::debug!(%failure, "a request failed");
    exchange.failed(failure);
    let mut answer = LocalReply::of(failure.reason);
    if failure.reason == Reason::TooLarge && failure.blame != Blame::Client {
        // An answer's head, which is not the caller's doing.
        answer.status = StatusCode::BAD_GATEWAY;
    }
    reply(shared, &answer, version, exchange)
}

/// Answers a request whose head is wrong.
#[cold]
pub fn refused(shared: &Shared, wrong: Wrong, version: Version, mut exchange: Exchange) -> Response<Body> {
    tracing::debug!(status = %wrong.status, why = wrong.why, "a request was refused");
    exchange.failed(&wrong.failure());
    reply(shared, &wrong.reply(), version, exchange)
}

/// Records that a client's bytes were no HTTP, which hyper has answered with `status` by itself.
#[cold]
pub fn malformed(shared: &Shared, direction: Direction, snapshot: &Arc<Snapshot>, downstream: &Downstream, status: StatusCode) {
    let mut parts = Request::new(()).into_parts().0;
    let mut exchange = shared.observer.begin_http(direction, snapshot, &mut parts, downstream);
    let too_large = matches!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE | StatusCode::URI_TOO_LONG);
    exchange.replied(&LocalReply { status, ..LocalReply::of(if too_large { Reason::TooLarge } else { Reason::BadRequest }) });
}

/// HTTP/1.1 stays HTTP/1.1 and HTTP/2 stays HTTP/2, unless the application is known to speak one only. What upgrades is HTTP/1.1.
const fn carries(protocol: Protocol, version: Version, upgrade: Upgrade) -> Carries {
    match (protocol, version, upgrade) {
        (_, Version::HTTP_2, Upgrade::Asked) => Carries::H2,
        (_, _, Upgrade::Asked) | (Protocol::Http1, ..) => Carries::H1,
        (Protocol::Http2, ..) | (_, Version::HTTP_2, _) => Carries::H2,
        _ => Carries::H1,
    }
}

const fn switches(asked: bool, connect: bool, status: StatusCode) -> bool {
    asked && (matches!(status, StatusCode::SWITCHING_PROTOCOLS) || (connect && status.as_u16() / 100 == 2))
}

/// The request's body; where there is one, its bytes are counted and keep the exchange from being taken for idle. The client holds it back
/// until `held` brings the upstream's word.
fn body(received: Received, overdue: &Overdue, held: Option<&Arc<Line>>) -> Body {
    if received.is_end_stream() {
        return Body::Empty;
    }
    // With a length there is no place for trailers.
    let chunked = received.size_hint().exact().is_none();
    let mut uploading = Box::new(Uploading { upload: overdue.wait.upload(), chunked, upstream: None, held: None });
    let Some(line) = held else { return Body::followed(received, uploading) };
    line.expects();
    uploading.held = Some(Box::new(Held { line: Arc::clone(line), patience: Box::pin(sleep(CONTINUE_WAIT)) }));
    Body::gated(received, uploading)
}

/// Follows a request's body.
struct Uploading {
    upload: Upload,
    chunked: bool,
    upstream: Option<Arc<Line>>,
    held: Option<Box<Held>>,
}

/// A body that the client holds back (RFC 9110, section 10.1.1).
struct Held {
    line: Arc<Line>,
    /// An application that knows nothing of expectations gets its body all the same.
    patience: Pin<Box<Sleep>>,
}

#[cold]
fn too_late(reason: Reason) -> Failure {
    Failure::new(
        reason,
        match reason {
            Reason::RequestTimeout => "the whole request took longer than its timeout",
            _ => "nothing was sent by either side for too long",
        },
    )
}

impl Follower for Uploading {
    fn frame(&mut self, frame: &Frame<Bytes>) {
        self.upload.moved(frame.data_ref().map_or(0, Bytes::len));
    }

    fn ended(&mut self, _: Result<(), &Cut>) {}

    fn poll_overdue(&mut self, _: &mut Context<'_>) -> Poll<Reason> {
        // The answer's side watches for both.
        Poll::Pending
    }

    fn poll_gate(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Some(held) = &mut self.held else { return Poll::Ready(true) };
        match held.line.poll_continued(cx) {
            Poll::Ready(Continued::Wanted) => {}
            Poll::Ready(Continued::Unwanted) => return Poll::Ready(false),
            Poll::Ready(Continued::Answered) => return Poll::Pending,
            Poll::Pending => {
                ready!(held.patience.as_mut().poll(cx));
                held.line.continues();
            }
        }
        self.held = None;
        Poll::Ready(true)
    }

    fn trailers(&mut self, trailers: HeaderMap) -> Option<HeaderMap> {
        match &self.upstream {
            Some(line) if self.chunked => {
                line.trail(&trailers);
                None
            }
            _ => Some(trailers),
        }
    }

    fn goes_over(&mut self, line: &Arc<Line>) {
        self.upstream = Some(Arc::clone(line));
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
