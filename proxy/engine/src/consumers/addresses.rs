//! Long lists of addresses: sorted ranges that do not meet, one search each.

use std::net::IpAddr;

use ipnet::IpNet;

/// Most ranges of one list.
pub const LISTED_MAX: usize = 1_000_000;

/// See the module.
#[derive(Debug, Default)]
pub struct AddressList {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl AddressList {
    /// Ranges, one a line; empty lines and what follows `#` are skipped.
    ///
    /// # Errors
    /// Names the first line that is neither a range nor an address.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut list = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let range = line.parse::<IpNet>().or_else(|_| line.parse::<IpAddr>().map(IpNet::from));
            let range = range.map_err(|_| {
                let shown: String = line.chars().take(64).collect();
                format!("line {}: `{}` is neither a range nor an address", number + 1, shown.escape_debug())
            })?;
            match range {
                IpNet::V4(range) => list.v4.push((range.network().into(), range.broadcast().into())),
                IpNet::V6(range) => match range.network().to_ipv4_mapped().zip(range.broadcast().to_ipv4_mapped()) {
                    Some((first, last)) => list.v4.push((first.into(), last.into())),
                    None => list.v6.push((range.network().into(), range.broadcast().into())),
                },
            }
            if list.v4.len() + list.v6.len() > LISTED_MAX {
                return Err(format!("holds more than {LISTED_MAX} ranges"));
            }
        }
        (list.v4, list.v6) = (joined(list.v4), joined(list.v6));
        Ok(list)
    }

    /// Whether one of the ranges holds an address. An IPv4 caller at an IPv6 socket is one of IPv4.
    pub fn holds(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(v4) => within(&self.v4, v4.into()),
            IpAddr::V6(v6) => within(&self.v6, v6.into()),
        }
    }
}

fn joined<T: Ord + Copy>(mut ranges: Vec<(T, T)>) -> Vec<(T, T)> {
    ranges.sort_unstable();
    let mut joined: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match joined.last_mut() {
            Some((_, end)) if first <= *end => *end = (*end).max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

fn within<T: Ord + Copy>(ranges: &[(T, T)], address: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= address);
    after.checked_sub(1).and_then(|place| ranges.get(place)).is_some_and(|(_, last)| address <= *last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_holds_what_its_ranges_hold() {
        // Aim: nested, touching and mapped ranges, both families, comments; bounds are inside, their neighbours are not.
        let list = AddressList::read("10.0.0.0/8 # own\n10.1.0.0/16\n\n192.0.2.7\n2001:db8::/32\n::ffff:198.51.100.0/120\n").unwrap();
        for (address, held) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("::ffff:10.9.9.9", true),
            ("198.51.100.9", true),
            ("2001:db8:ffff::1", true),
            ("2001:db9::", false),
        ] {
            assert_eq!(list.holds(address.parse().unwrap()), held, "{address}");
        }
        let wrong = AddressList::read("10.0.0.0/8\nx").unwrap_err();
        assert!(wrong.contains("line 2: `x`"), "{wrong}");
    }
}
