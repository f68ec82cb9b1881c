//! A body whose beginning was looked at before it goes on.

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::{BodySource, Cut, Received};
use crate::ground::room::ReplayPlace;

/// The beginning of a body.
#[derive(Debug)]
pub struct Beginning {
    /// As much as was asked for, or all.
    pub bytes: Bytes,
    /// There is more.
    pub more: bool,
}

/// See the module: what was looked at comes first.
pub(super) struct Looked {
    data: Bytes,
    trailers: Option<HeaderMap>,
    rest: Received,
    /// What it takes of the worker's room.
    _place: ReplayPlace,
}

impl Received {
    /// Reads a body until more than `bytes_max` of it have come, or its end; it comes again from its beginning. `place` is room for as much.
    /// Dropping the future gives the body up.
    ///
    /// # Errors
    /// The sender broke off before.
    pub async fn look(mut self, bytes_max: usize, place: ReplayPlace) -> Result<(Self, Beginning), Cut> {
        let (mut data, mut trailers) = (BytesMut::new(), None);
        while data.len() <= bytes_max && !self.is_end_stream() {
            let Some(frame) = poll_fn(|cx| self.poll_frame(cx)).await else { break };
            match frame?.into_data() {
                Ok(piece) => data.extend_from_slice(&piece),
                Err(frame) => {
                    trailers = frame.into_trailers().ok();
                    break;
                }
            }
        }
        let data = data.freeze();
        let beginning = Beginning { bytes: data.slice(..data.len().min(bytes_max)), more: data.len() > bytes_max };
        Ok((Self(BodySource::Looked(Box::new(Looked { data, trailers, rest: self, _place: place }))), beginning))
    }
}

impl Looked {
    pub(super) const fn rest(&self) -> &Received {
        &self.rest
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none() && self.rest.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let rest = self.rest.size_hint().exact();
        rest.map_or_else(SizeHint::default, |rest| SizeHint::with_exact(self.data.len() as u64 + rest))
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if !self.data.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.data)))));
        }
        match self.trailers.take() {
            Some(trailers) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            None if self.rest.is_end_stream() => Poll::Ready(None),
            None => self.rest.poll_frame(cx),
        }
    }

    pub(super) fn stop(&mut self) {
        (self.data, self.trailers) = (Bytes::new(), None);
        self.rest.stop();
    }
}
