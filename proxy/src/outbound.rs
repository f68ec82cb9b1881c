//! From the application into the mesh, and past it.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::decide::{Decision, RequestHead, choose, decide};
use engine::failure::{Failure, LocalReply, Reason};
use engine::model::{Forward, Outbound, Protocol, Snapshot, Target};
use http::{Request, Response};
use hyper::body::Incoming;

use crate::arrival::{Arrival, carry, http_version, refuse};
use crate::attempt::{self, Aim, OpenedTcp};
use crate::body::Body;
use crate::forward::{forward, reply};
use crate::http::{Version, serve, ticks};
use crate::io::{Rewound, Stream};
use crate::observe::{Direction, Downstream};
use crate::shared::Shared;
use crate::snapshots::{Lookup, Want};
use crate::watch::{self, Watched};

/// Idle timeout of connections that pass the mesh by.
const IDLE_OUTSIDE: Duration = Duration::from_secs(3600);
/// How often a connection in use says that its destination still is, so that it is not forgotten.
const USE_TOLD_EVERY: Duration = Duration::from_secs(60);

/// Serves one connection to its end. The service is found by (address, port), never by Host. Dropping the future cuts the connection.
pub async fn serve_connection(arrival: Arrival, shared: Rc<Shared>) {
    let Arrival { socket, peer, destination } = arrival;
    let lookup = Box::pin(shared.snapshots.outbound(destination)).await;
    let snapshot = shared.reader.load();
    let downstream = shared.observer.downstream(Direction::Outbound, &snapshot, (peer, destination), None, None);
    let stream = Stream::Plain(socket);
    let reason = match lookup {
        Lookup::Found(outbound) => {
            let connection = Connection::new(shared, destination, downstream, View { snapshot, outbound });
            return by_protocol(stream, connection).await;
        }
        Lookup::Outside => return outside(stream, destination, &snapshot, &downstream, &shared).await,
        Lookup::Denied => Reason::Denied,
        Lookup::Pending => Reason::ConfigPending,
    };
    Box::pin(refuse(shared, stream, Direction::Outbound, Rc::new(snapshot), downstream, reason)).await;
}

async fn by_protocol(mut stream: Stream, connection: Rc<Connection>) {
    let outbound = connection.view.borrow().outbound.clone();
    let nothing_seen = |stream| Rewound::new(bytes::Bytes::new(), stream);
    match outbound.protocol {
        Protocol::Http1 => connection.http(nothing_seen(stream), Version::Http1).await,
        Protocol::Http2 => connection.http(nothing_seen(stream), Version::Http2).await,
        Protocol::Http => {
            let Some(said) = watch::client_first(&mut stream, None).await else { return };
            // What is no HTTP either is answered 400 by the HTTP/1 server.
            let version = http_version(&said.sniffed).unwrap_or(Version::Http1);
            connection.http(Rewound::new(said.seen, stream), version).await;
        }
        Protocol::Tcp => {
            let opened = Box::pin(connection.open(&outbound)).await;
            connection.opaque(nothing_seen(stream), opened).await;
        }
        Protocol::Auto => {
            let watched = Box::pin(watch::both_sides(&mut stream, connection.open(&outbound))).await;
            let (seen, opened) = match watched {
                Err(_) => return,
                Ok(Watched::Client(said, opened)) => {
                    if let Some(version) = http_version(&said.sniffed) {
                        return connection.http(Rewound::new(said.seen, stream), version).await;
                    }
                    let opened = match opened {
                        Some(opened) => Ok(*opened),
                        None => Box::pin(connection.open(&outbound)).await,
                    };
                    (said.seen, opened)
                }
                Ok(Watched::Server(opened)) => (bytes::Bytes::new(), Ok(*opened)),
                Ok(Watched::Unreachable(failure)) => (bytes::Bytes::new(), Err(failure)),
            };
            connection.opaque(Rewound::new(seen, stream), opened).await;
        }
    }
}

/// Past the mesh, untouched and in plaintext (but for the instance's own address, which is reached by way of the inbound side).
async fn outside(stream: Stream, destination: SocketAddr, snapshot: &Arc<Snapshot>, downstream: &Downstream, shared: &Rc<Shared>) {
    let to = Shared::outside(destination);
    let opened = Box::pin(attempt::open(shared, Aim { cluster: None, only: Some(&to) })).await;
    let exchange = shared.observer.begin_tcp(Direction::Outbound, snapshot, downstream);
    carry(shared, Rewound::new(bytes::Bytes::new(), stream), opened, Some(IDLE_OUTSIDE), exchange).await;
}

/// One downstream connection to a destination of the mesh.
pub(crate) struct Connection {
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

    async fn http(self: Rc<Self>, stream: Rewound<Stream>, version: Version) {
        let (serving, drain) = (Rc::clone(&self.shared), Rc::clone(&self.shared.drain));
        let answer = move |request| {
            let connection = Rc::clone(&self);
            async move { connection.answer(request).await }
        };
        serve(stream, version, false, &serving.serving, &drain, answer).await;
    }

    /// One request: one epoch for the whole of it.
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let view = self.view().await;
        let (mut parts, incoming) = request.into_parts();
        let mut exchange = self.shared.observer.begin_http(Direction::Outbound, &view.snapshot, &mut parts, &self.downstream);
        let Some(table) = &view.outbound.http else {
            return reply(&self.shared, &LocalReply::of(Reason::NoRoute), parts.version, exchange);
        };
        let head = RequestHead::new(&parts.method, &parts.uri, &parts.headers);
        match decide(table, &head, self.shared.draw.next()) {
            Decision::Forward(plan) => {
                exchange.routed(plan.rule, plan.cluster);
                let only = Shared::fixed(plan.cluster.kind, &view.snapshot, self.destination);
                forward(&self.shared, parts, incoming, &plan, (only.as_ref(), self.destination), exchange).await
            }
            Decision::Reply { reply: answer, rule } => {
                if let Some(rule) = rule {
                    exchange.matched(rule);
                }
                reply(&self.shared, answer, parts.version, exchange)
            }
        }
    }

    /// The live epoch's view. Where the destination has vanished meanwhile, what was known of it stays in force for this connection: its
    /// clusters' endpoints are live in any case.
    async fn view(&self) -> View {
        let now = self.shared.patience.tick();
        if now.wrapping_sub(self.told_use.get()) >= ticks(USE_TOLD_EVERY) {
            self.told_use.set(now);
            self.shared.snapshots.wanted().used(&Want::Outbound(self.destination), tokio::time::Instant::now());
        }
        let same = self.shared.reader.with(|live| Arc::ptr_eq(live, &self.view.borrow().snapshot));
        if !same {
            self.look_again().await;
        }
        self.view.borrow().clone()
    }

    #[cold]
    async fn look_again(&self) {
        let snapshot = self.shared.reader.load();
        let known = snapshot.outbound.get(&self.destination).cloned();
        let outbound = match known {
            Some(outbound) => outbound,
            None => match Box::pin(self.shared.snapshots.outbound(self.destination)).await {
                Lookup::Found(outbound) => outbound,
                _ => Arc::clone(&self.view.borrow().outbound),
            },
        };
        self.view.replace(View { snapshot: self.shared.reader.load(), outbound });
    }

    /// Opens the opaque connection that the destination's declaration leads to.
    async fn open(&self, outbound: &Outbound) -> Result<OpenedTcp, Failure> {
        let snapshot = self.view.borrow().snapshot.clone();
        let name = &outbound.name;
        let Some(target) = outbound.tcp.as_deref().and_then(|forward| choose(forward, self.shared.draw.next())) else {
            return Err(Failure::new(Reason::NoRoute, format!("{name} has no backend for opaque bytes")));
        };
        match &target.target {
            Target::Cluster(cluster) => {
                let only = Shared::fixed(cluster.kind, &snapshot, self.destination);
                attempt::open(&self.shared, Aim { cluster: Some(cluster), only: only.as_ref() }).await
            }
            Target::Reply(answer) => {
                Err(Failure::new(answer.reason.unwrap_or(Reason::BadBackend), format!("{name}: the backend does not exist")))
            }
        }
    }

    async fn opaque(&self, stream: Rewound<Stream>, opened: Result<OpenedTcp, Failure>) {
        let view = self.view.borrow().clone();
        let mut exchange = self.shared.observer.begin_tcp(Direction::Outbound, &view.snapshot, &self.downstream);
        let tcp: Option<&Arc<Forward>> = view.outbound.tcp.as_ref();
        if let Some(cluster) = opened.as_ref().ok().and_then(OpenedTcp::cluster).or_else(|| tcp.and_then(|forward| only_cluster(forward))) {
            exchange.to_cluster(&cluster);
        }
        let idle = tcp.and_then(|forward| forward.idle_timeout);
        carry(&self.shared, stream, opened, idle, exchange).await;
    }
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
