//! A connection within this process.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::abrupt::{Abrupt, Seen};

/// Bytes a memory pipe holds before its writer waits.
const PIPE_BYTES: usize = 64 << 10;

/// One end of a memory pipe. As with the kernel's connections, dropping it is an end for the reader of the other one, and a cut is told
/// after the bytes before it.
#[derive(Debug)]
pub struct Pipe {
    bytes: DuplexStream,
    own: Arc<Fate>,
    other: Arc<Fate>,
}

/// How one end went.
#[derive(Debug, Default)]
struct Fate {
    cut: AtomicBool,
    /// Who waits on the other end to hear of it.
    watcher: AtomicWaker,
}

impl Pipe {
    /// Two connected ends.
    pub fn pair() -> (Self, Self) {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let fates = [Arc::<Fate>::default(), Arc::default()];
        let end = |bytes, own: usize| Self { bytes, own: Arc::clone(&fates[own]), other: Arc::clone(&fates[1 - own]) };
        (end(near, 0), end(far, 1))
    }

    fn was_cut(&self) -> bool {
        self.other.cut.load(Ordering::Acquire)
    }

    /// What the other end's drop means to who writes.
    fn written<O>(&self, polled: Poll<io::Result<O>>) -> Poll<io::Result<O>> {
        match polled {
            Poll::Ready(Err(_)) if self.was_cut() => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            polled => polled,
        }
    }
}

impl Abrupt for Pipe {
    fn abort(&mut self) {
        self.own.cut.store(true, Ordering::Release);
        self.own.watcher.wake();
    }

    fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<Seen> {
        self.other.watcher.register(cx.waker());
        if self.was_cut() { Poll::Ready(Seen::Reset) } else { Poll::Pending }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.bytes).poll_read(cx, buf) {
            Poll::Ready(Ok(())) if buf.filled().len() == before && buf.remaining() > 0 && self.was_cut() => {
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
            polled => polled,
        }
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.bytes).poll_write(cx, buf);
        self.written(polled)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.bytes).poll_write_vectored(cx, bufs);
        self.written(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.bytes.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Aim: bytes before a cut arrive, the cut is no end, and who only watches hears of it; a drop alone is an end.
    #[tokio::test]
    async fn a_cut_is_no_end() {
        for cut in [true, false] {
            let (mut near, mut far) = Pipe::pair();
            let seen = poll_fn(|cx| Poll::Ready(far.poll_reset(cx))).await;
            assert_eq!(seen, Poll::Pending);
            near.write_all(b"word").await.unwrap();
            if cut {
                near.abort();
            }
            drop(near);
            let mut said = Vec::new();
            let read = far.read_to_end(&mut said).await;
            assert_eq!((said.as_slice(), read.is_err()), (&b"word"[..], cut), "{read:?}");
            let written = far.write_all(b"more").await.unwrap_err().kind();
            assert_eq!(written, if cut { io::ErrorKind::ConnectionReset } else { io::ErrorKind::BrokenPipe });
            let seen = poll_fn(|cx| Poll::Ready(far.poll_reset(cx))).await;
            assert_eq!(seen == Poll::Ready(Seen::Reset), cut);
        }
    }
}
