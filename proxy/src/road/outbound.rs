//! From the application into the mesh, and past it.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::client::ClientFound;
use engine::decide::{self, Course, Known, Learn, Step, connection};
use engine::failure::{Failure, Reason};
use engine::model::{Cluster, Forward, Outbound, Protocol, Snapshot};
use http::request;

use crate::ground::body::Received;
use crate::ground::patience::ticks;
use crate::http::{Caller, OfHop};
use crate::io::{Abrupt as _, Rewound, Stream};
use crate::observe::{Direction, Downstream};
use crate::pool::To;
use crate::road::answer::{Connection, Door, HttpConnection, InForce, Look, serve};
use crate::road::arrival::{Arrival, Carried, Heard, Opaque, carry, refuse};
use crate::road::attempt::OpenedTcp;
use crate::road::opening;
use crate::road::outside::{self, Outside};
use crate::road::shared::Shared;
use crate::road::watch;
use crate::snapshots::{Lookup, Want};

/// How often a connection in use says that its destination still is, so that it is not forgotten.
const USE_TOLD_EVERY: Duration = Duration::from_secs(60);

/// Serves one connection to its end. The service is found by (address, port), never by Host. Dropping the future cuts the connection.
pub async fn serve_connection(arrival: Arrival, shared: Rc<Shared>) {
    match Box::pin(recognise(arrival, &shared)).await {
        None => {}
        Some(Carried::Http(served)) => serve(served, &shared).await,
        Some(Carried::Opaque(opaque)) => Box::pin(carry(&shared, *opaque)).await,
    }
}

/// Finds out where a connection goes and what it carries; what is refused is answered here. `None`: it is over.
async fn recognise(arrival: Arrival, shared: &Rc<Shared>) -> Option<Carried> {
    let Arrival { socket, peer, destination } = arrival;
    // Fetched where it is not known yet; and said to be in use.
    shared.snapshots.outbound(destination).await;
    let snapshot = shared.reader.load();
    let listener = snapshot.outbound.get(&destination).cloned();
    let view = listener.map(|outbound| InForce { snapshot: Arc::clone(&snapshot), listener: outbound });
    let downstream = shared.observer.downstream(Direction::Outbound, &snapshot, (peer, destination), None, None);
    let names = if view.is_none() { outside::names(shared, &snapshot, destination) } else { Vec::new() };
    let (mut stream, mut heard) = (Stream::Plain(socket), Heard::default());
    let course = loop {
        match connection(&snapshot, decide::Door::Outbound(destination), &Known { names: &names, ..heard.known() }) {
            Step::Take(course) => break course,
            Step::Learn(Learn::EitherSide) => {
                let opening = open_either(shared, view.as_ref(), destination);
                heard.watched(watch::both_sides(&mut stream, opening, &shared.drain.outbound).await.ok()?);
            }
            Step::Learn(_) => heard.said(watch::client_first(&mut stream, None, &shared.drain.outbound).await?),
        }
    };
    let reason = match (course, view) {
        (Course::Outside, _) => {
            return Some(outside::carried(stream, (heard, names), destination, (snapshot, &downstream), shared).await);
        }
        (Course::Serve(version), None) => {
            let view = InForce { listener: Arc::clone(&snapshot.egress.plain), snapshot };
            let connection = Connection::new(shared, Outside::new(destination, names), downstream, view);
            let stream = Rewound::new(heard.seen, stream);
            return Some(Carried::Http(Box::new(HttpConnection { stream, bond: None, version, connection })));
        }
        (Course::Carry, Some(view)) => {
            let tcp = decide::carried(&view.listener, heard.known().first).cloned();
            let opened = match heard.opened {
                Some(opened) => opened,
                None => open(shared, &view, tcp.as_ref(), destination).await,
            };
            let stream = Rewound::new(heard.seen, stream);
            return Some(opaque(shared, (&view, tcp.as_deref()), &downstream, stream, opened));
        }
        (Course::Serve(_) | Course::Unreadable, Some(view)) => {
            let door = Outward { destination, told_use: Cell::new(shared.patience.tick()) };
            let connection = Connection::new(shared, door, downstream, view);
            let stream = Rewound::new(heard.seen, stream);
            return Some(Carried::Http(Box::new(HttpConnection { stream, bond: None, version: course.server()?, connection })));
        }
        (Course::Close(reason), _) => {
            stream.abort();
            let failure = closed(shared, (&snapshot, destination), reason, &Known { names: &names, ..heard.known() });
            shared.observer.begin_tcp(Direction::Outbound, &snapshot, &downstream).failed(&failure);
            return None;
        }
        (Course::Refuse(reason), _) => reason,
        (_, None) => Reason::ConfigPending,
    };
    let forbidden = (reason == Reason::Denied).then(|| {
        let known = Known { names: &names, ..heard.known() };
        outside::cut(shared, &snapshot, destination, &known)
    });
    let why = forbidden.flatten().map_or_else(|| refusal(reason, destination), |forbidden| outside::failure(destination, forbidden));
    refuse(Rc::clone(shared), stream, Direction::Outbound, snapshot, downstream, why).await;
    None
}

/// Why a connection is closed without an answer.
fn closed(shared: &Shared, (snapshot, destination): (&Snapshot, SocketAddr), reason: Reason, known: &Known<'_>) -> Failure {
    match outside::cut(shared, snapshot, destination, known).filter(|_| reason == Reason::Denied) {
        Some(forbidden) => outside::failure(destination, forbidden),
        None => {
            let cause = "nothing is served here for what its client began with: TLS with a name that is served";
            Failure::new(reason, format!("{destination}: {cause}"))
        }
    }
}

/// Why a destination is refused that no policy is about.
fn refusal(reason: Reason, destination: SocketAddr) -> Failure {
    let cause = match reason {
        Reason::ConfigPending => "nothing is known yet about this destination: the control plane has not answered",
        Reason::NoRoute => "the mesh serves nothing at this port of the address: its Service or Gateway does not declare it",
        _ => "refused",
    };
    Failure::new(reason, format!("{destination}: {cause}"))
}

/// Opens on suspicion, before the client has said a word.
async fn open_either(shared: &Shared, view: Option<&InForce<Arc<Outbound>>>, destination: SocketAddr) -> Result<OpenedTcp, Failure> {
    match view {
        Some(view) => open(shared, view, None, destination).await,
        None => outside::open(shared, destination).await,
    }
}

/// The door of the application's own calls.
struct Outward {
    destination: SocketAddr,
    told_use: Cell<u32>,
}

impl Door for Outward {
    const DIRECTION: Direction = Direction::Outbound;
    type Listener = Arc<Outbound>;

    fn caller(&self, _: &Downstream) -> Caller {
        Caller::Application
    }

    /// Now and then said on, so that a destination in use is not forgotten although no new connection asks for it.
    fn used(&self, shared: &Shared) {
        let now = shared.patience.tick();
        if now.wrapping_sub(self.told_use.get()) >= ticks(USE_TOLD_EVERY) {
            self.told_use.set(now);
            shared.snapshots.wanted().used(&Want::Outbound(self.destination), tokio::time::Instant::now());
        }
    }

    /// A destination that is not in the live epoch is asked for. Where it cannot be had again, what was known of it stays in force for this
    /// connection: its clusters' endpoints are live in any case.
    fn look(&self, shared: &Rc<Shared>, live: &Snapshot, _: &Arc<Outbound>) -> Look<Arc<Outbound>> {
        if let Some(found) = live.outbound.get(&self.destination) {
            return Look::Known(Arc::clone(found));
        }
        let (shared, destination) = (Rc::clone(shared), self.destination);
        Look::Ask(Box::pin(async move {
            match shared.snapshots.outbound(destination).await {
                Lookup::Found(found) => Some(found),
                _ => None,
            }
        }))
    }

    /// A port that was declared to be no HTTP any more serves this connection on by what it was, as the application does, and for the last
    /// time: the next connection is carried as declared.
    fn take_up(&self, found: Arc<Outbound>, before: &Arc<Outbound>, received: &Received) -> Arc<Outbound> {
        if found.http.is_some() || found.leads_nowhere() || before.http.is_none() {
            return found;
        }
        if let Some(line) = received.line() {
            line.be_the_last();
        }
        Arc::clone(before)
    }

    fn terms<'v>(&self, _: &'v Snapshot, listener: &'v Arc<Outbound>) -> decide::Terms<'v> {
        decide::Terms::Outbound(listener)
    }

    fn mark(&self, _: (&InForce<Self::Listener>, &Downstream), _: &mut request::Parts, _: (Option<&ClientFound>, OfHop)) {}

    fn aim(&self, snapshot: &Snapshot, _: &Arc<Outbound>, cluster: &Cluster) -> (Option<To>, Protocol) {
        (Shared::fixed(cluster.kind, snapshot, self.destination), cluster.protocol)
    }
}

/// Opens the opaque connection that a forward leads to; `None`: the one of the destination's declaration.
async fn open(
    shared: &Shared,
    view: &InForce<Arc<Outbound>>,
    tcp: Option<&Arc<Forward>>,
    destination: SocketAddr,
) -> Result<OpenedTcp, Failure> {
    opening::open(shared, (&view.listener.name, &view.snapshot), tcp.or(view.listener.tcp.as_ref()), destination).await
}

fn opaque(
    shared: &Shared,
    (view, tcp): (&InForce<Arc<Outbound>>, Option<&Forward>),
    downstream: &Downstream,
    stream: Rewound<Stream>,
    opened: Result<OpenedTcp, Failure>,
) -> Carried {
    let mut account = shared.observer.begin_tcp(Direction::Outbound, &view.snapshot, downstream);
    if let Some(cluster) = opened.as_ref().ok().and_then(OpenedTcp::cluster).or_else(|| tcp.and_then(opening::only_cluster)) {
        account.to_cluster(&cluster);
    }
    let idle = tcp.and_then(|forward| forward.policy.idle_timeout);
    Carried::Opaque(Box::new(Opaque { downstream: stream, bond: None, opened, idle, account, forbidden: None, stand: None }))
}
