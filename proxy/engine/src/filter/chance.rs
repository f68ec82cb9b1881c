//! Independent chances out of one draw.

/// Parts of a chance.
pub(crate) const MILLION: u32 = 1_000_000;

/// A chance that has its own luck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chance {
    per_million: u32,
    salt: u64,
}

impl Chance {
    /// `salt` sets it apart from the others of a policy.
    pub(crate) const fn new(per_million: u32, salt: u64) -> Self {
        Self { per_million, salt }
    }

    /// Whether it falls on this draw.
    pub(crate) fn falls(self, draw: u64) -> bool {
        below(salted(draw, self.salt), MILLION.into()) < self.per_million.into()
    }

    pub(crate) const fn per_million(self) -> u32 {
        self.per_million
    }

    /// In words: " with 2.5 %", nothing for certainty.
    pub(crate) fn story(self) -> String {
        if self.per_million == MILLION { String::new() } else { format!(" with {} %", f64::from(self.per_million) / 10_000.0) }
    }
}

/// A number that is uniform like the draw, and independent of it and of those with other salts (the finish of splitmix64).
pub(crate) const fn salted(draw: u64, salt: u64) -> u64 {
    let mut mixed = draw.wrapping_add(salt.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Uniform below `end`.
pub(crate) const fn below(uniform: u64, end: u64) -> u64 {
    ((uniform as u128 * end as u128) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_hold_and_do_not_hang_together() {
        // Aim: shares come out as asked for, never and always exactly, and two of one half fall together for a quarter.
        let draws: Vec<u64> = (0..100_000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let share = |hit: &dyn Fn(u64) -> bool| draws.iter().filter(|draw| hit(**draw)).count() as f64 / draws.len() as f64;
        for (per_million, salt) in [(0, 1), (25_000, 2), (500_000, 3), (MILLION, 4)] {
            let found = share(&|draw| Chance::new(per_million, salt).falls(draw));
            assert!((found - f64::from(per_million) / 1e6).abs() < 0.005, "{per_million}: {found}");
        }
        assert!(draws.iter().all(|draw| Chance::new(MILLION, 7).falls(*draw) && !Chance::new(0, 7).falls(*draw)));
        let (one, other) = (Chance::new(500_000, 5), Chance::new(500_000, 6));
        let both = share(&|draw| one.falls(draw) && other.falls(draw));
        assert!((both - 0.25).abs() < 0.01, "{both}");
    }
}
