//! TLS handshakes of clients from outside that one worker has under way. A client that stalls half-way holds its place at the cost of those that do
//! not: at the bound the one that has been under way longest makes room.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;

use tokio::sync::{Notify, Semaphore};

/// See the module.
#[derive(Debug)]
pub struct Handshakes {
    places: Semaphore,
    /// The oldest first.
    under_way: RefCell<BTreeMap<u64, Rc<Notify>>>,
    count: Cell<u64>,
}

/// One of them; it leaves when it is dropped.
struct Shaking<'h> {
    all: &'h Handshakes,
    number: u64,
    ends: Rc<Notify>,
}

impl Drop for Shaking<'_> {
    fn drop(&mut self) {
        self.all.under_way.borrow_mut().remove(&self.number);
    }
}

impl Handshakes {
    /// At most so many at a time.
    pub fn new(most: usize) -> Self {
        Self { places: Semaphore::new(most), under_way: RefCell::default(), count: Cell::new(0) }
    }

    /// Does one as soon as it has a place; `full` is told where it has to wait for that. `None`: it took so long that it had to make room for
    /// another one. Dropping the future ends it.
    pub async fn run<T>(&self, full: impl FnOnce(), work: impl Future<Output = T>) -> Option<T> {
        let _place = match self.places.try_acquire() {
            Ok(place) => place,
            Err(_) => {
                full();
                self.crowd_out();
                // It is closed by nobody.
                self.places.acquire().await.ok()?
            }
        };
        let under_way = self.enter();
        tokio::select! {
            biased;
            done = work => Some(done),
            () = under_way.ends.notified() => None,
        }
    }

    fn enter(&self) -> Shaking<'_> {
        let number = self.count.get();
        self.count.set(number + 1);
        let ends = Rc::new(Notify::new());
        self.under_way.borrow_mut().insert(number, Rc::clone(&ends));
        Shaking { all: self, number, ends }
    }

    /// Ends the one that has been under way longest.
    fn crowd_out(&self) {
        if let Some((_, oldest)) = self.under_way.borrow_mut().pop_first() {
            oldest.notify_one();
        }
    }

    /// Places that nobody has.
    #[cfg(test)]
    pub(crate) const fn places(&self) -> &Semaphore {
        &self.places
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_stalls_makes_room_for_who_comes() {
        // Aim: with two places taken by clients that never go on, a third is served at once, in place of the oldest; the younger one stays, and
        // places come back.
        let all = Handshakes::new(2);
        let full = Cell::new(0);
        let told = || full.set(full.get() + 1);
        let stalls = |secs| {
            let all = &all;
            async move {
                sleep(Duration::from_secs(secs)).await;
                all.run(|| {}, pending::<()>()).await
            }
        };
        let later = async {
            sleep(Duration::from_secs(2)).await;
            timeout(Duration::from_secs(1), all.run(told, async { 7 })).await
        };
        let (first, second, third) = tokio::join!(stalls(0), timeout(Duration::from_secs(9), stalls(1)), later);
        assert_eq!((first, third.unwrap(), full.get()), (None, Some(7), 1));
        assert!(second.is_err(), "the younger one goes on");
        assert_eq!((all.places().available_permits(), all.under_way.borrow().len()), (2, 0));
    }
}
