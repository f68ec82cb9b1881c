//! A byte stream whose first bytes were already read by somebody who had to look at them.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Abrupt, Seen};

/// Gives `seen` first, then what the stream gives. Writes go straight through.
#[derive(Debug)]
pub struct Rewound<T> {
    seen: Bytes,
    inner: T,
}

impl<T> Rewound<T> {
    /// `seen` are the bytes already taken from `inner`, in order; may be empty.
    pub const fn new(seen: Bytes, inner: T) -> Self {
        Self { seen, inner }
    }

    /// Puts bytes back that were just read from this stream; they come before everything else.
    pub fn put_back(&mut self, bytes: Bytes) {
        self.seen = if self.seen.is_empty() { bytes } else { [bytes, std::mem::take(&mut self.seen)].concat().into() };
    }

    /// What was seen and not read again yet, and the stream.
    pub fn into_parts(self) -> (Bytes, T) {
        (self.seen, self.inner)
    }

    /// The stream beneath.
    pub const fn get_ref(&self) -> &T {
        &self.inner
    }
}

impl<T: Abrupt> Abrupt for Rewound<T> {
    fn abort(&mut self) {
        self.inner.abort();
    }

    fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<Seen> {
        self.inner.poll_reset(cx)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Rewound<T> {
    #[inline]
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.seen.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let count = self.seen.len().min(buf.remaining());
        buf.put_slice(&self.seen[..count]);
        self.seen.advance(count);
        if self.seen.is_empty() {
            self.seen = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Rewound<T> {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    #[inline]
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn what_was_seen_comes_first() {
        // Aim: nothing is lost or repeated, whatever the size of the reads.
        let (mut far, near) = tokio::io::duplex(64);
        far.write_all(b" world").await.unwrap();
        drop(far);
        let mut stream = Rewound::new(Bytes::from_static(b"hello"), near);
        let mut text = String::new();
        let mut two = [0; 2];
        stream.read_exact(&mut two).await.unwrap();
        text.push_str(std::str::from_utf8(&two).unwrap());
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello world");
    }
}
