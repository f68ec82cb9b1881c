//! `RoundRobin`: one after the other. Unequal weights follow a schedule in which each stands as often as its weight says and as evenly
//! as that allows, so that no endpoint gets a burst.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::shares_of;

/// Longest schedule, but for clusters that have more endpoints than that: weights that would need more are rounded to it, each to at
/// least one turn.
const SCHEDULE_MAX: u64 = 1 << 16;

/// Whose turn it is.
#[derive(Debug)]
pub(crate) struct Turns {
    count: usize,
    /// Endpoints in their order; empty when each has one turn.
    schedule: Vec<u32>,
}

impl Turns {
    /// By these weights, each at least 1.
    pub(crate) fn new(weights: &[u64]) -> Self {
        let turns = turns(weights);
        let schedule = if turns.iter().all(|turns| *turns == 1) { Vec::new() } else { schedule(&turns) };
        Self { count: weights.len(), schedule }
    }

    /// The endpoint of the n-th turn, of at least one.
    pub(crate) fn at(&self, turn: u64) -> usize {
        if self.schedule.is_empty() {
            return (turn % self.count as u64) as usize;
        }
        self.schedule[(turn % self.schedule.len() as u64) as usize] as usize
    }

    /// Turns of a round; 0 where each has one.
    #[cfg(test)]
    pub(super) fn schedule_len(&self) -> usize {
        self.schedule.len()
    }

    pub(crate) fn shares(&self) -> Vec<f64> {
        if self.schedule.is_empty() {
            return vec![1.0 / self.count as f64; self.count];
        }
        let mut counts = vec![0; self.count];
        self.schedule.iter().for_each(|index| counts[*index as usize] += 1);
        shares_of(&counts)
    }
}

/// How many turns each gets in a round: the weights in lowest terms, or rounded where those are too many.
fn turns(weights: &[u64]) -> Vec<u64> {
    let divisor = weights.iter().copied().fold(0, greatest_common_divisor).max(1);
    let total: u128 = weights.iter().map(|weight| u128::from(weight / divisor)).sum();
    if total <= u128::from(SCHEDULE_MAX) {
        return weights.iter().map(|weight| weight / divisor).collect();
    }
    let rounded = |weight: &u64| {
        let exact = u128::from(weight / divisor) * u128::from(SCHEDULE_MAX);
        (((exact + total / 2) / total) as u64).max(1)
    };
    weights.iter().map(rounded).collect()
}

/// Earliest deadline first: an endpoint's n-th turn is due at n over its turns, so it stands evenly over the round.
fn schedule(turns: &[u64]) -> Vec<u32> {
    let total: u64 = turns.iter().sum();
    // Due times as whole numbers: halves of a turn, so that the heavy do not all come first.
    let due = |taken: u64, turns: u64| (u128::from(2 * taken + 1) * (1 << 40)) / u128::from(2 * turns);
    let mut next: BinaryHeap<_> = turns.iter().enumerate().map(|(index, turns)| Reverse((due(0, *turns), index, 0_u64))).collect();
    let mut order = Vec::with_capacity(total as usize);
    while let Some(Reverse((_, index, taken))) = next.pop() {
        order.push(index as u32);
        if taken + 1 < turns[index] {
            next.push(Reverse((due(taken + 1, turns[index]), index, taken + 1)));
        }
    }
    order
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
