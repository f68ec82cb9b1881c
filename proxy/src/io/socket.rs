//! One end of a byte stream.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::abrupt::{Abrupt, Seen};
use super::pipe::Pipe;

/// What a simulation's sockets must be able to do.
pub trait VirtualSocket: AsyncRead + AsyncWrite + Send + Unpin {
    /// See [`Abrupt::abort`]. Where it does nothing, the peer takes the drop for an end.
    fn abort(&mut self) {}
}

/// A connected byte stream. The kernel's own is a variant of its own, so that nothing is boxed on the way.
pub enum Socket {
    /// The kernel's.
    Tcp(TcpStream),
    /// A simulation's.
    Virtual(Box<dyn VirtualSocket>),
    /// One end of a memory pipe: the hairpin to this proxy's own inbound side, and tests.
    Pipe(Pipe),
}

/// Two connected ends of a memory pipe.
pub fn pipe() -> (Socket, Socket) {
    let (near, far) = Pipe::pair();
    (Socket::Pipe(near), Socket::Pipe(far))
}

impl Abrupt for Socket {
    fn abort(&mut self) {
        match self {
            // A socket that lingers for no time at all is reset when it is closed (tcp(7)). It fails only for one that is dead already.
            Self::Tcp(stream) => drop(SockRef::from(&*stream).set_linger(Some(Duration::ZERO))),
            Self::Virtual(stream) => stream.abort(),
            Self::Pipe(pipe) => pipe.abort(),
        }
    }

    fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<Seen> {
        match self {
            Self::Tcp(stream) => {
                let readable = stream.poll_read_ready(cx);
                // Asks what the poller has told, not the kernel.
                if stream.try_io(Interest::ERROR, || Ok(())).is_ok() {
                    return Poll::Ready(Seen::Reset);
                }
                readable.map(|_| Seen::Unread)
            }
            Self::Virtual(_) => Poll::Pending,
            Self::Pipe(pipe) => pipe.poll_reset(cx),
        }
    }
}

impl Socket {
    /// Hands bytes to the kernel that are to leave with what follows: more bytes, or the end. Whoever calls this must let something follow.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room, and always where it is not the kernel's socket; else the kernel's.
    pub fn try_write_more(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => {
                stream.try_io(Interest::WRITABLE, || SockRef::from(stream).send_with_flags(bytes, libc::MSG_MORE | libc::MSG_NOSIGNAL))
            }
            Self::Virtual(_) | Self::Pipe(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Tcp",
            Self::Virtual(_) => "Virtual",
            Self::Pipe(_) => "Pipe",
        })
    }
}

impl Socket {
    /// Ready when reading might give something, an end or an error among it; pending only when it would give nothing, and then the task
    /// is woken as by reading. Cheaper than to read and find nothing.
    #[inline]
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx),
            Self::Virtual(_) | Self::Pipe(_) => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncRead for Socket {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Virtual(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
            Self::Pipe(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Virtual(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
            Self::Pipe(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    #[inline]
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Virtual(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
            Self::Pipe(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Virtual(stream) => stream.is_write_vectored(),
            Self::Pipe(stream) => stream.is_write_vectored(),
        }
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            // A TCP socket has nothing to flush.
            Self::Tcp(_) => Poll::Ready(Ok(())),
            Self::Virtual(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
            Self::Pipe(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Virtual(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            Self::Pipe(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
