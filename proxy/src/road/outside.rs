//! Past the mesh: bytes as they are, and requests one by one where an EgressPolicy speaks of names.

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use engine::decide::outside::{self, Departure, Forbidden};
use engine::decide::{First, Known, RequestHead, Terms, TurnedAway};
use engine::failure::{Failure, Reason};
use engine::model::build::OPAQUE_IDLE_DEFAULT;
use engine::model::{Barred, Cluster, EgressMode, ORIGINATE_PORT, Protocol, RouteTable, Snapshot};
use engine::sniff::Sniffed;
use http::{HeaderMap, request};
use tokio::time::Instant;

use crate::http::Caller;
use crate::io::{Rewound, Stream};
use crate::observe::{Account, Direction, Downstream};
use crate::pool::To;
use crate::road::answer::{Door, Look};
use crate::road::arrival::{Carried, Heard, Opaque};
use crate::road::attempt::{self, OpenedTcp};
use crate::road::shared::Shared;
use crate::snapshots::Snapshots;

/// The names whose DNS answers gave that address to the application, where that may matter.
pub fn names(shared: &Shared, snapshot: &Snapshot, to: SocketAddr) -> Vec<Arc<str>> {
    match snapshot.egress.mode {
        EgressMode::Unsaid => Vec::new(),
        EgressMode::Audit | EgressMode::Enforce => shared.snapshots.learned().names(to.ip(), Instant::now()),
    }
}

/// Opens the original destination itself.
///
/// # Errors
/// It cannot be reached.
pub async fn open(shared: &Shared, to: SocketAddr) -> Result<OpenedTcp, Failure> {
    attempt::open(shared, None, Some(Shared::outside(to))).await
}

/// Untouched and in plaintext (but for the instance's own address, which is reached by way of the inbound side). It is asked again under
/// each newer policy.
pub async fn carried(
    stream: Stream,
    (mut heard, names): (Heard, Vec<Arc<str>>),
    to: SocketAddr,
    (snapshot, downstream): (Arc<Snapshot>, &Downstream),
    shared: &Shared,
) -> Carried {
    let mut account = shared.observer.begin_tcp(Direction::Outbound, &snapshot, downstream);
    let (opened, seen) = (heard.opened.take(), heard.seen.clone());
    let known = Known { names: &names, ..heard.known() };
    if let Ok(departure) = judged(&snapshot, to, &known)
        && let Some(barred) = departure.told
    {
        told(shared, &mut account, (to, sni(&known)), barred);
    }
    let opened = match opened {
        Some(opened) => opened,
        None => open(shared, to).await,
    };
    let forbidden = Some(asked_again(shared.snapshots.clone(), snapshot, to, (heard, names)));
    Carried::Opaque(Box::new(Opaque {
        bond: None,
        stand: None,
        downstream: Rewound::new(seen, stream),
        opened,
        idle: Some(OPAQUE_IDLE_DEFAULT),
        account,
        forbidden,
    }))
}

fn judged<'s>(snapshot: &'s Snapshot, to: SocketAddr, known: &Known<'_>) -> Result<Departure<'s>, Forbidden> {
    outside::departure(snapshot, to, known.names, known.first.and_then(First::spoken))
}

/// Resolves when a policy is live that forbids what was allowed under `before`, judged by what was known as it was opened.
fn asked_again(
    snapshots: Snapshots,
    before: Arc<Snapshot>,
    to: SocketAddr,
    (heard, names): (Heard, Vec<Arc<str>>),
) -> Pin<Box<dyn Future<Output = Failure>>> {
    let mut asked = (Arc::clone(&before.egress), before.settings.clone());
    drop(before);
    let mut changes = snapshots.changes();
    Box::pin(async move {
        loop {
            let live = snapshots.load();
            // Most that is published says nothing of it.
            let same =
                Arc::ptr_eq(&asked.0, &live.egress) && asked.1.as_ref().zip(live.settings.as_ref()).is_some_and(|(a, b)| Arc::ptr_eq(a, b));
            if !same {
                asked = (Arc::clone(&live.egress), live.settings.clone());
                if let Err(forbidden) = judged(&live, to, &Known { names: &names, ..heard.known() }) {
                    return failure(to, forbidden);
                }
            }
            drop(live);
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    })
}

/// Why a connection past the mesh is cut; counts it.
pub fn cut(shared: &Shared, snapshot: &Snapshot, to: SocketAddr, known: &Known<'_>) -> Option<Forbidden> {
    let forbidden = judged(snapshot, to, known).err()?;
    shared.observer.egress(to, sni(known).unwrap_or_default(), forbidden.why(), true);
    Some(forbidden)
}

fn sni<'c>(known: &Known<'c>) -> Option<&'c str> {
    match known.first {
        Some(First::Client(Sniffed::Tls(hello))) => hello.sni.as_deref(),
        _ => None,
    }
}

/// An audit would have cut it.
#[cold]
fn told(shared: &Shared, account: &mut Account, (to, name): (SocketAddr, Option<&str>), barred: Barred) {
    tracing::debug!(%to, name, why = barred.why(), "an EgressPolicy would cut a call past the mesh");
    account.remarked(barred.why());
    shared.observer.egress(to, name.unwrap_or_default(), barred.why(), false);
}

/// The door of calls past the mesh whose requests are judged one by one.
pub struct Outside {
    destination: SocketAddr,
    /// Of the last look.
    names: RefCell<Vec<Arc<str>>>,
}

impl Outside {
    /// Towards `destination`, whose address these names' answers gave.
    pub fn new(destination: SocketAddr, names: Vec<Arc<str>>) -> Self {
        Self { destination, names: RefCell::new(names) }
    }
}

impl Door for Outside {
    const DIRECTION: Direction = Direction::Outbound;
    type Listener = Arc<RouteTable>;

    fn caller(&self, _: &Downstream) -> Caller {
        Caller::Application
    }

    /// What is asked of policies is asked of each request. Names that were answered since are taken up with the epoch.
    fn look(&self, shared: &Rc<Shared>, live: &Snapshot, _: &Arc<RouteTable>) -> Look<Arc<RouteTable>> {
        *self.names.borrow_mut() = names(shared, live, self.destination);
        Look::Known(Arc::clone(&live.egress.plain))
    }

    fn terms<'v>(&self, _: &'v Snapshot, plain: &'v Arc<RouteTable>) -> Terms<'v> {
        Terms::Outside(plain)
    }

    fn table<'v>(
        &self,
        shared: &Shared,
        snapshot: &'v Snapshot,
        parts: &request::Parts,
        account: &mut Account,
    ) -> Result<Option<&'v Arc<RouteTable>>, TurnedAway> {
        let host = RequestHead::new(&parts.method, &parts.uri, &parts.headers).host;
        let asked = || outside::request(snapshot, self.destination, &self.names.borrow(), host);
        let mut judged = asked();
        if judged.is_err() {
            // A name that was answered since the connection was made.
            *self.names.borrow_mut() = names(shared, snapshot, self.destination);
            judged = asked();
        }
        match judged {
            Ok(departure) => {
                if let Some(barred) = departure.told {
                    told(shared, account, (self.destination, Some(host)), barred);
                }
                Ok(Some(departure.table))
            }
            Err(refusal) => {
                shared.observer.egress(self.destination, host, refusal.why.unwrap_or_default(), true);
                Err(refusal)
            }
        }
    }

    fn mark(&self, _: &mut HeaderMap) {}

    fn aim(&self, snapshot: &Snapshot, _: &Arc<RouteTable>, cluster: &Cluster) -> (Option<To>, Protocol) {
        let to = match snapshot.egress.originated(cluster) {
            Some(named) => {
                let address = SocketAddr::new(self.destination.ip(), ORIGINATE_PORT);
                Some(To { named: Some(Arc::clone(named)), ..Shared::outside(address) })
            }
            None => Shared::fixed(cluster.kind, snapshot, self.destination),
        };
        (to, cluster.protocol)
    }
}

/// What is told of a connection that is cut.
pub fn failure(to: SocketAddr, forbidden: Forbidden) -> Failure {
    Failure::new(Reason::Denied, format!("{to}: {}", forbidden.why()))
}
