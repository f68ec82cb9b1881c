//! From the mesh (and, where permitted, from outside it) to the application beside this proxy.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use engine::decide::{Decision, RequestHead, decide};
use engine::failure::{Failure, LocalReply, Reason};
use engine::model::{InboundPort, MtlsMode, Protocol, Snapshot};
use engine::sniff::{ClientHello, Sniffed};
use http::header::CONNECTION;
use http::{HeaderName, HeaderValue, Request, Response, Version as HttpVersion};
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::arrival::{Arrival, carry, http_version};
use crate::attempt::{self, Aim, OpenedTcp};
use crate::body::Body;
use crate::forward::{forward, reply};
use crate::http::{Version, serve};
use crate::io::{Rewound, Socket, Stream};
use crate::limits::HANDSHAKE_WAIT;
use crate::observe::{Direction, Downstream, Exchange};
use crate::pool::To;
use crate::shared::Shared;
use crate::tls::{Carries, Peer};
use crate::watch::{self, Said, Watched};

const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Serves one connection to its end, under the mode of the port it was meant for. Dropping the future cuts the connection.
pub async fn serve_connection(arrival: Arrival, shared: Rc<Shared>) {
    let Arrival { socket, peer, destination } = arrival;
    let snapshot = shared.reader.load();
    let Some(inbound) = snapshot.inbound.clone() else {
        tracing::debug!(%peer, %destination, "closed: this proxy has no inbound configuration yet");
        return;
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
struct Came {
    shared: Rc<Shared>,
    snapshot: Arc<Snapshot>,
    port: Arc<InboundPort>,
    peer: SocketAddr,
    destination: SocketAddr,
}

impl Came {
    /// Mesh TLS or nothing: plaintext is closed without an answer.
    async fn strict(self, mut socket: Socket) {
        let said = Box::pin(watch::client_first(&mut socket, Some(HANDSHAKE_WAIT))).await;
        match said {
            Some(Said { sniffed: Sniffed::Tls(_), seen }) => self.mesh_tls(Rewound::new(seen, socket)).await,
            Some(_) => {
                // The hello alone is noted by the observer; the application never hears of it.
                let downstream = self.downstream(None, None);
                let mut exchange = self.exchange_tcp(&downstream);
                exchange.failed(&Failure::new(Reason::Denied, format!("{} sent plaintext to a Strict port", self.peer)));
            }
            None => {}
        }
    }

    /// Mesh TLS where the client offers mesh ALPN; the application's own TLS passes through; plaintext as the port declares it.
    async fn permissive(self, mut socket: Socket) {
        if matches!(self.port.protocol, Protocol::Tcp | Protocol::Auto) {
            return self.watch(socket).await;
        }
        let Some(said) = Box::pin(watch::client_first(&mut socket, None)).await else { return };
        self.said(said, socket, None).await;
    }

    /// Plaintext only: TLS is bytes like any other.
    async fn plaintext(self, mut socket: Socket) {
        match self.port.protocol {
            Protocol::Tcp => {
                let to = Shared::application(&self.snapshot, self.destination);
                let opened = Box::pin(open(&self.shared, &to)).await;
                self.opaque(bytes::Bytes::new(), Stream::Plain(socket), opened, None).await;
            }
            Protocol::Auto => self.watch(socket).await,
            Protocol::Http | Protocol::Http1 | Protocol::Http2 => {
                let Some(said) = Box::pin(watch::client_first(&mut socket, None)).await else { return };
                let version = http_version(&said.sniffed).unwrap_or(Version::Http1);
                let downstream = self.downstream(None, None);
                self.http(Rewound::new(said.seen, Stream::Plain(socket)), version, downstream).await;
            }
        }
    }

    /// Both sides are watched: the application may speak first.
    async fn watch(self, mut socket: Socket) {
        let to = Shared::application(&self.snapshot, self.destination);
        let watched = Box::pin(watch::both_sides(&mut socket, open(&self.shared, &to))).await;
        match watched {
            Err(_) => {}
            Ok(Watched::Client(said, opened)) => self.said(said, socket, opened).await,
            Ok(Watched::Server(opened)) => self.opaque(bytes::Bytes::new(), Stream::Plain(socket), Ok(*opened), None).await,
            Ok(Watched::Unreachable(failure)) => self.opaque(bytes::Bytes::new(), Stream::Plain(socket), Err(failure), None).await,
        }
    }

    /// The client has spoken.
    async fn said(self, said: Said, socket: Socket, opened: Option<Box<OpenedTcp>>) {
        let declared_http = matches!(self.port.protocol, Protocol::Http | Protocol::Http1 | Protocol::Http2);
        let version = match &said.sniffed {
            Sniffed::Tls(hello) if self.port.mode == MtlsMode::Permissive && from_mesh(hello) => {
                return self.mesh_tls(Rewound::new(said.seen, socket)).await;
            }
            Sniffed::Tls(_) => None,
            sniffed if self.port.protocol != Protocol::Tcp => http_version(sniffed).or(declared_http.then_some(Version::Http1)),
            _ => None,
        };
        if let Some(version) = version {
            let downstream = self.downstream(None, None);
            return self.http(Rewound::new(said.seen, Stream::Plain(socket)), version, downstream).await;
        }
        let opened = match opened {
            Some(opened) => Ok(*opened),
            None => Box::pin(open(&self.shared, &Shared::application(&self.snapshot, self.destination))).await,
        };
        self.opaque(said.seen, Stream::Plain(socket), opened, None).await;
    }

    /// The peer proves itself; its ALPN says what comes.
    async fn mesh_tls(self, socket: Rewound<Socket>) {
        let accepting = Box::pin(timeout(HANDSHAKE_WAIT, self.shared.tls.accept(socket)));
        let accepted = match accepting.await {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(failure)) => return self.not_proved(&failure),
            Err(_) => return self.not_proved(&Failure::new(Reason::TlsFailed, "the TLS handshake took too long")),
        };
        let downstream = self.downstream(Some(Arc::clone(&accepted.peer)), Some(accepted.facts));
        let mut stream = Stream::Accepted(Box::new(accepted.stream));
        let (carries, alpn) = (accepted.carries, accepted.alpn);
        let nothing_seen = |stream| Rewound::new(bytes::Bytes::new(), stream);
        match (carries, alpn) {
            (Some(Carries::H1), _) | (None, Some("http/1.1")) => self.http(nothing_seen(stream), Version::Http1, downstream).await,
            (Some(Carries::H2), _) | (None, Some("h2")) => self.http(nothing_seen(stream), Version::Http2, downstream).await,
            (None, _) if matches!(self.port.protocol, Protocol::Http | Protocol::Http1 | Protocol::Http2) => {
                let Some(said) = Box::pin(watch::client_first(&mut stream, None)).await else { return };
                let version = http_version(&said.sniffed).unwrap_or(Version::Http1);
                self.http(Rewound::new(said.seen, stream), version, downstream).await;
            }
            _ => {
                let opened = Box::pin(open(&self.shared, &Shared::application(&self.snapshot, self.destination))).await;
                self.opaque(bytes::Bytes::new(), stream, opened, Some(downstream)).await;
            }
        }
    }

    fn not_proved(&self, failure: &Failure) {
        tracing::debug!(peer = %self.peer, %failure, "an inbound TLS handshake failed");
        let downstream = self.downstream(None, None);
        self.exchange_tcp(&downstream).failed(failure);
    }

    fn downstream(&self, peer: Option<Arc<Peer>>, tls: Option<crate::tls::TlsFacts>) -> Downstream {
        self.shared.observer.downstream(Direction::Inbound, &self.snapshot, (self.peer, self.destination), peer, tls)
    }

    fn exchange_tcp(&self, downstream: &Downstream) -> Exchange {
        let mut exchange = self.shared.observer.begin_tcp(Direction::Inbound, &self.snapshot, downstream);
        exchange.at_port(&self.port);
        exchange
    }

    async fn opaque(self, seen: bytes::Bytes, stream: Stream, opened: Result<OpenedTcp, Failure>, downstream: Option<Downstream>) {
        let downstream = downstream.unwrap_or_else(|| self.downstream(None, None));
        let exchange = self.exchange_tcp(&downstream);
        carry(&self.shared, Rewound::new(seen, stream), opened, self.port.idle_timeout, exchange).await;
    }

    async fn http(self, stream: Rewound<Stream>, version: Version, downstream: Downstream) {
        let Self { shared, snapshot, port, destination, .. } = self;
        let guarded = downstream.peer.is_none();
        let application = Shared::application(&snapshot, destination);
        let client_cert = downstream.peer.as_deref().and_then(|peer| forwarded_client_cert(&shared, peer));
        let view = RefCell::new(View { snapshot, port });
        let own = Rc::clone(&shared);
        let connection = Rc::new(Connection { shared, destination, application, downstream, client_cert, view });
        let answer = move |request| {
            let connection = Rc::clone(&connection);
            async move { connection.answer(request).await }
        };
        serve(stream, version, guarded, &own.serving, &own.drain, answer).await;
    }
}

fn from_mesh(hello: &ClientHello) -> bool {
    [Carries::H1, Carries::H2, Carries::Tcp].into_iter().any(|carries| hello.offers(carries.alpn()))
}

async fn open(shared: &Shared, to: &To) -> Result<OpenedTcp, Failure> {
    attempt::open(shared, Aim { cluster: None, only: Some(to) }).await
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
#[derive(Clone)]
struct View {
    snapshot: Arc<Snapshot>,
    port: Arc<InboundPort>,
}

impl Connection {
    /// One request: one epoch for the whole of it.
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let view = self.view();
        let (mut parts, incoming) = request.into_parts();
        let mut exchange = self.shared.observer.begin_http(Direction::Inbound, &view.snapshot, &mut parts, &self.downstream);
        exchange.at_port(&view.port);
        if view.port.mode == MtlsMode::Strict && self.downstream.peer.is_none() {
            return self.no_longer_permitted(parts.version, exchange);
        }
        match &self.client_cert {
            // Replaces whatever the caller said of itself.
            Some(value) => drop(parts.headers.insert(X_FORWARDED_CLIENT_CERT, value.clone())),
            None => drop(parts.headers.remove(X_FORWARDED_CLIENT_CERT)),
        }
        let head = RequestHead::new(&parts.method, &parts.uri, &parts.headers);
        match decide(&view.port.http, &head, self.shared.draw.next()) {
            Decision::Forward(plan) => {
                exchange.routed(plan.rule, plan.cluster);
                forward(&self.shared, parts, incoming, &plan, (Some(&self.application), self.destination), exchange).await
            }
            Decision::Reply { reply: answer, rule } => {
                if let Some(rule) = rule {
                    exchange.matched(rule);
                }
                reply(&self.shared, answer, parts.version, exchange)
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

    fn view(&self) -> View {
        let mut view = self.view.borrow_mut();
        self.shared.reader.with(|live| {
            if !Arc::ptr_eq(live, &view.snapshot) {
                if let Some(inbound) = &live.inbound {
                    view.port = Arc::clone(inbound.port(self.destination.port()));
                }
                view.snapshot = Arc::clone(live);
            }
        });
        view.clone()
    }
}
