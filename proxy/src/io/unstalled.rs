//! The stream of an HTTP connection, between it and the bytes: what the library does not see of the peer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::{Abrupt, Notes, Seen};
use crate::ground::limits::{PRESSURE_ASKED_EVERY, RESET_ASKED_EVERY, STALL_WAIT};

/// A peer that takes nothing of what is written to it may do so for as long as it lives, which the kernel looks after. Only while
/// the worker has no places left, and bytes have waited for [`STALL_WAIT`] and not one was taken, writing fails: who never reads must not keep
/// others out. Costs nothing while the peer takes what is written. Cuts the connection at its drop where the notes say so.
#[derive(Debug)]
pub struct Unstalled<T: Abrupt> {
    inner: T,
    notes: Arc<Notes>,
    /// Made when first needed and kept: a slow peer stalls again and again.
    timers: Option<Pin<Box<Timers>>>,
}

pin_project! {
    #[derive(Debug)]
    struct Timers {
        #[pin]
        stall: Sleep,
        // Something was taken since the last stall.
        moved: bool,
        // Asks again for a reset that would wake nobody.
        #[pin]
        gone: Sleep,
    }
}

impl<T: Abrupt> Unstalled<T> {
    /// Wraps a stream.
    pub const fn new(inner: T, notes: Arc<Notes>) -> Self {
        Self { inner, notes, timers: None }
    }

    fn timers<'t>(timers: &'t mut Option<Pin<Box<Timers>>>, notes: &Notes) -> Pin<&'t mut Timers> {
        let stall = notes.stall.unwrap_or(STALL_WAIT);
        let begin = || Box::pin(Timers { stall: sleep(stall), moved: true, gone: sleep(RESET_ASKED_EVERY) });
        timers.get_or_insert_with(begin).as_mut()
    }

    #[inline]
    fn judge<O>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<O>>) -> Poll<io::Result<O>> {
        if polled.is_pending() {
            return self.stalled(cx).map(Err);
        }
        if let Some(timers) = &mut self.timers {
            *timers.as_mut().project().moved = true;
            self.notes.hold_up(false);
        }
        polled
    }

    #[cold]
    fn stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let begins = !self.notes.held_up();
        self.notes.hold_up(true);
        let stall = self.notes.stall.unwrap_or(STALL_WAIT);
        let mut timers = Self::timers(&mut self.timers, &self.notes).project();
        if begins && self.notes.stall.is_some() {
            timers.stall.as_mut().reset(Instant::now() + stall);
            *timers.moved = false;
        }
        while timers.stall.as_mut().poll(cx).is_ready() {
            let moved = std::mem::take(timers.moved);
            if !moved && (self.notes.stall.is_some() || self.notes.pressure.is_on()) {
                let why = if self.notes.stall.is_some() { "" } else { ", and its place is wanted" };
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, format!("the peer took nothing for {stall:?}{why}")));
            }
            let wait = if moved { stall } else { PRESSURE_ASKED_EVERY };
            timers.stall.as_mut().reset(Instant::now() + wait);
        }
        Poll::Pending
    }
}

impl<T: Abrupt> Abrupt for Unstalled<T> {
    fn abort(&mut self) {
        self.inner.abort();
    }

    fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<Seen> {
        self.inner.poll_reset(cx)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while self.notes.watched {
            match ready!(self.inner.poll_reset(cx)) {
                Seen::Reset => return Poll::Ready(io::ErrorKind::ConnectionReset.into()),
                Seen::Unread => {
                    let mut again = Self::timers(&mut self.timers, &self.notes).project().gone;
                    ready!(again.as_mut().poll(cx));
                    again.as_mut().reset(Instant::now() + RESET_ASKED_EVERY);
                }
            }
        }
        Poll::Pending
    }
}

impl<T: Abrupt> Drop for Unstalled<T> {
    fn drop(&mut self) {
        if self.notes.was_cut() {
            self.inner.abort();
        }
    }
}

impl<T: AsyncRead + Abrupt + Unpin> AsyncRead for Unstalled<T> {
    #[inline]
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if polled.is_ready() {
            self.notes.hear();
        }
        polled
    }
}

impl<T: AsyncWrite + Abrupt + Unpin> AsyncWrite for Unstalled<T> {
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
    use crate::io::{Pressure, Socket, pipe};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// More than a pipe holds.
    const MUCH: usize = 128 << 10;

    async fn stalled(pressure: &Pressure) -> (Unstalled<Socket>, Socket) {
        let (near, far) = pipe();
        let mut stream = Unstalled::new(near, Notes::new(pressure, false));
        let filled = tokio::time::timeout(Duration::from_secs(1), stream.write_all(&[0; MUCH])).await;
        assert!(filled.is_err(), "everything was taken");
        (stream, far)
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_stands_still_gives_way_and_only_where_places_are_wanted() {
        // Aim: without need a peer may take nothing for a day; in need who stands still gives way within ten seconds, a slow reader never.
        let pressure = Pressure::default();
        let (mut stream, far) = stalled(&pressure).await;
        let day = Duration::from_secs(24 * 3600);
        assert!(tokio::time::timeout(day, stream.write_all(&[0; 1])).await.is_err(), "given up without need");
        pressure.rise();
        let began = Instant::now();
        let error = stream.write_all(&[0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() <= PRESSURE_ASKED_EVERY, "{:?}", began.elapsed());
        drop(far);

        let (mut stream, mut far) = stalled(&pressure).await;
        let slow = async {
            let mut some = vec![0; 8 << 10];
            for _ in 0..15 {
                sleep(STALL_WAIT - Duration::from_secs(1)).await;
                far.read_exact(&mut some).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(stream.write_all(&[0; 60 << 10]), slow);
        written.unwrap();
        pressure.fall();
    }
}
