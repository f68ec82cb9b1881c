//! Requests under way by key: so many have a place, so many more wait for one, in the order in which they came.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use crate::gate::{Enter, Gate, Limits, Pass, Ticket};

/// See the module. No more keys than requests.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Mutex<HashMap<u128, Arc<Gate>>>);

/// A request under way; dropped when it is over.
#[derive(Debug)]
pub struct UnderWayPlace {
    held: Held,
    pass: Option<Pass>,
}

/// A request that waits for a place, and becomes one that has it. Dropping it gives the wait up, and the place with it.
#[derive(Debug)]
pub(crate) struct WaitingPlace {
    held: Option<Held>,
    ticket: Option<Ticket>,
}

/// A key, which is forgotten with the last request.
#[derive(Debug)]
struct Held {
    all: Arc<UnderWay>,
    key: u128,
}

/// What comes of wanting a place.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// There is one.
    Place(UnderWayPlace),
    /// There will be one.
    Wait(WaitingPlace),
    /// As many wait as may.
    Full,
}

impl UnderWay {
    /// Wants one of `most` places of a key; `queue` may wait for one.
    pub(super) fn enter(self: &Arc<Self>, key: u128, most: u32, queue: u32) -> Wanted {
        let bounds = Limits { requests: Some(most), pending: queue, ..Limits::default() };
        let held = || Held { all: Arc::clone(self), key };
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match gates.entry(key).or_default().enter(&bounds, 0) {
            Enter::In(pass) => Wanted::Place(UnderWayPlace { held: held(), pass: Some(pass) }),
            Enter::Wait(ticket) => Wanted::Wait(WaitingPlace { held: Some(held()), ticket: Some(ticket) }),
            // Others have the places, so the key stays.
            Enter::Full => Wanted::Full,
        }
    }

    /// Keys of which somebody has a place, or waits for one.
    #[cfg(test)]
    pub(super) fn keys(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl UnderWayPlace {
    /// Whether it is one of that key, of what counts together with `all`.
    pub(super) fn is_of(&self, all: &Arc<UnderWay>, key: u128) -> bool {
        self.held.key == key && Arc::ptr_eq(&self.held.all, all)
    }
}

impl Drop for UnderWayPlace {
    fn drop(&mut self) {
        // Before the key is looked at, which it keeps.
        self.pass = None;
    }
}

impl Future for WaitingPlace {
    /// `None`: it was asked once more after it had been given.
    type Output = Option<UnderWayPlace>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(ticket) = &mut self.ticket else { return Poll::Ready(None) };
        // There is one class, so nobody makes room for another.
        let pass = ready!(Pin::new(ticket).poll(cx)).ok();
        self.ticket = None;
        Poll::Ready(self.held.take().map(|held| UnderWayPlace { held, pass }))
    }
}

impl Drop for WaitingPlace {
    fn drop(&mut self) {
        self.ticket = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut gates = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if gates.get(&self.key).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            gates.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn place(wanted: Wanted) -> UnderWayPlace {
        let Wanted::Place(place) = wanted else { panic!("{wanted:?}") };
        place
    }

    fn wait(wanted: Wanted) -> WaitingPlace {
        let Wanted::Wait(waiting) = wanted else { panic!("{wanted:?}") };
        waiting
    }

    fn turn(waiting: &mut WaitingPlace) -> Option<UnderWayPlace> {
        match Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(place) => Some(place.expect("it has not been given before")),
            Poll::Pending => None,
        }
    }

    /// Aim: who waits comes in in the order of arrival, nobody passes by, the bound of each key holds, who gives up makes room for the next
    /// whether it was called or not, and nothing is left when all are gone.
    #[test]
    fn a_queue_is_bounded_fair_and_safe_to_leave() {
        let all = Arc::<UnderWay>::default();
        let inside = place(all.enter(1, 1, 3));
        let other = place(all.enter(2, 1, 0));
        assert!(matches!(all.enter(2, 1, 0), Wanted::Full));
        let (mut first, mut second, mut third) = (wait(all.enter(1, 1, 3)), wait(all.enter(1, 1, 3)), wait(all.enter(1, 1, 3)));
        assert!(matches!(all.enter(1, 1, 3), Wanted::Full));
        assert!(turn(&mut first).is_none() && turn(&mut second).is_none() && turn(&mut third).is_none());
        drop(inside);
        assert!(matches!(all.enter(1, 1, 0), Wanted::Full), "the place is given to who waited");
        assert!(turn(&mut second).is_none());
        let inside = turn(&mut first).unwrap();
        assert!(inside.is_of(&all, 1) && !inside.is_of(&all, 2) && !inside.is_of(&Arc::default(), 1));
        let mut fourth = wait(all.enter(1, 1, 3));
        drop(second);
        drop(inside);
        drop(third);
        // The third was called, and never came.
        let inside = turn(&mut fourth).unwrap();
        assert!(turn_again(&mut fourth));
        drop((first, fourth, inside, other));
        assert_eq!(all.keys(), 0);
    }

    fn turn_again(waiting: &mut WaitingPlace) -> bool {
        matches!(Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(None))
    }
}
