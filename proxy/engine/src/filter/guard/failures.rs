//! Who failed to prove who it is lately, and how often. Bounded: beyond so many callers new ones are counted by where they come from, so that
//! whoever fails under thousands of names locks out its neighbours at most.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use xxhash_rust::xxh3::Xxh3;

/// Most callers whose failures are counted at a time, of one object; what comes beyond is counted by the prefix of its address.
pub const FAILING_MAX: usize = 10_000;
/// Counters of prefixes; several prefixes may share one, and nobody outside knows which.
const CROWDS: usize = 4_096;
/// Length of the prefix that stands for a neighbourhood.
const CROWD_V4: u32 = 24;
const CROWD_V6: u8 = 48;
/// How long failures count.
const FAILURES_PER: Duration = Duration::from_secs(60);

/// Who fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failing {
    /// By what it is counted.
    key: u128,
    /// By what it is counted where there is no room.
    crowd: u128,
}

impl Failing {
    /// By the prefix of an address (its length, of IPv6) and by a user's name, each as far as it counts.
    pub(super) fn of(address: IpAddr, prefix: Option<u8>, user: Option<&str>) -> Self {
        let mut hash = Xxh3::new();
        let address = address.to_canonical();
        if let Some(prefix) = prefix {
            match address {
                IpAddr::V4(v4) => hash.update(&v4.octets()),
                IpAddr::V6(v6) => hash.update(&masked(v6, prefix).to_be_bytes()),
            }
        }
        if let Some(user) = user {
            hash.update(b"\0");
            hash.update(user.as_bytes());
        }
        let crowd = match address {
            // Apart from all that IPv6 comes to.
            IpAddr::V4(v4) => u128::from(v4.to_bits() >> (32 - CROWD_V4)),
            IpAddr::V6(v6) => masked(v6, CROWD_V6) | (1 << 127),
        };
        Self { key: hash.digest128(), crowd }
    }
}

/// Since when somebody failed, and how often.
type FailedLately = (u64, u32);

/// See the module. It outlives pushes by the object's name.
#[derive(Debug, Default)]
pub struct Failures {
    counts: Mutex<FailureCounts>,
    /// Which prefixes share a counter is by chance.
    seed: RandomState,
}

#[derive(Debug, Default)]
struct FailureCounts {
    own: HashMap<u128, FailedLately>,
    /// [`CROWDS`] of them, once one was needed.
    crowds: Vec<FailedLately>,
}

impl Failures {
    /// Whether so many failures are too many now.
    pub(super) fn is_beyond(&self, who: Failing, most: u32, now_secs: u64) -> bool {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_crowd = || counts.crowds.get(self.place(who)).filter(|_| counts.own.len() >= FAILING_MAX);
        let found = counts.own.get(&who.key).or_else(of_crowd);
        found.is_some_and(|(since, count)| *count >= most && now_secs < since + FAILURES_PER.as_secs())
    }

    pub(super) fn count(&self, who: Failing, now_secs: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let FailureCounts { own, crowds } = &mut *counts;
        let full = |own: &HashMap<u128, FailedLately>| own.len() >= FAILING_MAX && !own.contains_key(&who.key);
        if full(own) {
            own.retain(|_, (since, _)| now_secs < *since + FAILURES_PER.as_secs());
        }
        let found = if full(own) {
            crowds.resize(CROWDS, (now_secs, 0));
            &mut crowds[self.place(who)]
        } else {
            own.entry(who.key).or_insert((now_secs, 0))
        };
        if now_secs >= found.0 + FAILURES_PER.as_secs() || now_secs < found.0 {
            *found = (now_secs, 0);
        }
        found.1 = found.1.saturating_add(1);
    }

    /// The counter of whoever there is no room for.
    fn place(&self, who: Failing) -> usize {
        usize::try_from(self.seed.hash_one(who.crowd) % CROWDS as u64).unwrap_or(0)
    }
}

fn masked(address: Ipv6Addr, prefix: u8) -> u128 {
    let bits = u128::from(address);
    bits.checked_shr(128 - u32::from(prefix)).map_or(0, |high| high << (128 - u32::from(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_there_is_no_room_for_is_counted_by_where_it_comes_from() {
        // Aim: after ten thousand names from one network its new logins are refused, whatever their name, and those of others are not; a minute
        // later there is room again.
        let failures = Failures::default();
        let by = |address: &str, user: &str| Failing::of(address.parse().unwrap(), Some(64), Some(user));
        for number in 0..FAILING_MAX {
            failures.count(by("198.51.100.7", &number.to_string()), 0);
        }
        let foe = by("198.51.100.8", "ada");
        assert!(!failures.is_beyond(foe, 3, 1), "nobody is counted together yet");
        (0..3).for_each(|_| failures.count(foe, 1));
        // One in four thousand shares its counter by chance.
        let others = ["192.0.2.1", "203.0.113.9", "2001:db8:1::1", "2001:db8:2::1"];
        let beyond = others.iter().filter(|address| failures.is_beyond(by(address, "ada"), 3, 2)).count();
        assert!(beyond <= 1, "{beyond}");
        assert!(failures.is_beyond(by("198.51.100.9", "bob"), 3, 2));
        assert!(!failures.is_beyond(by("198.51.100.7", "17"), 3, 2), "who has a counter goes by that");
        failures.count(by("192.0.2.1", "ada"), 61);
        assert!(!failures.is_beyond(by("198.51.100.9", "bob"), 3, 62));
        assert!(failures.counts.lock().unwrap().own.len() < FAILING_MAX);
    }

    #[test]
    fn callers_are_told_apart_by_what_counts() {
        // Aim: a household is one caller, and a neighbourhood one crowd; IPv4 in IPv6 is IPv4.
        let of = |address: &str| Failing::of(address.parse().unwrap(), Some(64), None);
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff"));
        assert_eq!((of("2001:db8:0:1::1").crowd, of("192.0.2.1").crowd), (of("2001:db8:0:2::1").crowd, of("192.0.2.9").crowd));
        assert_ne!(of("2001:db8:0:1::1").key, of("2001:db8:0:2::1").key);
        assert_ne!((of("2001:db8:1::1").crowd, of("192.0.2.1").crowd), (of("2001:db8:2::1").crowd, of("192.0.3.1").crowd));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
