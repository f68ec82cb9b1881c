//! The three doors: TLS on 15012, plaintext on loopback where asked for, and a Unix socket for commands and the node agent.

#![allow(clippy::disallowed_types, reason = "the doors themselves")]

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::strangers::{Guest, Leave, Share, Shares, Stay};
use super::tls::ServerTls;
use crate::publish::peer::{Entrance, Peer};

/// Most connections per door; more are closed behind TLS, and wait in the kernel's queue elsewhere.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Most of them without a certificate: callers by token, and proxies before their first leaf. Beyond it they are closed, so that strangers keep
/// no proxy out.
pub const STRANGERS_MAX: usize = 512;
/// Most of those of one origin, so that no stranger keeps another out.
pub const STRANGERS_OF_ORIGIN_MAX: usize = 128;
/// Most connections that have proved nothing yet because their handshake is under way; more wait in the kernel's queue.
pub const HANDSHAKES_MAX: usize = 1024;
/// Most of those of one origin; more are closed.
pub const HANDSHAKES_OF_ORIGIN_MAX: usize = 256;
/// Connections that have been accepted and not yet taken up by the server.
const READY_MAX: usize = 64;
/// A handshake that takes longer is cut.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// After an accept that failed (out of descriptors), wait this long.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A connection that is no socket: a memory pipe, or one of a simulation.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

enum Carrier {
    VirtualTls(Box<TlsStream<Box<dyn Io>>>),
    Virtual(Box<dyn Io>),
    Tls(Box<TlsStream<TcpStream>>),
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// One accepted connection; its place among [`CONNECTIONS_MAX`] is free again when it drops.
pub struct Connection {
    stream: Carrier,
    guest: Guest,
    /// A stranger's ends by itself.
    leave: Option<Leave>,
    _places: Places,
}

/// Its place among all, and among strangers where it is one's.
type Places = (OwnedSemaphorePermit, Option<Share>);

impl Connection {
    fn new(stream: Carrier, peer: Peer, places: Places) -> Self {
        let stay = places.1.is_some().then(Stay::begin);
        Self { stream, leave: stay.clone().map(Leave::of), guest: Guest { peer, stay }, _places: places }
    }
}

impl Connected for Connection {
    type ConnectInfo = Guest;

    fn connect_info(&self) -> Guest {
        self.guest.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let connection = self.get_mut();
        if connection.leave.as_mut().is_some_and(|leave| leave.poll(cx).is_ready()) {
            // As if the other end had closed it.
            return Poll::Ready(Ok(()));
        }
        match &mut connection.stream {
            Carrier::VirtualTls(stream) => Pin::new(stream).poll_read(cx, buf),
            Carrier::Virtual(stream) => Pin::new(stream).poll_read(cx, buf),
            Carrier::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Carrier::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Carrier::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Carrier::VirtualTls(stream) => Pin::new(stream).poll_write(cx, buf),
            Carrier::Virtual(stream) => Pin::new(stream).poll_write(cx, buf),
            Carrier::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Carrier::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Carrier::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    // A frame's head and what is in it leave in one write, and under TLS in one record.
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Carrier::VirtualTls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Carrier::Virtual(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Carrier::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Carrier::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Carrier::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Carrier::VirtualTls(stream) => stream.is_write_vectored(),
            Carrier::Virtual(stream) => stream.is_write_vectored(),
            Carrier::Tls(stream) => stream.is_write_vectored(),
            Carrier::Tcp(stream) => stream.is_write_vectored(),
            Carrier::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Carrier::VirtualTls(stream) => Pin::new(stream).poll_flush(cx),
            Carrier::Virtual(stream) => Pin::new(stream).poll_flush(cx),
            Carrier::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Carrier::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Carrier::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Carrier::VirtualTls(stream) => Pin::new(stream).poll_shutdown(cx),
            Carrier::Virtual(stream) => Pin::new(stream).poll_shutdown(cx),
            Carrier::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Carrier::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Carrier::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// What tonic serves.
pub type Incoming = ReceiverStream<io::Result<Connection>>;

/// The places of the TLS door.
#[derive(Clone)]
struct Hall {
    connections: Arc<Semaphore>,
    strangers: Arc<Shares>,
    /// Of those who have not even said who they are.
    handshakes: Arc<Shares>,
}

/// Accepts TLS. Each handshake has its own task, so that a slow one delays nobody.
pub fn tls(listener: TcpListener, tls: ServerTls, stop: CancellationToken) -> Incoming {
    let (sender, receiver) = mpsc::channel(READY_MAX);
    tokio::spawn(async move {
        let hall = Hall {
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            strangers: Shares::new(STRANGERS_MAX, STRANGERS_OF_ORIGIN_MAX),
            handshakes: Shares::new(HANDSHAKES_MAX, HANDSHAKES_OF_ORIGIN_MAX),
        };
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        while let Some((stream, address, handshake)) = accept_tcp(&listener, &handshakes, &stop).await {
            let Some(share) = hall.handshakes.take(address.ip()) else {
                tracing::debug!(%address, "closed: {HANDSHAKES_OF_ORIGIN_MAX} handshakes from there are under way");
                continue;
            };
            let (hall, sender, tls) = (hall.clone(), sender.clone(), tls.clone());
            tokio::spawn(async move {
                let greeted = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await;
                drop((handshake, share));
                match greeted {
                    Ok(Ok(stream)) => {
                        let peer = Peer { door: Entrance::Tls, address: Some(address), proven: tls.proven(stream.get_ref().1) };
                        match hall.seat(&peer, address) {
                            // The receiver is gone only while we stop.
                            Ok(places) => drop(sender.send(Ok(Connection::new(Carrier::Tls(Box::new(stream)), peer, places))).await),
                            Err(full) => tracing::warn!(%address, "closed: {full}"),
                        }
                    }
                    Ok(Err(error)) => tracing::info!(%address, %error, "TLS handshake failed"),
                    Err(_) => tracing::info!(%address, "TLS handshake took longer than {HANDSHAKE:?}"),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

impl Hall {
    /// The places of a connection whose peer is known, or which are full.
    fn seat(&self, peer: &Peer, address: SocketAddr) -> Result<Places, String> {
        let stranger = match &peer.proven {
            Some(_) => None,
            None => Some(self.strangers.take(address.ip()).ok_or_else(|| {
                format!("{STRANGERS_MAX} connections without a certificate are open, or {STRANGERS_OF_ORIGIN_MAX} from there")
            })?),
        };
        let place = self.connections.clone().try_acquire_owned().map_err(|_| format!("{CONNECTIONS_MAX} connections are open"))?;
        Ok((place, stranger))
    }
}

/// Takes connections that are no sockets: with TLS where it is given, else as if through the Unix socket.
pub fn virtual_door(mut given: mpsc::Receiver<(Box<dyn Io>, SocketAddr)>, tls: Option<ServerTls>) -> Incoming {
    let (sender, receiver) = mpsc::channel(READY_MAX);
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        while let Some((stream, address)) = given.recv().await {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let (tls, sender) = (tls.clone(), sender.clone());
            tokio::spawn(async move {
                let connection = match tls {
                    None => {
                        let peer = Peer { door: Entrance::Local, address: None, proven: None };
                        Connection::new(Carrier::Virtual(stream), peer, (place, None))
                    }
                    Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                        Ok(Ok(stream)) => {
                            let peer = Peer { door: Entrance::Tls, address: Some(address), proven: tls.proven(stream.get_ref().1) };
                            Connection::new(Carrier::VirtualTls(Box::new(stream)), peer, (place, None))
                        }
                        Ok(Err(_)) | Err(_) => return,
                    },
                };
                // The receiver is gone only while we stop.
                let _ = sender.send(Ok(connection)).await;
            });
        }
    });
    ReceiverStream::new(receiver)
}

/// Accepts plaintext.
pub fn plaintext(listener: TcpListener, stop: CancellationToken) -> Incoming {
    let (sender, receiver) = mpsc::channel(READY_MAX);
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        while let Some((stream, address, place)) = accept_tcp(&listener, &places, &stop).await {
            let peer = Peer { door: Entrance::Plaintext, address: Some(address), proven: None };
            if sender.send(Ok(Connection::new(Carrier::Tcp(stream), peer, (place, None)))).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// Accepts on the Unix socket. Its mode (0600) says who may connect.
pub fn unix(listener: UnixListener, stop: CancellationToken) -> Incoming {
    let (sender, receiver) = mpsc::channel(READY_MAX);
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let peer = Peer { door: Entrance::Local, address: None, proven: None };
                    if sender.send(Ok(Connection::new(Carrier::Unix(stream), peer, (place, None)))).await.is_err() {
                        return;
                    }
                }
                Err(error) => pause(&error).await,
            }
        }
    });
    ReceiverStream::new(receiver)
}

async fn accept_tcp(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                // Small frames must not wait for one another; a socket that refuses this is still good.
                let _ = stream.set_nodelay(true);
                return Some((stream, address, place));
            }
            Err(error) => pause(&error).await,
        }
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "cannot accept a connection; raise the limit of open files (ulimit -n) if this goes on");
    tokio::time::sleep(ACCEPT_RETRY).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_stream::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn what_belongs_together_leaves_in_one_write() {
        // Aim: a connection takes a frame's head and what is in it together, so that HTTP/2 does not write each by itself.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = plaintext(listener, CancellationToken::new());
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut served = incoming.next().await.unwrap().unwrap();
        assert!(served.is_write_vectored());
        let parts = [io::IoSlice::new(b"head "), io::IoSlice::new(b"content")];
        assert_eq!(served.write_vectored(&parts).await.unwrap(), 12);
        let mut read = [0; 12];
        client.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"head content");
    }
}
