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
use http_body::Frame;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use crate::attempt::{self, Aim};
use crate::body::{Body, Cut, Follower, Received};
use crate::chain;
use crate::http::{
    Overdue, Tunnel, Upgrade, Upload, clean_request, clean_response, frame_for_http1, grpc_status, local_reply, to_http1, to_http2, tunnel,
};
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
    exchange: Option<Exchange>,
    lease: Option<Lease>,
    overdue: Overdue,
    upgraded: Option<OnUpgrade>,
    cluster: Arc<Cluster>,
    forward: Arc<Forward>,
    backend: usize,
    only: Option<To>,
    carries: Carries,
    version: Version,
    connect: bool,
    over: bool,
}

impl Journey {
    /// Makes a request ready to be sent as decided: to `only` where the decision leaves no choice, else to the cluster's endpoints.
    /// `destination` stands in for a host that the request does not name.
    pub fn begin(
        shared: &Rc<Shared>,
        (mut parts, received): (request::Parts, Received),
        plan: &Plan<'_>,
        (only, destination): (Option<To>, SocketAddr),
        exchange: Exchange,
    ) -> Box<Self> {
        let (version, connect) = (parts.version, parts.method == Method::CONNECT);
        let upgrade = clean_request(&mut parts);
        let carries = carries(plan.cluster.protocol, version, upgrade);
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
        let mut request = Request::from_parts(parts, body(received, &overdue));
        let upgraded = (upgrade == Upgrade::Asked).then(|| hyper::upgrade::on(&mut request));
        // Written in its place: built first and boxed then, it would be copied.
        let place = Box::new_uninit();
        Box::write(
            place,
            Self {
                shared: Rc::clone(shared),
                request: Some(request),
                exchange: Some(exchange),
                lease: None,
                overdue,
                upgraded,
                cluster: Arc::clone(plan.cluster),
                forward: Arc::clone(plan.forward),
                backend: plan.forward.backends.iter().position(|backend| std::ptr::eq(backend, plan.backend)).unwrap_or_default(),
                only,
                carries,
                version,
                connect,
                over: false,
            },
        )
    }

    async fn go(&mut self) -> Result<Response<Incoming>, Failure> {
        let Self { shared, request, exchange: Some(exchange), lease, overdue, cluster, only, carries, .. } = self else {
            return Err(Failure::new(Reason::UpstreamReset, "the exchange is over"));
        };
        let aim = Aim { cluster: Some(cluster), only: only.as_ref() };
        let mut sending = pin!(attempt::send(shared, request, aim, *carries, exchange, lease));
        poll_fn(|cx| match sending.as_mut().poll(cx) {
            Poll::Ready(sent) => Poll::Ready(sent),
            Poll::Pending => overdue.poll(cx).map(|reason| Err(too_late(reason))),
        })
        .await
    }

    /// Makes the answer of what came of it.
    fn end(mut self: Box<Self>, sent: Result<Response<Incoming>, Failure>) -> Response<Body> {
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
        clean_response(response.headers_mut(), switching, self.version, mesh_peer);
        if let Some(exchange) = &mut self.exchange {
            exchange.response(response.status(), response.headers());
        }
        if let Some(backend) = self.forward.backends.get(self.backend) {
            chain::back(backend, &self.forward, response.headers_mut());
        }
        *response.version_mut() = Version::HTTP_11;
        if self.shared.draining() && self.version != Version::HTTP_2 && !switching {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if switching {
            self.become_tunnel(hyper::upgrade::on(&mut response));
            return response.map(|_| Body::Empty);
        }
        let sender = self.lease.as_ref().and_then(Lease::wakes).cloned();
        response.map(|incoming| Body::followed(Received::new(incoming, sender.as_ref()), self))
    }

    fn fail(mut self: Box<Self>, failure: &Failure) -> Response<Body> {
        let Some(mut exchange) = self.exchange.take() else { return Response::default() };
        exchange.add_request_bytes(self.overdue.wait.uploaded());
        failed(&self.shared, failure, self.version, exchange)
    }

    /// From here on it is bytes both ways.
    fn become_tunnel(&mut self, upstream: OnUpgrade) {
        let (Some(downstream), Some(exchange)) = (self.upgraded.take(), self.exchange.take()) else { return };
        // An HTTP/1 connection is over as such and goes on as the tunnel.
        let guest = (self.version != Version::HTTP_2).then(|| self.shared.guests.of(exchange.direction()).enter());
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
}

impl Drop for Journey {
    fn drop(&mut self) {
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
fn body(received: Received, overdue: &Overdue) -> Body {
    if received.is_end_stream() {
        return Body::Empty;
    }
    Body::followed(received, Box::new(overdue.wait.upload()))
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
