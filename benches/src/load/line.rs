//! Where requests that are due wait for a lane, and lanes for a request. For one thread: no lock, and nothing is held across a wait.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::schedule::Due;

/// Most requests that wait for a lane; those beyond fail with the reason `backlog`. At 4,000 per second this is a stall of 16 seconds.
pub const BACKLOG_MAX: usize = 65_536;

/// No room for another request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// The line. The lane that is idle longest goes next, so that all connections are used alike.
#[derive(Default)]
pub(super) struct Line {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Due>,
    idle: VecDeque<Rc<Seat>>,
    closed: bool,
}

/// A lane's place in the line.
#[derive(Default)]
pub(super) struct Seat {
    given: Cell<Option<Due>>,
    seated: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Seat {
    fn wake(&self) {
        self.seated.set(false);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Line {
    /// Gives a request to the lane that is idle longest, else lets it wait.
    ///
    /// # Errors
    /// [`BACKLOG_MAX`] requests wait already.
    pub(super) fn offer(&self, due: Due) -> Result<(), Full> {
        let mut state = self.state.borrow_mut();
        if let Some(seat) = state.idle.pop_front() {
            drop(state);
            seat.given.set(Some(due));
            seat.wake();
            return Ok(());
        }
        if state.waiting.len() >= BACKLOG_MAX {
            return Err(Full);
        }
        state.waiting.push_back(due);
        Ok(())
    }

    /// The next request for a lane; `None` when the line is closed. Dropping the future may lose a request, so only a lane that ends does.
    pub(super) async fn take(&self, seat: &Rc<Seat>) -> Option<Due> {
        std::future::poll_fn(|context| {
            if let Some(due) = seat.given.take() {
                return Poll::Ready(Some(due));
            }
            let mut state = self.state.borrow_mut();
            if !seat.seated.get() {
                if let Some(due) = state.waiting.pop_front() {
                    return Poll::Ready(Some(due));
                }
                if state.closed {
                    return Poll::Ready(None);
                }
                state.idle.push_back(Rc::clone(seat));
                seat.seated.set(true);
            }
            seat.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Nothing more is due. Lanes end when they are idle; what still waits is given back.
    pub(super) fn close(&self) -> Vec<Due> {
        let mut state = self.state.borrow_mut();
        state.closed = true;
        let idle = std::mem::take(&mut state.idle);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        idle.iter().for_each(|seat| seat.wake());
        waiting.into()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;
    use std::time::Instant;

    use super::*;

    fn poll_once<T>(future: impl Future<Output = T>) -> Poll<T> {
        pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    fn due() -> Due {
        Due { at: Instant::now(), counts: true }
    }

    #[test]
    fn the_backlog_is_bounded() {
        // Aim: when every lane is busy, BACKLOG_MAX requests wait and the next one is refused.
        let line = Line::default();
        let one = due();
        for _ in 0..BACKLOG_MAX {
            assert_eq!(line.offer(one), Ok(()));
        }
        assert_eq!(line.offer(one), Err(Full));
        let seat = Rc::default();
        assert_eq!(poll_once(line.take(&seat)), Poll::Ready(Some(one)), "a lane makes room");
        assert_eq!(line.offer(one), Ok(()));
        assert_eq!(line.close().len(), BACKLOG_MAX);
    }

    #[test]
    fn the_lane_idle_longest_goes_next() {
        // Aim: requests are spread over all lanes in turn; a closed line ends idle lanes.
        let line = Line::default();
        let seats: [Rc<Seat>; 2] = Default::default();
        for seat in &seats {
            assert_eq!(poll_once(line.take(seat)), Poll::Pending);
        }
        let one = due();
        line.offer(one).unwrap();
        assert_eq!(poll_once(line.take(&seats[0])), Poll::Ready(Some(one)));
        assert_eq!(poll_once(line.take(&seats[0])), Poll::Pending);
        line.offer(one).unwrap();
        assert_eq!(poll_once(line.take(&seats[1])), Poll::Ready(Some(one)));
        assert!(line.close().is_empty());
        assert_eq!(poll_once(line.take(&seats[0])), Poll::Ready(None));
        assert_eq!(poll_once(line.take(&seats[1])), Poll::Ready(None));
    }
}
