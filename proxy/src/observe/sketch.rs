//! Durations as OpenTelemetry's exponential histogram has them (data model, "ExponentialHistogram"): buckets that grow by a constant factor, found
//! from the data, at most [`BUCKETS_MAX`] of them.

use std::time::{Duration, SystemTime};

/// Most buckets; wider data gets wider ones.
const BUCKETS_MAX: usize = 160;
/// The finest scale: eight buckets between a value and its double, so that none is further off than 4.4 %.
const SCALE_MAX: i32 = 3;
/// Where the eighths between 1 and 2 begin, as the mantissa of a double: 2^(n/8).
const EIGHTHS: [u64; 8] = [
    0x0000_0000_0000_0000,
    0x0001_72b8_3c7d_517b,
    0x0003_06fe_0a31_b715,
    0x0004_bfda_d536_2a27,
    0x0006_a09e_667f_3bcd,
    0x0008_ace5_422a_a0db,
    0x000a_e89f_995a_d3ad,
    0x000d_5818_dcfb_a487,
];
const MANTISSA_BITS: u32 = 52;
const EXPONENT_BIAS: i32 = 1023;

/// See the module. Counts since it was made.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sketch {
    pub(super) scale: i32,
    /// Index of the first of `buckets`.
    pub(super) offset: i32,
    pub(super) buckets: Vec<u64>,
    /// Durations of nothing.
    pub(super) zeroes: u64,
    pub(super) nanos: u64,
    pub(super) begun: SystemTime,
}

impl Sketch {
    pub(super) fn new(begun: SystemTime) -> Self {
        Self { scale: SCALE_MAX, offset: 0, buckets: Vec::new(), zeroes: 0, nanos: 0, begun }
    }

    pub(super) fn observe(&mut self, duration: Duration) {
        self.nanos = self.nanos.wrapping_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
        if duration.is_zero() {
            self.zeroes += 1;
            return;
        }
        let finest = finest(duration.as_secs_f64());
        self.widen(finest, finest);
        self.add(finest >> (SCALE_MAX - self.scale), 1);
    }

    /// Adds another one's counts.
    pub(super) fn take_in(&mut self, other: &Self) {
        self.begun = self.begun.min(other.begun);
        self.nanos = self.nanos.wrapping_add(other.nanos);
        self.zeroes += other.zeroes;
        let Some(last) = other.buckets.len().checked_sub(1) else { return };
        self.scale_down(self.scale - other.scale);
        let to_finest = SCALE_MAX - other.scale;
        let last = other.offset + i32::try_from(last).unwrap_or(0);
        self.widen(other.offset << to_finest, last << to_finest);
        for (index, count) in (other.offset..).zip(&other.buckets).filter(|(_, count)| **count > 0) {
            self.add(index >> (other.scale - self.scale), *count);
        }
    }

    /// How many durations there were.
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum::<u64>() + self.zeroes
    }

    /// Coarser as far as both indices (of the finest scale) need it to lie within the bound.
    fn widen(&mut self, low: i32, high: i32) {
        loop {
            let (low, high) = (low >> (SCALE_MAX - self.scale), high >> (SCALE_MAX - self.scale));
            let (low, high) = match self.last() {
                Some(last) => (low.min(self.offset), high.max(last)),
                None => (low, high),
            };
            if usize::try_from(high - low).is_ok_and(|span| span < BUCKETS_MAX) {
                return;
            }
            self.scale_down(1);
        }
    }

    fn last(&self) -> Option<i32> {
        let last = self.buckets.len().checked_sub(1)?;
        Some(self.offset + i32::try_from(last).unwrap_or(0))
    }

    /// Pairs of neighbours become one, `times` over.
    fn scale_down(&mut self, times: i32) {
        for _ in 0..times {
            let offset = self.offset >> 1;
            let mut halved = vec![0; if self.buckets.is_empty() { 0 } else { self.buckets.len() / 2 + 1 }];
            for (index, count) in (self.offset..).zip(&self.buckets) {
                if let Some(place) = usize::try_from((index >> 1) - offset).ok().and_then(|place| halved.get_mut(place)) {
                    *place += count;
                }
            }
            while halved.last() == Some(&0) {
                halved.pop();
            }
            (self.scale, self.offset, self.buckets) = (self.scale - 1, offset, halved);
        }
    }

    /// Adds to a bucket that lies within the bound.
    fn add(&mut self, index: i32, count: u64) {
        if self.buckets.is_empty() {
            self.offset = index;
        }
        if let Ok(before) = usize::try_from(self.offset - index)
            && before > 0
        {
            self.buckets.splice(0..0, std::iter::repeat_n(0, before));
            self.offset = index;
        }
        let place = usize::try_from(index - self.offset).unwrap_or(0);
        if self.buckets.len() <= place {
            self.buckets.resize(place + 1, 0);
        }
        self.buckets[place] += count;
    }
}

/// The bucket of a positive value at the finest scale. A bound belongs to the bucket below it.
fn finest(value: f64) -> i32 {
    let bits = value.to_bits();
    let exponent = i32::try_from(bits >> MANTISSA_BITS & 0x7ff).unwrap_or(0) - EXPONENT_BIAS;
    let mantissa = bits & ((1 << MANTISSA_BITS) - 1);
    let above = EIGHTHS.iter().filter(|bound| mantissa > **bound).count();
    exponent * 8 + i32::try_from(above).unwrap_or(0) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bounds(scale: i32, index: i32) -> (f64, f64) {
        let base = 2_f64.powf(2_f64.powi(-scale));
        (base.powi(index), base.powi(index + 1))
    }

    /// Aim: bounds belong below, as the specification says, and exact powers are exact.
    #[test]
    fn values_find_their_bucket() {
        for (value, index) in [(1.0, -1), (1.0000001, 0), (2.0, 7), (2.0001, 8), (0.5, -9), (0.501, -8), (1.5, 4)] {
            assert_eq!(finest(value), index, "{value}");
        }
    }

    /// Aim: from the shortest to the longest there are never more than 160 buckets, and none is lost.
    #[test]
    fn wide_data_gets_wide_buckets() {
        let mut sketch = Sketch::new(SystemTime::UNIX_EPOCH);
        for power in 0..40 {
            sketch.observe(Duration::from_nanos(1 << power));
        }
        sketch.observe(Duration::ZERO);
        assert!(sketch.buckets.len() <= BUCKETS_MAX && sketch.scale == 2, "{sketch:?}");
        assert_eq!((sketch.count(), sketch.zeroes, sketch.nanos), (41, 1, (1 << 40) - 1));
        let mut narrow = Sketch::new(SystemTime::UNIX_EPOCH);
        (10..20).for_each(|ms| narrow.observe(Duration::from_millis(ms)));
        assert!(narrow.scale == SCALE_MAX && narrow.buckets.len() < 12, "{narrow:?}");
    }

    proptest! {
        /// Aim: every duration lies in the bucket that counts it, whatever came before it, and a sum of sketches is the sketch of the sum.
        #[test]
        fn sketches_add_up(nanos in proptest::collection::vec(1_u64..100_000_000_000, 1..60), cut in 0_usize..60) {
            let mut whole = Sketch::new(SystemTime::UNIX_EPOCH);
            let (mut one, mut other) = (Sketch::new(SystemTime::UNIX_EPOCH), Sketch::new(SystemTime::UNIX_EPOCH));
            for (n, nanos) in nanos.iter().enumerate() {
                let duration = Duration::from_nanos(*nanos);
                whole.observe(duration);
                if n < cut { one.observe(duration) } else { other.observe(duration) }
            }
            one.take_in(&other);
            prop_assert_eq!(one.count(), whole.count());
            prop_assert_eq!(one.nanos, whole.nanos);
            prop_assert!(whole.buckets.len() <= BUCKETS_MAX && one.buckets.len() <= BUCKETS_MAX);
            for sketch in [&one, &whole] {
                let mut sorted: Vec<f64> = nanos.iter().map(|nanos| *nanos as f64 / 1e9).collect();
                sorted.sort_by(f64::total_cmp);
                let mut values = sorted.iter();
                for (index, count) in (sketch.offset..).zip(&sketch.buckets) {
                    let (low, high) = bounds(sketch.scale, index);
                    for value in values.by_ref().take(usize::try_from(*count).unwrap()) {
                        prop_assert!(*value > low * (1.0 - 1e-9) && *value <= high * (1.0 + 1e-9), "{value} not in {low}..{high}");
                    }
                }
            }
        }
    }
}
