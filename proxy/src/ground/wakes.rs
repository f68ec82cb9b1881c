//! Wakes of a connection's task that are known to be for nothing.
//!
//! hyper wakes the sender of a body whenever its receiver takes a piece, and after the last piece too, when nothing is left to send. That
//! is one turn of a connection more for every answer, in which it looks at everything and finds nothing.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::ptr;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Wake, Waker};

thread_local! {
    /// Whose wakes this thread holds back. Of this thread alone: a wake that comes from another one meanwhile, of a drain or a first use, is
    /// not the doing of who holds, and passes.
    static HELD: Cell<*const Wakes> = const { Cell::new(ptr::null()) };
    /// Whether one was held back.
    static MISSED: Cell<bool> = const { Cell::new(false) };
}

/// Wakes the task of one connection, and can be held back on the task's own thread for a moment.
#[derive(Debug, Default)]
pub struct Wakes {
    task: OnceLock<Waker>,
}

impl Wakes {
    /// Drives a connection to its end, so that it is woken through `self`. Dropping the future drops the connection.
    pub fn drive<F: Future + Unpin>(self: Arc<Self>, mut connection: F) -> impl Future<Output = F::Output> {
        let waker = Waker::from(Arc::clone(&self));
        poll_fn(move |cx| {
            let connection = Pin::new(&mut connection);
            if self.task.get_or_init(|| cx.waker().clone()).will_wake(cx.waker()) {
                connection.poll(&mut Context::from_waker(&waker))
            } else {
                connection.poll(cx)
            }
        })
    }

    /// Holds wakes back until [`Self::release`]. Nothing but the work in between may happen meanwhile.
    pub fn hold(&self) {
        MISSED.set(false);
        HELD.set(self);
    }

    /// Ends [`Self::hold`]. `wanted` says whether what was held back is still needed.
    pub fn release(&self, wanted: bool) {
        HELD.set(ptr::null());
        if MISSED.replace(false) && wanted {
            self.wake_task();
        }
    }

    /// Wakes the task, whoever holds wakes back.
    pub fn wake_task(&self) {
        if let Some(task) = self.task.get() {
            task.wake_by_ref();
        }
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if ptr::eq(HELD.get(), Arc::as_ptr(self)) {
            MISSED.set(true);
        } else {
            self.wake_task();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;
    use std::task::Poll;

    #[tokio::test]
    async fn what_is_held_back_comes_later_or_never() {
        // Aim: no wake is lost but the one that nobody wants.
        let local = tokio::task::LocalSet::new();
        let turns = Rc::new(Cell::new(0));
        let inner: Rc<std::cell::RefCell<Option<Waker>>> = Rc::default();
        let wakes = Arc::new(Wakes::default());
        let (counted, given) = (Rc::clone(&turns), Rc::clone(&inner));
        let connection = poll_fn(move |cx| {
            counted.set(counted.get() + 1);
            given.replace(Some(cx.waker().clone()));
            Poll::<()>::Pending
        });
        local.spawn_local(Arc::clone(&wakes).drive(connection));
        let settle = || local.run_until(tokio::task::yield_now());
        settle().await;
        let wake = || inner.borrow().as_ref().unwrap().wake_by_ref();
        assert_eq!(turns.get(), 1);
        wake();
        settle().await;
        assert_eq!(turns.get(), 2, "as always");
        wakes.hold();
        wake();
        wakes.release(false);
        settle().await;
        assert_eq!(turns.get(), 2, "not wanted");
        wakes.hold();
        wake();
        wakes.release(true);
        settle().await;
        assert_eq!(turns.get(), 3, "still wanted");
        wakes.hold();
        wakes.release(true);
        settle().await;
        assert_eq!(turns.get(), 3, "nothing was held back");
        wakes.hold();
        let other = inner.borrow().clone().unwrap();
        std::thread::spawn(move || other.wake()).join().unwrap();
        wakes.release(false);
        settle().await;
        assert_eq!(turns.get(), 4, "another thread's wake is never held back");
    }
}
