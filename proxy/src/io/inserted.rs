//! Bytes that are written between those of a library, which must not notice.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

/// Bytes on their way that stand for `claimed` bytes of the library's.
#[derive(Debug)]
pub(super) struct Insert {
    left: Bytes,
    claimed: usize,
}

impl Insert {
    /// `claimed` are the bytes of the library that this replaces.
    pub(super) fn boxed(left: Bytes, claimed: usize) -> Box<Self> {
        Box::new(Self { left, claimed })
    }

    /// Writes all; ready with the bytes of the library that are dealt with by that.
    pub(super) fn poll_out<S: AsyncWrite + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while self.left.has_remaining() {
            match ready!(Pin::new(&mut *stream).poll_write(cx, &self.left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.left.advance(count),
            }
        }
        Poll::Ready(Ok(self.claimed))
    }
}

/// How a chunked message without trailers ends (RFC 9112, section 7.1).
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// The end of the trailer section, which trailers come before.
const END: &[u8] = b"\r\n";

/// What to do with a write while trailers wait for the message's end.
pub(super) enum Trailing<'a> {
    /// Write these and no more: the end follows, or is still to come.
    Write(Vec<IoSlice<'a>>),
    /// It is the end of the trailer section, of this length.
    End(usize),
}

/// Finds the end of a chunked message in all that the library has to write. It comes last: the library ends a message in the turn in which
/// it is told of the end, and begins no other before it has written that one.
pub(super) fn trailing<'a>(bufs: &'a [IoSlice<'a>]) -> Trailing<'a> {
    let total: usize = bufs.iter().map(|buf| buf.len()).sum();
    let mut tail = bufs.iter().rev().flat_map(|buf| buf.iter().rev());
    if total == END.len() && tail.clone().eq(END.iter().rev()) {
        return Trailing::End(total);
    }
    let ends = LAST_CHUNK.iter().rev().all(|byte| tail.next() == Some(byte));
    let mut room = if ends { total - END.len() } else { total };
    let mut parts = Vec::with_capacity(bufs.len());
    for buf in bufs {
        let count = buf.len().min(room);
        if count > 0 {
            parts.push(IoSlice::new(&buf[..count]));
        }
        room -= count;
    }
    Trailing::Write(parts)
}

/// All bytes of a vectored write in one piece.
pub(super) fn joined(bufs: &[IoSlice<'_>]) -> Vec<u8> {
    bufs.iter().map(|buf| &**buf).collect::<Vec<_>>().concat()
}
