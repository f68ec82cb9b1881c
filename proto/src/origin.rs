//! Whose an address is, where callers are counted that have proved nothing.

use std::net::{IpAddr, Ipv6Addr};

/// Bits of an IPv6 address that its host does not choose: a network has at least a /64 (RFC 7421).
const NETWORK: u128 = !(u64::MAX as u128);

/// What counts as one caller: an IPv4 address, or the /64 of an IPv6 address, of which any host has as many addresses as it likes.
pub fn of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & NETWORK).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_is_one_origin() {
        // Aim: addresses of one /64 are one, others are not; IPv4 counts by the address, however it is written.
        let origin = |text: &str| of(text.parse().unwrap());
        assert_eq!(origin("2001:db8:0:1::7"), origin("2001:db8:0:1:ffff::"));
        assert_ne!(origin("2001:db8:0:1::7"), origin("2001:db8:0:2::7"));
        assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
        assert_ne!(origin("192.0.2.2"), origin("192.0.2.1"));
    }
}
