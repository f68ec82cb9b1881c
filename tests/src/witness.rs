//! A witness on the wire between hosts: sees what a packet capture would see, and remembers the first bytes of each connection.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use proxy::io::{Abrupt as _, Socket, VirtualSocket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// First bytes remembered of each connection.
const FIRST_BYTES: usize = 8;
/// Connections remembered.
const CONNECTIONS_MAX: usize = 100_000;

/// One connection between two hosts.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// Who opened it.
    pub from: SocketAddr,
    /// Where it went, before any redirection.
    pub to: SocketAddr,
    /// What its opener sent first.
    pub first: Vec<u8>,
}

/// What was seen so far. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Witness(Arc<Mutex<Vec<Sighting>>>);

impl Witness {
    /// Everything seen.
    pub fn sightings(&self) -> Vec<Sighting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connections to `port` that did not begin with a TLS handshake record (RFC 8446, section 5.1), where bytes were sent at all.
    pub fn plaintext_to(&self, port: u16) -> Vec<Sighting> {
        let is_plain = |seen: &Sighting| seen.to.port() == port && !seen.first.is_empty() && !seen.first.starts_with(&[0x16, 0x03]);
        self.sightings().into_iter().filter(is_plain).collect()
    }

    /// How many connections went to `port`.
    pub fn connections_to(&self, port: u16) -> usize {
        self.sightings().iter().filter(|seen| seen.to.port() == port).count()
    }

    /// Puts a connection under observation.
    pub fn watch<S>(&self, from: SocketAddr, to: SocketAddr, stream: S) -> Watched<S> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = (all.len() < CONNECTIONS_MAX).then(|| {
            all.push(Sighting { from, to, first: Vec::new() });
            all.len() - 1
        });
        Watched { stream, number, witness: self.clone() }
    }

    /// The same for a connection that nobody observes.
    pub fn pass<S>(stream: S) -> Watched<S> {
        Watched { stream, number: None, witness: Self::default() }
    }

    fn sent(&self, number: usize, bytes: &[u8]) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sighting) = all.get_mut(number) else { return true };
        let room = FIRST_BYTES - sighting.first.len();
        sighting.first.extend(bytes.iter().take(room));
        sighting.first.len() == FIRST_BYTES
    }
}

/// The opener's end of an observed connection.
#[derive(Debug)]
pub struct Watched<S> {
    stream: S,
    /// Until its first bytes are known.
    number: Option<usize>,
    witness: Witness,
}

impl VirtualSocket for Watched<Socket> {
    fn abort(&mut self) {
        self.stream.abort();
    }
}

/// A simulated network's: dropping it is all it knows.
impl VirtualSocket for Watched<turmoil::net::TcpStream> {}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        if let Some(number) = self.number
            && self.witness.sent(number, &buf[..written])
        {
            self.number = None;
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
