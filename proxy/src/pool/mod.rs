//! Upstream connections of one worker, kept and leased. No locks, no other thread: a lease and its connection live on the worker.
//!
//! Connections are kept per (address, what they carry, whether TLS); those of another identity or an older credential than asked
//! for are closed as they are met, so a rotation cuts nothing and keeps nothing.

mod connect;
mod counts;
mod http1;
mod lease;
mod multiplexed;
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
use engine::model::{Endpoint, InFlight};
use http::Request;

pub use connect::{Connector, Hairpin, Opened};
pub use counts::{Counts, Open};
pub use lease::Lease;
pub use sent::Sent;
pub(crate) use sent::{reason, told};
pub(crate) use stream::reason as stream_reason;

use crate::ground::body::Body;
use crate::ground::fold::Folding;
use crate::ground::limits;
use crate::ground::patience::Patience;
use crate::ground::windows::Bodies;
use crate::tls::Carries;
use slot::{Offer, Opening, Slot, Waited};

/// Where a lease should lead.
#[derive(Clone, Debug)]
pub struct To {
    /// The endpoint; its identity decides between mTLS and plaintext.
    pub endpoint: Arc<Endpoint>,
    /// The application beside us: never by way of the hairpin, and at this other address (the same instance's, of the other family)
    /// where `endpoint`'s refuses.
    pub local: Option<Local>,
    /// Time for TCP connect and TLS handshake together.
    pub timeout: Duration,
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
    mesh: bool,
}

/// See the module.
pub struct Pool {
    connector: Connector,
    patience: Rc<Patience>,
    slots: RefCell<HashMap<SlotKey, Rc<Slot>, Folding>>,
    counts: Rc<Counts>,
    bodies: Rc<Bodies>,
    /// Connections in each direction that descriptors suffice for.
    affordable: Cell<usize>,
}

impl Pool {
    /// An empty pool. `patience` gives it the tick by which idle connections age; `bodies` are those of the worker; `affordable` is how many
    /// connections descriptors suffice for in each direction, where fewer than the usual bounds.
    pub fn new(connector: Connector, patience: Rc<Patience>, bodies: Rc<Bodies>, affordable: usize) -> Self {
        Self { connector, patience, slots: RefCell::default(), counts: Rc::default(), bodies, affordable: Cell::new(affordable) }
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
    /// The body of `request` decides whether it may share an HTTP/2 connection with others. Dropping the future gives up what it was
    /// opening, except where others wait for it too (HTTP/2).
    ///
    /// # Errors
    /// What opening a connection may fail with, and [`Reason::Overflow`]. Nothing of a request was written.
    pub async fn lease(
        &self,
        to: &To,
        carries: Carries,
        freshness: Freshness,
        request: &mut Option<Request<Body>>,
    ) -> Result<Lease, Failure> {
        let in_flight = to.endpoint.live.enter();
        let slot = self.slot(&to.endpoint, carries);
        match carries {
            Carries::H2 => {
                // A peer of the mesh opens its windows wide.
                let bytes = if to.endpoint.identity.is_some() { 0 } else { unread_bytes(request.as_mut()) };
                self.lease_stream(to, slot, in_flight, bytes).await
            }
            Carries::H1 | Carries::Tcp => self.lease_connection(to, slot, in_flight, freshness).await,
        }
    }

    fn slot(&self, endpoint: &Endpoint, carries: Carries) -> Rc<Slot> {
        let key = SlotKey { address: endpoint.address, carries, mesh: endpoint.identity.is_some() };
        let mut slots = self.slots.borrow_mut();
        let slot = slots.entry(key).or_insert_with(|| Rc::new(Slot::new(key.mesh, Rc::clone(&self.counts))));
        self.meet(slot, endpoint);
        Rc::clone(slot)
    }

    fn meet(&self, slot: &Slot, endpoint: &Endpoint) {
        let generation = if endpoint.identity.is_some() { self.connector.generation() } else { 0 };
        slot.meet(generation, endpoint.identity.as_ref());
    }

    async fn lease_connection(&self, to: &To, slot: Rc<Slot>, in_flight: InFlight, freshness: Freshness) -> Result<Lease, Failure> {
        if freshness == Freshness::New {
            slot.forget_idle();
        }
        let now = self.patience.tick();
        while let Some(idle) = slot.take_idle() {
            if idle.rested(now) {
                // What the other side closed meanwhile is seen once the runtime has looked at its sockets.
                tokio::task::yield_now().await;
                if !idle.usable() {
                    continue;
                }
            }
            return Ok(Lease::kept(slot, idle, in_flight, Rc::clone(&self.patience)));
        }
        self.room(to)?;
        // What the slot stands for may change while the connection is opened.
        let age = slot.age();
        let mut connection = Box::pin(self.connector.open_http1(to, &self.counts)).await?;
        connection.age = age;
        Ok(Lease::opened(slot, connection, in_flight, Rc::clone(&self.patience)))
    }

    async fn lease_stream(&self, to: &To, slot: Rc<Slot>, in_flight: InFlight, bytes: u64) -> Result<Lease, Failure> {
        loop {
            match slot.take_stream(bytes) {
                Offer::Free(used) => return Ok(Lease::stream(slot, used, in_flight, Rc::clone(&self.patience))),
                Offer::Later(connection) => {
                    if tokio::time::timeout(to.timeout, connection.told()).await.is_err() {
                        connection.untold();
                    }
                    continue;
                }
                Offer::None => {}
            }
            let opening = match slot.opening(bytes) {
                Some(opening) => opening,
                None => match self.room(to) {
                    Ok(()) => self.open_for_all(to, &slot),
                    // Better beside others than not at all.
                    Err(full) => match slot.share_stream(bytes) {
                        Some(used) => return Ok(Lease::stream(slot, used, in_flight, Rc::clone(&self.patience))),
                        None => return Err(full),
                    },
                },
            };
            match opening.wait(bytes).await {
                // Another request may have met another identity here meanwhile.
                Waited::Opened => self.meet(&slot, &to.endpoint),
                Waited::Failed(failure) => return Err(failure),
            }
        }
    }

    /// Opens an HTTP/2 connection in a task of its own, so that who waits for it may come and go.
    fn open_for_all(&self, to: &To, slot: &Rc<Slot>) -> Rc<Opening> {
        let opening = slot.begin_opening();
        let (connector, counts, slot, to) = (self.connector.clone(), Rc::clone(&self.counts), Rc::clone(slot), to.clone());
        let (bodies, patience, begun) = (Rc::clone(&self.bodies), Rc::clone(&self.patience), Rc::clone(&opening));
        tokio::task::spawn_local(async move {
            let opened = connector.open_http2(&to, &counts, (&bodies, &patience)).await;
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
            slot.sweep(now, if key.mesh { generation } else { 0 });
            !slot.empty() || Rc::strong_count(slot) > 1
        });
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

/// Bytes of a request's body that may stand unread at an application: a length that is known, else a whole window.
fn unread_bytes(request: Option<&mut Request<Body>>) -> u64 {
    let length = request.map_or(Some(0), |request| request.body_mut().look_ahead());
    length.map_or(limits::UPLOAD_WINDOW_BYTES, |length| length.min(limits::UPLOAD_WINDOW_BYTES))
}
