//! Stable addresses: a virtual one for each Service, one of its own for each instance and Gateway. Pure; the same names get the
//! same addresses whatever the order, as long as they do not collide, and an address once given is kept.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::sorted::Sorted;

/// Where addresses come from. Within one pair of ranges, both families share their low bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges {
    /// Virtual addresses of Services.
    pub services: (Ipv4Net, Ipv6Net),
    /// Addresses of instances and Gateways; the first is the bridge's.
    pub instances: (Ipv4Net, Ipv6Net),
}

impl Default for Ranges {
    fn default() -> Self {
        let v4 = |a, b, bits| Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), bits);
        Self {
            services: (v4(10, 96, 12), Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x6d77, 0, 0, 0, 0, 0, 0), 108)),
            instances: (v4(10, 77, 16), Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x6d77, 0x77, 0, 0, 0, 0, 0), 64)),
        }
    }
}

impl Ranges {
    /// Whether an address of that choice can be a Service's: packets for it find their way out of an instance, and nobody else has it.
    pub fn serve(&self, address: &IpAddr) -> bool {
        let within = |(v4, v6): (Ipv4Net, Ipv6Net)| match address {
            IpAddr::V4(address) => v4.contains(address).then(|| u128::from(u32::from(*address) - u32::from(v4.network()))),
            IpAddr::V6(address) => v6.contains(address).then(|| u128::from(*address) - u128::from(v6.network())),
        };
        within(self.services).is_some_and(|low| low > 0) || within(self.instances).is_some_and(|low| low >= u128::from(FIRST_INSTANCE))
    }
}

/// Low bits below this belong to the fabric itself (bridge, relays) or to nobody.
const FIRST_INSTANCE: u32 = 10;

/// Which low bits each name got. Kept on disk, so that addresses outlive a restart. A clone shares all that is not changed later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocations {
    /// By `NAMESPACE/SERVICE`.
    services: Pool,
    /// By `NAMESPACE/INSTANCE`, Gateways as `gateway:NAMESPACE/NAME`.
    instances: Pool,
}

/// The low bits of one pair of ranges. Written down as the names with their low bits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Sorted<String, u32>", into = "Sorted<String, u32>")]
struct Pool {
    given: Sorted<String, u32>,
    /// By how many low bits are taken: by whoever was given them, and by whoever chose such an address.
    taken: Sorted<u32, usize>,
}

/// Who needs an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressNeeds {
    /// Services as `NAMESPACE/NAME`.
    pub services: BTreeSet<String>,
    /// Instances as `NAMESPACE/INSTANCE`, and Gateways by [`gateway_name`].
    pub instances: BTreeSet<String>,
}

/// The name under which a Gateway's own address is kept.
pub fn gateway_name(namespace: &str, name: &str) -> String {
    format!("{GATEWAY}{namespace}/{name}")
}

/// What names of Gateways begin with.
const GATEWAY: &str = "gateway:";

impl Allocations {
    /// Whether all of these can have an address, and nobody loses one for it.
    pub(super) fn have_room(&self, ranges: &Ranges, wanted: &AddressNeeds) -> bool {
        let (services, instances) = (ends(ranges.services, 1), ends(ranges.instances, FIRST_INSTANCE));
        self.services.has_room(&wanted.services, services) && self.instances.has_room(&wanted.instances, instances)
    }

    /// Gives an address to each of these that has none yet. Where a range is full, names that are not wanted lose theirs: then these must
    /// be all that are. Returns the names for which no address was left.
    pub fn allocate(&mut self, ranges: &Ranges, wanted: &AddressNeeds) -> BTreeSet<String> {
        let mut left = self.services.fill(&wanted.services, ends(ranges.services, 1));
        left.extend(self.instances.fill(&wanted.instances, ends(ranges.instances, FIRST_INSTANCE)));
        left
    }

    /// Somebody chose that address: nobody is given it from now on.
    pub(super) fn choose(&mut self, ranges: &Ranges, address: &IpAddr) {
        self.claim(ranges, address, 1);
    }

    /// One of those who chose that address is gone.
    pub(super) fn release(&mut self, ranges: &Ranges, address: &IpAddr) {
        self.claim(ranges, address, -1);
    }

    fn claim(&mut self, ranges: &Ranges, address: &IpAddr, count: isize) {
        for (pool, range, first) in [(&mut self.services, ranges.services, 1), (&mut self.instances, ranges.instances, FIRST_INSTANCE)] {
            let (first, end) = ends(range, first);
            if let Some(low) = low_bits(range, address).filter(|low| (first..end).contains(low)) {
                pool.taken.edit(&low, |claims| *claims = claims.saturating_add_signed(count));
            }
        }
    }

    /// Services, instances and Gateways, each by namespace and name, whose address is not what it was.
    pub(super) fn changes(&self, after: &Self) -> [Vec<(String, String)>; 3] {
        let differ = |before: &Pool, after: &Pool| -> Vec<String> {
            before.given.changes(&after.given).into_iter().map(|(name, ..)| name.clone()).collect()
        };
        let name = |text: &String| text.split_once('/').map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
        let (services, others) = (differ(&self.services, &after.services), differ(&self.instances, &after.instances));
        let gateways = others.iter().filter_map(|text| text.strip_prefix(GATEWAY).map(str::to_owned)).collect::<Vec<_>>();
        let instances = others.iter().filter(|text| !text.starts_with(GATEWAY));
        [services.iter().filter_map(name).collect(), instances.filter_map(name).collect(), gateways.iter().filter_map(name).collect()]
    }

    /// Whether no address was given or taken back since one of them was the clone of the other.
    pub fn is_same(&self, other: &Self) -> bool {
        self.services.given.is_same(&other.services.given) && self.instances.given.is_same(&other.instances.given)
    }

    /// Virtual addresses of a Service, IPv4 first.
    pub fn service(&self, ranges: &Ranges, name: &str) -> Option<[IpAddr; 2]> {
        self.services.low(name).map(|low| addresses(ranges.services, low))
    }

    /// Addresses of an instance (or, under [`gateway_name`], of a Gateway), IPv4 first.
    pub fn instance(&self, ranges: &Ranges, name: &str) -> Option<[IpAddr; 2]> {
        self.instances.low(name).map(|low| addresses(ranges.instances, low))
    }
}

impl From<Sorted<String, u32>> for Pool {
    fn from(given: Sorted<String, u32>) -> Self {
        let mut taken = Sorted::<u32, usize>::default();
        given.values().for_each(|low| taken.edit(low, |claims| *claims += 1));
        Self { given, taken }
    }
}

impl From<Pool> for Sorted<String, u32> {
    fn from(pool: Pool) -> Self {
        pool.given
    }
}

impl Pool {
    fn low(&self, name: &str) -> Option<u32> {
        self.given.get(name).copied()
    }

    fn missing<'a>(&self, wanted: &'a BTreeSet<String>) -> Vec<&'a String> {
        wanted.iter().filter(|name| !self.given.contains_key(*name)).collect()
    }

    fn has_room(&self, wanted: &BTreeSet<String>, (first, end): (u32, u32)) -> bool {
        let missing = self.missing(wanted).len();
        missing == 0 || (self.taken.len() + missing) as u64 <= u64::from(end.saturating_sub(first))
    }

    /// Hash, then probe. The hash alone decides where there is no collision, so the order of arrival hardly ever matters.
    fn fill(&mut self, wanted: &BTreeSet<String>, (first, end): (u32, u32)) -> BTreeSet<String> {
        let missing = self.missing(wanted);
        let room = end.saturating_sub(first);
        if !self.has_room(wanted, (first, end)) {
            let dead: Vec<String> = self.given.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
            dead.iter().for_each(|name| self.take_back(name));
        }
        let mut left = BTreeSet::new();
        for name in missing {
            if self.taken.len() as u64 >= u64::from(room) {
                left.insert(name.clone());
                continue;
            }
            let mut low = first + u32::try_from(xxh3_64(name.as_bytes()) % u64::from(room)).unwrap_or(0);
            while self.taken.contains_key(&low) {
                low = if low + 1 >= end { first } else { low + 1 };
            }
            self.taken.insert(low, 1);
            self.given.insert(name.clone(), low);
        }
        left
    }

    fn take_back(&mut self, name: &String) {
        if let Some(low) = self.given.get(name).copied() {
            self.given.remove(name);
            self.taken.edit(&low, |claims| *claims = claims.saturating_sub(1));
        }
    }
}

/// The first usable low bits of a pair of ranges, and one past the last: the last address of an IPv4 network is for broadcasts.
fn ends((v4, _): (Ipv4Net, Ipv6Net), first: u32) -> (u32, u32) {
    let hosts = 1_u64 << (32 - u32::from(v4.prefix_len()));
    (first, u32::try_from(hosts.saturating_sub(1)).unwrap_or(u32::MAX))
}

fn addresses((v4, v6): (Ipv4Net, Ipv6Net), low: u32) -> [IpAddr; 2] {
    let first = u32::from(v4.network()).wrapping_add(low);
    let second = u128::from(v6.network()).wrapping_add(u128::from(low));
    [IpAddr::V4(Ipv4Addr::from(first)), IpAddr::V6(Ipv6Addr::from(second))]
}

/// Low bits of an address that lies in a pair of ranges.
fn low_bits((v4, v6): (Ipv4Net, Ipv6Net), address: &IpAddr) -> Option<u32> {
    match address {
        IpAddr::V4(address) => v4.contains(address).then(|| u32::from(*address).wrapping_sub(u32::from(v4.network()))),
        IpAddr::V6(address) => {
            let low = u128::from(*address).wrapping_sub(u128::from(v6.network()));
            u32::try_from(low).ok().filter(|_| v6.contains(address))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(services: &[&str], instances: &[&str]) -> AddressNeeds {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        AddressNeeds { services: names(services), instances: names(instances) }
    }

    #[test]
    fn addresses_are_stable_and_twins() {
        // Aim: an address depends on the name, both families share their low bits, and what was given stays.
        let ranges = Ranges::default();
        let mut first = Allocations::default();
        assert_eq!(first.allocate(&ranges, &wanted(&["shop/a", "shop/b"], &["shop/x"])), BTreeSet::new());
        let mut second = Allocations::default();
        second.allocate(&ranges, &wanted(&["shop/b"], &[]));
        second.allocate(&ranges, &wanted(&["shop/a", "shop/b"], &["shop/x"]));
        assert_eq!(first, second);
        let before = second.clone();
        assert_eq!(second.allocate(&ranges, &wanted(&["shop/a"], &[])), BTreeSet::new());
        assert!(second.is_same(&before) && !second.is_same(&Allocations::default()));
        let chosen = first.service(&ranges, "shop/a").unwrap();
        let mut third = Allocations::default();
        for twin in chosen {
            let mut only = Allocations::default();
            only.choose(&ranges, &twin);
            third.choose(&ranges, &twin);
            only.allocate(&ranges, &wanted(&["shop/a"], &[]));
            assert_ne!(only.service(&ranges, "shop/a").unwrap(), chosen);
        }
        third.release(&ranges, &chosen[0]);
        third.release(&ranges, &chosen[1]);
        third.allocate(&ranges, &wanted(&["shop/a"], &[]));
        assert_eq!(third.service(&ranges, "shop/a").unwrap(), chosen, "nobody has chosen it any more");
        let [IpAddr::V4(v4), IpAddr::V6(v6)] = first.instance(&ranges, "shop/x").unwrap() else { panic!("one of each family") };
        assert!(ranges.instances.0.contains(&v4) && ranges.instances.1.contains(&v6));
        assert_eq!(u128::from(u32::from(v4) & 0xffff), u128::from(v6) & 0xffff);
        assert!(ranges.services.0.contains(&match first.service(&ranges, "shop/a").unwrap()[0] {
            IpAddr::V4(v4) => v4,
            IpAddr::V6(_) => panic!("IPv4 first"),
        }));
    }

    #[test]
    fn a_full_range_forgets_the_dead_and_names_who_gets_nothing() {
        // Aim: collisions are probed away; a small range is used to its last address; nobody shares one.
        let ranges =
            Ranges { instances: (Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 28), Ranges::default().instances.1), ..Ranges::default() };
        let mut book = Allocations::default();
        let mut all = vec!["a/0", "a/1", "a/2", "a/3", "a/4"];
        assert_eq!(book.allocate(&ranges, &wanted(&[], &all)), BTreeSet::new());
        let distinct: BTreeSet<_> = all.iter().map(|name| book.instance(&ranges, name).unwrap()).collect();
        assert_eq!(distinct.len(), 5);
        all.push("b/0");
        assert!(!book.have_room(&ranges, &wanted(&[], &all)) && book.have_room(&ranges, &wanted(&[], &["a/0"])));
        assert_eq!(book.allocate(&ranges, &wanted(&[], &all)), BTreeSet::from(["b/0".to_owned()]));
        assert_eq!(book.allocate(&ranges, &wanted(&[], &["b/0"])), BTreeSet::new());
        assert_eq!(serde_json::to_string(&book).unwrap().matches("/0").count(), 1, "whoever was not wanted is forgotten");
    }
}
