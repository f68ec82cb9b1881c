//! Stable addresses: a virtual one for each Service, one of its own for each instance and Gateway. Pure; the same names get the
//! same addresses whatever the order, as long as they do not collide, and an address once given is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

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

/// Which low bits each name got. Kept on disk, so that addresses outlive a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocations {
    /// By `NAMESPACE/SERVICE`.
    services: BTreeMap<String, u32>,
    /// By `NAMESPACE/INSTANCE`, Gateways as `gateway:NAMESPACE/NAME`.
    instances: BTreeMap<String, u32>,
}

/// Who needs an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressNeeds {
    /// Services as `NAMESPACE/NAME`.
    pub services: BTreeSet<String>,
    /// Instances as `NAMESPACE/INSTANCE`, and Gateways by [`gateway_name`].
    pub instances: BTreeSet<String>,
    /// Addresses that people chose themselves; nobody else gets them.
    pub chosen: BTreeSet<IpAddr>,
}

/// The name under which a Gateway's own address is kept.
pub fn gateway_name(namespace: &str, name: &str) -> String {
    format!("{GATEWAY}{namespace}/{name}")
}

/// What names of Gateways begin with.
const GATEWAY: &str = "gateway:";

impl Allocations {
    /// Gives an address to every name that has none yet. Names that are gone lose theirs only when a range is full. Returns
    /// whether anything changed, and the names for which no address was left.
    pub fn allocate(&mut self, ranges: &Ranges, wanted: &AddressNeeds) -> (bool, Vec<String>) {
        let mut left = Vec::new();
        let own = low_bits(ranges.services, &wanted.chosen);
        let mut changed = fill(&mut self.services, &wanted.services, (1, room(ranges.services.0)), own, &mut left);
        let own = low_bits(ranges.instances, &wanted.chosen);
        changed |= fill(&mut self.instances, &wanted.instances, (FIRST_INSTANCE, room(ranges.instances.0)), own, &mut left);
        (changed, left)
    }

    /// Services, instances and Gateways, each by namespace and name, whose address is not what it was.
    pub(super) fn changes(&self, after: &Self) -> [Vec<(String, String)>; 3] {
        let differ = |before: &BTreeMap<String, u32>, after: &BTreeMap<String, u32>| -> Vec<String> {
            let lost = before.keys().filter(|name| !after.contains_key(*name));
            let given = after.iter().filter(|(name, low)| before.get(*name) != Some(low)).map(|(name, _)| name);
            lost.chain(given).cloned().collect()
        };
        let name = |text: &String| text.split_once('/').map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
        let (services, others) = (differ(&self.services, &after.services), differ(&self.instances, &after.instances));
        let gateways = others.iter().filter_map(|text| text.strip_prefix(GATEWAY).map(str::to_owned)).collect::<Vec<_>>();
        let instances = others.iter().filter(|text| !text.starts_with(GATEWAY));
        [services.iter().filter_map(name).collect(), instances.filter_map(name).collect(), gateways.iter().filter_map(name).collect()]
    }

    /// Virtual addresses of a Service, IPv4 first.
    pub fn service(&self, ranges: &Ranges, name: &str) -> Option<[IpAddr; 2]> {
        self.services.get(name).map(|low| addresses(ranges.services, *low))
    }

    /// Addresses of an instance (or, under [`gateway_name`], of a Gateway), IPv4 first.
    pub fn instance(&self, ranges: &Ranges, name: &str) -> Option<[IpAddr; 2]> {
        self.instances.get(name).map(|low| addresses(ranges.instances, *low))
    }
}

/// One past the last usable low bits: the last address of an IPv4 network is for broadcasts.
fn room(range: Ipv4Net) -> u32 {
    let hosts = 1_u64 << (32 - u32::from(range.prefix_len()));
    u32::try_from(hosts.saturating_sub(1)).unwrap_or(u32::MAX)
}

fn addresses((v4, v6): (Ipv4Net, Ipv6Net), low: u32) -> [IpAddr; 2] {
    let first = u32::from(v4.network()).wrapping_add(low);
    let second = u128::from(v6.network()).wrapping_add(u128::from(low));
    [IpAddr::V4(Ipv4Addr::from(first)), IpAddr::V6(Ipv6Addr::from(second))]
}

/// Low bits of those addresses that lie in a pair of ranges.
fn low_bits((v4, v6): (Ipv4Net, Ipv6Net), chosen: &BTreeSet<IpAddr>) -> BTreeSet<u32> {
    let low = |address: &IpAddr| match address {
        IpAddr::V4(address) => v4.contains(address).then(|| u32::from(*address).wrapping_sub(u32::from(v4.network()))),
        IpAddr::V6(address) => {
            let low = u128::from(*address).wrapping_sub(u128::from(v6.network()));
            u32::try_from(low).ok().filter(|_| v6.contains(address))
        }
    };
    chosen.iter().filter_map(low).collect()
}

/// Hash, then probe. The hash alone decides where there is no collision, so the order of arrival hardly ever matters.
fn fill(
    given: &mut BTreeMap<String, u32>,
    wanted: &BTreeSet<String>,
    (first, end): (u32, u32),
    mut taken: BTreeSet<u32>,
    left: &mut Vec<String>,
) -> bool {
    let missing: Vec<&String> = wanted.iter().filter(|name| !given.contains_key(*name)).collect();
    if missing.is_empty() {
        return false;
    }
    let room = end.saturating_sub(first);
    taken.retain(|low| (first..end).contains(low));
    if (given.len() + missing.len() + taken.len()) as u64 > u64::from(room) {
        given.retain(|name, _| wanted.contains(name));
    }
    taken.extend(given.values().copied());
    let mut changed = false;
    for name in missing {
        if taken.len() as u64 >= u64::from(room) {
            left.push(name.clone());
            continue;
        }
        let mut low = first + u32::try_from(xxh3_64(name.as_bytes()) % u64::from(room)).unwrap_or(0);
        while !taken.insert(low) {
            low = if low + 1 >= end { first } else { low + 1 };
        }
        given.insert(name.clone(), low);
        changed = true;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(services: &[&str], instances: &[&str]) -> AddressNeeds {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        AddressNeeds { services: names(services), instances: names(instances), chosen: BTreeSet::new() }
    }

    #[test]
    fn addresses_are_stable_and_twins() {
        // Aim: an address depends on the name, both families share their low bits, and what was given stays.
        let ranges = Ranges::default();
        let mut first = Allocations::default();
        assert_eq!(first.allocate(&ranges, &wanted(&["shop/a", "shop/b"], &["shop/x"])), (true, vec![]));
        let mut second = Allocations::default();
        second.allocate(&ranges, &wanted(&["shop/b"], &[]));
        second.allocate(&ranges, &wanted(&["shop/a", "shop/b"], &["shop/x"]));
        assert_eq!(first, second);
        assert_eq!(second.allocate(&ranges, &wanted(&["shop/a"], &[])), (false, vec![]));
        let chosen = first.service(&ranges, "shop/a").unwrap();
        let mut third = Allocations::default();
        third.allocate(&ranges, &AddressNeeds { chosen: chosen.into(), ..wanted(&["shop/a"], &[]) });
        assert_ne!(third.service(&ranges, "shop/a").unwrap(), chosen);
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
        assert_eq!(book.allocate(&ranges, &wanted(&[], &all)).1, Vec::<String>::new());
        let distinct: BTreeSet<_> = all.iter().map(|name| book.instance(&ranges, name).unwrap()).collect();
        assert_eq!(distinct.len(), 5);
        all.push("b/0");
        assert_eq!(book.allocate(&ranges, &wanted(&[], &all)).1, ["b/0"]);
        assert_eq!(book.allocate(&ranges, &wanted(&[], &["b/0"])), (true, vec![]));
    }
}
