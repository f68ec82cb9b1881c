//! What the two ends of an HTTP/1 connection tell one another past hyper, which stands between them: bodies and answers above it, the
//! stream beneath it.
//!
//! hyper writes no interim answer but its own 100, no trailers that no `Trailer` announced, and no reason into a refusal of its own. Both
//! ends are ours: what hyper cannot say is left here by one and put in its place by the other. An HTTP/2 stream has a line too, for its
//! interim answers. A line belongs to one worker: nothing here waits for another thread.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker, ready};

use bytes::{BufMut, Bytes, BytesMut};
use engine::failure::REASON_HEADER;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use parking_lot::Mutex;

use crate::ground::limits::{HEAD_BYTES_ADDED_MAX, HEAD_BYTES_MAX, INTERIM_ANSWERS_MAX};
use crate::ground::wakes::Wakes;

/// Bytes of an exchange's answer may still come.
const OPEN: u32 = 1;
/// The connection is no HTTP any more.
const TUNNEL: u32 = 1 << 1;
/// hyper has nothing unwritten.
const CLEAN: u32 = 1 << 2;
/// Interim answers wait.
const INTERIM: u32 = 1 << 3;
/// The client holds its body back until it is asked for.
const EXPECTS: u32 = 1 << 4;
/// The upstream wants the body.
const CONTINUED: u32 = 1 << 5;
/// The final answer has begun.
const FINAL: u32 = 1 << 6;
/// The exchange is over.
const LEFT: u32 = 1 << 7;
/// Trailers wait for the end of the message.
const TRAILERS: u32 = 1 << 8;
/// A rest of a request waits to be read and forgotten.
const UNREAD: u32 = 1 << 9;
/// An answer's head is waited for.
const HEAD: u32 = 1 << 10;
/// hyper's own 100 is not to be written.
const NOT_OURS: u32 = 1 << 11;
/// The target of the head that is being read has a fragment.
const COMES_WITH_FRAGMENT: u32 = 1 << 12;
/// This exchange's target has one.
const FRAGMENT: u32 = 1 << 13;
/// The request's body is still coming.
const BODY: u32 = 1 << 14;
/// The connection is to end with this exchange.
const LAST: u32 = 1 << 15;
/// What is written upstream is kept until its answer begins.
const KEEPS: u32 = 1 << 16;
/// Other bytes stand in for the head that hyper writes next.
const STANDS_IN: u32 = 1 << 17;
/// What is kept takes much room.
const KEPT_MUCH: u32 = 1 << 18;
/// One exchange more.
const TURN: u32 = 1 << 19;
/// What tells exchanges apart.
const TURNS: u32 = !(TURN - 1) | OPEN;

/// Room for what is written that a connection keeps while it rests: a usual head's.
const KEPT_HEAD_BYTES: usize = 4 << 10;

/// Fields that a trailer section must not hold: they frame, route or belong to one hop (RFC 9110, section 6.5.1).
const NO_TRAILERS: [HeaderName; 7] = [TRANSFER_ENCODING, CONTENT_LENGTH, HOST, TRAILER, TE, CONNECTION, UPGRADE];

/// Fields that go no further with an interim answer.
const OF_HOP: [HeaderName; 8] =
    [CONNECTION, CONTENT_LENGTH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, HeaderName::from_static("keep-alive"), REASON_HEADER];

/// See the module. Of a connection that carries one exchange at a time, or of one HTTP/2 stream.
#[derive(Debug, Default)]
pub struct Line {
    state: AtomicU32,
    rare: Mutex<Rare>,
    wakes: Option<Arc<Wakes>>,
}

/// What most exchanges never need.
#[derive(Debug, Default)]
struct Rare {
    interim: VecDeque<Interim>,
    trailers: Option<Bytes>,
    unread: Option<Incoming>,
    /// Where interim answers that are heard on this line go.
    to: Option<Arc<Line>>,
    /// Who writes interim answers, where that is no task of `wakes`.
    writer: Option<Waker>,
    /// Who holds a request's body back.
    gate: Option<Waker>,
    /// What was written upstream.
    written: BytesMut,
    /// See [`STANDS_IN`].
    stand_in: Option<Bytes>,
}

/// Whether a request of HTTP/1, as this proxy writes it, has come to its end: its body is as long as it says, or there is none.
#[cold]
fn is_whole(written: &[u8]) -> bool {
    let Some(end) = written.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let (head, body) = written.split_at(end + 4);
    let mut length = Some(0);
    for line in head.split(|byte| *byte == b'\n') {
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':').unwrap_or(0));
        if name.eq_ignore_ascii_case(TRANSFER_ENCODING.as_str().as_bytes()) {
            return false;
        }
        if name.eq_ignore_ascii_case(CONTENT_LENGTH.as_str().as_bytes()) {
            let value = value.get(1..).and_then(|value| std::str::from_utf8(value).ok());
            length = value.and_then(|value| value.trim().parse().ok());
        }
    }
    length == Some(body.len())
}

/// An interim answer (RFC 9110, section 15.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interim {
    /// 100, or 102 to 199.
    pub status: StatusCode,
    /// Its fields.
    pub headers: HeaderMap,
}

impl Line {
    /// The line of a connection whose task is woken through `wakes`.
    pub fn of(wakes: Arc<Wakes>) -> Arc<Self> {
        Arc::new(Self { wakes: Some(wakes), ..Self::default() })
    }

    /// The wakes of the connection's task.
    pub const fn wakes(&self) -> Option<&Arc<Wakes>> {
        self.wakes.as_ref()
    }

    #[inline]
    fn get(&self) -> u32 {
        self.state.load(Ordering::Relaxed)
    }

    /// One thread writes, so that reading first and writing then loses nothing.
    #[inline]
    fn set(&self, state: u32) {
        self.state.store(state, Ordering::Relaxed);
    }

    #[inline]
    fn has(&self, any: u32) -> bool {
        self.get() & any != 0
    }

    fn add(&self, bits: u32) {
        self.set(self.get() | bits);
    }

    fn take(&self, bits: u32) {
        self.set(self.get() & !bits);
    }

    fn wake(&self) {
        match &self.wakes {
            Some(wakes) => wakes.wake_task(),
            None => {
                let writer = self.rare.lock().writer.take();
                writer.into_iter().for_each(Waker::wake);
            }
        }
    }

    // Downstream: who serves.

    /// A request has come.
    #[inline]
    pub fn begin(&self) {
        let state = self.get();
        if state & (INTERIM | TRAILERS) != 0 {
            self.forget();
        }
        let fragment = if state & COMES_WITH_FRAGMENT == 0 { 0 } else { FRAGMENT };
        self.set((state & (TURNS | CLEAN | UNREAD)).wrapping_add(TURN) | OPEN | fragment);
    }

    #[cold]
    fn forget(&self) {
        let mut rare = self.rare.lock();
        rare.interim.clear();
        rare.trailers = None;
    }

    /// The final answer is handed to hyper. An interim one that could not be written before would come behind it, and is forgotten.
    #[inline]
    pub fn answered(&self) {
        let state = self.get();
        self.set(state | FINAL);
        if state & (INTERIM | CLEAN) == INTERIM {
            self.forget();
            self.take(INTERIM);
        }
    }

    /// All of an answer is with hyper.
    #[inline]
    pub fn ended(&self) {
        if !self.has(TUNNEL) {
            self.take(OPEN);
        }
    }

    /// What is written from here on is no HTTP.
    pub fn becomes_tunnel(&self) {
        self.add(TUNNEL | OPEN);
    }

    /// The request has a body, which comes from here on.
    #[inline]
    pub fn body_comes(&self) {
        self.add(BODY);
    }

    /// No more of it comes to anybody.
    #[inline]
    pub fn body_over(&self) {
        self.take(BODY);
    }

    /// Takes the rest of a request that nobody wants, to be read and forgotten: who still sends it would otherwise meet a reset instead of
    /// the answer.
    pub fn leave_unread(&self, rest: Incoming) {
        self.rare.lock().unread = Some(rest);
        self.add(UNREAD);
        self.wake();
    }

    /// Whether there is such a rest.
    #[inline]
    pub fn has_unread(&self) -> bool {
        self.has(UNREAD)
    }

    /// Reads the rest: ready with `true` when something has come, with `false` when it is at its end.
    pub fn poll_unread(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut rare = self.rare.lock();
        let Some(rest) = &mut rare.unread else { return Poll::Ready(false) };
        if let Some(Ok(_)) = ready!(Pin::new(rest).poll_frame(cx)) {
            return Poll::Ready(true);
        }
        rare.unread = None;
        drop(rare);
        self.take(UNREAD);
        Poll::Ready(false)
    }

    /// Reads no more of it; hyper closes the connection.
    pub fn give_up_unread(&self) {
        self.take(UNREAD);
        self.rare.lock().unread = None;
    }

    /// The next interim answer that waits; for who writes them by other means than the stream beneath hyper.
    pub fn poll_interim(&self, cx: &mut Context<'_>) -> Poll<Interim> {
        let mut rare = self.rare.lock();
        if let Some(interim) = rare.interim.pop_front() {
            return Poll::Ready(interim);
        }
        rare.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether it is no HTTP any more.
    pub fn is_tunnel(&self) -> bool {
        self.has(TUNNEL)
    }

    /// Whether an exchange is under way, and how many there were: a number that wraps.
    #[inline]
    pub fn exchange(&self) -> (bool, u32) {
        let state = self.get();
        (state & OPEN != 0, state / TURN)
    }

    /// Whether the connection is to end in order with this exchange.
    #[inline]
    pub fn is_last(&self) -> bool {
        self.has(LAST)
    }

    // Downstream: the road.

    /// The connection that this exchange came by is to end in order with it.
    pub fn be_the_last(&self) {
        self.add(LAST);
    }

    /// Passes an interim answer on: it is written before the final one where hyper has nothing unwritten. Beyond
    /// [`INTERIM_ANSWERS_MAX`] waiting ones it is forgotten: nobody may rely on one.
    pub fn pass(&self, mut interim: Interim) {
        if self.has(FINAL | TUNNEL) {
            return;
        }
        clean(&mut interim.headers);
        let mut rare = self.rare.lock();
        if interim.status == StatusCode::CONTINUE {
            self.add(CONTINUED);
            rare.gate.take().into_iter().for_each(Waker::wake);
        }
        if rare.interim.len() < INTERIM_ANSWERS_MAX {
            rare.interim.push_back(interim);
            drop(rare);
            self.add(INTERIM);
            self.wake();
        }
    }

    /// Whether the request's target has a fragment, which hyper cuts off in silence.
    #[inline]
    pub fn has_fragment(&self) -> bool {
        self.has(FRAGMENT)
    }

    /// The client waits for a 100 before it sends the body. That one is the upstream's to say.
    pub fn expects(&self) {
        self.add(EXPECTS | NOT_OURS);
    }

    /// Whether the upstream has asked for the body, or the final answer has come: then nobody may ask for it any more.
    pub fn poll_continued(&self, cx: &mut Context<'_>) -> Poll<Continued> {
        let state = self.get();
        if state & CONTINUED != 0 {
            return Poll::Ready(Continued::Wanted);
        }
        if state & LEFT != 0 {
            return Poll::Ready(Continued::Unwanted);
        }
        self.rare.lock().gate = Some(cx.waker().clone());
        if state & FINAL != 0 { Poll::Ready(Continued::Answered) } else { Poll::Pending }
    }

    /// The client has been told, or told nothing, and sends: there is nothing to hold back any more.
    pub fn continues(&self) {
        self.add(CONTINUED);
    }

    /// Whether a body is held back that the client has not been asked for.
    pub fn holds_back(&self) -> bool {
        self.get() & (EXPECTS | CONTINUED) == EXPECTS
    }

    /// The exchange is over; a body that is still held back is not wanted any more.
    pub fn left(&self) {
        self.add(LEFT);
        let gate = self.rare.lock().gate.take();
        gate.into_iter().for_each(Waker::wake);
    }

    // Upstream: the road.

    /// A request is sent: interim answers go to `to`. With `keeps`, all that is written of it is kept until its answer begins.
    #[inline]
    pub fn ask(&self, to: Option<&Arc<Self>>, keeps: bool) {
        self.set((self.get() & !KEEPS) | HEAD | if keeps { KEEPS } else { 0 });
        let mut rare = self.rare.lock();
        rare.written.clear();
        match (&rare.to, to) {
            (Some(before), Some(to)) if Arc::ptr_eq(before, to) => {}
            (None, None) => {}
            _ => rare.to = to.cloned(),
        }
    }

    /// What was written of a request without a body whose answer has not begun, byte for byte; `None`: it was not kept.
    pub fn written(&self) -> Option<Bytes> {
        let unanswered = self.get() & (KEEPS | HEAD) == KEEPS | HEAD;
        unanswered.then(|| self.rare.lock().written.split().freeze()).filter(|written| !written.is_empty())
    }

    /// What was written of a request that was answered, byte for byte, if that is all of it; `None`: it was not kept, or is not all.
    pub fn written_whole(&self) -> Option<Bytes> {
        self.has(KEEPS).then(|| self.rare.lock().written.split().freeze()).filter(|written| is_whole(written))
    }

    /// No more is asked for now: room beyond a usual head's is given back.
    #[inline]
    pub fn rest(&self) {
        if self.has(KEPT_MUCH) {
            self.take(KEPT_MUCH);
            self.rare.lock().written = BytesMut::new();
        }
    }

    /// These bytes go out in place of the head that hyper writes next: one that was sent elsewhere in vain, with its names spelled as they came.
    pub fn stand_in(&self, head: Bytes) {
        self.rare.lock().stand_in = Some(head);
        self.add(STANDS_IN);
    }

    // Both: bodies.

    /// Trailers come at the end of the chunked message that is being written. What is no trailer is left out.
    pub fn trail(&self, trailers: &HeaderMap) {
        let mut text = BytesMut::new();
        for (name, value) in trailers {
            if !NO_TRAILERS.contains(name) {
                put_field(&mut text, name.as_str(), value.as_bytes());
            }
        }
        if !text.is_empty() {
            self.rare.lock().trailers = Some(text.freeze());
            self.add(TRAILERS);
        }
    }

    // The streams beneath.

    /// Whether there is something to write that hyper does not know of.
    #[inline]
    pub(crate) fn has_words(&self) -> bool {
        self.has(INTERIM | NOT_OURS | TRAILERS)
    }

    /// Tells exchanges apart, and whether one is open.
    #[inline]
    pub(crate) fn turn(&self) -> u32 {
        self.get() & TURNS
    }

    /// The same if nothing is open.
    #[inline]
    pub(crate) fn quiet_turn(&self) -> Option<u32> {
        let turn = self.turn();
        (turn & OPEN == 0).then_some(turn)
    }

    /// Whether what is read next is a head.
    #[inline]
    pub(crate) fn heads_come(&self) -> bool {
        !self.has(BODY | UNREAD)
    }

    /// The target of the head that is being read has a fragment.
    #[cold]
    pub(crate) fn comes_with_fragment(&self) {
        self.add(COMES_WITH_FRAGMENT);
    }

    /// Whether hyper has nothing unwritten.
    #[inline]
    pub(crate) fn is_clean(&self) -> bool {
        self.has(CLEAN)
    }

    #[inline]
    pub(crate) fn set_clean(&self, clean: bool) {
        let state = self.get();
        let wanted = if clean { state | CLEAN } else { state & !CLEAN };
        if wanted != state {
            self.set(wanted);
        }
    }

    /// The interim answers that wait, as HTTP/1.1.
    pub(crate) fn take_interim(&self) -> Option<Bytes> {
        if !self.has(INTERIM) {
            return None;
        }
        self.take(INTERIM);
        let mut text = BytesMut::new();
        for Interim { status, headers } in self.rare.lock().interim.drain(..) {
            text.put_slice(b"HTTP/1.1 ");
            text.put_slice(status.as_str().as_bytes());
            text.put_u8(b' ');
            text.put_slice(status.canonical_reason().unwrap_or("Interim").as_bytes());
            text.put_slice(b"\r\n");
            headers.iter().for_each(|(name, value)| put_field(&mut text, name.as_str(), value.as_bytes()));
            text.put_slice(b"\r\n");
        }
        (!text.is_empty()).then(|| text.freeze())
    }

    /// Whether hyper's own 100 is to be left out. Once: whatever is written first is that, or the final answer.
    pub(crate) fn take_not_ours(&self) -> bool {
        let not_ours = self.has(NOT_OURS);
        self.take(NOT_OURS);
        not_ours
    }

    /// Whether something is written upstream that hyper does not know of.
    #[inline]
    pub(crate) fn has_other(&self) -> bool {
        self.has(TRAILERS | STANDS_IN)
    }

    /// What goes out in place of the head that hyper writes now.
    pub(crate) fn take_stand_in(&self) -> Option<Bytes> {
        self.take(STANDS_IN);
        self.rare.lock().stand_in.take()
    }

    /// The first `count` of these bytes were written.
    #[inline]
    pub(crate) fn wrote(&self, bufs: &[IoSlice<'_>], count: usize) {
        if self.get() & (KEEPS | HEAD) == KEEPS | HEAD {
            self.keep(bufs, count);
        }
    }

    fn keep(&self, bufs: &[IoSlice<'_>], mut count: usize) {
        let written = &mut self.rare.lock().written;
        for buf in bufs {
            let part = &buf[..buf.len().min(count)];
            written.extend_from_slice(part);
            count -= part.len();
        }
        if written.len() > KEPT_HEAD_BYTES {
            self.add(KEPT_MUCH);
        }
        if written.len() > HEAD_BYTES_MAX + HEAD_BYTES_ADDED_MAX {
            // No head is as long: it is not known any more what this is.
            written.clear();
            self.take(KEEPS);
        }
    }

    /// The trailers that wait, each a line.
    pub(crate) fn take_trailers(&self) -> Option<Bytes> {
        self.take(TRAILERS);
        self.rare.lock().trailers.take()
    }

    /// Whether an answer's head is waited for.
    #[inline]
    pub(crate) fn awaits_head(&self) -> bool {
        self.has(HEAD)
    }

    /// It has come.
    #[inline]
    pub(crate) fn head_came(&self) {
        self.take(HEAD);
    }

    /// An interim answer has come.
    pub(crate) fn hear(&self, interim: Interim) {
        self.take(KEEPS);
        let to = self.rare.lock().to.clone();
        if let Some(to) = to {
            to.pass(interim);
        }
    }
}

/// See [`Line::poll_continued`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continued {
    /// The upstream asks for the body.
    Wanted,
    /// The final answer has come; it is not over.
    Answered,
    /// The exchange is over.
    Unwanted,
}

/// Takes off an interim answer what was meant for one hop, frames a body that it has not, or speaks for the mesh.
fn clean(headers: &mut HeaderMap) {
    let text = |value: &HeaderValue| value.to_str().map(str::to_owned).unwrap_or_default();
    let lines: Vec<String> = headers.get_all(CONNECTION).iter().map(text).collect();
    for name in lines.iter().flat_map(|line| line.split(',')).map(str::trim) {
        headers.remove(name);
    }
    OF_HOP.iter().for_each(|name| drop(headers.remove(name)));
}

fn put_field(text: &mut BytesMut, name: &str, value: &[u8]) {
    text.put_slice(name.as_bytes());
    text.put_slice(b": ");
    text.put_slice(value);
    text.put_slice(b"\r\n");
}
