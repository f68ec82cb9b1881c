//! When each request of an open loop is due: arithmetic in whole nanoseconds, no clock of its own.

use std::time::{Duration, Instant};

/// The time in which requests count, begin included, end not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// First request of all, those of the warm-up included.
    pub start: Instant,
    /// Counting starts.
    pub begin: Instant,
    /// Counting ends, and no more is sent.
    pub end: Instant,
}

impl Window {
    /// Load from `start` on: `warm` without counting, then `counted`.
    pub(super) fn new(start: Instant, warm: Duration, counted: Duration) -> Self {
        let begin = start + warm;
        Self { start, begin, end: begin + counted }
    }

    /// Whether what happened at that time counts.
    pub(super) fn holds(&self, at: Instant) -> bool {
        self.begin <= at && at < self.end
    }
}

/// One request of an open loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// When it should be sent; its latency runs from here.
    pub at: Instant,
    /// Whether it is in the window.
    pub counts: bool,
}

/// Which of the runtimes this is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// From 0.
    pub index: usize,
    /// How many there are.
    pub of: usize,
}

impl Share {
    /// This runtime's part of `total` things, which differ by at most one between runtimes.
    pub(super) fn part(self, total: usize) -> usize {
        total / self.of + usize::from(self.index < total % self.of)
    }
}

/// Due times at a fixed rate. Runtimes take turns: with two, one has the even requests and one the odd.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    window: Window,
    next: Instant,
    step: Duration,
}

impl Schedule {
    /// `rate` requests per second in all, at least 1. The interval is rounded down to a nanosecond.
    pub(super) fn new(window: Window, rate: u64, share: Share) -> Self {
        let step = Duration::from_nanos((NANOS_PER_SEC / rate.max(1)).max(1));
        let turn = |turns: usize| step * u32::try_from(turns).unwrap_or(u32::MAX);
        Self { window, next: window.start + turn(share.index), step: turn(share.of) }
    }

    /// The next request, if it is due by `now`.
    pub(super) fn due(&mut self, now: Instant) -> Option<Due> {
        let at = self.next;
        if at > now || at >= self.window.end {
            return None;
        }
        self.next = at + self.step;
        Some(Due { at, counts: self.window.holds(at) })
    }

    /// Whether no request is left.
    pub(super) fn is_over(&self) -> bool {
        self.next >= self.window.end
    }

    /// When the next request is due.
    pub(super) fn next_at(&self) -> Instant {
        self.next
    }

    /// Time between two requests of this runtime.
    pub(super) fn step(&self) -> Duration {
        self.step
    }
}

const NANOS_PER_SEC: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn all(schedule: &mut Schedule, now: Instant) -> Vec<Due> {
        std::iter::from_fn(|| schedule.due(now)).collect()
    }

    #[test]
    fn requests_are_due_at_even_steps_and_count_in_the_window_only() {
        // Aim: due times depend on nothing but rate and start; those of the warm-up are sent and do not count.
        let start = Instant::now();
        let window = Window::new(start, Duration::from_secs(1), Duration::from_secs(2));
        let mut schedule = Schedule::new(window, 100, Share { index: 0, of: 1 });
        assert_eq!(schedule.due(start), Some(Due { at: start, counts: false }));
        assert_eq!(schedule.due(start), None, "the second is due 10 ms later");
        let rest = all(&mut schedule, window.end + Duration::from_secs(9));
        assert_eq!(rest.len(), 299);
        assert_eq!(rest.iter().filter(|due| due.counts).count(), 200);
        assert_eq!(rest[0].at, start + Duration::from_millis(10));
        assert!(schedule.is_over());
    }

    #[test]
    fn a_stall_makes_requests_late_and_never_fewer() {
        // Aim: after a pause of 300 ms all that fell into it are due at once, at their own times.
        let start = Instant::now();
        let window = Window::new(start, Duration::ZERO, Duration::from_secs(1));
        let mut schedule = Schedule::new(window, 1000, Share { index: 0, of: 1 });
        let stalled = all(&mut schedule, start + Duration::from_millis(300));
        assert_eq!(stalled.len(), 301);
        assert_eq!(stalled[300].at, start + Duration::from_millis(300));
    }

    #[test]
    fn runtimes_take_turns() {
        // Aim: two shares together are the whole schedule, and parts of connections add up.
        let start = Instant::now();
        let window = Window::new(start, Duration::ZERO, Duration::from_secs(1));
        let take = |index, of| all(&mut Schedule::new(window, 400, Share { index, of }), window.end);
        let mut both: Vec<_> = take(0, 2).into_iter().chain(take(1, 2)).collect();
        both.sort_by_key(|due| due.at);
        assert_eq!(both, take(0, 1));
        assert_eq!((0..3).map(|index| Share { index, of: 3 }.part(50)).collect::<Vec<_>>(), [17, 17, 16]);
    }
}
