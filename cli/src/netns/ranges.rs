//! The address ranges of a mesh on one machine, and what they must not collide with. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use std::path::Path;

use anyhow::bail;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::output::usage;

/// Moves the instances' ranges.
const INSTANCE_FLAG: &str = "--instance-cidr";
/// Moves the Services' ranges.
const SERVICE_FLAG: &str = "--service-cidr";

/// The ranges of contract section 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// Instances.
    pub(crate) instances: Ipv4Net,
    /// Instances, the IPv6 twin.
    pub(crate) instances_v6: Ipv6Net,
    /// Services' virtual addresses.
    pub(crate) services: Ipv4Net,
    /// Services' virtual addresses, the IPv6 twin.
    pub(crate) services_v6: Ipv6Net,
}

impl Default for Ranges {
    fn default() -> Self {
        Self {
            instances: Ipv4Net::new_assert(Ipv4Addr::new(10, 77, 0, 0), 16),
            instances_v6: Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x6d77, 0x77, 0, 0, 0, 0, 0), 64),
            services: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12),
            services_v6: Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x6d77, 0, 0, 0, 0, 0, 0), 108),
        }
    }
}

impl Ranges {
    /// Each range with the flag that moves it.
    pub(crate) fn flags(&self) -> [(&'static str, IpNet); 4] {
        [
            (INSTANCE_FLAG, IpNet::V4(self.instances)),
            (INSTANCE_FLAG, IpNet::V6(self.instances_v6)),
            (SERVICE_FLAG, IpNet::V4(self.services)),
            (SERVICE_FLAG, IpNet::V6(self.services_v6)),
        ]
    }

    /// The bridge's own address and prefix: the first of the instances' range.
    pub(crate) fn bridge(&self) -> [IpNet; 2] {
        let v4 = Ipv4Addr::from_bits(self.instances.network().to_bits() + 1);
        let v6 = Ipv6Addr::from_bits(self.instances_v6.network().to_bits() + 1);
        [
            IpNet::V4(Ipv4Net::new_assert(v4, self.instances.prefix_len())),
            IpNet::V6(Ipv6Net::new_assert(v6, self.instances_v6.prefix_len())),
        ]
    }

    /// The bridge's addresses that this kernel can have: a machine may be without IPv6.
    pub(crate) fn bridge_here(&self) -> Vec<IpNet> {
        self.bridge().into_iter().filter(|address| possible(address.addr())).collect()
    }

    /// The bridge's address of one family.
    pub(crate) fn gateway(&self, like: IpAddr) -> IpAddr {
        let [v4, v6] = self.bridge();
        if like.is_ipv4() { v4.addr() } else { v6.addr() }
    }

    /// An instance's address with the prefix of its range.
    pub(crate) fn on_link(&self, address: IpAddr) -> IpNet {
        match address {
            IpAddr::V4(v4) => IpNet::V4(Ipv4Net::new_assert(v4, self.instances.prefix_len())),
            IpAddr::V6(v6) => IpNet::V6(Ipv6Net::new_assert(v6, self.instances_v6.prefix_len())),
        }
    }

    /// Ranges with what the command line moves: at most one range per family for each.
    ///
    /// # Errors
    /// Two ranges of one family.
    pub(crate) fn moved(mut self, instances: &[IpNet], services: &[IpNet]) -> anyhow::Result<Self> {
        pick(INSTANCE_FLAG, instances, &mut self.instances, &mut self.instances_v6)?;
        pick(SERVICE_FLAG, services, &mut self.services, &mut self.services_v6)?;
        Ok(self)
    }

    /// Refuses ranges that are too small, that overlap one another, or that this machine uses already.
    ///
    /// # Errors
    /// Names both ranges and the flag that moves ours.
    pub(crate) fn check(&self, taken: &[IpNet]) -> anyhow::Result<()> {
        let flags = self.flags();
        for (flag, range) in flags {
            let room = range.max_prefix_len() - range.prefix_len();
            if room < 4 {
                return Err(usage(format!("{flag} {range} is too small: a mesh needs at least 16 addresses there")));
            }
        }
        for (at, (flag, range)) in flags.iter().enumerate() {
            if let Some((other, theirs)) = flags[at + 1..].iter().find(|(_, theirs)| overlap(range, theirs)) {
                return Err(usage(format!("{flag} {range} overlaps {other} {theirs}; give one of them another range")));
            }
            if let Some(theirs) = taken.iter().find(|theirs| overlap(range, theirs)) {
                bail!("the range {range} is taken: this machine has a route to {theirs}; choose another one with {flag}");
            }
        }
        Ok(())
    }
}

/// Whether this kernel has the address's family.
pub(crate) fn possible(address: IpAddr) -> bool {
    address.is_ipv4() || Path::new("/proc/net/if_inet6").exists()
}

fn pick(flag: &str, given: &[IpNet], v4: &mut Ipv4Net, v6: &mut Ipv6Net) -> anyhow::Result<()> {
    let fours = given.iter().filter(|range| range.addr().is_ipv4()).count();
    if fours > 1 || given.len() - fours > 1 {
        return Err(usage(format!("{flag} takes one range per family, for example {flag} 10.78.0.0/16,fd00:6d78::/64")));
    }
    for range in given {
        match range {
            IpNet::V4(range) => *v4 = range.trunc(),
            IpNet::V6(range) => *v6 = range.trunc(),
        }
    }
    Ok(())
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// Aim: a taken range is refused with the flag that moves it; link-local and neighbouring ranges are no reason.
    #[test]
    fn taken_ranges_name_their_flag() {
        let ranges = Ranges::default();
        ranges.check(&nets(&["192.168.0.0/24", "10.78.0.0/16", "fe80::/64", "fd00:6d77:78::/64"])).unwrap();
        for (taken, flag) in [
            ("10.77.3.0/24", "--instance-cidr"),
            ("10.0.0.0/8", "--instance-cidr"),
            ("10.100.0.0/16", "--service-cidr"),
            ("fd00:6d77:77::5/128", "--instance-cidr"),
            ("fd00:6d77::/120", "--service-cidr"),
        ] {
            let said = ranges.check(&nets(&[taken])).unwrap_err().to_string();
            assert!(said.contains(taken) && said.ends_with(flag), "{said}");
        }
    }

    /// Aim: ranges of ours that overlap or hold too few addresses are refused.
    #[test]
    fn own_ranges_make_sense() {
        let overlapping = Ranges { services: "10.77.4.0/24".parse().unwrap(), ..Ranges::default() };
        assert!(overlapping.check(&[]).unwrap_err().to_string().contains("overlaps --service-cidr"));
        let tiny = Ranges { instances: "10.77.0.0/30".parse().unwrap(), ..Ranges::default() };
        assert!(tiny.check(&[]).unwrap_err().to_string().contains("too small"));
    }

    /// Aim: a range given moves its family alone; two of one family are refused.
    #[test]
    fn ranges_move() {
        let moved = Ranges::default().moved(&nets(&["10.78.1.0/16"]), &nets(&["fd01::/108"])).unwrap();
        assert_eq!((moved.instances.to_string(), moved.services_v6.to_string()), ("10.78.0.0/16".to_owned(), "fd01::/108".to_owned()));
        assert_eq!(moved.services, Ranges::default().services);
        assert!(
            Ranges::default().moved(&nets(&["10.78.0.0/16", "10.79.0.0/16"]), &[]).unwrap_err().to_string().contains("--instance-cidr")
        );
    }

    /// Aim: the bridge has the first address of both families.
    #[test]
    fn the_bridge_comes_first() {
        let [v4, v6] = Ranges::default().bridge();
        assert_eq!((v4.to_string(), v6.to_string()), ("10.77.0.1/16".to_owned(), "fd00:6d77:77::1/64".to_owned()));
    }
}
