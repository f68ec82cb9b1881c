//! Serving HTTP/3 on a connection.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use engine::model::ClientRules;
use h3::error::ConnectionError;
use h3::server::{Connection, builder};
use http::{Response, request};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::exchange::exchange;
use super::transport::{Ends, Transport};
use crate::ground::body::{Body, Received};
use crate::ground::drain::{Drain, DrainStage};
use crate::ground::limits::{HEAD_BYTES_READ_MAX, QUIC_GOAWAY_WAIT};
use crate::ground::line::Line;
use crate::ground::windows::{Bodies, Windows};
use crate::http::reply::CutOff;

/// What a client may do, for as long as its connection lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// How long it is kept without an exchange.
    pub(crate) idle: Duration,
    /// How long a head may take.
    pub(crate) head: Duration,
    /// How long it may take nothing of an answer; `None`: as long as it likes.
    pub(crate) stall: Option<Duration>,
    /// Requests at once.
    pub(crate) streams: u32,
    /// Requests that it may take back in a minute.
    pub(crate) resets_per_minute: u32,
}

impl Terms {
    /// As a policy says.
    pub(crate) fn of(rules: &ClientRules) -> Self {
        Self {
            idle: rules.lives.idle,
            head: rules.timeouts.request_headers,
            stall: Some(rules.timeouts.write_stall).filter(|stall| !stall.is_zero()),
            streams: rules.http2.max_streams,
            resets_per_minute: rules.http2.resets_per_minute,
        }
    }
}

/// Serves HTTP/3 to its end, which is in order: nothing is cut that is under way. Says GOAWAY when the worker drains or `closing` is called, when it
/// has been idle for long, and when an exchange is to be its last. Dropping the future cuts the connection; what is being answered on it ends by
/// itself. Whether the client took back more requests than it may.
pub(crate) async fn serve<F, A>(
    connection: quinn::Connection,
    (bodies, terms): (&Rc<Bodies>, Terms),
    (drain, closing): (&Rc<Drain>, CancellationToken),
    answer: F,
) -> bool
where
    F: Fn(request::Parts, Received) -> A + 'static,
    A: Future<Output = Result<Response<Body>, CutOff>> + 'static,
{
    let (transport, latest) = Transport::new(connection);
    let streams = Rc::new(Streams::new(terms, bodies.connection()));
    let building = builder().max_field_section_size(HEAD_BYTES_READ_MAX.into()).send_grease(false).build(transport);
    let conversation = match building.await {
        Ok(connection) => Conversation { connection, latest, streams: Rc::clone(&streams), answer: Rc::new(answer), told: None },
        Err(error) => {
            tracing::debug!(%error, "a connection of HTTP/3 did not begin");
            return false;
        }
    };
    if let Err(error) = conversation.run(drain, closing).await
        && !error.is_h3_no_error()
    {
        tracing::debug!(%error, "a connection of HTTP/3 ended badly");
    }
    streams.is_flooded()
}

/// How far the client was told that its connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// That it should begin no more; what it has begun meanwhile is served, until then.
    First(Instant),
    /// Which request was its last.
    Last,
}

struct Conversation<F> {
    connection: Connection<Transport, Bytes>,
    latest: Rc<Cell<Option<Ends>>>,
    streams: Rc<Streams>,
    answer: Rc<F>,
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
            if self.streams.is_flooded() {
                return Ok(());
            }
            let resting = self.streams.count.get() == 0;
            if self.told == Some(Told::Last) && resting {
                return Ok(());
            }
            let due = match self.told {
                None => resting.then(|| self.streams.since.get() + self.streams.terms.idle),
                Some(Told::First(until)) => Some(until),
                Some(Told::Last) => None,
            };
            tokio::select! {
                biased;
                accepted = self.connection.accept() => match accepted? {
                    Some(resolver) => {
                        let Some(ends) = self.latest.take() else { continue };
                        tokio::task::spawn_local(exchange(resolver, ends, Rc::clone(&self.streams), Rc::clone(&self.answer)));
                    }
                    // The client has said goodbye, and has all its answers.
                    None => return Ok(()),
                },
                () = self.streams.changed.notified() => {
                    if self.streams.last.get() && self.told.is_none() {
                        self.tell().await?;
                    }
                }
                () = member.stage(DrainStage::Told), if self.told.is_none() => self.tell().await?,
                () = closing.cancelled(), if self.told.is_none() => self.tell().await?,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.tell().await?,
            }
        }
    }

    /// Tells the client that no more is served, in two words: requests that are on their way meanwhile are not refused (RFC 9114, section 5.2).
    async fn tell(&mut self) -> Result<(), ConnectionError> {
        match self.told {
            None => {
                self.told = Some(Told::First(Instant::now() + QUIC_GOAWAY_WAIT));
                self.connection.shutdown(self.streams.terms.streams as usize).await
            }
            Some(_) => {
                self.told = Some(Told::Last);
                // It names the first that is not served.
                self.connection.shutdown(1).await
            }
        }
    }
}

/// The streams of a connection.
pub(super) struct Streams {
    terms: Terms,
    windows: Rc<Windows>,
    count: Cell<usize>,
    /// The connection is to end in order with those that are under way.
    last: Cell<bool>,
    /// When the last one ended, or the connection began.
    since: Cell<Instant>,
    /// Requests that were taken back, since when.
    resets: Cell<(u32, Instant)>,
    flooded: Cell<bool>,
    changed: Notify,
}

impl Streams {
    fn new(terms: Terms, windows: Rc<Windows>) -> Self {
        let now = Instant::now();
        let (count, last, flooded) = (Cell::new(0), Cell::new(false), Cell::new(false));
        Self { terms, windows, count, last, since: Cell::new(now), resets: Cell::new((0, now)), flooded, changed: Notify::new() }
    }

    pub(super) const fn terms(&self) -> &Terms {
        &self.terms
    }

    pub(super) const fn windows(&self) -> &Rc<Windows> {
        &self.windows
    }

    /// A request was taken back, or was none. Beyond what may be in a minute the client is sent away.
    pub(super) fn taken_back(&self) {
        let (count, since) = self.resets.get();
        let now = Instant::now();
        let (count, since) = if now - since >= MINUTE { (1, now) } else { (count + 1, since) };
        self.resets.set((count, since));
        if count > self.terms.resets_per_minute {
            self.flooded.set(true);
            self.changed.notify_one();
        }
    }

    fn is_flooded(&self) -> bool {
        self.flooded.get()
    }
}

const MINUTE: Duration = Duration::from_secs(60);

/// One of them; dropped when it is over.
pub(super) struct UnderWay(Rc<Streams>);

impl UnderWay {
    pub(super) fn begin(streams: &Rc<Streams>) -> Self {
        streams.count.set(streams.count.get() + 1);
        Self(Rc::clone(streams))
    }

    /// Its answer is there.
    pub(super) fn answered(&self, line: &Line) {
        if line.is_last() && !self.0.last.replace(true) {
            self.0.changed.notify_one();
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.since.set(Instant::now());
        self.0.changed.notify_one();
    }
}
