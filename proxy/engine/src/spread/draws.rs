//! Draws by weight: of one for `Random`, of two for `LeastRequest` and `PeakEwma`.

use super::scale;

/// Endpoints to draw from.
#[derive(Debug, Default)]
pub(crate) struct Draws {
    count: usize,
    /// Running sums of the weights; empty when all are equal.
    sums: Vec<u64>,
}

impl Draws {
    /// By these weights, each at least 1.
    pub(crate) fn new(weights: &[u64]) -> Self {
        let equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let mut sum = 0_u64;
        let mut running = |weight: &u64| {
            sum = sum.saturating_add(*weight);
            sum
        };
        let sums = if equal { Vec::new() } else { weights.iter().map(&mut running).collect() };
        Self { count: weights.len(), sums }
    }

    /// One, of at least one.
    pub(crate) fn one(&self, draw: u64) -> usize {
        match self.sums.last() {
            None => ((u128::from(draw) * self.count as u128) >> 64) as usize,
            Some(total) => self.at(((u128::from(draw) * u128::from(*total)) >> 64) as u64),
        }
    }

    /// Two, of at least two; they differ where weights are equal. Two, not all: a scan would touch every cache line of a big cluster.
    pub(crate) fn two(&self, draw: u64) -> (usize, usize) {
        let (high, low) = (draw >> 32, draw & 0xffff_ffff);
        let Some(total) = self.sums.last() else {
            let a = scale(high, self.count as u64) as usize;
            let step = 1 + scale(low, self.count as u64 - 1) as usize;
            return (a, (a + step) % self.count);
        };
        (self.at(scale(high, *total)), self.at(scale(low, *total)))
    }

    fn at(&self, point: u64) -> usize {
        self.sums.partition_point(|sum| *sum <= point).min(self.count - 1)
    }
}
