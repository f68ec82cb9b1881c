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
    /// Where it looks next.
    place: usize,
    step: usize,
}

impl Maglev {
    /// Of the endpoints with these keys and weights, each at least 1; at least one.
    pub(crate) fn new(keys: &[u64], weights: &[u64]) -> Self {
        let count = keys.len();
        let size = size(count);
        let filler = |key: &u64| {
            let (a, b) = (mix(*key), mix(key.wrapping_add(0x9e37_79b9_7f4a_7c15)));
            Filler { place: (a % size as u64) as usize, step: (b % (size as u64 - 1)) as usize + 1 }
        };
        let mut fillers: Vec<Filler> = keys.iter().map(filler).collect();
        // The order of turns follows the keys, so that how endpoints are listed does not matter.
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_unstable_by_key(|index| keys[*index]);
        let mut table = vec![u32::MAX; size];
        for index in turns(&order, weights, size) {
            let place = fillers[index as usize].next_empty(&table);
            table[place] = index;
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
            let place = self.place;
            self.place += self.step;
            if self.place >= table.len() {
                self.place -= table.len();
            }
            if table[place] == u32::MAX {
                return place;
            }
        }
    }
}

/// Who takes a place, `size` times. In each round the heaviest has a turn, and others as often as their weight is a part of its own; in a
/// round turns come in `order`. Only turns are looked at, and not who has none: beside a very heavy one those are nearly all.
fn turns(order: &[usize], weights: &[u64], size: usize) -> Vec<u32> {
    let heaviest = u128::from(weights.iter().copied().max().unwrap_or(1));
    let had = |weight: u64, rounds: u64| (u128::from(weight) * u128::from(rounds) / heaviest) as u64;
    let enough = |rounds: u64| weights.iter().map(|weight| had(*weight, rounds)).sum::<u64>() >= size as u64;
    // The heaviest alone needs no more rounds than there are places.
    let (mut few, mut rounds) = (0, size as u64);
    while few + 1 < rounds {
        let middle = few.midpoint(rounds);
        if enough(middle) { rounds = middle } else { few = middle }
    }
    let of = |index: usize| {
        let weight = u128::from(weights[index]);
        // The round in which it has had so many.
        (1..=had(weights[index], rounds)).map(move |turn| ((u128::from(turn) * heaviest).div_ceil(weight) as u64, index as u32))
    };
    let mut turns: Vec<(u64, u32)> = order.iter().copied().flat_map(of).collect();
    // Stable: within a round they keep their order.
    turns.sort_by_key(|(round, _)| *round);
    turns.truncate(size);
    turns.into_iter().map(|(_, index)| index).collect()
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

    #[test]
    fn turns_go_round_by_round() {
        // Aim: as if each endpoint were asked in each round whether it has saved up a turn: equal ones in their order, others by weight.
        let by_rounds = |order: &[usize], weights: &[u64], size: usize| {
            let heaviest = weights.iter().max().unwrap();
            let has_turn = |round: u64, index: usize| weights[index] * round / heaviest > weights[index] * (round - 1) / heaviest;
            let round = |round| order.iter().copied().filter(move |index| has_turn(round, *index)).map(|index| index as u32);
            (1..).flat_map(round).take(size).collect::<Vec<_>>()
        };
        let order = [2, 0, 3, 1];
        for weights in [[1, 1, 1, 1], [7, 7, 7, 7], [1, 3, 2, 5], [1, 1_000, 1, 999], [1, 1, 1, 1_000_000]] {
            assert_eq!(turns(&order, &weights, 1_021), by_rounds(&order, &weights, 1_021), "{weights:?}");
        }
        assert_eq!(turns(&order, &[9; 4], 6), [2, 0, 3, 1, 2, 0]);
        assert_eq!(turns(&[0], &[u64::MAX], 3), [0, 0, 0]);
    }

    #[test]
    fn one_very_heavy_endpoint_of_very_many_is_no_burden() {
        // Aim: a table is made in about as many steps as it has places, whatever the weights; the heavy one has its share.
        let keys: Vec<u64> = (0..10_000).map(mix).collect();
        let mut weights = vec![1; 10_000];
        weights[7] = 90_000;
        let shares = Maglev::new(&keys, &weights).shares();
        assert!((shares[7] - 0.9).abs() < 0.01, "{}", shares[7]);
    }
}
