//! What an HTTP connection and the stream beneath it tell one another: the library stands between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Whether a worker has run out of places for connections. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Pressure(Arc<AtomicUsize>);

impl Pressure {
    /// One more bound is reached.
    pub fn rise(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// There is room again below one.
    pub fn fall(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

/// One connection's. All of it happens on one thread; the library wants its streams to be able to change theirs.
#[derive(Debug)]
pub struct Notes {
    pub(super) pressure: Pressure,
    pub(super) watched: bool,
    /// How long the peer may take nothing of what is written to it; `None`: as long as nobody wants its place.
    pub(super) stall: Option<Duration>,
    cut: AtomicBool,
    heard: AtomicBool,
    held_up: AtomicBool,
}

impl Notes {
    /// Of a connection of a worker's. `watched`: within an exchange flushing fails once the peer has reset it, so that what
    /// nobody waits for is given up although nobody reads.
    pub fn new(pressure: &Pressure, watched: bool) -> Arc<Self> {
        Self::of(pressure, watched, None)
    }

    /// The same of a peer that may take nothing of what is written to it for so long at most.
    pub fn of(pressure: &Pressure, watched: bool, stall: Option<Duration>) -> Arc<Self> {
        let [cut, heard, held_up] = [const { AtomicBool::new(false) }; 3];
        Arc::new(Self { pressure: pressure.clone(), watched, stall, cut, heard, held_up })
    }

    /// An answer was cut: so is the connection, when it is dropped.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    /// See [`Self::cut`].
    pub fn was_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    /// Bytes have come.
    pub fn hear(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    /// Whether bytes have come since this was last asked.
    pub fn heard(&self) -> bool {
        let heard = self.heard.load(Ordering::Relaxed);
        if heard {
            self.heard.store(false, Ordering::Relaxed);
        }
        heard
    }

    /// Whether bytes wait for the peer to take them.
    pub fn hold_up(&self, held_up: bool) {
        self.held_up.store(held_up, Ordering::Relaxed);
    }

    /// See [`Self::hold_up`].
    pub fn held_up(&self) -> bool {
        self.held_up.load(Ordering::Relaxed)
    }
}
