//! Sockets that answer in both address families.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::anyhow;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// Opens a port on the address given, or on every address of both families (of IPv4 alone where the machine has no IPv6).
///
/// # Errors
/// The port is taken or forbidden; the sentence names it and a remedy.
pub(super) fn open(address: Option<IpAddr>, port: u16) -> anyhow::Result<TcpListener> {
    let opened = match address {
        Some(address) => bind(SocketAddr::new(address, port)),
        None => match bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)) {
            Err(error) if no_ipv6(&error) => bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)),
            other => other,
        },
    };
    opened.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow!("port {port} is taken by another program; give another one"),
        io::ErrorKind::PermissionDenied => anyhow!("port {port} needs more rights; give one above 1023"),
        _ => anyhow!("cannot listen on port {port}: {error}"),
    })
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
