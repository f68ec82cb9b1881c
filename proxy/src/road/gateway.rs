//! From outside into the mesh: a Gateway's own doors, joined to the outbound road from the decision on.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use engine::authorize::Judgement;
use engine::claims::Claims;
use engine::client::{Admitted, ClientFound};
use engine::decide::{self, Course, EdgeDoor, Known, Learn, RequestHead, Step, Terms, connection};
use engine::failure::{Failure, Reason};
use engine::model::{Chain, Chains, ClientRules, Cluster, Forward, OwnCertificate, Port, Protocol, RouteTable, Snapshot, TlsTerms};
use http::{HeaderName, HeaderValue, request};
use tokio::time::timeout;

use crate::ground::limits::HEAD_WAIT;
use crate::http::{Caller, OfHop, Outsider, mark_outside};
use crate::io::{Abrupt as _, Rewound, Socket, Stream};
use crate::observe::{Direction, Downstream, client_tls};
use crate::pool::To;
#[cfg(feature = "http3")]
use crate::road::answer::Answers;
use crate::road::answer::{Connection, Door, HttpConnection, InForce, Look, serve};
use crate::road::arrival::{Arrival, Carried, Heard, Opaque, carry};
use crate::road::attempt::OpenedTcp;
use crate::road::introduced::introduced;
use crate::road::opening;
use crate::road::shared::Shared;
use crate::road::standing::{self, AskedOutside, Denial, Rejudge};
use crate::road::watch;
#[cfg(feature = "http3")]
use crate::tls::QuicMet;
use crate::tls::{Alert, EdgeAccepted, Proof, Shown};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Serves one connection to a Gateway's port (the port of its listener, whatever the socket's own is). Dropping the future cuts it.
pub async fn serve_connection(arrival: Arrival, port: u16, shared: Rc<Shared>) {
    // It keeps its place for as long as it is carried.
    let Some((carried, _place)) = Box::pin(recognise(arrival, port, &shared)).await else { return };
    match carried {
        Carried::Http(served) => serve(served, &shared).await,
        Carried::Opaque(opaque) => Box::pin(carry(&shared, *opaque)).await,
    }
}

/// Finds out who comes, and what a connection speaks and carries. `None`: it may not come, said nothing, or nothing that is served.
async fn recognise(arrival: Arrival, port: u16, shared: &Rc<Shared>) -> Option<(Carried, Option<Arc<Admitted>>)> {
    let Arrival { mut socket, peer: near, destination } = arrival;
    let snapshot = shared.reader.load();
    let clients = snapshot.edges.get(&port).map(|edge| Arc::clone(&edge.clients));
    let (mut peer, mut seen, mut place) = (near, Bytes::new(), None);
    if let Some(rule) = clients.as_ref().and_then(|clients| clients.proxy.as_ref()) {
        match Box::pin(introduced(&mut socket, rule, near)).await {
            Ok(told) => (peer, seen) = (told.from, told.rest),
            Err(why) => {
                shared.observer.edge().proxy_refused.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(peer = %near, port, why, "a client of an edge is closed");
                socket.abort();
                return None;
            }
        }
    }
    if let Some(admission) = clients.as_ref().and_then(|clients| clients.admission.as_ref()) {
        match admission.enter(peer.ip(), shared.moment(shared.clock.now())) {
            Ok(admitted) => place = Some(Arc::new(admitted)),
            Err(why) => {
                shared.observer.edge().not_admitted(why);
                tracing::debug!(%peer, port, bound = why.text(), "a client of an edge is not let in");
                socket.abort();
                return None;
            }
        }
    }
    let visit = Visit { shared, snapshot, port, peer, near: near.ip(), place: place.clone(), destination };
    visit.words(socket, seen).await.map(|carried| (carried, place))
}

/// A connection from outside.
struct Visit<'a> {
    shared: &'a Rc<Shared>,
    snapshot: Arc<Snapshot>,
    port: u16,
    /// Who comes.
    peer: SocketAddr,
    /// Who has connected: `peer`, or a balancer in front of us.
    near: IpAddr,
    place: Option<Arc<Admitted>>,
    destination: SocketAddr,
}

/// Requests of a client of HTTP/3 at a Gateway's port, whose TLS was ended inside QUIC. Whoever has sent its first packet is the client, wherever it moves.
#[cfg(feature = "http3")]
pub fn over_quic(shared: &Rc<Shared>, (port, snapshot): (u16, Arc<Snapshot>), met: QuicMet, downstream: Downstream) -> Rc<dyn Answers> {
    let QuicMet { terms, name, shown, proof, .. } = met;
    let peer = downstream.address.ip().to_canonical();
    let address = HeaderValue::from_str(&peer.to_string()).ok();
    let client = Rc::new(EdgeClient::Tls { name, terms, shown, proof });
    let door = Edge { shared: Rc::clone(shared), port, peer, near: downstream.address.ip(), address, client };
    let listener = door.served(&snapshot);
    Connection::new(shared, door, downstream, InForce { snapshot, listener })
}

impl Visit<'_> {
    fn decide(&self, known: &Known<'_>) -> Step {
        connection(&self.snapshot, decide::Door::Edge(self.port), known)
    }

    /// What its port serves by the name that TLS asks for, if it does.
    fn chains(&self) -> Option<&Chains> {
        match &self.snapshot.edges.get(&self.port)?.port {
            Port::Tls(chains) => Some(chains),
            Port::Http(_) | Port::Bytes(_) => None,
        }
    }

    /// Listens as it comes, for as long as it takes to know where it goes.
    /// `seen`: what was read already.
    async fn words(mut self, mut socket: Socket, seen: Bytes) -> Option<Carried> {
        let patience = self.patience();
        let mut heard = Heard::after(seen);
        loop {
            if self.snapshot.challenges.are_pending()
                && let Some(own) = self.proof(&heard)
            {
                Box::pin(self.prove(&own, heard, socket)).await;
                return None;
            }
            match self.decide(&heard.known()) {
                Step::Learn(Learn::Termination) => return self.terminate(heard, socket).await,
                Step::Learn(_) => {
                    let said = match std::mem::take(&mut heard.seen) {
                        seen if seen.is_empty() => watch::client_first(&mut socket, Some(patience), &self.shared.drain.outbound).await?,
                        seen => watch::client_goes_on(&mut socket, seen).await,
                    };
                    heard.said(said);
                    // It may have been silent for long: what counts is what is in force when it speaks.
                    self.snapshot = self.shared.reader.load();
                }
                Step::Take(Course::Close(reason)) if heard.is_tls() => {
                    self.shared.observer.edge().unnamed.fetch_add(1, Ordering::Relaxed);
                    if self.chains().is_some_and(Chains::passes) {
                        socket.abort();
                    } else {
                        Alert::UnrecognizedName.tell(&mut socket).await;
                    }
                    return self.refused(&Failure::new(reason, format!("{}: no listener has that name", self.asked(&heard))));
                }
                Step::Take(course) => {
                    let downstream = self.downstream();
                    let forward = decide::carried_at_edge(&self.snapshot, self.port, heard.known().first).cloned();
                    let chain = decide::chain(&self.snapshot, self.port, heard.sni()).cloned();
                    let stream = Rewound::new(heard.seen, Stream::Plain(socket));
                    return self.take(course, stream, (EdgeClient::Plaintext, forward, chain), downstream).await;
                }
            }
        }
    }

    /// What is shown to a certificate authority that asks here for a name which is being proved; whatever else is served by that name.
    fn proof(&self, heard: &Heard) -> Option<Arc<OwnCertificate>> {
        let name = heard.challenged().filter(|_| self.chains().is_some())?;
        self.snapshot.challenges.certificate(name)
    }

    /// Shows it, and nothing else.
    async fn prove(&self, own: &OwnCertificate, heard: Heard, socket: Socket) {
        let name = heard.challenged().unwrap_or_default().to_owned();
        let full = || _ = self.shared.observer.edge().handshakes_full.fetch_add(1, Ordering::Relaxed);
        let proving = self.shared.tls.edge().prove(own, Rewound::new(heard.seen, socket));
        match timeout(self.patience(), self.shared.handshakes.run(full, proving)).await {
            Ok(Some(Ok(()))) => tracing::info!(peer = %self.peer, name, "proved a name to a certificate authority"),
            Ok(Some(Err(failure))) => _ = self.refused(&failure),
            Ok(None) | Err(_) => _ = self.refused(&Failure::new(Reason::TlsFailed, "a certificate authority's handshake took too long")),
        }
    }

    /// How long it may be silent at first.
    fn patience(&self) -> Duration {
        match self.snapshot.edges.get(&self.port) {
            Some(edge) if matches!(edge.port, Port::Tls(_)) => edge.clients.only().timeouts.tls_handshake,
            Some(edge) => edge.clients.only().timeouts.request_headers,
            None => HEAD_WAIT,
        }
    }

    /// What holds for clients that meet a chain.
    fn rules(&self, chain: &str) -> Arc<ClientRules> {
        self.snapshot.edges.get(&self.port).map(|edge| Arc::clone(edge.clients.on(chain))).unwrap_or_default()
    }

    /// Ends the client's TLS by the terms of its chain.
    async fn terminate(self, heard: Heard, mut socket: Socket) -> Option<Carried> {
        let name: Option<Arc<str>> = heard.sni().map(Into::into);
        let chain = Arc::clone(decide::chain(&self.snapshot, self.port, name.as_deref())?);
        let terms = Arc::clone(chain.terms.as_ref()?);
        let edge = self.shared.tls.edge();
        if let Err(failure) = edge.ready(&terms) {
            tracing::warn!(listener = &*chain.name, %failure, "a client of an edge cannot be served");
            Alert::InternalError.tell(&mut socket).await;
            return self.refused(&failure);
        }
        let forward = decide::carried_at_edge(&self.snapshot, self.port, heard.known().first).cloned();
        let full = || _ = self.shared.observer.edge().handshakes_full.fetch_add(1, Ordering::Relaxed);
        let handshake = self.shared.handshakes.run(full, edge.accept(&terms, Rewound::new(heard.seen.clone(), socket)));
        let late = || Failure::new(Reason::TlsFailed, "the TLS handshake took too long");
        let crowded = || Failure::new(Reason::TlsFailed, "the TLS handshake was the slowest of as many as may be, and made room");
        let patience = self.rules(&chain.name).timeouts.tls_handshake;
        let accepted = match Box::pin(timeout(patience, handshake)).await {
            Ok(done) => done.unwrap_or_else(|| Err(crowded())),
            Err(_) => Err(late()),
        };
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(failure) => {
                self.shared.observer.edge().handshakes_failed.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(peer = %self.peer, listener = &*chain.name, %failure, "a client's TLS handshake failed");
                return self.refused(&failure);
            }
        };
        let EdgeAccepted { stream, alpn, shown, proof, facts } = accepted;
        self.shared.observer.edge().handshake(&facts);
        let certificate = shown.as_ref().map(|shown| (&*shown.hash_hex, shown.believed));
        let mut downstream = self.downstream();
        (downstream.tls, downstream.client_tls) = (Some(facts), Some(client_tls(&facts, name.as_deref(), certificate)));
        downstream.certificate = shown.as_ref().and_then(Shown::certificate).cloned();
        // The chain has decided; only what is inside is left to say.
        let Step::Take(course) = self.decide(&heard.ended(alpn)) else { return None };
        let stream = Rewound::new(Bytes::new(), Stream::accepted(stream));
        let client = EdgeClient::Tls { name, terms, shown, proof };
        self.take(course, stream, (client, forward, Some(chain)), downstream).await
    }

    /// Carries the decision out.
    async fn take(
        &self,
        course: Course,
        mut stream: Rewound<Stream>,
        (client, forward, chain): (EdgeClient, Option<Arc<Forward>>, Option<Arc<Chain>>),
        downstream: Downstream,
    ) -> Option<Carried> {
        match course {
            Course::Serve(_) | Course::Unreadable => {
                let peer = self.peer.ip().to_canonical();
                let address = HeaderValue::from_str(&peer.to_string()).ok();
                let (shared, client) = (Rc::clone(self.shared), Rc::new(client));
                let door = Edge { shared, port: self.port, peer, near: self.near, address, client };
                let listener = door.served(&self.snapshot);
                let view = InForce { snapshot: Arc::clone(&self.snapshot), listener };
                let connection = Connection::new(self.shared, door, downstream, view);
                Some(Carried::Http(Box::new(HttpConnection { stream, bond: None, version: course.server()?, connection })))
            }
            Course::Carry => {
                let name = self.snapshot.edges.get(&self.port).map_or("", |edge| &*edge.name);
                let mut account = self.shared.observer.begin_tcp(Direction::Outbound, &self.snapshot, &downstream);
                let from = (standing::caller(&downstream), self.near);
                for judgement in decide::carried_by(&self.snapshot, self.port, chain.as_deref(), from) {
                    account.judged(&judgement);
                    if let Some(denial) = Denial::of(&judgement) {
                        let policy = denial.ruling.as_ref().map_or("", |ruling| &ruling.label);
                        tracing::info!(peer = %self.peer, port = self.port, policy, "a connection is denied by its address");
                        stream.abort();
                        return None;
                    }
                }
                let opened = opening::open(self.shared, (name, &self.snapshot), forward.as_ref(), self.destination).await;
                let only = forward.as_deref().and_then(opening::only_cluster);
                if let Some(cluster) = opened.as_ref().ok().and_then(OpenedTcp::cluster).or(only) {
                    account.to_cluster(&cluster);
                }
                if opened.is_err() {
                    stream.abort();
                }
                let idle = forward.as_ref().and_then(|forward| forward.policy.idle_timeout);
                let opaque = Opaque { downstream: stream, bond: None, opened, idle, account, forbidden: None, stand: None };
                Some(Carried::Opaque(Box::new(opaque)))
            }
            Course::Refuse(_) | Course::Close(_) | Course::Outside => {
                stream.abort();
                self.refused(&Failure::new(Reason::NoRoute, format!("port {}: only TLS is served here, and this is none", self.port)))
            }
        }
    }

    /// Records a connection that was not served.
    fn refused(&self, failure: &Failure) -> Option<Carried> {
        self.shared.observer.begin_tcp(Direction::Outbound, &self.snapshot, &self.downstream()).failed(failure);
        None
    }

    fn downstream(&self) -> Downstream {
        let ends = (self.peer, self.destination);
        let mut downstream = self.shared.observer.downstream(Direction::Outbound, &self.snapshot, ends, None, None);
        downstream.place.clone_from(&self.place);
        downstream
    }

    /// What a client asks for, for people.
    fn asked(&self, heard: &Heard) -> String {
        heard.sni().map_or_else(|| format!("port {}, without a name", self.port), |name| format!("port {}, `{name}`", self.port))
    }
}

/// How a client came in.
enum EdgeClient {
    /// As it is.
    Plaintext,
    /// By TLS that was ended here.
    Tls {
        /// The name that it asked for.
        name: Option<Arc<str>>,
        /// How it was ended.
        terms: Arc<TlsTerms>,
        /// What it has shown.
        shown: Option<Shown>,
        /// The same, to be judged again.
        proof: Option<Proof>,
    },
}

/// A Gateway's door.
#[derive(Clone)]
struct Edge {
    shared: Rc<Shared>,
    port: u16,
    /// Who comes, before what a proxy says of it.
    peer: IpAddr,
    /// Who has connected.
    near: IpAddr,
    /// `peer`'s.
    address: Option<HeaderValue>,
    client: Rc<EdgeClient>,
}

/// What an epoch says of a client's requests.
enum Served {
    Table {
        table: Arc<RouteTable>,
        /// What the client's certificate proves is told on.
        tells_client: bool,
        rules: Arc<ClientRules>,
    },
    Misdirected,
    NoPort,
    Unconfigured,
}

impl Edge {
    /// Whether the client's certificate is worth something else by now: then it is for a connection of its own.
    fn is_doubted(&self) -> bool {
        match &*self.client {
            EdgeClient::Tls { terms, shown: Some(shown), proof: Some(proof), .. } => !self.shared.tls.edge().stands(terms, shown, proof),
            EdgeClient::Tls { .. } | EdgeClient::Plaintext => false,
        }
    }

    fn served(&self, live: &Snapshot) -> Served {
        let (door, tells_client) = match &*self.client {
            EdgeClient::Plaintext => (EdgeDoor::Plaintext, false),
            EdgeClient::Tls { name, terms, .. } => {
                let tells = decide::chain(live, self.port, name.as_deref()).is_some_and(|chain| chain.tells_client);
                (EdgeDoor::Tls { name: name.as_deref(), clients: terms.clients.as_ref() }, tells)
            }
        };
        let rules = || {
            let clients = live.edges.get(&self.port).map(|edge| &edge.clients);
            let found = match &*self.client {
                EdgeClient::Plaintext => clients.map(|clients| clients.only()),
                EdgeClient::Tls { name, .. } => {
                    clients.zip(decide::chain(live, self.port, name.as_deref())).map(|(clients, chain)| clients.on(&chain.name))
                }
            };
            found.cloned().unwrap_or_default()
        };
        match Terms::of_edge(live, self.port, &door) {
            Terms::Edge(table) => Served::Table { table: Arc::clone(table), tells_client, rules: rules() },
            Terms::Misdirected => Served::Misdirected,
            Terms::Unconfigured => Served::Unconfigured,
            Terms::NoPort | Terms::Outbound(_) | Terms::Inbound(_) | Terms::Outside(_) => Served::NoPort,
        }
    }

    /// Why what became of a client's request may not stay open: its credential is gone, its certificate is worth something else, or policies of
    /// addresses or of the rule that it would meet by now forbid it.
    fn denial(&self, live: &Snapshot, caller: decide::Caller<'_>, asked: &AskedOutside) -> Option<Denial> {
        let refused = |reason| Some(Denial { reason, ruling: None });
        if let Some(who) = &asked.who
            && !live.consumers.with(|book| book.still_has(who))
        {
            return refused(Reason::Unauthenticated);
        }
        let served = self.served(live);
        if self.is_doubted() || matches!(served, Served::Misdirected) {
            return refused(Reason::Denied);
        }
        let head = RequestHead::new(&asked.head.method, &asked.head.uri, &asked.head.headers);
        let by_door = decide::door(live, self.port, (caller, self.near), Some(&head)).as_ref().and_then(Denial::of);
        let Served::Table { table, .. } = &served else { return by_door };
        by_door.or_else(|| {
            let judged = decide::at_rule(live, table, (caller, self.near), (&head, asked.who.as_deref()));
            judged.as_ref().and_then(Denial::of)
        })
    }
}

impl Door for Edge {
    const DIRECTION: Direction = Direction::Outbound;
    const OUTSIDE: bool = true;
    type Listener = Served;

    fn caller(&self, _: &Downstream) -> Caller {
        Caller::Anybody
    }

    fn look(&self, _: &Rc<Shared>, live: &Snapshot, _: &Served) -> Look<Served> {
        Look::Known(self.served(live))
    }

    fn terms<'v>(&self, _: &'v Snapshot, listener: &'v Served) -> Terms<'v> {
        match listener {
            Served::Table { .. } if self.is_doubted() => Terms::Misdirected,
            Served::Table { table, .. } => Terms::Edge(table),
            Served::Misdirected => Terms::Misdirected,
            Served::NoPort => Terms::NoPort,
            Served::Unconfigured => Terms::Unconfigured,
        }
    }

    fn rules<'v>(&self, listener: &'v Served) -> Option<&'v Arc<ClientRules>> {
        if let Served::Table { rules, .. } = listener { Some(rules) } else { None }
    }

    fn find(&self, listener: &Served, parts: &mut request::Parts) -> Option<ClientFound> {
        let rules = self.rules(listener)?;
        let found = rules.address.find(self.peer, &parts.headers);
        if !(rules.headers.keep_trusted_id && found.trusted.is_some()) {
            parts.headers.remove(X_REQUEST_ID);
        }
        Some(found)
    }

    fn peer(&self, _: &Downstream) -> IpAddr {
        self.near
    }

    fn mark(&self, (view, _): (&InForce<Served>, &Downstream), parts: &mut request::Parts, (found, of_hop): (Option<&ClientFound>, OfHop)) {
        let (https, shown) = match &*self.client {
            EdgeClient::Plaintext => (false, None),
            EdgeClient::Tls { shown, .. } => (true, shown.as_ref()),
        };
        let tells = matches!(view.listener, Served::Table { tells_client: true, .. });
        let usual;
        let found = match found {
            Some(found) => found,
            None => {
                usual = ClientFound::peer(self.peer);
                &usual
            }
        };
        let certificate = shown.filter(|_| tells).and_then(Shown::told);
        let outsider = Outsider { peer: self.peer, peer_value: self.address.as_ref(), found, https, certificate };
        mark_outside(parts, &outsider, of_hop.forwarded);
    }

    fn judges_hosts(&self, snapshot: &Snapshot) -> bool {
        snapshot.doors.get(&self.port).is_some_and(|policies| policies.of_hosts())
    }

    fn judge<'s>(
        &self,
        snapshot: &'s Snapshot,
        (downstream, client): (&Downstream, IpAddr),
        (head, _): (&RequestHead<'_>, Option<&Claims>),
    ) -> Option<Judgement<'s>> {
        let source = SocketAddr::new(client, downstream.address.port());
        let caller = decide::Caller { source, ..standing::caller(downstream) };
        decide::door(snapshot, self.port, (caller, self.near), Some(head))
    }

    fn rejudge(&self, (downstream, client): (&Downstream, IpAddr), asked: AskedOutside) -> Option<Rejudge> {
        let source = SocketAddr::new(client, downstream.address.port());
        let (edge, port) = (self.clone(), downstream.local.port());
        Some(Box::new(move |live: &Snapshot| edge.denial(live, standing::caller_of(None, source, port), &asked)))
    }

    fn aim(&self, _: &Snapshot, _: &Served, cluster: &Cluster) -> (Option<To>, Protocol) {
        (None, cluster.protocol)
    }
}
