//! A downstream connection between its exchanges.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use engine::model::ClientRules;

use crate::ground::limits::{FAREWELL_WAIT, HEAD_WAIT, KEPT_WAIT};
use crate::ground::patience::{Patience, Wait};
use crate::io::Notes;

/// How long a connection may be kept without an exchange, how long a head may take, and whether it is to end in order. Dropped within an
/// exchange, before [`Self::finish`], it cuts the connection.
#[derive(Debug)]
pub(crate) struct Kept {
    notes: Arc<Notes>,
    wait: Wait,
    /// Whether an exchange was under way at the last turn, and how many there were.
    exchange: (bool, u32),
    /// A head has begun, and is waited for.
    in_head: bool,
    terms: KeptTerms,
    finished: bool,
}

/// How long a downstream connection may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeptTerms {
    /// Without an exchange.
    pub(crate) idle: Duration,
    /// For a head, from its first byte on; `None`: as long as it likes.
    pub(crate) head: Option<Duration>,
    /// Taking nothing of what is written to it; `None`: as long as nobody wants its place.
    pub(crate) stall: Option<Duration>,
    /// Between exchanges it gives way, if its place is wanted: a client of an edge knows how that ends.
    pub(crate) yields: bool,
}

impl KeptTerms {
    /// As a policy says, else as for everybody. `guarded`: the client is not trusted with its time for a head.
    pub(crate) fn of(rules: Option<&ClientRules>, guarded: bool) -> Self {
        let head = rules.map_or(HEAD_WAIT, |rules| rules.timeouts.request_headers);
        let stall = rules.map(|rules| rules.timeouts.write_stall).filter(|stall| !stall.is_zero());
        Self { idle: rules.map_or(KEPT_WAIT, |rules| rules.lives.idle), head: guarded.then_some(head), stall, yields: rules.is_some() }
    }
}

impl Kept {
    /// Begins to wait for the first exchange.
    pub(crate) fn new(patience: &Rc<Patience>, notes: Arc<Notes>, terms: KeptTerms) -> Box<Self> {
        let wait = patience.keep(terms.idle);
        Box::new(Self { notes, wait, exchange: (false, 0), in_head: false, terms, finished: false })
    }

    /// Ready when the connection has been kept for too long, or a head has taken too long. Asked at every turn of the connection; what the
    /// peer has not taken yet is still under way. `exchange`: whether one is under way, and a number that changes with each.
    pub(crate) fn poll_over(&mut self, exchange: (bool, u32), cx: &mut Context<'_>) -> Poll<()> {
        self.wait.register(cx);
        let busy = exchange.0;
        if self.exchange != exchange {
            (self.exchange, self.in_head) = (exchange, false);
            // What came in the turn of an exchange's end is taken for its own.
            self.notes.heard();
            self.wait.restart((!busy).then_some(self.terms.idle));
            self.wait.yields(self.terms.yields && !busy);
        }
        if busy {
            return Poll::Pending;
        }
        if let Some(head) = self.terms.head
            && !self.in_head
            && self.notes.heard()
        {
            self.in_head = true;
            self.wait.restart(Some(head));
            self.wait.yields(false);
        }
        if self.wait.poll_overdue(cx).is_pending() {
            return Poll::Pending;
        }
        if self.notes.held_up() {
            self.wait.restart(Some(self.terms.idle));
            return self.wait.poll_overdue(cx);
        }
        Poll::Ready(())
    }

    /// The peer has been told that the connection is over, and has this long to end it with us.
    pub(crate) fn farewell(&mut self) {
        self.wait.yields(false);
        self.wait.restart(Some(FAREWELL_WAIT));
    }

    /// Serving has come to its end. `cut`: in the middle of an answer.
    pub(crate) fn finish(&mut self, cut: bool) {
        self.finished = true;
        if cut {
            self.notes.cut();
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.finished && self.exchange.0 {
            self.notes.cut();
        }
    }
}
