//! What proxies count of the versions of canaries: sums over all of them, for the runs that somebody follows. Proxies tell totals; what is added is
//! what came since they told last, and a counter of another name began at nothing.

use std::collections::{BTreeSet, HashMap};

use proto::canary::BUCKETS;
use proto::mesh::CanaryTraffic;

/// Counters of all proxies that are known at once: a row is some 600 bytes. Further ones count nowhere, and that is counted.
pub const COUNTERS_MAX: usize = 65_536;

/// What came of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionSum {
    /// Requests that have ended.
    pub requests: u64,
    /// Those that failed.
    pub failures: u64,
    /// Those that have a time, by bucket.
    pub buckets: [u64; BUCKETS],
}

impl Default for VersionSum {
    fn default() -> Self {
        Self { requests: 0, failures: 0, buckets: [0; BUCKETS] }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct VersionBook {
    /// Runs that are followed, and those that were before this process: of them a counter that is new to us is not new.
    runs: BTreeSet<String>,
    resumed: BTreeSet<String>,
    /// Totals as they were told last, by the proxy and its counter.
    told: HashMap<(String, u64), Told>,
    /// What came since it was taken, by run and whether it is the candidate's.
    fresh: HashMap<(String, bool), VersionSum>,
    dropped: u64,
}

#[derive(Debug)]
struct Told {
    run: String,
    sum: VersionSum,
}

impl VersionBook {
    /// Follows these runs and no others. `resumed`: those that began before this process, as long as its proxies may still be on their way back.
    pub fn follow(&mut self, runs: BTreeSet<String>, resumed: BTreeSet<String>) {
        if self.runs != runs {
            self.told.retain(|_, told| runs.contains(&told.run));
            self.fresh.retain(|(run, _), _| runs.contains(run));
        }
        (self.runs, self.resumed) = (runs, resumed);
    }

    /// A proxy tells its totals.
    pub fn take(&mut self, proxy: &str, rows: &[CanaryTraffic]) {
        for row in rows.iter().filter(|row| self.runs.contains(&row.run)) {
            let mut sum = VersionSum { requests: row.requests, failures: row.failures.min(row.requests), ..VersionSum::default() };
            sum.buckets.iter_mut().zip(&row.duration_buckets).for_each(|(own, told)| *own = *told);
            let key = (proxy.to_owned(), row.counter);
            let more = match self.told.get(&key) {
                Some(before) => sum.since(&before.sum),
                None if self.told.len() >= COUNTERS_MAX => {
                    self.dropped += 1;
                    continue;
                }
                // It may have counted long before us.
                None if self.resumed.contains(&row.run) => VersionSum::default(),
                None => sum.clone(),
            };
            self.fresh.entry((row.run.clone(), row.candidate)).or_default().add(&more);
            self.told.insert(key, Told { run: row.run.clone(), sum });
        }
    }

    /// What came of a run's stable version and of its candidate since this was asked last.
    pub fn fresh(&mut self, run: &str) -> (VersionSum, VersionSum) {
        let mut of = |candidate| self.fresh.remove(&(run.to_owned(), candidate)).unwrap_or_default();
        (of(false), of(true))
    }

    /// Rows that counted nowhere because there were too many.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

impl VersionSum {
    fn add(&mut self, more: &Self) {
        self.requests = self.requests.saturating_add(more.requests);
        self.failures = self.failures.saturating_add(more.failures);
        self.buckets.iter_mut().zip(&more.buckets).for_each(|(own, more)| *own = own.saturating_add(*more));
    }

    /// What came after an earlier total.
    fn since(&self, before: &Self) -> Self {
        let mut more = Self {
            requests: self.requests.saturating_sub(before.requests),
            failures: self.failures.saturating_sub(before.failures),
            buckets: self.buckets,
        };
        more.buckets.iter_mut().zip(&before.buckets).for_each(|(now, before)| *now = now.saturating_sub(*before));
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(run: &str, candidate: bool, counter: u64, requests: u64, failures: u64) -> CanaryTraffic {
        let mut duration_buckets = vec![0; BUCKETS];
        duration_buckets[3] = requests;
        CanaryTraffic { canary: "shop/catalog".into(), run: run.into(), candidate, counter, requests, failures, duration_buckets }
    }

    fn requests(book: &mut VersionBook) -> (u64, u64, u64) {
        let (stable, candidate) = book.fresh("r");
        assert_eq!((stable.buckets[3], candidate.buckets[3]), (stable.requests, candidate.requests));
        (stable.requests, candidate.requests, candidate.failures)
    }

    #[test]
    fn totals_become_what_came_since() {
        // Aim: over all proxies; each request once, whatever is told again; a counter that began anew, in the same process or another one, counts
        // from nothing; what nobody follows does not count.
        let mut book = VersionBook::default();
        book.take("a", &[row("r", true, 1, 7, 0)]);
        assert_eq!(requests(&mut book), (0, 0, 0), "nobody followed it");
        book.follow(BTreeSet::from(["r".to_owned()]), BTreeSet::new());
        book.take("a", &[row("r", false, 1, 10, 0), row("r", true, 2, 5, 1), row("other", true, 3, 99, 0)]);
        book.take("b", &[row("r", false, 1, 2, 0)]);
        assert_eq!(requests(&mut book), (12, 5, 1));
        book.take("a", &[row("r", false, 1, 10, 0), row("r", true, 2, 8, 2)]);
        assert_eq!(requests(&mut book), (0, 3, 1));
        book.take("a", &[row("r", false, 1001, 4, 0), row("r", true, 1002, 1, 1)]);
        assert_eq!(requests(&mut book), (4, 1, 1), "the proxy began anew");
        book.follow(BTreeSet::new(), BTreeSet::new());
        assert_eq!((requests(&mut book), book.told.len()), ((0, 0, 0), 0));
    }

    #[test]
    fn what_was_counted_before_a_restart_of_ours_is_not_counted_again() {
        // Aim: of a run that goes on, the first total of each counter is where counting goes on; once everybody is back, a new counter is new.
        let run = || BTreeSet::from(["r".to_owned()]);
        let mut book = VersionBook::default();
        book.follow(run(), run());
        book.take("a", &[row("r", true, 1, 500, 9)]);
        assert_eq!(requests(&mut book), (0, 0, 0));
        book.take("a", &[row("r", true, 1, 510, 10)]);
        assert_eq!(requests(&mut book), (0, 10, 1));
        book.follow(run(), BTreeSet::new());
        book.take("b", &[row("r", true, 1, 3, 0)]);
        assert_eq!(requests(&mut book), (0, 3, 0));
    }

    #[test]
    fn counters_have_a_bound() {
        // Aim: beyond it rows are passed over and counted; those that are known go on.
        let mut book = VersionBook::default();
        book.follow(BTreeSet::from(["r".to_owned()]), BTreeSet::new());
        for counter in 0..=u64::try_from(COUNTERS_MAX).unwrap() {
            book.take("a", &[row("r", true, counter, 1, 0)]);
        }
        assert_eq!((book.dropped(), requests(&mut book).1), (1, 65_536));
        book.take("a", &[row("r", true, 0, 2, 0)]);
        assert_eq!(requests(&mut book).1, 1);
    }
}
