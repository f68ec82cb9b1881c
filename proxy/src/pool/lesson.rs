//! When a server closes connections that rest. It is nowhere said, so it is learned from those that it has closed.

use std::time::Duration;

use crate::ground::limits::TICK;
use crate::ground::patience::ticks;

/// What is known is doubted after this time: twice as long may do.
const DOUBTED_AFTER: u32 = ticks(Duration::from_secs(3600));
/// Shortest rest that teaches: a close that comes sooner cannot be told from one that the answer before it had announced.
const RESTED_MIN: u32 = 2;
/// Left of the shortest rest seen: a request may be on its way as long as that.
const ON_THE_WAY: Duration = Duration::from_millis(50);

/// The shortest rest after which a server has closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lesson {
    lasts: u32,
    since: u32,
}

impl Lesson {
    /// What is known once a connection was closed after so many ticks of rest. A tick may have been all but over when the rest began, so one
    /// is taken off.
    pub(super) fn taught(known: Option<Self>, rested: u32, now: u32) -> Option<Self> {
        if rested < RESTED_MIN {
            return known;
        }
        let lasts = rested - 1;
        match known {
            Some(known) if known.believed(now) < lasts => Some(known),
            _ => Some(Self { lasts, since: now }),
        }
    }

    /// What is held of it by now.
    fn believed(self, now: u32) -> u32 {
        let doubts = now.wrapping_sub(self.since) / DOUBTED_AFTER;
        self.lasts.saturating_mul(1_u32.checked_shl(doubts).unwrap_or(u32::MAX))
    }

    /// Ticks of rest from which on a connection is not used any more: nine tenths, less [`ON_THE_WAY`].
    pub(super) fn rest_max(self, now: u32) -> u32 {
        let tick = TICK.as_millis() as u64;
        let millis = u64::from(self.believed(now)) * tick * 9 / 10;
        u32::try_from(millis.saturating_sub(ON_THE_WAY.as_millis() as u64) / tick).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_rest_counts_and_is_doubted_with_time() {
        // Aim: shorter lessons replace longer ones, longer ones change nothing, a close at once teaches nothing, and every hour doubles.
        let of = |rested, known| Lesson::taught(known, rested, 100).unwrap();
        let five_secs = of(20, None);
        assert_eq!(five_secs.rest_max(100), 16, "4.75 s for sure: 4.225 s");
        let two_secs = of(8, Some(five_secs));
        assert_eq!((two_secs.rest_max(100), of(20, Some(two_secs))), (6, two_secs));
        assert_eq!((Lesson::taught(None, 1, 100), Lesson::taught(Some(two_secs), 0, 100)), (None, Some(two_secs)));
        assert_eq!(two_secs.rest_max(100 + DOUBTED_AFTER), 12);
        assert!(two_secs.rest_max(100 + DOUBTED_AFTER * 40) > DOUBTED_AFTER);
        let again = Lesson::taught(Some(two_secs), 10, 100 + DOUBTED_AFTER).unwrap();
        assert_eq!(again.rest_max(100 + DOUBTED_AFTER), 7, "what was doubted is learned anew");
        assert_eq!(of(2, None).rest_max(100), 0, "nothing is kept for such a server");
    }
}
