//! Counters: one [`Series`] per label set and worker, written by that worker alone, read by the scrape. A set of which nothing is counted any more
//! leaves after a while, and makes room for others.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::labels::{BUCKET_BOUNDS_NANOS, Labels};
use super::sketch::Sketch;
use crate::io::Clock;

/// Buckets of the duration histogram, the unbounded one included.
pub(super) const BUCKETS: usize = BUCKET_BOUNDS_NANOS.len() + 1;

/// A label set leaves when nothing was counted of it for so long.
const EXPIRY: Duration = Duration::from_secs(15 * 60);
/// Between telling the workers that a label set leaves, and its leaving: much longer than any of them takes from asking to counting.
const LEAVING: Duration = Duration::from_secs(10);

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

    pub(super) fn less(&self, fewer: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(fewer), Ordering::Relaxed);
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
    /// Durations once more, where metrics are sent by OTLP.
    sketch: Mutex<Option<Box<Sketch>>>,
    /// Opaque connections that are open: they count their bytes without asking whether it is read.
    pub(super) live: Count,
    life: AtomicU8,
}

/// It is read.
const LIVES: u8 = 0;
/// It is read, and leaves unless something is counted.
const LEAVES: u8 = 1;
/// It is not read any more.
const GONE: u8 = 2;

impl Series {
    /// Whether what is counted now is read. If not, the label set needs another series.
    pub(super) fn is_read(&self) -> bool {
        self.life.load(Ordering::Relaxed) == LIVES || self.turn(LEAVES, LIVES)
    }

    fn turn(&self, from: u8, to: u8) -> bool {
        self.life.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Counts a duration for OTLP, too.
    pub(super) fn sketch(&self, duration: Duration, clock: &Clock) {
        self.sketch.lock().get_or_insert_with(|| Box::new(Sketch::new(clock.wall()))).observe(duration);
    }

    /// Everything that grows, to see whether something did.
    fn total(&self) -> u64 {
        [&self.count, &self.opened, &self.request_bytes, &self.response_bytes].iter().fold(0, |sum, count| sum.wrapping_add(count.get()))
    }

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
    /// Since when that has been counted.
    pub(super) begun: Option<SystemTime>,
    /// Durations for OTLP, if asked for.
    pub(super) sketch: Option<Box<Sketch>>,
}

impl Sum {
    fn take_in(&mut self, series: &Series, sketched: bool) {
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
        if let Some(sketch) = series.sketch.lock().as_deref().filter(|_| sketched) {
            self.sketched(sketch);
        }
    }

    fn sketched(&mut self, more: &Sketch) {
        match &mut self.sketch {
            Some(sketch) => sketch.take_in(more),
            None => self.sketch = Some(Box::new(more.clone())),
        }
    }

    /// Adds what was counted of another label set.
    pub(super) fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.opened += other.opened;
        self.request_bytes += other.request_bytes;
        self.response_bytes += other.response_bytes;
        self.nanos = self.nanos.wrapping_add(other.nanos);
        self.buckets.iter_mut().zip(other.buckets).for_each(|(sum, more)| *sum += more);
        for (newest, exemplar) in self.exemplars.iter_mut().zip(other.exemplars) {
            if exemplar.is_some_and(|e| newest.is_none_or(|n| n.at < e.at)) {
                *newest = exemplar;
            }
        }
        self.begun = [self.begun, other.begun].into_iter().flatten().min();
        if let Some(sketch) = &other.sketch {
            self.sketched(sketch);
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

/// A label set, and what is known of it beside its counters.
#[derive(Debug)]
struct Entry {
    labels: Arc<Labels>,
    /// It stands in for others, and the bound does not count it.
    overflow: bool,
    begun: SystemTime,
    /// [`Series::total`] of all its series when it was looked at last, and when that was seen to have changed.
    total: u64,
    changed: Instant,
    /// Since when its workers may know that it leaves.
    leaving: Option<Instant>,
}

/// All label sets of this proxy and all its shards.
#[derive(Debug, Default)]
pub(super) struct Registry {
    index: HashMap<Arc<Labels>, usize>,
    entries: Vec<Option<Entry>>,
    /// Numbers of those that have left.
    free: Vec<usize>,
    shards: Vec<Arc<Shard>>,
    /// How many of the entries are overflow sets.
    overflow_sets: usize,
}

impl Registry {
    pub(super) fn add_shard(&mut self) -> Arc<Shard> {
        let shard = Arc::new(Shard::default());
        self.shards.push(Arc::clone(&shard));
        shard
    }

    /// The series of these labels in this shard, and whether it is the overflow series. At most `max` sets are told apart.
    pub(super) fn series(&mut self, labels: Labels, shard: &Shard, max: usize, now: (Instant, SystemTime)) -> (Arc<Series>, bool) {
        let (number, overflow) = self.number(labels, max, now);
        let mut series = shard.series.lock();
        if series.len() <= number {
            series.resize(number + 1, None);
        }
        (Arc::clone(series[number].get_or_insert_default()), overflow)
    }

    fn number(&mut self, labels: Labels, max: usize, (now, wall): (Instant, SystemTime)) -> (usize, bool) {
        if let Some(number) = self.index.get(&labels) {
            return (*number, false);
        }
        if self.is_full(max) {
            // Others may have been quiet for long while nobody looked.
            self.sweep(now);
        }
        let full = self.is_full(max);
        let labels = if full { labels.overflow() } else { labels };
        if let Some(number) = self.index.get(&labels) {
            return (*number, full);
        }
        let labels = Arc::new(labels);
        let entry = Entry { labels: Arc::clone(&labels), overflow: full, begun: wall, total: 0, changed: now, leaving: None };
        let number = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.entries[number] = Some(entry);
        self.index.insert(labels, number);
        self.overflow_sets += usize::from(full);
        (number, full)
    }

    fn is_full(&self, max: usize) -> bool {
        self.index.len() - self.overflow_sets >= max
    }

    /// Takes note of what is counted by now, and lets go of label sets of which nothing was for long: first their workers may hear of it, so that
    /// whoever still counts keeps them, and when this is called again they leave. Asks for no timer: whoever reads the sums calls it before.
    pub(super) fn sweep(&mut self, now: Instant) {
        let mut shards: Vec<_> = self.shards.iter().map(|shard| shard.series.lock()).collect();
        for (number, place) in self.entries.iter_mut().enumerate() {
            let Some(entry) = place else { continue };
            let all: Vec<Arc<Series>> = shards.iter().filter_map(|series| series.get(number)?.clone()).collect();
            if !entry.leaves(&all, now) {
                continue;
            }
            self.index.remove(&entry.labels);
            self.overflow_sets -= usize::from(entry.overflow);
            self.free.push(number);
            *place = None;
            shards.iter_mut().filter_map(|series| series.get_mut(number)).for_each(|series| *series = None);
        }
    }

    /// Every label set with its sum, in the order of the labels.
    pub(super) fn sums(&self) -> Vec<(Arc<Labels>, Sum)> {
        self.read(false)
    }

    /// The same, with what only OTLP tells.
    pub(super) fn sketched_sums(&self) -> Vec<(Arc<Labels>, Sum)> {
        self.read(true)
    }

    fn read(&self, sketched: bool) -> Vec<(Arc<Labels>, Sum)> {
        let shards: Vec<_> = self.shards.iter().map(|shard| shard.series.lock()).collect();
        let sum = |(number, entry): (usize, &Option<Entry>)| {
            let Entry { labels, begun, .. } = entry.as_ref()?;
            let mut sum = Sum { begun: Some(*begun), ..Sum::default() };
            let all = shards.iter().filter_map(|series| series.get(number)?.as_ref());
            all.for_each(|series| sum.take_in(series, sketched));
            Some((Arc::clone(labels), sum))
        };
        let mut sums: Vec<_> = self.entries.iter().enumerate().filter_map(sum).collect();
        sums.sort_by(|a, b| a.0.cmp(&b.0));
        sums
    }

    /// Gives back what was kept for OTLP.
    pub(super) fn forget_sketches(&self) {
        for shard in &self.shards {
            shard.series.lock().iter().flatten().for_each(|series| *series.sketch.lock() = None);
        }
    }

    /// Sum over all shards of one of their own counters.
    pub(super) fn total(&self, counter: impl Fn(&Shard) -> &Count) -> u64 {
        self.shards.iter().map(|shard| counter(shard).get()).sum()
    }
}

impl Entry {
    /// Whether it has left: `all` are its series.
    fn leaves(&mut self, all: &[Arc<Series>], now: Instant) -> bool {
        let total = all.iter().fold(0, |sum: u64, series| sum.wrapping_add(series.total()));
        if total != self.total || all.iter().any(|series| series.live.get() > 0) {
            (self.total, self.changed, self.leaving) = (total, now, None);
        }
        if now.saturating_duration_since(self.changed) < EXPIRY {
            return false;
        }
        let Some(since) = self.leaving else {
            all.iter().for_each(|series| _ = series.turn(LIVES, LEAVES));
            self.leaving = Some(now);
            return false;
        };
        if now.saturating_duration_since(since) < LEAVING {
            return false;
        }
        let gone = all.iter().take_while(|series| series.turn(LEAVES, GONE)).count();
        if gone < all.len() {
            // Somebody counts on. Whoever finds one gone meanwhile asks for it, and has to wait until it is read again.
            all[..gone].iter().for_each(|series| _ = series.turn(GONE, LIVES));
            (self.changed, self.leaving) = (now, None);
        }
        gone == all.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::labels::{CODE_NONE, Direction, Extra, GRPC_NONE, MetricFamily, Wire};
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
            extra: Extra::default(),
        }
    }

    /// Moments, seconds after the first.
    fn moments() -> impl Fn(u64) -> (Instant, SystemTime) {
        let began = Instant::now();
        move |secs| (began + Duration::from_secs(secs), SystemTime::UNIX_EPOCH + Duration::from_secs(secs))
    }

    fn told(registry: &Registry) -> Vec<(String, u64)> {
        registry.sums().iter().map(|(labels, sum)| (labels.route.to_string(), sum.count)).collect()
    }

    /// Aim: beyond the bound everything lands in one overflow series, in every shard, and known sets keep theirs.
    #[test]
    fn label_sets_are_bounded() {
        let (mut registry, at) = (Registry::default(), moments());
        let (a, b) = (registry.add_shard(), registry.add_shard());
        for round in 0..2 {
            for route in 0..5 {
                let shard = if round == 0 { &a } else { &b };
                let (series, overflow) = registry.series(labels(&route.to_string()), shard, 3, at(0));
                assert_eq!(overflow, route >= 3);
                series.count.add(1);
            }
        }
        assert_eq!(told(&registry), [("0".into(), 2), ("1".into(), 2), ("2".into(), 2), ("overflow".into(), 4)]);
    }

    /// Aim: what nobody counts leaves after a quarter of an hour, its place is free again, whoever held its series sees that it is gone, and counts from
    /// zero with a new beginning; the overflow set leaves as others do.
    #[test]
    fn quiet_label_sets_leave() {
        let (mut registry, at) = (Registry::default(), moments());
        let shard = registry.add_shard();
        let [quiet, busy, over] = ["quiet", "busy", "third"].map(|route| {
            let series = registry.series(labels(route), &shard, 2, at(0)).0;
            series.count.add(5);
            series
        });
        assert_eq!(told(&registry), [("busy".into(), 5), ("quiet".into(), 5), ("overflow".into(), 5)]);
        for secs in [1, 600, 1000, 1011] {
            assert!(busy.is_read());
            busy.count.add(1);
            registry.sweep(at(secs).0);
        }
        assert_eq!(told(&registry), [("busy".into(), 9)]);
        assert!(!quiet.is_read() && !over.is_read() && busy.is_read());
        let (again, overflow) = registry.series(labels("third"), &shard, 2, at(1020));
        again.count.add(1);
        assert!(!overflow && told(&registry) == [("busy".into(), 9), ("third".into(), 1)]);
        assert_eq!(registry.sums()[1].1.begun, Some(at(1020).1));
        assert!(registry.series(labels("quiet"), &shard, 2, at(1021)).1, "the place is taken");
    }

    /// Aim: a worker that counts between the two looks keeps the set for all, and one that finds it gone meanwhile is given the same series.
    #[test]
    fn whoever_counts_keeps_the_set() {
        let (mut registry, at) = (Registry::default(), moments());
        let (a, b) = (registry.add_shard(), registry.add_shard());
        let first = registry.series(labels("x"), &a, 9, at(0)).0;
        let second = registry.series(labels("x"), &b, 9, at(0)).0;
        first.count.add(1);
        registry.sweep(at(0).0);
        registry.sweep(at(901).0);
        assert!(second.is_read(), "it is still read, and hears that somebody counts");
        second.count.add(1);
        registry.sweep(at(920).0);
        registry.sweep(at(1800).0);
        assert!(first.is_read() && Arc::ptr_eq(&registry.series(labels("x"), &a, 9, at(1800)).0, &first));
        assert_eq!(told(&registry), [("x".into(), 2)]);
    }

    /// Aim: a worker is heard also where its count is not yet seen: the set stays, whole.
    #[test]
    fn nothing_is_counted_unseen() {
        let (mut registry, at) = (Registry::default(), moments());
        let (a, b) = (registry.add_shard(), registry.add_shard());
        let first = registry.series(labels("x"), &a, 9, at(0)).0;
        let second = registry.series(labels("x"), &b, 9, at(0)).0;
        registry.sweep(at(901).0);
        assert!(second.is_read());
        registry.sweep(at(912).0);
        second.count.add(1);
        assert!(first.is_read() && told(&registry) == [("x".into(), 1)]);
    }

    /// Aim: what has an open connection never leaves, however quiet it is.
    #[test]
    fn open_connections_keep_their_set() {
        let (mut registry, at) = (Registry::default(), moments());
        let shard = registry.add_shard();
        let series = registry.series(labels("x"), &shard, 9, at(0)).0;
        series.live.add(1);
        for secs in [1, 2000, 4000, 6000] {
            registry.sweep(at(secs).0);
        }
        assert!(series.is_read());
        series.live.less(1);
        for secs in [6001, 8000, 8020] {
            registry.sweep(at(secs).0);
        }
        assert!(!series.is_read() && told(&registry).is_empty());
    }

    /// Aim: a full registry makes room by itself, also where nobody reads it.
    #[test]
    fn a_full_registry_makes_room() {
        let (mut registry, at) = (Registry::default(), moments());
        let shard = registry.add_shard();
        registry.series(labels("old"), &shard, 1, at(0));
        assert!(registry.series(labels("new"), &shard, 1, at(901)).1);
        assert!(!registry.series(labels("new"), &shard, 1, at(920)).1);
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
