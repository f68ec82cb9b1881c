//! Carrying out a decided request: the part of the road that outbound, inbound and gateway have in common.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use engine::decide::Plan;
use engine::failure::{Failure, LocalReply, Reason};
use engine::model::{Cluster, Forward, Protocol, Snapshot};
use http::header::CONNECTION;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, request};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use crate::attempt::{self, Aim};
use crate::body::{Body, Cut, Follower};
use crate::chain;
use crate::http::{
    Overdue, Tunnel, Upgrade, Upload, clean_request, clean_response, frame_for_http1, grpc_status, local_reply, to_http1, to_http2, tunnel,
};
use crate::observe::{Direction, Downstream, Exchange};
use crate::pool::{Lease, To};
use crate::shared::Shared;
use crate::tls::Carries;
use crate::wakes::Wakes;

/// A request that is being answered. Everything that needs no waiting is done before the future starts, so that the future, of which
/// there is one per connection or stream, holds each thing once.
#[allow(clippy::large_enum_variant, reason = "the large one is the usual one, and boxing it would cost every request")]
pub enum Answering {
    /// Answered already.
    Ready(Option<Response<Body>>),
    /// On its way to where it was decided to go.
    Forward(Journey),
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
                match &mut answering {
                    Self::Ready(response) => return Ok(response.take().unwrap_or_default()),
                    Self::Forward(journey) => return Ok(journey.go().await),
                    Self::Later(later) => answering = later.await,
                }
            }
        }
    }
}

/// A decided request and all it needs on its way.
pub struct Journey {
    shared: Rc<Shared>,
    request: Option<Request<Body>>,
    exchange: Option<Exchange>,
    overdue: Option<Overdue>,
    upgraded: Option<OnUpgrade>,
    cluster: Arc<Cluster>,
    forward: Arc<Forward>,
    backend: usize,
    only: Option<To>,
    carries: Carries,
    version: Version,
    connect: bool,
}

impl Journey {
    /// Makes a request ready to be sent as decided: to `only` where the decision leaves no choice, else to the cluster's endpoints.
    /// `destination` stands in for a host that the request does not name.
    pub fn begin(
        shared: &Rc<Shared>,
        (mut parts, incoming): (request::Parts, Incoming),
        plan: &Plan<'_>,
        (only, destination): (Option<To>, SocketAddr),
        exchange: Exchange,
    ) -> Self {
        let (version, connect) = (parts.version, parts.method == Method::CONNECT);
        let upgrade = clean_request(&mut parts);
        let carries = carries(plan.cluster.protocol, version, upgrade);
        chain::forth(plan, &mut parts.headers);
        match carries {
            Carries::H2 => to_http2(&mut parts, destination),
            Carries::H1 | Carries::Tcp => {
                to_http1(&mut parts, destination);
                if version == Version::HTTP_2 {
                    frame_for_http1(&mut parts, incoming.is_end_stream(), incoming.size_hint().exact());
                }
            }
        }
        let overdue = Overdue::new(&shared.patience, plan.forward.idle_timeout, plan.forward.request_timeout);
        let mut request = Request::from_parts(parts, body(incoming, &overdue));
        let upgraded = (upgrade == Upgrade::Asked).then(|| hyper::upgrade::on(&mut request));
        Self {
            shared: Rc::clone(shared),
            request: Some(request),
            exchange: Some(exchange),
            overdue: Some(overdue),
            upgraded,
            cluster: Arc::clone(plan.cluster),
            forward: Arc::clone(plan.forward),
            backend: plan.forward.backends.iter().position(|backend| std::ptr::eq(backend, plan.backend)).unwrap_or_default(),
            only,
            carries,
            version,
            connect,
        }
    }

    async fn go(&mut self) -> Response<Body> {
        let (Some(exchange), Some(overdue)) = (&mut self.exchange, &mut self.overdue) else { return Response::default() };
        let aim = Aim { cluster: Some(&self.cluster), only: self.only.as_ref() };
        let sent = {
            let mut sending = pin!(attempt::send(&self.shared, &mut self.request, aim, self.carries, exchange));
            poll_fn(|cx| match sending.as_mut().poll(cx) {
                Poll::Ready(sent) => Poll::Ready(sent),
                Poll::Pending => overdue.poll(cx).map(|reason| Err(too_late(reason))),
            })
            .await
        };
        self.end(sent)
    }

    /// Makes the answer of what came of it.
    fn end(&mut self, sent: Result<(Response<Incoming>, Lease), Failure>) -> Response<Body> {
        let (Some(mut exchange), Some(overdue)) = (self.exchange.take(), self.overdue.take()) else { return Response::default() };
        let (mut response, lease) = match sent {
            Ok(answered) => answered,
            Err(failure) => {
                exchange.add_request_bytes(overdue.wait.uploaded());
                return failed(&self.shared, &failure, self.version, exchange);
            }
        };
        overdue.wait.touch();
        let switching = switches(self.upgraded.is_some(), self.connect, response.status());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS && !switching {
            exchange.add_request_bytes(overdue.wait.uploaded());
            let failure = Failure::new(Reason::UpstreamProtocol, "the server switched protocols, which nobody had asked for");
            return failed(&self.shared, &failure, self.version, exchange);
        }
        clean_response(response.headers_mut(), switching, self.version, lease.tls().is_some());
        exchange.response(response.status(), response.headers());
        if let Some(backend) = self.forward.backends.get(self.backend) {
            chain::back(backend, &self.forward, response.headers_mut());
        }
        *response.version_mut() = Version::HTTP_11;
        if self.shared.drain.draining() && self.version != Version::HTTP_2 && !switching {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let Some(downstream) = self.upgraded.take().filter(|_| switching) else {
            return response.map(|incoming| Body::followed(incoming, Box::new(Answer { exchange, lease, overdue, over: false })));
        };
        let upstream = hyper::upgrade::on(&mut response);
        let both = Tunnel { downstream, upstream, exchange, idle: self.forward.idle_timeout };
        tokio::task::spawn_local(tunnel(both, lease, Rc::clone(&self.shared.patience), Rc::clone(&self.shared.buffers)));
        response.map(|_| Body::Empty)
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
    if shared.drain.draining() && version != Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Answers a failure.
#[cold]
pub fn failed(shared: &Shared, failure: &Failure, version: Version, mut exchange: Exchange) -> Response<Body> {
    tracing::debug!(%failure, "a request failed");
    exchange.failed(failure);
    reply(shared, &failure.reason.into(), version, exchange)
}

/// Records that a client's bytes were no HTTP, which hyper has answered with `status` by itself.
#[cold]
pub fn malformed(shared: &Shared, direction: Direction, snapshot: &Arc<Snapshot>, downstream: &Downstream, status: StatusCode) {
    let mut parts = Request::new(()).into_parts().0;
    let mut exchange = shared.observer.begin_http(direction, snapshot, &mut parts, downstream);
    exchange.replied(&LocalReply { status, ..LocalReply::of(Reason::BadRequest) });
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

/// The request's body; where there is one, its bytes are counted and keep the exchange from being taken for idle.
fn body(incoming: Incoming, overdue: &Overdue) -> Body {
    if incoming.is_end_stream() {
        return Body::Empty;
    }
    Body::followed(incoming, Box::new(overdue.wait.upload()))
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

impl Follower for Upload {
    fn frame(&mut self, frame: &Frame<Bytes>) {
        self.moved(frame.data_ref().map_or(0, Bytes::len));
    }

    fn ended(&mut self, _: Result<(), &Cut>) {}

    fn poll_overdue(&mut self, _: &mut Context<'_>) -> Poll<Reason> {
        // The answer's side watches for both.
        Poll::Pending
    }

    fn sender(&self) -> Option<&Wakes> {
        None
    }
}

/// Follows an answer to its end: then the connection goes back and the exchange is recorded.
struct Answer {
    exchange: Exchange,
    lease: Lease,
    overdue: Overdue,
    over: bool,
}

impl Follower for Answer {
    fn frame(&mut self, frame: &Frame<Bytes>) {
        self.overdue.wait.touch();
        if let Some(data) = frame.data_ref() {
            self.exchange.add_response_bytes(data.len() as u64);
        } else if let Some(status) = frame.trailers_ref().and_then(|trailers| trailers.get("grpc-status"))
            && let Some(status) = status.to_str().ok().and_then(|text| text.parse().ok())
        {
            self.exchange.grpc_status(status);
        }
    }

    fn ended(&mut self, outcome: Result<(), &Cut>) {
        self.over = true;
        match outcome {
            Ok(()) => self.lease.give_back(),
            Err(cut) => self.exchange.failed(&cut_off(cut)),
        }
    }

    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        self.overdue.poll(cx)
    }

    fn sender(&self) -> Option<&Wakes> {
        self.lease.wakes()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.exchange.add_request_bytes(self.overdue.wait.uploaded());
        if !self.over {
            self.exchange.failed(&Failure::new(Reason::ClientGone, "the client went away before the answer was complete"));
        }
    }
}

#[cold]
fn cut_off(cut: &Cut) -> Failure {
    match cut {
        Cut::Sender(error) => {
            let reason = crate::pool::reason(error);
            Failure::new(reason, format!("the answer broke off: {}", crate::pool::told(error)))
        }
        Cut::Overdue(reason) => too_late(*reason),
    }
}
