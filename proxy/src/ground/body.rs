//! The one body type of the road.

mod cut;
#[cfg(feature = "http3")]
mod delivered;
mod looked;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use engine::failure::Reason;
use h2::RecvStream;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use smallvec::SmallVec;

use crate::ground::limits::LOOK_AHEAD_PIECES_MAX;
use crate::ground::line::Line;
use crate::ground::windows::Share;
pub use cut::Cut;
pub(crate) use cut::breaks_coding;
#[cfg(feature = "http3")]
pub(crate) use delivered::Delivery;
pub use looked::Beginning;
use looked::Looked;

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
    /// Begun once in vain: from the start again.
    Again(Box<Again>),
    /// Made by something else of this proxy.
    Made(Box<dyn Source>),
}

/// See [`Body::Made`]. Each function is what [`Body`] promises under that name.
#[allow(missing_docs, reason = "as Body's")]
pub trait Source {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>>;
    fn is_end_stream(&self) -> bool;
    fn size_hint(&self) -> SizeHint;
    fn look_ahead(&mut self) -> Option<u64>;
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Cut>;
    fn goes_over(&mut self, line: &Arc<Line>);
}

/// A body as it comes in from a connection.
pub struct Received(BodySource);

enum BodySource {
    Http1(Single),
    Http2(Streamed),
    #[cfg(feature = "http3")]
    Delivered(Box<delivered::Delivered>),
    /// Boxed because few are looked at.
    Looked(Box<Looked>),
}

/// A body on a connection of HTTP/1. A request's that is not read to its end is left to its connection to be read and forgotten.
struct Single {
    /// Absent once it is left to its connection.
    incoming: Option<Incoming>,
    line: Option<Arc<Line>>,
    kind: Whose,
    over: bool,
}

/// Whose body it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Request,
    Answer,
}

/// A body on a stream of HTTP/2. The peer may send more as it is taken.
struct Streamed {
    stream: RecvStream,
    /// What is left of a length that was declared, else [`NO_LENGTH`].
    left: u64,
    /// Bytes given out last. The peer may send as many more when the next ones are asked for: then these have gone on.
    given: u32,
    /// Pieces that were looked at and are to be given out first.
    ahead: Option<Box<SmallVec<[Bytes; 1]>>>,
    /// All data has been taken.
    data_over: bool,
    /// Trailers, too.
    over: bool,
    /// Why its message is not acted on.
    refused: Option<Reason>,
    share: Option<Share>,
    /// A request's, for interim answers.
    line: Option<Arc<Line>>,
}

/// See [`Streamed::left`].
const NO_LENGTH: u64 = u64::MAX;

/// See [`Body::Again`].
pub struct Again {
    taken: VecDeque<Bytes>,
    rest: Body,
}

/// See [`Body::Followed`].
pub struct Followed {
    received: Received,
    follower: Box<dyn Follower>,
    gated: bool,
    paced: bool,
    /// The follower knows how it ended.
    told: bool,
}

/// Is told what passes through a body, and how it ended. Dropped without [`Follower::ended`] the receiver went away.
pub trait Follower {
    /// A frame passes.
    fn frame(&mut self, frame: &Frame<Bytes>);
    /// Whether the frame that passed last is more than there may be, which cuts the body.
    fn refused(&self) -> Option<Reason> {
        None
    }
    /// Nothing comes any more: complete, or cut by the sender or by this proxy.
    fn ended(&mut self, outcome: Result<(), &Cut>);
    /// Whether the next frame has been waited for too long; asked only while waiting.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Reason>;
    /// Whether data goes on in portions: [`Follower::keep`], [`Follower::kept_bytes`] and [`Follower::poll_portion`] are asked of such alone.
    fn is_paced(&self) -> bool {
        false
    }
    /// Takes data in, to give it out in its own time. Asked while nothing is kept.
    fn keep(&mut self, _: Bytes) {}
    /// How much of it was not given out yet.
    fn kept_bytes(&self) -> usize {
        0
    }
    /// The next portion of what is kept, once it may go on.
    fn poll_portion(&mut self, _: &mut Context<'_>) -> Poll<Bytes> {
        Poll::Ready(Bytes::new())
    }
    /// Whether the first frame may be asked for: `false` means that nobody wants it any more. Asked of gated bodies only.
    fn poll_gate(&mut self, _: &mut Context<'_>) -> Poll<bool> {
        Poll::Ready(true)
    }
    /// Takes trailers that it brings to where they go by itself, else hands them back.
    fn trailers(&mut self, trailers: HeaderMap) -> Option<HeaderMap> {
        Some(trailers)
    }
    /// The trailers that end what took too long, where its receiver understands them better than a cut.
    fn farewell(&mut self, _: Reason) -> Option<HeaderMap> {
        None
    }
    /// The body goes on over this line.
    fn goes_over(&mut self, _: &Arc<Line>) {}
}

impl Received {
    /// The body of a request over HTTP/1. `line` is that of the connection it comes over.
    pub fn request(incoming: Incoming, line: Option<&Arc<Line>>) -> Self {
        if let Some(line) = line.filter(|_| !incoming.is_end_stream()) {
            line.body_comes();
        }
        Self(BodySource::Http1(Single { incoming: Some(incoming), line: line.cloned(), kind: Whose::Request, over: false }))
    }

    /// An answer's.
    pub fn answer(incoming: Incoming, line: Option<&Arc<Line>>) -> Self {
        let line = line.filter(|_| !incoming.is_end_stream()).cloned();
        Self(BodySource::Http1(Single { incoming: Some(incoming), line, kind: Whose::Answer, over: false }))
    }

    /// A body of HTTP/2, with the head it belongs to. `share` counts it among those that are open; `Err`: why its message is not acted on.
    /// `line` is that of a request's stream.
    pub fn http2(stream: RecvStream, headers: &HeaderMap, share: Result<Option<Share>, Reason>, line: Option<Arc<Line>>) -> Self {
        let over = stream.is_end_stream();
        // The library has refused lengths that are no numbers or contradict each other.
        let length = |value: &HeaderValue| value.to_str().ok()?.parse().ok();
        let left = if over { 0 } else { headers.get(CONTENT_LENGTH).and_then(length).unwrap_or(NO_LENGTH) };
        let (share, refused) = match share {
            Ok(share) => (share.filter(|_| !over), None),
            Err(reason) => (None, Some(reason)),
        };
        Self(BodySource::Http2(Streamed { stream, left, given: 0, ahead: None, data_over: over, over, refused, share, line }))
    }

    /// Why its message was refused as it came.
    pub fn refused(&self) -> Option<Reason> {
        match &self.0 {
            BodySource::Http1(_) => None,
            BodySource::Http2(streamed) => streamed.refused,
            #[cfg(feature = "http3")]
            BodySource::Delivered(delivered) => delivered.refused(),
            BodySource::Looked(looked) => looked.rest().refused(),
        }
    }

    /// The line of its connection or stream.
    pub fn line(&self) -> Option<&Arc<Line>> {
        match &self.0 {
            BodySource::Http1(single) => single.line.as_ref(),
            BodySource::Http2(streamed) => streamed.line.as_ref(),
            #[cfg(feature = "http3")]
            BodySource::Delivered(delivered) => delivered.line(),
            BodySource::Looked(looked) => looked.rest().line(),
        }
    }

    /// Whether nothing comes any more.
    pub fn is_end_stream(&self) -> bool {
        match &self.0 {
            BodySource::Http1(single) => single.is_end_stream(),
            BodySource::Http2(streamed) => streamed.over,
            #[cfg(feature = "http3")]
            BodySource::Delivered(delivered) => delivered.is_over(),
            BodySource::Looked(looked) => looked.is_end_stream(),
        }
    }

    /// What is known of its length.
    pub fn size_hint(&self) -> SizeHint {
        match &self.0 {
            BodySource::Http1(single) => single.incoming.as_ref().map(Incoming::size_hint).unwrap_or_default(),
            BodySource::Http2(Streamed { left: NO_LENGTH, .. }) => SizeHint::default(),
            BodySource::Http2(streamed) => SizeHint::with_exact(streamed.left),
            #[cfg(feature = "http3")]
            BodySource::Delivered(delivered) => delivered.size_hint(),
            BodySource::Looked(looked) => looked.size_hint(),
        }
    }

    /// The next frame.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut self.0 {
            BodySource::Http1(single) => single.poll_frame(cx).map_err(Cut::from),
            BodySource::Http2(streamed) => streamed.poll_frame(cx).map_err(Cut::from),
            #[cfg(feature = "http3")]
            BodySource::Delivered(delivered) => delivered.poll_frame(cx).map_err(Cut::from),
            BodySource::Looked(looked) => looked.poll_frame(cx),
        }
    }

    /// Nothing of it is wanted any more.
    fn stop(&mut self) {
        match &mut self.0 {
            BodySource::Http1(single) => single.over = true,
            BodySource::Http2(streamed) => (streamed.over, streamed.share) = (true, None),
            #[cfg(feature = "http3")]
            BodySource::Delivered(delivered) => delivered.stop(),
            BodySource::Looked(looked) => looked.stop(),
        }
    }
}

impl Streamed {
    /// Looks whether the end has come already where nobody said how long it is; says the length of what is left.
    fn look_ahead(&mut self) -> Option<u64> {
        if self.left == NO_LENGTH && self.ahead.is_none() {
            let mut pieces: SmallVec<[Bytes; 1]> = SmallVec::new();
            let mut cx = Context::from_waker(Waker::noop());
            while pieces.len() < LOOK_AHEAD_PIECES_MAX
                && !self.stream.is_end_stream()
                && let Poll::Ready(Some(Ok(piece))) = self.stream.poll_data(&mut cx)
            {
                pieces.push(piece);
            }
            if self.stream.is_end_stream() {
                self.left = pieces.iter().map(|piece| piece.len() as u64).sum();
            }
            self.ahead = (!pieces.is_empty()).then(|| Box::new(pieces));
        }
        (self.left != NO_LENGTH).then_some(self.left)
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if let Some(ahead) = &mut self.ahead {
            let piece = ahead.remove(0);
            if ahead.is_empty() {
                self.ahead = None;
            }
            return Poll::Ready(Some(Ok(piece)));
        }
        self.stream.poll_data(cx)
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        while !self.data_over {
            if self.given > 0 {
                self.stream.flow_control().release_capacity(std::mem::take(&mut self.given) as usize)?;
            }
            let Some(data) = ready!(self.poll_data(cx)?) else {
                self.data_over = true;
                break;
            };
            if self.left != NO_LENGTH {
                self.left = self.left.saturating_sub(data.len() as u64);
            }
            if self.ahead.is_none() && self.stream.is_end_stream() {
                // What it took of the windows goes back with the stream.
                (self.data_over, self.over, self.share) = (true, true, None);
            } else {
                // A frame is no longer than 16 MiB.
                self.given = data.len() as u32;
            }
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
        if self.over {
            return Poll::Ready(None);
        }
        let trailers = ready!(self.stream.poll_trailers(cx)?);
        (self.over, self.share) = (true, None);
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

impl Again {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.taken.pop_front() {
            Some(taken) => Poll::Ready(Some(Ok(Frame::data(taken)))),
            None if self.rest.is_end_stream() => Poll::Ready(None),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }
}

impl Single {
    fn is_end_stream(&self) -> bool {
        self.over || self.incoming.as_ref().is_none_or(Incoming::is_end_stream)
    }

    /// Who has sent the last frame is not woken to send more.
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

impl Drop for Single {
    fn drop(&mut self) {
        if self.kind != Whose::Request {
            return;
        }
        let ended = self.is_end_stream();
        let Some(line) = &self.line else { return };
        line.body_over();
        if !ended && let Some(rest) = self.incoming.take() {
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
        let paced = follower.is_paced();
        Self::Followed(Followed { received, follower, gated: false, paced, told: false })
    }

    /// The same, whose first frame is asked for only when the follower says so ([`Follower::poll_gate`]).
    pub fn gated(received: Received, follower: Box<dyn Follower>) -> Self {
        Self::Followed(Followed { received, follower, gated: true, paced: false, told: false })
    }

    /// The body goes on over this line.
    pub fn goes_over(&mut self, line: &Arc<Line>) {
        match self {
            Self::Followed(followed) => followed.follower.goes_over(line),
            Self::Again(again) => again.rest.goes_over(line),
            Self::Made(source) => source.goes_over(line),
            _ => {}
        }
    }

    /// The body whose first `taken` were taken out of `rest`.
    pub fn again(taken: impl IntoIterator<Item = Bytes>, rest: Self) -> Self {
        let taken: VecDeque<_> = taken.into_iter().collect();
        if taken.is_empty() { rest } else { Self::Again(Box::new(Again { taken, rest })) }
    }

    /// Its length, if it is declared or the end has come already. Takes what is at hand of a body over HTTP/2, to see the end.
    pub fn look_ahead(&mut self) -> Option<u64> {
        match self {
            Self::Followed(Followed { received: Received(BodySource::Http2(streamed)), .. }) => streamed.look_ahead(),
            Self::Made(source) => source.look_ahead(),
            _ => self.size_hint().exact(),
        }
    }

    /// Whether its next frame has been waited for too long, or is waited for by a receiver that takes none.
    pub fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Cut> {
        let followed = match self {
            Self::Followed(followed) => followed,
            Self::Again(again) => return again.rest.poll_overdue(cx),
            Self::Made(source) => return source.poll_overdue(cx),
            _ => return Poll::Pending,
        };
        let cut = Cut::Overdue(ready!(followed.follower.poll_overdue(cx)));
        followed.end(Err(&cut));
        Poll::Ready(cut)
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Bytes(_) => "Bytes",
            Self::Claimed(_) => "Claimed",
            Self::Followed(_) => "Followed",
            Self::Again(_) => "Again",
            Self::Made(_) => "Made",
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
        if self.kept_bytes() > 0 {
            return self.poll_portion(cx);
        }
        let cut = match self.received.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) if self.paced && frame.data_ref().is_some_and(|data| !data.is_empty()) => {
                self.follower.keep(frame.into_data().unwrap_or_default());
                return self.poll_portion(cx);
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.follower.frame(&frame);
                match self.follower.refused() {
                    Some(reason) => Cut::Overdue(reason),
                    None => return Poll::Ready(self.passed(frame).map(Ok)),
                }
            }
            Poll::Ready(None) => {
                self.end(Ok(()));
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(cut))) => cut,
            Poll::Pending => match self.follower.poll_overdue(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(reason) => Cut::Overdue(reason),
            },
        };
        self.end(Err(&cut));
        let farewell = if let Cut::Overdue(reason) = &cut { self.follower.farewell(*reason) } else { None };
        Poll::Ready(Some(farewell.map(Frame::trailers).ok_or(cut)))
    }

    /// Bytes that have come and wait for their time.
    fn kept_bytes(&self) -> usize {
        if self.paced { self.follower.kept_bytes() } else { 0 }
    }

    fn poll_portion(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let frame = Frame::data(ready!(self.follower.poll_portion(cx)));
        self.follower.frame(&frame);
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.received.is_end_stream() && self.kept_bytes() == 0
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.received.size_hint();
        match (self.kept_bytes(), rest.exact()) {
            (0, _) => rest,
            (kept, Some(rest)) => SizeHint::with_exact(rest + kept as u64),
            (_, None) => SizeHint::default(),
        }
    }

    fn end(&mut self, outcome: Result<(), &Cut>) {
        self.received.stop();
        self.told = true;
        self.follower.ended(outcome);
    }

    /// A frame as the next one up sees it. Trailers that the follower brings to where they go are the end.
    fn passed(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        match frame.into_trailers() {
            Err(frame) => Some(frame),
            Ok(trailers) => {
                let left = self.follower.trailers(trailers);
                if left.is_none() {
                    self.end(Ok(()));
                }
                left.map(Frame::trailers)
            }
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // A receiver that knows the length does not poll for the end.
        if !self.told && self.is_end_stream() {
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
            Self::Again(again) => again.poll_frame(cx),
            Self::Made(source) => source.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Bytes(bytes) => bytes.is_empty(),
            // Else the length would not be written.
            Self::Claimed(_) => false,
            Self::Followed(followed) => followed.is_end_stream(),
            Self::Again(again) => again.taken.is_empty() && again.rest.is_end_stream(),
            Self::Made(source) => source.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Claimed(length) => SizeHint::with_exact(*length),
            Self::Followed(followed) => followed.size_hint(),
            Self::Again(again) => {
                let taken = again.taken.iter().map(|taken| taken.len() as u64).sum::<u64>();
                again.rest.size_hint().exact().map_or_else(SizeHint::default, |rest| SizeHint::with_exact(taken + rest))
            }
            Self::Made(source) => source.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_stays_small() {
        // Aim: hyper keeps room for one body per connection and direction; its size is memory per idle connection.
        assert!(size_of::<Body>() <= 88, "{} bytes", size_of::<Body>());
    }
}
