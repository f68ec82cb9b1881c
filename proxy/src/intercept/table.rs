//! An nf_tables table as a value: chains with their hook, rules with the text a person reads. No I/O.

use std::net::IpAddr;

use super::expr::{Base, Expr, Meta};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The table's address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// Both.
    Inet = 1,
    /// IPv4 only.
    Ipv4 = 2,
    /// IPv6 only.
    Ipv6 = 10,
}

impl Family {
    /// Every family that a table of ours may have.
    pub const ALL: [Self; 3] = [Self::Inet, Self::Ipv4, Self::Ipv6];
}

/// Where a base chain hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Destination NAT of what arrives.
    NatPrerouting,
    /// Destination NAT of what this namespace sends.
    NatOutput,
    /// Source NAT of what leaves.
    NatPostrouting,
    /// Verdicts on what this namespace sends, after NAT.
    FilterOutput,
}

impl Hook {
    /// Chain type, hook number and priority as the kernel names them.
    pub fn place(self) -> (&'static str, u32, i32) {
        match self {
            Self::NatPrerouting => ("nat", 0, -100),
            Self::NatOutput => ("nat", 3, -100),
            Self::NatPostrouting => ("nat", 4, 100),
            Self::FilterOutput => ("filter", 3, 0),
        }
    }
}

/// A whole table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name; replacing happens by name.
    pub name: String,
    /// Its family.
    pub family: Family,
    /// In order.
    pub chains: Vec<Chain>,
}

/// A base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Its hook.
    pub hook: Hook,
    /// In order.
    pub rules: Vec<PacketRule>,
}

/// A rule: every expression must hold, the last one acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketRule {
    /// As `nft` would print it.
    pub text: String,
    /// In order.
    pub exprs: Vec<Expr>,
}

/// Builds a [`PacketRule`]: conditions, then one action that ends it.
#[derive(Clone, Debug)]
pub struct When {
    family: Family,
    words: Vec<String>,
    exprs: Vec<Expr>,
}

impl When {
    /// No condition yet: every packet of a chain in an `inet` table.
    pub fn any() -> Self {
        Self::within(Family::Inet)
    }

    /// No condition yet, in a table of that family. Where the table has only one, conditions need not ask for it.
    pub fn within(family: Family) -> Self {
        Self { family, words: Vec::new(), exprs: Vec::new() }
    }

    fn and(mut self, words: String, exprs: impl IntoIterator<Item = Expr>) -> Self {
        self.words.push(words);
        self.exprs.extend(exprs);
        self
    }

    /// Made by a process of this uid (in the user namespace that owns the network namespace).
    pub fn uid(self, uid: u32) -> Self {
        self.and(format!("meta skuid {uid}"), [Expr::Load(Meta::SocketUid), Expr::equal_host(uid)])
    }

    /// Carries this mark.
    pub fn mark(self, mark: u32) -> Self {
        self.and(format!("meta mark {mark:#010x}"), [Expr::Load(Meta::Mark), Expr::equal_host(mark)])
    }

    /// Arrived on the interface of this name (at most 15 bytes, the kernel's own bound).
    pub fn input(self, name: &str) -> Self {
        let mut padded = [0_u8; 16];
        name.bytes().take(15).enumerate().for_each(|(at, byte)| padded[at] = byte);
        self.and(format!("iifname \"{name}\""), [Expr::Load(Meta::InputName), Expr::Equal(padded.to_vec())])
    }

    /// TCP.
    pub fn tcp(self) -> Self {
        self.and("meta l4proto tcp".to_owned(), [Expr::Load(Meta::Transport), Expr::Equal(vec![TCP])])
    }

    /// TCP to this port.
    pub fn tcp_port(self, port: u16) -> Self {
        self.transport_port("tcp", TCP, port)
    }

    /// UDP to this port.
    pub fn udp_port(self, port: u16) -> Self {
        self.transport_port("udp", UDP, port)
    }

    fn transport_port(self, name: &str, number: u8, port: u16) -> Self {
        self.and(
            format!("{name} dport {port}"),
            [
                Expr::Load(Meta::Transport),
                Expr::Equal(vec![number]),
                Expr::Payload { base: Base::Transport, offset: 2, len: 2 },
                Expr::equal_port(port),
            ],
        )
    }

    /// To an address of this range; `prefix` beyond the family's width means the whole address.
    pub fn destination(self, address: IpAddr, prefix: u8) -> Self {
        let (word, family, offset, octets) = match address {
            IpAddr::V4(v4) => ("ip", Family::Ipv4, 16, v4.octets().to_vec()),
            IpAddr::V6(v6) => ("ip6", Family::Ipv6, 24, v6.octets().to_vec()),
        };
        let mask = mask(octets.len(), prefix);
        let masked = octets.iter().zip(&mask).map(|(octet, bits)| octet & bits).collect();
        let len = u32::try_from(octets.len()).unwrap_or(16);
        let whole = mask.iter().all(|bits| *bits == 0xff);
        let text = if whole { format!("{word} daddr {address}") } else { format!("{word} daddr {address}/{prefix}") };
        let mut exprs = Vec::new();
        if self.family == Family::Inet {
            exprs.extend([Expr::Load(Meta::Family), Expr::Equal(vec![family as u8])]);
        }
        exprs.push(Expr::Payload { base: Base::Network, offset, len });
        if !whole {
            exprs.push(Expr::Mask(mask));
        }
        exprs.push(Expr::Equal(masked));
        self.and(text, exprs)
    }

    /// One time in `modulus`.
    pub fn one_in(self, modulus: u32) -> Self {
        self.and(format!("numgen random mod {modulus} 0"), [Expr::Random { modulus }, Expr::equal_host(0)])
    }

    /// Ends: the chain is left.
    pub fn leave(self) -> PacketRule {
        self.end("return".to_owned(), Expr::Return)
    }

    /// Ends: the connection goes to a local port.
    pub fn redirect(self, port: u16) -> PacketRule {
        self.end(format!("redirect to :{port}"), Expr::Redirect(port))
    }

    /// Ends: the connection goes elsewhere.
    pub fn dnat(self, to: std::net::SocketAddr) -> PacketRule {
        self.end(format!("dnat to {to}"), Expr::Dnat(to.ip(), to.port()))
    }

    /// Ends: the connection is refused.
    pub fn reset(self) -> PacketRule {
        self.end("reject with tcp reset".to_owned(), Expr::ResetTcp)
    }

    /// Ends: leaves with the interface's own address.
    pub fn masquerade(self) -> PacketRule {
        self.end("masquerade".to_owned(), Expr::Masquerade)
    }

    fn end(self, words: String, expr: Expr) -> PacketRule {
        let done = self.and(words, [expr]);
        PacketRule { text: done.words.join(" "), exprs: done.exprs }
    }
}

fn mask(len: usize, prefix: u8) -> Vec<u8> {
    (0..len)
        .map(|at| {
            let bits = usize::from(prefix).saturating_sub(at * 8).min(8);
            // `bits` is at most 8, so the shift of a 16-bit value cannot overflow.
            (0xff00_u16 >> bits) as u8
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: prefix lengths become the right masks, also at and beyond the edges.
    #[test]
    fn masks() {
        for (len, prefix, expected) in [
            (4, 0, vec![0, 0, 0, 0]),
            (4, 8, vec![255, 0, 0, 0]),
            (4, 12, vec![255, 240, 0, 0]),
            (4, 32, vec![255; 4]),
            (4, 200, vec![255; 4]),
            (16, 108, [vec![255; 13], vec![240, 0, 0]].concat()),
        ] {
            assert_eq!(mask(len, prefix), expected, "/{prefix}");
        }
    }

    /// Aim: the address is masked before it is compared, so 10.1.2.3/8 means 10.0.0.0/8.
    #[test]
    fn destinations_are_masked() {
        let rule = When::any().destination("10.1.2.3".parse().unwrap(), 8).leave();
        assert!(rule.exprs.contains(&Expr::Equal(vec![10, 0, 0, 0])));
        assert_eq!(rule.text, "ip daddr 10.1.2.3/8 return");
    }
}
