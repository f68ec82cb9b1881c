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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::tls::ServerTls;
use crate::clock::Clock;
use crate::publish::peer::{Entrance, Peer, Proven};

/// Most connections per door; more wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Most of them without a certificate: callers by token, and proxies before their first leaf. Beyond it they are closed, so that strangers keep
/// no proxy out.
pub const STRANGERS_MAX: usize = 512;
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
    peer: Peer,
    _places: Places,
}

/// Its place among all, and among strangers where it is one's.
type Places = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
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

/// Accepts TLS. Each handshake has its own task, so that a slow one delays nobody.
pub fn tls(listener: TcpListener, tls: ServerTls, stop: CancellationToken) -> Incoming {
    let (sender, receiver) = mpsc::channel(READY_MAX);
    let acceptor = TlsAcceptor::from(tls.config.clone());
    tokio::spawn(async move {
        let (places, strangers) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Arc::new(Semaphore::new(STRANGERS_MAX)));
        while let Some((stream, address, place)) = accept_tcp(&listener, &places, &stop).await {
            let (acceptor, sender, clock, strangers) = (acceptor.clone(), sender.clone(), tls.clock.clone(), strangers.clone());
            tokio::spawn(async move {
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        let peer = Peer { door: Entrance::Tls, address: Some(address), proven: proven(stream.get_ref().1, &clock) };
                        let Ok(places) = seated(place, &peer, strangers) else {
                            tracing::warn!(%address, "closed: {STRANGERS_MAX} connections without a certificate are open");
                            return;
                        };
                        // The receiver is gone only while we stop.
                        let _ = sender.send(Ok(Connection { stream: Carrier::Tls(Box::new(stream)), peer, _places: places })).await;
                    }
                    Ok(Err(error)) => tracing::info!(%address, %error, "TLS handshake failed"),
                    Err(_) => tracing::info!(%address, "TLS handshake took longer than {HANDSHAKE:?}"),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

/// The places of a connection whose peer is known; an error where it is a stranger too many.
fn seated(place: OwnedSemaphorePermit, peer: &Peer, strangers: Arc<Semaphore>) -> Result<Places, TryAcquireError> {
    if peer.proven.is_some() {
        return Ok((place, None));
    }
    strangers.try_acquire_owned().map(|own| (place, Some(own)))
}

/// Takes connections that are no sockets: with TLS where it is given, else as if through the Unix socket.
pub fn virtual_door(mut given: mpsc::Receiver<(Box<dyn Io>, SocketAddr)>, tls: Option<ServerTls>) -> Incoming {
    let (sender, receiver) = mpsc::channel(READY_MAX);
    let acceptor = tls.map(|tls| (TlsAcceptor::from(tls.config), tls.clock));
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        while let Some((stream, address)) = given.recv().await {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let (acceptor, sender) = (acceptor.clone(), sender.clone());
            tokio::spawn(async move {
                let connection = match acceptor {
                    None => {
                        let peer = Peer { door: Entrance::Local, address: None, proven: None };
                        Connection { stream: Carrier::Virtual(stream), peer, _places: (place, None) }
                    }
                    Some((acceptor, clock)) => match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => {
                            let peer = Peer { door: Entrance::Tls, address: Some(address), proven: proven(stream.get_ref().1, &clock) };
                            Connection { stream: Carrier::VirtualTls(Box::new(stream)), peer, _places: (place, None) }
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

fn proven(connection: &rustls::ServerConnection, clock: &Clock) -> Option<Arc<Proven>> {
    let leaf = connection.peer_certificates()?.first()?.clone();
    let now_secs = i64::try_from(clock.unix().as_secs()).unwrap_or(i64::MAX);
    Proven::read(leaf.into_owned(), now_secs).map(Arc::new)
}

/// Accepts plaintext.
pub fn plaintext(listener: TcpListener, stop: CancellationToken) -> Incoming {
    let (sender, receiver) = mpsc::channel(READY_MAX);
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        while let Some((stream, address, place)) = accept_tcp(&listener, &places, &stop).await {
            let peer = Peer { door: Entrance::Plaintext, address: Some(address), proven: None };
            if sender.send(Ok(Connection { stream: Carrier::Tcp(stream), peer, _places: (place, None) })).await.is_err() {
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
                    if sender.send(Ok(Connection { stream: Carrier::Unix(stream), peer, _places: (place, None) })).await.is_err() {
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
