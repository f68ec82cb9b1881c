//! From outside into the mesh: a Gateway's own doors, joined to the outbound road from the decision on.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use engine::decide::{Decision, RequestHead, decide};
use engine::failure::{LocalReply, Reason};
use engine::model::{Outbound, Snapshot};
use http::{HeaderMap, HeaderName, HeaderValue, Request};

use crate::arrival::{Arrival, http_version};
use crate::body::Received;
use crate::forward::{Answering, Journey, malformed, refused, reply};
use crate::http::{Caller, Hop, Version, judge_request, serve};
use crate::io::{Rewound, Stream};
use crate::limits::HEAD_WAIT;
use crate::observe::{Direction, Downstream};
use crate::shared::Shared;
use crate::watch;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const X_MESHWRIGHT_REASON: HeaderName = HeaderName::from_static("x-meshwright-reason");

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
        let fields = parts.headers.len();
        let mut exchange = self.shared.observer.begin_http(Direction::Outbound, &view.snapshot, &mut parts, &self.downstream);
        let Some(table) = view.edge.as_deref().and_then(|edge| edge.http.as_ref()) else {
            let reason = if view.snapshot.settings.is_none() { Reason::ConfigPending } else { Reason::NoRoute };
            return Answering::Ready(Box::new(reply(&self.shared, &LocalReply::of(reason), parts.version, exchange)));
        };
        self.mark(&mut parts.headers);
        let there = match judge_request(&mut parts, Hop::First, fields) {
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

    /// Says who called and how, and takes off what only the mesh may say.
    fn mark(&self, headers: &mut HeaderMap) {
        headers.remove(X_FORWARDED_CLIENT_CERT);
        headers.remove(X_MESHWRIGHT_REASON);
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
        if let Some(client) = &self.client {
            append(headers, client);
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

/// Adds the client to `x-forwarded-for`: behind what it says itself, as every proxy on the way does.
fn append(headers: &mut HeaderMap, client: &HeaderValue) {
    let before: Vec<&[u8]> = headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
    if before.is_empty() {
        headers.insert(X_FORWARDED_FOR, client.clone());
        return;
    }
    let all = [before.as_slice(), &[client.as_bytes()]].concat().join(&b", "[..]);
    if let Ok(value) = HeaderValue::from_bytes(&all) {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_added_behind_what_it_says() {
        // Aim: one header, the nearest hop last.
        for (before, after) in [(&[][..], "192.0.2.7"), (&["a"], "a, 192.0.2.7"), (&["a, b", "c"], "a, b, c, 192.0.2.7")] {
            let mut headers = HeaderMap::new();
            for value in before {
                headers.append(X_FORWARDED_FOR, value.parse().unwrap());
            }
            append(&mut headers, &"192.0.2.7".parse().unwrap());
            assert_eq!(headers.get_all(X_FORWARDED_FOR).iter().collect::<Vec<_>>(), [after]);
        }
    }
}
