//! Serving HTTP on a connection.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::body::{Body, Received};
use crate::drain::{Drain, Stage};
use crate::io::{Rewound, Stream, Unasked, Unstalled, gather};
use crate::limits;
use crate::wakes::Wakes;

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalTasks;

impl<F: Future<Output = ()> + 'static> Executor<F> for LocalTasks {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// How connections are served: built once per worker.
#[derive(Debug)]
pub struct Serving {
    http1: http1::Builder,
    http1_guarded: http1::Builder,
    http2: http2::Builder<LocalTasks>,
}

impl Default for Serving {
    fn default() -> Self {
        Self { http1: http1_builder(None), http1_guarded: http1_builder(Some(limits::HEAD_WAIT)), http2: http2_builder() }
    }
}

fn http1_builder(head_wait: Option<Duration>) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .preserve_header_case(true)
        .auto_date_header(false)
        // A client that closes its side has gone, as nginx and Envoy see it too: so what it no longer waits for is given up end to end.
        .half_close(false)
        .max_header_size(limits::HEAD_BYTES_MAX)
        .header_read_timeout(head_wait)
        .timer(TokioTimer::new());
    builder
}

fn http2_builder() -> http2::Builder<LocalTasks> {
    let mut builder = http2::Builder::new(LocalTasks);
    builder
        .auto_date_header(false)
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION_MAX)
        .max_send_buf_size(limits::STREAM_SEND_BYTES_MAX)
        .max_header_list_size(u32::try_from(limits::HEAD_BYTES_MAX).unwrap_or(u32::MAX));
    builder
}

/// Serves one connection to its end. `guarded` bounds how long a head may take; the application beside us and mesh peers are trusted
/// with their time. While the worker drains, HTTP/2 says GOAWAY here; HTTP/1 answers say `connection: close` where they are made, and
/// connections that are only kept are closed here in the end.
///
/// Returns the status of the answer that hyper has given by itself, if the client's bytes were no HTTP/1 message. Instead of a first
/// request it says why in `x-meshwright-reason`; a later one's refusal cannot be told from answers without a price on every write.
pub async fn serve<F, A>(
    stream: Rewound<Stream>,
    version: Version,
    guarded: bool,
    serving: &Serving,
    drain: &Rc<Drain>,
    answer: F,
) -> Option<StatusCode>
where
    F: Fn(Request<Received>) -> A + Unpin,
    A: Future<Output = Result<Response<Body>, Infallible>> + 'static,
{
    match version {
        Version::Http1 => {
            let asked = Arc::new(AtomicBool::new(false));
            let (seen, stream) = stream.into_parts();
            let stream = Rewound::new(seen, Stream::Unasked(Box::new(Unasked::new(stream, Arc::clone(&asked)))));
            let io = TokioIo::new(Unstalled::new(stream));
            let builder = if guarded { &serving.http1_guarded } else { &serving.http1 };
            let wakes = Arc::new(Wakes::default());
            let sender = Arc::clone(&wakes);
            let answer = service_fn(move |request: Request<Incoming>| {
                asked.store(true, Ordering::Relaxed);
                answer(request.map(|body| Received::new(body, Some(&sender))))
            });
            let mut connection = pin!(builder.serve_connection(io, answer).with_upgrades());
            // Who is let in so late has come with a request, whose answer ends the connection.
            let (mut member, mut told) = (drain.join(), drain.reached(Stage::Closing));
            let ended = poll_fn(move |cx| {
                let polled = connection.as_mut().poll(cx);
                if polled.is_pending() && !told && member.poll_stage(Stage::Closing, cx).is_ready() {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                    return connection.as_mut().poll(cx);
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
            Box::pin(serve_http2(Unstalled::new(stream), serving, drain, answer)).await;
            None
        }
    }
}

/// Serves HTTP/2 to its end; every turn of the connection ends with what it wrote on its way.
async fn serve_http2<F, A>(stream: Unstalled<Rewound<Stream>>, serving: &Serving, drain: &Rc<Drain>, answer: F)
where
    F: Fn(Request<Received>) -> A,
    A: Future<Output = Result<Response<Body>, Infallible>> + 'static,
{
    let (stream, gathering) = gather(stream);
    let answer = move |request: Request<Incoming>| answer(request.map(|body| Received::new(body, None)));
    let mut connection = pin!(serving.http2.serve_connection(TokioIo::new(stream), service_fn(answer)));
    let (mut member, mut told) = (drain.join(), false);
    let ended = poll_fn(|cx| {
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        if !told && member.poll_stage(Stage::Told, cx).is_ready() {
            told = true;
            connection.as_mut().graceful_shutdown();
            return connection.as_mut().poll(cx);
        }
        Poll::Pending
    });
    let logged = async {
        if let Err(error) = ended.await {
            tracing::debug!(%error, "an HTTP/2 connection ended badly");
        }
    };
    gathering.drive(logged, || false).await;
}
