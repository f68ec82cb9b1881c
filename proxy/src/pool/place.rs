//! Places among the connections of a cluster whose policy bounds them.

use std::future::pending;
use std::rc::Rc;
use std::sync::Arc;

use engine::failure::{Failure, Reason};
use engine::gate::{Enter, Gate, Pass, Ticket};
use engine::model::Cluster;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout_at};

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
    pub(super) async fn place_or_kept(&self, cluster: &Arc<Cluster>, slot: &Rc<Slot>) -> Result<Placed, Failure> {
        let mut waiting = match self.enter(cluster, slot).await? {
            Entry::Now(pass) => return Ok(Placed::Place(pass)),
            Entry::Later(waiting) => waiting,
        };
        loop {
            if let Some(idle) = slot.take_idle(self.patience.tick()) {
                return Ok(Placed::Kept(idle));
            }
            if let Some(mut idle) = slot.take_finishing() {
                match waiting.within(idle.connection.sender.ready()).await? {
                    Ok(()) => return Ok(Placed::Kept(idle)),
                    Err(_) => continue,
                }
            }
            if let Some(pass) = waiting.next().await? {
                return Ok(Placed::Place(pass));
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

    /// Something else that is waited for no longer than for a place.
    async fn within<T>(&self, other: impl Future<Output = T>) -> Result<T, Failure> {
        match self.until {
            Some(until) => timeout_at(until, other).await.map_err(|_| too_long(&self.cluster)),
            None => Ok(other.await),
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
