//! Waiting with patience: coarse idle timeouts that cost a request no timer.
//!
//! A wait notes the tick at which something last moved; one sweep per tick finds those that stood still too long. While nobody waits the
//! sweep rests, and the tick catches up with the clock when it is needed again. Nothing is allocated once a worker has seen its usual number of waits.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use engine::failure::Reason;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, timeout};

use crate::ground::limits::{TICK, YIELD_AFTER, YIELDING_AT_ONCE_MAX};

/// One worker's waits.
#[derive(Debug, Default)]
pub struct Patience {
    tick: Rc<Cell<u32>>,
    pulses: RefCell<Vec<Rc<Pulse>>>,
    free: RefCell<Vec<u32>>,
    /// Of the waits in use, those of connections that are kept: nothing is under way there.
    kept: Cell<usize>,
    /// Something was begun since this was last asked.
    stirred: Cell<bool>,
    /// Since when the sweep rests.
    resting: Cell<Option<Instant>>,
    wake: Notify,
}

#[derive(Debug)]
struct Pulse {
    index: u32,
    /// Counts uses of this place, so that a late upload of an earlier use does not touch a later one.
    generation: Cell<u32>,
    /// Ticks of silence allowed; 0: not in use or unlimited.
    limit: Cell<u32>,
    last: Cell<u32>,
    overdue: Cell<bool>,
    /// It may be ended before its time, if its place is wanted.
    yields: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// Bytes that came from downstream.
    uploaded: Cell<u64>,
    /// The use whose upload is to end, too.
    stopped: Cell<Option<u32>>,
    upload_waker: RefCell<Option<Waker>>,
    /// How many are to come.
    expected: Cell<u64>,
    /// Why this proxy has cut the upload.
    spoilt: Cell<Option<Spoilt>>,
}

/// Why a client's upload was cut at an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoilt {
    /// It is longer than it may be: 413.
    TooLong,
    /// It comes too slowly: 408.
    TooSlow,
}

impl Patience {
    /// A wait of at most `limit` without movement; `None` waits for ever. Rounded up to whole ticks.
    pub fn wait(self: &Rc<Self>, limit: Option<Duration>) -> Wait {
        self.begin(limit, false)
    }

    /// The same for a connection that is kept: the sweep may rest meanwhile, until it is due.
    pub fn keep(self: &Rc<Self>, limit: Duration) -> Wait {
        self.kept.set(self.kept.get() + 1);
        self.begin(Some(limit), true)
    }

    fn begin(self: &Rc<Self>, limit: Option<Duration>, kept: bool) -> Wait {
        let pulse = match self.free.borrow_mut().pop() {
            Some(index) => Rc::clone(&self.pulses.borrow()[index as usize]),
            None => self.grow(),
        };
        self.stir();
        pulse.limit.set(limit.map_or(0, ticks));
        pulse.last.set(self.tick.get());
        Wait { patience: Rc::clone(self), pulse, kept }
    }

    #[cold]
    fn grow(&self) -> Rc<Pulse> {
        let mut pulses = self.pulses.borrow_mut();
        let pulse = Rc::new(Pulse {
            index: u32::try_from(pulses.len()).unwrap_or(u32::MAX),
            generation: Cell::new(0),
            limit: Cell::new(0),
            last: Cell::new(0),
            overdue: Cell::new(false),
            yields: Cell::new(false),
            waker: RefCell::new(None),
            uploaded: Cell::new(0),
            stopped: Cell::new(None),
            upload_waker: RefCell::new(None),
            expected: Cell::new(0),
            spoilt: Cell::new(None),
        });
        pulses.push(Rc::clone(&pulse));
        pulse
    }

    /// The present tick.
    pub fn tick(&self) -> u32 {
        self.tick.get()
    }

    /// Ends the sweep's rest, if it rests: there is something to look after.
    pub fn stir(&self) {
        self.stirred.set(true);
        if self.rested() {
            self.wake.notify_one();
        }
    }

    /// Whether nothing was begun since this was last asked.
    pub fn calm(&self) -> bool {
        !self.stirred.replace(false)
    }

    /// Resolves at the next wait or [`Self::stir`], or after `at_most`: the sweep may rest until then. The tick stands still meanwhile and
    /// has caught up when this ends, and before the wait that ends it begins. Only while nobody waits. On cancel the tick stands still
    /// until the next wait.
    pub async fn rest(&self, at_most: Option<Duration>) {
        self.resting.set(Some(Instant::now()));
        match at_most {
            // Which of both it was makes no difference.
            Some(at_most) => drop(timeout(at_most, self.wake.notified()).await),
            None => self.wake.notified().await,
        }
        self.rested();
    }

    /// Lets the tick catch up after a rest, rounded down, so that nothing is overdue early. Returns whether there was a rest.
    fn rested(&self) -> bool {
        let Some(since) = self.resting.take() else { return false };
        let passed = since.elapsed().as_nanos() / TICK.as_nanos();
        // Ticks are compared by their difference and may wrap; a rest of 34 years is longer than any wait.
        self.tick.set(self.tick.get().wrapping_add(u32::try_from(passed).unwrap_or(u32::MAX)));
        true
    }

    /// Waits now in use, of what is under way.
    pub fn waiting(&self) -> usize {
        self.pulses.borrow().len() - self.free.borrow().len() - self.kept.get()
    }

    /// Ticks until the first wait has stood still too long, if nothing moves; `None`: none has a limit.
    pub fn due(&self) -> Option<u32> {
        let now = self.tick.get();
        let pulses = self.pulses.borrow();
        let limited = pulses.iter().filter(|pulse| pulse.limit.get() > 0);
        limited.map(|pulse| (pulse.limit.get() + 1).saturating_sub(now.wrapping_sub(pulse.last.get()))).min()
    }

    /// One tick passes: wakes what stood still too long.
    pub fn advance(&self) {
        let now = self.tick.get().wrapping_add(1);
        self.tick.set(now);
        for pulse in self.pulses.borrow().iter() {
            let limit = pulse.limit.get();
            if limit > 0 && now.wrapping_sub(pulse.last.get()) > limit {
                pulse.end();
            }
        }
    }

    /// Places are wanted: of the waits that yield, those that have stood still for longest are over, [`YIELDING_AT_ONCE_MAX`] at most and none that has not
    /// stood still for [`YIELD_AFTER`].
    #[cold]
    pub fn make_room(&self) {
        let now = self.tick.get();
        let still = |pulse: &Pulse| now.wrapping_sub(pulse.last.get());
        let pulses = self.pulses.borrow();
        let yields = |pulse: &&Rc<Pulse>| pulse.yields.get() && !pulse.overdue.get() && still(pulse) > ticks(YIELD_AFTER);
        let mut longest: Vec<&Rc<Pulse>> = pulses.iter().filter(yields).collect();
        longest.sort_unstable_by_key(|pulse| Reverse(still(pulse)));
        longest.into_iter().take(YIELDING_AT_ONCE_MAX).for_each(|pulse| pulse.end());
    }
}

impl Pulse {
    fn end(&self) {
        self.overdue.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// Whole ticks of a duration, at least one.
#[inline]
pub const fn ticks(duration: Duration) -> u32 {
    const MAX: u64 = u32::MAX as u64 / 2;
    let nanos = if duration.as_secs() < MAX { duration.as_nanos() as u64 } else { return MAX as u32 };
    let count = nanos.div_ceil(TICK.as_nanos() as u64);
    match count {
        0 => 1,
        1..MAX => count as u32,
        _ => MAX as u32,
    }
}

/// One wait; dropping it ends it.
#[derive(Debug)]
pub struct Wait {
    patience: Rc<Patience>,
    pulse: Rc<Pulse>,
    kept: bool,
}

impl Wait {
    /// Something moved.
    pub fn touch(&self) {
        self.pulse.last.set(self.patience.tick.get());
    }

    /// Begins anew with another limit; `None`: none. Ends a rest of the sweep, so that it begins at the right tick.
    #[inline]
    pub fn restart(&self, limit: Option<Duration>) {
        self.patience.stir();
        self.pulse.overdue.set(false);
        self.pulse.limit.set(limit.map_or(0, ticks));
        self.touch();
    }

    /// Whether it may be ended before its time, by [`Patience::make_room`].
    #[inline]
    pub fn yields(&self, yields: bool) {
        self.pulse.yields.set(yields);
    }

    /// Ready when nothing moved for too long.
    pub fn poll_overdue(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.pulse.overdue.get() {
            return Poll::Ready(());
        }
        if self.pulse.limit.get() > 0 {
            self.register(cx);
        }
        Poll::Pending
    }

    /// Wakes the task when it is overdue, also by a limit that it gets later.
    pub fn register(&self, cx: &Context<'_>) {
        let mut waker = self.pulse.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// The other direction's share in this wait.
    pub fn upload(&self) -> Upload {
        Upload { tick: Rc::clone(&self.patience.tick), pulse: Rc::clone(&self.pulse), generation: self.pulse.generation.get() }
    }

    /// Ends the other direction, where that asks for it.
    pub fn stop_upload(&self) {
        self.pulse.stopped.set(Some(self.pulse.generation.get()));
        if let Some(waker) = self.pulse.upload_waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Bytes counted by [`Upload::moved`].
    pub fn uploaded(&self) -> u64 {
        self.pulse.uploaded.get()
    }

    /// Why the upload was cut, if this proxy has done that.
    pub fn spoilt(&self) -> Option<Spoilt> {
        self.pulse.spoilt.get()
    }

    /// Whether all has come that is to come from downstream.
    pub fn is_uploaded(&self) -> bool {
        self.uploaded() >= self.pulse.expected.get()
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let pulse = &self.pulse;
        self.patience.kept.set(self.patience.kept.get() - usize::from(self.kept));
        pulse.limit.set(0);
        pulse.overdue.set(false);
        pulse.yields.set(false);
        pulse.waker.borrow_mut().take();
        pulse.upload_waker.borrow_mut().take();
        pulse.uploaded.set(0);
        pulse.expected.set(0);
        pulse.spoilt.set(None);
        pulse.generation.set(pulse.generation.get().wrapping_add(1));
        self.patience.free.borrow_mut().push(pulse.index);
    }
}

/// Keeps a [`Wait`] alive from the request's side.
#[derive(Debug)]
pub struct Upload {
    tick: Rc<Cell<u32>>,
    pulse: Rc<Pulse>,
    generation: u32,
}

impl Upload {
    /// Bytes moved upwards.
    pub fn moved(&self, bytes: usize) {
        if self.pulse.generation.get() == self.generation {
            self.pulse.last.set(self.tick.get());
            self.pulse.uploaded.set(self.pulse.uploaded.get() + bytes as u64);
        }
    }

    /// It is cut, for this reason.
    pub fn spoil(&self, why: Spoilt) {
        if self.pulse.generation.get() == self.generation {
            self.pulse.spoilt.set(Some(why));
        }
    }

    /// Ready when the answer's side has said that this is over.
    pub fn poll_stopped(&self, cx: &Context<'_>) -> Poll<()> {
        if self.pulse.stopped.get() == Some(self.generation) {
            return Poll::Ready(());
        }
        if self.pulse.generation.get() == self.generation {
            let mut waker = self.pulse.upload_waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        Poll::Pending
    }

    /// So many bytes are to come; `None`: nobody knows yet.
    pub fn expects(&self, bytes: Option<u64>) {
        if self.pulse.generation.get() == self.generation {
            self.pulse.expected.set(bytes.unwrap_or(u64::MAX));
        }
    }
}

/// The timeouts of one request: idle always coarse, the whole request's only armed where there is one.
#[derive(Debug)]
pub struct Overdue {
    /// Silence.
    pub wait: Wait,
    whole: Option<Pin<Box<Sleep>>>,
}

impl Overdue {
    /// Starts both.
    pub fn new(patience: &Rc<Patience>, idle: Option<Duration>, whole: Option<Duration>) -> Self {
        Self { wait: patience.wait(idle), whole: whole.map(|whole| Box::pin(tokio::time::sleep(whole))) }
    }

    /// From now on there is no more time than this for the rest, if there is not less anyway.
    pub fn bound(&mut self, rest: Duration) {
        let until = Instant::now() + rest;
        match &mut self.whole {
            Some(whole) if whole.deadline() <= until => {}
            Some(whole) => whole.as_mut().reset(until),
            None => self.whole = Some(Box::pin(tokio::time::sleep_until(until))),
        }
    }

    /// Ready when one has passed; says which.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        if let Some(whole) = &mut self.whole
            && whole.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Reason::RequestTimeout);
        }
        self.wait.poll_overdue(cx).map(|()| Reason::IdleTimeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn the_tick_catches_up_after_a_rest() {
        // Aim: a wait that ends a rest begins at the right tick, so that it is not overdue early; and a rest has its bound.
        let patience = patience();
        let (began, clock) = (patience.tick(), Instant::now());
        patience.rest(Some(TICK * 8)).await;
        assert_eq!((patience.tick() - began, clock.elapsed()), (8, TICK * 8));
        assert!(patience.calm());

        let resting = Rc::clone(&patience);
        let begin = async {
            tokio::time::sleep(TICK * 5 + TICK / 2).await;
            let wait = patience.wait(Some(TICK * 2));
            assert_eq!(patience.tick() - began, 13);
            wait
        };
        let (wait, ()) = tokio::join!(begin, resting.rest(None));
        assert_eq!((patience.tick() - began, patience.calm(), patience.calm()), (13, false, true));
        patience.advance();
        patience.advance();
        assert!(poll_fn(|cx| Poll::Ready(wait.poll_overdue(cx))).await.is_pending(), "the rest does not count as silence");
        patience.advance();
        poll_fn(|cx| wait.poll_overdue(cx)).await;
    }

    #[tokio::test]
    async fn who_stood_still_for_longest_makes_room() {
        // Aim: only waits that yield are ended, none before it has stood still for as long as it may, and only so many at once, the oldest first.
        let patience = patience();
        let wait = |yields: bool| {
            let wait = patience.wait(Some(TICK * 10_000));
            wait.yields(yields);
            wait
        };
        let (oldest, stays) = (wait(true), wait(false));
        patience.advance();
        let others: Vec<_> = (0..YIELDING_AT_ONCE_MAX).map(|_| wait(true)).collect();
        for _ in 0..ticks(YIELD_AFTER) {
            patience.make_room();
            patience.advance();
        }
        let over = async |wait: &Wait| poll_fn(|cx| Poll::Ready(wait.poll_overdue(cx))).await.is_ready();
        assert!(!over(&oldest).await);
        patience.advance();
        let young = wait(true);
        patience.make_room();
        assert!(over(&oldest).await && !over(&stays).await && !over(&young).await);
        let mut count = 0;
        for other in &others {
            count += usize::from(over(other).await);
        }
        assert_eq!(count, YIELDING_AT_ONCE_MAX - 1, "with the oldest");
    }

    fn patience() -> Rc<Patience> {
        Rc::new(Patience::default())
    }

    #[tokio::test]
    async fn silence_ends_a_wait_and_movement_does_not() {
        // Aim: never early, both directions count as movement, and places are reused clean.
        let patience = patience();
        let wait = patience.wait(Some(TICK * 2));
        let upload = wait.upload();
        for _ in 0..10 {
            patience.advance();
            upload.moved(3);
            assert!(poll_fn(|cx| Poll::Ready(wait.poll_overdue(cx))).await.is_pending());
        }
        assert_eq!(wait.uploaded(), 30);
        for _ in 0..3 {
            assert!(poll_fn(|cx| Poll::Ready(wait.poll_overdue(cx))).await.is_pending());
            patience.advance();
        }
        poll_fn(|cx| wait.poll_overdue(cx)).await;
        drop(wait);
        let again = patience.wait(None);
        upload.moved(5);
        assert_eq!((again.uploaded(), patience.waiting()), (0, 1), "a late upload of an earlier use does not count");
        for _ in 0..10 {
            patience.advance();
        }
        assert!(poll_fn(|cx| Poll::Ready(again.poll_overdue(cx))).await.is_pending(), "no limit, no end");
    }
}
