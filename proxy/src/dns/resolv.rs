//! The resolvers that were there before us.

use std::net::{IpAddr, SocketAddr};

/// Where the machine names its resolvers.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// resolv.conf(5): at most three are used.
const NAMESERVERS_MAX: usize = 3;
/// DNS's own port.
const PORT: u16 = 53;

/// The name servers of a `resolv.conf`; other lines and unreadable addresses are passed over, as libc does.
pub fn nameservers(resolv_conf: &str) -> Vec<SocketAddr> {
    let addresses = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = (words.next() == Some("nameserver")).then(|| words.next()).flatten()?;
        // A zone (`fe80::1%eth0`) names an interface: such a server is reached by the kernel's choice.
        address.split('%').next()?.parse::<IpAddr>().ok()
    });
    addresses.take(NAMESERVERS_MAX).map(|ip| SocketAddr::new(ip, PORT)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: what libc would read, we read; nothing else.
    #[test]
    fn resolv_conf_is_read_as_libc_does() {
        let text = "# nameserver 1.1.1.1\nsearch shop.svc.cluster.local\nnameserver 10.77.0.1\nnameserver\tfd00::1\noptions ndots:5\n\
                    nameserver nonsense\nnameserver fe80::1%eth0\nnameserver 9.9.9.9\n";
        let expected: Vec<SocketAddr> = ["10.77.0.1:53", "[fd00::1]:53", "[fe80::1]:53"].map(|text| text.parse().unwrap()).to_vec();
        assert_eq!(nameservers(text), expected);
        assert!(nameservers("").is_empty());
    }
}
