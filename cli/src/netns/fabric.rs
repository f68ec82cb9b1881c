//! The fabric: one namespace with a bridge that every instance's namespace hangs on. The host's own network is left alone.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::{Context, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proxy::intercept::nft;
use proxy::intercept::table::{Chain, Family, Hook, Table, When};

use super::Namespace;
use super::link::Netlink;
use super::ranges::{Ranges, possible};

/// The bridge's name, inside its own namespace.
pub(crate) const BRIDGE: &str = "mw0";
/// An instance's interface, inside its own namespace.
const INTERFACE: &str = "eth0";
/// The kernel's bound on a bridge's ports is 1,024.
pub(crate) const PORTS_MAX: usize = 1_000;
/// Name of the fabric's own nf_tables table.
const NAT_TABLE: &str = "meshwright-nat";

/// The fabric namespace and what hangs on it.
#[derive(Debug)]
pub(crate) struct Fabric {
    /// The namespace with the bridge, where the control plane runs.
    pub(crate) namespace: Namespace,
    /// The mesh's ranges.
    pub(crate) ranges: Ranges,
    /// Whether instances have a default route.
    nat: bool,
    ports: BTreeSet<String>,
    /// Next number to try for an interface's name.
    next: u32,
}

/// An instance's place on the fabric. Give it back with [`Fabric::unplug`].
#[derive(Debug)]
pub(crate) struct Plug {
    /// The instance's own namespace.
    pub(crate) namespace: Namespace,
    name: String,
}

impl Fabric {
    /// Makes the namespace and its bridge.
    ///
    /// # Errors
    /// A right is missing, or the kernel has no bridges.
    pub(crate) fn new(ranges: Ranges, nat: bool) -> anyhow::Result<Self> {
        let namespace = Namespace::anonymous()?;
        namespace.run(|| {
            let mut netlink = Netlink::new();
            netlink.bridge(BRIDGE).context("does this kernel have CONFIG_BRIDGE (`modprobe bridge`)?")?;
            for address in ranges.bridge_here() {
                netlink.address(BRIDGE, address)?;
            }
            netlink.up(BRIDGE)
        })?;
        Ok(Self { namespace, ranges, nat, ports: BTreeSet::new(), next: 1 })
    }

    /// Makes a namespace for an instance with these addresses, and connects it.
    ///
    /// # Errors
    /// The bridge is full, or an address is not of the mesh's ranges, or the kernel refuses.
    pub(crate) fn plug(&mut self, addresses: &[IpAddr]) -> anyhow::Result<Plug> {
        if self.ports.len() >= PORTS_MAX {
            bail!("{PORTS_MAX} instances hang on this machine's fabric already; a bridge has no more ports");
        }
        let namespace = Namespace::anonymous()?;
        let name = self.free_name();
        let peer = namespace.clone();
        self.namespace.run(|| {
            let mut netlink = Netlink::new();
            netlink.veth(&name, BRIDGE, INTERFACE, &peer).context("does this kernel have CONFIG_VETH (`modprobe veth`)?")?;
            netlink.up(&name)
        })?;
        self.ports.insert(name.clone());
        namespace.run(|| self.address(addresses))?;
        Ok(Plug { namespace, name })
    }

    /// Removes an instance's interfaces at once, even while a process still holds its namespace.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn unplug(&mut self, port: &Plug) -> anyhow::Result<()> {
        self.ports.remove(&port.name);
        self.namespace.run(|| Netlink::new().remove(&port.name))
    }

    fn free_name(&mut self) -> String {
        loop {
            let name = format!("mw{}", self.next);
            self.next = self.next.wrapping_add(1).max(1);
            if !self.ports.contains(&name) {
                return name;
            }
        }
    }

    /// Runs inside the instance's namespace: addresses, and routes so that `connect` to a virtual address gets as far as the rules.
    fn address(&self, addresses: &[IpAddr]) -> anyhow::Result<()> {
        let mut netlink = Netlink::new();
        for address in addresses.iter().filter(|address| possible(**address)) {
            netlink.address(INTERFACE, self.ranges.on_link(*address))?;
        }
        netlink.up(INTERFACE)?;
        let mut routes: Vec<IpNet> = vec![IpNet::V4(self.ranges.services), IpNet::V6(self.ranges.services_v6)];
        if self.nat {
            routes.push(IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)));
            routes.push(IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)));
        }
        for range in routes {
            if addresses.iter().any(|address| address.is_ipv4() == range.addr().is_ipv4() && possible(*address)) {
                netlink.route(range, self.ranges.gateway(range.addr()))?;
            }
        }
        Ok(())
    }

    /// Sends every TCP connection that wants to leave the mesh to a local port of the fabric.
    ///
    /// # Errors
    /// The kernel refuses the rules.
    pub(crate) fn divert_leaving(&self, port: u16) -> anyhow::Result<()> {
        let mut rules = Vec::new();
        for (_, range) in self.ranges.flags() {
            rules.push(When::any().destination(range.network(), range.prefix_len()).leave());
        }
        rules.push(When::any().input(BRIDGE).tcp().redirect(port));
        let chain = Chain { name: "prerouting", hook: Hook::NatPrerouting, rules };
        let table = Table { name: NAT_TABLE.to_owned(), family: Family::Inet, chains: vec![chain] };
        self.namespace.run(|| Ok(nft::replace(&table)?))
    }

    /// Listens inside the fabric.
    ///
    /// # Errors
    /// The address is taken.
    pub(crate) fn listen(&self, address: SocketAddr) -> anyhow::Result<TcpListener> {
        self.namespace.run(|| {
            let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address} in the fabric"))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
    }

    /// Opens a UDP socket inside the fabric.
    ///
    /// # Errors
    /// The address is taken.
    pub(crate) fn bind_udp(&self, address: SocketAddr) -> anyhow::Result<UdpSocket> {
        self.namespace.run(|| {
            let socket = UdpSocket::bind(address).with_context(|| format!("cannot bind {address}/udp in the fabric"))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;
    use crate::up::relay::original_destination;

    fn addresses(last: u8) -> Vec<IpAddr> {
        vec![format!("10.77.0.{last}").parse().unwrap(), format!("fd00:6d77:77::{last:x}").parse().unwrap()]
    }

    /// Aim: two instances and the fabric reach one another in both families at once after plugging; unplugging cuts an instance off,
    /// and a namespace that nobody holds takes its interface with it. Needs root: without it this test fails, it does not skip.
    #[test]
    fn instances_reach_one_another() {
        let mut fabric = Fabric::new(Ranges::default(), false).unwrap();
        let (one, two) = (fabric.plug(&addresses(10)).unwrap(), fabric.plug(&addresses(11)).unwrap());
        let listeners: Vec<TcpListener> =
            two.namespace.run(|| Ok(vec![TcpListener::bind("10.77.0.11:80")?, TcpListener::bind("[fd00:6d77:77::b]:80")?])).unwrap();
        for (listener, target) in listeners.iter().zip(["10.77.0.11:80", "[fd00:6d77:77::b]:80"]) {
            for namespace in [&one.namespace, &fabric.namespace] {
                let mut client = namespace.run(|| Ok(TcpStream::connect_timeout(&target.parse()?, Duration::from_secs(2))?)).unwrap();
                let (mut server, _) = listener.accept().unwrap();
                server.write_all(b"x").unwrap();
                let mut byte = [0; 1];
                client.read_exact(&mut byte).unwrap();
            }
        }
        // No route leaves the mesh, but one leads to the virtual addresses.
        let outside = one
            .namespace
            .run(|| Ok(TcpStream::connect_timeout(&"192.0.2.1:80".parse()?, Duration::from_millis(200)).unwrap_err()))
            .unwrap();
        assert_eq!(outside.kind(), std::io::ErrorKind::NetworkUnreachable);

        fabric.unplug(&two).unwrap();
        assert_eq!(fabric.ports.len(), 1);
        let gone =
            one.namespace.run(|| Ok(TcpStream::connect_timeout(&"10.77.0.11:80".parse()?, Duration::from_millis(200)).is_err())).unwrap();
        assert!(gone);
    }

    /// Aim: what wants to leave the mesh arrives at the relay's port and can be told where it wanted to go.
    #[test]
    fn leaving_connections_are_diverted() {
        let mut fabric = Fabric::new(Ranges::default(), true).unwrap();
        let listener = fabric.namespace.run(|| Ok(TcpListener::bind("[::]:0")?)).unwrap();
        fabric.divert_leaving(listener.local_addr().unwrap().port()).unwrap();
        let one = fabric.plug(&addresses(10)).unwrap();
        for target in ["192.0.2.1:443", "[2001:db8::1]:443"] {
            let _client = one.namespace.run(|| Ok(TcpStream::connect_timeout(&target.parse()?, Duration::from_secs(2))?)).unwrap();
            let (stream, _) = listener.accept().unwrap();
            assert_eq!(original_destination(&stream).unwrap(), target.parse().unwrap());
        }
    }
}
