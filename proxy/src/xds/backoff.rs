//! Pauses between attempts to reach the control plane.

use std::time::Duration;

/// First pause.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause: a control plane that comes back is found soon, and a thousand proxies do not arrive together.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Doubles from 100 ms to 5 s, jittered down to a half; starts over after a success.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next pause; `chance` is uniform over all 64 bits.
    pub fn next(&mut self, chance: u64) -> Duration {
        let grown = PAUSE_MIN.saturating_mul(1 << self.failures.min(16)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        let share = f64::from((chance >> 32) as u32) / f64::from(u32::MAX);
        grown.mul_f64(0.5 + share / 2.0)
    }

    /// The control plane answered.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: pauses grow to their bound, chance only shortens them, and a success starts over.
    #[test]
    fn pauses_grow_and_start_over() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..10).map(|_| backoff.next(u64::MAX)).collect();
        assert_eq!((pauses[0], pauses[9]), (PAUSE_MIN, PAUSE_MAX));
        assert_eq!(backoff.next(0), PAUSE_MAX / 2);
        backoff.reset();
        assert_eq!(backoff.next(u64::MAX), PAUSE_MIN);
    }
}
