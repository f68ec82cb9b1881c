//! Serving HTTP/3 on a connection.

use std::cell::Cell;
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;

use bytes::Bytes;
use h3::error::{Code, ConnectionError};
use h3::quic::SendStream as _;
use h3::server::{Connection, RequestResolver, builder};
use http::{Response, request};
use quinn::VarInt;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::exchange::exchange;
use super::requests::{Asking, QuicTerms, Requests};
use super::transport::{Beside, Quic};
use crate::ground::body::{Body, Received};
use crate::ground::drain::{Drain, DrainStage};
use crate::ground::limits::{HEAD_BYTES_READ_MAX, QUIC_GOAWAY_WAIT, QUIC_LAST_WAIT};
use crate::ground::patience::Patience;
use crate::ground::windows::Bodies;
use crate::http::reply::CutOff;

/// Serves HTTP/3 to its end, which is in order: nothing is cut that is under way. Says GOAWAY when the worker drains or `closing` is called, when it
/// has been idle for long, when an exchange is to be its last, and when its client has moved from `peer` to another address. Dropping the future cuts the connection; what is being answered on it ends by
/// itself. Whether the client took back more requests than it may.
pub(crate) async fn serve<F, A>(
    (connection, peer): (quinn::Connection, IpAddr),
    (bodies, patience, terms): (&Rc<Bodies>, &Rc<Patience>, QuicTerms),
    (drain, closing): (&Rc<Drain>, CancellationToken),
    answer: F,
) -> bool
where
    F: Fn(request::Parts, Received) -> A + 'static,
    A: Future<Output = Result<Response<Body>, CutOff>> + 'static,
{
    let quic = connection.clone();
    let (carrier, latest) = Quic::new(connection);
    let requests = Rc::new(Requests::new(quic.clone(), terms, (bodies.connection(), Rc::clone(patience))));
    let mut builder = builder();
    builder.max_field_section_size(HEAD_BYTES_READ_MAX.into()).send_grease(false);
    // A client may let us open no stream.
    let connection = match timeout(terms.head, builder.build(carrier)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a connection of HTTP/3 did not begin");
            return false;
        }
        Err(_) => return false,
    };
    let conversation = Conversation {
        quic,
        peer: peer.to_canonical(),
        connection,
        latest,
        requests: Rc::clone(&requests),
        answer: Rc::new(answer),
        begun: false,
        told: None,
    };
    if let Err(error) = conversation.run(drain, closing).await
        && !error.is_h3_no_error()
    {
        tracing::debug!(%error, "a connection of HTTP/3 ended badly");
    }
    requests.is_flooded()
}

/// How far the client was told that its connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// That it should begin no more; what it has begun meanwhile is served, until then.
    First(Instant),
    /// Which request was its last. That has time to arrive, until then: what a connection has to say is not said once it is closed.
    Last(Instant),
}

struct Conversation<F> {
    quic: quinn::Connection,
    /// Where its client was when it came.
    peer: IpAddr,
    connection: Connection<Quic, Bytes>,
    latest: Rc<Cell<Option<Beside>>>,
    requests: Rc<Requests>,
    answer: Rc<F>,
    /// A request has come.
    begun: bool,
    told: Option<Told>,
}

impl<F, A> Conversation<F>
where
    F: Fn(request::Parts, Received) -> A + 'static,
    A: Future<Output = Result<Response<Body>, CutOff>> + 'static,
{
    async fn run(mut self, drain: &Rc<Drain>, closing: CancellationToken) -> Result<(), ConnectionError> {
        let mut member = drain.join();
        loop {
            if self.requests.is_flooded() {
                let code = VarInt::from_u64(Code::H3_EXCESSIVE_LOAD.value()).unwrap_or(VarInt::MAX);
                self.quic.close(code, b"too many requests were taken back");
                return Ok(());
            }
            let resting = self.requests.resting();
            let due = match self.told {
                None => resting.map(|since| since + self.requests.terms().idle),
                Some(Told::First(until)) => Some(until),
                Some(Told::Last(until)) if resting.is_some() && Instant::now() >= until => return Ok(()),
                Some(Told::Last(until)) => resting.map(|_| until),
            };
            tokio::select! {
                biased;
                accepted = self.connection.accept() => match accepted? {
                    Some(resolver) => {
                        let Some(beside) = self.latest.take() else { continue };
                        if self.is_over().await? {
                            refuse(resolver);
                            continue;
                        }
                        self.begun = true;
                        tokio::task::spawn_local(exchange(resolver, beside, Asking::begin(&self.requests), Rc::clone(&self.answer)));
                    }
                    // The client has said goodbye, and has all its answers.
                    None => return Ok(()),
                },
                () = self.requests.changed() => {
                    if self.requests.is_last() && self.told.is_none() {
                        self.tell().await?;
                    }
                }
                () = member.stage(DrainStage::Told), if self.told.is_none() => self.tell().await?,
                () = closing.cancelled(), if self.told.is_none() => self.tell().await?,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if !matches!(self.told, Some(Told::Last(_))) {
                        self.tell().await?;
                    }
                }
            }
        }
    }

    /// Whether the request that has just come is not served any more. One whose client has moved to another address (RFC 9000, section 9) is none: who
    /// may come from where, and how many, was asked of the address that it came from. It comes again, by a connection of its own.
    async fn is_over(&mut self) -> Result<bool, ConnectionError> {
        if matches!(self.told, Some(Told::Last(_))) {
            return Ok(true);
        }
        let moved = self.quic.remote_address().ip().to_canonical() != self.peer;
        if moved {
            self.told = Some(Told::Last(Instant::now() + QUIC_LAST_WAIT));
            // This one is the first that is not served.
            self.connection.shutdown(0).await?;
        }
        Ok(moved)
    }

    /// Tells the client that no more is served, in two words: requests that are on their way meanwhile are not refused (RFC 9114, section 5.2). Before
    /// the first request there is one word: the library could name none but the first stream, and might serve it all the same.
    async fn tell(&mut self) -> Result<(), ConnectionError> {
        match self.told {
            None => {
                self.told = Some(Told::First(Instant::now() + QUIC_GOAWAY_WAIT));
                match self.begun {
                    true => self.connection.shutdown(self.requests.terms().streams as usize).await,
                    false => Ok(()),
                }
            }
            Some(_) => {
                self.told = Some(Told::Last(Instant::now() + QUIC_LAST_WAIT));
                // It names the first that is not served.
                self.connection.shutdown(1).await
            }
        }
    }
}

/// Nothing was done about a request (RFC 9114, section 4.1.1): its client may send it again.
fn refuse(mut resolver: RequestResolver<Quic, Bytes>) {
    resolver.frame_stream.reset(Code::H3_REQUEST_REJECTED.value());
}
