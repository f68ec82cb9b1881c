//! Ending one direction of a worker's work in order: everybody who has to hear of it is woken at each stage.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// How far the end has come. A later stage includes the earlier ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrainStage {
    /// No end in sight.
    #[default]
    Open,
    /// Peers are told: GOAWAY, and `connection: close` on every answer.
    Told,
    /// Doors take what has queued up before them, and close.
    Shut,
    /// Connections without work are closed: kept ones, and those that have not said a word.
    Closing,
    /// Its time is over: what is left is cut.
    Cut,
}

/// One direction's drain. A connection that joined costs one comparison per wake-up until the drain begins.
#[derive(Debug, Default)]
pub struct Drain {
    stage: Cell<DrainStage>,
    hushed: Cell<bool>,
    members: RefCell<Members>,
}

#[derive(Debug, Default)]
struct Members {
    wakers: Vec<Option<Waker>>,
    free: Vec<u32>,
}

/// A place in a [`Drain`]; dropping it leaves.
#[derive(Debug)]
pub struct Member {
    drain: Rc<Drain>,
    index: u32,
    registered: bool,
}

impl Drain {
    /// Goes on to a stage and wakes every member; never back.
    pub fn reach(&self, stage: DrainStage) {
        if self.stage.get() < stage {
            self.stage.set(stage);
            self.members.borrow().wakers.iter().flatten().for_each(Waker::wake_by_ref);
        }
    }

    /// Has connections closed that rest between two exchanges, before it comes to [`DrainStage::Closing`]; the doors stay as they are.
    pub fn hush(&self) {
        if !self.hushed.replace(true) {
            self.members.borrow().wakers.iter().flatten().for_each(Waker::wake_by_ref);
        }
    }

    /// Whether the drain has begun.
    pub fn draining(&self) -> bool {
        self.reached(DrainStage::Told)
    }

    /// Whether the drain has come as far as `stage`.
    pub fn reached(&self, stage: DrainStage) -> bool {
        self.stage.get() >= stage
    }

    /// Members that joined and did not leave.
    pub fn members(&self) -> usize {
        let members = self.members.borrow();
        members.wakers.len() - members.free.len()
    }

    /// Joins. The future that polls [`Member::poll_stage`] must stay in one task.
    pub fn join(self: &Rc<Self>) -> Member {
        let mut members = self.members.borrow_mut();
        let index = members.free.pop().unwrap_or_else(|| {
            members.wakers.push(None);
            u32::try_from(members.wakers.len() - 1).unwrap_or(u32::MAX)
        });
        Member { drain: Rc::clone(self), index, registered: false }
    }
}

impl Member {
    /// Ready once the drain has come as far as `stage`.
    pub fn poll_stage(&mut self, stage: DrainStage, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_of(self.drain.reached(stage), cx)
    }

    /// Ready once connections that rest are to be closed.
    pub fn poll_hushed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_of(self.drain.hushed.get() || self.drain.reached(DrainStage::Closing), cx)
    }

    fn poll_of(&mut self, reached: bool, cx: &mut Context<'_>) -> Poll<()> {
        if reached {
            return Poll::Ready(());
        }
        if !self.registered {
            self.registered = true;
            self.drain.members.borrow_mut().wakers[self.index as usize] = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Resolves once the drain has come as far as `stage`. Cancel-safe.
    pub async fn stage(&mut self, stage: DrainStage) {
        poll_fn(|cx| self.poll_stage(stage, cx)).await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut members = self.drain.members.borrow_mut();
        members.wakers[self.index as usize] = None;
        members.free.push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn members_are_told_and_counted() {
        // Aim: a waiting member hears of each stage, a stage is never taken back, places are reused, and the end is noticed.
        let drain = Rc::new(Drain::default());
        drop(drain.join());
        let mut member = drain.join();
        assert_eq!(drain.members(), 1);
        let told = async {
            member.stage(DrainStage::Told).await;
            assert!(poll_fn(|cx| Poll::Ready(member.poll_stage(DrainStage::Closing, cx))).await.is_pending());
            member.stage(DrainStage::Closing).await;
            drop(member);
        };
        let begin = async {
            tokio::task::yield_now().await;
            drain.reach(DrainStage::Shut);
            drain.reach(DrainStage::Told);
            tokio::task::yield_now().await;
            drain.reach(DrainStage::Closing);
        };
        tokio::join!(told, begin);
        assert_eq!((drain.members(), drain.draining()), (0, true));
    }
}
