//! Counters: one [`Series`] per label set and worker, written by that worker alone, read by the scrape.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::labels::{BUCKET_BOUNDS_NANOS, Labels};

/// Buckets of the duration histogram, the unbounded one included.
pub(super) const BUCKETS: usize = BUCKET_BOUNDS_NANOS.len() + 1;

/// A sampled request in a bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Exemplar {
    pub(super) trace_id: u128,
    pub(super) span_id: u64,
    pub(super) duration: Duration,
    pub(super) at: SystemTime,
}

/// A counter with one writer: a plain load and store, no locked instruction.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is counted of one label set.
#[derive(Debug, Default)]
pub(super) struct Series {
    /// Requests, closed connections, or retries.
    pub(super) count: Count,
    /// Opened connections.
    pub(super) opened: Count,
    pub(super) request_bytes: Count,
    pub(super) response_bytes: Count,
    pub(super) nanos: Count,
    pub(super) buckets: [Count; BUCKETS],
    /// Touched for sampled requests only.
    pub(super) exemplars: Mutex<[Option<Exemplar>; BUCKETS]>,
}

impl Series {
    /// Counts one duration; the bucket's index.
    pub(super) fn observe(&self, duration: Duration) -> usize {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BUCKET_BOUNDS_NANOS.iter().position(|bound| nanos <= *bound).unwrap_or(BUCKETS - 1);
        self.nanos.add(nanos);
        self.buckets[bucket].add(1);
        bucket
    }
}

/// The sum of one label set over all workers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sum {
    pub(super) count: u64,
    pub(super) opened: u64,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    pub(super) nanos: u64,
    pub(super) buckets: [u64; BUCKETS],
    pub(super) exemplars: [Option<Exemplar>; BUCKETS],
}

impl Sum {
    fn take_in(&mut self, series: &Series) {
        self.count += series.count.get();
        self.opened += series.opened.get();
        self.request_bytes += series.request_bytes.get();
        self.response_bytes += series.response_bytes.get();
        self.nanos = self.nanos.wrapping_add(series.nanos.get());
        for (sum, bucket) in self.buckets.iter_mut().zip(&series.buckets) {
            *sum += bucket.get();
        }
        for (newest, exemplar) in self.exemplars.iter_mut().zip(series.exemplars.lock().iter()) {
            if exemplar.is_some_and(|e| newest.is_none_or(|n| n.at < e.at)) {
                *newest = *exemplar;
            }
        }
    }
}

/// One worker's series, by number of the label set.
#[derive(Debug, Default)]
pub(super) struct Shard {
    /// Locked by the worker when a label set is new to it, and by the scrape.
    series: Mutex<Vec<Option<Arc<Series>>>>,
    /// Records that went to an overflow series.
    pub(super) overflow: Count,
    /// Spans and log lines that found their queue full.
    pub(super) spans_dropped: Count,
    pub(super) lines_dropped: Count,
}

/// All label sets of this proxy and all its shards.
#[derive(Debug, Default)]
pub(super) struct Registry {
    index: HashMap<Arc<Labels>, usize>,
    labels: Vec<Arc<Labels>>,
    shards: Vec<Arc<Shard>>,
    /// How many of `labels` are overflow sets, which the bound does not count.
    overflow_sets: usize,
}

impl Registry {
    pub(super) fn add_shard(&mut self) -> Arc<Shard> {
        let shard = Arc::new(Shard::default());
        self.shards.push(Arc::clone(&shard));
        shard
    }

    /// The series of these labels in this shard, and whether it is the overflow series. At most `max` sets are told apart.
    pub(super) fn series(&mut self, labels: Labels, shard: &Shard, max: usize) -> (Arc<Series>, bool) {
        let (number, overflow) = self.number(labels, max);
        let mut series = shard.series.lock();
        if series.len() <= number {
            series.resize(number + 1, None);
        }
        (Arc::clone(series[number].get_or_insert_default()), overflow)
    }

    fn number(&mut self, labels: Labels, max: usize) -> (usize, bool) {
        if let Some(number) = self.index.get(&labels) {
            return (*number, false);
        }
        let full = self.labels.len() - self.overflow_sets >= max;
        let labels = if full { labels.overflow() } else { labels };
        if let Some(number) = self.index.get(&labels) {
            return (*number, full);
        }
        let labels = Arc::new(labels);
        let number = self.labels.len();
        self.labels.push(Arc::clone(&labels));
        self.index.insert(labels, number);
        self.overflow_sets += usize::from(full);
        (number, full)
    }

    /// Every label set with its sum, in the order of the labels.
    pub(super) fn sums(&self) -> Vec<(Arc<Labels>, Sum)> {
        let mut sums: Vec<_> = self.labels.iter().map(|labels| (Arc::clone(labels), Sum::default())).collect();
        for shard in &self.shards {
            for (series, (_, sum)) in shard.series.lock().iter().zip(&mut sums) {
                if let Some(series) = series {
                    sum.take_in(series);
                }
            }
        }
        sums.sort_by(|a, b| a.0.cmp(&b.0));
        sums
    }

    /// Sum over all shards of one of their own counters.
    pub(super) fn total(&self, counter: impl Fn(&Shard) -> &Count) -> u64 {
        self.shards.iter().map(|shard| counter(shard).get()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::labels::{CODE_NONE, Direction, GRPC_NONE, MetricFamily, Wire};
    use super::*;

    fn labels(route: &str) -> Labels {
        let empty: Arc<str> = Arc::from("");
        Labels {
            family: MetricFamily::Http,
            direction: Direction::Inbound,
            source_namespace: Arc::clone(&empty),
            source_workload: Arc::clone(&empty),
            destination_namespace: Arc::clone(&empty),
            destination_service: Arc::clone(&empty),
            destination_workload: empty,
            route: Arc::from(route),
            wire: Wire::Http1,
            code: CODE_NONE,
            grpc_code: GRPC_NONE,
            reason: None,
            mtls: false,
            ruled: None,
        }
    }

    /// Aim: beyond the bound everything lands in one overflow series, in every shard, and known sets keep theirs.
    #[test]
    fn label_sets_are_bounded() {
        let mut registry = Registry::default();
        let (a, b) = (registry.add_shard(), registry.add_shard());
        for round in 0..2 {
            for route in 0..5 {
                let shard = if round == 0 { &a } else { &b };
                let (series, overflow) = registry.series(labels(&route.to_string()), shard, 3);
                assert_eq!(overflow, route >= 3);
                series.count.add(1);
            }
        }
        let sums: Vec<_> = registry.sums().iter().map(|(labels, sum)| (labels.route.to_string(), sum.count)).collect();
        assert_eq!(sums, [("0".into(), 2), ("1".into(), 2), ("2".into(), 2), ("overflow".into(), 4)]);
    }

    /// Aim: a duration lands in the first bucket whose bound it does not exceed.
    #[test]
    fn durations_find_their_bucket() {
        let series = Series::default();
        for (duration, bucket) in [
            (Duration::ZERO, 0),
            (Duration::from_micros(500), 0),
            (Duration::from_nanos(500_001), 1),
            (Duration::from_secs(10), 13),
            (Duration::from_secs(11), 14),
            (Duration::MAX, 14),
        ] {
            assert_eq!(series.observe(duration), bucket, "{duration:?}");
        }
    }
}
