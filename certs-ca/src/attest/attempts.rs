//! How often somebody may try, or have. Refused attempts are counted by origin (address, or /64) and by the workload they name; beyond a
//! burst each further one waits for its turn. Nobody guesses a secret of 256 bits; what is bounded is what trying costs others. So are
//! certificates by what may be shown again and again, which are counted by the instance that has them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use proto::origin;

/// Refused attempts in a row from one origin; then [`ADDRESS_PER_MINUTE`].
pub const ADDRESS_BURST: u32 = 60;
/// Refused attempts a minute from one origin, in the long run.
pub const ADDRESS_PER_MINUTE: u32 = 60;
/// Refused attempts in a row for one workload, wherever they come from. More than one origin may do alone, so that no single stranger
/// keeps a workload from joining.
pub const WORKLOAD_BURST: u32 = 240;
/// Refused attempts a minute for one workload, in the long run.
pub const WORKLOAD_PER_MINUTE: u32 = 240;
/// Attempts in a row from one origin that the gate turned away. More than those to guess: a machine full of proxies that nobody has
/// declared yet is no attack.
pub const GATE_BURST: u32 = 600;
/// Attempts a minute from one origin that the gate turned away, in the long run.
pub const GATE_PER_MINUTE: u32 = 600;
/// Certificates in a row for one instance, by the one before or by its service account: its proxy's and its application's, some
/// rotations of the root, answers that were lost.
pub const INSTANCE_BURST: u32 = 30;
/// Certificates a minute for one instance, in the long run; more where their life is short ([`INSTANCE_PER_LIFE`]).
pub const INSTANCE_PER_MINUTE: u32 = 10;
/// Certificates for one instance within the life of one, in the long run: two are renewed after two thirds of it.
pub const INSTANCE_PER_LIFE: u32 = 6;
/// Origins, workloads and instances that are remembered, of each. Beyond it the one that was counted longest ago is forgotten.
pub const REMEMBERED_MAX: usize = 4096;
/// One attempt's share of a bucket, in seconds that it takes to drain, times [`SCALE`].
const SCALE: i64 = 1000;
const MINUTE_SECS: i64 = 60;

/// Wait before the next attempt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many {of}; try again in {wait_secs} s")]
pub struct Limited {
    /// `refused attempts from ADDRESS`, `refused attempts for NS/NAME` or `certificates for NS/INSTANCE`.
    pub of: String,
    /// Until the next one is looked at.
    pub wait_secs: i64,
}

/// Who was refused lately, and who had certificates.
#[derive(Debug, Default)]
pub struct Attempts {
    origins: Buckets<IpAddr>,
    workloads: Buckets<String>,
    turned_away: Buckets<IpAddr>,
    instances: Buckets<String>,
}

impl Attempts {
    /// Whether an attempt from there, for that workload (where it is known yet), is looked at. `now` in seconds since 1970.
    ///
    /// # Errors
    /// [`Limited`].
    pub fn admit(&mut self, address: Option<IpAddr>, workload: Option<&str>, now: i64) -> Result<(), Limited> {
        if let Some(address) = address {
            let origin = origin::of(address);
            let guesses = self.origins.wait(&origin, ADDRESS_BURST, ADDRESS_PER_MINUTE, now);
            let turned_away = self.turned_away.wait(&origin, GATE_BURST, GATE_PER_MINUTE, now);
            limited(guesses.max(turned_away), || format!("refused attempts from {address}"))?;
        }
        if let Some(workload) = workload {
            let wait = self.workloads.wait(workload, WORKLOAD_BURST, WORKLOAD_PER_MINUTE, now);
            limited(wait, || format!("refused attempts for {workload}"))?;
        }
        Ok(())
    }

    /// Remembers that an attempt was refused.
    pub fn refused(&mut self, address: Option<IpAddr>, workload: Option<&str>, now: i64) {
        if let Some(address) = address {
            self.origins.fill(origin::of(address), ADDRESS_PER_MINUTE, now);
        }
        if let Some(workload) = workload {
            self.workloads.fill(workload.to_owned(), WORKLOAD_PER_MINUTE, now);
        }
    }

    /// Counts an attempt that the gate turns away.
    ///
    /// # Errors
    /// [`Limited`]: it is one too many to be told why.
    pub fn turn_away(&mut self, address: Option<IpAddr>, now: i64) -> Result<(), Limited> {
        let Some(address) = address else { return Ok(()) };
        let origin = origin::of(address);
        limited(self.turned_away.wait(&origin, GATE_BURST, GATE_PER_MINUTE, now), || format!("refused attempts from {address}"))?;
        self.turned_away.fill(origin, GATE_PER_MINUTE, now);
        Ok(())
    }

    /// Counts a certificate for an instance (`NS/INSTANCE`), where certificates have that life.
    ///
    /// # Errors
    /// [`Limited`]: it is one too many.
    pub fn issue(&mut self, instance: String, life: Duration, now: i64) -> Result<(), Limited> {
        let life_secs = u32::try_from(life.as_secs()).unwrap_or(u32::MAX).max(1);
        let per_minute = INSTANCE_PER_MINUTE.max(INSTANCE_PER_LIFE * 60 / life_secs);
        limited(self.instances.wait(instance.as_str(), INSTANCE_BURST, per_minute, now), || format!("certificates for {instance}"))?;
        self.instances.fill(instance, per_minute, now);
        Ok(())
    }
}

fn limited(wait_secs: i64, of: impl FnOnce() -> String) -> Result<(), Limited> {
    if wait_secs > 0 { Err(Limited { of: of(), wait_secs }) } else { Ok(()) }
}

/// What has not yet drained, in thousandths, as of a second.
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
    /// Seconds until there is room for one more.
    fn wait<Q: Ord + ?Sized>(&mut self, key: &Q, burst: u32, per_minute: u32, now: i64) -> i64
    where
        K: std::borrow::Borrow<Q>,
    {
        let Some(bucket) = self.0.get_mut(key) else { return 0 };
        // Counted by a clock that was ahead: it drains from now on, not only when that time has come.
        bucket.at = bucket.at.min(now);
        let over = bucket.level(per_minute, now) + SCALE - i64::from(burst) * SCALE;
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
        assert_eq!((error.of.as_str(), error.wait_secs), ("refused attempts from 0.0.0.1", 1));
        assert!(attempts.admit(Some(address(2)), None, NOW).is_ok());
        attempts.admit(here, None, NOW + 1).unwrap();
        attempts.refused(here, None, NOW + 1);
        assert!(attempts.admit(here, None, NOW + 1).is_err());
        attempts.admit(here, None, NOW + 3600).unwrap();
    }

    #[test]
    fn a_clock_that_is_set_back_locks_nobody_out() {
        // Aim: it heals nothing at once, and from then on time heals as it always does.
        let mut attempts = Attempts::default();
        let here = Some(address(1));
        (0..ADDRESS_BURST).for_each(|_| attempts.refused(here, None, NOW + 86_400));
        assert_eq!(attempts.admit(here, None, NOW).unwrap_err().wait_secs, 1);
        attempts.admit(here, None, NOW + 1).unwrap();
    }

    #[test]
    fn addresses_of_one_network_are_one_origin() {
        // Aim: a host has a whole /64, and no more attempts by it; the next network has its own.
        let mut attempts = Attempts::default();
        let host = |n: u128| Some(IpAddr::from(std::net::Ipv6Addr::from_bits((0x2001_0db8_u128 << 96) + n)));
        (0..ADDRESS_BURST).for_each(|n| attempts.refused(host(n.into()), None, NOW));
        assert!(attempts.admit(host(9999), None, NOW).unwrap_err().of.ends_with("2001:db8::270f"));
        attempts.admit(host(1 << 64), None, NOW).unwrap();
    }

    #[test]
    fn an_instance_has_some_certificates_and_then_one_after_the_other() {
        // Aim: a burst, then by the minute, and more often where they do not last; another instance is not concerned.
        let mut attempts = Attempts::default();
        let day = Duration::from_secs(24 * 3600);
        let mut had = |name: &str, life, now| attempts.issue(name.to_owned(), life, now).map_err(|error| error.to_string());
        let burst = (0..1000).filter(|_| had("shop/a", day, NOW).is_ok()).count();
        assert_eq!(burst, usize::try_from(INSTANCE_BURST).unwrap());
        assert_eq!(had("shop/a", day, NOW), Err("too many certificates for shop/a; try again in 6 s".into()));
        assert_eq!(had("shop/b", day, NOW), Ok(()));
        assert_eq!((0..60).filter(|second| had("shop/a", day, NOW + 1 + second).is_ok()).count(), 10);
        let short = Duration::from_secs(10);
        let often = (0..6000).step_by(3).filter(|second| had("shop/c", short, NOW + second).is_ok()).count();
        assert_eq!(often, 2000, "two of ten seconds each, renewed after six");
    }

    #[test]
    fn who_is_turned_away_again_and_again_waits_too() {
        // Aim: what the gate refuses has a bound of its own, wide enough for a machine whose workloads are not declared yet.
        let mut attempts = Attempts::default();
        let told = (0..10_000).filter(|_| attempts.turn_away(Some(address(1)), NOW).is_ok()).count();
        assert_eq!(told, usize::try_from(GATE_BURST).unwrap());
        assert!(attempts.admit(Some(address(1)), None, NOW).is_err() && attempts.admit(Some(address(2)), None, NOW).is_ok());
        assert!(attempts.turn_away(None, NOW).is_ok());
        const { assert!(GATE_BURST > ADDRESS_BURST && GATE_PER_MINUTE > ADDRESS_PER_MINUTE) };
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
        assert_eq!(attempts.origins.0.len(), REMEMBERED_MAX);
        assert!(attempts.admit(Some(address(0)), None, NOW + 1).is_ok(), "forgotten: it was the oldest");
        refused(&mut attempts, 1_000_000, ADDRESS_BURST, NOW + 100);
        assert_eq!(attempts.origins.0.len(), 1, "the drained went");
        assert!(attempts.admit(Some(address(1_000_000)), None, NOW + 100).is_err());
    }
}
