//! Places among the connections of a cluster whose policy bounds them.

use std::future::{pending, poll_fn};
use std::iter;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use engine::failure::{Failure, Reason};
use engine::gate::{Enter, Gate, Pass, Ticket};
use engine::model::{Cluster, Endpoint};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::slot::{Idle, Slot};
use super::{Pool, To};

/// Turns of the runtime that a connection which makes room is given to close.
const CLOSING_TURNS: usize = 8;

/// What a request for a connection comes to.
pub(super) enum Placed {
    /// One more may be opened.
    Place(Pass),
    /// One has come free.
    Kept(Idle),
}

/// What a request for a place comes to.
pub(super) enum Entry {
    /// One more may be opened.
    Now(Pass),
    /// Not yet.
    Later(Waiting),
}

/// A request that waits for a place. Dropping it gives that up.
pub(super) struct Waiting {
    cluster: Arc<Cluster>,
    slot: Rc<Slot>,
    ticket: Ticket,
    until: Option<Instant>,
}

/// Connections that are still finishing their last exchanges, out of their slot for who waits for one of them. What is left goes back there.
struct Finishing {
    slot: Rc<Slot>,
    held: Vec<Idle>,
}

impl Pool {
    /// A place at once, for an opaque connection; where the cluster has its fill, an unused connection makes room. `None`: there is no bound.
    ///
    /// # Errors
    /// [`Reason::Overflow`]: all are in use.
    pub async fn place_now(&self, to: &To) -> Result<Option<Pass>, Failure> {
        let Some(cluster) = &to.bounded else { return Ok(None) };
        let (gate, limits) = (&cluster.live.connections, &cluster.policy.limits);
        let mut pass = gate.connect_now(limits);
        if pass.is_none() && self.evict(gate) {
            for _ in 0..CLOSING_TURNS {
                yield_now().await;
                pass = gate.connect_now(limits);
                if pass.is_some() {
                    break;
                }
            }
        }
        pass.map(Some).ok_or_else(|| full(cluster, "all are in use"))
    }

    /// A place, now or later.
    ///
    /// # Errors
    /// [`Reason::Overflow`]: as many wait as may.
    pub(super) async fn enter(&self, cluster: &Arc<Cluster>, slot: &Rc<Slot>) -> Result<Entry, Failure> {
        let (gate, limits) = (&cluster.live.connections, &cluster.policy.limits);
        let mut enter = gate.connect(limits);
        if !matches!(enter, Enter::In(_)) && self.evict(gate) {
            for _ in 0..CLOSING_TURNS {
                if !matches!(enter, Enter::Full) {
                    break;
                }
                yield_now().await;
                enter = gate.connect(limits);
            }
        }
        match enter {
            Enter::In(pass) => Ok(Entry::Now(pass)),
            Enter::Full => Err(full(cluster, "as many requests wait for one as may")),
            Enter::Wait(ticket) => {
                slot.wait(true);
                let until = limits.pending_timeout.map(|wait| Instant::now() + wait);
                Ok(Entry::Later(Waiting { cluster: Arc::clone(cluster), slot: Rc::clone(slot), ticket, until }))
            }
        }
    }

    /// A place for an HTTP/1 connection, or one that comes free meanwhile.
    ///
    /// # Errors
    /// [`Reason::Overflow`]: too many wait, or it was too long.
    pub(super) async fn place_or_kept(&self, (cluster, endpoint): (&Arc<Cluster>, &Endpoint), slot: &Rc<Slot>) -> Result<Placed, Failure> {
        // Dropped last: what goes back then is told to others that wait.
        let mut finishing = Finishing { slot: Rc::clone(slot), held: Vec::new() };
        let mut waiting = match self.enter(cluster, slot).await? {
            Entry::Now(pass) => return Ok(Placed::Place(pass)),
            Entry::Later(waiting) => waiting,
        };
        loop {
            self.meet(slot, endpoint);
            if let Some(idle) = slot.take_idle(self.patience.tick()) {
                return Ok(Placed::Kept(idle));
            }
            finishing.held.extend(iter::from_fn(|| slot.take_finishing()));
            tokio::select! {
                biased;
                idle = finishing.first() => return Ok(Placed::Kept(idle)),
                place = waiting.next() => {
                    if let Some(pass) = place? {
                        return Ok(Placed::Place(pass));
                    }
                }
            }
        }
    }

    /// Closes an unused connection of those that a gate bounds; whether there is one.
    fn evict(&self, gate: &Arc<Gate>) -> bool {
        let slots = self.slots.borrow();
        let own = slots.iter().filter(|(key, _)| key.owner == super::owner(gate));
        own.map(|(_, slot)| slot).any(|slot| slot.evict())
    }
}

impl Waiting {
    /// What comes first: a place (`Some`), or a sign that something came free here. Cancel-safe.
    ///
    /// # Errors
    /// [`Reason::Overflow`]: it was too long.
    pub(super) async fn next(&mut self) -> Result<Option<Pass>, Failure> {
        let Self { cluster, slot, ticket, until } = self;
        let overdue = async {
            match *until {
                Some(until) => sleep_until(until).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            called = ticket => called.map(Some).map_err(|_| full(cluster, "another request took its place")),
            () = slot.freed() => Ok(None),
            () = overdue => Err(too_long(cluster)),
        }
    }
}

impl Finishing {
    /// The first that can take a request; those that end instead go. Cancel-safe.
    async fn first(&mut self) -> Idle {
        poll_fn(|cx| {
            let mut index = 0;
            while let Some(idle) = self.held.get_mut(index) {
                match idle.connection.sender.poll_ready(cx) {
                    Poll::Ready(Ok(())) => return Poll::Ready(self.held.swap_remove(index)),
                    Poll::Ready(Err(_)) => drop(self.held.swap_remove(index)),
                    Poll::Pending => index += 1,
                }
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Finishing {
    fn drop(&mut self) {
        if !self.held.is_empty() {
            self.held.drain(..).for_each(|idle| self.slot.put_back(idle));
            self.slot.free();
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.slot.wait(false);
    }
}

#[cold]
fn too_long(cluster: &Cluster) -> Failure {
    full(cluster, "it waited for one as long as it may")
}

#[cold]
fn full(cluster: &Cluster, why: &str) -> Failure {
    let limit = cluster.policy.limits.connections.unwrap_or_default();
    Failure::new(Reason::Overflow, format!("cluster {} has {limit} connections, which is its limit, and {why}", cluster.name))
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::pin::pin;
    use std::time::Duration;

    use engine::gate::Limits;
    use engine::model::{ClusterKind, ClusterPolicy};

    use super::super::lesson::Lesson;
    use super::super::protection::Protection;
    use super::super::{Freshness, Lease};
    use super::*;
    use crate::tests::{CATALOG, FRONTEND, SERVER, Setup, World, cluster, endpoint, run};
    use crate::tls::Carries;

    #[test]
    fn who_waited_gets_no_connection_to_another() {
        // Aim: an address that changes its identity while requests wait for a place there: none gets a connection that was opened to the other
        // identity, whoever is first.
        run(|| async {
            for (carries, requests_per_connection) in [(Carries::H1, None), (Carries::H2, Some(1))] {
                let limits = Limits { connections: Some(1), pending: 2, requests_per_connection, ..Limits::default() };
                let setup = Setup { cluster: ClusterPolicy { limits, ..ClusterPolicy::default() }, ..Setup::default() };
                let cluster = cluster("shop/catalog:80", ClusterKind::Endpoints, &setup);
                let world = World::new(setup);
                let pool = &world.client.pool;
                let to = |identity: &str| {
                    let identity = Some(Arc::new(identity.parse().unwrap()));
                    let endpoint = Endpoint { identity, ..Arc::into_inner(endpoint(SERVER, true)).unwrap() };
                    let (timeout, bounded) = (Duration::from_secs(1), Some(Arc::clone(&cluster)));
                    To { endpoint: Arc::new(endpoint), named: None, local: None, timeout, bounded }
                };
                let (ours, other) = (to(CATALOG), to(FRONTEND));
                let first = pool.lease(&ours, carries, Freshness::Any, &mut None).await.unwrap();
                let mut early = pin!(async {
                    let mut lease = pool.lease(&ours, carries, Freshness::Any, &mut None).await?;
                    lease.give_back();
                    Ok::<Lease, Failure>(lease)
                });
                tokio::select! {
                    biased;
                    _ = &mut early => panic!("there is no place"),
                    () = ready(()) => {}
                }
                let mut nothing = None;
                let late = pool.lease(&other, carries, Freshness::Any, &mut nothing);
                let ending = async {
                    yield_now().await;
                    drop(first);
                };
                let (late, early, ()) = tokio::join!(late, early, ending);
                assert_eq!(late.err().map(|failure| failure.reason), Some(Reason::IdentityMismatch), "{carries:?}");
                assert!(early.is_ok(), "{carries:?}");
            }
        });
    }

    #[test]
    fn who_had_its_turn_waits_anew() {
        // Aim: a request whose place brought it no stream is not turned away for having had its turn: it queues up again.
        run(|| async {
            let limits = Limits { connections: Some(1), pending: 1, ..Limits::default() };
            let setup = Setup { cluster: ClusterPolicy { limits, ..ClusterPolicy::default() }, ..Setup::default() };
            let cluster = cluster("shop/catalog:80", ClusterKind::Endpoints, &setup);
            let world = World::new(setup);
            let slot = Rc::new(Slot::new((Protection::Plain, None), Rc::default(), None, Lesson::default()));
            let connect = || cluster.live.connections.connect_now(&cluster.policy.limits).unwrap();
            let mut waiting = None;
            for _ in 0..2 {
                let other = connect();
                assert!(world.client.pool.await_place(&cluster, &slot, &mut waiting).await.unwrap().is_none());
                drop(other);
                assert!(world.client.pool.await_place(&cluster, &slot, &mut waiting).await.unwrap().is_some());
            }
        });
    }
}
