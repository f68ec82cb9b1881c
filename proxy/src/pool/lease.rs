//! The use of one upstream connection by one request.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use engine::failure::{Failure, Reason, Retry};
use engine::model::InFlight;
use http::{Method, Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use super::http1::Http1;
use super::multiplexed::Use;
use super::sent::{Outgoing, Resend, not_reached, reason, told, unreached};
use super::slot::{Idle, Slot};
use super::stream;
use crate::ground::body::{Body, Received};
use crate::ground::limits::REPLAY_HTTP1_BYTES_MAX;
use crate::ground::line::Line;
use crate::ground::patience::Patience;
use crate::http::pack;
use crate::tls::{Peer, TlsFacts};

/// One request's connection. Given back by [`Lease::give_back`] when the exchange is complete; dropped before, an HTTP/1 connection is
/// closed and an HTTP/2 stream reset.
pub struct Lease {
    sender: Sender,
    slot: Rc<Slot>,
    patience: Rc<Patience>,
    kept: bool,
    _in_flight: InFlight,
}

enum Sender {
    Http1(Box<Http1>),
    Http2(Use),
    GivenBack,
}

impl Lease {
    pub(super) fn kept(slot: Rc<Slot>, idle: Idle, in_flight: InFlight, patience: Rc<Patience>) -> Self {
        idle.connection.rest.end();
        let mut lease = Self::opened(slot, idle.connection, in_flight, patience);
        lease.kept = true;
        lease
    }

    /// The connection knows the slot's age from before it was opened.
    pub(super) fn opened(slot: Rc<Slot>, connection: Box<Http1>, in_flight: InFlight, patience: Rc<Patience>) -> Self {
        Self { sender: Sender::Http1(connection), slot, patience, kept: false, _in_flight: in_flight }
    }

    /// `kept`: the connection was not opened for this request.
    pub(super) fn stream(slot: Rc<Slot>, (used, kept): (Use, bool), in_flight: InFlight, patience: Rc<Patience>) -> Self {
        Self { sender: Sender::Http2(used), slot, patience, kept, _in_flight: in_flight }
    }

    /// How the connection is encrypted, where a peer of the mesh has proved itself; `None`: it has not, or given back.
    pub fn tls(&self) -> Option<&TlsFacts> {
        match &self.sender {
            Sender::Http1(connection) => connection.tls.as_ref(),
            Sender::Http2(used) => used.connection().tls(),
            Sender::GivenBack => None,
        }
    }

    /// Whether a proxy of the mesh answers; not where the application's own TLS is inside that of the mesh.
    pub fn is_hop(&self) -> bool {
        self.tls().is_some_and(TlsFacts::is_hop)
    }

    /// Who answers on a connection that carries one exchange at a time, where that was proved.
    pub(crate) const fn peer(&self) -> Option<&Arc<Peer>> {
        match &self.sender {
            Sender::Http1(connection) => connection.peer.as_ref(),
            Sender::Http2(..) | Sender::GivenBack => None,
        }
    }

    /// The connection's line, where it carries one exchange at a time.
    pub(crate) const fn line(&self) -> Option<&Arc<Line>> {
        match &self.sender {
            Sender::Http1(connection) => Some(&connection.line),
            Sender::Http2(..) | Sender::GivenBack => None,
        }
    }

    /// Whether a failure is one of the connection rather than of its server, so that a new one may do: it was not opened for this request
    /// and has ended, or nothing of the request was written.
    pub const fn was_kept(&self) -> bool {
        self.kept
    }

    /// Takes a request out of its place, sends it and waits for the head of the final answer; interim ones go to `downstream`. `again` says when it
    /// may be sent once more although it was written. Dropping the future gives up the exchange.
    ///
    /// # Errors
    /// What may be sent again is in its place then: it was never written, has not reached the application, or was not answered, as the failure says.
    pub async fn send(
        &mut self,
        place: &mut Option<Outgoing>,
        downstream: Option<&Arc<Line>>,
        again: Resend,
    ) -> Result<Response<Received>, Failure> {
        let connection = match &mut self.sender {
            Sender::Http1(connection) => connection,
            // Boxed because HTTP/1, whose connections are many, keeps room for what it does not use.
            Sender::Http2(used) => {
                let sent = Box::pin(stream::exchange(used, place, downstream, again)).await;
                match &sent {
                    Ok(_) => {}
                    Err(Failure { retry: Retry::NeverWritten, reason, .. }) => {
                        // What is refused unprocessed is not kept unread.
                        used.complete();
                        self.kept = *reason == Reason::UpstreamReset;
                    }
                    Err(_) => self.kept &= !used.is_outlived(),
                }
                return sent;
            }
            Sender::GivenBack => return Err(Failure::new(Reason::UpstreamReset, "the connection was given back")),
        };
        if place.is_none() {
            return Err(Failure::new(Reason::UpstreamReset, "there is no request"));
        }
        match begin(connection, place, downstream, again).await {
            Ok(response) => {
                if connection.is_hop()
                    && again != Resend::Never
                    && let Some(reason) = unreached(&response, Incoming::is_end_stream)
                    && let Some(whole) = connection.line.written_whole().and_then(written)
                {
                    *place = Some(whole);
                    // It is no fault of the connection's.
                    self.kept = false;
                    return Err(not_reached(reason));
                }
                Ok(response.map(|body| Received::answer(body, Some(&connection.line))))
            }
            Err(error) => Err(not_answered(error, connection, again, place)),
        }
    }

    /// The exchange is complete: the connection may serve another.
    pub fn give_back(&mut self) {
        if let Sender::Http2(used) = &mut self.sender {
            used.complete();
        }
        if matches!(self.sender, Sender::Http1(_))
            && let Sender::Http1(connection) = std::mem::replace(&mut self.sender, Sender::GivenBack)
        {
            connection.line.rest();
            // What is kept from here on has to be swept in time.
            self.patience.stir();
            self.slot.keep(connection, self.patience.tick());
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A stream that ends makes room on its connection.
        if matches!(self.sender, Sender::Http2(_)) {
            self.slot.free();
        }
    }
}

/// Hands a request to its connection; the answer is to be waited for. Apart from the waiting, and no `?` before it: what is held there is
/// held while it waits.
fn begin(
    connection: &mut Http1,
    place: &mut Option<Outgoing>,
    downstream: Option<&Arc<Line>>,
    again: Resend,
) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Body>>>> + use<> {
    let mut request = match place.take() {
        Some(Outgoing::Fresh(request)) => request,
        Some(Outgoing::Written(method, head)) => {
            connection.line.stand_in(head);
            let mut request = Request::new(Body::Empty);
            *request.method_mut() = method;
            request
        }
        None => Request::default(),
    };
    // What was packed for a mesh peer is not for everybody.
    let packed = connection.is_hop() && pack(request.headers_mut());
    let keeps = match again {
        Resend::Never => false,
        Resend::Unreached => connection.is_hop() && request.body().size_hint().exact().is_some_and(|bytes| bytes <= REPLAY_HTTP1_BYTES_MAX),
        Resend::Unanswered => true,
    };
    connection.line.ask(downstream, keeps && !packed);
    request.body_mut().goes_over(&connection.line);
    connection.sender.try_send_request(request)
}

#[cold]
fn not_answered(mut error: TrySendError<Request<Body>>, connection: &Http1, again: Resend, place: &mut Option<Outgoing>) -> Failure {
    if let Some(request) = error.take_message() {
        // hyper hands back what it was given, which may only stand for a head.
        *place = Some(match connection.line.take_stand_in() {
            Some(head) => Outgoing::Written(request.method().clone(), head),
            None => Outgoing::Fresh(request),
        });
        let cause = format!("the connection was closed before the request was written: {}", error.into_error());
        return Failure::never_written(Reason::UpstreamReset, cause);
    }
    let error = error.into_error();
    let mut failure = Failure::upstream(reason(&error), told(&error));
    if again == Resend::Unanswered
        && failure.reason == Reason::UpstreamReset
        && let Some(head) = connection.line.written().and_then(written)
    {
        *place = Some(head);
        failure.retry = Retry::Unanswered;
    }
    failure
}

/// A request that was written, to be written once more.
fn written(bytes: Bytes) -> Option<Outgoing> {
    let method = bytes.split(|byte| *byte == b' ').next().map(Method::from_bytes)?.ok()?;
    Some(Outgoing::Written(method, bytes))
}
