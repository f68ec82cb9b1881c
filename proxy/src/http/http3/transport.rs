//! QUIC's streams as the HTTP/3 library wants them, over quinn. What this proxy has to know and the library keeps to itself goes past it: whether a
//! client still wants its answer, and how much of it has gone. A stream that is dropped before its end is reset: quinn would end it, and half an
//! answer would look whole.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use quinn::{ConnectionError, ReadError, VarInt, WriteError};

use super::frames::{BadFrames, Frames};

type Waiting<T> = Pin<Box<dyn Future<Output = Result<T, ConnectionError>>>>;

/// What is known of a request's stream beside the library.
pub(super) struct Beside {
    /// Resolves when the client wants no more of the answer, or has all of it.
    pub(super) stopped: Pin<Box<dyn Future<Output = ()>>>,
    /// Bytes of the answer that have gone.
    pub(super) passed: Rc<Cell<u64>>,
    /// The client has taken its request back before it was whole, as far as that was read.
    pub(super) torn: Rc<Cell<bool>>,
}

/// A connection of QUIC.
pub(super) struct Quic {
    connection: quinn::Connection,
    /// Of the stream that was accepted last.
    latest: Rc<Cell<Option<Beside>>>,
    both_ways: Option<Waiting<(quinn::SendStream, quinn::RecvStream)>>,
    one_way: Option<Waiting<quinn::RecvStream>>,
    opener: Opener,
}

impl Quic {
    /// And where what is known of each stream is put as it is accepted.
    pub(super) fn new(connection: quinn::Connection) -> (Self, Rc<Cell<Option<Beside>>>) {
        let latest = Rc::<Cell<Option<Beside>>>::default();
        let opener = Opener { connection: connection.clone(), one_way: None };
        (Self { connection, latest: Rc::clone(&latest), both_ways: None, one_way: None, opener }, latest)
    }
}

/// Opens streams of ours.
pub(super) struct Opener {
    connection: quinn::Connection,
    one_way: Option<Waiting<quinn::SendStream>>,
}

/// A request's stream.
pub(super) struct BothWays {
    sending: Outward,
    receiving: Inward,
}

/// What goes to the client.
pub(super) struct Outward {
    stream: quinn::SendStream,
    writing: Option<WriteBuf<Bytes>>,
    passed: Rc<Cell<u64>>,
    over: bool,
}

/// What comes from it.
pub(super) struct Inward {
    stream: quinn::RecvStream,
    frames: Frames,
    /// What has come and was not given on.
    come: Bytes,
    torn: Rc<Cell<bool>>,
    over: bool,
}

fn code(of: Code) -> VarInt {
    VarInt::from_u64(of.value()).unwrap_or(VarInt::MAX)
}

fn id(of: quinn::StreamId) -> StreamId {
    StreamId::try_from(u64::from(of)).expect("ids of streams are integers of QUIC")
}

fn lost(error: ConnectionError) -> ConnectionErrorIncoming {
    match error {
        ConnectionError::ApplicationClosed(close) => ConnectionErrorIncoming::ApplicationClose { error_code: close.error_code.into() },
        ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        other => ConnectionErrorIncoming::Undefined(Arc::new(other)),
    }
}

fn of_connection(error: ConnectionError) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error: lost(error) }
}

fn unread(error: ReadError) -> StreamErrorIncoming {
    match error {
        ReadError::Reset(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() },
        ReadError::ConnectionLost(error) => of_connection(error),
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}

fn unwritten(error: WriteError) -> StreamErrorIncoming {
    match error {
        WriteError::Stopped(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() },
        WriteError::ConnectionLost(error) => of_connection(error),
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}

fn bad(frames: BadFrames) -> StreamErrorIncoming {
    let code = match frames {
        BadFrames::TooLong => Code::H3_EXCESSIVE_LOAD,
        BadFrames::Truncated => Code::H3_FRAME_ERROR,
    };
    StreamErrorIncoming::StreamTerminated { error_code: code.value() }
}

/// Waits in a place that lasts: what was made anew at each poll would forget who waits.
fn poll_waiting<T>(
    place: &mut Option<Waiting<T>>,
    begin: impl FnOnce() -> Waiting<T>,
    cx: &mut Context<'_>,
) -> Poll<Result<T, ConnectionError>> {
    let done = ready!(place.get_or_insert_with(begin).as_mut().poll(cx));
    *place = None;
    Poll::Ready(done)
}

impl quic::Connection<Bytes> for Quic {
    type RecvStream = Inward;
    type OpenStreams = Opener;

    fn poll_accept_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Inward, ConnectionErrorIncoming>> {
        let connection = &self.connection;
        let begin = || -> Waiting<quinn::RecvStream> {
            let connection = connection.clone();
            Box::pin(async move { connection.accept_uni().await })
        };
        let stream = ready!(poll_waiting(&mut self.one_way, begin, cx)).map_err(lost)?;
        Poll::Ready(Ok(Inward { stream, frames: Frames::of_client(), come: Bytes::new(), torn: Rc::default(), over: false }))
    }

    fn poll_accept_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<BothWays, ConnectionErrorIncoming>> {
        let connection = &self.connection;
        let begin = || -> Waiting<(quinn::SendStream, quinn::RecvStream)> {
            let connection = connection.clone();
            Box::pin(async move { connection.accept_bi().await })
        };
        let (sending, receiving) = ready!(poll_waiting(&mut self.both_ways, begin, cx)).map_err(lost)?;
        let (stopped, passed, torn) = (sending.stopped(), Rc::<Cell<u64>>::default(), Rc::<Cell<bool>>::default());
        let stopped = Box::pin(async move { drop(stopped.await) });
        self.latest.set(Some(Beside { stopped, passed: Rc::clone(&passed), torn: Rc::clone(&torn) }));
        Poll::Ready(Ok(BothWays {
            sending: Outward { stream: sending, writing: None, passed, over: false },
            receiving: Inward { stream: receiving, frames: Frames::of_request(), come: Bytes::new(), torn, over: false },
        }))
    }

    fn opener(&self) -> Opener {
        Opener { connection: self.connection.clone(), one_way: None }
    }
}

impl quic::OpenStreams<Bytes> for Quic {
    type BidiStream = BothWays;
    type SendStream = Outward;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<BothWays, StreamErrorIncoming>> {
        self.opener.poll_open_bidi(cx)
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<Outward, StreamErrorIncoming>> {
        self.opener.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.opener.close(code, reason);
    }
}

impl quic::OpenStreams<Bytes> for Opener {
    type BidiStream = BothWays;
    type SendStream = Outward;

    /// A server opens none (RFC 9114, section 6.1).
    fn poll_open_bidi(&mut self, _: &mut Context<'_>) -> Poll<Result<BothWays, StreamErrorIncoming>> {
        let connection_error = ConnectionErrorIncoming::InternalError("a server opens no stream for requests".to_owned());
        Poll::Ready(Err(StreamErrorIncoming::ConnectionErrorIncoming { connection_error }))
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<Outward, StreamErrorIncoming>> {
        let connection = &self.connection;
        let begin = || -> Waiting<quinn::SendStream> {
            let connection = connection.clone();
            Box::pin(async move { connection.open_uni().await })
        };
        let stream = ready!(poll_waiting(&mut self.one_way, begin, cx)).map_err(of_connection)?;
        Poll::Ready(Ok(Outward { stream, writing: None, passed: Rc::default(), over: false }))
    }

    fn close(&mut self, of: Code, reason: &[u8]) {
        self.connection.close(code(of), reason);
    }
}

impl quic::BidiStream<Bytes> for BothWays {
    type SendStream = Outward;
    type RecvStream = Inward;

    fn split(self) -> (Outward, Inward) {
        (self.sending, self.receiving)
    }
}

impl quic::RecvStream for BothWays {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.receiving.poll_data(cx)
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.receiving.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.receiving.recv_id()
    }
}

impl quic::SendStream<Bytes> for BothWays {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.sending.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.sending.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.sending.poll_finish(cx)
    }

    fn reset(&mut self, reset_code: u64) {
        self.sending.reset(reset_code);
    }

    fn send_id(&self) -> StreamId {
        self.sending.send_id()
    }
}

impl quic::RecvStream for Inward {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        loop {
            match self.frames.next(&mut self.come) {
                Ok(Some(piece)) => return Poll::Ready(Ok(Some(piece))),
                Ok(None) if self.over => return Poll::Ready(self.frames.end().map(|()| None).map_err(bad)),
                Ok(None) => {}
                Err(frames) => {
                    self.come = Bytes::new();
                    self.stop_sending(Code::H3_EXCESSIVE_LOAD.value());
                    return Poll::Ready(Err(bad(frames)));
                }
            }
            let read = ready!(pin!(self.stream.read_chunk(usize::MAX, true)).poll(cx));
            if matches!(read, Err(ReadError::Reset(_))) {
                self.torn.set(true);
            }
            match read.map_err(unread)? {
                Some(chunk) => self.come = chunk.bytes,
                None => self.over = true,
            }
        }
    }

    fn stop_sending(&mut self, error_code: u64) {
        // It may be over, or stopped before.
        let _ = self.stream.stop(VarInt::from_u64(error_code).unwrap_or(VarInt::MAX));
        self.over = true;
    }

    fn recv_id(&self) -> StreamId {
        id(self.stream.id())
    }
}

impl Drop for Inward {
    fn drop(&mut self) {
        if !self.over {
            // What is left of it is not wanted, which is no fault (RFC 9114, section 4.1).
            let _ = self.stream.stop(code(Code::H3_NO_ERROR));
        }
    }
}

impl quic::SendStream<Bytes> for Outward {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        if let Some(writing) = &mut self.writing {
            while writing.has_remaining() {
                let written = ready!(Pin::new(&mut self.stream).poll_write(cx, writing.chunk())).map_err(unwritten)?;
                writing.advance(written);
                self.passed.set(self.passed.get() + written as u64);
            }
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.writing.is_some() {
            let connection_error = ConnectionErrorIncoming::InternalError("two frames were written at once".to_owned());
            return Err(StreamErrorIncoming::ConnectionErrorIncoming { connection_error });
        }
        self.writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.over = true;
        Poll::Ready(self.stream.finish().map_err(|error| StreamErrorIncoming::Unknown(Box::new(error))))
    }

    fn reset(&mut self, reset_code: u64) {
        self.over = true;
        // It may be over already.
        let _ = self.stream.reset(VarInt::from_u64(reset_code).unwrap_or(VarInt::MAX));
    }

    fn send_id(&self) -> StreamId {
        id(self.stream.id())
    }
}

impl Drop for Outward {
    fn drop(&mut self) {
        if !self.over {
            let _ = self.stream.reset(code(Code::H3_REQUEST_CANCELLED));
        }
    }
}
