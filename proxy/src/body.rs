//! The one body type of the road.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use engine::failure::Reason;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use crate::wakes::Wakes;

/// A message's body. No generics over bodies anywhere: this is the type.
#[derive(Default)]
pub enum Body {
    /// None.
    #[default]
    Empty,
    /// Whole and in memory: the mesh's own answers.
    Bytes(Bytes),
    /// Passing through; somebody is told of each frame and of the end.
    Followed(Followed),
}

/// A body as it comes in from a connection.
pub struct Received {
    incoming: Incoming,
    sender: Option<Arc<Wakes>>,
}

/// See [`Body::Followed`].
pub struct Followed {
    received: Received,
    follower: Box<dyn Follower>,
    over: bool,
}

/// Is told what passes through a body, and how it ended. Dropped without [`Follower::ended`] the receiver went away.
pub trait Follower {
    /// A frame passes.
    fn frame(&mut self, frame: &Frame<Bytes>);
    /// Nothing comes any more: complete, or cut by the sender or by this proxy.
    fn ended(&mut self, outcome: Result<(), &Cut>);
    /// Whether the next frame has been waited for too long; asked only while waiting.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Reason>;
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
}

impl Received {
    /// `sender` wakes the connection that sends, where that carries one message at a time.
    pub fn new(incoming: Incoming, sender: Option<&Arc<Wakes>>) -> Self {
        let sender = sender.filter(|_| !incoming.is_end_stream()).cloned();
        Self { incoming, sender }
    }

    /// Whether nothing comes any more.
    pub fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    /// What is known of its length.
    pub fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }

    /// The next frame. Who has sent the last one is not woken to send more.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let incoming = Pin::new(&mut self.incoming);
        let Some(sender) = &self.sender else { return incoming.poll_frame(cx) };
        sender.hold();
        let polled = incoming.poll_frame(cx);
        sender.release(!self.incoming.is_end_stream());
        polled
    }
}

impl Body {
    /// The body as it came, with a follower. The end of an empty body is told at once.
    pub fn followed(received: Received, mut follower: Box<dyn Follower>) -> Self {
        if received.is_end_stream() {
            follower.ended(Ok(()));
            return Self::Empty;
        }
        Self::Followed(Followed { received, follower, over: false })
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Bytes(_) => "Bytes",
            Self::Followed(_) => "Followed",
        })
    }
}

impl Followed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let cut = match self.received.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.follower.frame(&frame);
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(None) => {
                self.over = true;
                self.follower.ended(Ok(()));
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => Cut::Sender(error),
            Poll::Pending => match self.follower.poll_overdue(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(reason) => Cut::Overdue(reason),
            },
        };
        self.over = true;
        self.follower.ended(Err(&cut));
        Poll::Ready(Some(Err(cut)))
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // A receiver that knows the length does not poll for the end.
        if !self.over && self.received.is_end_stream() {
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
            Self::Empty => Poll::Ready(None),
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
            Self::Followed(followed) => followed.over || followed.received.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
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
