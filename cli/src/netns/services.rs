//! The kube-proxy role for instances outside the mesh: virtual addresses become ready endpoints by nf_tables in the instance's own
//! namespace. Pure up to [`install`].

use std::net::{IpAddr, SocketAddr};

use proto::mesh::VirtualService;
use proxy::intercept::nft;
use proxy::intercept::table::{Chain, Family, Hook, PacketRule, Table, When};

/// The table's name, beside nothing else: such an instance has no sidecar rules.
const TABLE: &str = "meshwright-services";
/// Most endpoints of one port that get a share; the rest get none. A transaction is one message to the kernel and has to stay small.
const ENDPOINTS_MAX: usize = 64;

/// Puts the table for these Services in place in the calling thread's namespace, in one transaction.
///
/// # Errors
/// The kernel refuses the rules.
pub(crate) fn install(services: &[VirtualService]) -> anyhow::Result<()> {
    Ok(nft::replace(&table(services))?)
}

/// The table: each (virtual address, port) goes to a random ready endpoint of the same family; without any, the connection is refused.
fn table(services: &[VirtualService]) -> Table {
    let (mut nat, mut refuse) = (Vec::new(), Vec::new());
    for service in services {
        for address in service.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok()) {
            for port in &service.ports {
                let Ok(number) = u16::try_from(port.port) else { continue };
                let endpoints: Vec<SocketAddr> = port
                    .endpoints
                    .iter()
                    .filter_map(|text| text.parse::<SocketAddr>().ok())
                    .filter(|endpoint| endpoint.is_ipv4() == address.is_ipv4())
                    .take(ENDPOINTS_MAX)
                    .collect();
                let to = When::any().destination(address, u8::MAX).tcp_port(number);
                if endpoints.is_empty() {
                    refuse.push(to.reset());
                } else {
                    spread(&to, &endpoints, &mut nat);
                }
            }
        }
    }
    Table {
        name: TABLE.to_owned(),
        family: Family::Inet,
        chains: vec![
            Chain { name: "output", hook: Hook::NatOutput, rules: nat },
            Chain { name: "refuse", hook: Hook::FilterOutput, rules: refuse },
        ],
    }
}

/// Equal shares: the first of n takes one in n, the next one in n - 1 of what is left, the last all.
fn spread(to: &When, endpoints: &[SocketAddr], rules: &mut Vec<PacketRule>) {
    for (at, endpoint) in endpoints.iter().enumerate() {
        let left = u32::try_from(endpoints.len() - at).unwrap_or(u32::MAX);
        let when = if left > 1 { to.clone().one_in(left) } else { to.clone() };
        rules.push(when.dnat(*endpoint));
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use proto::mesh::VirtualPort;

    use super::super::Namespace;
    use super::super::link::Netlink;
    use super::*;

    fn service(endpoints: &[&str]) -> VirtualService {
        VirtualService {
            namespace: "shop".to_owned(),
            name: "catalog".to_owned(),
            addresses: vec!["10.96.0.7".to_owned(), "fd00:6d77::7".to_owned()],
            ports: vec![VirtualPort {
                port: 80,
                endpoints: endpoints.iter().map(|&text| text.to_owned()).collect(),
                ..VirtualPort::default()
            }],
            endpoints: Vec::new(),
        }
    }

    /// Aim: shares are equal, families stay apart, and a port without endpoints is refused instead of timing out.
    #[test]
    fn virtual_addresses_become_endpoints() {
        let table = table(&[service(&["10.77.0.2:8080", "10.77.0.3:8080"])]);
        let texts = |at: usize| table.chains[at].rules.iter().map(|rule| rule.text.as_str()).collect::<Vec<_>>();
        assert_eq!(
            texts(0),
            [
                "ip daddr 10.96.0.7 tcp dport 80 numgen random mod 2 0 dnat to 10.77.0.2:8080",
                "ip daddr 10.96.0.7 tcp dport 80 dnat to 10.77.0.3:8080",
            ]
        );
        assert_eq!(texts(1), ["ip6 daddr fd00:6d77::7 tcp dport 80 reject with tcp reset"]);
    }

    /// Aim: the kernel takes the table and real connections are spread over both endpoints, in both families; with none left the
    /// connection is refused at once.
    #[test]
    fn the_kernel_spreads_connections() {
        let namespace = Namespace::anonymous().unwrap();
        namespace
            .run(|| {
                let mut netlink = Netlink::new();
                for address in ["10.96.0.9/12", "fd00:6d77::9/108", "10.77.0.2/32", "10.77.0.3/32", "fd00:6d77:77::2/128"] {
                    netlink.address("lo", address.parse()?)?;
                }
                let (a, b) = (TcpListener::bind("10.77.0.2:8080")?, TcpListener::bind("10.77.0.3:8080")?);
                let six = TcpListener::bind("[fd00:6d77:77::2]:8080")?;
                install(&[service(&["10.77.0.2:8080", "10.77.0.3:8080", "[fd00:6d77:77::2]:8080"])])?;
                a.set_nonblocking(true)?;
                b.set_nonblocking(true)?;
                let dial = |text: &str| TcpStream::connect_timeout(&text.parse().unwrap(), Duration::from_secs(1));
                let clients: Vec<TcpStream> = (0..64).map(|_| dial("10.96.0.7:80").unwrap()).collect();
                let count = |listener: &TcpListener| listener.incoming().take_while(Result::is_ok).count();
                let (to_a, to_b) = (count(&a), count(&b));
                assert!(to_a > 8 && to_b > 8 && to_a + to_b == clients.len(), "{to_a} and {to_b}");
                dial("[fd00:6d77::7]:80").unwrap();
                six.accept()?;
                install(&[service(&[])])?;
                assert_eq!(dial("10.96.0.7:80").unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
                Ok(())
            })
            .unwrap();
    }
}
