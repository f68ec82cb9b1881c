//! A socket under a TLS handshake, whose last words wait for what is said next.
//!
//! The client's last message of a handshake can travel with its first data, and the server's tickets with its first answer: one packet,
//! one system call and one wake-up of the other side less, each.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes held at most; what is larger is written out at once.
const HELD_BYTES_MAX: usize = 16 << 10;

/// What becomes of what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cork {
    /// Held until the other side's answer is waited for.
    Handshake,
    /// The other side waits for what is held: it leaves with the next write, or when there is nothing to write.
    Owed,
    /// Nobody waits for what is held: it leaves with the next write or the end.
    Courtesy,
    /// Nothing is held back.
    Out,
}

/// See the module.
#[derive(Debug)]
pub struct Corked<T> {
    inner: T,
    held: Vec<u8>,
    cork: Cork,
}

impl<T> Corked<T> {
    /// A socket at the start of a handshake.
    pub const fn new(inner: T) -> Self {
        Self { inner, held: Vec::new(), cork: Cork::Handshake }
    }

    /// The handshake is done. `owed`: the other side cannot go on before it has what is held.
    pub fn shook_hands(&mut self, owed: bool) {
        self.cork = match (self.held.is_empty(), owed) {
            (true, _) => Cork::Out,
            (false, true) => Cork::Owed,
            (false, false) => Cork::Courtesy,
        };
    }

    fn hold(&mut self, bufs: &[IoSlice<'_>]) -> usize {
        let before = self.held.len();
        bufs.iter().for_each(|buf| self.held.extend_from_slice(buf));
        self.held.len() - before
    }
}

impl<T: AsyncWrite + Unpin> Corked<T> {
    /// The handshake failed: writes out what is held, which says why.
    pub async fn say_goodbye(mut self) {
        let _ = poll_fn(|cx| self.poll_held_out(cx)).await;
    }

    fn poll_held_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let count = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.held))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..count);
        }
        if self.cork != Cork::Handshake {
            self.cork = Cork::Out;
            self.held = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    #[cold]
    fn poll_write_held(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        if self.held.len() + total > HELD_BYTES_MAX {
            ready!(self.poll_held_out(cx))?;
            return Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        }
        let count = self.hold(bufs);
        if self.cork != Cork::Handshake {
            // What does not leave now leaves before the next write, or at the next flush.
            self.cork = Cork::Owed;
            if let Poll::Ready(Err(error)) = self.poll_held_out(cx) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(count))
    }

    #[cold]
    fn poll_held_for_reader(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll_held_out(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Pending,
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<T> {
    #[inline]
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if polled.is_pending() && matches!(self.cork, Cork::Handshake | Cork::Owed) {
            return self.poll_held_for_reader(cx);
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Corked<T> {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.cork == Cork::Out {
            return Pin::new(&mut self.inner).poll_write(cx, buf);
        }
        self.poll_write_held(cx, &[IoSlice::new(buf)])
    }

    #[inline]
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.cork == Cork::Out {
            return Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        }
        self.poll_write_held(cx, bufs)
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.cork {
            Cork::Handshake | Cork::Courtesy => return Poll::Ready(Ok(())),
            Cork::Owed => ready!(self.poll_held_out(cx))?,
            Cork::Out => {}
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_held_out(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    async fn silent(far: &mut DuplexStream) -> bool {
        tokio::time::timeout(Duration::from_millis(20), far.read(&mut [0])).await.is_err()
    }

    #[tokio::test]
    async fn a_handshake_goes_on_when_an_answer_is_awaited() {
        // Aim: no deadlock: what is held leaves when its writer waits to read, in the handshake and after it where it is owed.
        let (near, mut far) = duplex(1024);
        let mut corked = Corked::new(near);
        corked.write_all(b"hello").await.unwrap();
        corked.flush().await.unwrap();
        assert!(silent(&mut far).await);
        let mut word = [0; 5];
        let answer = async {
            far.read_exact(&mut word).await.unwrap();
            far.write_all(b"y").await.unwrap();
        };
        tokio::join!(answer, async { corked.read_exact(&mut [0]).await.unwrap() });
        assert_eq!(&word, b"hello");
        corked.write_all(b"finis").await.unwrap();
        corked.shook_hands(true);
        assert!(silent(&mut far).await);
        corked.flush().await.unwrap();
        far.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"finis");
    }

    #[tokio::test]
    async fn courtesies_travel_with_what_comes_next() {
        // Aim: tickets wait for the first data or the end, through flushes and reads.
        let (near, mut far) = duplex(1024);
        let mut corked = Corked::new(near);
        corked.write_all(b"tick").await.unwrap();
        corked.shook_hands(false);
        corked.flush().await.unwrap();
        assert!(silent(&mut far).await);
        corked.write_all(b"data").await.unwrap();
        let mut both = [0; 8];
        far.read_exact(&mut both).await.unwrap();
        assert_eq!(&both, b"tickdata");
        let (near, mut far) = duplex(1024);
        let mut corked = Corked::new(near);
        corked.write_all(b"alert").await.unwrap();
        corked.say_goodbye().await;
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "alert", "why a handshake failed is told");
    }
}
