//! One request of a connection, and its answer.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use engine::failure::Reason;
use h3::error::{Code, StreamError};
use h3::ext::Protocol;
use h3::server::{RequestResolver, RequestStream};
use http::header::{CONNECTION, CONTENT_LENGTH, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderName, HeaderValue, Method, Response, request};
use http_body::{Body as _, Frame};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::incoming::Arriving;
use super::requests::{Asking, Requests};
use super::transport::{Beside, Outward, Quic};
use crate::ground::body::{Body, Cut, Delivery, Received};
use crate::ground::line::{Interim, Line};
use crate::ground::windows::Share;
use crate::http::http2::{fit_answer, too_large};
use crate::http::reply::CutOff;

type Answering = RequestStream<Outward, Bytes>;

/// Why an answer did not come to its end.
#[derive(Debug, thiserror::Error)]
enum Halt {
    /// The client wants no more of it, or is gone.
    #[error("not wanted")]
    Gone,
    /// It takes nothing of it for too long.
    #[error("the client takes nothing of it for too long")]
    Stalled,
    /// It was cut where it came from.
    #[error("cut: {0}")]
    Body(Cut),
    /// The library does not send it.
    #[error("it cannot be sent: {0}")]
    Unsent(StreamError),
}

impl Halt {
    /// How the client is told. What was cut must not look whole.
    fn code(&self) -> Code {
        match self {
            Self::Gone | Self::Stalled | Self::Body(Cut::Unwanted | Cut::Overdue(Reason::RequestTimeout)) => Code::H3_REQUEST_CANCELLED,
            Self::Body(Cut::Stream(error)) if error.reason() == Some(h2::Reason::CANCEL) => Code::H3_REQUEST_CANCELLED,
            Self::Body(_) | Self::Unsent(_) => Code::H3_INTERNAL_ERROR,
        }
    }
}

/// Reads a request's head in its time, has it answered, and sends the answer; counts while it lasts. Dropping the future resets the stream.
pub(super) async fn exchange<F, A>(resolver: RequestResolver<Quic, Bytes>, mut beside: Beside, asking: Asking, answer: Rc<F>)
where
    F: Fn(request::Parts, Received) -> A,
    A: Future<Output = Result<Response<Body>, CutOff>>,
{
    let requests = asking.requests();
    let (head, mut stream) = match timeout(requests.terms().head, resolver.resolve_request()).await {
        Ok(Ok((request, stream))) => (request.into_parts().0, stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a request over HTTP/3 is none");
            return requests.headless();
        }
        // The stream is reset where it is dropped.
        Err(_) => {
            tracing::debug!("a head over HTTP/3 takes too long");
            return requests.headless();
        }
    };
    if let Some(why) = malformed(&head) {
        tracing::debug!(why, "a request over HTTP/3 is none");
        stream.stop_stream(Code::H3_MESSAGE_ERROR);
        return requests.taken_back();
    }
    let (mut sending, receiving) = stream.split();
    let line = Arc::<Line>::default();
    let delivery = Arriving::of(receiving).map(|incoming| Box::new(incoming) as Box<dyn Delivery>);
    let admitted = admitted(&head, requests, delivery.is_some());
    let received = match Received::delivered(delivery, &head.headers, admitted, Arc::clone(&line)) {
        Ok(received) => received,
        Err(error) => {
            tracing::debug!(%error, "a request over HTTP/3 is none");
            sending.stop_stream(Code::H3_MESSAGE_ERROR);
            return requests.taken_back();
        }
    };
    let answered = answered(answer(head, received), &mut sending, (&line, &mut beside)).await;
    // It was begun, and perhaps sent on: as good as one whose answer is not wanted.
    let torn = beside.torn.get();
    if torn {
        requests.taken_back();
    }
    let sent = match answered {
        Ok(Ok(response)) => {
            asking.answered(&line);
            send(response, &mut sending, (&mut beside, requests.terms().stall)).await
        }
        Ok(Err(CutOff)) => return sending.stop_stream(Code::H3_INTERNAL_ERROR),
        Err(halt) => Err(halt),
    };
    let sent = match sent {
        Ok(()) => landed(&mut beside, requests).await,
        halted => halted,
    };
    if let Err(halt) = sent {
        tracing::debug!(why = %halt, "an answer did not arrive whole");
        if matches!(halt, Halt::Gone) && !torn {
            requests.taken_back();
        }
        sending.stop_stream(halt.code());
    }
}

/// Why it is no message (RFC 9114, sections 4.2 and 4.4), which the library does not look at: fields that are a hop's own in other versions, and what
/// a connection is to become beside another method than CONNECT.
fn malformed(head: &request::Parts) -> Option<&'static str> {
    if head.method != Method::CONNECT && head.extensions.get::<Protocol>().is_some() {
        return Some(":protocol is of CONNECT alone");
    }
    let own = OWN_TO_A_HOP.iter().any(|name| head.headers.contains_key(name));
    let te = head.headers.get_all(TE).iter().any(|te| !te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    (own || te).then_some("it has fields that are of a connection")
}

const OWN_TO_A_HOP: [HeaderName; 5] =
    [CONNECTION, TRANSFER_ENCODING, UPGRADE, HeaderName::from_static("keep-alive"), HeaderName::from_static("proxy-connection")];

/// Waits until the client has all of its answer: who ended the connection now would take from it what has not arrived. What is kept for one that
/// takes nothing for too long is let go.
async fn landed(beside: &mut Beside, requests: &Requests) -> Result<(), Halt> {
    let Some(wait) = requests.terms().stall else {
        beside.stopped.as_mut().await;
        return Ok(());
    };
    loop {
        let sent = requests.frames_sent();
        if timeout(wait, beside.stopped.as_mut()).await.is_ok() {
            return Ok(());
        }
        if requests.frames_sent() == sent {
            return Err(Halt::Stalled);
        }
    }
}

fn admitted(head: &request::Parts, requests: &Requests, has_body: bool) -> Result<Option<Share>, Reason> {
    if too_large(&head.headers, Some(&head.uri), false) {
        return Err(Reason::TooLarge);
    }
    match has_body {
        false => Ok(None),
        true if requests.windows().full() => Err(Reason::Overflow),
        true => {
            let share = requests.windows().enter();
            requests.allow();
            Ok(Some(share))
        }
    }
}

/// Waits for the answer, and passes on what comes before it. Who resets the stream is not waited for: the answer is dropped.
async fn answered<A: Future>(answer: A, sending: &mut Answering, (line, beside): (&Line, &mut Beside)) -> Result<A::Output, Halt> {
    enum Next<T> {
        Answer(T),
        Interim(Interim),
        Gone,
    }
    let mut answer = pin!(answer);
    loop {
        let next = poll_fn(|cx| {
            if let Poll::Ready(answered) = answer.as_mut().poll(cx) {
                return Poll::Ready(Next::Answer(answered));
            }
            if let Poll::Ready(interim) = line.poll_interim(cx) {
                return Poll::Ready(Next::Interim(interim));
            }
            beside.stopped.as_mut().poll(cx).map(|()| Next::Gone)
        });
        match next.await {
            Next::Interim(interim) => pass(interim, sending).await?,
            Next::Gone => return Err(Halt::Gone),
            Next::Answer(answered) => {
                while let Poll::Ready(interim) = line.poll_interim(&mut Context::from_waker(Waker::noop())) {
                    pass(interim, sending).await?;
                }
                line.answered();
                return Ok(answered);
            }
        }
    }
}

async fn pass(Interim { status, headers }: Interim, sending: &mut Answering) -> Result<(), Halt> {
    let mut head = Response::new(());
    (*head.status_mut(), *head.headers_mut()) = (status, headers);
    sending.send_response(head).await.map_err(unsent)
}

fn unsent(error: StreamError) -> Halt {
    match error {
        StreamError::RemoteTerminate { .. } | StreamError::ConnectionError { .. } => Halt::Gone,
        other => Halt::Unsent(other),
    }
}

async fn send(response: Response<Body>, sending: &mut Answering, (beside, stall): (&mut Beside, Option<Duration>)) -> Result<(), Halt> {
    let (mut head, mut body) = response.into_parts();
    fit_answer(&mut head.headers);
    if let Body::Bytes(bytes) = &body {
        head.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(bytes.len()));
    }
    let mut stall = Stall::of(stall, &beside.passed);
    write(sending.send_response(Response::from_parts(head, ())), &mut body, &mut stall).await?;
    while !body.is_end_stream() {
        let Some(frame) = next(&mut body, &mut beside.stopped).await? else { break };
        match frame.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) => write(sending.send_data(data), &mut body, &mut stall).await?,
            Err(frame) => {
                if let Ok(mut trailers) = frame.into_trailers() {
                    fit_answer(&mut trailers);
                    write(sending.send_trailers(trailers), &mut body, &mut stall).await?;
                }
                break;
            }
        }
    }
    write(sending.finish(), &mut body, &mut stall).await
}

/// The next frame of a body, unless its client wants no more.
async fn next(body: &mut Body, stopped: &mut Pin<Box<dyn Future<Output = ()>>>) -> Result<Option<Frame<Bytes>>, Halt> {
    poll_fn(|cx| match Pin::new(&mut *body).poll_frame(cx) {
        Poll::Ready(frame) => Poll::Ready(frame.transpose().map_err(Halt::Body)),
        Poll::Pending => stopped.as_mut().poll(cx).map(|()| Err(Halt::Gone)),
    })
    .await
}

/// How long a client may take nothing.
struct Stall<'p> {
    wait: Option<Duration>,
    passed: &'p Cell<u64>,
    at: u64,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<'p> Stall<'p> {
    const fn of(wait: Option<Duration>, passed: &'p Cell<u64>) -> Self {
        Self { wait, passed, at: 0, timer: None }
    }

    /// Ready when nothing has gone for too long; asked while something waits to go.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(wait) = self.wait else { return Poll::Pending };
        let passed = self.passed.get();
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(wait)));
        if self.at != passed {
            self.at = passed;
            timer.as_mut().reset(Instant::now() + wait);
        }
        timer.as_mut().poll(cx)
    }
}

/// Writes something that may have to wait for room, unless that takes too long or the body comes to a bound meanwhile.
async fn write(sending: impl Future<Output = Result<(), StreamError>>, body: &mut Body, stall: &mut Stall<'_>) -> Result<(), Halt> {
    let mut sending = pin!(sending);
    let written = poll_fn(|cx| {
        if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
            return Poll::Ready(sent.map_err(unsent));
        }
        if let Poll::Ready(cut) = body.poll_overdue(cx) {
            return Poll::Ready(Err(Halt::Body(cut)));
        }
        stall.poll(cx).map(|()| Err(Halt::Stalled))
    });
    let written = written.await;
    stall.timer = None;
    written
}
