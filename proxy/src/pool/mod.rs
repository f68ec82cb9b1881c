//! Upstream connections of one worker, kept and leased. No locks, no other thread: a lease and its connection live on the worker.
//!
//! Connections are kept per (address, what they carry, `Protection`); those of another identity or an older credential than asked
//! for are closed as they are met, so a rotation cuts nothing and keeps nothing.

mod connect;
mod counts;
mod http1;
mod lease;
mod lesson;
mod multiplexed;
mod place;
mod protection;
mod sent;
mod slot;
mod stream;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::failure::{Failure, Reason};
use engine::gate::{Gate, Pass};
use engine::model::{Cluster, Endpoint, InFlight, Named};

pub use connect::{Connector, Hairpin, Opened};
pub use counts::{Counts, Open};
pub use lease::Lease;
pub use sent::{Outgoing, Resend};
pub(crate) use sent::{reason, told};
pub(crate) use stream::reason as stream_reason;

use crate::ground::fold::Folding;
use crate::ground::limits;
use crate::ground::patience::{Patience, ticks};
use crate::ground::windows::Bodies;
use crate::tls::Carries;
use lesson::Lesson;
use place::{Entry, Placed, Waiting};
use protection::Protection;
use slot::{Offer, Opening, Slot, Waited};

/// Where a lease should lead.
#[derive(Clone, Debug)]
pub struct To {
    /// The endpoint. One with an identity is met by mesh TLS.
    pub endpoint: Arc<Endpoint>,
    /// What the server there must prove by TLS, where the endpoint has no identity; `None`: plaintext. Connections are kept by this very
    /// value: a copy of it has others.
    pub named: Option<Arc<Named>>,
    /// The application beside us: never by way of the hairpin, and at this other address (the same instance's, of the other family)
    /// where `endpoint`'s refuses.
    pub local: Option<Local>,
    /// Time for TCP connect and TLS handshake together.
    pub timeout: Duration,
    /// The cluster, where its policy bounds connections: they are kept apart from those of others.
    pub bounded: Option<Arc<Cluster>>,
}

/// See [`To::local`].
#[derive(Clone, Copy, Debug)]
pub struct Local {
    /// The other family's address, if the instance has one.
    pub fallback: Option<SocketAddr>,
}

/// How much a lease may rely on what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// A kept connection will do.
    Any,
    /// A kept one has just proved dead: open a new one (HTTP/1).
    New,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct SlotKey {
    address: SocketAddr,
    carries: Carries,
    protection: Protection,
    /// Of the cluster that they are of alone (see [`owner`]); else 0.
    owner: usize,
    /// To the application itself. The same address is our own inbound side's where it is called by way of the hairpin.
    local: bool,
}

/// Tells clusters apart whose connections are bounded: their gates live as long as their slots.
fn owner(gate: &Arc<Gate>) -> usize {
    Arc::as_ptr(gate).addr()
}

/// See the module.
pub struct Pool {
    connector: Connector,
    patience: Rc<Patience>,
    slots: RefCell<HashMap<SlotKey, Rc<Slot>, Folding>>,
    /// What was learned of servers that have no slot now.
    lessons: RefCell<HashMap<SlotKey, Lesson, Folding>>,
    counts: Rc<Counts>,
    bodies: Rc<Bodies>,
    /// Connections in each direction that descriptors suffice for.
    affordable: Cell<usize>,
}

impl Pool {
    /// An empty pool. `patience` gives it the tick by which idle connections age; `bodies` are those of the worker; `affordable` is how many
    /// connections descriptors suffice for in each direction, where fewer than the usual bounds.
    pub fn new(connector: Connector, patience: Rc<Patience>, bodies: Rc<Bodies>, affordable: usize) -> Self {
        let (slots, lessons) = (RefCell::default(), RefCell::default());
        Self { connector, patience, slots, lessons, counts: Rc::default(), bodies, affordable: Cell::new(affordable) }
    }

    /// Connections now kept and open.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Bodies that are coming in over HTTP/2, of requests and of answers.
    pub fn bodies(&self) -> &Bodies {
        &self.bodies
    }

    /// Another bound.
    #[cfg(test)]
    pub(crate) fn bound(&self, affordable: usize) {
        self.affordable.set(affordable);
    }

    /// Opens connections that are not kept: opaque ones.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// A connection for one request: a kept one, a stream on one, or a new one. Counts as in flight at the endpoint from here on.
    /// The body of `outgoing` decides whether it may share an HTTP/2 connection with others. Dropping the future gives up what it was
    /// opening, except where others wait for it too (HTTP/2).
    ///
    /// # Errors
    /// What opening a connection may fail with, and [`Reason::Overflow`]. Nothing of a request was written.
    pub async fn lease(&self, to: &To, carries: Carries, freshness: Freshness, outgoing: &mut Option<Outgoing>) -> Result<Lease, Failure> {
        let in_flight = to.endpoint.live.enter();
        let slot = self.slot(to, carries);
        match carries {
            Carries::H2 => {
                // A peer of the mesh opens its windows wide.
                let bytes = if to.endpoint.identity.is_some() && to.named.is_none() { 0 } else { unread_bytes(outgoing) };
                match slot.take_stream(bytes) {
                    Offer::Free(used) => Ok(Lease::stream(slot, (used, true), in_flight, Rc::clone(&self.patience))),
                    // Boxed because few have to wait, and all would keep room for it.
                    Offer::Later(_) | Offer::None => Box::pin(self.lease_stream(to, slot, in_flight, bytes)).await,
                }
            }
            Carries::H1 | Carries::Tcp => self.lease_connection(to, slot, in_flight, freshness).await,
        }
    }

    fn slot(&self, to @ To { endpoint, named, bounded, .. }: &To, carries: Carries) -> Rc<Slot> {
        let gate = bounded.as_ref().map(|cluster| &cluster.live.connections);
        let (owner, local) = (gate.map_or(0, owner), to.local.is_some());
        let key = SlotKey { address: endpoint.address, carries, protection: Protection::of(to), owner, local };
        let mut slots = self.slots.borrow_mut();
        let slot = slots.entry(key).or_insert_with(|| {
            let lesson = self.lessons.borrow().get(&SlotKey { owner: 0, ..key }).copied().unwrap_or_default();
            let met = (key.protection, named.clone().filter(|_| key.protection.is_named()));
            Rc::new(Slot::new(met, Rc::clone(&self.counts), gate.cloned(), lesson))
        });
        if let Some(cluster) = bounded {
            slot.limit_uses(cluster.policy.limits.requests_per_connection);
        }
        self.meet(slot, endpoint);
        Rc::clone(slot)
    }

    /// Has a slot stand for what is asked for now. Whoever has waited meets it anew before it takes or opens anything: others may have met
    /// it meanwhile, where an address has changed hands.
    fn meet(&self, slot: &Slot, endpoint: &Endpoint) {
        let generation = if endpoint.identity.is_some() { self.connector.generation() } else { 0 };
        slot.meet(generation, endpoint.identity.as_ref());
    }

    async fn lease_connection(&self, to: &To, slot: Rc<Slot>, in_flight: InFlight, freshness: Freshness) -> Result<Lease, Failure> {
        if freshness == Freshness::New {
            slot.forget_idle();
        }
        let now = self.patience.tick();
        while let Some(idle) = slot.take_idle(now) {
            if idle.rested(now) {
                // What the other side closed meanwhile is seen once the runtime has looked at its sockets.
                tokio::task::yield_now().await;
                if !idle.usable() {
                    slot.lost(&idle, now);
                    self.meet(&slot, &to.endpoint);
                    continue;
                }
            }
            return Ok(Lease::kept(slot, idle, in_flight, Rc::clone(&self.patience)));
        }
        self.room(to)?;
        let pass = match &to.bounded {
            None => None,
            Some(cluster) => match Box::pin(self.place_or_kept((cluster, &to.endpoint), &slot)).await? {
                Placed::Place(pass) => Some(pass),
                Placed::Kept(idle) => return Ok(Lease::kept(slot, idle, in_flight, Rc::clone(&self.patience))),
            },
        };
        self.meet(&slot, &to.endpoint);
        // What the slot stands for may change while the connection is opened.
        let age = slot.age();
        let mut connection = Box::pin(self.connector.open_http1(to, &self.counts, &self.patience, pass)).await?;
        connection.age = age;
        Ok(Lease::opened(slot, connection, in_flight, Rc::clone(&self.patience)))
    }

    async fn lease_stream(&self, to: &To, slot: Rc<Slot>, in_flight: InFlight, bytes: u64) -> Result<Lease, Failure> {
        let (mut waiting, mut kept) = (None, true);
        loop {
            self.meet(&slot, &to.endpoint);
            match slot.take_stream(bytes) {
                Offer::Free(used) => return Ok(Lease::stream(slot, (used, kept), in_flight, Rc::clone(&self.patience))),
                Offer::Later(connection) => {
                    if tokio::time::timeout(to.timeout, connection.told()).await.is_err() {
                        connection.untold();
                    }
                    kept = true;
                    continue;
                }
                Offer::None => {}
            }
            let opening = match slot.opening(bytes) {
                Some(opening) => opening,
                None => match self.room(to).map(|()| place_for_stream(to, waiting.is_some())) {
                    Ok(Some(pass)) => self.open_for_all(to, &slot, pass),
                    // Better beside others than not at all.
                    full => match (slot.share_stream(bytes), full, &to.bounded) {
                        (Some(used), ..) => return Ok(Lease::stream(slot, (used, kept), in_flight, Rc::clone(&self.patience))),
                        (None, Ok(_), Some(cluster)) => match Box::pin(self.await_place(cluster, &slot, &mut waiting)).await? {
                            Some(pass) => self.open_for_all(to, &slot, Some(pass)),
                            None => {
                                kept = true;
                                continue;
                            }
                        },
                        (None, Err(full), _) => return Err(full),
                        (None, Ok(_), None) => self.open_for_all(to, &slot, None),
                    },
                },
            };
            match opening.wait(bytes).await {
                Waited::Opened => kept = false,
                Waited::Failed(failure) => return Err(failure),
            }
        }
    }

    /// Waits for a place, or until something comes free (`None`).
    async fn await_place(&self, cluster: &Arc<Cluster>, slot: &Rc<Slot>, waiting: &mut Option<Waiting>) -> Result<Option<Pass>, Failure> {
        let Some(begun) = waiting else {
            return Ok(match self.enter(cluster, slot).await? {
                Entry::Now(pass) => Some(pass),
                Entry::Later(begun) => {
                    *waiting = Some(begun);
                    // Something may have come free before it was counted.
                    None
                }
            });
        };
        let pass = begun.next().await?;
        if pass.is_some() {
            // Its turn is used up: who comes back without a stream waits anew.
            *waiting = None;
        }
        Ok(pass)
    }

    /// Opens an HTTP/2 connection in a task of its own, so that who waits for it may come and go.
    fn open_for_all(&self, to: &To, slot: &Rc<Slot>, pass: Option<Pass>) -> Rc<Opening> {
        self.meet(slot, &to.endpoint);
        let opening = slot.begin_opening();
        let (connector, counts, slot, to) = (self.connector.clone(), Rc::clone(&self.counts), Rc::clone(slot), to.clone());
        let (bodies, patience, begun) = (Rc::clone(&self.bodies), Rc::clone(&self.patience), Rc::clone(&opening));
        tokio::task::spawn_local(async move {
            let opened = connector.open_http2(&to, &counts, (&bodies, &patience), pass).await;
            slot.end_opening(&begun, opened);
        });
        opening
    }

    fn room(&self, to: &To) -> Result<(), Failure> {
        let local = self.counts.local.get();
        let (open, max, whither) = match to.local {
            Some(_) => (local, limits::APPLICATION_CONNECTIONS_MAX, "to the application"),
            None => (self.counts.open.get() - local, limits::UPSTREAM_CONNECTIONS_MAX, "to others"),
        };
        let max = max.min(self.affordable.get());
        if open < max {
            return Ok(());
        }
        Err(Failure::new(Reason::Overflow, format!("this worker has {max} connections {whither} already, which is its bound")))
    }

    /// Closes what is dead, of an older credential or unused for too long. Called once per tick.
    pub fn sweep(&self) {
        let (now, generation) = (self.patience.tick(), self.connector.generation());
        self.slots.borrow_mut().retain(|key, slot| {
            slot.sweep(now, if key.protection.is_proved() { generation } else { 0 });
            let stays = !slot.empty() || Rc::strong_count(slot) > 1;
            // What tells a named server apart goes with its slot.
            let keeps = !stays && !key.protection.is_named();
            if let Some(lesson) = Some(slot.lesson()).filter(|lesson| keeps && !lesson.is_empty()) {
                self.remember(SlotKey { owner: 0, ..*key }, lesson, now);
            }
            stays
        });
    }

    /// Keeps what was learned of a server. At the bound what is doubted so far that it says nothing goes first, and then nothing more is kept.
    fn remember(&self, key: SlotKey, lesson: Lesson, now: u32) {
        let mut lessons = self.lessons.borrow_mut();
        if lessons.len() >= limits::LESSONS_MAX && !lessons.contains_key(&key) {
            lessons.retain(|_, lesson| lesson.rest_max(now).is_some_and(|max| max < ticks(limits::IDLE_PLAIN)));
        }
        if lessons.len() < limits::LESSONS_MAX || lessons.contains_key(&key) {
            lessons.insert(key, lesson);
        }
    }

    /// Ticks until the first connection is unused for too long; `None`: none is unused.
    pub fn due(&self) -> Option<u32> {
        let now = self.patience.tick();
        self.slots.borrow().values().filter_map(|slot| slot.due(now)).min()
    }

    /// Whether there is nothing to sweep.
    pub fn is_empty(&self) -> bool {
        self.slots.borrow().is_empty()
    }
}

/// A place for another HTTP/2 connection now, if there is one: `Some(None)` where nothing bounds them. Who waits already has its turn.
fn place_for_stream(to: &To, waits: bool) -> Option<Option<Pass>> {
    match &to.bounded {
        None => Some(None),
        Some(_) if waits => None,
        Some(cluster) => cluster.live.connections.connect_now(&cluster.policy.limits).map(Some),
    }
}

/// Bytes of a request's body that may stand unread at an application: a length that is known, else a whole window.
fn unread_bytes(outgoing: &mut Option<Outgoing>) -> u64 {
    let length = match outgoing {
        Some(Outgoing::Fresh(request)) => request.body_mut().look_ahead(),
        Some(Outgoing::Written(..)) | None => Some(0),
    };
    length.map_or(limits::UPLOAD_WINDOW_BYTES, |length| length.min(limits::UPLOAD_WINDOW_BYTES))
}
