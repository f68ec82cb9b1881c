//! A stream that gives up on a peer which takes nothing.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::limits::STALL_WAIT;

/// Writing fails when bytes have waited for [`STALL_WAIT`] to twice of it and not one was taken: an exchange whose other side stands still
/// does not see its own idle timeout, because nobody asks for more of its body. Costs nothing while the peer takes what is written.
#[derive(Debug)]
pub struct Unstalled<T> {
    inner: T,
    /// Made at the first stall and kept: a slow peer stalls again and again.
    stall: Option<Pin<Box<Stall>>>,
}

pin_project! {
    #[derive(Debug)]
    struct Stall {
        #[pin]
        over: Sleep,
        moved: bool,
    }
}

impl<T> Unstalled<T> {
    /// Wraps a stream.
    pub const fn new(inner: T) -> Self {
        Self { inner, stall: None }
    }

    #[inline]
    fn judge<O>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<O>>) -> Poll<io::Result<O>> {
        if polled.is_pending() {
            return self.stalled(cx).map(Err);
        }
        if let Some(stall) = &mut self.stall {
            *stall.as_mut().project().moved = true;
        }
        polled
    }

    #[cold]
    fn stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let begin = || Box::pin(Stall { over: tokio::time::sleep(STALL_WAIT), moved: false });
        let mut stall = self.stall.get_or_insert_with(begin).as_mut().project();
        while stall.over.as_mut().poll(cx).is_ready() {
            if !std::mem::take(stall.moved) {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, format!("the peer took nothing for {STALL_WAIT:?}")));
            }
            stall.over.as_mut().reset(Instant::now() + STALL_WAIT);
        }
        Poll::Pending
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Unstalled<T> {
    #[inline]
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Unstalled<T> {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.judge(cx, polled)
    }

    #[inline]
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.judge(cx, polled)
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.judge(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.judge(cx, polled)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test(start_paused = true)]
    async fn only_a_peer_that_takes_nothing_is_given_up() {
        // Aim: a slow reader is served for ever, one that stands still for the limit at most twice; silence without a write is no stall.
        let (near, mut far) = duplex(16);
        let mut stream = Unstalled::new(near);
        stream.write_all(&[0; 16]).await.unwrap();
        tokio::time::sleep(STALL_WAIT * 5).await;
        let slow = async {
            let mut two = [0; 2];
            for _ in 0..20 {
                tokio::time::sleep(STALL_WAIT - Duration::from_secs(1)).await;
                far.read_exact(&mut two).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(stream.write_all(&[0; 40]), slow);
        written.unwrap();
        let began = Instant::now();
        let error = stream.write_all(&[0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!((STALL_WAIT..=STALL_WAIT * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    }
}
