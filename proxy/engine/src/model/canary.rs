//! What the versions of canaries have answered. It outlives epochs: rules that lead to a version find its counter by name, and hold it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use proto::canary::{BUCKETS, bucket};
use proto::mesh::{CanaryTraffic, CanaryVersion};

/// Versions that are told at once: two of each canary that may be decided, of the run that was and the one that is.
pub const VERSIONS_MAX: usize = 256;

/// What one version has answered; of all workers.
#[derive(Debug)]
pub struct VersionCounts {
    name: CanaryVersion,
    /// Tells it from one that had the same name before.
    counter: u64,
    requests: AtomicU64,
    failures: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl VersionCounts {
    /// An exchange has ended. `duration`: absent where it has none that could be compared.
    pub fn count(&self, failed: bool, duration: Option<Duration>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if failed {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(duration) = duration {
            self.buckets[bucket(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn row(&self) -> CanaryTraffic {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        // What is counted meanwhile must not have failed before it was there.
        let failures = read(&self.failures);
        CanaryTraffic {
            canary: self.name.canary.clone(),
            run: self.name.run.clone(),
            candidate: self.name.candidate,
            counter: self.counter,
            requests: read(&self.requests),
            failures,
            duration_buckets: self.buckets.iter().map(read).collect(),
        }
    }
}

/// All of them that some rule holds.
#[derive(Debug, Default)]
pub struct CanaryCounts {
    held: Mutex<Versions>,
}

#[derive(Debug, Default)]
struct Versions {
    by_name: HashMap<(String, String, bool), Weak<VersionCounts>>,
    last: u64,
}

impl CanaryCounts {
    /// The counter of a version: the one that is held, or one that begins.
    pub(super) fn adopt(&self, name: &CanaryVersion) -> Arc<VersionCounts> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.canary.clone(), name.run.clone(), name.candidate);
        if let Some(known) = held.by_name.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        held.by_name.retain(|_, counts| counts.strong_count() > 0);
        held.last += 1;
        let fresh = Arc::new(VersionCounts {
            name: name.clone(),
            counter: held.last,
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        });
        held.by_name.insert(key, Arc::downgrade(&fresh));
        fresh
    }

    /// What they have counted, in order; counters are unique in this process. At most [`VERSIONS_MAX`].
    pub fn rows(&self) -> Vec<CanaryTraffic> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rows: Vec<_> = held.by_name.values().filter_map(Weak::upgrade).map(|counts| counts.row()).collect();
        drop(held);
        rows.sort_by_key(|row| row.counter);
        rows.truncate(VERSIONS_MAX);
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_goes_on_for_as_long_as_somebody_holds_it() {
        // Aim: the same name is the same counter while it is held; of another run, of the other version, or after its last holder it is another
        // one, which begins at nothing.
        let all = CanaryCounts::default();
        let name = |run: &str, candidate| CanaryVersion { canary: "shop/catalog".into(), run: run.into(), candidate };
        let first = all.adopt(&name("1", true));
        first.count(true, Some(Duration::from_millis(1)));
        first.count(false, None);
        let (again, stable) = (all.adopt(&name("1", true)), all.adopt(&name("1", false)));
        let rows = all.rows();
        assert_eq!((rows.len(), rows[0].requests, rows[0].failures, rows[1].requests), (2, 2, 1, 0));
        assert_eq!((rows[0].duration_buckets[8], rows[0].duration_buckets.iter().sum::<u64>()), (1, 1));
        drop((first, again, stable));
        assert!(all.rows().is_empty());
        let anew = all.adopt(&name("1", true));
        assert_eq!(all.rows()[0].requests, 0);
        assert_ne!(all.rows()[0].counter, rows[0].counter);
        drop(anew);
    }
}
