//! Serving HTTP on a connection.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use engine::decide::Version;
use engine::model::ClientRules;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode, request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};

use super::http2;
use super::kept::{Kept, KeptTerms};
use super::reply::CutOff;
use crate::ground::body::{Body, Received};
use crate::ground::drain::{Drain, DrainStage};
use crate::ground::limits;
use crate::ground::line::Line;
use crate::ground::patience::Patience;
use crate::ground::tally::Sender;
use crate::ground::wakes::Wakes;
use crate::ground::windows::Bodies;
use crate::io::{Notes, Pressure, Rewound, Served, Stream, Unstalled};

/// Who calls, and how far that one is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The application beside us: with its time.
    Application,
    /// A mesh peer: with its time, and with room for what the mesh adds to heads.
    Peer,
    /// Anybody: a head has its time.
    Anybody,
}

/// How connections are served: built once per worker.
#[derive(Debug)]
pub struct Serving {
    application: http1::Builder,
    peer: http1::Builder,
    anybody: http1::Builder,
    /// The same, without the case of names.
    lower_case: http1::Builder,
    bodies: Rc<Bodies>,
    patience: Rc<Patience>,
    pressure: Pressure,
}

impl Serving {
    /// Those of the worker.
    #[cfg(feature = "http3")]
    pub(crate) const fn bodies(&self) -> &Rc<Bodies> {
        &self.bodies
    }

    /// `bodies` are those of the worker, `patience` its time, `pressure` its want of places.
    pub fn new(bodies: Rc<Bodies>, patience: Rc<Patience>, pressure: Pressure) -> Self {
        Self {
            application: http1_builder(true, limits::HEAD_BYTES_MAX),
            peer: http1_builder(false, limits::HEAD_BYTES_MAX + limits::HEAD_BYTES_ADDED_MAX),
            anybody: http1_builder(true, limits::HEAD_BYTES_MAX),
            lower_case: {
                let mut builder = http1_builder(true, limits::HEAD_BYTES_MAX);
                builder.preserve_header_case(false);
                builder
            },
            bodies,
            patience,
            pressure,
        }
    }
}

/// `half_close`: a client may close its side after its request and wait for the answer, as a shell's `printf | nc` does. A mesh peer closes
/// its side only when it has gone: what it no longer waits for is given up end to end.
fn http1_builder(half_close: bool, head_bytes_max: usize) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .preserve_header_case(true)
        .auto_date_header(false)
        .half_close(half_close)
        .max_header_size(head_bytes_max)
        .max_buf_size(limits::HTTP1_BUFFER_BYTES)
        // How long a head may take is judged with how long a connection may be kept: see [`Kept`].
        .header_read_timeout(None);
    builder
}

/// Serves one connection to its end. A connection without an exchange is closed after [`limits::KEPT_WAIT`]. An answer that is cut cuts the
/// connection, so that a client which reads until the end does not take it for whole; so does dropping the future within an exchange. While
/// the worker drains, HTTP/2 says GOAWAY here; HTTP/1 answers say `connection: close` where they are made, and connections that are only
/// kept are closed here in the end. `rules` hold for clients from outside, for as long as the connection lives.
///
/// Returns the status of the answer that hyper has given by itself, if the client's bytes were no HTTP/1 message. It says why in
/// `x-meshwright-reason`.
pub async fn serve<F, A>(
    stream: Rewound<Stream>,
    (version, caller): (Version, Caller),
    (serving, rules): (&Serving, Option<Arc<ClientRules>>),
    drain: &Rc<Drain>,
    answer: F,
) -> Option<StatusCode>
where
    F: Fn(request::Parts, Received) -> A + Unpin,
    A: Future<Output = Result<Response<Body>, CutOff>> + 'static,
{
    match version {
        Version::Http1 => {
            let wakes = Arc::new(Wakes::default());
            let line = Line::of(Arc::clone(&wakes));
            let rules = rules.as_deref();
            let terms = KeptTerms::of(rules, caller == Caller::Anybody);
            let notes = Notes::of(&serving.pressure, caller != Caller::Peer, terms.stall);
            let mut kept = Kept::new(&serving.patience, Arc::clone(&notes), terms);
            let io = TokioIo::new(Served::new(Unstalled::new(stream, notes), Arc::clone(&line), caller != Caller::Peer));
            let builder = match caller {
                Caller::Application => &serving.application,
                Caller::Peer => &serving.peer,
                Caller::Anybody if rules.is_some_and(|rules| rules.http1.lower_case) => &serving.lower_case,
                Caller::Anybody => &serving.anybody,
            };
            let own = Arc::clone(&line);
            let answer = service_fn(move |request: Request<Incoming>| {
                own.begin();
                let (head, body) = request.into_parts();
                let answer = answer(head, Received::request(body, Some(&own)));
                Telling { answer, line: Arc::clone(&own) }
            });
            let mut connection = pin!(builder.serve_connection(io, answer).with_upgrades());
            // Who is let in so late has come with a request, whose answer ends the connection.
            let (mut member, mut told) = (drain.join(), drain.reached(DrainStage::Closing));
            let mut unwanted = None;
            let ended = poll_fn(move |cx| {
                let mut polled = connection.as_mut().poll(cx);
                // A rest that is read and forgotten is no silence.
                let over = polled.is_pending() && kept.poll_over(line.exchange(), cx).is_ready() && !line.has_unread();
                // Who has not asked yet may still: what is closed then was kept, and its client knows how that ends.
                let mut drained = || match line.exchange().1 {
                    0 => member.poll_stage(DrainStage::Closing, cx).is_ready(),
                    _ => member.poll_hushed(cx).is_ready(),
                };
                if polled.is_pending() && !told && (over || line.is_last() || drained()) {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                    polled = connection.as_mut().poll(cx);
                    if over && polled.is_pending() {
                        // Half a head is no exchange, and nothing to wait for.
                        return Poll::Ready(Ok(()));
                    }
                }
                match &polled {
                    Poll::Ready(ended) => kept.finish(ended.as_ref().is_err_and(hyper::Error::is_user)),
                    Poll::Pending if line.has_unread() => unwanted.get_or_insert_with(Unwanted::begin).poll(&line, cx),
                    Poll::Pending => unwanted = None,
                }
                polled
            });
            let error = wakes.drive(ended).await.err()?;
            tracing::debug!(%error, "an HTTP/1 connection ended badly");
            match (error.is_parse_too_large(), error.is_parse()) {
                (true, _) => Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
                (false, true) => Some(StatusCode::BAD_REQUEST),
                (false, false) => None,
            }
        }
        Version::Http2 => {
            // Boxed because it is far larger than HTTP/1's, whose connections are many and pay for moving what they do not use.
            let sender = match caller {
                Caller::Application => Sender::Application,
                Caller::Peer => Sender::Peer,
                Caller::Anybody => Sender::Stranger,
            };
            let means = (&serving.bodies, &serving.patience, &serving.pressure);
            Box::pin(http2::serve(stream, means, (sender, rules.as_deref()), drain, answer)).await;
            None
        }
    }
}

pin_project! {
    /// Tells the connection's line what becomes of the answer.
    struct Telling<A> {
        #[pin]
        answer: A,
        line: Arc<Line>,
    }
}

impl<A: Future<Output = Result<Response<Body>, CutOff>>> Future for Telling<A> {
    type Output = A::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut answered = ready!(this.answer.poll(cx));
        this.line.answered();
        if let Ok(answer) = &mut answered {
            if this.line.holds_back() {
                // Whether the body still comes is the client's choice; the next request could not be told from it.
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            if !matches!(answer.body(), Body::Followed(_)) {
                this.line.ended();
            }
        }
        Poll::Ready(answered)
    }
}

/// The reading of a body that nobody wants any more. Its sender may not look for the answer before it has sent everything, and a connection
/// that is closed with bytes unread is reset, which takes the answer with it (RFC 9112, section 9.6).
struct Unwanted {
    silence: Pin<Box<Sleep>>,
    whole: Pin<Box<Sleep>>,
}

impl Unwanted {
    fn begin() -> Box<Self> {
        Box::new(Self { silence: Box::pin(sleep(limits::UNWANTED_SILENCE)), whole: Box::pin(sleep(limits::UNWANTED_WAIT)) })
    }

    /// Reads what there is, within bounds; beyond them the connection is hyper's to close.
    #[cold]
    fn poll(&mut self, line: &Line, cx: &mut Context<'_>) {
        while let Poll::Ready(more) = line.poll_unread(cx) {
            if !more {
                return;
            }
            self.silence.as_mut().reset(Instant::now() + limits::UNWANTED_SILENCE);
        }
        if self.silence.as_mut().poll(cx).is_ready() || self.whole.as_mut().poll(cx).is_ready() {
            line.give_up_unread();
            cx.waker().wake_by_ref();
        }
    }
}
