//! The requests of one connection: how many are under way, and what they mean for it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use engine::model::ClientRules;
use quinn::VarInt;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::ground::limits::QUIC_HEADLESS_MAX;
use crate::ground::line::Line;
use crate::ground::patience::Patience;
use crate::ground::windows::Windows;

/// What a client may do, for as long as its connection lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuicTerms {
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
    /// Bytes of bodies on the connection that it may send before they are read; `None`: as many as there is room for.
    pub(crate) window: Option<u32>,
}

impl QuicTerms {
    /// As a policy says.
    pub(crate) fn of(rules: &ClientRules) -> Self {
        Self {
            idle: rules.lives.idle,
            head: rules.timeouts.request_headers,
            stall: Some(rules.timeouts.write_stall).filter(|stall| !stall.is_zero()),
            streams: rules.http2.max_streams,
            resets_per_minute: rules.http2.resets_per_minute,
            window: rules.http2.windows.map(|(_, connection)| connection),
        }
    }
}

/// The streams of a connection.
pub(super) struct Requests {
    terms: QuicTerms,
    windows: Rc<Windows>,
    patience: Rc<Patience>,
    quic: quinn::Connection,
    /// What the client may have sent that was not read: of each body, and of all.
    window: Cell<(u32, u64)>,
    count: Cell<usize>,
    /// The connection is to end in order with those that are under way.
    last: Cell<bool>,
    /// When the last one ended, or the connection began.
    since: Cell<Instant>,
    /// Requests that were taken back, since when.
    resets: Cell<(u32, Instant)>,
    flooded: Cell<bool>,
    /// Requests without a head.
    headless: Cell<u32>,
    changed: Notify,
}

impl Requests {
    /// None yet.
    pub(super) fn new(quic: quinn::Connection, terms: QuicTerms, (windows, patience): (Rc<Windows>, Rc<Patience>)) -> Self {
        let now = Instant::now();
        let (count, last, flooded) = (Cell::new(0), Cell::new(false), Cell::new(false));
        let (since, resets, changed) = (Cell::new(now), Cell::new((0, now)), Notify::new());
        let requests = Self {
            terms,
            windows,
            patience,
            quic,
            window: Cell::new((0, 0)),
            count,
            last,
            since,
            resets,
            flooded,
            headless: Cell::new(0),
            changed,
        };
        requests.allow();
        requests
    }

    /// Lets the client send as much of its bodies as they may have at the moment: the more there are of the worker, the less each. What bodies had that
    /// are over is left to it: taken and given again it would be given twice, and more than its streams may have it cannot use.
    pub(super) fn allow(&self) {
        let (each, bodies) = self.terms.window.map_or_else(|| self.windows.allowance(self.patience.tick()), |window| (window, 1));
        let (each_before, before) = self.window.get();
        let mut wanted = u64::from(each) * u64::from(bodies);
        if each == each_before {
            wanted = wanted.max(before);
        }
        self.window.set((each, wanted));
        if wanted != before {
            self.quic.set_receive_window(VarInt::from_u64(wanted).unwrap_or(VarInt::MAX));
        }
    }

    /// How many frames with data have gone to the client, those that had to be sent again too.
    pub(super) fn frames_sent(&self) -> u64 {
        self.quic.stats().frame_tx.stream
    }

    pub(super) const fn terms(&self) -> &QuicTerms {
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

    /// A request's head has not come whole, or is none. The library keeps the number of each such stream for as long as the connection lives: beyond so
    /// many it is to end in order.
    pub(super) fn headless(&self) {
        self.taken_back();
        self.headless.set(self.headless.get() + 1);
        if self.headless.get() >= QUIC_HEADLESS_MAX && !self.last.replace(true) {
            self.changed.notify_one();
        }
    }

    /// Whether it has taken back more than it may.
    pub(super) fn is_flooded(&self) -> bool {
        self.flooded.get()
    }

    /// Since when none is under way; `None`: one is.
    pub(super) fn resting(&self) -> Option<Instant> {
        (self.count.get() == 0).then(|| self.since.get())
    }

    /// Whether the connection is to end in order with those that are under way.
    pub(super) fn is_last(&self) -> bool {
        self.last.get()
    }

    /// Resolves when any of that may have changed. Cancel-safe, for one task.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

const MINUTE: Duration = Duration::from_secs(60);

/// One of them; dropped when it is over.
pub(super) struct Asking(Rc<Requests>);

impl Asking {
    pub(super) fn begin(requests: &Rc<Requests>) -> Self {
        requests.count.set(requests.count.get() + 1);
        Self(Rc::clone(requests))
    }

    pub(super) const fn requests(&self) -> &Rc<Requests> {
        &self.0
    }

    /// Its answer is there.
    pub(super) fn answered(&self, line: &Line) {
        if line.is_last() && !self.0.last.replace(true) {
            self.0.changed.notify_one();
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.since.set(Instant::now());
        self.0.allow();
        self.0.changed.notify_one();
    }
}
