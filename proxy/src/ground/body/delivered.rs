//! A body on a stream that somebody else reads: over HTTP/3.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use engine::failure::Reason;
use h2::Reason as Code;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue};
use http_body::{Frame, SizeHint};

use super::{BodySource, NO_LENGTH, Received};
use crate::ground::line::Line;
use crate::ground::windows::Share;

/// Reads such a stream. How it broke off is said in HTTP/2's words, which the codes of HTTP/3 have: one kind of cut for both.
pub(crate) trait Delivery {
    /// The next piece; `None`: all data has come.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>>;
    /// What comes behind all data.
    fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<HeaderMap, h2::Error>>>;
}

/// See the module. The library counts no length, so it is counted here: a message that is longer or shorter than it says could be read in two ways
/// further on (RFC 9114, section 4.1.2).
pub(super) struct Delivered {
    /// Absent once nothing of it is wanted or comes.
    delivery: Option<Box<dyn Delivery>>,
    /// What is left of a length that was declared, else [`NO_LENGTH`].
    left: u64,
    data_over: bool,
    /// Looked at already.
    trailers: Option<HeaderMap>,
    refused: Option<Reason>,
    share: Option<Share>,
    line: Option<Arc<Line>>,
}

impl Received {
    /// A request's body that `delivery` reads, with the head it belongs to. `share` counts it among those that are open; `Err`: why its message is
    /// not acted on. `None` as delivery: there is no body.
    ///
    /// # Errors
    /// The head says two lengths, or one that is none; or one, where no body comes.
    pub(crate) fn delivered(
        delivery: Option<Box<dyn Delivery>>,
        headers: &HeaderMap,
        share: Result<Option<Share>, Reason>,
        line: Arc<Line>,
    ) -> Result<Self, BadLength> {
        let length = declared(headers)?;
        if delivery.is_none() && length.is_some_and(|length| length > 0) {
            return Err(BadLength);
        }
        let (share, refused) = match share {
            Ok(share) => (share.filter(|_| delivery.is_some()), None),
            Err(reason) => (None, Some(reason)),
        };
        let left = if delivery.is_some() { length.unwrap_or(NO_LENGTH) } else { 0 };
        let delivered = Delivered { delivery, left, data_over: false, trailers: None, refused, share, line: Some(line) };
        Ok(Self(BodySource::Delivered(Box::new(delivered))))
    }
}

/// A length that is none, or is contradicted.
#[derive(Debug, thiserror::Error)]
#[error("the message says a length that it does not have")]
pub(crate) struct BadLength;

/// One length, however often (RFC 9110, section 8.6).
fn declared(headers: &HeaderMap) -> Result<Option<u64>, BadLength> {
    let number = |value: &HeaderValue| {
        let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        digits.and_then(|text| text.parse::<u64>().ok()).filter(|length| *length != NO_LENGTH).ok_or(BadLength)
    };
    let mut all = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = all.next() else { return Ok(None) };
    let length = number(first)?;
    if all.all(|other| number(other).is_ok_and(|other| other == length)) { Ok(Some(length)) } else { Err(BadLength) }
}

impl Delivered {
    pub(super) const fn refused(&self) -> Option<Reason> {
        self.refused
    }

    pub(super) const fn line(&self) -> Option<&Arc<Line>> {
        self.line.as_ref()
    }

    pub(super) const fn is_over(&self) -> bool {
        self.delivery.is_none() && self.trailers.is_none()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        if self.left == NO_LENGTH { SizeHint::default() } else { SizeHint::with_exact(self.left) }
    }

    pub(super) fn stop(&mut self) {
        (self.delivery, self.share) = (None, None);
    }

    fn cut<T>(&mut self) -> Poll<Option<Result<T, h2::Error>>> {
        self.stop();
        Poll::Ready(Some(Err(Code::PROTOCOL_ERROR.into())))
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let Some(delivery) = &mut self.delivery else { return Poll::Ready(None) };
        if !self.data_over {
            match ready!(delivery.poll_data(cx)) {
                Some(Ok(data)) => return self.came(data, cx),
                Some(Err(error)) => {
                    self.stop();
                    return Poll::Ready(Some(Err(error)));
                }
                None if self.left != NO_LENGTH && self.left > 0 => return self.cut(),
                None => (self.data_over, self.left) = (true, 0),
            }
        }
        let trailers = ready!(delivery.poll_trailers(cx));
        self.stop();
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)))
    }

    /// A piece has come. Behind the last one of a length the end is looked for: who knows the length does not ask for it.
    fn came(&mut self, data: Bytes, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if self.left != NO_LENGTH {
            let Some(left) = self.left.checked_sub(data.len() as u64) else { return self.cut() };
            self.left = left;
            if left == 0
                && let Some(delivery) = &mut self.delivery
                && let Poll::Ready(more) = delivery.poll_data(cx)
            {
                match more {
                    Some(Ok(more)) if more.is_empty() => {}
                    Some(_) => return self.cut(),
                    None => {
                        self.data_over = true;
                        if let Poll::Ready(trailers) = delivery.poll_trailers(cx) {
                            self.trailers = trailers.and_then(Result::ok);
                            self.stop();
                        }
                    }
                }
            }
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data in these pieces, and then nothing.
    struct Pieces(Vec<&'static str>);

    impl Delivery for Pieces {
        fn poll_data(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
            let piece = (!self.0.is_empty()).then(|| self.0.remove(0));
            Poll::Ready(piece.map(|piece| Ok(Bytes::from_static(piece.as_bytes()))))
        }

        fn poll_trailers(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<HeaderMap, h2::Error>>> {
            Poll::Ready(None)
        }
    }

    fn read(lengths: &[&str], pieces: &[&'static str]) -> Result<Result<String, ()>, ()> {
        let headers: HeaderMap = lengths.iter().map(|length| (CONTENT_LENGTH, length.parse().unwrap())).collect();
        let delivery: Option<Box<dyn Delivery>> = (!pieces.is_empty()).then(|| Box::new(Pieces(pieces.to_vec())) as _);
        let mut received = Received::delivered(delivery, &headers, Ok(None), Arc::default()).map_err(|_| ())?;
        let (mut text, mut cx) = (String::new(), Context::from_waker(std::task::Waker::noop()));
        loop {
            match received.poll_frame(&mut cx) {
                Poll::Ready(Some(Ok(frame))) => text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap()),
                Poll::Ready(Some(Err(_))) => return Ok(Err(())),
                Poll::Ready(None) => return Ok(Ok(text)),
                Poll::Pending => unreachable!("all has come"),
            }
        }
    }

    #[test]
    fn a_length_is_kept_to() {
        // Aim: a body of the length that is said, or without one; longer and shorter ones are cut; two lengths, none, and one without a body are no
        // message.
        for (lengths, pieces, wanted) in [
            (&["4"][..], &["ab", "cd"][..], Ok(Ok("abcd".to_owned()))),
            (&["4", "4"], &["abcd"], Ok(Ok("abcd".to_owned()))),
            (&[], &["ab", "c"], Ok(Ok("abc".to_owned()))),
            (&["0"], &[], Ok(Ok(String::new()))),
            (&["3"], &["ab", "cd"], Ok(Err(()))),
            (&["5"], &["ab", "cd"], Ok(Err(()))),
            (&["4", "5"], &["abcd"], Err(())),
            (&["+4"], &["abcd"], Err(())),
            (&["4"], &[], Err(())),
        ] {
            assert_eq!(read(lengths, pieces), wanted, "{lengths:?} {pieces:?}");
        }
    }
}
