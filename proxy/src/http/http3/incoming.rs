//! A request's body as it comes.

use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes};
use h2::Reason;
use h3::error::{Code, StreamError};
use h3::server::RequestStream;
use http::HeaderMap;

use super::transport::Inward;
use crate::ground::body::Delivery;

/// See the module.
pub(super) struct Arriving {
    stream: RequestStream<Inward, Bytes>,
    /// What was looked at.
    first: Option<Bytes>,
    /// All data has been taken off the stream: the library must not be asked for more then.
    data_over: bool,
    /// Looked at, too.
    trailers: Option<HeaderMap>,
    over: bool,
}

impl Arriving {
    /// Looks at once whether anything comes behind a head; `None`: it was all.
    pub(super) fn of(stream: RequestStream<Inward, Bytes>) -> Option<Self> {
        let mut incoming = Self { stream, first: None, data_over: false, trailers: None, over: false };
        let mut cx = Context::from_waker(Waker::noop());
        match incoming.poll_piece(&mut cx) {
            Poll::Ready(Some(Ok(piece))) => incoming.first = Some(piece),
            // Whoever reads it on hears of it again.
            Poll::Pending | Poll::Ready(Some(Err(_))) => {}
            Poll::Ready(None) => match incoming.poll_end(&mut cx) {
                Poll::Ready(None) => return None,
                Poll::Ready(Some(Ok(trailers))) => incoming.trailers = Some(trailers),
                Poll::Pending | Poll::Ready(Some(Err(_))) => {}
            },
        }
        Some(incoming)
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if self.data_over {
            return Poll::Ready(None);
        }
        match ready!(self.stream.poll_recv_data(cx)) {
            Ok(Some(mut piece)) => Poll::Ready(Some(Ok(piece.copy_to_bytes(piece.remaining())))),
            Ok(None) => {
                self.data_over = true;
                Poll::Ready(None)
            }
            Err(error) => Poll::Ready(Some(Err(broken(&error)))),
        }
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<HeaderMap, h2::Error>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let trailers = ready!(self.stream.poll_recv_trailers(cx));
        self.over = true;
        Poll::Ready(trailers.map_err(|error| broken(&error)).transpose())
    }
}

impl Delivery for Arriving {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(first))),
            None => self.poll_piece(cx),
        }
    }

    fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<HeaderMap, h2::Error>>> {
        match self.trailers.take() {
            Some(trailers) => {
                self.over = true;
                Poll::Ready(Some(Ok(trailers)))
            }
            None => self.poll_end(cx),
        }
    }
}

/// How it broke off, in HTTP/2's words.
fn broken(error: &StreamError) -> h2::Error {
    match error {
        StreamError::RemoteTerminate { code: Code::H3_EXCESSIVE_LOAD, .. } => Reason::ENHANCE_YOUR_CALM,
        StreamError::RemoteTerminate { code: Code::H3_FRAME_ERROR, .. } | StreamError::StreamError { .. } => Reason::PROTOCOL_ERROR,
        StreamError::HeaderTooBig { .. } => Reason::ENHANCE_YOUR_CALM,
        // Its client has gone, or wants it no more.
        _ => Reason::CANCEL,
    }
    .into()
}
