//! A point of monotonic time, as the shell hands it in: this crate has no clock of its own.

use std::time::Duration;

/// Nanoseconds since some fixed point in this process's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// The moment so long after the fixed point; times beyond 584 years are that.
    pub fn after_start(since: Duration) -> Self {
        Self(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Nanoseconds since the fixed point.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// The moment of so many nanoseconds.
    pub const fn of_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Time since an earlier moment; zero if it is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The moment so much later.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_neither_wrap_nor_run_backwards() {
        // Aim: differences and sums saturate at both ends.
        let (early, late) = (Moment::after_start(Duration::from_secs(1)), Moment::after_start(Duration::from_secs(3)));
        assert_eq!((late.since(early), early.since(late)), (Duration::from_secs(2), Duration::ZERO));
        assert_eq!(early.plus(Duration::from_secs(2)), late);
        assert_eq!(late.plus(Duration::MAX), Moment::of_nanos(u64::MAX));
    }
}
