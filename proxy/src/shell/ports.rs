//! Opening the proxy's own ports, and saying who has one that is taken.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use anyhow::anyhow;
use nix::errno::Errno;

use crate::io::{bind, bind_datagrams};

/// Processes looked at for the holder of a port.
const PROCESSES_MAX: usize = 20_000;
/// State LISTEN in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// The two addresses of one kind, IPv4 first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Everybody.
    All,
    /// This machine (or network namespace) only.
    Loopback,
}

impl Reach {
    fn addresses(self) -> [IpAddr; 2] {
        match self {
            Self::All => [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            Self::Loopback => [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        }
    }
}

/// Opens a TCP port for both families; a machine without IPv6 has one. Port 0 opens nothing.
///
/// # Errors
/// The port cannot be had: names it, its holder where that can be seen, and the flag that moves it.
pub fn open(port: u16, reach: Reach, flag: &str) -> anyhow::Result<Vec<TcpListener>> {
    both(port, reach, flag, bind)
}

/// The same for UDP.
///
/// # Errors
/// As [`open`].
pub fn open_udp(port: u16, reach: Reach, flag: &str) -> anyhow::Result<Vec<UdpSocket>> {
    both(port, reach, flag, |address| {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    })
}

/// A port of an edge's datagrams, which may be opened once for every worker.
///
/// # Errors
/// As [`open`].
pub fn open_datagrams(port: u16, flag: &str) -> anyhow::Result<Vec<UdpSocket>> {
    both(port, Reach::All, flag, bind_datagrams)
}

/// One address.
///
/// # Errors
/// As [`open`].
pub fn open_at(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    bind(address).map_err(|error| refused(address, flag, &error))
}

fn both<T>(port: u16, reach: Reach, flag: &str, open: impl Fn(SocketAddr) -> io::Result<T>) -> anyhow::Result<Vec<T>> {
    let mut opened = Vec::new();
    if port == 0 {
        return Ok(opened);
    }
    for ip in reach.addresses() {
        let address = SocketAddr::new(ip, port);
        match open(address) {
            Ok(socket) => opened.push(socket),
            Err(error) if address.is_ipv6() && no_ipv6(&error) => {}
            Err(error) => return Err(refused(address, flag, &error)),
        }
    }
    Ok(opened)
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL))
}

fn refused(address: SocketAddr, flag: &str, error: &io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let holder = holder(Path::new("/proc"), address.port()).map(|holder| format!(" by {holder}")).unwrap_or_default();
            anyhow!("port {} is taken{holder}; end that program, or give another port with {flag}", address.port())
        }
        io::ErrorKind::PermissionDenied => {
            anyhow!("port {} may not be opened: it is privileged; start as root, or give another port with {flag}", address.port())
        }
        _ => anyhow!("{address} cannot be opened ({flag}): {error}"),
    }
}

/// `NAME (pid N)` of the process that listens on a TCP port here, where this process may see it.
fn holder(proc: &Path, port: u16) -> Option<String> {
    let tables = ["net/tcp", "net/tcp6"].map(|table| fs::read_to_string(proc.join(table)).unwrap_or_default());
    let inode = tables.iter().flat_map(|table| table.lines().skip(1)).find_map(|line| listener_inode(line, port))?;
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir(proc)
        .ok()?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit())));
    for process in processes.take(PROCESSES_MAX) {
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        let holds =
            |fd: io::Result<fs::DirEntry>| fd.and_then(|fd| fs::read_link(fd.path())).is_ok_and(|link| link.as_os_str() == wanted.as_str());
        if descriptors.into_iter().any(holds) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {})", name.trim(), process.file_name().to_string_lossy()));
        }
    }
    None
}

/// The inode of a line of `/proc/net/tcp` if it is a listener on that port.
fn listener_inode(line: &str, port: u16) -> Option<&str> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let (_, hex) = local.rsplit_once(':')?;
    (*state == LISTEN && u16::from_str_radix(hex, 16) == Ok(port)).then_some(*inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: a taken port is refused with its number, its holder and the flag; port 0 opens nothing.
    #[test]
    fn a_taken_port_is_named() {
        let taken = bind("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = open(port, Reach::All, "--inbound-port").unwrap_err().to_string();
        assert!(error.contains(&format!("port {port} is taken")) && error.contains("--inbound-port"), "{error}");
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        assert!(open(0, Reach::All, "--x").unwrap().is_empty());
    }

    /// Aim: a free port opens on loopback, for TCP and UDP.
    #[test]
    fn a_free_port_opens() {
        let free = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        assert!(!open(port, Reach::Loopback, "--dns-port").unwrap().is_empty());
        assert!(!open_udp(port, Reach::Loopback, "--dns-port").unwrap().is_empty());
    }

    /// Aim: only listeners count, and only on that port.
    #[test]
    fn the_table_is_read() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0";
        assert_eq!(listener_inode(line, 8080), Some("4711"));
        assert_eq!(listener_inode(line, 8081), None);
        assert_eq!(listener_inode(&line.replace(" 0A ", " 01 "), 8080), None);
        assert_eq!(listener_inode("", 8080), None);
    }
}
