//! A sketch of latencies: how they are spread, to a few per cent, in little memory and without a lock.

use std::array::from_fn;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Buckets of each doubling: a latency is known to one part in sixteen.
const PARTS: usize = 16;
const PART_BITS: u32 = PARTS.ilog2();
/// Doublings from a microsecond on: beyond an hour everything is one.
const DOUBLINGS: usize = 32;
const BUCKETS: usize = PARTS * (DOUBLINGS + 1);
/// Samples that a quantile must be founded on.
const SAMPLES_MIN: u32 = 100;
/// At so many samples each counts half from then on: what was forgets itself.
const SAMPLES_MAX: u32 = 1 << 13;

/// Latencies of a cluster. Until somebody asks for a quantile nothing is kept and a record costs one load.
#[derive(Debug, Default)]
pub struct Sketch {
    buckets: OnceLock<Box<Buckets>>,
}

struct Buckets {
    counts: [AtomicU32; BUCKETS],
    total: AtomicU32,
}

impl std::fmt::Debug for Buckets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} samples", self.total.load(Ordering::Relaxed))
    }
}

impl Sketch {
    /// One more latency.
    pub fn record(&self, took: Duration) {
        let Some(buckets) = self.buckets.get() else { return };
        if let Some(count) = buckets.counts.get(bucket(took)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if buckets.total.fetch_add(1, Ordering::Relaxed) + 1 == SAMPLES_MAX {
            buckets.halve();
        }
    }

    /// The latency that so many per cent (0 to 100) of recent requests stay below, at most a sixteenth too large; `None` while too few are
    /// known. The first question begins the record.
    pub fn quantile(&self, percent: f64) -> Option<Duration> {
        let buckets = self.buckets.get_or_init(|| Box::new(Buckets { counts: from_fn(|_| AtomicU32::new(0)), total: AtomicU32::new(0) }));
        if buckets.total.load(Ordering::Relaxed) < SAMPLES_MIN {
            return None;
        }
        let counts = || buckets.counts.iter().map(|count| u64::from(count.load(Ordering::Relaxed)));
        let wanted = (counts().sum::<u64>() as f64 * percent / 100.0).ceil().max(1.0);
        let mut sum = 0;
        let found = counts().position(|count| {
            sum += count;
            sum as f64 >= wanted
        });
        found.map(upper_end)
    }
}

impl Buckets {
    #[cold]
    fn halve(&self) {
        let mut gone = 0;
        for count in &self.counts {
            // Rounded up, so that what comes no more is gone some day.
            let half = count.load(Ordering::Relaxed).div_ceil(2);
            count.fetch_sub(half, Ordering::Relaxed);
            gone += half;
        }
        // Beside what others add meanwhile; in any case below the bound again.
        self.total.fetch_sub(gone.max(SAMPLES_MAX / 4), Ordering::Relaxed);
    }
}

/// Below sixteen microseconds one each; then sixteen parts of each doubling.
fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let doubling = micros.max(1).ilog2().saturating_sub(PART_BITS);
    let part = (micros >> doubling) as usize;
    (doubling as usize * PARTS + part).min(BUCKETS - 1)
}

/// Where the bucket ends.
fn upper_end(bucket: usize) -> Duration {
    let (doubling, part) = match bucket / PARTS {
        0 | 1 => (0, bucket),
        row => (row - 1, PARTS + bucket % PARTS),
    };
    Duration::from_micros((part as u64 + 1) << doubling)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn armed() -> Sketch {
        let sketch = Sketch::default();
        assert_eq!(sketch.quantile(50.0), None);
        sketch
    }

    #[test]
    fn quantiles_follow_what_is_recorded() {
        // Aim: nothing before it is asked for and with too few samples; then within a sixteenth; and the old is forgotten.
        let sketch = Sketch::default();
        sketch.record(Duration::from_secs(1));
        assert_eq!(sketch.quantile(50.0), None);
        (0..99).for_each(|_| sketch.record(Duration::from_millis(1)));
        assert_eq!(sketch.quantile(50.0), None);
        sketch.record(Duration::from_millis(100));
        let within = |percent, millis: f64| {
            let told = sketch.quantile(percent).unwrap().as_secs_f64() * 1e3;
            assert!(told >= millis && told <= millis * 1.07, "{percent}: {told} for {millis}");
        };
        within(50.0, 1.0);
        within(99.0, 1.0);
        within(99.9, 100.0);
        (0..40_000).for_each(|_| sketch.record(Duration::from_millis(20)));
        within(50.0, 20.0);
        within(1.0, 20.0);
    }

    #[test]
    fn the_ends_have_buckets() {
        // Aim: zero and for ever are counted, at the ends.
        let sketch = armed();
        (0..60).for_each(|_| sketch.record(Duration::ZERO));
        (0..60).for_each(|_| sketch.record(Duration::MAX));
        assert!(sketch.quantile(1.0).unwrap() <= Duration::from_micros(1));
        assert!(sketch.quantile(100.0).unwrap() >= Duration::from_secs(3600));
    }

    proptest! {
        /// Aim: a bucket holds what it is for: no latency lies above its bucket's end or a sixteenth below its begin.
        #[test]
        fn a_latency_is_known_to_a_sixteenth(micros in 0..4_000_000_000_u64) {
            let end = upper_end(bucket(Duration::from_micros(micros))).as_micros() as u64;
            prop_assert!(end > micros && end - micros <= micros / 16 + 1, "{micros}: {end}");
        }
    }
}
