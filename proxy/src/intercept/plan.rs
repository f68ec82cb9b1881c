//! What to redirect and what to leave alone, and the table that says so. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proto::ports;

use super::table::{Chain, Family, Hook, PacketRule, Table, When};
use super::{DNS_PORT, INBOUND_PORT, OUTBOUND_PORT, TABLE};

/// Ports of the sidecar that are reached directly: inbound itself, metrics, health.
const OWN_PORTS: [u16; 3] = [INBOUND_PORT, ports::METRICS, ports::HEALTH];
/// DNS.
const DNS: u16 = 53;

/// Which address families are redirected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    /// IPv4 and IPv6.
    #[default]
    Both,
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
}

/// The rules of one namespace as a value. The default redirects every TCP connection, no DNS question, and exempts nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interception {
    /// Traffic of this uid is left alone: the proxy's own.
    pub exempt_uid: Option<u32>,
    /// Traffic with this mark is left alone: the proxy's own where it has no uid of its own, and probes.
    pub exempt_mark: Option<u32>,
    /// TCP ports that leave untouched.
    pub exclude_outbound_ports: BTreeSet<u16>,
    /// TCP ports that arrive untouched.
    pub exclude_inbound_ports: BTreeSet<u16>,
    /// Destinations that leave untouched. Questions to [`Interception::resolvers`] are taken all the same.
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Which families.
    pub families: Families,
    /// The resolvers that the namespace's programs ask: what goes to their port 53, by UDP and TCP, is the sidecar's to answer. Port 53
    /// of anything else is a Service like any other.
    pub resolvers: Vec<IpAddr>,
}

impl Interception {
    /// The table. First match wins: exemptions, then the resolvers (also those on loopback), then loopback, then the rest.
    pub fn table(&self) -> Table {
        let chains = vec![
            Chain { name: "output", hook: Hook::NatOutput, rules: self.output() },
            Chain { name: "prerouting", hook: Hook::NatPrerouting, rules: self.prerouting() },
        ];
        Table { name: TABLE.to_owned(), family: self.family(), chains }
    }

    fn family(&self) -> Family {
        match self.families {
            Families::Both => Family::Inet,
            Families::Ipv4 => Family::Ipv4,
            Families::Ipv6 => Family::Ipv6,
        }
    }

    fn output(&self) -> Vec<PacketRule> {
        let mut rules = Vec::new();
        rules.extend(self.exempt_mark.map(|mark| When::any().mark(mark).leave()));
        rules.extend(self.exempt_uid.map(|uid| When::any().uid(uid).leave()));
        rules.extend(self.exclude_outbound_ports.iter().map(|port| When::any().tcp_port(*port).leave()));
        for resolver in self.resolvers.iter().filter(|resolver| self.serves(**resolver)) {
            let to = || When::within(self.family()).destination(*resolver, u8::MAX);
            rules.push(to().udp_port(DNS).redirect(DNS_PORT));
            rules.push(to().tcp_port(DNS).redirect(DNS_PORT));
        }
        let loopback = [(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8), (IpAddr::V6(Ipv6Addr::LOCALHOST), 128)];
        let excluded = self.exclude_outbound_cidrs.iter().map(|net| (net.network(), net.prefix_len()));
        for (address, prefix) in loopback.into_iter().chain(excluded) {
            if self.serves(address) {
                rules.push(When::within(self.family()).destination(address, prefix).leave());
            }
        }
        rules.push(When::any().tcp().redirect(OUTBOUND_PORT));
        rules
    }

    fn prerouting(&self) -> Vec<PacketRule> {
        let mut rules = vec![When::any().input("lo").leave()];
        let ports: BTreeSet<u16> = self.exclude_inbound_ports.iter().copied().chain(OWN_PORTS).collect();
        rules.extend(ports.into_iter().map(|port| When::any().tcp_port(port).leave()));
        rules.push(When::any().tcp().redirect(INBOUND_PORT));
        rules
    }

    fn serves(&self, address: IpAddr) -> bool {
        match self.families {
            Families::Both => true,
            Families::Ipv4 => address.is_ipv4(),
            Families::Ipv6 => address.is_ipv6(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(chain: &Chain) -> Vec<&str> {
        chain.rules.iter().map(|rule| rule.text.as_str()).collect()
    }

    /// Aim: the order is the meaning: exemptions, excluded ports, DNS, loopback, excluded ranges, and last the redirect.
    #[test]
    fn the_rules_in_order() {
        let plan = Interception {
            exempt_uid: Some(1337),
            exempt_mark: Some(0x6d77),
            exclude_outbound_ports: [9000, 22].into(),
            exclude_inbound_ports: [9001].into(),
            exclude_outbound_cidrs: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            resolvers: vec!["10.77.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            ..Interception::default()
        };
        let table = plan.table();
        assert_eq!((table.name.as_str(), table.family), ("meshwright", Family::Inet));
        assert_eq!(
            texts(&table.chains[0]),
            [
                "meta mark 0x00006d77 return",
                "meta skuid 1337 return",
                "tcp dport 22 return",
                "tcp dport 9000 return",
                "ip daddr 10.77.0.1 udp dport 53 redirect to :15053",
                "ip daddr 10.77.0.1 tcp dport 53 redirect to :15053",
                "ip6 daddr fd00::1 udp dport 53 redirect to :15053",
                "ip6 daddr fd00::1 tcp dport 53 redirect to :15053",
                "ip daddr 127.0.0.0/8 return",
                "ip6 daddr ::1 return",
                "ip daddr 192.0.2.0/24 return",
                "ip6 daddr 2001:db8::/32 return",
                "meta l4proto tcp redirect to :15001",
            ]
        );
        assert_eq!(
            texts(&table.chains[1]),
            [
                "iifname \"lo\" return",
                "tcp dport 9001 return",
                "tcp dport 15006 return",
                "tcp dport 15020 return",
                "tcp dport 15021 return",
                "meta l4proto tcp redirect to :15006",
            ]
        );
    }

    /// Aim: one family alone has no rule of the other, neither for ranges nor for resolvers.
    #[test]
    fn one_family_alone() {
        let plan = Interception {
            families: Families::Ipv6,
            resolvers: vec!["10.77.0.1".parse().unwrap()],
            exclude_outbound_cidrs: vec!["192.0.2.0/24".parse().unwrap()],
            ..Interception::default()
        };
        let table = plan.table();
        assert_eq!(table.family, Family::Ipv6);
        assert_eq!(texts(&table.chains[0]), ["ip6 daddr ::1 return", "meta l4proto tcp redirect to :15001"]);
    }
}
