//! One request on a stream of HTTP/2.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use engine::failure::{Failure, Reason, Retry};
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use http::{Request, Response, StatusCode, request};
use http_body::Body as _;

use super::multiplexed::Use;
use super::sent::{Outgoing, Resend, not_reached, told, unreached};
use crate::ground::body::{Body, Cut, Received};
use crate::ground::line::{Interim, Line};
use crate::http::http2::{Pump, Stopped, fit_request, too_large};

/// Sends a request and waits for the head of the answer; interim ones go to `downstream`. What is left of its body then goes on by itself. Dropping the future gives up the
/// exchange.
///
/// # Errors
/// What may be sent again is in its place then.
pub(super) async fn exchange(
    used: &mut Use,
    place: &mut Option<Outgoing>,
    downstream: Option<&Arc<Line>>,
    again: Resend,
) -> Result<Response<Received>, Failure> {
    let Some(Outgoing::Fresh(request)) = place.take() else {
        return Err(Failure::new(Reason::UpstreamReset, "a head of HTTP/1 is not sent over HTTP/2"));
    };
    let (mut head, body) = request.into_parts();
    fit_request(&mut head.headers);
    let begun = begin(used, &head, body.is_end_stream());
    let (answer, stream) = match begun {
        Some(Ok(begun)) => begun,
        Some(Err(error)) => return Err(never_written(place, (head, body), &told(&error))),
        None => return Err(never_written(place, (head, body), "it is not used any more")),
    };
    let share = used.connection().windows().enter();
    let mut sending = Sending::new(answer, body, stream);
    match poll_fn(|cx| sending.poll(cx, used, downstream)).await {
        Ok(response) => {
            if used.connection().is_hop()
                && again != Resend::Never
                && sending.is_at_hand()
                && let Some(reason) = unreached(&response, RecvStream::is_end_stream)
            {
                let body = sending.pump.and_then(Pump::again).unwrap_or_default();
                *place = Some(Outgoing::Fresh(Request::from_parts(head, body)));
                return Err(not_reached(reason));
            }
            sending.go_on(used);
            let (head, stream) = response.into_parts();
            if too_large(&head.headers, None, used.connection().is_hop()) {
                return Err(Failure::upstream(Reason::TooLarge, "the answer's head is larger than a head may be"));
            }
            let received = Received::http2(stream, &head.headers, Ok(Some(share)), None);
            Ok(Response::from_parts(head, received))
        }
        Err(Broken::Body(cut)) => {
            let reason = if cut.breaks_rules() { Reason::BadRequest } else { Reason::ClientGone };
            Err(Failure::new(reason, format!("the request's body was cut: {cut}")))
        }
        Err(Broken::Stream(error)) => {
            used.broken(&error);
            Err(sending.failed(place, head, &error, again))
        }
    }
}

/// Opens a stream; `None`: the connection takes none any more. Where it fails nothing was written.
fn begin(used: &Use, head: &request::Parts, end: bool) -> Option<Result<(ResponseFuture, SendStream<Bytes>), h2::Error>> {
    let mut sender = used.connection().sender().borrow_mut();
    let sender = sender.as_mut()?;
    let begun = sender.send_request(copy(head), end);
    if begun.is_err() && sender.poll_ready(&mut Context::from_waker(Waker::noop())).is_pending() {
        // The last one still waits to be opened, which only this sender of it minds.
        *sender = sender.clone();
        return Some(sender.send_request(copy(head), end));
    }
    Some(begun)
}

/// The same head for another time; extensions are this proxy's own and stay behind.
fn copy(head: &request::Parts) -> Request<()> {
    let mut copy = Request::new(());
    *copy.method_mut() = head.method.clone();
    *copy.uri_mut() = head.uri.clone();
    *copy.version_mut() = head.version;
    *copy.headers_mut() = head.headers.clone();
    copy
}

/// A request that is on its way.
struct Sending {
    answer: ResponseFuture,
    pump: Option<Pump>,
    /// The body is not sent any further.
    sent: bool,
    /// An interim answer came.
    heard: bool,
}

enum Broken {
    Body(Cut),
    Stream(h2::Error),
}

impl Sending {
    fn new(answer: ResponseFuture, body: Body, stream: SendStream<Bytes>) -> Self {
        if body.is_end_stream() {
            return Self { answer, pump: None, sent: true, heard: false };
        }
        Self { answer, pump: Some(Pump::of_request(body, stream)), sent: false, heard: false }
    }

    fn poll(&mut self, cx: &mut Context<'_>, used: &mut Use, downstream: Option<&Arc<Line>>) -> Poll<Result<Response<RecvStream>, Broken>> {
        if !self.sent
            && let Some(pump) = &mut self.pump
            && let Poll::Ready(ended) = pump.poll(cx)
        {
            self.sent = true;
            match ended {
                Ok(()) => used.settle(pump.sent_bytes()),
                Err(Stopped::Body(cut)) => return Poll::Ready(Err(Broken::Body(cut))),
                // The answer says why, if there is one (RFC 9113, section 8.1).
                Err(Stopped::Peer(_)) => {}
            }
        }
        while let Some(interim) = ready!(self.answer.poll_informational(cx)) {
            let (head, ()) = interim.map_err(Broken::Stream)?.into_parts();
            self.heard = true;
            if let Some(downstream) = downstream.filter(|_| head.status != StatusCode::SWITCHING_PROTOCOLS) {
                downstream.pass(Interim { status: head.status, headers: head.headers });
            }
        }
        Pin::new(&mut self.answer).poll(cx).map_err(Broken::Stream)
    }

    /// Whether its body is at hand once more, or there is none.
    fn is_at_hand(&self) -> bool {
        self.pump.as_ref().is_none_or(Pump::is_at_hand)
    }

    /// The answer has begun: what is left of the body is sent beside it.
    fn go_on(mut self, used: &mut Use) {
        if let Some(mut pump) = self.pump.take().filter(|_| !self.sent) {
            pump.forget();
            let mut used = used.split();
            tokio::task::spawn_local(async move {
                if pump.run().await {
                    used.complete();
                }
                drop(used);
            });
        }
    }

    /// What became of a request whose stream broke off before its answer.
    #[cold]
    fn failed(self, place: &mut Option<Outgoing>, head: request::Parts, error: &h2::Error, again: Resend) -> Failure {
        let heard = self.heard;
        if unprocessed(error) {
            let body = self.pump.map_or(Some(Body::Empty), Pump::again);
            if let Some(body) = body {
                return never_written(place, (head, body), &told(error));
            }
        }
        let mut failure = Failure::upstream(reason(error), told(error));
        if again == Resend::Unanswered && !heard && failure.reason == Reason::UpstreamReset {
            *place = Some(Outgoing::Fresh(Request::from_parts(head, Body::Empty)));
            failure.retry = Retry::Unanswered;
        }
        failure
    }
}

/// Whether the peer says that it has done nothing with the stream: it refused it, or it goes away and has not come to it (RFC 9113, sections
/// 8.7 and 6.8; the library ends by GOAWAY the streams beyond the last one that it names, and no others).
fn unprocessed(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)))
}

#[cold]
fn never_written(place: &mut Option<Outgoing>, (head, body): (request::Parts, Body), why: &str) -> Failure {
    *place = Some(Outgoing::Fresh(Request::from_parts(head, body)));
    Failure::never_written(Reason::UpstreamReset, format!("the connection took no request: {why}"))
}

/// Whose fault a stream's end was.
pub(crate) fn reason(error: &h2::Error) -> Reason {
    // Broken rules found by us are `PROTOCOL_ERROR` and its like, sent by the library.
    if error.is_library() && !error.is_io() { Reason::UpstreamProtocol } else { Reason::UpstreamReset }
}
