//! Time: monotonic for waits, wall for certificates and logs.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Where time comes from. Cheap to copy.
///
/// Monotonic time is tokio's, so that a runtime whose time is paused drives everything; wall time is the system's, or, in a
/// simulation, a given start plus what has elapsed.
#[derive(Clone, Copy, Debug, Default)]
pub enum Clock {
    /// The machine's clocks.
    #[default]
    System,
    /// A wall clock that started at a given time and runs with the monotonic one.
    Simulated {
        /// Wall time at `started`.
        wall: SystemTime,
        /// Monotonic time when the clock was made.
        started: tokio::time::Instant,
    },
    /// The same, but somebody sets it, forward and back.
    Stepped {
        /// Wall time at `started`, while nobody has set it.
        wall: SystemTime,
        /// Monotonic time when the clock was made.
        started: tokio::time::Instant,
        /// How far it has been set, milliseconds. For ever, because clocks are copied.
        by_ms: &'static AtomicI64,
    },
}

/// A moment by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    now: Instant,
    wall: SystemTime,
}

impl Moment {
    /// What the wall clock showed.
    pub fn wall(&self) -> SystemTime {
        self.wall
    }
}

impl Clock {
    /// A clock whose wall time starts at `wall` now.
    pub fn simulated(wall: SystemTime) -> Self {
        Self::Simulated { wall, started: tokio::time::Instant::now() }
    }

    /// Monotonic time. Inside a runtime with paused time, that runtime's.
    #[allow(clippy::unused_self, reason = "callers hold the clock; where monotonic time comes from is its business")]
    pub fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// Wall time.
    pub fn wall(&self) -> SystemTime {
        match self {
            Self::System => SystemTime::now(),
            Self::Simulated { wall, started } => *wall + started.elapsed(),
            Self::Stepped { wall, started, by_ms } => {
                let by = by_ms.load(Ordering::Relaxed);
                let set = Duration::from_millis(by.unsigned_abs());
                let now = *wall + started.elapsed();
                if by < 0 { now - set } else { now + set }
            }
        }
    }

    /// Wall time since 1970, zero before it.
    pub fn unix(&self) -> Duration {
        self.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }

    /// This moment.
    pub fn moment(&self) -> Moment {
        Moment { now: self.now(), wall: self.wall() }
    }

    /// How much time has passed since then, by the clock that shows more: the monotonic one stands still while a machine sleeps, and wall
    /// time may be set back.
    pub fn since(&self, then: Moment) -> Duration {
        self.now().saturating_duration_since(then.now).max(self.wall().duration_since(then.wall).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn simulated_wall_time_runs_with_the_runtime() {
        // Aim: certificates age in virtual time.
        let clock = Clock::simulated(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(clock.unix().as_secs(), 1_060);
        static BY_MS: AtomicI64 = AtomicI64::new(0);
        let set = Clock::Stepped { wall: clock.wall(), started: tokio::time::Instant::now(), by_ms: &BY_MS };
        for (by_ms, shown) in [(0, 1_060), (5_000, 1_065), (-60_000, 1_000)] {
            BY_MS.store(by_ms, Ordering::Relaxed);
            assert_eq!(set.unix().as_secs(), shown);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_passes_by_the_clock_that_shows_more() {
        // Aim: neither a sleep, in which the monotonic clock stands still, nor a wall clock that is set back makes anything last longer.
        static BY_MS: AtomicI64 = AtomicI64::new(0);
        let clock = Clock::Stepped { wall: SystemTime::UNIX_EPOCH, started: tokio::time::Instant::now(), by_ms: &BY_MS };
        let then = clock.moment();
        tokio::time::advance(Duration::from_secs(5)).await;
        for (by_ms, passed) in [(0, 5), (5_000, 10), (-60_000, 5)] {
            BY_MS.store(by_ms, Ordering::Relaxed);
            assert_eq!(clock.since(then).as_secs(), passed, "{by_ms}");
        }
    }
}
