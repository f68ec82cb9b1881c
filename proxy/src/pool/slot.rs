//! The connections to one destination.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use engine::failure::Failure;
use hyper::client::conn::{http1, http2};
use proto::identity::Identity;
use tokio::sync::Notify;

use super::Counts;
use super::connect::step;
use crate::body::Body;
use crate::http::ticks;
use crate::limits;
use crate::line::Line;
use crate::tls::TlsFacts;

/// Streams opened before the peer has said how many it takes.
const STREAMS_BEFORE_SETTINGS: usize = 100;

/// Connections to one destination that carry one thing.
pub(super) struct Slot {
    counts: Rc<Counts>,
    idle_ticks_max: u32,
    generation: Cell<u64>,
    /// Counts the changes of the two that connections were opened for, so that one opened before such a change is not kept after it.
    age: Cell<u64>,
    identity: RefCell<Option<Arc<Identity>>>,
    /// HTTP/1, the most recently used last.
    idle: RefCell<VecDeque<Idle>>,
    /// HTTP/2.
    multiplexed: RefCell<Vec<Multiplexed>>,
    opening: RefCell<Option<Rc<Opening>>>,
}

/// An HTTP/1 connection. Boxed once and then handed over: from its opening to a lease, to the slot, to the next lease.
pub(super) struct Http1 {
    pub(super) sender: http1::SendRequest<Body>,
    pub(super) line: Arc<Line>,
    pub(super) tls: Option<TlsFacts>,
    /// The slot's before it was opened.
    pub(super) age: u64,
}

/// A kept HTTP/1 connection.
pub(super) struct Idle {
    pub(super) connection: Box<Http1>,
    since: u32,
}

/// A kept HTTP/2 connection.
pub(super) struct Multiplexed {
    pub(super) sender: http2::SendRequest<Body>,
    pub(super) streams: Rc<Streams>,
}

/// Requests under way on one HTTP/2 connection.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) count: Cell<usize>,
    /// How many the peer takes at once.
    pub(super) max: Cell<usize>,
    pub(super) last_used: Cell<u32>,
    /// Since this was last asked, a request was sent whose body comes after its head.
    pub(super) body_follows: Cell<bool>,
    /// How their connection is encrypted.
    pub(super) tls: Option<TlsFacts>,
}

impl Streams {
    /// None yet.
    pub(super) fn new(tls: Option<TlsFacts>) -> Self {
        let max = Cell::new(STREAMS_BEFORE_SETTINGS);
        Self { count: Cell::new(0), max, last_used: Cell::new(0), body_follows: Cell::new(false), tls }
    }
}

/// An HTTP/2 connection being opened, for all who wait for it.
#[derive(Default)]
pub(super) struct Opening {
    done: Notify,
    result: RefCell<Option<Option<Failure>>>,
}

/// See [`Opening::wait`].
pub(super) enum Waited {
    Opened,
    Failed(Failure),
}

impl Opening {
    /// Resolves when the opening is over. Cancel-safe.
    pub(super) async fn wait(&self) -> Waited {
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
            idle_ticks_max: ticks(if mesh { limits::IDLE_MESH } else { limits::IDLE_PLAIN }),
            generation: Cell::new(0),
            age: Cell::new(0),
            identity: RefCell::new(None),
            idle: RefCell::default(),
            multiplexed: RefCell::default(),
            opening: RefCell::default(),
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
            self.opening.borrow_mut().take();
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

    /// A stream on a kept HTTP/2 connection that has room for one.
    pub(super) fn take_stream(&self) -> Option<(http2::SendRequest<Body>, Rc<Streams>)> {
        let mut multiplexed = self.multiplexed.borrow_mut();
        multiplexed.retain(|connection| !connection.sender.is_closed());
        let free = multiplexed.iter().find(|connection| {
            let max = connection.streams.max.get().min(limits::STREAMS_PER_CONNECTION_MAX as usize);
            connection.streams.count.get() < max
        })?;
        Some((free.sender.clone(), Rc::clone(&free.streams)))
    }

    pub(super) fn opening(&self) -> Option<Rc<Opening>> {
        self.opening.borrow().clone()
    }

    pub(super) fn begin_opening(&self) -> Rc<Opening> {
        let opening = Rc::new(Opening::default());
        self.opening.replace(Some(Rc::clone(&opening)));
        opening
    }

    pub(super) fn end_opening(&self, opening: &Rc<Opening>, opened: Result<Multiplexed, Failure>) {
        let current = self.opening.borrow().as_ref().is_some_and(|current| Rc::ptr_eq(current, opening));
        let failure = match opened {
            Ok(connection) => {
                // One that was overtaken by a rotation is not kept; who waited for it looks again.
                if current {
                    self.multiplexed.borrow_mut().push(connection);
                }
                None
            }
            Err(failure) => Some(failure),
        };
        if current {
            self.opening.borrow_mut().take();
        }
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
        self.multiplexed.borrow_mut().retain(|connection| {
            let unused = connection.streams.count.get() == 0 && now.wrapping_sub(connection.streams.last_used.get()) >= max;
            !connection.sender.is_closed() && !stale && !unused
        });
    }

    /// Ticks until the first of them is unused for too long.
    pub(super) fn due(&self, now: u32) -> Option<u32> {
        // The one that is unused longest comes first.
        let idle = self.idle.borrow().front().map(|kept| kept.since);
        let multiplexed = self.multiplexed.borrow();
        let unused = multiplexed.iter().filter(|connection| connection.streams.count.get() == 0);
        let since = unused.map(|connection| connection.streams.last_used.get()).chain(idle);
        since.map(|since| self.idle_ticks_max.saturating_sub(now.wrapping_sub(since))).min()
    }

    pub(super) fn empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.multiplexed.borrow().is_empty() && self.opening.borrow().is_none()
    }
}
