//! The one body type of the road.

use std::error::Error as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use engine::failure::Reason;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use crate::line::Line;

/// A message's body. No generics over bodies anywhere: this is the type.
#[derive(Default)]
pub enum Body {
    /// None.
    #[default]
    Empty,
    /// Whole and in memory: the mesh's own answers.
    Bytes(Bytes),
    /// None, although the head declares this length: of what a GET would have brought (RFC 9110, section 8.6).
    Claimed(u64),
    /// Passing through; somebody is told of each frame and of the end.
    Followed(Followed),
}

/// A body as it comes in from a connection. A request's that is not read to its end is left to its connection to be read and forgotten.
pub struct Received {
    /// Absent once it is left to its connection.
    incoming: Option<Incoming>,
    line: Option<Arc<Line>>,
    kind: Kind,
    over: bool,
}

/// Whose body it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Request,
    Answer,
}

/// See [`Body::Followed`].
pub struct Followed {
    received: Received,
    follower: Box<dyn Follower>,
    gated: bool,
}

/// Is told what passes through a body, and how it ended. Dropped without [`Follower::ended`] the receiver went away.
pub trait Follower {
    /// A frame passes.
    fn frame(&mut self, frame: &Frame<Bytes>);
    /// Nothing comes any more: complete, or cut by the sender or by this proxy.
    fn ended(&mut self, outcome: Result<(), &Cut>);
    /// Whether the next frame has been waited for too long; asked only while waiting.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Reason>;
    /// Whether the first frame may be asked for: `false` means that nobody wants it any more. Asked of gated bodies only.
    fn poll_gate(&mut self, _: &mut Context<'_>) -> Poll<bool> {
        Poll::Ready(true)
    }
    /// Takes trailers that it brings to where they go by itself, else hands them back.
    fn trailers(&mut self, trailers: HeaderMap) -> Option<HeaderMap> {
        Some(trailers)
    }
    /// The body goes on over this line.
    fn goes_over(&mut self, _: &Arc<Line>) {}
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Cut {
    /// The sender broke off or broke the rules.
    #[error("the sender broke off: {0}")]
    Sender(#[from] hyper::Error),
    /// It took too long.
    #[error("{}", .0.text())]
    Overdue(Reason),
    /// The answer came before anybody asked for it.
    #[error("the answer came before the body was asked for")]
    Unwanted,
}

impl Cut {
    /// Whether the sender broke the rules, and did not merely go.
    pub fn breaks_rules(&self) -> bool {
        matches!(self, Self::Sender(error) if breaks_coding(error))
    }
}

/// Whether a body ended because its chunks are none (RFC 9112, section 7.1). hyper tells that as an I/O error.
pub(crate) fn breaks_coding(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| matches!(cause.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData))
}

impl Received {
    /// A request's body. `line` is that of the connection it comes over, where that carries one exchange at a time.
    pub fn request(incoming: Incoming, line: Option<&Arc<Line>>) -> Self {
        Self { incoming: Some(incoming), line: line.cloned(), kind: Kind::Request, over: false }
    }

    /// An answer's body.
    pub fn answer(incoming: Incoming, line: Option<&Arc<Line>>) -> Self {
        let line = line.filter(|_| !incoming.is_end_stream()).cloned();
        Self { incoming: Some(incoming), line, kind: Kind::Answer, over: false }
    }

    /// The line of its connection.
    pub const fn line(&self) -> Option<&Arc<Line>> {
        self.line.as_ref()
    }

    /// Whether nothing comes any more.
    pub fn is_end_stream(&self) -> bool {
        self.over || self.incoming.as_ref().is_none_or(Incoming::is_end_stream)
    }

    /// What is known of its length.
    pub fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }

    /// The next frame. Who has sent the last one is not woken to send more.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let polled = match self.line.as_ref().and_then(|line| line.wakes()) {
            None => Pin::new(incoming).poll_frame(cx),
            Some(sender) => {
                sender.hold();
                let polled = Pin::new(&mut *incoming).poll_frame(cx);
                sender.release(!incoming.is_end_stream());
                polled
            }
        };
        self.over = matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if self.kind == Kind::Request
            && !self.is_end_stream()
            && let Some(line) = &self.line
            && let Some(rest) = self.incoming.take()
        {
            line.leave_unread(rest);
        }
    }
}

impl Body {
    /// The body as it came, with a follower. The end of an empty body is told at once.
    pub fn followed(received: Received, mut follower: Box<dyn Follower>) -> Self {
        if received.is_end_stream() {
            follower.ended(Ok(()));
            return Self::Empty;
        }
        Self::Followed(Followed { received, follower, gated: false })
    }

    /// The same, whose first frame is asked for only when the follower says so ([`Follower::poll_gate`]).
    pub fn gated(received: Received, follower: Box<dyn Follower>) -> Self {
        Self::Followed(Followed { received, follower, gated: true })
    }

    /// The body goes on over this line.
    pub fn goes_over(&mut self, line: &Arc<Line>) {
        if let Self::Followed(followed) = self {
            followed.follower.goes_over(line);
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Bytes(_) => "Bytes",
            Self::Claimed(_) => "Claimed",
            Self::Followed(_) => "Followed",
        })
    }
}

impl Followed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.gated {
            if !ready!(self.follower.poll_gate(cx)) {
                return Poll::Ready(Some(Err(Cut::Unwanted)));
            }
            self.gated = false;
        }
        let cut = match self.received.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.follower.frame(&frame);
                return Poll::Ready(self.passed(frame).map(Ok));
            }
            Poll::Ready(None) => {
                self.follower.ended(Ok(()));
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => Cut::Sender(error),
            Poll::Pending => match self.follower.poll_overdue(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(reason) => Cut::Overdue(reason),
            },
        };
        self.received.over = true;
        self.follower.ended(Err(&cut));
        Poll::Ready(Some(Err(cut)))
    }

    /// A frame as the next one up sees it. Trailers that the follower brings to where they go are the end.
    fn passed(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        match frame.into_trailers() {
            Err(frame) => Some(frame),
            Ok(trailers) => {
                let left = self.follower.trailers(trailers);
                if left.is_none() {
                    self.received.over = true;
                    self.follower.ended(Ok(()));
                }
                left.map(Frame::trailers)
            }
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // A receiver that knows the length does not poll for the end.
        if !self.received.over && self.received.is_end_stream() {
            self.follower.ended(Ok(()));
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        match this {
            Self::Empty | Self::Claimed(_) => Poll::Ready(None),
            Self::Bytes(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Followed(followed) => followed.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Bytes(bytes) => bytes.is_empty(),
            // Else the length would not be written.
            Self::Claimed(_) => false,
            Self::Followed(followed) => followed.received.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Claimed(length) => SizeHint::with_exact(*length),
            Self::Followed(followed) => followed.received.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_stays_small() {
        // Aim: hyper keeps room for one body per connection and direction; its size is memory per idle connection.
        assert!(size_of::<Body>() <= 80, "{} bytes", size_of::<Body>());
    }
}
