//! How a store does, whichever it is.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::Moment;

/// How a store does, told by whoever speaks with it.
#[derive(Debug)]
pub struct StoreLive {
    /// Nanoseconds of the moment since when it is away; 0: it is there.
    away_since: AtomicU64,
    /// Proxies that count together.
    replicas: AtomicU32,
    /// Which store that is: a new number for each that may have forgotten.
    session: AtomicU32,
}

impl Default for StoreLive {
    /// Away, until somebody has spoken with it.
    fn default() -> Self {
        Self { away_since: AtomicU64::new(1), replicas: AtomicU32::new(1), session: AtomicU32::new(0) }
    }
}

impl StoreLive {
    /// Since when it is away, nanoseconds.
    pub fn away_since(&self) -> Option<u64> {
        Some(self.away_since.load(Ordering::Relaxed)).filter(|since| *since > 0)
    }

    /// It has answered.
    pub fn is_here(&self) {
        self.away_since.store(0, Ordering::Relaxed);
    }

    /// It does not answer. True: it did before.
    pub fn is_away(&self, now: Moment) -> bool {
        self.away_since.compare_exchange(0, now.nanos().max(1), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Another store answers from now on, or the same after a while.
    pub fn begins(&self) {
        self.session.fetch_add(1, Ordering::Relaxed);
    }

    /// See [`StoreLive::begins`].
    pub fn session(&self) -> u32 {
        self.session.load(Ordering::Relaxed)
    }

    /// Proxies that count together, this one among them.
    pub fn replicas(&self) -> u32 {
        self.replicas.load(Ordering::Relaxed).max(1)
    }

    /// So many proxies count together.
    pub fn shared_by(&self, replicas: u32) {
        self.replicas.store(replicas.max(1), Ordering::Relaxed);
    }
}
