//! A request's body that may be sent more than once: what passes is kept, up to a bound.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use crate::ground::body::{Body, Cut, Source};
use crate::ground::line::Line;
use crate::ground::room::ReplayRoom;

/// What a piece takes beside its bytes.
pub(crate) const PIECE_BYTES: usize = 64;

/// A body and what has passed of it. Clones share it.
#[derive(Clone)]
pub struct Replay(Rc<RefCell<Kept>>);

struct Kept {
    rest: Body,
    /// Its length was not said: over HTTP/1 it goes on in chunks, which trailers can follow.
    chunked: bool,
    /// What was taken out of `rest`, while it is kept or somebody has not sent it yet.
    pieces: Vec<Bytes>,
    bytes: usize,
    bytes_max: usize,
    /// More has passed than may be kept, or nothing has to be.
    let_go: bool,
    /// `rest` came to its end, with these trailers.
    ended: Option<Option<HeaderMap>>,
    /// Which sendings go on: `rest` has one waker, and can be asked by one only.
    turn: u32,
    /// Of those, how many have pieces before them.
    behind: usize,
    /// Who of them waits for `rest`.
    driver: Option<Waker>,
    /// Readers beside the one that drives it, and who of them waits.
    copies: usize,
    waiting: Vec<Waker>,
    room: Rc<ReplayRoom>,
}

/// One sending of it.
struct Sending {
    kept: Rc<RefCell<Kept>>,
    turn: u32,
    at: usize,
    /// Its end was told.
    over: bool,
    /// What it goes over, where that is HTTP/1.
    line: Option<Arc<Line>>,
}

impl Replay {
    /// Keeps what passes of a body, up to `bytes_max` and while the worker has room for it.
    pub fn new(rest: Body, bytes_max: usize, room: &Rc<ReplayRoom>) -> Self {
        Self(Rc::new(RefCell::new(Kept {
            chunked: rest.size_hint().exact().is_none(),
            rest,
            pieces: Vec::new(),
            bytes: 0,
            bytes_max,
            let_go: false,
            ended: None,
            turn: 0,
            behind: 0,
            driver: None,
            copies: 0,
            waiting: Vec::new(),
            room: Rc::clone(room),
        })))
    }

    /// The body from its beginning, as long as it [is whole](Replay::is_whole). Recalls those that were made before.
    pub fn send(&self) -> Body {
        self.recall();
        let mut kept = self.0.borrow_mut();
        kept.behind += usize::from(!kept.pieces.is_empty());
        Body::Made(Box::new(Sending { kept: Rc::clone(&self.0), turn: kept.turn, at: 0, over: false, line: None }))
    }

    /// Whoever sends it sends no more of it: it is cut there. A body that is complete may be sent to its end beside others. Whether it may.
    pub fn recall(&self) -> bool {
        let complete = self.is_complete();
        if !complete {
            self.0.borrow_mut().turn();
        }
        complete
    }

    /// A second reader, which gets what passes and drives nothing. It is cut where the body is cut, or cannot be kept.
    pub fn copy(&self) -> Body {
        self.0.borrow_mut().copies += 1;
        Body::Made(Box::new(Copying { kept: Rc::clone(&self.0), at: 0, over: false, line: None }))
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

    /// It is not sent again: nothing more is kept. Who sends it now goes on.
    pub fn forget(&self) {
        self.0.borrow_mut().let_go();
    }
}

impl Kept {
    fn let_go(&mut self) {
        self.let_go = true;
        self.make_room();
        self.wake();
    }

    /// Gives back what nobody needs any more.
    fn make_room(&mut self) {
        if self.let_go && self.behind == 0 {
            let taken = self.bytes + self.pieces.len() * PIECE_BYTES;
            self.room.give_back(taken);
            (self.bytes, self.pieces) = (0, Vec::new());
        }
    }

    /// Ends all sendings up to now.
    fn turn(&mut self) {
        (self.turn, self.behind) = (self.turn.wrapping_add(1), 0);
        self.make_room();
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    /// A sending has no piece before it any more.
    fn caught_up(&mut self) {
        self.behind = self.behind.saturating_sub(1);
        self.make_room();
    }

    /// Notes who waits for `rest`.
    fn driven(&mut self, cx: &Context<'_>) {
        if !self.driver.as_ref().is_some_and(|driver| driver.will_wake(cx.waker())) {
            self.driver = Some(cx.waker().clone());
        }
    }

    fn wake(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }

    fn keep(&mut self, piece: &Bytes) {
        if self.let_go {
            return;
        }
        if self.bytes + piece.len() > self.bytes_max || !self.room.take(piece.len() + PIECE_BYTES) {
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
        self.behind = 0;
        self.let_go();
    }
}

/// Trailers as they go on: past hyper, which would leave them out, where there is a line.
fn trailing(line: Option<&Arc<Line>>, chunked: bool, trailers: HeaderMap) -> Option<Frame<Bytes>> {
    match line {
        Some(line) if chunked => {
            line.trail(&trailers);
            None
        }
        _ => Some(Frame::trailers(trailers)),
    }
}

impl Source for Sending {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let mut kept = self.kept.borrow_mut();
        if self.turn != kept.turn {
            return Poll::Ready(Some(Err(Cut::Unwanted)));
        }
        if let Some(piece) = kept.pieces.get(self.at).cloned() {
            self.at += 1;
            if self.at == kept.pieces.len() {
                kept.caught_up();
            }
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if kept.ended.is_none() {
            match Pin::new(&mut kept.rest).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_trailers() {
                    Ok(trailers) => kept.end(Some(trailers)),
                    Err(frame) => {
                        if let Some(piece) = frame.data_ref() {
                            kept.keep(piece);
                            self.at = kept.pieces.len();
                        }
                        return Poll::Ready(Some(Ok(frame)));
                    }
                },
                Poll::Ready(Some(Err(cut))) => {
                    kept.let_go();
                    return Poll::Ready(Some(Err(cut)));
                }
                Poll::Ready(None) => kept.end(None),
                Poll::Pending => {
                    kept.driven(cx);
                    return Poll::Pending;
                }
            }
        }
        let trailers = kept.ended.clone().flatten().filter(|_| !self.over);
        self.over = true;
        Poll::Ready(trailers.and_then(|trailers| trailing(self.line.as_ref(), kept.chunked, trailers)).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        let kept = self.kept.borrow();
        let more = match &kept.ended {
            _ if self.turn != kept.turn => !self.over,
            Some(Some(_)) => !self.over,
            Some(None) => false,
            None => !kept.rest.is_end_stream(),
        };
        self.at >= kept.pieces.len() && !more
    }

    fn size_hint(&self) -> SizeHint {
        let kept = self.kept.borrow();
        if kept.chunked && self.line.is_some() {
            return SizeHint::default();
        }
        let ahead = kept.pieces.iter().skip(self.at).map(|piece| piece.len() as u64).sum::<u64>();
        let rest = if kept.ended.is_some() { Some(0) } else { kept.rest.size_hint().exact() };
        rest.map_or_else(SizeHint::default, |rest| SizeHint::with_exact(ahead + rest))
    }

    fn look_ahead(&mut self) -> Option<u64> {
        self.kept.borrow_mut().rest.look_ahead();
        self.size_hint().exact()
    }

    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Cut> {
        let mut kept = self.kept.borrow_mut();
        if self.turn != kept.turn {
            return Poll::Ready(Cut::Unwanted);
        }
        kept.driven(cx);
        kept.rest.poll_overdue(cx)
    }

    fn goes_over(&mut self, line: &Arc<Line>) {
        self.line = Some(Arc::clone(line));
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let mut kept = self.kept.borrow_mut();
        if self.turn != kept.turn {
            return;
        }
        if self.at < kept.pieces.len() {
            kept.caught_up();
        }
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
    line: Option<Arc<Line>>,
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
                let trailers = trailers.clone().filter(|_| !self.over);
                self.over = true;
                Poll::Ready(trailers.and_then(|trailers| trailing(self.line.as_ref(), kept.chunked, trailers)).map(Ok))
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
        if kept.chunked && self.line.is_some() {
            return SizeHint::default();
        }
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

    fn goes_over(&mut self, line: &Arc<Line>) {
        self.line = Some(Arc::clone(line));
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::ground::limits::REPLAYS_BYTES_MAX;

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
        assert_eq!((room.used(), replay.is_complete()), (3 + PIECE_BYTES, false));
        drop(first);
        for _ in 0..2 {
            let mut body = replay.send();
            assert_eq!((all(&mut body).await.as_str(), body.is_end_stream()), ("onetwothree", true));
        }
        assert_eq!((room.used(), replay.is_whole(), replay.is_complete()), (11 + 3 * PIECE_BYTES, true, true));
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
        let taken = REPLAYS_BYTES_MAX - PIECE_BYTES - 5;
        assert!(room.take(taken));
        let replay = Replay::new(pieces(), 64, &room);
        assert_eq!(all(&mut replay.send()).await, "01234567");
        assert_eq!((replay.is_whole(), room.used()), (false, taken));
        let replay = Replay::new(pieces(), 64, &Rc::new(ReplayRoom::default()));
        replay.forget();
        assert_eq!((all(&mut replay.send()).await.as_str(), replay.is_whole()), ("01234567", false));
    }
    async fn next(body: &mut Body) -> Option<Result<Bytes, Cut>> {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        Some(frame.map(|frame| frame.into_data().unwrap()))
    }

    #[tokio::test]
    async fn what_is_under_way_goes_on_when_nothing_more_is_kept() {
        // Aim: a second sending that is told to be the last has all that was kept for it; then the room is free, also where it is dropped.
        let room = Rc::new(ReplayRoom::default());
        let three = || Body::again(["one", "two", "three"].map(|text| Bytes::from_static(text.as_bytes())), Body::Empty);
        for read in [true, false] {
            let replay = Replay::new(three(), 64, &room);
            all(&mut replay.send()).await;
            let mut second = replay.send();
            assert_eq!(next(&mut second).await.unwrap().unwrap(), "one");
            replay.forget();
            assert_eq!(second.size_hint().exact(), Some(8));
            assert!(!second.is_end_stream() && room.used() > 0);
            if read {
                assert_eq!((all(&mut second).await.as_str(), second.is_end_stream()), ("twothree", true));
            }
            drop(second);
            assert_eq!((room.used(), replay.is_whole()), (0, false));
        }
        let replay = Replay::new(Body::again([Bytes::from_static(b"one")], three()), 64, &room);
        let mut first = replay.send();
        next(&mut first).await;
        drop(first);
        let mut second = replay.send();
        replay.forget();
        assert_eq!(all(&mut second).await, "oneonetwothree");
        assert_eq!(room.used(), 0);
    }

    #[tokio::test]
    async fn one_at_a_time_asks_for_the_rest() {
        // Aim: a sending that is recalled is cut, is woken for that and takes nothing from the next; of a complete body several are sent.
        let room = Rc::new(ReplayRoom::default());
        let replay = Replay::new(Body::Made(Box::new(Silent)), 64, &room);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let mut first = replay.send();
        assert!(Pin::new(&mut first).poll_frame(&mut cx).is_pending());
        let second = replay.send();
        assert!(woken.0.load(Ordering::Relaxed) && !first.is_end_stream());
        assert!(matches!(next(&mut first).await, Some(Err(Cut::Unwanted))));
        assert!(matches!(first.poll_overdue(&mut cx), Poll::Ready(Cut::Unwanted)));
        assert!(!replay.recall());
        drop((first, second));

        let replay = Replay::new(Body::again([Bytes::from_static(b"one")], Body::Bytes(Bytes::from_static(b"two"))), 64, &room);
        all(&mut replay.send()).await;
        let (mut one, mut other) = (replay.send(), replay.send());
        assert!(replay.recall());
        assert_eq!((all(&mut one).await.as_str(), all(&mut other).await.as_str()), ("onetwo", "onetwo"));
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Of which nothing comes.
    struct Silent;

    impl Source for Silent {
        fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
            Poll::Pending
        }

        fn is_end_stream(&self) -> bool {
            false
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::default()
        }

        fn look_ahead(&mut self) -> Option<u64> {
            None
        }

        fn poll_overdue(&mut self, _: &mut Context<'_>) -> Poll<Cut> {
            Poll::Pending
        }

        fn goes_over(&mut self, _: &Arc<Line>) {}
    }
}
