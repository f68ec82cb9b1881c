//! How many clients a port takes in: at once, of one address, and in a second. One count for all workers of a proxy, which outlives epochs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Moment;

/// Bits of an IPv6 address that stand for one client.
const IPV6_PREFIX_BITS: u32 = 64;

/// How many may come; 0: any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdmissionBounds {
    /// At once.
    pub max: u32,
    /// At once, of one address.
    pub per_address: u32,
    /// New ones in a second; as many may come together.
    pub new_per_second: u32,
}

/// The count of one port.
#[derive(Debug, Default)]
pub struct Admission {
    bounds: AdmissionBounds,
    counts: Arc<Counts>,
}

/// See [`Admission`].
#[derive(Debug, Default)]
struct Counts {
    open: AtomicU32,
    /// Only of those who are here.
    addresses: Mutex<HashMap<u128, u32>>,
    /// Tokens for new ones, and as of when.
    fresh: Mutex<Option<(f64, Moment)>>,
}

/// Why a client is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdmitted {
    /// As many are here as may be.
    Full,
    /// As many of its address are.
    Address,
    /// As many came in this second as may.
    Rate,
}

impl NotAdmitted {
    /// For the log and for metrics.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Full => "max",
            Self::Address => "per_address",
            Self::Rate => "new_per_second",
        }
    }
}

/// A client that was taken in; dropping it gives its place back.
#[derive(Debug)]
pub struct Admitted {
    counts: Arc<Counts>,
    /// Where addresses are counted.
    address: Option<u128>,
}

impl Admission {
    /// A count that begins.
    pub fn new(bounds: AdmissionBounds) -> Self {
        Self { bounds, counts: Arc::default() }
    }

    /// The same count under other bounds.
    pub fn rebound(&self, bounds: AdmissionBounds) -> Self {
        Self { bounds, counts: Arc::clone(&self.counts) }
    }

    /// Its bounds.
    pub const fn bounds(&self) -> AdmissionBounds {
        self.bounds
    }

    /// Clients that are here.
    pub fn open(&self) -> u32 {
        self.counts.open.load(Ordering::Relaxed)
    }

    /// Takes a client in.
    ///
    /// # Errors
    /// A bound is reached; nothing was counted, but a token of this second where only the others are.
    pub fn enter(&self, client: IpAddr, now: Moment) -> Result<Admitted, NotAdmitted> {
        let AdmissionBounds { max, per_address, new_per_second } = self.bounds;
        if new_per_second > 0 && !self.counts.is_within_rate(new_per_second, now) {
            return Err(NotAdmitted::Rate);
        }
        let before = self.counts.open.fetch_add(1, Ordering::Relaxed);
        let mut admitted = Admitted { counts: Arc::clone(&self.counts), address: None };
        if max > 0 && before >= max {
            return Err(NotAdmitted::Full);
        }
        if per_address > 0 {
            let key = key(client);
            let mut addresses = self.counts.addresses.lock().unwrap_or_else(PoisonError::into_inner);
            let count = addresses.entry(key).or_default();
            if *count >= per_address {
                return Err(NotAdmitted::Address);
            }
            *count += 1;
            admitted.address = Some(key);
        }
        Ok(admitted)
    }
}

impl Counts {
    fn is_within_rate(&self, per_second: u32, now: Moment) -> bool {
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        let most = f64::from(per_second);
        let tokens = fresh.map_or(most, |(tokens, at)| (tokens + now.since(at).as_secs_f64() * most).min(most));
        let taken = tokens >= 1.0;
        *fresh = Some((if taken { tokens - 1.0 } else { tokens }, now));
        taken
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.counts.open.fetch_sub(1, Ordering::Relaxed);
        let Some(key) = self.address else { return };
        let mut addresses = self.counts.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&key);
            }
        }
    }
}

fn key(client: IpAddr) -> u128 {
    match client.to_canonical() {
        // No IPv6 network ends in its own lower half.
        IpAddr::V4(v4) => u128::from(u32::from(v4)) | 1 << 63,
        IpAddr::V6(v6) => u128::from(v6) >> (128 - IPV6_PREFIX_BITS) << (128 - IPV6_PREFIX_BITS),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn bounds(max: u32, per_address: u32, new_per_second: u32) -> Admission {
        Admission::new(AdmissionBounds { max, per_address, new_per_second })
    }

    fn at(millis: u64) -> Moment {
        Moment::after_start(Duration::from_millis(millis))
    }

    fn enter(admission: &Admission, client: &str) -> Result<Admitted, NotAdmitted> {
        admission.enter(client.parse().unwrap(), at(0))
    }

    #[test]
    fn places_come_back() {
        // Aim: at the bound nobody is let in, nothing that was refused counts, and who leaves makes room.
        let admission = bounds(2, 0, 0);
        let (one, two) = (enter(&admission, "192.0.2.1").unwrap(), enter(&admission, "192.0.2.1").unwrap());
        assert_eq!(enter(&admission, "192.0.2.2").unwrap_err(), NotAdmitted::Full);
        assert_eq!(admission.open(), 2);
        drop(one);
        let three = enter(&admission, "192.0.2.3").unwrap();
        drop((two, three));
        assert_eq!(admission.open(), 0);
    }

    #[test]
    fn an_ipv6_network_is_one_client() {
        // Aim: one address of IPv4, one /64 of IPv6; others do not notice, and nothing is kept of who has gone.
        let admission = bounds(0, 1, 0);
        let kept = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1"].map(|client| enter(&admission, client).unwrap());
        for client in ["192.0.2.1", "::ffff:192.0.2.2", "2001:db8::2", "2001:db8:0:1:ffff::"] {
            assert_eq!(enter(&admission, client).unwrap_err(), NotAdmitted::Address, "{client}");
        }
        drop(kept);
        assert!(admission.counts.addresses.lock().unwrap().is_empty());
        assert_eq!(admission.open(), 0);
    }

    #[test]
    fn new_ones_come_at_a_rate() {
        // Aim: as many at once as in a second, then one for each part of it; other bounds keep the count.
        let admission = bounds(0, 0, 10);
        let client = "192.0.2.1".parse().unwrap();
        assert_eq!((0..20).filter(|_| admission.enter(client, at(0)).is_ok()).count(), 10);
        assert_eq!((0..20).filter(|_| admission.enter(client, at(300)).is_ok()).count(), 3);
        let kept = admission.enter(client, at(1000)).unwrap();
        let other = admission.rebound(AdmissionBounds { max: 1, ..AdmissionBounds::default() });
        assert_eq!(other.enter(client, at(1000)).unwrap_err(), NotAdmitted::Full);
        drop(kept);
        assert!(other.enter(client, at(1000)).is_ok());
    }
}
