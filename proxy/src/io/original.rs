//! The destination a redirected connection was meant for.

use std::net::{IpAddr, SocketAddr};

use socket2::SockRef;
use tokio::net::TcpStream;

/// Where the client wanted to go before the kernel's redirection, or `None` when the kernel knows of none (the connection was made to
/// this proxy's own port). IPv4-mapped addresses come back as IPv4.
/// `local` is the connection's own address.
pub fn original_destination(stream: &TcpStream, local: SocketAddr) -> Option<SocketAddr> {
    let local = canonical(local);
    let reference = SockRef::from(stream);
    let original = if local.is_ipv4() { reference.original_dst_v4() } else { reference.original_dst_v6() };
    let original = canonical(original.ok()?.as_socket()?);
    // Without redirection the kernel answers with the connection's own destination.
    (original != local).then_some(original)
}

/// IPv4 for IPv4-mapped, and no flow labels or scopes, so that addresses compare.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(_) => address,
        IpAddr::V6(ip) => SocketAddr::new(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4), address.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_become_ipv4() {
        // Aim: one destination has one spelling.
        for (given, wanted) in [("[::ffff:10.0.0.1]:80", "10.0.0.1:80"), ("[fd00::1]:80", "[fd00::1]:80"), ("10.0.0.1:80", "10.0.0.1:80")] {
            assert_eq!(canonical(given.parse().unwrap()), wanted.parse().unwrap());
        }
    }

    #[tokio::test]
    async fn a_direct_connection_has_no_original_destination() {
        // Aim: a client that dials the proxy's own port is not mistaken for a redirected one (no loop).
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        client.unwrap();
        let accepted = accepted.unwrap().0;
        assert_eq!(original_destination(&accepted, accepted.local_addr().unwrap()), None);
    }
}
