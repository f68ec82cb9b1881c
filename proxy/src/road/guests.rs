//! The downstream connections of one worker and direction: counted, bounded, and waited for.
//!
//! Each direction has a bound of its own: what the application opens must not keep its callers out, and the other way round (two
//! sidecars whose applications call one another would stop one another for good).

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::Notify;

use crate::ground::limits::{INBOUND_CONNECTIONS_MAX, OUTBOUND_CONNECTIONS_MAX};
use crate::ground::patience::Patience;
use crate::io::Pressure;
use crate::observe::{Direction, Occupancy, Telemetry};

/// One thing for each direction.
#[derive(Debug)]
pub struct Both<T> {
    /// Of calls to the application beside us.
    pub inbound: T,
    /// Of the application's own calls, and of an edge's clients.
    pub outbound: T,
}

impl<T> Both<T> {
    /// That of a direction.
    pub const fn of(&self, direction: Direction) -> &T {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }
}

impl Both<Rc<Guests>> {
    /// Nobody here yet. The bounds are the usual ones, or `max` where that is lower. `pressure` is on while one is reached: who stands still
    /// gives way.
    pub fn new(telemetry: &Arc<Telemetry>, max: usize, (pressure, patience): (&Pressure, &Rc<Patience>)) -> Self {
        let guests = |direction, usual| {
            let want = (pressure.clone(), Rc::clone(patience));
            Rc::new(Guests::new(direction, max.min(usual), Arc::clone(telemetry), want))
        };
        Self {
            inbound: guests(Direction::Inbound, INBOUND_CONNECTIONS_MAX),
            outbound: guests(Direction::Outbound, OUTBOUND_CONNECTIONS_MAX),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Guests {
    direction: Direction,
    max: Cell<usize>,
    open: Cell<usize>,
    /// Places that doors keep for the next connection.
    kept: Cell<usize>,
    doors: Cell<usize>,
    full: Cell<bool>,
    changed: Notify,
    telemetry: Arc<Telemetry>,
    pressure: Pressure,
    patience: Rc<Patience>,
}

/// One connection that is here. Counts while it lives.
#[derive(Debug)]
pub struct Guest(Rc<Guests>);

/// A place kept for a connection that has not come yet.
#[derive(Debug)]
pub struct Reserved(Rc<Guests>);

/// A door through which guests come; [`Guests::gone`] waits for it too.
#[derive(Debug)]
pub struct Doorway(Rc<Guests>);

impl Guests {
    /// At most `max` at once.
    fn new(direction: Direction, max: usize, telemetry: Arc<Telemetry>, (pressure, patience): (Pressure, Rc<Patience>)) -> Self {
        let (open, kept, doors) = (Cell::new(0), Cell::new(0), Cell::new(0));
        let (max, full) = (Cell::new(max), Cell::new(false));
        Self { direction, max, open, kept, doors, full, changed: Notify::new(), telemetry, pressure, patience }
    }

    /// Whether a door waits for a place.
    pub fn are_wanting(&self) -> bool {
        self.open.get() + self.kept.get() >= self.max.get() && self.kept.get() < self.doors.get()
    }

    /// Connections now here.
    pub fn open(&self) -> usize {
        self.open.get()
    }

    /// Counts one that needs no place: a tunnel goes on in the place of the connection that it came from.
    pub fn enter(self: &Rc<Self>) -> Guest {
        self.open.set(self.open.get() + 1);
        self.occupancy().open.fetch_add(1, Ordering::Relaxed);
        Guest(Rc::clone(self))
    }

    /// Counts a door while the value lives.
    pub fn door(self: &Rc<Self>) -> Doorway {
        self.doors.set(self.doors.get() + 1);
        Doorway(Rc::clone(self))
    }

    /// A place for the next connection, as soon as there is one. Cancel-safe.
    pub async fn place(self: &Rc<Self>) -> Reserved {
        let mut waited = false;
        while self.open.get() + self.kept.get() >= self.max.get() {
            waited = true;
            // Who may give way is looked for by the sweep, which may rest.
            self.patience.stir();
            // Told once per time that it fills up, not once per connection that had to wait.
            if !self.full.replace(true) {
                self.pressure.rise();
                self.occupancy().full.fetch_add(1, Ordering::Relaxed);
                let (direction, bound) = (self.direction.text(), self.max.get());
                tracing::warn!(direction, bound, "no more connections are accepted until some end");
            }
            self.changed.notified().await;
        }
        if !waited && self.full.replace(false) {
            self.pressure.fall();
        }
        self.kept.set(self.kept.get() + 1);
        Reserved(Rc::clone(self))
    }

    /// Resolves when no door is open and nobody is here. Cancel-safe.
    pub async fn gone(&self) {
        while self.open.get() + self.doors.get() > 0 {
            self.changed.notified().await;
        }
    }

    fn left(&self) {
        if self.full.get() || self.open.get() + self.doors.get() == 0 {
            self.changed.notify_waiters();
        }
    }

    fn occupancy(&self) -> &Occupancy {
        self.telemetry.readings.occupancy(self.direction)
    }

    /// Another bound.
    #[cfg(test)]
    pub(crate) fn bound(&self, max: usize) {
        self.max.set(max);
    }
}

impl Reserved {
    /// The connection has come.
    pub fn taken(self) -> Guest {
        self.0.enter()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.occupancy().open.fetch_sub(1, Ordering::Relaxed);
        self.0.left();
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.0.kept.set(self.0.kept.get() - 1);
        self.0.left();
    }
}

impl Drop for Doorway {
    fn drop(&mut self) {
        self.0.doors.set(self.0.doors.get() - 1);
        self.0.left();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Clock;
    use crate::observe::TelemetryOptions;

    fn both() -> Both<Rc<Guests>> {
        Both::new(&crate::observe::start(TelemetryOptions::default(), Clock::System).0, usize::MAX, (&Pressure::default(), &Rc::default()))
    }

    #[tokio::test]
    async fn each_direction_has_its_own_bound() {
        // Aim: a full direction waits for one to leave, the other does not notice; the bound's reaching is counted once per time.
        let guests = both();
        guests.outbound.bound(2);
        let (one, kept) = (guests.outbound.place().await.taken(), guests.outbound.place().await);
        let (mut waiting, inbound) = (Box::pin(guests.outbound.place()), guests.inbound.place().await.taken());
        for _ in 0..2 {
            assert!(futures::poll!(waiting.as_mut()).is_pending());
        }
        let two = kept.taken();
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        assert_eq!((guests.outbound.open(), guests.inbound.open()), (2, 1));
        drop(one);
        drop(waiting.await);
        assert_eq!(guests.outbound.occupancy().full.load(Ordering::Relaxed), 1);
        drop((two, inbound));
        assert_eq!(guests.outbound.occupancy().open.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn the_last_one_is_waited_for() {
        // Aim: doors, guests and what became of guests, in any order.
        let guests = both().inbound;
        let (door, guest) = (guests.door(), guests.place().await.taken());
        let tunnel = guests.enter();
        let mut gone = Box::pin(guests.gone());
        assert!(futures::poll!(gone.as_mut()).is_pending());
        drop((guest, door));
        assert!(futures::poll!(gone.as_mut()).is_pending());
        drop(tunnel);
        gone.await;
        guests.gone().await;
    }
}
