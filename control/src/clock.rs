//! Wall time, given from outside: the binary gives the machine's, a simulation its own. Waits are tokio's, which a paused runtime
//! drives; what has to be done in time by the dates of a certificate goes by both ([`Clock::since`]).

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// A moment by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    now: tokio::time::Instant,
    wall: Duration,
}

/// Where wall time comes from. Clones are one clock.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// A clock that shows what `wall` says.
    pub fn new(wall: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(wall))
    }

    /// Since 1970; zero before it.
    pub fn unix(&self) -> Duration {
        (self.0)().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// This moment.
    pub fn moment(&self) -> Moment {
        Moment { now: tokio::time::Instant::now(), wall: self.unix() }
    }

    /// How much time has passed since then, by the clock that shows more: the monotonic one stands still while a machine sleeps, and wall
    /// time may be set back.
    pub fn since(&self, then: Moment) -> Duration {
        then.now.elapsed().max(self.unix().saturating_sub(then.wall))
    }

    /// Milliseconds since 1970.
    pub fn ms(&self) -> u64 {
        u64::try_from(self.unix().as_millis()).unwrap_or(u64::MAX)
    }

    /// Microseconds since 1970, for the book.
    pub fn us(&self) -> u64 {
        u64::try_from(self.unix().as_micros()).unwrap_or(u64::MAX)
    }

    /// Milliseconds since 1970, as ages of objects count them.
    pub fn age_ms(&self) -> i64 {
        i64::try_from(self.ms()).unwrap_or(i64::MAX)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock at {:?}", self.unix())
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.unix()))
    }
}
