//! From the mesh (and, where permitted, from outside it) to the application beside this proxy.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use engine::authorize::Judgement;
use engine::claims::Claims;
use engine::client::ClientFound;
use engine::consumers::{CONSUMER_HEADER, Identified};
use engine::decide::{self, Course, Known, Learn, Proved, RequestHead, Step, Version, connection};
use engine::failure::{Failure, Reason};
use engine::model::{Cluster, InboundPort, MtlsMode, Protocol, Snapshot};
use http::{HeaderName, HeaderValue, request};
use tokio::time::timeout;

use crate::ground::limits::{HANDSHAKE_WAIT, HEAD_WAIT};
use crate::http::{CLIENT_CERT_HEADER, Caller, OfHop};
use crate::io::{Rewound, Socket, Stream};
use crate::observe::{Account, Direction, Downstream, Observer};
use crate::pool::To;
use crate::road::answer::{Connection, Door, HttpConnection, InForce, Look, serve};
use crate::road::arrival::{Arrival, Carried, Heard, Opaque, carry};
use crate::road::attempt::{self, OpenedTcp};
use crate::road::shared::Shared;
use crate::road::standing::{self, Denial, Stand};
use crate::road::watch;
use crate::tls::{Bond, Peer, TlsFacts, bound};

const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Serves one connection to its end, under the mode of the port it was meant for. Dropping the future cuts the connection.
pub async fn serve_connection(arrival: Arrival, shared: Rc<Shared>) {
    match Box::pin(recognise(arrival, &shared)).await {
        None => {}
        Some(Carried::Http(mut served)) => {
            let bond = served.bond.take();
            // Whatever is being answered to a peer that is revoked is cut with it, and recorded as its leaving.
            if let Err(broken) = bound([bond], serve(served, &shared)).await {
                tracing::debug!(%broken, "an inbound HTTP connection was cut");
            }
        }
        Some(Carried::Opaque(opaque)) => Box::pin(carry(&shared, *opaque)).await,
    }
}

/// Finds out who calls and what the connection carries. `None`: it is refused, or over.
async fn recognise(arrival: Arrival, shared: &Rc<Shared>) -> Option<Carried> {
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
        connection(&self.snapshot, decide::Door::Inbound(self.destination.port()), known)
    }

    /// Listens in the clear, for as long as it takes to know what comes.
    async fn plaintext(&self, mut socket: Socket) -> Option<Carried> {
        let drain = &self.shared.drain.inbound;
        let patience = if self.port.mode == MtlsMode::Strict { HANDSHAKE_WAIT } else { HEAD_WAIT };
        let mut heard = Heard::default();
        loop {
            match self.decide(&heard.known()) {
                // Who may not come as bytes has nothing opened for, and says by itself whether it comes with requests.
                Step::Learn(Learn::EitherSide) if self.denies_bytes(None) => {
                    heard.said(watch::client_first(&mut socket, Some(HEAD_WAIT), drain).await?);
                }
                Step::Learn(Learn::EitherSide) => heard.watched(watch::both_sides(&mut socket, self.open(), drain).await.ok()?),
                Step::Learn(Learn::Proof) => return self.mesh_tls(Rewound::new(heard.seen, socket)).await,
                Step::Learn(_) => heard.said(watch::client_first(&mut socket, Some(patience), drain).await?),
                Step::Take(course) => {
                    let downstream = self.downstream(None, None);
                    return self.take(course, (Rewound::new(heard.seen, Stream::Plain(socket)), None), heard.opened, downstream).await;
                }
            }
        }
    }

    /// The peer proves itself; its ALPN says what comes.
    async fn mesh_tls(&self, socket: Rewound<Socket>) -> Option<Carried> {
        let accepted = match Box::pin(timeout(HANDSHAKE_WAIT, self.shared.tls.accept(socket))).await {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(failure)) => return self.not_proved(&failure),
            Err(_) => return self.not_proved(&Failure::new(Reason::TlsFailed, "the TLS handshake took too long")),
        };
        let downstream = self.downstream(Some(Arc::clone(&accepted.peer)), Some(accepted.facts));
        let bond = self.shared.bonds.join(&accepted.peer);
        let mut stream = Stream::accepted(accepted.stream);
        let drain = &self.shared.drain.inbound;
        let mut heard = Heard::default();
        loop {
            let known = Known { proved: Some(Proved { alpn: accepted.alpn }), ..heard.inside() };
            match self.decide(&known) {
                Step::Learn(Learn::EitherSideInside) if !self.denies_bytes(Some(&accepted.peer)) => {
                    heard.watched(watch::both_sides(&mut stream, self.open(), drain).await.ok()?);
                }
                Step::Learn(_) => heard.said(watch::client_first(&mut stream, None, drain).await?),
                Step::Take(course) => {
                    return self.take(course, (Rewound::new(heard.seen, stream), Some(bond)), heard.opened, downstream).await;
                }
            }
        }
    }

    /// Carries the decision out.
    async fn take(
        &self,
        course: Course,
        (stream, bond): (Rewound<Stream>, Option<Bond>),
        opened: Option<Result<OpenedTcp, Failure>>,
        downstream: Downstream,
    ) -> Option<Carried> {
        match course {
            Course::Serve(_) | Course::Unreadable => Some(self.http((stream, bond), course.server()?, downstream)),
            Course::Carry | Course::Outside => {
                let mut account = self.account_tcp(&downstream);
                // It may have been silent for long: what counts is what is in force when it speaks.
                let (live, caller) = (self.shared.reader.load(), standing::caller(&downstream));
                if standing::lacks_proof(&live, &caller) {
                    account.failed(&self.unproved());
                    return None;
                }
                if let Some(judgement) = decide::judge(&live, (caller, None), None, None) {
                    account.judged(&judgement);
                    if let Some(denial) = Denial::of(&judgement) {
                        let policy = denial.ruling.as_ref().map_or("", |ruling| &ruling.label);
                        tracing::info!(peer = %self.peer, reason = denial.reason.text(), policy, "an opaque connection is denied");
                        return None;
                    }
                }
                let stand = self.shared.standing.enter(&downstream, None, &live, &self.shared.reader.load());
                let opened = match opened {
                    Some(opened) => opened,
                    None => self.open().await,
                };
                Some(Carried::Opaque(Box::new(Opaque {
                    downstream: stream,
                    bond,
                    opened,
                    idle: self.port.idle_timeout,
                    account,
                    forbidden: None,
                    stand: Some(stand),
                })))
            }
            Course::Refuse(reason) | Course::Close(reason) => {
                let failure = match self.port.mode {
                    MtlsMode::Strict if downstream.peer.is_none() => self.unproved(),
                    _ => self.undeclared(reason),
                };
                self.account_tcp(&downstream).failed(&failure);
                None
            }
        }
    }

    fn unproved(&self) -> Failure {
        Failure::new(Reason::Denied, format!("{} sent plaintext to a Strict port", self.peer))
    }

    /// Said aloud: what is missing is a word of whoever declared the port.
    fn undeclared(&self, reason: Reason) -> Failure {
        let port = self.destination.port();
        tracing::info!(peer = %self.peer, port, "closed: what came may be a request, and tokens are judged here: declare the port (appProtocol)");
        Failure::new(
            reason,
            format!("{} sent what may be the beginning of a request to undeclared port {port}, where tokens are judged", self.peer),
        )
    }

    /// Whether opaque bytes may not come.
    fn denies_bytes(&self, peer: Option<&Peer>) -> bool {
        let caller = standing::caller_of(peer, self.peer, self.destination.port());
        decide::judge(&self.shared.reader.load(), (caller, None), None, None).is_some_and(|judgement| !judgement.allows())
    }

    fn not_proved(&self, failure: &Failure) -> Option<Carried> {
        // Said aloud: in TLS 1.3 the client's own side may never learn why (facts.md, SPIFFE).
        tracing::info!(peer = %self.peer, %failure, "an inbound TLS handshake failed");
        let downstream = Observer::stranger((self.peer, self.destination));
        self.account_tcp(&downstream).failed(failure);
        None
    }

    fn downstream(&self, peer: Option<Arc<Peer>>, tls: Option<TlsFacts>) -> Downstream {
        self.shared.observer.downstream(Direction::Inbound, &self.snapshot, (self.peer, self.destination), peer, tls)
    }

    fn account_tcp(&self, downstream: &Downstream) -> Account {
        let mut account = self.shared.observer.begin_tcp(Direction::Inbound, &self.snapshot, downstream);
        account.at_port(&self.port);
        account
    }

    async fn open(&self) -> Result<OpenedTcp, Failure> {
        let to = Shared::application(&self.snapshot, self.destination);
        attempt::open(self.shared, None, Some(to)).await
    }

    fn http(&self, (stream, bond): (Rewound<Stream>, Option<Bond>), version: Version, downstream: Downstream) -> Carried {
        let door = Inward {
            destination: self.destination,
            application: Shared::application(&self.snapshot, self.destination),
            client_cert: downstream.peer.as_deref().and_then(|peer| forwarded_client_cert(self.shared, peer)),
        };
        let view = InForce { snapshot: Arc::clone(&self.snapshot), listener: Arc::clone(&self.port) };
        Carried::Http(Box::new(HttpConnection { stream, bond, version, connection: Connection::new(self.shared, door, downstream, view) }))
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

/// The door of calls to the application.
struct Inward {
    destination: SocketAddr,
    application: To,
    /// What its caller proved, for the application to read.
    client_cert: Option<HeaderValue>,
}

impl Door for Inward {
    const DIRECTION: Direction = Direction::Inbound;
    type Listener = Arc<InboundPort>;

    fn caller(&self, downstream: &Downstream) -> Caller {
        if downstream.peer.is_some() { Caller::Peer } else { Caller::Anybody }
    }

    fn look(&self, _: &Rc<Shared>, live: &Snapshot, before: &Arc<InboundPort>) -> Look<Arc<InboundPort>> {
        Look::Known(Arc::clone(live.inbound.as_ref().map_or(before, |inbound| inbound.port(self.destination.port()))))
    }

    fn terms<'v>(&self, _: &'v Snapshot, listener: &'v Arc<InboundPort>) -> decide::Terms<'v> {
        decide::Terms::Inbound(listener)
    }

    fn note(&self, listener: &Arc<InboundPort>, account: &mut Account) {
        account.at_port(listener);
    }

    fn mark(
        &self,
        (view, downstream): (&InForce<Self::Listener>, &Downstream),
        parts: &mut request::Parts,
        (_, of_hop): (Option<&ClientFound>, OfHop),
    ) {
        let headers = &mut parts.headers;
        // Whatever the caller said there is replaced, so that who reads it reads of whoever called (contract, section 4). What a Gateway has seen of
        // a client outside goes on under another name.
        let said = match &self.client_cert {
            Some(own) => headers.insert(X_FORWARDED_CLIENT_CERT, own.clone()),
            None => headers.remove(X_FORWARDED_CLIENT_CERT),
        };
        match said.filter(|_| self.believes(&view.snapshot, downstream)) {
            Some(outside) => drop(headers.insert(CLIENT_CERT_HEADER, outside)),
            None if of_hop.client_cert => drop(headers.remove(CLIENT_CERT_HEADER)),
            None => {}
        }
    }

    fn believes(&self, snapshot: &Snapshot, downstream: &Downstream) -> bool {
        let peer = downstream.peer.as_deref().map(|peer| &*peer.identity);
        peer.zip(snapshot.settings.as_deref()).is_some_and(|(peer, settings)| settings.is_gateway(peer))
    }

    fn judges_hosts(&self, snapshot: &Snapshot) -> bool {
        snapshot.authorization.as_ref().is_some_and(|authorization| authorization.of_hosts())
    }

    fn judge<'s>(
        &self,
        snapshot: &'s Snapshot,
        (downstream, _): (&Downstream, IpAddr),
        (head, claims): (&RequestHead<'_>, Option<&Claims>),
    ) -> Option<Judgement<'s>> {
        snapshot.authorization.as_ref()?;
        // What nobody may say is not there any more.
        let told = head.headers.get(CONSUMER_HEADER).and_then(Identified::told);
        decide::judge(snapshot, (standing::caller(downstream), told.as_ref()), Some(head), claims)
    }

    fn stand(
        &self,
        shared: &Shared,
        snapshot: &Snapshot,
        downstream: &Downstream,
        request: (&request::Parts, Option<&Arc<Claims>>),
    ) -> Option<Box<Stand>> {
        Some(Box::new(shared.standing.enter(downstream, Some(request), snapshot, &shared.reader.load())))
    }

    fn aim(&self, _: &Snapshot, listener: &Arc<InboundPort>, cluster: &Cluster) -> (Option<To>, Protocol) {
        (Some(self.application.clone()), spoken(listener.protocol, cluster.protocol))
    }
}
