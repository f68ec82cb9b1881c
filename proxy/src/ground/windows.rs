//! How much of its bodies an HTTP/2 peer may send before they are read.
//!
//! A body that nobody reads must cost its own share and nothing else. So it is never the window of a connection that stops a peer (it is
//! too large for that: `limits::CONNECTION_WINDOW_BYTES`) but each stream's own; and the more bodies are open, on the connection and on
//! the worker, the smaller that is. The bounds on memory follow from the table by arithmetic, and no body that is read slowly has to be ended for them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Waker};

#[cfg(feature = "http3")]
use crate::ground::limits::QUIC_STREAM_WINDOW_BYTES;
use crate::ground::limits::{BODIES_PER_WORKER_MAX, SETTINGS_WAIT, TICK};
use crate::ground::tally::Floods;

/// Bodies open at most on one connection, and the window that each of them has then. One worker may have [`WORKER_SHARE`] times as many.
///
/// What peers that keep to it can have held here: 8 × 1 MiB + 56 × 256 KiB + 448 × 64 KiB + 1,536 × 16 KiB = 74 MiB per connection of 2,048
/// streams, four times as much and 49,152 × 4 KiB = 616 MiB per worker of 65,536 bodies.
const TIERS: [(usize, u32); 5] = [(8, 1 << 20), (64, 256 << 10), (512, 64 << 10), (4096, 16 << 10), (usize::MAX, 4 << 10)];
/// See [`TIERS`].
const WORKER_SHARE: usize = 4;
/// Ticks without a crowd before windows grow again: bursts must not make them swing.
const CALM_TICKS: u32 = 8;

/// The bodies of one worker that are coming in over HTTP/2.
#[derive(Debug)]
pub struct Bodies {
    crowd: Crowd,
    max: Cell<usize>,
    /// Where all workers' bodies are shown together, and how many of ours are.
    shown: (Arc<AtomicI64>, Cell<usize>),
    /// Connections whose frames were too many.
    floods: Floods,
    /// Wakers of the connections, so that those which stand still hear of smaller windows too.
    connections: RefCell<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    wakers: Vec<Option<Waker>>,
    free: Vec<u32>,
}

/// Bodies that are open, and the tier that they allow.
#[derive(Debug, Default)]
struct Crowd {
    open: Cell<usize>,
    /// Most that were open since the last look.
    peak: Cell<usize>,
    looked: Cell<u32>,
    tier: Cell<usize>,
}

/// One connection's windows, as we allow them to its peer.
#[derive(Debug)]
pub struct Windows {
    bodies: Rc<Bodies>,
    crowd: Crowd,
    /// The tier that the peer was told.
    told: Cell<usize>,
    /// Since which tick the peer owes the acknowledgement of what it was told.
    owed: Cell<Option<u32>>,
    place: u32,
    registered: Cell<bool>,
}

/// One body that is open. Counts while it lives.
#[derive(Debug)]
pub struct Share(Rc<Windows>);

/// What came of [`Windows::turn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// Nothing is to be told.
    Same,
    /// The peer is being told another window: the connection has something to write.
    Told,
    /// The peer has not acknowledged for too long what it was told (RFC 9113, section 6.5.3).
    Owed,
}

/// The tier for that many bodies, each counting as one of `share`.
fn tier_of(open: usize, share: usize) -> usize {
    TIERS.iter().position(|(max, _)| open.div_ceil(share) <= *max).unwrap_or(TIERS.len() - 1)
}

impl Crowd {
    fn enter(&self, share: usize) {
        let open = self.open.get() + 1;
        self.open.set(open);
        if open > self.peak.get() {
            self.peak.set(open);
            self.tier.set(self.tier.get().max(tier_of(open, share)));
        }
    }

    fn leave(&self) {
        self.open.set(self.open.get() - 1);
    }

    /// Widens after a calm time.
    fn look(&self, now: u32, share: usize) {
        if now.wrapping_sub(self.looked.get()) >= CALM_TICKS {
            self.looked.set(now);
            self.tier.set(tier_of(self.peak.get(), share));
            self.peak.set(self.open.get());
        }
    }
}

impl Bodies {
    /// None yet. `gauge` shows those of all workers, `floods` the connections that were ended for their frames.
    pub fn new(gauge: Arc<AtomicI64>, floods: Floods) -> Rc<Self> {
        let (crowd, connections) = (Crowd::default(), RefCell::default());
        Rc::new(Self { crowd, max: Cell::new(BODIES_PER_WORKER_MAX), shown: (gauge, Cell::new(0)), floods, connections })
    }

    /// Where the connections that bring bodies count themselves when their frames are too many.
    pub const fn floods(&self) -> &Floods {
        &self.floods
    }

    /// Shows how many there are; called once per tick.
    pub fn show(&self) {
        let (gauge, shown) = &self.shown;
        let before = shown.replace(self.open());
        if before != self.open() {
            gauge.fetch_add(self.open() as i64 - before as i64, Ordering::Relaxed);
        }
    }

    /// What one body of a new connection of QUIC may have.
    #[cfg(feature = "http3")]
    pub fn one(&self) -> u32 {
        TIERS[self.crowd.tier.get()].1.min(QUIC_STREAM_WINDOW_BYTES)
    }

    /// Bodies that are open.
    pub fn open(&self) -> usize {
        self.crowd.open.get()
    }

    /// Whether there are so many already that no further one is taken in.
    pub fn full(&self) -> bool {
        self.open() >= self.max.get()
    }

    /// Another bound.
    #[cfg(test)]
    pub(crate) fn bound(&self, max: usize) {
        self.max.set(max);
    }

    /// The windows of a new connection.
    pub fn connection(self: &Rc<Self>) -> Rc<Windows> {
        let mut connections = self.connections.borrow_mut();
        let place = connections.free.pop().unwrap_or_else(|| {
            connections.wakers.push(None);
            u32::try_from(connections.wakers.len() - 1).unwrap_or(u32::MAX)
        });
        let told = Cell::new(self.crowd.tier.get());
        let (crowd, owed, registered) = (Crowd::default(), Cell::new(None), Cell::new(false));
        Rc::new(Windows { bodies: Rc::clone(self), crowd, told, owed, place, registered })
    }
}

impl Windows {
    /// The window of a stream that the peer is told first.
    pub fn first(&self) -> u32 {
        TIERS[self.told.get()].1
    }

    /// Counts one body more.
    pub fn enter(self: &Rc<Self>) -> Share {
        self.crowd.enter(1);
        let bodies = &self.bodies;
        let before = bodies.crowd.tier.get();
        bodies.crowd.enter(WORKER_SHARE);
        if bodies.crowd.tier.get() > before {
            bodies.connections.borrow().wakers.iter().flatten().for_each(Waker::wake_by_ref);
        }
        Share(Rc::clone(self))
    }

    /// Whether there are so many bodies on this worker that no further one is taken in.
    pub fn full(&self) -> bool {
        self.bodies.full()
    }

    /// Bytes of each body that the peer of a connection of QUIC may have sent before they are read, and how many bodies it has, one at least.
    #[cfg(feature = "http3")]
    pub fn allowance(&self, now: u32) -> (u32, u32) {
        self.bodies.crowd.look(now, WORKER_SHARE);
        self.crowd.look(now, 1);
        let tier = self.crowd.tier.get().max(self.bodies.crowd.tier.get());
        let bodies = u32::try_from(self.crowd.open.get()).unwrap_or(u32::MAX);
        (TIERS[tier].1.min(QUIC_STREAM_WINDOW_BYTES), bodies.max(1))
    }

    /// Called at the end of each turn of the connection's task: tells the peer by `set` if its windows are to change; `set` says whether
    /// it could be told. Smaller windows are told at once, larger ones after a calm time.
    pub fn turn(&self, now: u32, cx: &Context<'_>, set: impl FnOnce(u32) -> bool) -> Turned {
        if !self.registered.replace(true) {
            self.bodies.connections.borrow_mut().wakers[self.place as usize] = Some(cx.waker().clone());
        }
        self.bodies.crowd.look(now, WORKER_SHARE);
        self.crowd.look(now, 1);
        let wanted = self.crowd.tier.get().max(self.bodies.crowd.tier.get());
        if wanted == self.told.get() {
            return Turned::Same;
        }
        if set(TIERS[wanted].1) {
            self.told.set(wanted);
            self.owed.set(None);
            return Turned::Told;
        }
        let since = self.owed.get().unwrap_or(now);
        self.owed.set(Some(since));
        if TICK * now.wrapping_sub(since) < SETTINGS_WAIT {
            return Turned::Same;
        }
        // Said once: the connection ends by it.
        self.told.set(wanted);
        Turned::Owed
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        let mut connections = self.bodies.connections.borrow_mut();
        connections.wakers[self.place as usize] = None;
        connections.free.push(self.place);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.crowd.leave();
        self.0.bodies.crowd.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ground::limits::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES, STREAMS_PER_CONNECTION_MAX};

    fn turn(windows: &Windows, now: u32) -> Option<u32> {
        let told = Cell::new(None);
        windows.turn(now, &Context::from_waker(Waker::noop()), |size| {
            told.set(Some(size));
            true
        });
        told.get()
    }

    #[test]
    fn the_more_bodies_the_smaller_their_windows() {
        // Aim: smaller at once, larger only after a calm time, and a crowd on the worker counts on every connection.
        let bodies = Bodies::new(Arc::default(), Floods::default());
        let (crowded, other) = (bodies.connection(), bodies.connection());
        assert_eq!((crowded.first(), turn(&crowded, 0)), (STREAM_WINDOW_BYTES, None));
        let mut shares: Vec<_> = (0..8).map(|_| crowded.enter()).collect();
        assert_eq!(turn(&crowded, 0), None);
        shares.push(crowded.enter());
        assert_eq!((turn(&crowded, 0), turn(&crowded, 0)), (Some(256 << 10), None));
        shares.extend((0..56).map(|_| crowded.enter()));
        assert_eq!((turn(&crowded, 0), turn(&other, 0)), (Some(64 << 10), Some(256 << 10)));
        assert_eq!(bodies.connection().first(), 256 << 10, "a new connection begins so");
        drop(shares);
        assert_eq!((turn(&crowded, CALM_TICKS - 1), turn(&crowded, CALM_TICKS)), (None, None), "the crowd was here a moment ago");
        assert_eq!((turn(&crowded, CALM_TICKS * 2), turn(&other, CALM_TICKS * 2)), (Some(1 << 20), Some(1 << 20)));
        assert_eq!(bodies.open(), 0);
    }

    #[cfg(feature = "http3")]
    #[test]
    fn a_connection_of_quic_has_what_its_bodies_have() {
        // Aim: one body's room without any, then as much for each; less of each where a worker has many, and more again after a calm time.
        let bodies = Bodies::new(Arc::default(), Floods::default());
        let (connection, other) = (bodies.connection(), bodies.connection());
        let one = QUIC_STREAM_WINDOW_BYTES;
        assert_eq!((connection.allowance(0), bodies.one()), ((one, 1), one));
        let shares: Vec<_> = (0..3).map(|_| connection.enter()).collect();
        assert_eq!((connection.allowance(0), other.allowance(0)), ((one, 3), (one, 1)));
        let crowd: Vec<_> = (0..64 * WORKER_SHARE).map(|_| other.enter()).collect();
        assert_eq!((connection.allowance(0), bodies.one()), ((64 << 10, 3), 64 << 10));
        drop((shares, crowd));
        connection.allowance(CALM_TICKS);
        assert_eq!(connection.allowance(2 * CALM_TICKS), (one, 1));
    }

    #[test]
    fn a_peer_that_does_not_acknowledge_is_noticed() {
        // Aim: what could not be told is tried again, and not for ever.
        let windows = Bodies::new(Arc::default(), Floods::default()).connection();
        let _shares: Vec<_> = (0..9).map(|_| windows.enter()).collect();
        let context = Context::from_waker(Waker::noop());
        assert_eq!(windows.turn(5, &context, |_| false), Turned::Same);
        let wait = SETTINGS_WAIT.div_duration_f64(TICK) as u32;
        assert_eq!(windows.turn(4 + wait, &context, |_| false), Turned::Same);
        assert_eq!(windows.turn(5 + wait, &context, |_| false), Turned::Owed);
        assert_eq!(windows.turn(6 + wait, &context, |_| false), Turned::Same, "said once");
    }

    /// Most bytes that bodies may hold which are opened one after the other and never read.
    fn held(bodies: usize, share: usize) -> u64 {
        let mut below = 0;
        let mut bytes = 0;
        for (max, window) in TIERS {
            let here = max.saturating_mul(share).min(bodies);
            bytes += (here - below) as u64 * u64::from(window);
            below = here;
        }
        bytes
    }

    #[test]
    fn memory_is_bounded_by_arithmetic() {
        // Aim: the documented bounds, and that the streams of a connection never fill its own window (of which the library may leave a
        // third unannounced).
        let connection = held(STREAMS_PER_CONNECTION_MAX as usize, 1);
        assert_eq!((connection >> 20, held(BODIES_PER_WORKER_MAX, WORKER_SHARE) >> 20), (74, 616));
        assert!(connection * 2 < u64::from(CONNECTION_WINDOW_BYTES) * 2 / 3);
        assert_eq!(TIERS[0].1, STREAM_WINDOW_BYTES);
    }
}
