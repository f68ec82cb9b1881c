//! When a server closes connections that rest. It is nowhere said, so it is learned from those that it has closed.

use std::time::Duration;

use crate::ground::limits::TICK;
use crate::ground::patience::ticks;

/// What is known is doubted after this time: twice as long may do.
const DOUBTED_AFTER: u32 = ticks(Duration::from_secs(3600));
/// Shortest rest that teaches: a close that comes sooner cannot be told from one that the answer before it had announced.
const RESTED_MIN: u32 = 2;
/// Shortest rest that is believed at once. A shorter one would leave next to nothing kept, and a server that is restarted closes what had
/// rested as little: it has to be seen again.
const BELIEVED_MIN: u32 = ticks(Duration::from_secs(1));
/// How long it is waited for that.
const REMEMBERED: u32 = ticks(Duration::from_secs(60));
/// How exactly a rest is known.
const EXACT: u32 = 1;
/// Left of the shortest rest seen: a request may be on its way as long as that.
const ON_THE_WAY: Duration = Duration::from_millis(50);

/// Connections that a server closed in one tick, and how long they had rested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closes {
    at: u32,
    shortest: u32,
    longest: u32,
}

impl Closes {
    /// Another one beside those of the same tick.
    pub(super) fn joined(others: Option<Self>, rested: u32, at: u32) -> Self {
        let Some(Self { shortest, longest, .. }) = others else { return Self { at, shortest: rested, longest: rested } };
        Self { at, shortest: shortest.min(rested), longest: longest.max(rested) }
    }

    /// When that was.
    pub(super) const fn at(self) -> u32 {
        self.at
    }

    /// The rest that they ended by; `None`: what had rested differently ended at once, so the server did.
    fn rest(self) -> Option<u32> {
        (self.longest - self.shortest <= EXACT).then_some(self.shortest)
    }
}

/// What is known of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lesson {
    known: Option<KeepAlive>,
    /// Too short to be believed at once.
    once: Option<KeepAlive>,
}

/// The shortest rest after which a server has closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct KeepAlive {
    lasts: u32,
    since: u32,
}

impl Lesson {
    /// Whether nothing was learned.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is known once connections were closed. A tick may have been all but over when their rest began, so one is taken off.
    pub(super) fn taught(self, closes: Closes) -> Self {
        let Some(rested) = closes.rest().filter(|rested| *rested >= RESTED_MIN) else { return self };
        let seen = KeepAlive { lasts: rested - 1, since: closes.at };
        if self.known.is_some_and(|known| known.believed(closes.at) < seen.lasts) {
            return self;
        }
        match self.once.filter(|once| once.agrees(seen)) {
            Some(once) => Self { known: Some(KeepAlive { lasts: seen.lasts.min(once.lasts), ..seen }), once: None },
            None if rested >= BELIEVED_MIN => Self { known: Some(seen), once: None },
            None => Self { once: Some(seen), ..self },
        }
    }

    /// Ticks of rest from which on a connection is not used any more: nine tenths, less [`ON_THE_WAY`]; `None`: nothing is known.
    pub(super) fn rest_max(self, now: u32) -> Option<u32> {
        let tick = TICK.as_millis() as u64;
        let millis = u64::from(self.known?.believed(now)) * tick * 9 / 10;
        Some(u32::try_from(millis.saturating_sub(ON_THE_WAY.as_millis() as u64) / tick).unwrap_or(u32::MAX))
    }
}

impl KeepAlive {
    /// What is held of it by now.
    fn believed(self, now: u32) -> u32 {
        let doubts = now.wrapping_sub(self.since) / DOUBTED_AFTER;
        self.lasts.saturating_mul(1_u32.checked_shl(doubts).unwrap_or(u32::MAX))
    }

    /// Whether a later one says the same, soon enough.
    fn agrees(self, later: Self) -> bool {
        self.lasts.abs_diff(later.lasts) <= EXACT && later.since.wrapping_sub(self.since) <= REMEMBERED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Taught by connections that had rested so long and were all closed at that tick.
    fn taught(known: Lesson, rests: &[u32], at: u32) -> Lesson {
        let joined = |others, rested: &u32| Some(Closes::joined(others, *rested, at));
        known.taught(rests.iter().fold(None, joined).unwrap())
    }

    #[test]
    fn the_shortest_rest_counts_and_is_doubted_with_time() {
        // Aim: shorter lessons replace longer ones, longer ones change nothing, a close at once teaches nothing, and every hour doubles.
        let of = |rested, known| taught(known, &[rested], 100);
        let nothing = Lesson::default();
        let five_secs = of(20, nothing);
        assert_eq!(five_secs.rest_max(100), Some(16), "4.75 s for sure: 4.225 s");
        let two_secs = of(8, five_secs);
        assert_eq!((two_secs.rest_max(100), of(20, two_secs)), (Some(6), two_secs));
        assert_eq!((of(1, nothing), of(0, two_secs), nothing.rest_max(100)), (nothing, two_secs, None));
        assert_eq!(two_secs.rest_max(100 + DOUBTED_AFTER), Some(12));
        assert!(two_secs.rest_max(100 + DOUBTED_AFTER * 40).unwrap() > DOUBTED_AFTER);
        let again = taught(two_secs, &[10], 100 + DOUBTED_AFTER);
        assert_eq!(again.rest_max(100 + DOUBTED_AFTER), Some(7), "what was doubted is learned anew");
    }

    #[test]
    fn a_restart_is_no_lesson() {
        // Aim: different rests that end at once say nothing, whatever was known; the same rest of several says what one would.
        let five_secs = taught(Lesson::default(), &[20], 100);
        for known in [Lesson::default(), five_secs] {
            assert_eq!(taught(known, &[15, 9, 5, 5, 2], 200), known);
            assert_eq!(taught(known, &[6, 0], 200), known);
            assert_eq!(taught(known, &[7, 6, 7], 200).rest_max(200), Some(4));
        }
    }

    #[test]
    fn a_short_rest_is_believed_the_second_time() {
        // Aim: below a second one close is not enough, two that agree within a minute are; what was known holds until then.
        let five_secs = taught(Lesson::default(), &[20], 100);
        for (known, rest_max) in [(Lesson::default(), None), (five_secs, Some(16))] {
            let once = taught(known, &[2], 100);
            assert_eq!((once.rest_max(100), once.is_empty()), (rest_max, false));
            assert_eq!(taught(once, &[2, 3], 110).rest_max(110), Some(0), "nothing is kept for such a server");
            assert_eq!(taught(once, &[2], 101 + REMEMBERED).rest_max(110), rest_max, "a minute is over");
        }
        let once = taught(Lesson::default(), &[3], 100);
        assert_eq!(taught(once, &[4], 110).rest_max(110), Some(1), "the shorter of the two counts");
    }
}
