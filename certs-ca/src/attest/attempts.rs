//! How often those who prove nothing may try: refused attempts are counted by peer address and by the workload they name, and beyond a
//! burst each further one waits for its turn. Nobody guesses a secret of 256 bits; what is bounded is what trying costs others.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Refused attempts in a row from one address; then [`ADDRESS_PER_MINUTE`].
pub const ADDRESS_BURST: u32 = 60;
/// Refused attempts a minute from one address, in the long run.
pub const ADDRESS_PER_MINUTE: u32 = 60;
/// Refused attempts in a row for one workload, wherever they come from. More than one address may do alone, so that no single stranger
/// keeps a workload from joining.
pub const WORKLOAD_BURST: u32 = 240;
/// Refused attempts a minute for one workload, in the long run.
pub const WORKLOAD_PER_MINUTE: u32 = 240;
/// Addresses, and workloads, that are remembered. Beyond it the one that was refused longest ago is forgotten.
pub const REMEMBERED_MAX: usize = 4096;
/// A refusal's share of a bucket, in seconds that it takes to drain, times [`SCALE`].
const SCALE: i64 = 1000;
const MINUTE_SECS: i64 = 60;

/// Wait before the next attempt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many refused attempts {of}; try again in {wait_secs} s")]
pub struct Limited {
    /// `from ADDRESS` or `for NS/NAME`.
    pub of: String,
    /// Until the next one is looked at.
    pub wait_secs: i64,
}

/// Who was refused lately.
#[derive(Debug, Default)]
pub struct Attempts {
    addresses: Buckets<IpAddr>,
    workloads: Buckets<String>,
}

impl Attempts {
    /// Whether an attempt from there, for that workload (where it is known yet), is looked at. `now` in seconds since 1970.
    ///
    /// # Errors
    /// [`Limited`].
    pub fn admit(&self, address: Option<IpAddr>, workload: Option<&str>, now: i64) -> Result<(), Limited> {
        if let Some(address) = address {
            let wait = self.addresses.wait(&address, ADDRESS_BURST, ADDRESS_PER_MINUTE, now);
            limited(wait, || format!("from {address}"))?;
        }
        if let Some(workload) = workload {
            let wait = self.workloads.wait(workload, WORKLOAD_BURST, WORKLOAD_PER_MINUTE, now);
            limited(wait, || format!("for {workload}"))?;
        }
        Ok(())
    }

    /// Remembers that an attempt was refused.
    pub fn refused(&mut self, address: Option<IpAddr>, workload: Option<&str>, now: i64) {
        if let Some(address) = address {
            self.addresses.fill(address, ADDRESS_PER_MINUTE, now);
        }
        if let Some(workload) = workload {
            self.workloads.fill(workload.to_owned(), WORKLOAD_PER_MINUTE, now);
        }
    }
}

fn limited(wait_secs: i64, of: impl FnOnce() -> String) -> Result<(), Limited> {
    if wait_secs > 0 { Err(Limited { of: of(), wait_secs }) } else { Ok(()) }
}

/// Refusals not yet drained, in thousandths, as of a second.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: i64,
    at: i64,
}

impl Bucket {
    fn level(self, per_minute: u32, now: i64) -> i64 {
        // A clock that was set back drains nothing.
        let drained = (now - self.at).max(0).saturating_mul(i64::from(per_minute) * SCALE) / MINUTE_SECS;
        (self.level - drained).max(0)
    }
}

#[derive(Debug)]
struct Buckets<K>(BTreeMap<K, Bucket>);

impl<K> Default for Buckets<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Buckets<K> {
    /// Seconds until there is room for one more refusal.
    fn wait<Q: Ord + ?Sized>(&self, key: &Q, burst: u32, per_minute: u32, now: i64) -> i64
    where
        K: std::borrow::Borrow<Q>,
    {
        let level = self.0.get(key).map_or(0, |bucket| bucket.level(per_minute, now));
        let over = level + SCALE - i64::from(burst) * SCALE;
        let drain = i64::from(per_minute) * SCALE;
        if over <= 0 { 0 } else { (over * MINUTE_SECS + drain - 1) / drain }
    }

    fn fill(&mut self, key: K, per_minute: u32, now: i64) {
        let level = self.0.get(&key).map_or(0, |bucket| bucket.level(per_minute, now));
        self.0.insert(key, Bucket { level: level + SCALE, at: now });
        if self.0.len() > REMEMBERED_MAX {
            self.0.retain(|_, bucket| bucket.level(per_minute, now) > 0);
        }
        if self.0.len() > REMEMBERED_MAX
            && let Some(oldest) = self.0.iter().min_by_key(|(_, bucket)| bucket.at).map(|(key, _)| key.clone())
        {
            self.0.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn address(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn who_is_refused_again_and_again_waits() {
        // Aim: a burst is looked at, the next one waits its turn, another address does not, and time heals.
        let mut attempts = Attempts::default();
        let here = Some(address(1));
        for _ in 0..ADDRESS_BURST {
            attempts.admit(here, None, NOW).unwrap();
            attempts.refused(here, None, NOW);
        }
        let error = attempts.admit(here, None, NOW).unwrap_err();
        assert_eq!((error.of.as_str(), error.wait_secs), ("from 0.0.0.1", 1));
        assert!(attempts.admit(Some(address(2)), None, NOW).is_ok());
        assert!(attempts.admit(here, None, NOW - 3600).is_err(), "a clock set back heals nothing");
        attempts.admit(here, None, NOW + 1).unwrap();
        attempts.refused(here, None, NOW + 1);
        assert!(attempts.admit(here, None, NOW + 1).is_err());
        attempts.admit(here, None, NOW + 3600).unwrap();
    }

    #[test]
    fn one_stranger_keeps_no_workload_out() {
        // Aim: the bound of a workload is beyond what one address may do, and holds over many addresses.
        let mut attempts = Attempts::default();
        let mut tries = 0;
        for n in 0.. {
            let from = Some(address(n / ADDRESS_BURST));
            if attempts.admit(from, Some("shop/catalog"), NOW).is_err() {
                break;
            }
            attempts.refused(from, Some("shop/catalog"), NOW);
            tries += 1;
        }
        assert_eq!(tries, WORKLOAD_BURST);
        const { assert!(WORKLOAD_BURST > ADDRESS_BURST && WORKLOAD_PER_MINUTE > ADDRESS_PER_MINUTE) };
        assert!(attempts.admit(Some(address(9999)), Some("shop/cart"), NOW).is_ok());
    }

    #[test]
    fn memory_is_bounded() {
        // Aim: at the bound the drained go, then the one refused longest ago; who was refused just now is still known.
        let mut attempts = Attempts::default();
        let refused = |attempts: &mut Attempts, n: u32, times: u32, now: i64| {
            for _ in 0..times {
                attempts.refused(Some(address(n)), None, now);
            }
        };
        refused(&mut attempts, 0, ADDRESS_BURST, NOW);
        for n in 1..=u32::try_from(REMEMBERED_MAX).unwrap() {
            refused(&mut attempts, n, 2, NOW + 1);
        }
        assert_eq!(attempts.addresses.0.len(), REMEMBERED_MAX);
        assert!(attempts.admit(Some(address(0)), None, NOW + 1).is_ok(), "forgotten: it was the oldest");
        refused(&mut attempts, 1_000_000, ADDRESS_BURST, NOW + 100);
        assert_eq!(attempts.addresses.0.len(), 1, "the drained went");
        assert!(attempts.admit(Some(address(1_000_000)), None, NOW + 100).is_err());
    }
}
