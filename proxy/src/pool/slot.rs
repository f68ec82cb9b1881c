//! The connections to one destination.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use engine::failure::Failure;
use proto::identity::Identity;
use tokio::sync::Notify;

use super::counts::{Counts, step};
use super::http1::Http1;
use super::multiplexed::{Multiplexed, Room, Use};
use crate::ground::limits;
use crate::ground::patience::ticks;

/// Connections to one destination that carry one thing.
pub(super) struct Slot {
    counts: Rc<Counts>,
    mesh: bool,
    idle_ticks_max: u32,
    generation: Cell<u64>,
    /// Counts the changes of the two that connections were opened for, so that one opened before such a change is not kept after it.
    age: Cell<u64>,
    identity: RefCell<Option<Arc<Identity>>>,
    /// HTTP/1, the most recently used last.
    idle: RefCell<VecDeque<Idle>>,
    /// HTTP/2.
    multiplexed: RefCell<Vec<KeptHttp2>>,
    openings: RefCell<Vec<Rc<Opening>>>,
}

/// A kept HTTP/1 connection.
pub(super) struct Idle {
    pub(super) connection: Box<Http1>,
    since: u32,
}

/// A kept HTTP/2 connection. Once it is not kept any more it takes no further request.
struct KeptHttp2(Rc<Multiplexed>);

impl Drop for KeptHttp2 {
    fn drop(&mut self) {
        self.0.retire();
    }
}

/// What there is for a request on kept HTTP/2 connections.
pub(super) enum Offer {
    /// A stream.
    Free(Use),
    /// Perhaps one on this connection, when its peer has said how many it takes.
    Later(Rc<Multiplexed>),
    /// None.
    None,
}

/// An HTTP/2 connection being opened, for all who wait for it.
pub(super) struct Opening {
    done: Notify,
    result: RefCell<Option<Option<Failure>>>,
    /// Requests that wait for it, and the bytes of their bodies.
    waiting: Cell<usize>,
    waiting_bytes: Cell<u64>,
    age: u64,
}

/// See [`Opening::wait`].
pub(super) enum Waited {
    Opened,
    Failed(Failure),
}

impl Opening {
    fn new(age: u64) -> Rc<Self> {
        let (waiting, waiting_bytes) = (Cell::new(0), Cell::new(0));
        Rc::new(Self { done: Notify::new(), result: RefCell::default(), waiting, waiting_bytes, age })
    }

    /// Whether there will be room for one request more, with a body of so many bytes.
    fn fits(&self, mesh: bool, bytes: u64) -> bool {
        let bytes_fit = mesh || bytes == 0 || self.waiting_bytes.get() + bytes <= limits::UPLOAD_WINDOW_BYTES;
        let streams_max = if mesh { limits::STREAMS_PER_CONNECTION_MAX as usize } else { limits::STREAMS_UNTOLD_MAX };
        bytes_fit && self.waiting.get() < streams_max
    }

    /// Resolves when the opening is over. Cancel-safe.
    pub(super) async fn wait(&self, bytes: u64) -> Waited {
        self.waiting.set(self.waiting.get() + 1);
        self.waiting_bytes.set(self.waiting_bytes.get() + bytes);
        loop {
            let done = self.done.notified();
            match &*self.result.borrow() {
                Some(None) => return Waited::Opened,
                Some(Some(failure)) => return Waited::Failed(again(failure)),
                None => {}
            }
            done.await;
        }
    }
}

/// The same failure for another request.
fn again(failure: &Failure) -> Failure {
    Failure { reason: failure.reason, blame: failure.blame, retry: failure.retry, cause: failure.cause.clone() }
}

impl Idle {
    /// Whether it was left alone long enough for the other side to have closed it unseen.
    pub(super) fn rested(&self, now: u32) -> bool {
        now != self.since
    }

    /// Whether it can take a request now.
    pub(super) fn usable(&self) -> bool {
        self.connection.sender.is_ready()
    }
}

impl Slot {
    pub(super) fn new(mesh: bool, counts: Rc<Counts>) -> Self {
        Self {
            counts,
            mesh,
            idle_ticks_max: ticks(if mesh { limits::IDLE_MESH } else { limits::IDLE_PLAIN }),
            generation: Cell::new(0),
            age: Cell::new(0),
            identity: RefCell::new(None),
            idle: RefCell::default(),
            multiplexed: RefCell::default(),
            openings: RefCell::default(),
        }
    }

    /// Closes what was opened to another identity or with an older credential.
    pub(super) fn meet(&self, generation: u64, identity: Option<&Arc<Identity>>) {
        let same = match (&mut *self.identity.borrow_mut(), identity) {
            (None, None) => true,
            (Some(held), Some(wanted)) if Arc::ptr_eq(held, wanted) => true,
            (Some(held), Some(wanted)) if held == wanted => {
                // The next comparison is one of pointers again.
                *held = Arc::clone(wanted);
                true
            }
            _ => false,
        };
        if !same || self.generation.get() != generation {
            self.generation.set(generation);
            self.age.set(self.age.get() + 1);
            self.identity.replace(identity.cloned());
            self.forget_idle();
            // Streams under way keep their connection; it closes with the last of them.
            self.multiplexed.borrow_mut().clear();
            self.openings.borrow_mut().clear();
        }
    }

    pub(super) fn age(&self) -> u64 {
        self.age.get()
    }

    pub(super) fn forget_idle(&self) {
        let mut idle = self.idle.borrow_mut();
        step(&self.counts.idle, -(idle.len() as isize));
        idle.clear();
    }

    /// The most recently used connection that can take a request. Dead ones go; one that is still finishing its last exchange stays.
    pub(super) fn take_idle(&self) -> Option<Idle> {
        let mut idle = self.idle.borrow_mut();
        let mut index = idle.len();
        while index > 0 {
            index -= 1;
            let candidate = &idle[index];
            if candidate.usable() {
                step(&self.counts.idle, -1);
                return idle.remove(index);
            }
            if candidate.connection.sender.is_closed() {
                step(&self.counts.idle, -1);
                idle.remove(index);
            }
        }
        None
    }

    /// Keeps a connection whose exchange is over.
    pub(super) fn keep(&self, connection: Box<Http1>, now: u32) {
        if connection.sender.is_closed() || connection.age != self.age.get() || self.counts.idle.get() >= limits::IDLE_MAX {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= limits::IDLE_PER_DESTINATION_MAX {
            idle.pop_front();
            step(&self.counts.idle, -1);
        }
        step(&self.counts.idle, 1);
        idle.push_back(Idle { connection, since: now });
    }

    /// A stream on a kept HTTP/2 connection, for a request whose body may have so many bytes.
    pub(super) fn take_stream(&self, bytes: u64) -> Offer {
        let mut multiplexed = self.multiplexed.borrow_mut();
        let mut later = None;
        let mut index = 0;
        while let Some(KeptHttp2(connection)) = multiplexed.get(index) {
            let room = connection.room(bytes);
            if matches!(room, Room::Full | Room::Shared) {
                index += 1;
            } else if connection.over() {
                multiplexed.swap_remove(index);
            } else if room == Room::Free {
                return Offer::Free(connection.enter(bytes));
            } else {
                later.get_or_insert_with(|| Rc::clone(connection));
                index += 1;
            }
        }
        later.map_or(Offer::None, Offer::Later)
    }

    /// A stream beside bodies that may stand still: on the connection where the fewest bytes do.
    pub(super) fn share_stream(&self, bytes: u64) -> Option<Use> {
        let multiplexed = self.multiplexed.borrow();
        let shared = multiplexed.iter().filter(|kept| kept.0.room(bytes) == Room::Shared && !kept.0.over());
        Some(shared.min_by_key(|kept| kept.0.unread_bytes())?.0.enter(bytes))
    }

    /// One that is under way and will have room.
    pub(super) fn opening(&self, bytes: u64) -> Option<Rc<Opening>> {
        self.openings.borrow().iter().find(|opening| opening.fits(self.mesh, bytes)).cloned()
    }

    pub(super) fn begin_opening(&self) -> Rc<Opening> {
        let opening = Opening::new(self.age());
        self.openings.borrow_mut().push(Rc::clone(&opening));
        opening
    }

    pub(super) fn end_opening(&self, opening: &Rc<Opening>, opened: Result<Rc<Multiplexed>, Failure>) {
        let failure = match opened {
            Ok(connection) => {
                let kept = KeptHttp2(connection);
                // One that was overtaken by a rotation is not kept; who waited for it looks again.
                if opening.age == self.age() {
                    self.multiplexed.borrow_mut().push(kept);
                }
                None
            }
            Err(failure) => Some(failure),
        };
        self.openings.borrow_mut().retain(|other| !Rc::ptr_eq(other, opening));
        opening.result.replace(Some(failure));
        opening.done.notify_waiters();
    }

    pub(super) fn sweep(&self, now: u32, generation: u64) {
        let max = self.idle_ticks_max;
        let mut idle = self.idle.borrow_mut();
        let before = idle.len();
        let stale = self.generation.get() != generation;
        idle.retain(|kept| !stale && !kept.connection.sender.is_closed() && now.wrapping_sub(kept.since) < max);
        step(&self.counts.idle, idle.len() as isize - before as isize);
        self.multiplexed.borrow_mut().retain(|kept| {
            let unused = kept.0.unused_since().is_some_and(|since| now.wrapping_sub(since) >= max);
            !stale && !unused && !kept.0.over()
        });
    }

    /// Ticks until the first of them is unused for too long.
    pub(super) fn due(&self, now: u32) -> Option<u32> {
        // The one that is unused longest comes first.
        let idle = self.idle.borrow().front().map(|kept| kept.since);
        let multiplexed = self.multiplexed.borrow();
        let since = multiplexed.iter().filter_map(|kept| kept.0.unused_since()).chain(idle);
        since.map(|since| self.idle_ticks_max.saturating_sub(now.wrapping_sub(since))).min()
    }

    pub(super) fn empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.multiplexed.borrow().is_empty() && self.openings.borrow().is_empty()
    }
}
