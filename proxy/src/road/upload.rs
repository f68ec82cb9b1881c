//! A request's body on its way.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use engine::authenticate::Authentication;
use engine::failure::Reason;
use http::HeaderMap;
use http_body::Frame;
use tokio::time::{Sleep, sleep};

use crate::ground::body::{Body, Cut, Follower, Received};
use crate::ground::limits::CONTINUE_WAIT;
use crate::ground::line::{Continued, Line};
use crate::ground::patience::{Overdue, Upload};
use crate::http::clean_trailers;
use crate::observe::Account;

/// The request's body; where there is one, its bytes are counted and keep the exchange from being taken for idle. The client holds it back
/// until `held` brings the upstream's word.
/// `ends`: its answer may end in order while it still comes, and then it ends as well.
pub fn upload(received: Received, overdue: &Overdue, held: Option<&Arc<Line>>, (account, ends): (&Account, bool)) -> Body {
    if received.is_end_stream() {
        return Body::Empty;
    }
    let (upload, length) = (overdue.wait.upload(), received.size_hint().exact());
    upload.expects(length);
    // With a length there is no place for trailers.
    let tokens = account.authentication().cloned();
    let mut uploading = Box::new(Uploading { upload, chunked: length.is_none(), ends, tokens, upstream: None, held: None });
    let Some(line) = held else { return Body::followed(received, uploading) };
    line.expects();
    uploading.held = Some(Box::new(HeldBack { line: Arc::clone(line), patience: Box::pin(sleep(CONTINUE_WAIT)) }));
    Body::gated(received, uploading)
}

/// Follows a request's body.
struct Uploading {
    upload: Upload,
    chunked: bool,
    ends: bool,
    /// Whose claims no caller says, in trailers either.
    tokens: Option<Arc<Authentication>>,
    upstream: Option<Arc<Line>>,
    held: Option<Box<HeldBack>>,
}

/// A body that the client holds back (RFC 9110, section 10.1.1).
struct HeldBack {
    line: Arc<Line>,
    /// An application that knows nothing of expectations gets its body all the same.
    patience: Pin<Box<Sleep>>,
}

impl Follower for Uploading {
    fn frame(&mut self, frame: &Frame<Bytes>) {
        self.upload.moved(frame.data_ref().map_or(0, Bytes::len));
    }

    fn ended(&mut self, outcome: Result<(), &Cut>) {
        if outcome.is_ok() {
            self.upload.expects(Some(0));
        }
    }

    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        // The answer's side watches for both.
        if self.ends { self.upload.poll_stopped(cx).map(|()| Reason::RequestTimeout) } else { Poll::Pending }
    }

    fn poll_gate(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Some(held) = &mut self.held else { return Poll::Ready(true) };
        match held.line.poll_continued(cx) {
            Poll::Ready(Continued::Wanted) => {}
            Poll::Ready(Continued::Unwanted) => return Poll::Ready(false),
            Poll::Ready(Continued::Answered) => return Poll::Pending,
            Poll::Pending => {
                ready!(held.patience.as_mut().poll(cx));
                held.line.continues();
            }
        }
        self.held = None;
        Poll::Ready(true)
    }

    fn trailers(&mut self, mut trailers: HeaderMap) -> Option<HeaderMap> {
        clean_trailers(&mut trailers);
        if let Some(tokens) = &self.tokens {
            tokens.unsay(&mut trailers);
        }
        match &self.upstream {
            Some(line) if self.chunked => {
                line.trail(&trailers);
                None
            }
            _ => Some(trailers).filter(|trailers| !trailers.is_empty()),
        }
    }

    fn goes_over(&mut self, line: &Arc<Line>) {
        self.upstream = Some(Arc::clone(line));
    }
}
