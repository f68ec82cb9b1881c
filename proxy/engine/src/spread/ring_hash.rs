//! `RingHash`: each endpoint owns many points of a circle, and a hash belongs to the next point. When an endpoint goes, only what was
//! its own moves (Karger et al., 1997; the shape that Ketama made common).

use super::mix;

/// Most points of a ring, but for clusters that have more endpoints than that: then each has one.
const POINTS_MAX: usize = 1 << 16;
/// Most points of an endpoint of usual weight: shares are then true to about one part in twenty.
const POINTS_EACH_MAX: usize = 512;

/// Points in order.
#[derive(Debug)]
pub(crate) struct Ring {
    points: Vec<(u64, u32)>,
    count: usize,
}

impl Ring {
    /// Of the endpoints with these keys and weights, each at least 1.
    pub(crate) fn new(keys: &[u64], weights: &[u64]) -> Self {
        let count = keys.len();
        // Powers of two: a ring whose points per endpoint change with each endpoint would move more than it must.
        let each = floor_power((POINTS_MAX / count.max(1)).clamp(1, POINTS_EACH_MAX) as u64);
        let average = weights.iter().map(|weight| u128::from(*weight)).sum::<u128>() / count.max(1) as u128;
        let usual = floor_power((average as u64).max(1));
        let mut points = Vec::new();
        for (index, (key, weight)) in keys.iter().zip(weights).enumerate() {
            let own = (u128::from(*weight) * u128::from(each) / u128::from(usual)).clamp(1, POINTS_MAX as u128) as u64;
            points.extend((0..own).map(|n| (mix(key.wrapping_add(mix(n + 1))), index as u32)));
        }
        points.sort_unstable();
        points.shrink_to_fit();
        Self { points, count }
    }

    /// The endpoints from a hash on, each as often as it has points.
    pub(crate) fn from(&self, hash: u64) -> impl Iterator<Item = usize> {
        let hash = mix(hash);
        let first = self.points.partition_point(|(point, _)| *point < hash);
        let (before, after) = self.points.split_at(first);
        after.iter().chain(before).map(|(_, index)| *index as usize)
    }

    pub(crate) fn shares(&self) -> Vec<f64> {
        let mut arcs = vec![0_u128; self.count];
        let mut previous = self.points.last().map_or(0, |(point, _)| *point);
        for (point, index) in &self.points {
            arcs[*index as usize] += u128::from(point.wrapping_sub(previous));
            previous = *point;
        }
        if let [(_, only)] = self.points[..] {
            arcs[only as usize] = 1 << 64;
        }
        arcs.iter().map(|arc| *arc as f64 / (1_u128 << 64) as f64).collect()
    }
}

/// The largest power of two that is not larger; of at least 1.
const fn floor_power(number: u64) -> u64 {
    1 << number.ilog2()
}
