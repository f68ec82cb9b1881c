//! A request's body on its way.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use engine::authenticate::Authentication;
use engine::failure::Reason;
use engine::model::ClientTimeouts;
use http::HeaderMap;
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep};

use crate::ground::body::{Body, Cut, Follower, Received};
use crate::ground::limits::{CONTINUE_WAIT, UPLOAD_GRACE};
use crate::ground::line::{Continued, Line};
use crate::ground::patience::{Overdue, Spoilt, Upload};
use crate::http::clean_trailers;
use crate::observe::Account;

/// What a client's upload may be; all zero or none: anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct UploadBounds {
    bytes_max: u64,
    /// Between two pieces that are waited for.
    idle: Option<Duration>,
    /// Bytes in each second that it is waited for.
    bytes_per_sec_min: u32,
}

impl UploadBounds {
    /// Of a rule, and of clients from outside.
    pub fn of(bytes_max: u64, timeouts: Option<ClientTimeouts>) -> Self {
        let idle = timeouts.map(|timeouts| timeouts.body_idle).filter(|idle| !idle.is_zero());
        Self { bytes_max, idle, bytes_per_sec_min: timeouts.map_or(0, |timeouts| timeouts.bytes_per_sec_min) }
    }

    const fn binds(self) -> bool {
        self.bytes_max > 0 || self.idle.is_some() || self.bytes_per_sec_min > 0
    }
}

/// The request's body; where there is one, its bytes are counted and keep the exchange from being taken for idle. The client holds it back
/// until `held` brings the upstream's word.
/// `ends`: its answer may end in order while it still comes, and then it ends as well.
pub fn upload(
    received: Received,
    (overdue, bounds): (&Overdue, UploadBounds),
    held: Option<&Arc<Line>>,
    (account, ends): (&Account, bool),
) -> Body {
    if received.is_end_stream() {
        return Body::Empty;
    }
    let (upload, length) = (overdue.wait.upload(), received.size_hint().exact());
    upload.expects(length);
    // With a length there is no place for trailers.
    let tokens = account.authentication().cloned();
    let pace = bounds.binds().then(|| Box::new(Pace { bounds, ..Pace::default() }));
    let mut uploading = Box::new(Uploading { upload, pace, chunked: length.is_none(), ends, tokens, upstream: None, held: None });
    let Some(line) = held else { return Body::followed(received, uploading) };
    line.expects();
    uploading.held = Some(Box::new(HeldBack { line: Arc::clone(line), patience: Box::pin(sleep(CONTINUE_WAIT)) }));
    Body::gated(received, uploading)
}

/// Follows a request's body.
struct Uploading {
    upload: Upload,
    /// Where it is bounded.
    pace: Option<Box<Pace>>,
    chunked: bool,
    ends: bool,
    /// Whose claims no caller says, in trailers either.
    tokens: Option<Arc<Authentication>>,
    upstream: Option<Arc<Line>>,
    held: Option<Box<HeldBack>>,
}

/// How fast a body comes. Only the time counts in which it is waited for: who takes it slowly is not its sender's doing.
#[derive(Debug, Default)]
struct Pace {
    bounds: UploadBounds,
    bytes: u64,
    waited: Duration,
    /// It is being waited for.
    since: Option<Instant>,
    /// Made when it is first waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    const fn is_over(&self) -> bool {
        self.bounds.bytes_max > 0 && self.bytes > self.bounds.bytes_max
    }

    fn came(&mut self, bytes: u64) {
        self.bytes += bytes;
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
    }

    /// Ready when a piece, or the average, has been waited for too long.
    fn poll_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let bounds = self.bounds;
        let idle = bounds.idle.unwrap_or(Duration::MAX);
        let earned = match bounds.bytes_per_sec_min {
            0 => Duration::MAX,
            least => UPLOAD_GRACE.saturating_add(Duration::from_millis(self.bytes.saturating_mul(1000) / u64::from(least))),
        };
        let left = idle.min(earned.saturating_sub(self.waited));
        if left == Duration::MAX {
            return Poll::Pending;
        }
        if self.since.is_none() {
            let now = Instant::now();
            self.since = Some(now);
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(now + left),
                None => self.timer = Some(Box::pin(sleep(left))),
            }
        }
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

/// A body that the client holds back (RFC 9110, section 10.1.1).
struct HeldBack {
    line: Arc<Line>,
    /// An application that knows nothing of expectations gets its body all the same.
    patience: Pin<Box<Sleep>>,
}

impl Follower for Uploading {
    fn frame(&mut self, frame: &Frame<Bytes>) {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        self.upload.moved(bytes);
        if let Some(pace) = &mut self.pace {
            pace.came(bytes as u64);
        }
    }

    fn refused(&self) -> Option<Reason> {
        self.pace.as_ref().filter(|pace| pace.is_over())?;
        self.upload.spoil(Spoilt::TooLong);
        Some(Reason::TooLarge)
    }

    fn ended(&mut self, outcome: Result<(), &Cut>) {
        if outcome.is_ok() {
            self.upload.expects(Some(0));
        }
    }

    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        if self.pace.as_mut().is_some_and(|pace| pace.poll_slow(cx).is_ready()) {
            self.upload.spoil(Spoilt::TooSlow);
            return Poll::Ready(Reason::RequestTimeout);
        }
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
