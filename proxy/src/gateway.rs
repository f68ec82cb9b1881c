//! From outside into the mesh: a Gateway's own doors, joined to the outbound road from the decision on.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use engine::decide::{self, Decision, Door, Facts, RequestHead, Step, Version, admit, connection, decide};
use engine::model::{Outbound, Snapshot};
use http::{HeaderValue, Request};

use crate::arrival::{Arrival, Heard};
use crate::body::Received;
use crate::forward::{Answering, Journey, malformed, refused, reply};
use crate::http::{Caller, Hop, Raw, judge_request, mark_outside, serve};
use crate::io::{Rewound, Stream};
use crate::limits::HEAD_WAIT;
use crate::observe::{Direction, Downstream};
use crate::shared::Shared;
use crate::watch;

/// Serves one connection to a Gateway's port (the port of its listener, whatever the socket's own is). Dropping the future cuts it.
pub async fn serve_connection(arrival: Arrival, port: u16, shared: Rc<Shared>) {
    let Some((stream, version, served)) = Box::pin(recognise(arrival, port, &shared)).await else { return };
    let answering = Rc::clone(&served);
    let answer = move |request| answering.answer(request).answer();
    if let Some(status) = serve(stream, version, Caller::Anybody, &shared.serving, &shared.drain.outbound, answer).await {
        malformed(&shared, Direction::Outbound, &served.view.borrow().snapshot, &served.downstream, status);
    }
}

/// Finds out what a connection speaks. `None`: it said nothing.
async fn recognise(arrival: Arrival, port: u16, shared: &Rc<Shared>) -> Option<(Rewound<Stream>, Version, Rc<Connection>)> {
    let Arrival { socket, peer, destination } = arrival;
    let (mut stream, mut heard) = (Stream::Plain(socket), Heard::default());
    heard.said(watch::client_first(&mut stream, Some(HEAD_WAIT), &shared.drain.outbound).await?);
    let snapshot = shared.reader.load();
    let Step::Take(course) = connection(&snapshot, Door::Edge(port), &heard.known()) else { return None };
    let downstream = shared.observer.downstream(Direction::Outbound, &snapshot, (peer, destination), None, None);
    let edge = snapshot.edges.get(&port).cloned();
    let client = HeaderValue::from_str(&peer.ip().to_string()).ok();
    let view = RefCell::new(View { snapshot, edge });
    let served = Connection { shared: Rc::clone(shared), port, destination, downstream, client, view };
    Some((Rewound::new(heard.seen, stream), course.server()?, Rc::new(served)))
}

/// One downstream connection of the edge.
struct Connection {
    shared: Rc<Shared>,
    port: u16,
    destination: SocketAddr,
    downstream: Downstream,
    client: Option<HeaderValue>,
    view: RefCell<View>,
}

/// One epoch, and what it says of this connection's port.
struct View {
    snapshot: Arc<Snapshot>,
    edge: Option<Arc<Outbound>>,
}

impl Connection {
    /// One request: one epoch for the whole of it.
    fn answer(&self, request: Request<Received>) -> Answering {
        self.refresh();
        let view = self.view.borrow();
        let (mut parts, received) = request.into_parts();
        let raw = Raw::of(&parts.headers, &received, Hop::First);
        let mut exchange = self.shared.observer.begin_http(Direction::Outbound, &view.snapshot, &mut parts, &self.downstream);
        let told = view.edge.as_ref().map_or_else(|| decide::View::of_edge(&view.snapshot, self.port), decide::View::Edge);
        let table = match admit(told, Facts { proved: false, fault: None }) {
            Ok(table) => table,
            Err(refusal) => return Answering::Ready(Box::new(reply(&self.shared, &refusal.reply(), parts.version, exchange))),
        };
        mark_outside(&mut parts.headers, self.client.as_ref());
        let there = match judge_request(&mut parts, raw) {
            Ok(there) => there,
            Err(wrong) => return Answering::Ready(Box::new(refused(&self.shared, wrong, parts.version, exchange))),
        };
        let head = RequestHead::new(&parts.method, &parts.uri, &parts.headers);
        match decide(table, &head, self.shared.draw.next()) {
            Decision::Forward(plan) => {
                exchange.routed(plan.rule, plan.cluster);
                Answering::Forward(Journey::begin(
                    &self.shared,
                    (parts, received, there, Hop::First),
                    &plan,
                    (None, self.destination, plan.cluster.protocol),
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

    /// Takes up the live epoch.
    fn refresh(&self) {
        let mut view = self.view.borrow_mut();
        self.shared.reader.with(|live| {
            if !Arc::ptr_eq(live, &view.snapshot) {
                *view = View { snapshot: Arc::clone(live), edge: live.edges.get(&self.port).cloned() };
            }
        });
    }
}
