//! An upstream HTTP/2 connection and who uses it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use h2::{Ping, PingPong, Reason};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::counts::Open;
use crate::ground::limits::{
    PING_EVERY, PING_WAIT, STREAMS_BEFORE_SETTINGS, STREAMS_PER_CONNECTION_MAX, STREAMS_UNTOLD_MAX, TICK, UPLOAD_WINDOW_BYTES,
};
use crate::ground::patience::{Patience, ticks};
use crate::ground::windows::{Turned, Windows};
use crate::http::http2::STREAMS_MAX_UNTOLD;
use crate::io::{Attended, Gathered, Gathering};
use crate::tls::TlsFacts;

/// One connection: its streams, and what is known of its peer.
pub(super) struct Multiplexed {
    /// Gone when the pool has forgotten the connection; it closes with its last stream.
    sender: RefCell<Option<SendRequest<Bytes>>>,
    /// Requests under way.
    count: Cell<usize>,
    /// Requests that it was used for.
    served: Cell<u32>,
    /// Bytes of their bodies that the peer may leave unread. See [`Multiplexed::fits`].
    unread_bytes: Cell<u64>,
    /// How many requests the peer takes at once, once it has said so or has been waited for in vain.
    max: Cell<Option<usize>>,
    /// Told when `max` is known, and when a first request comes after a rest.
    changed: Notify,
    last_used: Cell<u32>,
    /// When something was read last.
    heard: Cell<u32>,
    /// How the connection is encrypted, if its peer is of the mesh; where that is who answers, it opens its windows wide.
    tls: Option<TlsFacts>,
    /// Our own, for what the peer answers.
    windows: Rc<Windows>,
    patience: Rc<Patience>,
}

/// One request's use of a connection. Counts while it lives.
pub(super) struct Use {
    connection: Rc<Multiplexed>,
    bytes: u64,
    /// The peer has had the whole body and has answered.
    complete: bool,
    /// Only its stream broke off: the connection goes on.
    outlived: bool,
}

/// Tells who waits that a connection is over, whatever ended it.
struct Ended(Rc<Multiplexed>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.changed.notify_waiters();
    }
}

/// What a connection has to offer a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// A stream.
    Free,
    /// Perhaps one, when the peer has said how many it takes.
    Later,
    /// A stream, beside bodies that may stand still and would stop this one's.
    Shared,
    /// None.
    Full,
}

impl Multiplexed {
    pub(super) fn new(sender: SendRequest<Bytes>, tls: Option<TlsFacts>, windows: Rc<Windows>, patience: &Rc<Patience>) -> Rc<Self> {
        Rc::new(Self {
            sender: RefCell::new(Some(sender)),
            count: Cell::new(0),
            served: Cell::new(0),
            unread_bytes: Cell::new(0),
            max: Cell::new(None),
            changed: Notify::new(),
            last_used: Cell::new(patience.tick()),
            heard: Cell::new(patience.tick()),
            tls,
            windows,
            patience: Rc::clone(patience),
        })
    }

    /// Whether it takes no request any more: the peer has said so, or it is over.
    pub(super) fn over(&self) -> bool {
        let mut sender = self.sender.borrow_mut();
        let ready = |sender: &mut SendRequest<Bytes>| sender.poll_ready(&mut Context::from_waker(Waker::noop()));
        sender.as_mut().is_none_or(|sender| matches!(ready(sender), Poll::Ready(Err(_))))
    }

    /// What it offers a request whose body may have so many bytes.
    pub(super) fn room(&self, bytes: u64) -> Room {
        let count = self.count.get();
        let max = match self.max.get() {
            Some(max) => max.min(STREAMS_PER_CONNECTION_MAX as usize),
            None if count >= STREAMS_BEFORE_SETTINGS => return Room::Later,
            None => STREAMS_BEFORE_SETTINGS,
        };
        if count >= max {
            Room::Full
        } else if self.fits(bytes) {
            Room::Free
        } else {
            Room::Shared
        }
    }

    /// Whether a body of so many bytes finds its way even if nothing of those under way is ever read. An application's window for all bodies
    /// together may be no larger than [`UPLOAD_WINDOW_BYTES`], and one unread body would stop all others (RFC 9113, section 5.2.1).
    fn fits(&self, bytes: u64) -> bool {
        self.is_hop() || bytes == 0 || self.unread_bytes.get() == 0 || self.unread_bytes.get() + bytes <= UPLOAD_WINDOW_BYTES
    }

    /// Bytes that may stand unread on it.
    pub(super) fn unread_bytes(&self) -> u64 {
        self.unread_bytes.get()
    }

    /// Whether it was used for as many requests as it may be.
    pub(super) fn spent(&self, uses_max: Option<u32>) -> bool {
        uses_max.is_some_and(|max| self.served.get() >= max)
    }

    /// Counts one of those.
    pub(super) fn use_up(&self) {
        self.served.set(self.served.get().saturating_add(1));
    }

    /// Whether nobody uses it, and since when.
    pub(super) fn unused_since(&self) -> Option<u32> {
        (self.count.get() == 0).then(|| self.last_used.get())
    }

    pub(super) const fn tls(&self) -> Option<&TlsFacts> {
        self.tls.as_ref()
    }

    /// Whether a proxy of the mesh answers.
    pub(super) fn is_hop(&self) -> bool {
        self.tls.as_ref().is_some_and(TlsFacts::is_hop)
    }

    pub(super) const fn windows(&self) -> &Rc<Windows> {
        &self.windows
    }

    pub(super) const fn sender(&self) -> &RefCell<Option<SendRequest<Bytes>>> {
        &self.sender
    }

    /// Takes no further request.
    pub(super) fn retire(&self) {
        self.sender.replace(None);
    }

    /// Waits until the peer has said how many requests it takes, or the connection is over. Cancel-safe.
    pub(super) async fn told(&self) {
        while self.max.get().is_none() && !self.over() {
            self.changed.notified().await;
        }
    }

    /// The peer has been waited for in vain.
    pub(super) fn untold(&self) {
        if self.max.get().is_none() {
            self.know(STREAMS_UNTOLD_MAX);
        }
    }

    fn know(&self, max: usize) {
        self.max.set(Some(max));
        self.changed.notify_waiters();
    }

    /// Counts a request; see [`Multiplexed::room`].
    pub(super) fn enter(self: &Rc<Self>, bytes: u64) -> Use {
        if self.count.get() == 0 {
            // Silence before it does not count.
            self.heard.set(self.patience.tick());
            self.changed.notify_waiters();
        }
        self.count.set(self.count.get() + 1);
        self.unread_bytes.set(self.unread_bytes.get() + bytes);
        Use { connection: Rc::clone(self), bytes, complete: false, outlived: false }
    }

    /// Runs the connection to its end.
    pub(super) async fn drive(
        self: Rc<Self>,
        connection: Connection<Gathered<Attended>, Bytes>,
        gathering: Rc<Gathering<Attended>>,
        open: Open,
    ) {
        let _ended = Ended(Rc::clone(&self));
        let driven = async {
            let mut connection = connection;
            if let Err(error) = poll_fn(|cx| self.poll(&mut connection, &gathering, cx)).await {
                tracing::debug!(%error, "an upstream HTTP/2 connection ended badly");
            }
        };
        gathering.drive(driven).await;
        drop(open);
    }

    /// One turn.
    fn poll(
        &self,
        connection: &mut Connection<Gathered<Attended>, Bytes>,
        gathering: &Gathering<Attended>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), h2::Error>> {
        loop {
            let polled = Pin::new(&mut *connection).poll(cx);
            if gathering.heard() {
                self.heard.set(self.patience.tick());
            }
            let max = connection.max_concurrent_send_streams();
            if max != STREAMS_MAX_UNTOLD && self.max.get() != Some(max) {
                self.know(max);
            }
            if polled.is_ready() {
                return polled;
            }
            if gathering.is_flooded() {
                return Poll::Ready(Err(Reason::ENHANCE_YOUR_CALM.into()));
            }
            match self.windows.turn(self.patience.tick(), cx, |size| connection.set_initial_window_size(size).is_ok()) {
                Turned::Same => return Poll::Pending,
                Turned::Told => {}
                Turned::Owed => return Poll::Ready(Err(Reason::SETTINGS_TIMEOUT.into())),
            }
        }
    }

    /// Asks a busy peer now and then whether it lives, and ends the connection if it does not answer: a dead machine says nothing. Costs
    /// nothing while it is not used.
    pub(super) async fn keep_alive(self: Rc<Self>, mut pings: PingPong, driver: AbortHandle) {
        while !driver.is_finished() {
            if self.count.get() == 0 {
                self.changed.notified().await;
                continue;
            }
            let silent = self.patience.tick().wrapping_sub(self.heard.get());
            let left = ticks(PING_EVERY).saturating_sub(silent);
            if left > 0 {
                sleep(TICK * left).await;
                continue;
            }
            match timeout(PING_WAIT, pings.ping(Ping::opaque())).await {
                Ok(Ok(_)) => self.heard.set(self.patience.tick()),
                Ok(Err(_)) => return,
                Err(_) => {
                    tracing::debug!("an upstream HTTP/2 peer does not answer any more");
                    driver.abort();
                }
            }
        }
    }
}

impl Use {
    pub(super) const fn connection(&self) -> &Rc<Multiplexed> {
        &self.connection
    }

    /// Another use of the same connection by the same request: its body goes on longer than its answer.
    pub(super) fn split(&mut self) -> Self {
        let mut rest = self.connection.enter(0);
        rest.bytes = std::mem::take(&mut self.bytes);
        rest
    }

    /// The exchange is complete, so its body stands nowhere unread any more.
    pub(super) fn complete(&mut self) {
        self.complete = true;
    }

    /// Its stream broke off by this.
    pub(super) fn broken(&mut self, error: &h2::Error) {
        self.outlived = !error.is_io() && !error.is_go_away();
    }

    /// Whether its stream broke off and the connection went on.
    pub(super) const fn is_outlived(&self) -> bool {
        self.outlived
    }

    /// The body is over and was this long.
    pub(super) fn settle(&mut self, bytes: u64) {
        let unread = &self.connection.unread_bytes;
        let bytes = bytes.min(self.bytes);
        unread.set(unread.get() - self.bytes + bytes);
        self.bytes = bytes;
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.count.set(connection.count.get() - 1);
        // Some peers never open their window again for what they had of a stream that was reset: such bytes stay counted, and bodies that
        // do not fit beside them take another connection.
        if self.complete {
            connection.unread_bytes.set(connection.unread_bytes.get() - self.bytes);
        }
        connection.patience.stir();
        connection.last_used.set(connection.patience.tick());
    }
}
