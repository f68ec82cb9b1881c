//! Connecting and accepting, in the kernel or in a simulation.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt as _;
use socket2::{Domain, Protocol, SockRef, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::Instant;

use super::original::{canonical, original_destination};
use super::peers::look_after;
use super::socket::Socket;

/// What comes first of opening these addresses, one after the other. Each gets its share of the time that is left until then: one that is
/// dead does not hide those behind it.
///
/// # Errors
/// None can be opened: the last one's.
pub async fn one_of<T, F>(addresses: &[SocketAddr], until: Instant, open: impl Fn(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for (address, shares) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let share = until.saturating_duration_since(Instant::now()) / u32::try_from(shares).unwrap_or(u32::MAX);
        match tokio::time::timeout(share, open(*address)).await {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer")),
        }
    }
    Err(last)
}

/// Connections that wait in the kernel to be accepted.
const BACKLOG: i32 = 1024;

/// What a simulation's network must be able to do.
#[async_trait]
pub trait VirtualNetwork: Send + Sync {
    /// Opens a connection. Dropping the future gives it up.
    async fn connect(&self, address: SocketAddr) -> io::Result<Socket>;
    /// Opens a listening socket.
    async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn VirtualListening>>;
}

/// A simulation's listening socket.
#[async_trait]
pub trait VirtualListening: Send {
    /// The next connection; the original destination is injected. Cancel-safe.
    async fn accept(&mut self) -> io::Result<Accepted>;
    /// Its own address.
    fn local_address(&self) -> SocketAddr;
}

/// Where connections come from and go to.
#[derive(Clone)]
pub enum Network {
    /// The machine's, every socket we open marked so that redirection leaves it alone (rootless; otherwise the uid exempts it).
    Kernel {
        /// `SO_MARK` of our own connections.
        mark: Option<u32>,
    },
    /// The same of a proxy that has admin pages: configuration, endpoints and names lead nobody to them, whoever writes them.
    Proxy {
        /// See above.
        mark: Option<u32>,
        /// Their port at loopback; 0: there are none.
        admin: u16,
    },
    /// A simulation's.
    Virtual(Arc<dyn VirtualNetwork>),
}

/// A connection somebody made to us.
#[derive(Debug)]
pub struct Accepted {
    /// The bytes.
    pub socket: Socket,
    /// Who connected.
    pub peer: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
    /// Where the client wanted to go; `None` when it wanted to come here.
    pub original: Option<SocketAddr>,
}

/// A listening socket.
pub enum Listening {
    /// The kernel's.
    Kernel(TcpListener),
    /// A simulation's.
    Virtual(Box<dyn VirtualListening>),
}

impl Network {
    /// Opens a connection with `TCP_NODELAY`. Dropping the future gives it up; there is no timeout of its own.
    ///
    /// # Errors
    /// The kernel's, e.g. refused or unreachable; or it leads to the proxy's own admin pages.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<Socket> {
        match self {
            Self::Proxy { admin, .. } if is_local_port(address, *admin) => {
                Err(io::Error::new(io::ErrorKind::PermissionDenied, "the proxy's own admin pages are there, to which nobody is led"))
            }
            Self::Kernel { mark } | Self::Proxy { mark, .. } => {
                let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                if let Some(mark) = mark {
                    SockRef::from(&socket).set_mark(*mark)?;
                }
                let stream = socket.connect(address).await?;
                stream.set_nodelay(true)?;
                look_after(&stream)?;
                Ok(Socket::Tcp(stream))
            }
            Self::Virtual(network) => network.connect(address).await,
        }
    }

    /// The mark of sockets that we open.
    pub(crate) fn mark(&self) -> Option<u32> {
        match self {
            Self::Kernel { mark } | Self::Proxy { mark, .. } => *mark,
            Self::Virtual(_) => None,
        }
    }

    /// Opens a listening socket.
    ///
    /// # Errors
    /// The kernel's, e.g. the port is taken.
    pub async fn listen(&self, address: SocketAddr) -> io::Result<Listening> {
        match self {
            Self::Kernel { .. } | Self::Proxy { .. } => Listening::adopt(bind(address)?),
            Self::Virtual(network) => Ok(Listening::Virtual(network.listen(address).await?)),
        }
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kernel { mark } => f.debug_struct("Kernel").field("mark", mark).finish(),
            Self::Proxy { mark, admin } => f.debug_struct("Proxy").field("mark", mark).field("admin", admin).finish(),
            Self::Virtual(_) => f.write_str("Virtual"),
        }
    }
}

/// Whether an address is that port of this very machine.
fn is_local_port(address: SocketAddr, port: u16) -> bool {
    port != 0 && address.port() == port && is_this_machine(address.ip())
}

/// Whether an address means this very machine wherever it is used. The kernel takes the unspecified address for loopback.
pub fn is_this_machine(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_loopback() || ip.is_unspecified()
}

/// Binds a listening socket outside any runtime, so that it can be opened before rights are dropped and shared by several workers
/// (`try_clone`: one queue, many acceptors). An IPv6 socket takes IPv6 only; open one per family.
///
/// # Errors
/// The kernel's, e.g. the port is taken or the family is missing.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Listening {
    /// Takes a socket that is bound already, e.g. one inherited or shared with other workers.
    ///
    /// # Errors
    /// The kernel's; outside a runtime.
    pub fn adopt(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        // What is accepted inherits these from the listening socket: no system calls per connection.
        SockRef::from(&listener).set_tcp_nodelay(true)?;
        look_after(&listener)?;
        Ok(Self::Kernel(TcpListener::from_std(listener)?))
    }

    /// The next connection, with `TCP_NODELAY` and its original destination. Cancel-safe.
    ///
    /// # Errors
    /// The kernel's: those of the connection itself (aborted) are retried here; what comes out needs a pause (no descriptors left).
    pub async fn accept(&mut self) -> io::Result<Accepted> {
        match self {
            Self::Kernel(listener) => loop {
                let (stream, peer) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) if died_in_the_queue(&error) => continue,
                    Err(error) => return Err(error),
                };
                // This fails only for a connection that is dead already.
                let Ok(local) = stream.local_addr() else { continue };
                return Ok(accepted(stream, peer, local));
            },
            Self::Virtual(listener) => listener.accept().await,
        }
    }

    /// Accepts no more but what has queued up, without waiting for anybody; dropping it closes the socket.
    pub fn queued(self) -> Queued {
        match self {
            // What cannot be taken back from the runtime is closed with it.
            Self::Kernel(listener) => Queued(listener.into_std().ok().map(StillQueued::Kernel)),
            Self::Virtual(listener) => Queued(Some(StillQueued::Virtual(listener))),
        }
    }

    /// Its own address.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Kernel(listener) => listener.local_addr().map(canonical),
            Self::Virtual(listener) => Ok(listener.local_address()),
        }
    }
}

/// What had queued up at a listening socket: see [`Listening::queued`].
pub struct Queued(Option<StillQueued>);

enum StillQueued {
    Kernel(std::net::TcpListener),
    Virtual(Box<dyn VirtualListening>),
}

impl Iterator for Queued {
    type Item = Accepted;

    fn next(&mut self) -> Option<Accepted> {
        match self.0.as_mut()? {
            StillQueued::Kernel(listener) => loop {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        // Each of these fails only for a connection that is dead already.
                        let Ok(local) = stream.local_addr() else { continue };
                        let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) else { continue };
                        return Some(accepted(stream, peer, local));
                    }
                    Err(error) if died_in_the_queue(&error) => {}
                    Err(_) => return None,
                }
            },
            StillQueued::Virtual(listener) => listener.accept().now_or_never()?.ok(),
        }
    }
}

fn accepted(stream: TcpStream, peer: SocketAddr, local: SocketAddr) -> Accepted {
    let original = original_destination(&stream, local);
    Accepted { socket: Socket::Tcp(stream), peer: canonical(peer), local: canonical(local), original }
}

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Listening({:?})", self.local_address())
    }
}

/// Errors of one connection that died while it waited to be accepted.
fn died_in_the_queue(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn the_kernel_network_connects() {
        // Aim: bind outside, adopt, connect and accept with canonical addresses.
        let mut listening = Listening::adopt(bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
        let address = listening.local_address().unwrap();
        let network = Network::Kernel { mark: None };
        let (client, accepted) = tokio::join!(network.connect(address), listening.accept());
        let (mut client, mut accepted) = (client.unwrap(), accepted.unwrap());
        assert_eq!(accepted.local, address);
        assert_eq!(accepted.original, None);
        client.write_all(b"hi").await.unwrap();
        let mut two = [0; 2];
        accepted.socket.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"hi");
    }

    #[tokio::test]
    async fn nobody_is_led_to_the_admin_pages() {
        // Aim: whoever writes an endpoint, a token issuer or a store that is loopback's admin port reaches nothing, in any spelling; other
        // ports of loopback are met.
        let listening = Listening::adopt(bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
        let port = listening.local_address().unwrap().port();
        let own = Network::Proxy { mark: None, admin: port };
        for host in ["127.0.0.1", "127.8.8.8", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:0.0.0.0]"] {
            let refused = own.connect(format!("{host}:{port}").parse().unwrap()).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{host}");
        }
        for admin in [0, port ^ 1] {
            assert!(Network::Proxy { mark: None, admin }.connect(listening.local_address().unwrap()).await.is_ok());
        }
    }

    #[tokio::test]
    async fn what_has_queued_up_is_taken() {
        // Aim: connections that nobody has accepted yet come out whole, then the socket is closed.
        let listening = Listening::adopt(bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
        let address = listening.local_address().unwrap();
        let network = Network::Kernel { mark: None };
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(network.connect(address).await.unwrap());
        }
        let mut queued = listening.queued();
        for client in &mut clients {
            let mut accepted = queued.next().unwrap();
            accepted.socket.write_all(b"hi").await.unwrap();
            let mut two = [0; 2];
            client.read_exact(&mut two).await.unwrap();
        }
        assert!(queued.next().is_none());
        drop(queued);
        assert!(network.connect(address).await.is_err());
    }
}
