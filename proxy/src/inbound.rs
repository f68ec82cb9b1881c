//! From the mesh (and, where permitted, from outside it) to the application beside this proxy.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use engine::decide::{Decision, RequestHead, decide};
use engine::failure::{Failure, LocalReply, Reason};
use engine::model::{InboundPort, MtlsMode, Protocol, Snapshot};
use engine::sniff::{ClientHello, Sniffed};
use http::header::CONNECTION;
use http::{HeaderName, HeaderValue, Request, Response, Version as HttpVersion};
use tokio::time::timeout;

use crate::arrival::{Arrival, Carried, Opaque, carry, http_version};
use crate::attempt::{self, Aim, OpenedTcp};
use crate::body::{Body, Received};
use crate::forward::{Answering, Journey, malformed, refused, reply};
use crate::http::{Caller, Hop, Raw, Version, judge_request, serve};
use crate::io::{Rewound, Socket, Stream};
use crate::limits::{HANDSHAKE_WAIT, HEAD_WAIT};
use crate::observe::{Direction, Downstream, Exchange};
use crate::pool::To;
use crate::shared::Shared;
use crate::tls::{Carries, Peer, TlsFacts};
use crate::watch::{self, Said, Watched};

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
    let came = Came { shared, snapshot, port, peer, destination };
    match came.port.mode {
        MtlsMode::Disabled => came.plaintext(socket).await,
        MtlsMode::Strict => came.strict(socket).await,
        MtlsMode::Permissive => came.permissive(socket).await,
    }
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
    /// Mesh TLS or nothing: plaintext is closed without an answer.
    async fn strict(&self, mut socket: Socket) -> Option<Carried<Connection>> {
        let said = watch::client_first(&mut socket, Some(HANDSHAKE_WAIT), &self.shared.drain.inbound).await?;
        if let Sniffed::Tls(_) = said.sniffed {
            return self.mesh_tls(Rewound::new(said.seen, socket)).await;
        }
        let downstream = self.downstream(None, None);
        let mut exchange = self.exchange_tcp(&downstream);
        exchange.failed(&Failure::new(Reason::Denied, format!("{} sent plaintext to a Strict port", self.peer)));
        None
    }

    /// Mesh TLS where the client offers mesh ALPN; the application's own TLS passes through; plaintext as the port declares it.
    async fn permissive(&self, mut socket: Socket) -> Option<Carried<Connection>> {
        if !self.declared_http() {
            return self.watch(socket).await;
        }
        let said = watch::client_first(&mut socket, Some(HEAD_WAIT), &self.shared.drain.inbound).await?;
        self.said(said, socket, None).await
    }

    /// Plaintext only: TLS is bytes like any other.
    async fn plaintext(&self, mut socket: Socket) -> Option<Carried<Connection>> {
        match self.port.protocol {
            Protocol::Tcp => {
                let opened = self.open().await;
                Some(self.opaque(Bytes::new(), Stream::Plain(socket), opened, None))
            }
            Protocol::Auto => self.watch(socket).await,
            Protocol::Http | Protocol::Http1 | Protocol::Http2 => {
                let said = watch::client_first(&mut socket, Some(HEAD_WAIT), &self.shared.drain.inbound).await?;
                self.said(said, socket, None).await
            }
        }
    }

    /// Both sides are watched: the application may speak first.
    async fn watch(&self, mut socket: Socket) -> Option<Carried<Connection>> {
        match watch::both_sides(&mut socket, self.open(), &self.shared.drain.inbound).await.ok()? {
            Watched::Client(said, opened) => self.said(said, socket, opened).await,
            Watched::Server(opened) => Some(self.opaque(Bytes::new(), Stream::Plain(socket), Ok(*opened), None)),
            Watched::Unreachable(failure) => Some(self.opaque(Bytes::new(), Stream::Plain(socket), Err(failure), None)),
        }
    }

    /// The client has spoken.
    async fn said(&self, said: Said, socket: Socket, opened: Option<Box<OpenedTcp>>) -> Option<Carried<Connection>> {
        let version = match &said.sniffed {
            Sniffed::Tls(hello) if self.port.mode == MtlsMode::Permissive && from_mesh(hello) => {
                return self.mesh_tls(Rewound::new(said.seen, socket)).await;
            }
            Sniffed::Tls(_) if self.port.mode == MtlsMode::Permissive => None,
            _ if self.port.protocol == Protocol::Tcp => None,
            sniffed => http_version(sniffed).or(self.declared_http().then_some(Version::Http1)),
        };
        let stream = Stream::Plain(socket);
        if let Some(version) = version {
            return Some(self.http(Rewound::new(said.seen, stream), version, self.downstream(None, None)));
        }
        let opened = match opened {
            Some(opened) => Ok(*opened),
            None => self.open().await,
        };
        Some(self.opaque(said.seen, stream, opened, None))
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
        let (seen, version) = match (accepted.carries, accepted.alpn) {
            (Some(Carries::H1), _) | (None, Some("http/1.1")) => (Bytes::new(), Version::Http1),
            (Some(Carries::H2), _) | (None, Some("h2")) => (Bytes::new(), Version::Http2),
            (None, _) if self.declared_http() => {
                let said = watch::client_first(&mut stream, None, &self.shared.drain.inbound).await?;
                (said.seen, http_version(&said.sniffed).unwrap_or(Version::Http1))
            }
            _ => {
                let opened = self.open().await;
                return Some(self.opaque(Bytes::new(), stream, opened, Some(downstream)));
            }
        };
        Some(self.http(Rewound::new(seen, stream), version, downstream))
    }

    fn not_proved(&self, failure: &Failure) -> Option<Carried<Connection>> {
        // Said aloud: in TLS 1.3 the client's own side may never learn why (facts.md, SPIFFE).
        tracing::info!(peer = %self.peer, %failure, "an inbound TLS handshake failed");
        let downstream = self.downstream(None, None);
        self.exchange_tcp(&downstream).failed(failure);
        None
    }

    fn declared_http(&self) -> bool {
        matches!(self.port.protocol, Protocol::Http | Protocol::Http1 | Protocol::Http2)
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

    fn opaque(
        &self,
        seen: Bytes,
        stream: Stream,
        opened: Result<OpenedTcp, Failure>,
        downstream: Option<Downstream>,
    ) -> Carried<Connection> {
        let downstream = downstream.unwrap_or_else(|| self.downstream(None, None));
        let exchange = self.exchange_tcp(&downstream);
        let downstream = Rewound::new(seen, stream);
        Carried::Opaque(Box::new(Opaque { downstream, opened, idle: self.port.idle_timeout, exchange }))
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

fn from_mesh(hello: &ClientHello) -> bool {
    [Carries::H1, Carries::H2, Carries::Tcp].into_iter().any(|carries| hello.offers(carries.alpn()))
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
        if view.port.mode == MtlsMode::Strict && self.downstream.peer.is_none() {
            return Answering::Ready(Box::new(self.no_longer_permitted(parts.version, exchange)));
        }
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
        match decide(&view.port.http, &head, self.shared.draw.next()) {
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

    /// The port became Strict under a plaintext connection: one answer, and the end.
    #[cold]
    fn no_longer_permitted(&self, version: HttpVersion, exchange: Exchange) -> Response<Body> {
        let mut response = reply(&self.shared, &LocalReply::of(Reason::Denied), version, exchange);
        if version != HttpVersion::HTTP_2 {
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
