//! The gate of a cluster: so many requests under way, so many that wait, the more important first. No runtime: who waits is a future
//! that is woken when its turn comes.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use smallvec::SmallVec;

/// Bounds on what is under way to a cluster from this proxy; `None`: no bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections open, kept ones included.
    pub connections: Option<u32>,
    /// Requests under way.
    pub requests: Option<u32>,
    /// Requests that wait for one under way to end; beyond it they are refused. None may wait where it is 0.
    pub pending: u32,
    /// Longest wait; `None`: as long as the request may.
    pub pending_timeout: Option<Duration>,
    /// Requests after which a connection is not used any more.
    pub requests_per_connection: Option<u32>,
}

impl Limits {
    /// Whether connections are counted, as a whole or by what each has served.
    pub const fn bind_connections(&self) -> bool {
        self.connections.is_some() || self.requests_per_connection.is_some()
    }
}

/// Lets at most so many in ([`Limits::requests`], or [`Limits::connections`]). The lock is taken only where somebody waits, and never held over a wait.
#[derive(Debug, Default)]
pub struct Gate {
    inside: AtomicU32,
    /// How many wait; written under the lock, after which `inside` is looked at once more. Who leaves looks in the other order, so one of
    /// the two sees the other.
    waiting: AtomicU32,
    limit: AtomicU32,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// By class (0 is the highest) and then by arrival, with whom to wake.
    waiting: BTreeMap<Turn, Option<Waker>>,
    /// Those whose wait is over and who were not polled since: whether they may go in.
    called: BTreeMap<Turn, bool>,
    arrivals: u64,
}

/// Class and arrival.
type Turn = (u8, u64);
/// To be woken once the lock is free.
type Woken = SmallVec<[Waker; 2]>;

/// What a gate says to a request.
#[derive(Debug)]
pub enum Enter {
    /// It goes in.
    In(Pass),
    /// It waits.
    Wait(Ticket),
    /// Too many wait already, none of them less important.
    Full,
}

/// One request's place inside; dropping it makes room.
#[derive(Debug)]
pub struct Pass(Option<Arc<Gate>>);

/// A request's place among those that wait. Dropping it gives it up.
#[derive(Debug)]
pub struct Ticket {
    gate: Arc<Gate>,
    turn: Turn,
    over: bool,
}

/// The request had to make room for a more important one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shed;

impl Gate {
    /// Lets a request of a class (0 is the highest) in, to wait, or not at all. Where as many wait as may, the newest of the lowest class
    /// makes room for one of a higher class.
    pub fn enter(self: &Arc<Self>, limits: &Limits, class: u8) -> Enter {
        self.admit(limits.requests, limits.pending, class)
    }

    /// The same for a gate of connections: lets one more be opened, or who wants one wait until one is closed, or not at all.
    pub fn connect(self: &Arc<Self>, limits: &Limits) -> Enter {
        self.admit(limits.connections, limits.pending, 0)
    }

    /// The same without a wait; `None`: there is no room.
    pub fn connect_now(self: &Arc<Self>, limits: &Limits) -> Option<Pass> {
        match self.admit(limits.connections, 0, 0) {
            Enter::In(pass) => Some(pass),
            Enter::Wait(_) | Enter::Full => None,
        }
    }

    fn admit(self: &Arc<Self>, limit: Option<u32>, pending: u32, class: u8) -> Enter {
        let Some(limit) = limit else { return Enter::In(Pass(None)) };
        if self.limit.load(Ordering::Relaxed) != limit {
            self.limit.store(limit, Ordering::SeqCst);
        }
        if self.waiting.load(Ordering::SeqCst) == 0 && self.take_place() {
            return Enter::In(Pass(Some(Arc::clone(self))));
        }
        self.queue_up(pending, class)
    }

    /// Requests (or connections) inside.
    pub fn inside(&self) -> u32 {
        self.inside.load(Ordering::Relaxed)
    }

    /// Requests that wait.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    fn queue_up(self: &Arc<Self>, pending: u32, class: u8) -> Enter {
        let mut queue = self.queue();
        let mut woken = Woken::new();
        // There may be room: the limit was raised, or who was inside has left meanwhile.
        self.call(&mut queue, &mut woken);
        if queue.waiting.len() >= pending as usize && !self.make_room(&mut queue, class, &mut woken) {
            let alone = queue.waiting.is_empty() && self.take_place();
            drop(queue);
            woken.into_iter().for_each(Waker::wake);
            return if alone { Enter::In(Pass(Some(Arc::clone(self)))) } else { Enter::Full };
        }
        let turn = (class, queue.arrivals);
        queue.arrivals += 1;
        queue.waiting.insert(turn, None);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.call(&mut queue, &mut woken);
        // Its turn may be at once.
        let at_once = queue.called.remove(&turn).is_some();
        drop(queue);
        woken.into_iter().for_each(Waker::wake);
        if at_once { Enter::In(Pass(Some(Arc::clone(self)))) } else { Enter::Wait(Ticket { gate: Arc::clone(self), turn, over: false }) }
    }

    /// Sheds the newest of the lowest class, if that is lower than `class`.
    fn make_room(&self, queue: &mut Queue, class: u8, woken: &mut Woken) -> bool {
        let Some(last) = queue.waiting.last_entry().filter(|last| last.key().0 > class) else { return false };
        let (turn, waker) = last.remove_entry();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        queue.called.insert(turn, false);
        woken.extend(waker);
        true
    }

    /// Calls those whose turn it is, as far as there is room.
    fn call(&self, queue: &mut Queue, woken: &mut Woken) {
        while !queue.waiting.is_empty() && self.take_place() {
            if let Some((turn, waker)) = queue.waiting.pop_first() {
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                queue.called.insert(turn, true);
                woken.extend(waker);
            }
        }
    }

    fn take_place(&self) -> bool {
        let limit = self.limit.load(Ordering::SeqCst);
        let more = |inside: u32| (inside < limit).then(|| inside + 1);
        self.inside.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    fn leave(&self) {
        self.inside.fetch_sub(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut woken = Woken::new();
        self.call(&mut self.queue(), &mut woken);
        woken.into_iter().for_each(Waker::wake);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(gate) = &self.0 {
            gate.leave();
        }
    }
}

impl Future for Ticket {
    type Output = Result<Pass, Shed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let turn = self.turn;
        let mut queue = self.gate.queue();
        if let Some(waker) = queue.waiting.get_mut(&turn) {
            match waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        let may = queue.called.remove(&turn);
        drop(queue);
        self.over = true;
        Poll::Ready(if may == Some(true) { Ok(Pass(Some(Arc::clone(&self.gate)))) } else { Err(Shed) })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut queue = self.gate.queue();
        if queue.waiting.remove(&self.turn).is_some() {
            self.gate.waiting.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        let called = queue.called.remove(&self.turn);
        drop(queue);
        if called == Some(true) {
            self.gate.leave();
        }
    }
}

#[cfg(test)]
mod tests;
