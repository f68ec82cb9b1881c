//! A request's body that may be sent more than once: what passes is kept, up to a bound.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use crate::ground::body::{Body, Cut, Source};
use crate::ground::limits::REPLAYS_BYTES_MAX;
use crate::ground::line::Line;

/// Bytes that one worker keeps of all bodies together.
#[derive(Debug, Default)]
pub struct ReplayRoom(Cell<usize>);

impl ReplayRoom {
    /// Bytes kept now.
    pub fn used(&self) -> usize {
        self.0.get()
    }

    fn take(&self, bytes: usize) -> bool {
        let used = self.0.get() + bytes;
        let fits = used <= REPLAYS_BYTES_MAX;
        if fits {
            self.0.set(used);
        }
        fits
    }
}

/// A body and what has passed of it. Clones share it.
#[derive(Clone)]
pub struct Replay(Rc<RefCell<Kept>>);

struct Kept {
    rest: Body,
    /// What was taken out of `rest`, while it is kept.
    pieces: Vec<Bytes>,
    bytes: usize,
    bytes_max: usize,
    /// More has passed than may be kept, or nothing has to be.
    let_go: bool,
    /// `rest` came to its end, with these trailers.
    ended: Option<Option<HeaderMap>>,
    /// Readers beside the one that drives it, and who of them waits.
    copies: usize,
    waiting: Vec<Waker>,
    room: Rc<ReplayRoom>,
}

/// One sending of it.
struct Sending {
    kept: Rc<RefCell<Kept>>,
    at: usize,
    /// Its end was told.
    over: bool,
}

impl Replay {
    /// Keeps what passes of a body, up to `bytes_max` and while the worker has room for it.
    pub fn new(rest: Body, bytes_max: usize, room: &Rc<ReplayRoom>) -> Self {
        let (pieces, room) = (Vec::new(), Rc::clone(room));
        Self(Rc::new(RefCell::new(Kept {
            rest,
            pieces,
            bytes: 0,
            bytes_max,
            let_go: false,
            ended: None,
            copies: 0,
            waiting: Vec::new(),
            room,
        })))
    }

    /// The body from its beginning. Before another one is made, the last must not be read any more; see [`Replay::is_whole`].
    pub fn send(&self) -> Body {
        Body::Made(Box::new(Sending { kept: Rc::clone(&self.0), at: 0, over: false }))
    }

    /// A second reader, which gets what passes and drives nothing. It is cut where the body is cut, or cannot be kept.
    pub fn copy(&self) -> Body {
        self.0.borrow_mut().copies += 1;
        Body::Made(Box::new(Copying { kept: Rc::clone(&self.0), at: 0, over: false }))
    }

    /// Whether all that has passed is at hand.
    pub fn is_whole(&self) -> bool {
        !self.0.borrow().let_go
    }

    /// Whether nothing more has to come for it to be sent: it can be sent twice at the same time.
    pub fn is_complete(&self) -> bool {
        let kept = self.0.borrow();
        !kept.let_go && (kept.ended.is_some() || kept.rest.is_end_stream())
    }

    /// It is not sent again: nothing more is kept.
    pub fn forget(&self) {
        self.0.borrow_mut().let_go();
    }
}

impl Kept {
    fn let_go(&mut self) {
        self.let_go = true;
        self.room.0.set(self.room.0.get() - std::mem::take(&mut self.bytes));
        self.pieces = Vec::new();
        self.wake();
    }

    fn wake(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }

    fn keep(&mut self, piece: &Bytes) {
        if self.let_go {
            return;
        }
        if self.bytes + piece.len() > self.bytes_max || !self.room.take(piece.len()) {
            self.let_go();
            return;
        }
        self.bytes += piece.len();
        self.pieces.push(piece.clone());
        self.wake();
    }

    fn end(&mut self, trailers: Option<HeaderMap>) {
        self.ended = Some(trailers);
        self.wake();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl Source for Sending {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let mut kept = self.kept.borrow_mut();
        if let Some(piece) = kept.pieces.get(self.at) {
            self.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if let Some(trailers) = &kept.ended {
            let last = trailers.clone().filter(|_| !self.over).map(|trailers| Ok(Frame::trailers(trailers)));
            self.over = true;
            return Poll::Ready(last);
        }
        let polled = Pin::new(&mut kept.rest).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => match frame.data_ref() {
                Some(piece) => {
                    kept.keep(piece);
                    self.at = kept.pieces.len();
                }
                None => {
                    kept.end(frame.trailers_ref().cloned());
                    self.over = true;
                }
            },
            Poll::Ready(Some(Err(_))) => kept.let_go(),
            Poll::Ready(None) => {
                kept.end(None);
                self.over = true;
            }
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let kept = self.kept.borrow();
        let more = match &kept.ended {
            Some(Some(_)) => !self.over,
            Some(None) => false,
            None => !kept.rest.is_end_stream(),
        };
        self.at >= kept.pieces.len() && !more
    }

    fn size_hint(&self) -> SizeHint {
        let kept = self.kept.borrow();
        let ahead = kept.pieces.iter().skip(self.at).map(|piece| piece.len() as u64).sum::<u64>();
        let rest = if kept.ended.is_some() { Some(0) } else { kept.rest.size_hint().exact() };
        rest.map_or_else(SizeHint::default, |rest| SizeHint::with_exact(ahead + rest))
    }

    fn look_ahead(&mut self) -> Option<u64> {
        self.kept.borrow_mut().rest.look_ahead();
        self.size_hint().exact()
    }

    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Cut> {
        self.kept.borrow_mut().rest.poll_overdue(cx)
    }

    fn goes_over(&mut self, line: &Arc<Line>) {
        self.kept.borrow_mut().rest.goes_over(line);
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let mut kept = self.kept.borrow_mut();
        if kept.copies == 0 || kept.ended.is_some() {
            return;
        }
        // A receiver that knows the length does not poll for the end; else nothing comes any more.
        if kept.rest.is_end_stream() {
            kept.end(None);
        } else {
            kept.let_go();
        }
    }
}

/// See [`Replay::copy`].
struct Copying {
    kept: Rc<RefCell<Kept>>,
    at: usize,
    over: bool,
}

impl Source for Copying {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let mut kept = self.kept.borrow_mut();
        if kept.let_go {
            self.over = true;
            return Poll::Ready(Some(Err(Cut::Unwanted)));
        }
        if let Some(piece) = kept.pieces.get(self.at) {
            self.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        match &kept.ended {
            Some(trailers) => {
                let last = trailers.clone().filter(|_| !self.over).map(|trailers| Ok(Frame::trailers(trailers)));
                self.over = true;
                Poll::Ready(last)
            }
            None => {
                kept.waiting.push(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let kept = self.kept.borrow();
        !kept.let_go && self.at >= kept.pieces.len() && (self.over || kept.ended.as_ref().is_some_and(Option::is_none))
    }

    fn size_hint(&self) -> SizeHint {
        let kept = self.kept.borrow();
        let ahead = kept.pieces.iter().skip(self.at).map(|piece| piece.len() as u64).sum::<u64>();
        let rest = if kept.ended.is_some() { Some(0) } else { kept.rest.size_hint().exact() };
        rest.map_or_else(SizeHint::default, |rest| SizeHint::with_exact(ahead + rest))
    }

    fn look_ahead(&mut self) -> Option<u64> {
        self.size_hint().exact()
    }

    fn poll_overdue(&mut self, _: &mut Context<'_>) -> Poll<Cut> {
        Poll::Pending
    }

    fn goes_over(&mut self, _: &Arc<Line>) {}
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn all(body: &mut Body) -> String {
        let mut text = String::new();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            text.push_str(std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
        }
        text
    }

    #[tokio::test]
    async fn a_body_is_sent_from_its_beginning_each_time() {
        // Aim: whole each time, also when the sending before got no further than a part; what it takes is given back.
        let room = Rc::new(ReplayRoom::default());
        let rest = Body::again([Bytes::from_static(b"one"), Bytes::from_static(b"two")], Body::Bytes(Bytes::from_static(b"three")));
        let replay = Replay::new(rest, 64, &room);
        let mut first = replay.send();
        assert_eq!(first.size_hint().exact(), Some(11));
        poll_fn(|cx| Pin::new(&mut first).poll_frame(cx)).await.unwrap().unwrap();
        assert_eq!((room.used(), replay.is_complete()), (3, false));
        drop(first);
        for _ in 0..2 {
            let mut body = replay.send();
            assert_eq!((all(&mut body).await.as_str(), body.is_end_stream()), ("onetwothree", true));
        }
        assert_eq!((room.used(), replay.is_whole(), replay.is_complete()), (11, true, true));
        drop(replay);
        assert_eq!(room.used(), 0);
    }

    #[tokio::test]
    async fn what_is_too_large_passes_and_is_not_kept() {
        // Aim: the bound of one body and that of all together; the body itself goes through either way.
        let room = Rc::new(ReplayRoom::default());
        let pieces = || Body::again([Bytes::from_static(b"0123"), Bytes::from_static(b"4567")], Body::Empty);
        let replay = Replay::new(pieces(), 7, &room);
        assert_eq!(all(&mut replay.send()).await, "01234567");
        assert_eq!((replay.is_whole(), room.used()), (false, 0));
        assert!(room.take(REPLAYS_BYTES_MAX - 5));
        let replay = Replay::new(pieces(), 64, &room);
        assert_eq!(all(&mut replay.send()).await, "01234567");
        assert_eq!((replay.is_whole(), room.used()), (false, REPLAYS_BYTES_MAX - 5));
        let replay = Replay::new(pieces(), 64, &Rc::new(ReplayRoom::default()));
        replay.forget();
        assert_eq!((all(&mut replay.send()).await.as_str(), replay.is_whole()), ("01234567", false));
    }
}
