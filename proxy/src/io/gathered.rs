//! Writes gathered until the end of a turn.
//!
//! The HTTP/2 library writes out every DATA frame by itself, and HEADERS apart from the DATA that follows: a system call and a TLS
//! record each, however many streams are ready. Here small writes are held while the connection's task runs, and leave together when
//! its turn ends ([`Gathering::poll_out`]). What goes by is tallied: nothing more is read of a peer whose frames ask for too little.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::ground::tally::Tally;

/// Bytes held at most; then they are written within the turn. Seven DATA frames of the usual 16 KiB, so that bulk leaves in full packets.
const HELD_BYTES_MAX: usize = 128 << 10;
/// Writes of this size go straight through: copying them would cost more than the system call that it saves.
const DIRECT_BYTES_MIN: usize = 64 << 10;
/// Room kept by a connection that holds nothing.
const KEPT_BYTES_MAX: usize = 4 << 10;
/// Room for the usual turn; more is taken only by bulk.
const USUAL_BYTES: usize = 32 << 10;

/// The stream that is handed to the library.
pub struct Gathered<T>(Rc<Gathering<T>>);

/// The other end of a [`Gathered`], for who runs the connection's task.
pub struct Gathering<T>(RefCell<GatheredState<T>>);

struct GatheredState<T> {
    inner: T,
    held: Vec<u8>,
    start: usize,
    unflushed: bool,
    heard: bool,
    tally: Tally,
}

/// Wraps a stream. `tally` is of the frames that come.
pub fn gather<T>(inner: T, tally: Tally) -> (Gathered<T>, Rc<Gathering<T>>) {
    let state = GatheredState { inner, held: Vec::new(), start: 0, unflushed: false, heard: false, tally };
    let gathering = Rc::new(Gathering(RefCell::new(state)));
    (Gathered(Rc::clone(&gathering)), gathering)
}

impl<T: AsyncWrite + Unpin> GatheredState<T> {
    fn poll_held_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.start < self.held.len() {
            let count = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.held[self.start..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.start += count;
            self.unflushed = true;
        }
        self.start = 0;
        self.held.clear();
        Poll::Ready(Ok(()))
    }

    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.held.is_empty() {
            ready!(self.poll_held_out(cx))?;
        }
        if self.held.capacity() > KEPT_BYTES_MAX {
            self.held = Vec::new();
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Holds `total` bytes, or says why not: `Ok(false)` means that they should go straight through, and nothing is held any more.
    fn poll_hold(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>], total: usize) -> Poll<io::Result<bool>> {
        if total >= DIRECT_BYTES_MIN || self.held.len() + total > HELD_BYTES_MAX {
            ready!(self.poll_held_out(cx))?;
        }
        if total >= DIRECT_BYTES_MIN {
            self.unflushed = true;
            return Poll::Ready(Ok(false));
        }
        let after = self.held.len() + total;
        if after > KEPT_BYTES_MAX {
            let room = if after > USUAL_BYTES { HELD_BYTES_MAX } else { USUAL_BYTES };
            self.held.reserve_exact(room - self.held.len());
        }
        bufs.iter().for_each(|buf| self.held.extend_from_slice(buf));
        Poll::Ready(Ok(true))
    }
}

impl<T: AsyncWrite + Unpin> Gathering<T> {
    /// Writes out what is held and flushes. Ready at once when there is nothing to do.
    pub fn poll_out(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_out(cx)
    }

    /// Whether anything was read since this was last asked.
    pub fn heard(&self) -> bool {
        std::mem::take(&mut self.0.borrow_mut().heard)
    }

    /// Whether the peer's frames are too many: nothing is read any more, and the connection is to be ended.
    pub fn is_flooded(&self) -> bool {
        self.0.borrow().tally.is_flooded()
    }

    /// Runs `task`, the one that drives the connection, and ends each of its turns with [`Gathering::poll_out`]. A connection that cannot be
    /// written to is dropped. The library shuts the stream down before its task ends, which writes out what is held; what it leaves behind
    /// without that is nobody's.
    pub async fn drive<F: Future<Output = ()>>(&self, task: F) {
        let mut task = pin!(task);
        poll_fn(|cx| {
            let polled = task.as_mut().poll(cx);
            match self.poll_out(cx) {
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "a connection cannot be written to");
                    Poll::Ready(())
                }
                _ => polled,
            }
        })
        .await;
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathered<T> {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.0.0.borrow_mut();
        if state.tally.is_flooded() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut state.inner).poll_read(cx, buf))?;
        state.heard = true;
        if !state.tally.read(&buf.filled()[before..]) {
            // Its task ends the connection.
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathered<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut state = self.0.0.borrow_mut();
        let total = bufs.iter().map(|buf| buf.len()).sum();
        state.tally.written(total);
        if ready!(state.poll_hold(cx, bufs, total))? {
            return Poll::Ready(Ok(total));
        }
        Pin::new(&mut state.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The end of the turn flushes.
    #[inline]
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.0.borrow_mut();
        ready!(state.poll_out(cx))?;
        Pin::new(&mut state.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ground::tally::{Floods, Sender};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    async fn out<T: AsyncWrite + Unpin>(gathering: &Gathering<T>) {
        poll_fn(|cx| gathering.poll_out(cx)).await.unwrap();
    }

    #[tokio::test]
    async fn small_writes_leave_at_the_end_of_the_turn() {
        // Aim: nothing leaves before, everything leaves in order, large writes pass those held before them never.
        let (near, mut far) = duplex(256 << 10);
        let (mut stream, gathering) = gather(near, Tally::new(Sender::Peer, &Floods::default()));
        stream.write_all(b"ab").await.unwrap();
        stream.write_all(b"cd").await.unwrap();
        stream.flush().await.unwrap();
        let mut four = [0; 4];
        let early = tokio::time::timeout(std::time::Duration::from_millis(20), far.read(&mut four)).await;
        assert!(early.is_err(), "still held");
        out(&gathering).await;
        far.read_exact(&mut four).await.unwrap();
        assert_eq!(&four, b"abcd");
        stream.write_all(b"first").await.unwrap();
        stream.write_all(&[7; DIRECT_BYTES_MIN]).await.unwrap();
        let mut both = vec![0; 5 + DIRECT_BYTES_MIN];
        far.read_exact(&mut both).await.unwrap();
        assert_eq!((&both[..5], both[5..].iter().all(|byte| *byte == 7)), (&b"first"[..], true));
    }

    #[tokio::test]
    async fn what_is_held_is_bounded() {
        // Aim: a stream that is written to and never ends its turn holds 128 KiB at most, and a reader that is slow loses nothing.
        let (near, mut far) = duplex(1 << 10);
        let (mut stream, gathering) = gather(near, Tally::new(Sender::Peer, &Floods::default()));
        let writing = async {
            for number in 0..200_u8 {
                stream.write_all(&[number; 1000]).await.unwrap();
                assert!(gathering.0.borrow().held.len() <= HELD_BYTES_MAX);
            }
            out(&gathering).await;
            assert!(gathering.0.borrow().held.capacity() <= KEPT_BYTES_MAX, "room is given back");
            stream.shutdown().await.unwrap();
        };
        let mut read = Vec::new();
        let (_, count) = tokio::join!(writing, far.read_to_end(&mut read));
        assert_eq!(count.unwrap(), 200_000);
        assert!(read.chunks(1000).enumerate().all(|(number, chunk)| chunk.iter().all(|byte| usize::from(*byte) == number)));
    }
}
