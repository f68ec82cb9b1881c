//! From outside into the mesh: a Gateway's own doors, joined to the outbound road from the decision on.

use std::rc::Rc;
use std::sync::Arc;

use engine::authorize::Judgement;
use engine::claims::Claims;
use engine::decide::{self, RequestHead, Step, connection};
use engine::model::{Cluster, Outbound, Protocol, Snapshot};
use http::{HeaderMap, HeaderValue};

use crate::ground::limits::HEAD_WAIT;
use crate::http::{Caller, mark_outside};
use crate::io::{Rewound, Stream};
use crate::observe::{Direction, Downstream};
use crate::pool::To;
use crate::road::answer::{Connection, Door, HttpConnection, InForce, Look, serve};
use crate::road::arrival::{Arrival, Heard};
use crate::road::shared::Shared;
use crate::road::standing;
use crate::road::watch;

/// Serves one connection to a Gateway's port (the port of its listener, whatever the socket's own is). Dropping the future cuts it.
pub async fn serve_connection(arrival: Arrival, port: u16, shared: Rc<Shared>) {
    if let Some(served) = Box::pin(recognise(arrival, port, &shared)).await {
        serve(served, &shared).await;
    }
}

/// Finds out what a connection speaks. `None`: it said nothing, or nothing that is served.
async fn recognise(arrival: Arrival, port: u16, shared: &Rc<Shared>) -> Option<Box<HttpConnection>> {
    let Arrival { socket, peer, destination } = arrival;
    let (mut stream, mut heard) = (Stream::Plain(socket), Heard::default());
    heard.said(watch::client_first(&mut stream, Some(HEAD_WAIT), &shared.drain.outbound).await?);
    let snapshot = shared.reader.load();
    let Step::Take(course) = connection(&snapshot, decide::Door::Edge(port), &heard.known()) else { return None };
    let downstream = shared.observer.downstream(Direction::Outbound, &snapshot, (peer, destination), None, None);
    let door = Edge { port, client: HeaderValue::from_str(&peer.ip().to_string()).ok() };
    let listener = snapshot.edges.get(&port).cloned();
    let connection = Connection::new(shared, door, downstream, InForce { snapshot, listener });
    let stream = Rewound::new(heard.seen, stream);
    Some(Box::new(HttpConnection { stream, bond: None, version: course.server()?, connection }))
}

/// A Gateway's door.
struct Edge {
    port: u16,
    client: Option<HeaderValue>,
}

impl Door for Edge {
    const DIRECTION: Direction = Direction::Outbound;
    const OUTSIDE: bool = true;
    /// `None`: the Gateway has no such port.
    type Listener = Option<Arc<Outbound>>;

    fn caller(&self, _: &Downstream) -> Caller {
        Caller::Anybody
    }

    fn look(&self, _: &Rc<Shared>, live: &Snapshot, _: &Self::Listener) -> Look<Self::Listener> {
        Look::Known(live.edges.get(&self.port).cloned())
    }

    fn terms<'v>(&self, snapshot: &'v Snapshot, listener: &'v Self::Listener) -> decide::Terms<'v> {
        listener.as_ref().map_or_else(|| decide::Terms::of_edge(snapshot, self.port), decide::Terms::Edge)
    }

    fn mark(&self, headers: &mut HeaderMap) {
        mark_outside(headers, self.client.as_ref());
    }

    fn judges_hosts(&self, snapshot: &Snapshot) -> bool {
        snapshot.doors.get(&self.port).is_some_and(|policies| policies.of_hosts())
    }

    fn judge<'s>(
        &self,
        snapshot: &'s Snapshot,
        downstream: &Downstream,
        (head, _): (&RequestHead<'_>, Option<&Claims>),
    ) -> Option<Judgement<'s>> {
        decide::door(snapshot, self.port, standing::caller(downstream), Some(head))
    }

    fn aim(&self, _: &Snapshot, _: &Self::Listener, cluster: &Cluster) -> (Option<To>, Protocol) {
        (None, cluster.protocol)
    }
}
