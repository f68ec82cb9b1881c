//! The kernel's part in a mesh without a kernel: hosts, listening sockets and redirection, over memory pipes or over turmoil.
//!
//! A host is an IP address. On a meshed host the application's connections go to its proxy's port 15001 and connections that arrive
//! go to 15006, each with its original destination, as the rules of `intercept` would have it; the proxy's own are left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use proxy::io::{Accepted, Network, Socket, VirtualListening, VirtualNetwork};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::witness::Witness;

/// Where the outbound side of a sidecar listens.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where its inbound side listens.
pub const INBOUND_PORT: u16 = 15006;
/// Ports of a meshed host that redirection leaves alone.
const OWN_PORTS: [u16; 4] = [OUTBOUND_PORT, INBOUND_PORT, 15020, 15021];
/// Connections that wait to be accepted.
const BACKLOG: usize = 1024;
/// First ephemeral port of the memory network.
const EPHEMERAL: u16 = 32_768;

/// What carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// Memory pipes within one runtime.
    Memory,
    /// turmoil's simulated TCP; hosts are turmoil hosts.
    Turmoil,
}

/// All hosts. Clones share them.
#[derive(Clone, Debug)]
pub struct Wire {
    medium: Medium,
    witness: Witness,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    meshed: Mutex<BTreeSet<IpAddr>>,
    listening: Mutex<BTreeMap<SocketAddr, mpsc::Sender<Accepted>>>,
    ephemeral: AtomicU16,
}

/// Who opens a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opener {
    /// The application: captured where the host is meshed.
    Application,
    /// The proxy, or anything outside the mesh: left alone.
    Exempt,
}

/// One host's view.
#[derive(Debug)]
struct Host {
    wire: Wire,
    ip: IpAddr,
    opener: Opener,
}

impl Wire {
    /// A network without hosts.
    pub fn new(medium: Medium) -> Self {
        Self { medium, witness: Witness::default(), shared: Arc::default() }
    }

    /// What passes between hosts.
    pub fn witness(&self) -> &Witness {
        &self.witness
    }

    /// Turns redirection on for a host.
    pub fn mesh(&self, ip: IpAddr) {
        lock(&self.shared.meshed).insert(ip);
    }

    /// The network as the host's proxy sees it, or any program on a host that is not meshed.
    pub fn exempt(&self, ip: IpAddr) -> Network {
        self.host(ip, Opener::Exempt)
    }

    /// The network as the host's application sees it.
    pub fn application(&self, ip: IpAddr) -> Network {
        self.host(ip, Opener::Application)
    }

    fn host(&self, ip: IpAddr, opener: Opener) -> Network {
        Network::Virtual(Arc::new(Host { wire: self.clone(), ip, opener }))
    }

    fn is_meshed(&self, ip: IpAddr) -> bool {
        lock(&self.shared.meshed).contains(&ip)
    }

    /// Where a connection really goes, and the original destination where that differs.
    fn redirect(&self, from: IpAddr, opener: Opener, to: SocketAddr) -> (SocketAddr, Option<SocketAddr>) {
        if opener == Opener::Application && self.is_meshed(from) {
            return (SocketAddr::new(from, OUTBOUND_PORT), Some(to));
        }
        if to.ip() != from && self.is_meshed(to.ip()) && !OWN_PORTS.contains(&to.port()) {
            return (SocketAddr::new(to.ip(), INBOUND_PORT), Some(to));
        }
        (to, None)
    }
}

#[async_trait]
impl VirtualNetwork for Host {
    async fn connect(&self, address: SocketAddr) -> io::Result<Socket> {
        let address = if address.ip().is_loopback() { SocketAddr::new(self.ip, address.port()) } else { address };
        let (target, original) = self.wire.redirect(self.ip, self.opener, address);
        match self.wire.medium {
            Medium::Memory => self.connect_memory(address, target, original).await,
            Medium::Turmoil => self.connect_turmoil(address, target, original).await,
        }
    }

    async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn VirtualListening>> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let mine = SocketAddr::new(self.ip, address.port());
        match self.wire.medium {
            Medium::Memory => {
                let mut listening = lock(&self.wire.shared.listening);
                // A second socket of the same port shares the first one's queue; a dead one is replaced.
                if listening.get(&mine).is_some_and(|other| !other.is_closed()) {
                    return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{mine} is taken")));
                }
                listening.insert(mine, sender);
            }
            Medium::Turmoil => {
                let any = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), address.port());
                let listener = turmoil::net::TcpListener::bind(any).await?;
                tokio::spawn(accept_turmoil(listener, sender));
            }
        }
        Ok(Box::new(Queue { address: mine, receiver }))
    }
}

impl Host {
    async fn connect_memory(&self, address: SocketAddr, target: SocketAddr, original: Option<SocketAddr>) -> io::Result<Socket> {
        let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, format!("nobody listens on {target}"));
        let sender = lock(&self.wire.shared.listening).get(&target).cloned().ok_or_else(refused)?;
        let port = EPHEMERAL | self.wire.shared.ephemeral.fetch_add(1, Ordering::Relaxed);
        let peer = SocketAddr::new(self.ip, port);
        let (near, far) = proxy::io::pipe();
        sender.send(Accepted { socket: far, peer, local: target, original }).await.map_err(|_| refused())?;
        if target.ip() == self.ip {
            return Ok(near);
        }
        Ok(Socket::Virtual(Box::new(self.wire.witness.watch(peer, address, near))))
    }

    async fn connect_turmoil(&self, address: SocketAddr, target: SocketAddr, original: Option<SocketAddr>) -> io::Result<Socket> {
        let mut stream = turmoil::net::TcpStream::connect(target).await?;
        let peer = stream.local_addr()?;
        // Redirection has no packets of its own: the original destination travels ahead of the first byte, on redirected ports only.
        if [OUTBOUND_PORT, INBOUND_PORT].contains(&target.port()) {
            stream.write_all(&preamble(original)).await?;
        }
        if target.ip() == self.ip {
            return Ok(Socket::Virtual(Box::new(Witness::pass(stream))));
        }
        Ok(Socket::Virtual(Box::new(self.wire.witness.watch(peer, address, stream))))
    }
}

/// IPv4 address and port, or zeroes.
fn preamble(original: Option<SocketAddr>) -> [u8; 6] {
    let mut bytes = [0; 6];
    if let Some(SocketAddr::V4(address)) = original {
        bytes[..4].copy_from_slice(&address.ip().octets());
        bytes[4..].copy_from_slice(&address.port().to_be_bytes());
    }
    bytes
}

fn read_preamble(bytes: [u8; 6]) -> Option<SocketAddr> {
    let [a, b, c, d, high, low] = bytes;
    let port = u16::from_be_bytes([high, low]);
    (port != 0).then(|| SocketAddr::from(([a, b, c, d], port)))
}

async fn accept_turmoil(listener: turmoil::net::TcpListener, queue: mpsc::Sender<Accepted>) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = queue.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((mut stream, peer)) = accepted else { continue };
        let Ok(local) = stream.local_addr() else { continue };
        let queue = queue.clone();
        tokio::spawn(async move {
            let mut original = None;
            if [OUTBOUND_PORT, INBOUND_PORT].contains(&local.port()) {
                let mut bytes = [0; 6];
                if stream.read_exact(&mut bytes).await.is_err() {
                    return;
                }
                original = read_preamble(bytes);
            }
            // A listener that is gone takes its waiting connections with it.
            let _ = queue.send(Accepted { socket: Socket::Virtual(Box::new(Witness::pass(stream))), peer, local, original }).await;
        });
    }
}

#[derive(Debug)]
struct Queue {
    address: SocketAddr,
    receiver: mpsc::Receiver<Accepted>,
}

#[async_trait]
impl VirtualListening for Queue {
    async fn accept(&mut self) -> io::Result<Accepted> {
        self.receiver.recv().await.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the network is gone"))
    }

    fn local_address(&self) -> SocketAddr {
        self.address
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: who is redirected and who is not, as the rules of `intercept` would have it.
    #[test]
    fn redirection_follows_the_rules() {
        let wire = Wire::new(Medium::Memory);
        let ip = |last: u8| IpAddr::from([10, 77, 0, last]);
        let at = |last: u8, port: u16| SocketAddr::new(ip(last), port);
        wire.mesh(ip(2));
        wire.mesh(ip(3));
        for (from, opener, to, target, original) in [
            (2, Opener::Application, at(9, 80), at(2, OUTBOUND_PORT), Some(at(9, 80))),
            (2, Opener::Exempt, at(3, 8080), at(3, INBOUND_PORT), Some(at(3, 8080))),
            (2, Opener::Exempt, at(2, 8080), at(2, 8080), None),
            (2, Opener::Exempt, at(1, 15012), at(1, 15012), None),
            (9, Opener::Application, at(3, 8080), at(3, INBOUND_PORT), Some(at(3, 8080))),
            (9, Opener::Application, at(3, 15020), at(3, 15020), None),
            (9, Opener::Application, at(1, 80), at(1, 80), None),
        ] {
            assert_eq!(wire.redirect(ip(from), opener, to), (target, original), "{from} {opener:?} {to}");
        }
    }

    /// Aim: the same bytes and the same original destination arrive over turmoil as over memory, and the witness sees them.
    #[test]
    fn both_media_carry_the_original_destination() {
        async fn both_ends(wire: &Wire, client: IpAddr, server: IpAddr) -> turmoil::Result {
            let mut inbound = wire.exempt(server).listen(SocketAddr::new(server, INBOUND_PORT)).await?;
            let meant = SocketAddr::new(server, 8080);
            let network = wire.exempt(client);
            let call = async {
                let mut socket = network.connect(meant).await?;
                socket.write_all(b"hello").await?;
                io::Result::Ok(socket)
            };
            let (socket, accepted) = tokio::join!(call, inbound.accept());
            let (mut accepted, _socket) = (accepted?, socket?);
            let mut hello = [0; 5];
            accepted.socket.read_exact(&mut hello).await?;
            assert_eq!((&hello, accepted.original), (b"hello", Some(meant)));
            Ok(())
        }
        let wire = Wire::new(Medium::Memory);
        let (client, server) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        wire.mesh(server);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(both_ends(&wire, client, server)).expect("bytes arrive");
        assert_eq!(wire.witness().plaintext_to(8080).len(), 1);

        let wire = Wire::new(Medium::Turmoil);
        let mut sim = turmoil::Builder::new().rng_seed(1).build();
        let server = sim.lookup("server");
        wire.mesh(server);
        let inside = wire.clone();
        sim.host("server", move || {
            let wire = inside.clone();
            async move {
                let mut inbound = wire.exempt(server).listen(SocketAddr::new(server, INBOUND_PORT)).await?;
                let mut accepted = inbound.accept().await?;
                let mut hello = [0; 5];
                accepted.socket.read_exact(&mut hello).await?;
                accepted.socket.write_all(&hello).await?;
                assert_eq!(accepted.original, Some(SocketAddr::new(server, 8080)));
                std::future::pending::<()>().await;
                Ok(())
            }
        });
        let inside = wire.clone();
        sim.client("client", async move {
            let client = turmoil::lookup("client");
            let mut socket = inside.exempt(client).connect(SocketAddr::new(server, 8080)).await?;
            socket.write_all(b"hello").await?;
            let mut hello = [0; 5];
            socket.read_exact(&mut hello).await?;
            assert_eq!(&hello, b"hello");
            Ok(())
        });
        sim.run().expect("bytes arrive");
        assert_eq!(wire.witness().plaintext_to(8080).len(), 1);
    }
}
