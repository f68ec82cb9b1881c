//! What was counted of one version's requests: how many, how many failed, and how long they took by bucket.

use proto::canary;
use serde::{Deserialize, Serialize};

use crate::publish::versions::VersionSum;

/// Buckets of latency, those in which proxies count; see [`canary`].
pub const BUCKETS: usize = canary::BUCKETS;
/// Buckets of one doubling: each ends at 2^(1/4) times the end of the one before.
pub const PER_DOUBLING: u32 = 4;

/// Requests of one version, of a period or of a whole canary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Requests that ended.
    pub requests: u64,
    /// Those of them that failed by the version's fault.
    pub failures: u64,
    /// Those of them by latency; see [`end_ms`].
    #[serde(with = "without_zeros")]
    pub buckets: [u64; BUCKETS],
}

impl Default for Tally {
    fn default() -> Self {
        Self { requests: 0, failures: 0, buckets: [0; BUCKETS] }
    }
}

impl Tally {
    /// Adds one request.
    pub fn record(&mut self, failed: bool, latency_ms: f64) {
        self.requests += 1;
        self.failures += u64::from(failed);
        self.buckets[bucket(latency_ms)] += 1;
    }

    /// Adds another's requests.
    pub fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.failures = self.failures.saturating_add(other.failures);
        for (own, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *own = own.saturating_add(*more);
        }
    }

    /// The share of requests that failed, 0 to 1; 0 without requests.
    pub fn failed_share(&self) -> f64 {
        share(self.failures, self.requests)
    }

    /// Requests that took longer than the end of a bucket.
    pub fn slower_than(&self, bucket: usize) -> u64 {
        self.buckets.iter().skip(bucket + 1).sum()
    }

    /// The latency, in milliseconds, that a share of the requests (0 to 1) stays below: right to a bucket's width, within it as if evenly
    /// spread. `None` without requests. What is beyond the last end is told as that end.
    pub fn quantile_ms(&self, quantile: f64) -> Option<f64> {
        let timed: u64 = self.buckets.iter().sum();
        if timed == 0 {
            return None;
        }
        let mut left = quantile.clamp(0.0, 1.0) * timed as f64;
        for (at, count) in self.buckets.iter().enumerate() {
            let count = *count as f64;
            if count > 0.0 && left <= count {
                let begin = if at == 0 { 0.0 } else { end_ms(at - 1) };
                let end = if at == BUCKETS - 1 { begin } else { end_ms(at) };
                return Some(begin + (end - begin) * left / count);
            }
            left -= count;
        }
        Some(end_ms(BUCKETS - 2))
    }
}

/// Where a bucket ends, in milliseconds; the last has no end, and its begin is told.
pub fn end_ms(bucket: usize) -> f64 {
    canary::ENDS_NANOS[bucket.min(BUCKETS - 2)] as f64 / NANOS_PER_MS
}

/// The bucket of a latency in milliseconds; what is no number is in the first.
pub fn bucket(latency_ms: f64) -> usize {
    // `as` takes what is below 0 to 0 and what is too large to the largest.
    canary::bucket((latency_ms * NANOS_PER_MS) as u64)
}

const NANOS_PER_MS: f64 = 1e6;

impl From<VersionSum> for Tally {
    fn from(sum: VersionSum) -> Self {
        let VersionSum { requests, failures, buckets } = sum;
        Self { requests, failures, buckets }
    }
}

pub(super) fn share(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { part as f64 / of as f64 }
}

/// Buckets as a list that ends with the last one in use.
mod without_zeros {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::BUCKETS;

    pub(super) fn serialize<S: Serializer>(buckets: &[u64; BUCKETS], into: S) -> Result<S::Ok, S::Error> {
        let used = buckets.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        buckets[..used].serialize(into)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<[u64; BUCKETS], D::Error> {
        let used = Vec::<u64>::deserialize(from)?;
        let mut buckets = [0; BUCKETS];
        let place = buckets.get_mut(..used.len()).ok_or_else(|| D::Error::custom(format!("more than {BUCKETS} buckets")))?;
        place.copy_from_slice(&used);
        Ok(buckets)
    }
}
