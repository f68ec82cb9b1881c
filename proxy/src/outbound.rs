//! From the application into the mesh, and past it.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::decide::{self, Course, Decision, Door, Facts, Learn, RequestHead, Step, admit, choose, connection, decide};
use engine::failure::{Failure, Reason};
use engine::model::build::OPAQUE_IDLE_DEFAULT;
use engine::model::{Forward, Outbound, Snapshot, Target};
use http::Request;

use crate::arrival::{Arrival, Carried, Heard, Opaque, carry, refuse};
use crate::attempt::{self, Aim, OpenedTcp};
use crate::body::Received;
use crate::forward::{Answering, Journey, malformed, refused, reply};
use crate::http::{Caller, Hop, Raw, judge_request, serve, ticks};
use crate::io::{Rewound, Stream};
use crate::observe::{Direction, Downstream};
use crate::shared::Shared;
use crate::snapshots::{Lookup, Want};
use crate::watch;

/// How often a connection in use says that its destination still is, so that it is not forgotten.
const USE_TOLD_EVERY: Duration = Duration::from_secs(60);

/// Serves one connection to its end. The service is found by (address, port), never by Host. Dropping the future cuts the connection.
pub async fn serve_connection(arrival: Arrival, shared: Rc<Shared>) {
    match Box::pin(recognise(arrival, &shared)).await {
        None => {}
        Some(Carried::Opaque(opaque)) => Box::pin(carry(&shared, *opaque)).await,
        Some(Carried::Http(stream, version, connection)) => {
            let answering = Rc::clone(&connection);
            let answer = move |request| answering.answer(request).answer();
            if let Some(status) = serve(stream, version, Caller::Application, &shared.serving, &shared.drain.outbound, answer).await {
                malformed(&shared, Direction::Outbound, &connection.view.borrow().snapshot, &connection.downstream, status);
            }
        }
    }
}

/// Finds out where a connection goes and what it carries; what is refused is answered here. `None`: it is over.
async fn recognise(arrival: Arrival, shared: &Rc<Shared>) -> Option<Carried<Connection>> {
    let Arrival { socket, peer, destination } = arrival;
    // Fetched where it is not known yet; and said to be in use.
    shared.snapshots.outbound(destination).await;
    let snapshot = shared.reader.load();
    let listener = snapshot.outbound.get(&destination).cloned();
    let view = listener.map(|outbound| View { snapshot: Arc::clone(&snapshot), outbound });
    let downstream = shared.observer.downstream(Direction::Outbound, &snapshot, (peer, destination), None, None);
    let (mut stream, mut heard) = (Stream::Plain(socket), Heard::default());
    let course = loop {
        match connection(&snapshot, Door::Outbound(destination), &heard.known()) {
            Step::Take(course) => break course,
            Step::Learn(Learn::EitherSide) => {
                let opening = open(shared, view.as_ref()?, destination);
                heard.watched(watch::both_sides(&mut stream, opening, &shared.drain.outbound).await.ok()?);
            }
            Step::Learn(_) => heard.said(watch::client_first(&mut stream, None, &shared.drain.outbound).await?),
        }
    };
    let reason = match (course, view) {
        (Course::Outside, _) => return Some(outside(stream, destination, &snapshot, &downstream, shared).await),
        (Course::Carry, Some(view)) => {
            let opened = match heard.opened {
                Some(opened) => opened,
                None => open(shared, &view, destination).await,
            };
            return Some(opaque(shared, &view, &downstream, Rewound::new(heard.seen, stream), opened));
        }
        (Course::Serve(_) | Course::Unreadable, Some(view)) => {
            let version = course.server()?;
            let stream = Rewound::new(heard.seen, stream);
            return Some(Carried::Http(stream, version, Connection::new(Rc::clone(shared), destination, downstream, view)));
        }
        (Course::Refuse(reason) | Course::Close(reason), _) => reason,
        (_, None) => Reason::ConfigPending,
    };
    refuse(Rc::clone(shared), stream, Direction::Outbound, Rc::new(snapshot), downstream, reason).await;
    None
}

/// Past the mesh, untouched and in plaintext (but for the instance's own address, which is reached by way of the inbound side).
async fn outside(
    stream: Stream,
    destination: SocketAddr,
    snapshot: &Arc<Snapshot>,
    downstream: &Downstream,
    shared: &Shared,
) -> Carried<Connection> {
    let to = Shared::outside(destination);
    let opened = attempt::open(shared, Aim { cluster: None, only: Some(&to) }).await;
    let exchange = shared.observer.begin_tcp(Direction::Outbound, snapshot, downstream);
    let downstream = Rewound::new(Bytes::new(), stream);
    Carried::Opaque(Box::new(Opaque { downstream, opened, idle: Some(OPAQUE_IDLE_DEFAULT), exchange }))
}

/// One downstream connection to a destination of the mesh.
struct Connection {
    shared: Rc<Shared>,
    destination: SocketAddr,
    downstream: Downstream,
    view: RefCell<View>,
    told_use: Cell<u32>,
}

/// One epoch, and what it says of this connection's destination.
#[derive(Clone)]
struct View {
    snapshot: Arc<Snapshot>,
    outbound: Arc<Outbound>,
}

impl Connection {
    fn new(shared: Rc<Shared>, destination: SocketAddr, downstream: Downstream, view: View) -> Rc<Self> {
        let told_use = Cell::new(shared.patience.tick());
        Rc::new(Self { shared, destination, downstream, view: RefCell::new(view), told_use })
    }

    /// One request: one epoch for the whole of it.
    fn answer(self: &Rc<Self>, request: Request<Received>) -> Answering {
        self.tell_use();
        if self.shared.reader.with(|live| Arc::ptr_eq(live, &self.view.borrow().snapshot)) {
            return self.decide(request);
        }
        let connection = Rc::clone(self);
        let snapshot = self.shared.reader.load();
        match snapshot.outbound.get(&self.destination).cloned() {
            Some(outbound) => {
                self.take_up(snapshot, outbound, request.body());
                self.decide(request)
            }
            None => Answering::Later(Box::pin(async move {
                connection.look_again(request.body()).await;
                connection.decide(request)
            })),
        }
    }

    fn decide(&self, request: Request<Received>) -> Answering {
        let view = self.view.borrow();
        let (mut parts, received) = request.into_parts();
        let raw = Raw::of(&parts.headers, &received, Hop::First);
        let mut exchange = self.shared.observer.begin_http(Direction::Outbound, &view.snapshot, &mut parts, &self.downstream);
        let table = match admit(decide::View::Outbound(&view.outbound), Facts { proved: false, fault: None }) {
            Ok(table) => table,
            Err(refusal) => return Answering::Ready(Box::new(reply(&self.shared, &refusal.reply(), parts.version, exchange))),
        };
        let there = match judge_request(&mut parts, raw) {
            Ok(there) => there,
            Err(wrong) => return Answering::Ready(Box::new(refused(&self.shared, wrong, parts.version, exchange))),
        };
        let head = RequestHead::new(&parts.method, &parts.uri, &parts.headers);
        match decide(table, &head, self.shared.draw.next()) {
            Decision::Forward(plan) => {
                exchange.routed(plan.rule, plan.cluster);
                let only = Shared::fixed(plan.cluster.kind, &view.snapshot, self.destination);
                Answering::Forward(Journey::begin(
                    &self.shared,
                    (parts, received, there, Hop::First),
                    &plan,
                    (only, self.destination, plan.cluster.protocol),
                    exchange,
                ))
            }
            Decision::Reply { reply: answer, rule } => {
                if let Some(rule) = rule {
                    exchange.matched(rule);
                }
                Answering::Ready(Box::new(reply(&self.shared, answer, parts.version, exchange)))
            }
        }
    }

    /// Now and then, so that a destination in use is not forgotten although no new connection asks for it.
    fn tell_use(&self) {
        let now = self.shared.patience.tick();
        if now.wrapping_sub(self.told_use.get()) >= ticks(USE_TOLD_EVERY) {
            self.told_use.set(now);
            self.shared.snapshots.wanted().used(&Want::Outbound(self.destination), tokio::time::Instant::now());
        }
    }

    /// The destination is not in the live epoch. Where it cannot be had again, what was known of it stays in force for this connection:
    /// its clusters' endpoints are live in any case.
    async fn look_again(&self, received: &Received) {
        let outbound = match self.shared.snapshots.outbound(self.destination).await {
            Lookup::Found(outbound) => outbound,
            _ => Arc::clone(&self.view.borrow().outbound),
        };
        self.take_up(self.shared.reader.load(), outbound, received);
    }

    /// Takes up the live epoch. A port that was declared to be no HTTP any more serves this connection on by what it was, as the application
    /// does, and for the last time: the next connection is carried as declared.
    fn take_up(&self, snapshot: Arc<Snapshot>, outbound: Arc<Outbound>, received: &Received) {
        let mut view = self.view.borrow_mut();
        view.snapshot = snapshot;
        if outbound.http.is_some() || outbound.leads_nowhere() || view.outbound.http.is_none() {
            view.outbound = outbound;
        } else if let Some(line) = received.line() {
            line.be_the_last();
        }
    }
}

/// Opens the opaque connection that the destination's declaration leads to.
async fn open(shared: &Shared, view: &View, destination: SocketAddr) -> Result<OpenedTcp, Failure> {
    let name = &view.outbound.name;
    let Some(target) = view.outbound.tcp.as_deref().and_then(|forward| choose(forward, shared.draw.next())) else {
        return Err(Failure::new(Reason::NoRoute, format!("{name} has no backend for opaque bytes")));
    };
    match &target.target {
        Target::Cluster(cluster) => {
            let only = Shared::fixed(cluster.kind, &view.snapshot, destination);
            attempt::open(shared, Aim { cluster: Some(cluster), only: only.as_ref() }).await
        }
        Target::Reply(answer) => {
            Err(Failure::new(answer.reason.unwrap_or(Reason::BadBackend), format!("{name}: the backend does not exist")))
        }
    }
}

fn opaque(
    shared: &Shared,
    view: &View,
    downstream: &Downstream,
    stream: Rewound<Stream>,
    opened: Result<OpenedTcp, Failure>,
) -> Carried<Connection> {
    let mut exchange = shared.observer.begin_tcp(Direction::Outbound, &view.snapshot, downstream);
    let tcp = view.outbound.tcp.as_ref();
    if let Some(cluster) = opened.as_ref().ok().and_then(OpenedTcp::cluster).or_else(|| tcp.and_then(|forward| only_cluster(forward))) {
        exchange.to_cluster(&cluster);
    }
    let idle = tcp.and_then(|forward| forward.idle_timeout);
    Carried::Opaque(Box::new(Opaque { downstream: stream, opened, idle, exchange }))
}

/// The cluster of a forward that has only one, so that a connection that failed is counted there.
fn only_cluster(forward: &Forward) -> Option<Arc<engine::model::Cluster>> {
    match forward.backends.as_slice() {
        [only] => match &only.target {
            Target::Cluster(cluster) => Some(Arc::clone(cluster)),
            Target::Reply(_) => None,
        },
        _ => None,
    }
}
