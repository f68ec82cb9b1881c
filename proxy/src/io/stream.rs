//! A connection as the roads see it: plain or under TLS, one type.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::{ConnectionCommon, SideData};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{client, server};

use super::{Abrupt, Rewound, Seen, Socket};

/// One type for every connection, so that HTTP and copying are compiled once. TLS states are boxed: they are a kilobyte and more, and
/// plain connections should not pay for them.
#[derive(Debug)]
pub enum Stream {
    /// Plaintext.
    Plain(Socket),
    /// TLS we opened.
    Opened(Box<Dry<client::TlsStream<Socket>>>),
    /// TLS to an application, inside TLS to its proxy.
    Inside(Box<Dry<client::TlsStream<client::TlsStream<Socket>>>>),
    /// TLS we accepted.
    Accepted(Box<Dry<server::TlsStream<Rewound<Socket>>>>),
}

/// TLS that remembers when it has given all it had. HTTP asks again and again whether there is more, at every turn of a connection; then
/// the socket is asked first, and TLS only when bytes have come.
#[derive(Debug)]
pub struct Dry<T> {
    tls: T,
    dry: bool,
    /// We have said goodbye.
    shut: bool,
}

impl<T: AsyncRead + Unpin> Dry<T> {
    #[inline]
    fn poll_read(&mut self, socket: fn(&T) -> &Socket, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.dry {
            ready!(socket(&self.tls).poll_readable(cx))?;
        }
        let read = Pin::new(&mut self.tls).poll_read(cx, buf);
        self.dry = read.is_pending();
        read
    }
}

impl Stream {
    /// TLS we opened.
    pub fn opened(tls: client::TlsStream<Socket>) -> Self {
        Self::Opened(Box::new(Dry { tls, dry: false, shut: false }))
    }

    /// TLS we opened inside TLS that we opened.
    pub fn inside(tls: client::TlsStream<client::TlsStream<Socket>>) -> Self {
        Self::Inside(Box::new(Dry { tls, dry: false, shut: false }))
    }

    /// TLS we accepted.
    pub fn accepted(tls: server::TlsStream<Rewound<Socket>>) -> Self {
        Self::Accepted(Box::new(Dry { tls, dry: false, shut: false }))
    }
}

/// TLS that ends without a goodbye was cut, for everybody who reads it (RFC 8446, section 6.1), and nothing before the cut is lost that way.
/// Where the goodbye has been said already, only a reset tells.
impl Abrupt for Stream {
    fn abort(&mut self) {
        match self {
            Self::Plain(socket) => socket.abort(),
            Self::Opened(stream) if stream.shut => stream.tls.get_mut().0.abort(),
            Self::Inside(stream) if stream.shut => stream.tls.get_mut().0.get_mut().0.abort(),
            Self::Accepted(stream) if stream.shut => stream.tls.get_mut().0.abort(),
            Self::Opened(_) | Self::Inside(_) | Self::Accepted(_) => {}
        }
    }

    fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<Seen> {
        match self {
            Self::Plain(socket) => socket.poll_reset(cx),
            Self::Opened(stream) => stream.tls.get_ref().0.poll_reset(cx),
            Self::Inside(stream) => stream.tls.get_ref().0.get_ref().0.poll_reset(cx),
            Self::Accepted(stream) => stream.tls.get_ref().0.poll_reset(cx),
        }
    }
}

/// Leaves the close alert with the kernel, for the end that follows. What does not work here, the shutdown itself does or tells.
fn say_goodbye<D: SideData>(socket: &Socket, session: &mut ConnectionCommon<D>) {
    if session.wants_write() {
        return;
    }
    session.send_close_notify();
    let _ = session.write_tls(&mut MoreFollows(socket));
}

/// Writes what is to leave together with what comes next.
struct MoreFollows<'a>(&'a Socket);

impl io::Write for MoreFollows<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write_more(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Opened(stream) => stream.poll_read(|tls| tls.get_ref().0, cx, buf),
            Self::Inside(stream) => stream.poll_read(|tls| tls.get_ref().0.get_ref().0, cx, buf),
            Self::Accepted(stream) => stream.poll_read(|tls| tls.get_ref().0.get_ref(), cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Opened(stream) => Pin::new(&mut stream.tls).poll_write(cx, buf),
            Self::Inside(stream) => Pin::new(&mut stream.tls).poll_write(cx, buf),
            Self::Accepted(stream) => Pin::new(&mut stream.tls).poll_write(cx, buf),
        }
    }

    #[inline]
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Opened(stream) => Pin::new(&mut stream.tls).poll_write_vectored(cx, bufs),
            Self::Inside(stream) => Pin::new(&mut stream.tls).poll_write_vectored(cx, bufs),
            Self::Accepted(stream) => Pin::new(&mut stream.tls).poll_write_vectored(cx, bufs),
        }
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Opened(stream) => stream.tls.is_write_vectored(),
            Self::Inside(stream) => stream.tls.is_write_vectored(),
            Self::Accepted(stream) => stream.tls.is_write_vectored(),
        }
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Opened(stream) => Pin::new(&mut stream.tls).poll_flush(cx),
            Self::Inside(stream) => Pin::new(&mut stream.tls).poll_flush(cx),
            Self::Accepted(stream) => Pin::new(&mut stream.tls).poll_flush(cx),
        }
    }

    /// TLS says goodbye in the packet that ends the connection: one wake-up of the peer instead of two.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Opened(stream) => {
                stream.shut = true;
                let (socket, session) = stream.tls.get_mut();
                say_goodbye(socket, session);
                Pin::new(&mut stream.tls).poll_shutdown(cx)
            }
            // Its own goodbye has to pass the outer one's.
            Self::Inside(stream) => {
                stream.shut = true;
                Pin::new(&mut stream.tls).poll_shutdown(cx)
            }
            Self::Accepted(stream) => {
                stream.shut = true;
                let (socket, session) = stream.tls.get_mut();
                say_goodbye(socket.get_ref(), session);
                Pin::new(&mut stream.tls).poll_shutdown(cx)
            }
        }
    }
}
