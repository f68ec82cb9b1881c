//! From outside into the mesh: a Gateway's own doors, joined to the outbound road from the decision on.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use engine::decide::{Decision, RequestHead, decide};
use engine::failure::{LocalReply, Reason};
use engine::model::{Outbound, Snapshot};
use http::{HeaderValue, Request};

use crate::arrival::{Arrival, http_version};
use crate::body::Received;
use crate::forward::{Answering, Journey, malformed, refused, reply};
use crate::http::{Caller, Hop, Raw, Version, judge_request, mark_outside, serve};
use crate::io::{Rewound, Stream};
use crate::limits::HEAD_WAIT;
use crate::observe::{Direction, Downstream};
use crate::shared::Shared;
use crate::watch;

/// Serves one connection to a Gateway's port (the port of its listener, whatever the socket's own is). Dropping the future cuts it.
pub async fn serve_connection(arrival: Arrival, port: u16, shared: Rc<Shared>) {
    let Arrival { socket, peer, destination } = arrival;
    let mut stream = Stream::Plain(socket);
    let Some(said) = Box::pin(watch::client_first(&mut stream, Some(HEAD_WAIT), &shared.drain.outbound)).await else { return };
    // What is no HTTP is answered 400 by the HTTP/1 server.
    let version = http_version(&said.sniffed).unwrap_or(Version::Http1);
    let snapshot = shared.reader.load();
    let downstream = shared.observer.downstream(Direction::Outbound, &snapshot, (peer, destination), None, None);
    let edge = snapshot.edges.get(&port).cloned();
    let client = HeaderValue::from_str(&peer.ip().to_string()).ok();
    let view = RefCell::new(View { snapshot, edge });
    let own = Rc::clone(&shared);
    let connection = Rc::new(Connection { shared, port, destination, downstream, client, view });
    let answering = Rc::clone(&connection);
    let answer = move |request| answering.answer(request).answer();
    if let Some(status) = serve(Rewound::new(said.seen, stream), version, Caller::Anybody, &own.serving, &own.drain.outbound, answer).await
    {
        malformed(&own, Direction::Outbound, &connection.view.borrow().snapshot, &connection.downstream, status);
    }
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
        let Some(table) = view.edge.as_deref().and_then(|edge| edge.http.as_ref()) else {
            let reason = if view.snapshot.settings.is_none() { Reason::ConfigPending } else { Reason::NoRoute };
            return Answering::Ready(Box::new(reply(&self.shared, &LocalReply::of(reason), parts.version, exchange)));
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
