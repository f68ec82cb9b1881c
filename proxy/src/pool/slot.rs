//! The connections to one destination.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use engine::failure::Failure;
use engine::gate::Gate;
use engine::model::Named;
use proto::identity::Identity;
use tokio::sync::Notify;

use super::counts::{Counts, step};
use super::http1::Http1;
use super::lesson::{Closes, Lesson};
use super::multiplexed::{Multiplexed, Room, Use};
use super::protection::Protection;
use crate::ground::limits;
use crate::ground::patience::ticks;

/// Connections to one destination that carry one thing.
pub(super) struct Slot {
    counts: Rc<Counts>,
    mesh: bool,
    /// The name that its key goes by the place of.
    _named: Option<Arc<Named>>,
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
    /// When the server closes connections that rest, as far as that was seen.
    lesson: Cell<Lesson>,
    /// Connections that it closed in one tick, of which nothing was learned yet: others may have gone with them.
    closes: Cell<Option<Closes>>,
    /// Bounds the connections of the cluster that these are of, if they are of one alone.
    gate: Option<Arc<Gate>>,
    /// Requests after which a connection is not used any more.
    uses_max: Cell<Option<u32>>,
    /// Requests that wait for a place among those of the cluster, and are told of what comes free here.
    waiting: Cell<u32>,
    freed: Notify,
    /// Connections in a row that stayed here although others waited elsewhere.
    stayed: Cell<u32>,
}

/// Of so many connections that come free while requests wait here and elsewhere, one makes room for those elsewhere.
const STAYING_MAX: u32 = 16;

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

    /// Whether nothing will ever go over it again.
    fn is_closed(&self) -> bool {
        self.connection.sender.is_closed()
    }

    /// Whether it can take a request now.
    pub(super) fn usable(&self) -> bool {
        self.connection.sender.is_ready()
    }
}

impl Slot {
    pub(super) fn new(
        (protection, named): (Protection, Option<Arc<Named>>),
        counts: Rc<Counts>,
        gate: Option<Arc<Gate>>,
        lesson: Lesson,
    ) -> Self {
        let mesh = protection == Protection::Mesh;
        Self {
            counts,
            mesh,
            _named: named,
            idle_ticks_max: ticks(if mesh { limits::IDLE_MESH } else { limits::IDLE_PLAIN }),
            generation: Cell::new(0),
            age: Cell::new(0),
            identity: RefCell::new(None),
            idle: RefCell::default(),
            multiplexed: RefCell::default(),
            openings: RefCell::default(),
            lesson: Cell::new(lesson),
            closes: Cell::new(None),
            gate,
            uses_max: Cell::new(None),
            waiting: Cell::new(0),
            freed: Notify::new(),
            stayed: Cell::new(0),
        }
    }

    /// Requests after which a connection is not used any more, from now on.
    pub(super) fn limit_uses(&self, max: Option<u32>) {
        self.uses_max.set(max);
    }

    /// What was learned of the server, to be kept when this goes.
    pub(super) fn lesson(&self) -> Lesson {
        self.lesson.get()
    }

    /// Counts a request that waits for a place, or no longer does.
    pub(super) fn wait(&self, more: bool) {
        let waiting = self.waiting.get();
        self.waiting.set(if more { waiting + 1 } else { waiting.saturating_sub(1) });
        step(&self.counts.waiting, if more { 1 } else { -1 });
    }

    /// Resolves when something may have come free here. Cancel-safe.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Something may have come free.
    pub(super) fn free(&self) {
        if self.waiting.get() > 0 {
            self.freed.notify_one();
        }
    }

    /// Ticks of rest from which on an HTTP/1 connection is not used any more.
    fn rest_max(&self, now: u32) -> u32 {
        self.lesson.get().rest_max(now).map_or(self.idle_ticks_max, |max| max.min(self.idle_ticks_max))
    }

    /// Notes a connection that the other side has closed, among those that are left, to learn from. Where one is open that has rested
    /// longer, its rest was not why. A peer of the mesh never closes first; one that does is gone.
    fn note(&self, gone: &Idle, left: &VecDeque<Idle>, now: u32) {
        let Some(rested) = gone.connection.rest.lasted().filter(|_| !self.mesh) else { return };
        if left.iter().any(|other| !other.is_closed() && now.wrapping_sub(other.since) > rested) {
            return;
        }
        let at = gone.since.wrapping_add(rested);
        self.learn(at);
        self.closes.set(Some(Closes::joined(self.closes.get(), rested, at)));
    }

    /// Learns from what was closed before a tick: nothing more goes with it.
    fn learn(&self, tick: u32) {
        if let Some(closes) = self.closes.get().filter(|closes| closes.at() != tick) {
            self.closes.set(None);
            self.lesson.set(self.lesson.get().taught(closes));
        }
    }

    /// A connection that was taken has turned out to be closed.
    pub(super) fn lost(&self, gone: &Idle, now: u32) {
        self.note(gone, &self.idle.borrow(), now);
    }

    /// Whether a connection that came free stays. Others of the cluster wait for a place elsewhere: who waits here goes first, as a rule.
    fn stays(&self) -> bool {
        let Some(gate) = &self.gate else { return true };
        let here = self.waiting.get();
        if gate.waiting() <= here {
            return true;
        }
        let stayed = self.stayed.get() + 1;
        let stays = here > 0 && stayed < STAYING_MAX;
        self.stayed.set(if stays { stayed } else { 0 });
        stays
    }

    /// Closes the connection that is unused longest, if there is one.
    pub(super) fn evict(&self) -> bool {
        if self.idle.borrow_mut().pop_front().is_some() {
            step(&self.counts.idle, -1);
            return true;
        }
        let mut multiplexed = self.multiplexed.borrow_mut();
        let unused = multiplexed.iter().position(|kept| kept.0.unused_since().is_some());
        unused.map(|index| multiplexed.swap_remove(index)).is_some()
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

    /// The most recently used connection that can take a request. Dead ones go, and those that their server may be about to close; one
    /// that is still finishing its last exchange stays.
    pub(super) fn take_idle(&self, now: u32) -> Option<Idle> {
        let mut idle = self.idle.borrow_mut();
        let rest_max = self.lesson.get().rest_max(now);
        let mut index = idle.len();
        while index > 0 {
            index -= 1;
            let candidate = &idle[index];
            let risky = rest_max.is_some_and(|max| now.wrapping_sub(candidate.since) >= max);
            if !risky && candidate.usable() {
                step(&self.counts.idle, -1);
                return idle.remove(index);
            }
            if risky || candidate.is_closed() {
                step(&self.counts.idle, -1);
                if let Some(gone) = idle.remove(index) {
                    self.note(&gone, &idle, now);
                }
            }
        }
        None
    }

    /// One that is still finishing its last exchange.
    pub(super) fn take_finishing(&self) -> Option<Idle> {
        let mut idle = self.idle.borrow_mut();
        let index = idle.iter().rposition(|kept| !kept.is_closed())?;
        step(&self.counts.idle, -1);
        idle.remove(index)
    }

    /// Takes one of those back, to its place among the others by age.
    pub(super) fn put_back(&self, finishing: Idle) {
        let mut idle = self.idle.borrow_mut();
        let outdated = finishing.is_closed() || finishing.connection.age != self.age.get();
        if outdated || idle.len() >= limits::IDLE_PER_DESTINATION_MAX {
            return;
        }
        let older = idle.iter().rposition(|kept| finishing.since.wrapping_sub(kept.since) <= u32::MAX / 2);
        step(&self.counts.idle, 1);
        idle.insert(older.map_or(0, |index| index + 1), finishing);
    }

    /// Keeps a connection whose exchange is over.
    pub(super) fn keep(&self, mut connection: Box<Http1>, now: u32) {
        connection.served = connection.served.saturating_add(1);
        let spent = self.uses_max.get().is_some_and(|max| connection.served >= max) || connection.age != self.age.get();
        if connection.sender.is_closed() || spent || self.counts.idle.get() >= limits::IDLE_MAX || !self.stays() {
            return;
        }
        if self.lesson.get().rest_max(now) == Some(0) && self.waiting.get() == 0 {
            return;
        }
        connection.rest.begin(now);
        self.free();
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
        let uses_max = self.uses_max.get();
        let mut later = None;
        let mut index = 0;
        while let Some(KeptHttp2(connection)) = multiplexed.get(index) {
            let room = connection.room(bytes);
            if connection.spent(uses_max) {
                multiplexed.swap_remove(index);
            } else if matches!(room, Room::Full | Room::Shared) {
                index += 1;
            } else if connection.over() {
                multiplexed.swap_remove(index);
            } else if room == Room::Free {
                connection.use_up();
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
        let uses_max = self.uses_max.get();
        let shared = multiplexed.iter().filter(|kept| kept.0.room(bytes) == Room::Shared && !kept.0.over() && !kept.0.spent(uses_max));
        let connection = &shared.min_by_key(|kept| kept.0.unread_bytes())?.0;
        connection.use_up();
        Some(connection.enter(bytes))
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
        self.freed.notify_waiters();
    }

    pub(super) fn sweep(&self, now: u32, generation: u64) {
        let max = self.idle_ticks_max;
        let mut idle = self.idle.borrow_mut();
        let before = idle.len();
        let stale = self.generation.get() != generation;
        idle.iter().filter(|kept| kept.is_closed()).for_each(|gone| self.note(gone, &idle, now));
        self.learn(now);
        let rest_max = self.rest_max(now);
        idle.retain(|kept| !stale && !kept.is_closed() && now.wrapping_sub(kept.since) < rest_max);
        step(&self.counts.idle, idle.len() as isize - before as isize);
        drop(idle);
        self.multiplexed.borrow_mut().retain(|kept| {
            let unused = kept.0.unused_since().is_some_and(|since| now.wrapping_sub(since) >= max);
            !stale && !unused && !kept.0.over()
        });
        if self.gate.as_ref().is_some_and(|gate| gate.waiting() > self.waiting.get()) {
            self.evict();
        }
    }

    /// Ticks until the first of them is unused for too long.
    pub(super) fn due(&self, now: u32) -> Option<u32> {
        // The one that is unused longest comes first.
        let left = |since: u32, max: u32| max.saturating_sub(now.wrapping_sub(since));
        let idle = self.idle.borrow().front().map(|kept| left(kept.since, self.rest_max(now)));
        let multiplexed = self.multiplexed.borrow();
        let unused = multiplexed.iter().filter_map(|kept| kept.0.unused_since());
        unused.map(|since| left(since, self.idle_ticks_max)).chain(idle).min()
    }

    pub(super) fn empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.multiplexed.borrow().is_empty() && self.openings.borrow().is_empty()
    }
}
