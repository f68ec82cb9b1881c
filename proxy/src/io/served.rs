//! The stream beneath hyper's HTTP/1 server: puts in its place what hyper cannot write (see [`Line`]).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use engine::failure::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::abrupt::{Abrupt, Seen};
use super::inserted::{Insert, Trailing, joined, trailing};
use crate::ground::line::Line;

/// hyper says this by itself as soon as somebody reads a body that the client holds back.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// No turn: an exchange is open.
const NOT_QUIET: u32 = u32::MAX;

/// See the module. Bytes pass as they are, but for: the reason in a refusal that hyper makes by itself, interim answers, trailers, and
/// hyper's own 100 where the upstream is to say it.
#[derive(Debug)]
pub struct Served<S> {
    inner: S,
    line: Arc<Line>,
    /// The line's turn when all was written and no exchange was open. What is written in that turn is nobody's answer: hyper refuses bytes
    /// that are no request.
    quiet: u32,
    insert: Option<Box<Insert>>,
    look: Scan,
    /// The turn it was looked in.
    looked: u32,
}

/// How far a request line has been looked through for a fragment (`#` in the target).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scan {
    /// Nobody asks.
    Never,
    /// Before its first byte; empty lines may come first (RFC 9112, section 2.2).
    Before,
    Method,
    Target,
    /// Beyond the target.
    Beyond,
}

impl Scan {
    /// Looks on; whether there is a fragment.
    fn through(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            *self = match (*self, byte) {
                (Self::Before, b'\r' | b'\n') => Self::Before,
                (Self::Before, _) => Self::Method,
                (Self::Method, b' ') => Self::Target,
                (Self::Target, b'#') => {
                    *self = Self::Beyond;
                    return true;
                }
                (Self::Method | Self::Target, b'\n') | (Self::Target, b' ') => Self::Beyond,
                (Self::Method | Self::Target, _) => continue,
                (Self::Never | Self::Beyond, _) => return false,
            };
        }
        false
    }
}

impl<S: AsyncWrite + Unpin> Served<S> {
    /// `line` is told by who serves. `looks` says to look for fragments, which hyper cuts off before anybody sees them.
    pub const fn new(inner: S, line: Arc<Line>, looks: bool) -> Self {
        Self { inner, line, quiet: 0, insert: None, looked: 0, look: if looks { Scan::Before } else { Scan::Never } }
    }

    /// The stream beneath: it has become a tunnel.
    pub fn into_inner(self) -> S {
        self.inner
    }

    #[inline]
    fn is_plain(&self) -> bool {
        !self.line.has_words() && self.line.turn() != self.quiet && self.insert.is_none()
    }

    /// Ready when what was to be inserted is written; with the bytes that hyper may forget.
    fn poll_insert(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(insert) = &mut self.insert else { return Poll::Ready(Ok(0)) };
        let claimed = ready!(insert.poll_out(&mut self.inner, cx))?;
        self.insert = None;
        Poll::Ready(Ok(claimed))
    }

    #[cold]
    fn poll_write_words(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            let claimed = ready!(self.poll_insert(cx))?;
            if claimed > 0 {
                return Poll::Ready(Ok(claimed));
            }
            if self.line.turn() == self.quiet {
                let bytes = joined(bufs);
                let claimed = bytes.len();
                self.insert = Some(Insert::boxed(with_reason(bytes), claimed));
                continue;
            }
            if self.line.is_clean()
                && let Some(interim) = self.line.take_interim()
            {
                self.insert = Some(Insert::boxed(interim, 0));
                continue;
            }
            self.line.set_clean(false);
            if self.line.take_not_ours() && bufs.iter().find(|buf| !buf.is_empty()).is_some_and(|buf| buf.starts_with(CONTINUE)) {
                return Poll::Ready(Ok(CONTINUE.len()));
            }
            if !self.line.has_other() {
                return Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
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

    #[cold]
    fn poll_flush_words(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_insert(cx))?;
            match self.line.take_interim() {
                Some(interim) => self.insert = Some(Insert::boxed(interim, 0)),
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// A head of 4xx with the reason as its first header; anything else as it is.
fn with_reason(mut bytes: Vec<u8>) -> Bytes {
    let line = bytes.windows(2).position(|two| two == b"\r\n");
    if let Some(line) = line.filter(|line| bytes[..*line].starts_with(b"HTTP/1.1 4")) {
        let too_large = bytes.starts_with(b"HTTP/1.1 431") || bytes.starts_with(b"HTTP/1.1 414");
        let reason = if too_large { Reason::TooLarge } else { Reason::BadRequest };
        let header = format!("x-meshwright-reason: {}\r\n", reason.text());
        bytes.splice(line + 2..line + 2, header.into_bytes());
    }
    bytes.into()
}

impl<S: Abrupt> Abrupt for Served<S> {
    fn abort(&mut self) {
        self.inner.abort();
    }

    fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<Seen> {
        self.inner.poll_reset(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Served<S> {
    /// What is read while nothing is open is a head. Those that are sent ahead of their turn are not looked through.
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.look == Scan::Beyond && this.quiet != this.looked && this.quiet != NOT_QUIET && this.line.heads_come() {
            (this.look, this.looked) = (Scan::Before, this.quiet);
        }
        if matches!(this.look, Scan::Never | Scan::Beyond) {
            return Pin::new(&mut this.inner).poll_read(cx, buf);
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        if this.look.through(&buf.filled()[before..]) {
            this.line.comes_with_fragment();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Abrupt + Unpin> AsyncWrite for Served<S> {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.is_plain() {
            return this.poll_write_words(cx, &[IoSlice::new(buf)]);
        }
        this.line.set_clean(false);
        Pin::new(&mut this.inner).poll_write(cx, buf)
    }

    #[inline]
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.is_plain() {
            return this.poll_write_words(cx, bufs);
        }
        this.line.set_clean(false);
        Pin::new(&mut this.inner).poll_write_vectored(cx, bufs)
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// hyper flushes when it has written everything: the place for interim answers.
    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.line.has_words() || this.insert.is_some() {
            ready!(this.poll_flush_words(cx))?;
        }
        ready!(Pin::new(&mut this.inner).poll_flush(cx))?;
        this.line.set_clean(true);
        this.quiet = this.line.quiet_turn().unwrap_or(NOT_QUIET);
        // While an answer is made, or what the client sends on after it finds its way: hyper reads then only as the application does.
        if (this.quiet == NOT_QUIET || !this.line.heads_come())
            && let Poll::Ready(error) = this.inner.poll_gone(cx)
        {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::ground::line::Interim;
    use crate::io::{Socket, pipe};

    const REFUSAL: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    const WITH_REASON: &str =
        "HTTP/1.1 400 Bad Request\r\nx-meshwright-reason: bad_request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

    fn served() -> (Served<Socket>, Arc<Line>, Socket) {
        let (near, far) = pipe();
        let line = Arc::new(Line::default());
        (Served::new(near, Arc::clone(&line), true), line, far)
    }

    async fn all(mut stream: Served<Socket>, mut far: Socket) -> String {
        stream.shutdown().await.unwrap();
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        text
    }

    async fn say(stream: &mut Served<Socket>, bytes: &[u8]) {
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
    }

    #[tokio::test]
    async fn refusals_say_why_and_answers_pass() {
        // Aim: a refusal gets its reason whether it is the connection's first word or a later one, and counts as hyper wrote it; answers and
        // tunnels that read like one pass byte for byte.
        let (mut stream, _, far) = served();
        assert_eq!(stream.write(REFUSAL).await.unwrap(), REFUSAL.len());
        assert_eq!(all(stream, far).await, WITH_REASON);

        let (mut stream, line, far) = served();
        line.begin();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        // A body's next piece, while the answer is open.
        say(&mut stream, REFUSAL).await;
        line.ended();
        stream.flush().await.unwrap();
        line.begin();
        line.ended();
        say(&mut stream, REFUSAL).await;
        say(&mut stream, REFUSAL).await;
        let plain = String::from_utf8_lossy(REFUSAL);
        assert_eq!(all(stream, far).await, format!("HTTP/1.1 200 OK\r\n\r\n{plain}{plain}{WITH_REASON}"));

        let (mut stream, line, far) = served();
        line.begin();
        line.becomes_tunnel();
        line.ended();
        stream.flush().await.unwrap();
        say(&mut stream, REFUSAL).await;
        assert_eq!(all(stream, far).await, plain);

        assert_eq!(with_reason(b"220 hello\r\n".to_vec()), "220 hello\r\n");
        assert_eq!(with_reason(b"HTTP/1.1 4".to_vec()), "HTTP/1.1 4");
        assert!(with_reason(b"HTTP/1.1 431 Too\r\n\r\n".to_vec()).windows(9).any(|nine| nine == b"too_large"));
    }

    #[test]
    fn fragments_are_seen() {
        // Aim: in the target and nowhere else, however the line is cut.
        for (head, wanted) in [
            ("GET /a HTTP/1.1\r\nx: #\r\n\r\n", false),
            ("\r\nGET /a#b HTTP/1.1\r\n", true),
            ("GET /# HTTP/1.1\r\n", true),
            ("G#T /a HTTP/1.1\r\n", false),
            ("GET /a HTTP/1.1#\r\n", false),
            ("GET\r\n#", false),
        ] {
            for step in [1, 3, 100] {
                let mut look = Scan::Before;
                let seen = head.as_bytes().chunks(step).any(|piece| look.through(piece));
                assert_eq!(seen, wanted, "{head:?} in steps of {step}");
            }
        }
    }

    fn hints() -> Interim {
        let headers = HeaderMap::from_iter([(http::header::LINK, "</a>".parse().unwrap())]);
        Interim { status: StatusCode::EARLY_HINTS, headers }
    }

    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";

    #[tokio::test]
    async fn interim_answers_come_before_the_final_one_or_not_at_all() {
        // Aim: written when hyper flushes or with the final head, never into bytes that are under way and never behind the final head.
        let (mut stream, line, far) = served();
        line.begin();
        line.pass(hints());
        stream.flush().await.unwrap();
        line.pass(hints());
        line.answered();
        stream.write_all(b"final").await.unwrap();
        line.pass(hints());
        stream.flush().await.unwrap();
        assert_eq!(all(stream, far).await, format!("{HINTS}{HINTS}final"));

        let (mut stream, line, far) = served();
        line.begin();
        stream.write_all(b"rest of the one before, ").await.unwrap();
        line.pass(hints());
        line.answered();
        say(&mut stream, b"final").await;
        assert_eq!(all(stream, far).await, "rest of the one before, final");
    }

    #[tokio::test]
    async fn a_hundred_is_the_upstreams() {
        // Aim: hyper's own goes nowhere where a client waits for one, and nothing else is lost with it.
        let (mut stream, line, far) = served();
        line.begin();
        line.expects();
        stream.write_all(&[CONTINUE, b"HTTP/1.1 200 OK\r\n\r\n"].concat()).await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(all(stream, far).await, "HTTP/1.1 200 OK\r\n\r\n");
    }

    #[tokio::test]
    async fn trailers_come_at_the_end() {
        // Aim: in their place also where hyper's last bytes come in pieces, and without those fields that are no trailers.
        let trailers = HeaderMap::from_iter([
            (http::HeaderName::from_static("x-sum"), "7".parse().unwrap()),
            (http::header::CONTENT_LENGTH, "7".parse().unwrap()),
        ]);
        for pieces in [vec![&b"2\r\nhi\r\n0\r\n\r\n"[..]], vec![b"2\r\n", b"hi", b"\r\n", b"0\r\n\r\n"]] {
            let (mut stream, line, far) = served();
            line.begin();
            line.trail(&trailers);
            let mut bufs: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            let mut bufs = &mut bufs[..];
            while !bufs.is_empty() {
                let count = stream.write_vectored(bufs).await.unwrap();
                IoSlice::advance_slices(&mut bufs, count);
            }
            assert_eq!(all(stream, far).await, "2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\n");
        }
    }
}
