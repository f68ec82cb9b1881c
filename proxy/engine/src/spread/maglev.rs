//! `Maglev`: endpoints fill a table in turn, each in an order of its own, and a hash is a place in it (Eisenbud et al., NSDI 2016,
//! section 3.4). Shares are truer than a ring's and a lookup is one read; a little more moves when endpoints change.

use super::{mix, shares_of};

/// Sizes of tables: primes, so that every step visits every place. The last is for clusters of tens of thousands.
const SIZES: [usize; 5] = [1_021, 4_093, 16_381, 65_537, 655_357];
/// Places per endpoint that a table should have: shares are then true to a hundredth.
const PLACES_EACH: usize = 100;
/// Below so many places per endpoint of the largest usual table, the last size is taken.
const PLACES_EACH_MIN: usize = 10;

/// The filled table.
#[derive(Debug)]
pub(crate) struct Maglev {
    table: Vec<u32>,
    count: usize,
}

/// An endpoint while the table is filled.
struct Filler {
    offset: usize,
    step: usize,
    taken: usize,
    /// Turns it has saved up, of the heaviest's one per round.
    credit: f64,
    share: f64,
}

impl Maglev {
    /// Of the endpoints with these keys and weights, each at least 1; at least one.
    pub(crate) fn new(keys: &[u64], weights: &[u64]) -> Self {
        let count = keys.len();
        let size = size(count);
        let heaviest = weights.iter().copied().max().unwrap_or(1) as f64;
        let filler = |(key, weight): (&u64, &u64)| {
            let (a, b) = (mix(*key), mix(key.wrapping_add(0x9e37_79b9_7f4a_7c15)));
            let (offset, step) = ((a % size as u64) as usize, (b % (size as u64 - 1)) as usize + 1);
            Filler { offset, step, taken: 0, credit: 0.0, share: *weight as f64 / heaviest }
        };
        let mut fillers: Vec<Filler> = keys.iter().zip(weights).map(filler).collect();
        // The order of turns follows the keys, so that how endpoints are listed does not matter.
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_unstable_by_key(|index| keys[*index]);
        let mut table = vec![u32::MAX; size];
        let mut empty = size;
        while empty > 0 {
            for index in &order {
                let filler = &mut fillers[*index];
                filler.credit += filler.share;
                if filler.credit < 1.0 || empty == 0 {
                    continue;
                }
                filler.credit -= 1.0;
                let place = filler.next_empty(&table);
                table[place] = *index as u32;
                empty -= 1;
            }
        }
        Self { table, count }
    }

    /// The endpoints from a hash's place on.
    pub(crate) fn from(&self, hash: u64) -> impl Iterator<Item = usize> {
        let place = ((u128::from(mix(hash)) * self.table.len() as u128) >> 64) as usize;
        let (before, after) = self.table.split_at(place);
        after.iter().chain(before).map(|index| *index as usize)
    }

    pub(crate) fn shares(&self) -> Vec<f64> {
        let mut counts = vec![0; self.count];
        self.table.iter().for_each(|index| counts[*index as usize] += 1);
        shares_of(&counts)
    }
}

impl Filler {
    /// Its next place that is still empty; there is one, and a prime size makes sure that it is met.
    fn next_empty(&mut self, table: &[u32]) -> usize {
        loop {
            let place = (self.offset + self.taken * self.step) % table.len();
            self.taken += 1;
            if table[place] == u32::MAX {
                return place;
            }
        }
    }
}

fn size(count: usize) -> usize {
    let [.., usual, last] = SIZES;
    if count * PLACES_EACH_MIN > usual {
        return last;
    }
    SIZES.into_iter().find(|size| *size >= count * PLACES_EACH).unwrap_or(usual).min(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_primes_that_grow_with_the_cluster() {
        // Aim: every step must visit every place; small clusters do not pay for large tables.
        for size in SIZES {
            assert!((2..size).take_while(|divisor| divisor * divisor <= size).all(|divisor| size % divisor != 0), "{size}");
        }
        assert_eq!([1, 10, 11, 40, 164, 6_553, 100_000].map(size), [1_021, 1_021, 4_093, 4_093, 65_537, 65_537, 655_357]);
    }
}
