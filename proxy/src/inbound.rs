//! From the mesh (and, where permitted, from outside it) to the application beside this proxy.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use engine::decide::{
    self, Course, Decision, Door, Facts, Known, Learn, Proved, Refusal, RequestHead, Step, Version, admit, connection, decide,
};
use engine::failure::{Failure, Reason};
use engine::model::{InboundPort, MtlsMode, Protocol, Snapshot};
use http::header::CONNECTION;
use http::{HeaderName, HeaderValue, Request, Response, Version as HttpVersion};
use tokio::time::timeout;

use crate::arrival::{Arrival, Carried, Heard, Opaque, carry};
use crate::attempt::{self, Aim, OpenedTcp};
use crate::body::{Body, Received};
use crate::forward::{Answering, Journey, malformed, refused, reply};
use crate::http::{Caller, Hop, Raw, judge_request, serve};
use crate::io::{Rewound, Socket, Stream};
use crate::limits::{HANDSHAKE_WAIT, HEAD_WAIT};
use crate::observe::{Direction, Downstream, Exchange};
use crate::pool::To;
use crate::shared::Shared;
use crate::tls::{Peer, TlsFacts};
use crate::watch::{self, Said};

const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Serves one connection to its end, under the mode of the port it was meant for. Dropping the future cuts the connection.
pub async fn serve_connection(arrival: Arrival, shared: Rc<Shared>) {
    match Box::pin(recognise(arrival, &shared)).await {
        None => {}
        Some(Carried::Opaque(opaque)) => Box::pin(carry(&shared, *opaque)).await,
        Some(Carried::Http(stream, version, connection)) => {
            let caller = if connection.downstream.peer.is_some() { Caller::Peer } else { Caller::Anybody };
            let answering = Rc::clone(&connection);
            let answer = move |request| answering.answer(request).answer();
            if let Some(status) = serve(stream, version, caller, &shared.serving, &shared.drain.inbound, answer).await {
                malformed(&shared, Direction::Inbound, &connection.view.borrow().snapshot, &connection.downstream, status);
            }
        }
    }
}

/// Finds out who calls and what the connection carries. `None`: it is refused, or over.
async fn recognise(arrival: Arrival, shared: &Rc<Shared>) -> Option<Carried<Connection>> {
    let Arrival { socket, peer, destination } = arrival;
    let snapshot = shared.reader.load();
    let Some(inbound) = &snapshot.inbound else {
        tracing::debug!(%peer, %destination, "closed: this proxy has no inbound configuration yet");
        return None;
    };
    let port = Arc::clone(inbound.port(destination.port()));
    Came { shared, snapshot, port, peer, destination }.plaintext(socket).await
}

/// A connection that has come in and whose protection is not known yet.
struct Came<'a> {
    shared: &'a Rc<Shared>,
    snapshot: Arc<Snapshot>,
    port: Arc<InboundPort>,
    peer: SocketAddr,
    destination: SocketAddr,
}

impl Came<'_> {
    fn decide(&self, known: &Known<'_>) -> Step {
        connection(&self.snapshot, Door::Inbound(self.destination.port()), known)
    }

    /// Listens in the clear, for as long as it takes to know what comes.
    async fn plaintext(&self, mut socket: Socket) -> Option<Carried<Connection>> {
        let drain = &self.shared.drain.inbound;
        let patience = if self.port.mode == MtlsMode::Strict { HANDSHAKE_WAIT } else { HEAD_WAIT };
        let mut heard = Heard::default();
        loop {
            match self.decide(&heard.known()) {
                Step::Learn(Learn::EitherSide) => heard.watched(watch::both_sides(&mut socket, self.open(), drain).await.ok()?),
                Step::Learn(Learn::Proof) => return self.mesh_tls(Rewound::new(heard.seen, socket)).await,
                Step::Learn(_) => heard.said(watch::client_first(&mut socket, Some(patience), drain).await?),
                Step::Take(course) => {
                    let downstream = self.downstream(None, None);
                    return self.take(course, Rewound::new(heard.seen, Stream::Plain(socket)), heard.opened, downstream).await;
                }
            }
        }
    }

    /// The peer proves itself; its ALPN says what comes.
    async fn mesh_tls(&self, socket: Rewound<Socket>) -> Option<Carried<Connection>> {
        let accepted = match Box::pin(timeout(HANDSHAKE_WAIT, self.shared.tls.accept(socket))).await {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(failure)) => return self.not_proved(&failure),
            Err(_) => return self.not_proved(&Failure::new(Reason::TlsFailed, "the TLS handshake took too long")),
        };
        let downstream = self.downstream(Some(Arc::clone(&accepted.peer)), Some(accepted.facts));
        let mut stream = Stream::accepted(accepted.stream);
        let mut inside: Option<Said> = None;
        loop {
            let proved = Some(Proved { alpn: accepted.alpn });
            let known = Known { proved, inside: inside.as_ref().map(|said| &said.sniffed), ..Known::default() };
            match self.decide(&known) {
                Step::Learn(_) => inside = Some(watch::client_first(&mut stream, None, &self.shared.drain.inbound).await?),
                Step::Take(course) => {
                    let seen = inside.map(|said| said.seen).unwrap_or_default();
                    return self.take(course, Rewound::new(seen, stream), None, downstream).await;
                }
            }
        }
    }

    /// Carries the decision out.
    async fn take(
        &self,
        course: Course,
        stream: Rewound<Stream>,
        opened: Option<Result<OpenedTcp, Failure>>,
        downstream: Downstream,
    ) -> Option<Carried<Connection>> {
        match course {
            Course::Serve(_) | Course::Unreadable => Some(self.http(stream, course.server()?, downstream)),
            Course::Carry | Course::Outside => {
                let opened = match opened {
                    Some(opened) => opened,
                    None => self.open().await,
                };
                let exchange = self.exchange_tcp(&downstream);
                Some(Carried::Opaque(Box::new(Opaque { downstream: stream, opened, idle: self.port.idle_timeout, exchange })))
            }
            Course::Refuse(reason) | Course::Close(reason) => {
                let failure = Failure::new(reason, format!("{} sent plaintext to a Strict port", self.peer));
                self.exchange_tcp(&downstream).failed(&failure);
                None
            }
        }
    }

    fn not_proved(&self, failure: &Failure) -> Option<Carried<Connection>> {
        // Said aloud: in TLS 1.3 the client's own side may never learn why (facts.md, SPIFFE).
        tracing::info!(peer = %self.peer, %failure, "an inbound TLS handshake failed");
        let downstream = self.downstream(None, None);
        self.exchange_tcp(&downstream).failed(failure);
        None
    }

    fn downstream(&self, peer: Option<Arc<Peer>>, tls: Option<TlsFacts>) -> Downstream {
        self.shared.observer.downstream(Direction::Inbound, &self.snapshot, (self.peer, self.destination), peer, tls)
    }

    fn exchange_tcp(&self, downstream: &Downstream) -> Exchange {
        let mut exchange = self.shared.observer.begin_tcp(Direction::Inbound, &self.snapshot, downstream);
        exchange.at_port(&self.port);
        exchange
    }

    async fn open(&self) -> Result<OpenedTcp, Failure> {
        let to = Shared::application(&self.snapshot, self.destination);
        attempt::open(self.shared, Aim { cluster: None, only: Some(&to) }).await
    }

    fn http(&self, stream: Rewound<Stream>, version: Version, downstream: Downstream) -> Carried<Connection> {
        let connection = Connection {
            shared: Rc::clone(self.shared),
            destination: self.destination,
            application: Shared::application(&self.snapshot, self.destination),
            client_cert: downstream.peer.as_deref().and_then(|peer| forwarded_client_cert(self.shared, peer)),
            downstream,
            view: RefCell::new(View { snapshot: Arc::clone(&self.snapshot), port: Arc::clone(&self.port) }),
        };
        Carried::Http(stream, version, Rc::new(connection))
    }
}

/// What the application speaks: as its port declares, else as the cluster does.
const fn spoken(port: Protocol, cluster: Protocol) -> Protocol {
    match port {
        Protocol::Http1 | Protocol::Http2 => port,
        Protocol::Http | Protocol::Tcp | Protocol::Auto => cluster,
    }
}

/// `By=<own identity>;Hash=<SHA-256 of the peer's leaf>;URI=<peer's identity>`.
fn forwarded_client_cert(shared: &Shared, peer: &Peer) -> Option<HeaderValue> {
    let own = &shared.tls.credential()?.identity;
    HeaderValue::from_str(&format!("By={own};Hash={};URI={}", peer.certificate_hash_hex, peer.identity)).ok()
}

/// One downstream HTTP connection to the application.
struct Connection {
    shared: Rc<Shared>,
    destination: SocketAddr,
    application: To,
    downstream: Downstream,
    client_cert: Option<HeaderValue>,
    view: RefCell<View>,
}

/// One epoch, and what it says of this connection's port.
struct View {
    snapshot: Arc<Snapshot>,
    port: Arc<InboundPort>,
}

impl Connection {
    /// One request: one epoch for the whole of it.
    fn answer(&self, request: Request<Received>) -> Answering {
        self.refresh();
        let view = self.view.borrow();
        let (mut parts, received) = request.into_parts();
        let at = if self.downstream.peer.is_some() { Hop::Inner } else { Hop::First };
        let raw = Raw::of(&parts.headers, &received, at);
        let mut exchange = self.shared.observer.begin_http(Direction::Inbound, &view.snapshot, &mut parts, &self.downstream);
        exchange.at_port(&view.port);
        let facts = Facts { proved: self.downstream.peer.is_some(), fault: None };
        let table = match admit(decide::View::Inbound(&view.port), facts) {
            Ok(table) => table,
            Err(refusal) => return Answering::Ready(Box::new(self.refuse(refusal, parts.version, exchange))),
        };
        match &self.client_cert {
            // Replaces whatever the caller said of itself.
            Some(value) => drop(parts.headers.insert(X_FORWARDED_CLIENT_CERT, value.clone())),
            None => drop(parts.headers.remove(X_FORWARDED_CLIENT_CERT)),
        }
        let there = match judge_request(&mut parts, raw) {
            Ok(there) => there,
            Err(wrong) => return Answering::Ready(Box::new(refused(&self.shared, wrong, parts.version, exchange))),
        };
        let head = RequestHead::new(&parts.method, &parts.uri, &parts.headers);
        match decide(table, &head, self.shared.draw.next()) {
            Decision::Forward(plan) => {
                exchange.routed(plan.rule, plan.cluster);
                let application = Some(self.application.clone());
                let to = (application, self.destination, spoken(view.port.protocol, plan.cluster.protocol));
                Answering::Forward(Journey::begin(&self.shared, (parts, received, there, at), &plan, to, exchange))
            }
            Decision::Reply { reply: answer, rule } => {
                if let Some(rule) = rule {
                    exchange.matched(rule);
                }
                Answering::Ready(Box::new(reply(&self.shared, answer, parts.version, exchange)))
            }
        }
    }

    /// Answers without asking the rules; where the connection may not go on, this is the end of it.
    #[cold]
    fn refuse(&self, refusal: Refusal, version: HttpVersion, exchange: Exchange) -> Response<Body> {
        let mut response = reply(&self.shared, &refusal.reply(), version, exchange);
        if refusal.last && version != HttpVersion::HTTP_2 {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Takes up the live epoch.
    fn refresh(&self) {
        let mut view = self.view.borrow_mut();
        self.shared.reader.with(|live| {
            if !Arc::ptr_eq(live, &view.snapshot) {
                if let Some(inbound) = &live.inbound {
                    view.port = Arc::clone(inbound.port(self.destination.port()));
                }
                view.snapshot = Arc::clone(live);
            }
        });
    }
}
