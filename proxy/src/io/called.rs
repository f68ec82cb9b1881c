//! The stream beneath hyper's HTTP/1 client: hears what hyper keeps to itself (see [`Line`]).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::abrupt::{Abrupt, Seen};
use super::inserted::{Insert, Trailing, trailing};
use crate::ground::limits::{FIELDS_MAX, HEAD_BYTES_MAX};
use crate::ground::line::{Interim, Line};

/// Bytes read at once while an interim answer is incomplete.
const LOOK_BYTES: usize = 4096;
/// Where the first digit of the status stands.
const STATUS_AT: usize = b"HTTP/1.1 ".len();

/// See the module. Takes interim answers out and passes them on, writes trailers, and goes on listening after the other side stopped
/// taking what is written: its answer may be there already (RFC 9112, section 9.5), and hyper would look at the failed write first.
#[derive(Debug)]
pub struct Called<S> {
    inner: S,
    line: Arc<Line>,
    /// Read, and not given to hyper yet.
    held: BytesMut,
    insert: Option<Box<Insert>>,
    /// The other side takes nothing more.
    deaf: bool,
    /// It has reset the connection, which was told to who wrote; who reads would be told of an end.
    reset: bool,
}

/// What bytes are the beginning of.
enum Beginning {
    /// An interim answer of that length.
    Interim(Interim, usize),
    /// Perhaps one.
    Undecided,
    /// Something else, which is hyper's.
    Other,
}

impl<S> Called<S> {
    /// `line` is told by who sends.
    pub fn new(inner: S, line: Arc<Line>) -> Self {
        Self { inner, line, held: BytesMut::new(), insert: None, deaf: false, reset: false }
    }

    /// What was read and not given out yet, and the stream beneath: it has become a tunnel.
    pub fn into_parts(self) -> (Bytes, S) {
        (self.held.freeze(), self.inner)
    }

    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.held.len().min(buf.remaining());
        buf.put_slice(&self.held[..count]);
        self.held.advance(count);
        if self.held.is_empty() {
            self.held = BytesMut::new();
        }
    }

    /// A failed write is told by what is read then: the answer, or the end.
    fn heard_out<T>(&mut self, polled: Poll<io::Result<T>>, instead: T) -> Poll<io::Result<T>> {
        match polled {
            Poll::Ready(Err(error)) if no_longer_taken(&error) && !self.line.is_tunnel() => {
                self.deaf = true;
                self.reset |= error.kind() == io::ErrorKind::ConnectionReset;
                Poll::Ready(Ok(instead))
            }
            other => other,
        }
    }
}

fn no_longer_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted)
}

impl<S: AsyncRead + Unpin> Called<S> {
    /// Reads; a reset is no end.
    #[inline]
    fn poll_bytes(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if self.reset && polled.is_ready() && buf.filled().len() == before {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        polled
    }

    /// Reads while an answer's head is waited for.
    fn poll_head(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            let before = buf.filled().len();
            ready!(self.poll_bytes(cx, buf))?;
            let fresh = &buf.filled()[before..];
            if fresh.is_empty() {
                // The end, and no byte of an answer.
                return Poll::Ready(Ok(()));
            }
            if !may_be_interim(fresh) {
                self.line.head_came();
                return Poll::Ready(Ok(()));
            }
            self.held.extend_from_slice(fresh);
            buf.set_filled(before);
        }
        self.poll_interim(cx, buf)
    }

    #[cold]
    fn poll_interim(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match beginning(&self.held) {
                Beginning::Interim(interim, length) => {
                    self.line.hear(interim);
                    self.held.advance(length);
                }
                Beginning::Undecided => {
                    let mut room = [MaybeUninit::uninit(); LOOK_BYTES];
                    let mut look = ReadBuf::uninit(&mut room);
                    ready!(self.poll_bytes(cx, &mut look))?;
                    self.held.extend_from_slice(look.filled());
                    if !look.filled().is_empty() {
                        continue;
                    }
                    // The end: hyper's to judge.
                    self.line.head_came();
                    self.give(buf);
                    return Poll::Ready(Ok(()));
                }
                Beginning::Other => {
                    self.line.head_came();
                    self.give(buf);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Called<S> {
    #[cold]
    fn poll_write_other(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            if let Some(insert) = &mut self.insert {
                let claimed = ready!(insert.poll_out(&mut self.inner, cx))?;
                self.insert = None;
                return Poll::Ready(Ok(claimed));
            }
            if let Some(head) = self.line.take_stand_in() {
                self.line.wrote(&[IoSlice::new(&head)], head.len());
                self.insert = Some(Insert::boxed(head, bufs.iter().map(|buf| buf.len()).sum()));
                continue;
            }
            match trailing(bufs) {
                Trailing::Write(parts) => return Pin::new(&mut self.inner).poll_write_vectored(cx, &parts),
                Trailing::End(claimed) => {
                    let trailers = self.line.take_trailers().unwrap_or_default();
                    self.insert = Some(Insert::boxed([&trailers[..], b"\r\n"].concat().into(), claimed));
                }
            }
        }
    }
}

/// Whether bytes may begin an answer of 1xx.
#[inline]
fn may_be_interim(bytes: &[u8]) -> bool {
    match bytes.get(STATUS_AT) {
        Some(digit) => *digit == b'1' && bytes.starts_with(b"HTTP/1."),
        None => !bytes.is_empty() && b"HTTP/1.".iter().zip(bytes).all(|(wanted, byte)| wanted == byte),
    }
}

/// 101 is a final answer.
fn beginning(bytes: &[u8]) -> Beginning {
    if bytes.is_empty() {
        return Beginning::Undecided;
    }
    if !may_be_interim(bytes) {
        return Beginning::Other;
    }
    let mut room = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut room);
    match head.parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => Beginning::Undecided,
        Ok(httparse::Status::Complete(length)) => match (head.code, interim(&head)) {
            (Some(100 | 102..=199), Some(interim)) => Beginning::Interim(interim, length),
            _ => Beginning::Other,
        },
        _ => Beginning::Other,
    }
}

fn interim(head: &httparse::Response<'_, '_>) -> Option<Interim> {
    let status = StatusCode::from_u16(head.code?).ok()?;
    let mut headers = HeaderMap::with_capacity(head.headers.len());
    for field in head.headers.iter() {
        headers.append(HeaderName::from_bytes(field.name.as_bytes()).ok()?, HeaderValue::from_bytes(field.value).ok()?);
    }
    Some(Interim { status, headers })
}

impl<S: Abrupt> Abrupt for Called<S> {
    fn abort(&mut self) {
        self.inner.abort();
    }

    fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<Seen> {
        self.inner.poll_reset(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Called<S> {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.line.awaits_head() {
            return this.poll_head(cx, buf);
        }
        if this.held.is_empty() {
            return this.poll_bytes(cx, buf);
        }
        this.give(buf);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Called<S> {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    #[inline]
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let total = || bufs.iter().map(|buf| buf.len()).sum();
        if this.deaf {
            return Poll::Ready(Ok(total()));
        }
        let written = if this.line.has_other() || this.insert.is_some() {
            this.poll_write_other(cx, bufs)
        } else {
            let written = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
            if let Poll::Ready(Ok(count)) = &written {
                this.line.wrote(bufs, *count);
            }
            written
        };
        if matches!(written, Poll::Ready(Err(_))) { this.heard_out(written, total()) } else { written }
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.deaf {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut this.inner).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Err(_))) { this.heard_out(flushed, ()) } else { flushed }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::io::{Socket, pipe};

    async fn passed(line: &Line) -> Option<Interim> {
        poll_fn(|cx| {
            Poll::Ready(match line.poll_interim(cx) {
                Poll::Ready(interim) => Some(interim),
                Poll::Pending => None,
            })
        })
        .await
    }

    fn called() -> (Called<Socket>, Arc<Line>, Arc<Line>, Socket) {
        let (near, far) = pipe();
        let (line, to) = (Arc::new(Line::default()), Arc::new(Line::default()));
        to.begin();
        line.ask(Some(&to), false);
        (Called::new(near, Arc::clone(&line)), line, to, far)
    }

    #[tokio::test]
    async fn interim_answers_are_taken_out() {
        // Aim: wherever the bytes are cut, interim heads go their way in order and the rest is whole; 101, garbage and bodies pass untouched.
        const INTERIM: &str = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        for (text, interim, rest) in [
            (
                format!("{INTERIM}HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"),
                2,
                "HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n",
            ),
            (
                "HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 102 ".to_owned(),
                0,
                "HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 102 ",
            ),
            ("HTTP/1.1 1".to_owned(), 0, "HTTP/1.1 1"),
            ("HTTP/1.1 103 x\r\nbad header\r\n\r\n".to_owned(), 0, "HTTP/1.1 103 x\r\nbad header\r\n\r\n"),
            ("SSH-2.0-1".to_owned(), 0, "SSH-2.0-1"),
        ] {
            for step in [1, 7, 1000] {
                let (mut stream, _, to, mut far) = called();
                let writing = async {
                    for piece in text.as_bytes().chunks(step) {
                        far.write_all(piece).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                    drop(far);
                };
                let mut got = String::new();
                let (read, ()) = tokio::join!(stream.read_to_string(&mut got), writing);
                read.unwrap();
                assert_eq!(got, rest, "in steps of {step}");
                let mut statuses = Vec::new();
                while let Some(interim) = passed(&to).await {
                    statuses.push(interim.status.as_u16());
                }
                assert_eq!(statuses, [100, 103][..interim], "{text:?} in steps of {step}");
            }
        }
    }

    #[tokio::test]
    async fn the_answer_of_one_who_takes_nothing_more_is_heard() {
        // Aim: a write that fails does not come before the answer that is there to be read.
        let (mut stream, _, _, mut far) = called();
        far.write_all(b"HTTP/1.1 413 Too\r\n\r\n").await.unwrap();
        drop(far);
        stream.write_all(&[0; 200_000]).await.unwrap();
        stream.flush().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "HTTP/1.1 413 Too\r\n\r\n");
    }
}
