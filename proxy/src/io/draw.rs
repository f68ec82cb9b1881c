//! Chance, as a value that is passed in.

use std::cell::Cell;

/// One worker's source of random numbers: fast, seedable, not for secrets. A simulation seeds it; so even splits replay.
#[derive(Debug)]
pub struct Draw(Cell<u64>);

impl Draw {
    /// A source that always gives the same numbers for the same seed.
    pub const fn seeded(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    /// A source that nobody can replay.
    pub fn from_entropy() -> Self {
        Self(Cell::new(fastrand::u64(..)))
    }

    /// The next number, uniform over all 64 bits (SplitMix64).
    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays() {
        // Aim: the same seed gives the same numbers, and the numbers spread.
        let (one, two) = (Draw::seeded(7), Draw::seeded(7));
        let numbers: Vec<u64> = (0..1000).map(|_| one.next()).collect();
        assert!(numbers.iter().all(|number| *number == two.next()));
        let low = numbers.iter().filter(|number| **number < u64::MAX / 2).count();
        assert!((400..600).contains(&low), "{low} of 1000 in the lower half");
    }
}
