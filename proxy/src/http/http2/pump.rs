//! Sending a body on a stream.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as _;
use smallvec::SmallVec;
use tokio::time::{Sleep, sleep};

use crate::ground::body::{Body, Cut};
use crate::ground::limits::REPLAY_BYTES_MAX;
use crate::ground::replay::PIECE_BYTES;

/// Carries a body into a stream. Takes no more of the body than the peer lets pass, but for one frame in hand.
pub(crate) struct Pump {
    body: Body,
    stream: SendStream<Bytes>,
    /// A piece that waits for its turn.
    held: Option<Bytes>,
    /// Bytes handed over.
    sent_bytes: u64,
    /// What was taken of the body, as long as it may be asked for again.
    taken: Option<Taken>,
}

/// See [`Pump::again`].
#[derive(Default)]
struct Taken {
    pieces: SmallVec<[Bytes; 1]>,
    bytes: usize,
}

impl Taken {
    /// Keeps a piece, if that is within the bound; each takes room of its own.
    fn keep(&mut self, piece: &Bytes) -> bool {
        self.bytes += piece.len();
        self.pieces.push(piece.clone());
        self.bytes <= REPLAY_BYTES_MAX && self.pieces.len() * PIECE_BYTES <= REPLAY_BYTES_MAX
    }
}

/// Why a body did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stopped {
    /// It was cut where it came from; the stream was reset.
    #[error("cut: {0}")]
    Body(Cut),
    /// The peer wants no more of it, or is gone.
    #[error("not wanted: {0}")]
    Peer(h2::Error),
}

impl Pump {
    /// For a stream that is open.
    pub(crate) fn new(body: Body, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, held: None, sent_bytes: 0, taken: None }
    }

    /// For a request, whose body may be asked for again. The stream opens when its connection's task gets to it: its first piece is handed
    /// over before, so that it leaves together with the head.
    pub(crate) fn of_request(body: Body, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, held: None, sent_bytes: 0, taken: Some(Taken::default()) }
    }

    /// Bytes of the body that were handed over.
    pub(crate) const fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Keeps nothing for another time any longer.
    pub(crate) fn forget(&mut self) {
        self.taken = None;
    }

    /// Whether it can be had once more.
    pub(crate) const fn is_at_hand(&self) -> bool {
        self.taken.is_some()
    }

    /// The whole body once more, if what was taken of it is still at hand.
    pub(crate) fn again(self) -> Option<Body> {
        Some(Body::again(self.taken?.pieces, self.body))
    }

    /// Ready at the end of the body.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        loop {
            if let Some(held) = self.held.take() {
                if self.stream.capacity() == 0 && !self.poll_room(cx)? {
                    self.held = Some(held);
                    return self.poll_stopped(cx, true);
                }
                let end = self.body.is_end_stream();
                self.stream.send_data(held, end).map_err(Stopped::Peer)?;
                if end {
                    return Poll::Ready(Ok(()));
                }
            }
            match self.poll_frame(cx) {
                Poll::Pending => return self.poll_stopped(cx, false),
                Poll::Ready(over) => {
                    if over? {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }

    /// Takes the next frame; whether it was the last.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Stopped>> {
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(cut)) => return Poll::Ready(Err(self.cut(cut))),
            None => {
                self.stream.send_data(Bytes::new(), true).map_err(Stopped::Peer)?;
                return Poll::Ready(Ok(true));
            }
        };
        match frame.into_data() {
            // An empty frame says nothing, and many of them are taken for an attack.
            Ok(data) if data.is_empty() && !self.body.is_end_stream() => {}
            Ok(data) => return Poll::Ready(self.hand_over(data)),
            Err(frame) => {
                if let Ok(mut trailers) = frame.into_trailers() {
                    super::fit(&mut trailers, false);
                    // Rare in requests: such a body is not kept whole.
                    self.taken = None;
                    self.stream.send_trailers(trailers).map_err(Stopped::Peer)?;
                    return Poll::Ready(Ok(true));
                }
            }
        }
        Poll::Ready(Ok(false))
    }

    /// Hands a piece to the stream or holds it; whether it was the last.
    fn hand_over(&mut self, data: Bytes) -> Result<bool, Stopped> {
        let end = self.body.is_end_stream();
        self.sent_bytes += data.len() as u64;
        let mut first = false;
        if let Some(taken) = &mut self.taken {
            first = taken.bytes == 0;
            if !taken.keep(&data) {
                self.taken = None;
            }
        }
        if !first && !data.is_empty() {
            self.stream.reserve_capacity(1);
            self.held = Some(data);
            return Ok(false);
        }
        self.stream.send_data(data, end).map_err(Stopped::Peer)?;
        Ok(end)
    }

    /// Whether there is room for a piece.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Result<bool, Stopped> {
        match self.stream.poll_capacity(cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(Some(Ok(_))) => Ok(true),
            Poll::Ready(Some(Err(error))) => Err(Stopped::Peer(error)),
            Poll::Ready(None) => Err(Stopped::Peer(Reason::STREAM_CLOSED.into())),
        }
    }

    /// Waits, unless the peer has reset the stream, or the body has come to its bound while nothing of it is taken.
    fn poll_stopped(&mut self, cx: &mut Context<'_>, stalled: bool) -> Poll<Result<(), Stopped>> {
        match self.stream.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => return Poll::Ready(Err(Stopped::Peer(reason.into()))),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(Stopped::Peer(error))),
            Poll::Pending => {}
        }
        if stalled {
            let cut = ready!(self.body.poll_overdue(cx));
            return Poll::Ready(Err(self.cut(cut)));
        }
        Poll::Pending
    }

    /// What was cut must not look whole to the peer, which `NO_ERROR` would.
    #[cold]
    fn cut(&mut self, cut: Cut) -> Stopped {
        let reason = match &cut {
            Cut::Stream(error) => error.reason().filter(|reason| *reason != Reason::NO_ERROR),
            // A caller whose own deadline has passed takes a cancelled stream for just that.
            Cut::Unwanted | Cut::Overdue(engine::failure::Reason::RequestTimeout) => Some(Reason::CANCEL),
            Cut::Sender(_) | Cut::Overdue(_) => None,
        };
        self.stream.send_reset(reason.unwrap_or(Reason::INTERNAL_ERROR));
        Stopped::Body(cut)
    }

    /// Goes on to the end by itself. Whether the body left whole.
    pub(crate) fn run(mut self) -> impl Future<Output = bool> {
        poll_fn(move |cx| self.poll_whole(cx))
    }

    /// The same with a peer that may let nothing pass for so many milliseconds; then its stream is reset.
    pub(crate) fn run_within(mut self, stall_ms: u32) -> impl Future<Output = bool> {
        let (mut at, mut timer): (u32, Option<Pin<Box<Sleep>>>) = (0, None);
        poll_fn(move |cx| {
            let polled = self.poll_whole(cx);
            if polled.is_ready() {
                return polled;
            }
            // Wraps: it only says whether something moved.
            let moved = self.sent_bytes as u32;
            if self.held.is_none() || moved != at {
                (at, timer) = (moved, None);
            }
            if self.held.is_some() {
                let timer = timer.get_or_insert_with(|| Box::pin(sleep(Duration::from_millis(stall_ms.into()))));
                if timer.as_mut().poll(cx).is_ready() {
                    tracing::debug!("a client takes nothing of its answer for too long");
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(false);
                }
            }
            polled
        })
    }

    fn poll_whole(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let told = |stopped: &Stopped| tracing::debug!(%stopped, "a body did not arrive whole");
        self.poll(cx).map(|ended| ended.inspect_err(told).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_bounded_in_pieces_too() {
        // Aim: a body whose pieces are of one byte each is not kept to the bound on its bytes, which would be thirty times the memory; one piece of
        // all that may be kept is.
        let mut taken = Taken::default();
        let pieces = (0..REPLAY_BYTES_MAX).take_while(|_| taken.keep(&Bytes::from_static(b"x"))).count();
        assert!(pieces * PIECE_BYTES <= REPLAY_BYTES_MAX, "{pieces}");
        assert!(Taken::default().keep(&vec![0; REPLAY_BYTES_MAX].into()));
    }
}
