//! Ending a worker's work in order: connections are told once, and counted while they last.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// One worker's drain. A connection that joined costs one comparison per wake-up until the drain begins.
#[derive(Debug, Default)]
pub struct Drain {
    draining: Cell<bool>,
    members: RefCell<Members>,
}

#[derive(Debug, Default)]
struct Members {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

/// A connection's place in a [`Drain`]; dropping it leaves.
#[derive(Debug)]
pub struct Member {
    drain: Rc<Drain>,
    index: usize,
    registered: bool,
}

impl Drain {
    /// Begins the drain and wakes every member. Idempotent.
    pub fn begin(&self) {
        if !self.draining.replace(true) {
            for waker in &mut self.members.borrow_mut().wakers {
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
            }
        }
    }

    /// Whether the drain has begun.
    pub fn draining(&self) -> bool {
        self.draining.get()
    }

    /// Connections that joined and did not leave.
    pub fn open(&self) -> usize {
        let members = self.members.borrow();
        members.wakers.len() - members.free.len()
    }

    /// Joins. The future that polls [`Member::poll_draining`] must stay in one task.
    pub fn join(self: &Rc<Self>) -> Member {
        let mut members = self.members.borrow_mut();
        let index = members.free.pop().unwrap_or_else(|| {
            members.wakers.push(None);
            members.wakers.len() - 1
        });
        Member { drain: Rc::clone(self), index, registered: false }
    }
}

impl Member {
    /// Ready once the drain has begun.
    pub fn poll_draining(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.drain.draining.get() {
            return Poll::Ready(());
        }
        if !self.registered {
            self.registered = true;
            self.drain.members.borrow_mut().wakers[self.index] = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut members = self.drain.members.borrow_mut();
        members.wakers[self.index] = None;
        members.free.push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test]
    async fn members_are_told_and_counted() {
        // Aim: a waiting member hears of the drain, places are reused, and the end is noticed.
        let drain = Rc::new(Drain::default());
        drop(drain.join());
        let mut member = drain.join();
        assert_eq!(drain.open(), 1);
        let told = async {
            poll_fn(|cx| member.poll_draining(cx)).await;
            drop(member);
        };
        let begin = async {
            tokio::task::yield_now().await;
            drain.begin();
        };
        tokio::join!(told, begin);
        assert_eq!(drain.open(), 0);
    }
}
