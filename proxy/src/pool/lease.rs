//! The use of one upstream connection by one request.

use std::rc::Rc;
use std::sync::Arc;

use engine::failure::{Failure, Reason};
use engine::model::InFlight;
use http::Request;
use hyper::client::conn::TrySendError;

use super::http1::Http1;
use super::multiplexed::Use;
use super::sent::{Sent, reason, told};
use super::slot::{Idle, Slot};
use super::stream;
use crate::ground::body::{Body, Received};
use crate::ground::line::Line;
use crate::ground::patience::Patience;
use crate::http::pack;
use crate::tls::TlsFacts;

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
        let mut lease = Self::opened(slot, idle.connection, in_flight, patience);
        lease.kept = true;
        lease
    }

    /// The connection knows the slot's age from before it was opened.
    pub(super) fn opened(slot: Rc<Slot>, connection: Box<Http1>, in_flight: InFlight, patience: Rc<Patience>) -> Self {
        Self { sender: Sender::Http1(connection), slot, patience, kept: false, _in_flight: in_flight }
    }

    pub(super) fn stream(slot: Rc<Slot>, used: Use, in_flight: InFlight, patience: Rc<Patience>) -> Self {
        Self { sender: Sender::Http2(used), slot, patience, kept: true, _in_flight: in_flight }
    }

    /// How the connection is encrypted; `None`: plaintext, or given back.
    pub fn tls(&self) -> Option<&TlsFacts> {
        match &self.sender {
            Sender::Http1(connection) => connection.tls.as_ref(),
            Sender::Http2(used) => used.connection().tls(),
            Sender::GivenBack => None,
        }
    }

    /// The connection's line, where it carries one exchange at a time.
    pub(crate) const fn line(&self) -> Option<&Arc<Line>> {
        match &self.sender {
            Sender::Http1(connection) => Some(&connection.line),
            Sender::Http2(..) | Sender::GivenBack => None,
        }
    }

    /// Whether the connection was not opened for this request.
    pub const fn was_kept(&self) -> bool {
        self.kept
    }

    /// Takes a request out of its place, sends it and waits for the head of the final answer; interim ones go to `downstream`. Dropping the
    /// future gives up the exchange.
    pub async fn send(&mut self, request: &mut Option<Request<Body>>, downstream: Option<&Arc<Line>>) -> Sent {
        self.prepare(request, downstream);
        let Some(request) = request.take() else { return Sent::Failed(Failure::new(Reason::UpstreamReset, "there is no request")) };
        let connection = match &mut self.sender {
            Sender::Http1(connection) => connection,
            // Boxed because HTTP/1, whose connections are many, keeps room for what it does not use.
            Sender::Http2(used) => {
                let sent = Box::pin(stream::exchange(used, request, downstream)).await;
                if matches!(sent, Sent::NeverWritten(..)) {
                    // What is refused unprocessed is not kept unread.
                    used.complete();
                }
                return sent;
            }
            Sender::GivenBack => return Sent::Failed(Failure::new(Reason::UpstreamReset, "the connection was given back")),
        };
        match connection.sender.try_send_request(request).await {
            Ok(response) => Sent::Answered(response.map(|body| Received::answer(body, Some(&connection.line)))),
            Err(error) => not_answered(error),
        }
    }

    /// What a request needs on an HTTP/1 connection.
    fn prepare(&self, request: &mut Option<Request<Body>>, downstream: Option<&Arc<Line>>) {
        let (Sender::Http1(connection), Some(request)) = (&self.sender, request) else { return };
        if connection.tls.is_some() {
            pack(request.headers_mut());
        }
        connection.line.ask(downstream);
        request.body_mut().goes_over(&connection.line);
    }

    /// The exchange is complete: the connection may serve another.
    pub fn give_back(&mut self) {
        if let Sender::Http2(used) = &mut self.sender {
            used.complete();
        }
        if matches!(self.sender, Sender::Http1(_))
            && let Sender::Http1(connection) = std::mem::replace(&mut self.sender, Sender::GivenBack)
        {
            // What is kept from here on has to be swept in time.
            self.patience.stir();
            self.slot.keep(connection, self.patience.tick());
        }
    }
}

#[cold]
fn not_answered(mut error: TrySendError<Request<Body>>) -> Sent {
    if let Some(request) = error.take_message() {
        let cause = format!("the connection was closed before the request was written: {}", error.into_error());
        return Sent::NeverWritten(Box::new(request), Failure::never_written(Reason::UpstreamReset, cause));
    }
    let error = error.into_error();
    Sent::Failed(Failure::upstream(reason(&error), told(&error)))
}
