//! Sockets of datagrams: an edge's own, which every worker has one of, and those towards backends.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;

use super::Network;

/// A socket for the datagrams that come to an address, which it shares with other workers: the kernel sends each client's to the same one.
///
/// # Errors
/// The kernel's, e.g. the port is taken.
pub fn bind_datagrams(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Lets the runtime watch such a socket.
///
/// # Errors
/// The runtime's.
pub fn adopt_datagrams(socket: std::net::UdpSocket) -> io::Result<UdpSocket> {
    UdpSocket::from_std(socket)
}

/// Sends a datagram to whom a socket is connected to, at once or not at all. Asks the kernel itself: the runtime takes a socket that it has not
/// waited for yet for one that has no room.
///
/// # Errors
/// The kernel's, e.g. there is no room, or what the network said of an earlier one.
pub fn send_datagram(socket: &UdpSocket, datagram: &[u8]) -> io::Result<usize> {
    SockRef::from(socket).send(datagram)
}

impl Network {
    /// A socket whose datagrams go to one address and come from there alone; what the network says of them (ICMP) is an error of the next
    /// call.
    ///
    /// # Errors
    /// The kernel's, e.g. no route. A simulation has no datagrams.
    pub fn datagrams_to(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        if matches!(self, Self::Virtual(_)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if let Some(mark) = self.mark() {
            socket.set_mark(mark)?;
        }
        socket.set_nonblocking(true)?;
        let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        socket.bind(&SocketAddr::new(any, 0).into())?;
        socket.connect(&address.into())?;
        UdpSocket::from_std(socket.into())
    }
}
