//! Past the mesh: bytes as they are, and requests one by one where an EgressPolicy speaks of names.

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use engine::client::ClientFound;
use engine::decide::outside::{self, Departure, Forbidden};
use engine::decide::{First, Known, RequestHead, Terms, TurnedAway};
use engine::failure::{Failure, Reason};
use engine::model::build::OPAQUE_IDLE_DEFAULT;
use engine::model::{Barred, Cluster, EgressMode, ORIGINATE_PORT, Protocol, RouteTable, Snapshot, Spoken};
use engine::sniff::Sniffed;
use http::request;
use tokio::time::Instant;

use crate::http::{Caller, OfHop};
use crate::io::{Rewound, Stream};
use crate::observe::{Account, Direction, Downstream};
use crate::pool::To;
use crate::road::answer::{Door, InForce, Look};
use crate::road::arrival::{Carried, Heard, Opaque};
use crate::road::attempt::{self, OpenedTcp};
use crate::road::shared::Shared;

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
    shared: &Rc<Shared>,
) -> Carried {
    let mut account = shared.observer.begin_tcp(Direction::Outbound, &snapshot, downstream);
    let (opened, seen) = (heard.opened.take(), heard.seen.clone());
    let known = Known { names: &names, ..heard.known() };
    let barred = judged(&snapshot, to, &known).ok().and_then(|departure| departure.told);
    if let Some(barred) = barred {
        told(shared, &mut account, (to, name(&known, barred)), barred);
    }
    let opened = match opened {
        Some(opened) => opened,
        None => open(shared, to).await,
    };
    let forbidden = Some(asked_again(Rc::clone(shared), snapshot, to, (heard, names), barred.is_some()));
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

/// What is said of a connection that is open. What it said first may be unknown, and is then not taken for what would be allowed.
fn judged_open<'s>(snapshot: &'s Snapshot, to: SocketAddr, heard: &Heard, names: &[Arc<str>]) -> Result<Departure<'s>, Forbidden> {
    outside::departure(snapshot, to, names, heard.known().first.map_or(Some(Spoken::Unheard), First::spoken))
}

/// Resolves when a policy is live that forbids what was allowed under `before`, judged by what was heard as it was opened, and by the names
/// that DNS has answered then or since. What an audit would cut is listed when it comes to that; `listed`: it was before.
fn asked_again(
    shared: Rc<Shared>,
    before: Arc<Snapshot>,
    to: SocketAddr,
    (heard, mut names): (Heard, Vec<Arc<str>>),
    mut listed: bool,
) -> Pin<Box<dyn Future<Output = Failure>>> {
    let mut asked = (Arc::clone(&before.egress), before.settings.clone());
    drop(before);
    let mut changes = shared.snapshots.changes();
    let passes = |judged: &Result<Departure<'_>, Forbidden>| matches!(judged, Ok(Departure { told: None, .. }));
    Box::pin(async move {
        loop {
            let live = shared.snapshots.load();
            // Most that is published says nothing of it.
            let same =
                Arc::ptr_eq(&asked.0, &live.egress) && asked.1.as_ref().zip(live.settings.as_ref()).is_some_and(|(a, b)| Arc::ptr_eq(a, b));
            if !same {
                asked = (Arc::clone(&live.egress), live.settings.clone());
                let mut judged = judged_open(&live, to, &heard, &names);
                if !passes(&judged) {
                    let since = self::names(&shared, &live, to);
                    let by_since = judged_open(&live, to, &heard, &since);
                    if passes(&by_since) || names.is_empty() {
                        (judged, names) = (by_since, since);
                    }
                }
                let known = Known { names: &names, ..heard.known() };
                match judged {
                    Err(forbidden) => {
                        shared.observer.egress(to, cut_name(&known, forbidden).unwrap_or_default(), forbidden.why(), true);
                        return failure(to, forbidden);
                    }
                    Ok(Departure { told: Some(barred), .. }) => {
                        if !listed {
                            shared.observer.egress(to, name(&known, barred).unwrap_or_default(), barred.why(), false);
                        }
                        listed = true;
                    }
                    Ok(_) => listed = false,
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
    shared.observer.egress(to, cut_name(known, forbidden).unwrap_or_default(), forbidden.why(), true);
    Some(forbidden)
}

fn cut_name<'c>(known: &Known<'c>, forbidden: Forbidden) -> Option<&'c str> {
    match forbidden {
        Forbidden::Policy(barred) => name(known, barred),
        Forbidden::Mesh => name(known, Barred::Address),
    }
}

/// What the list calls a connection: by the name that it asks for. Where that was not heard, by the first one that DNS gave, unless it is
/// cut for what it said, when that name may be one that is allowed.
fn name<'c>(known: &Known<'c>, barred: Barred) -> Option<&'c str> {
    match known.first {
        Some(First::Client(Sniffed::Tls(hello))) if hello.sni.is_some() => hello.sni.as_deref(),
        _ if matches!(barred, Barred::Address | Barred::Unheard) => known.names.first().map(|name| &**name),
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
    /// Of its beginning. They count as long as it lasts: who keeps a connection asks DNS no more.
    names: Vec<Arc<str>>,
    /// Those that were answered later, as of the last request that needed one.
    since: RefCell<Vec<Arc<str>>>,
}

impl Outside {
    /// Towards `destination`, whose address these names' answers gave.
    pub fn new(destination: SocketAddr, names: Vec<Arc<str>>) -> Self {
        Self { destination, names, since: RefCell::default() }
    }
}

impl Door for Outside {
    const DIRECTION: Direction = Direction::Outbound;
    type Listener = Arc<RouteTable>;

    fn caller(&self, _: &Downstream) -> Caller {
        Caller::Application
    }

    /// What is asked of policies is asked of each request.
    fn look(&self, _: &Rc<Shared>, live: &Snapshot, _: &Arc<RouteTable>) -> Look<Arc<RouteTable>> {
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
        let asked = |names: &[Arc<str>]| outside::request(snapshot, self.destination, names, host);
        let passes = |judged: &Result<Departure<'_>, TurnedAway>| matches!(judged, Ok(Departure { told: None, .. }));
        let mut judged = asked(&self.names);
        if !passes(&judged) {
            judged = asked(&self.since.borrow());
        }
        if !passes(&judged) {
            *self.since.borrow_mut() = names(shared, snapshot, self.destination);
            judged = asked(&self.since.borrow());
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

    fn mark(&self, _: (&InForce<Self::Listener>, &Downstream), _: &mut request::Parts, _: (Option<&ClientFound>, OfHop)) {}

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
