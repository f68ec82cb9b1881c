//! The beginning of an HTTP/1 connection, until its first request: what the server writes before it has seen one is its own refusal of
//! bytes that are none, and there is no other place to say why.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use engine::failure::Reason;
use tokio::io::AsyncWrite;

use super::Stream;

/// A stream that adds the reason to a refusal. It steps aside at the first write after `asked` was set.
#[derive(Debug)]
pub struct Unasked {
    /// Absent once it has stepped aside.
    stream: Option<Stream>,
    asked: Arc<AtomicBool>,
    refusal: Option<Refusal>,
}

/// A refusal on its way.
#[derive(Debug)]
struct Refusal {
    left: Bytes,
    /// What the server believes to have written.
    claimed: usize,
}

impl Unasked {
    /// `asked` is set by who serves, when the first request comes.
    pub const fn new(stream: Stream, asked: Arc<AtomicBool>) -> Self {
        Self { stream: Some(stream), asked, refusal: None }
    }

    /// The stream beneath. It is there as long as nobody has taken it.
    pub const fn get_mut(&mut self) -> Option<&mut Stream> {
        self.stream.as_mut()
    }

    /// See [`Unasked::get_mut`].
    pub const fn get_ref(&self) -> Option<&Stream> {
        self.stream.as_ref()
    }

    /// The stream beneath, if a request has come: there is nothing left to do here.
    pub fn step_aside(&mut self) -> Option<Stream> {
        if self.asked.load(Ordering::Relaxed) { self.stream.take() } else { None }
    }

    /// Writes a refusal with its reason; ready when all of it is written.
    pub fn poll_refuse(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        let refusal = self.refusal.get_or_insert_with(|| {
            let bytes = bufs.iter().map(|buf| &**buf).collect::<Vec<_>>().concat();
            Refusal { claimed: bytes.len(), left: with_reason(bytes) }
        });
        while refusal.left.has_remaining() {
            match ready!(Pin::new(&mut *stream).poll_write(cx, &refusal.left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => refusal.left.advance(count),
            }
        }
        let claimed = refusal.claimed;
        self.refusal = None;
        Poll::Ready(Ok(claimed))
    }
}

/// A head of 4xx with the reason as its first header; anything else as it is.
fn with_reason(mut bytes: Vec<u8>) -> Bytes {
    let line = bytes.windows(2).position(|two| two == b"\r\n");
    if let Some(line) = line.filter(|line| bytes[..*line].starts_with(b"HTTP/1.1 4")) {
        let header = format!("x-meshwright-reason: {}\r\n", Reason::BadRequest.text());
        bytes.splice(line + 2..line + 2, header.into_bytes());
    }
    bytes.into()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::io::pipe;

    /// Aim: a refusal gets its reason and is counted as the server wrote it; after a request every byte passes as it is.
    #[tokio::test]
    async fn refusals_say_why_and_answers_pass() {
        const REFUSAL: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        for asked in [false, true] {
            let (near, mut far) = pipe();
            let mut stream = Stream::Unasked(Box::new(Unasked::new(Stream::Plain(near), Arc::new(AtomicBool::new(asked)))));
            assert_eq!(stream.write(REFUSAL).await.unwrap(), REFUSAL.len());
            stream.flush().await.unwrap();
            assert_eq!(matches!(stream, Stream::Unasked(_)), !asked);
            stream.shutdown().await.unwrap();
            let mut text = String::new();
            far.read_to_string(&mut text).await.unwrap();
            let wanted = if asked { "connection: close" } else { "x-meshwright-reason: bad_request\r\nconnection: close" };
            assert!(text.starts_with(&format!("HTTP/1.1 400 Bad Request\r\n{wanted}\r\n")) && text.ends_with("\r\n\r\n"), "{text}");
        }
        assert_eq!(with_reason(b"220 hello\r\n".to_vec()), "220 hello\r\n");
        assert_eq!(with_reason(b"HTTP/1.1 4".to_vec()), "HTTP/1.1 4");
    }
}
