//! An upstream HTTP/1 connection.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use hyper::client::conn::http1;

use crate::ground::body::Body;
use crate::ground::line::Line;
use crate::tls::{Peer, TlsFacts};

/// An HTTP/1 connection. Boxed once and then handed over: from its opening to a lease, to the slot, to the next lease.
pub(super) struct Http1 {
    pub(super) sender: http1::SendRequest<Body>,
    pub(super) line: Arc<Line>,
    pub(super) tls: Option<TlsFacts>,
    /// Who answers, where that was proved.
    pub(super) peer: Option<Arc<Peer>>,
    /// The slot's before it was opened.
    pub(super) age: u64,
    /// Exchanges that are over.
    pub(super) served: u32,
    pub(super) rest: Rc<Rest>,
}

/// What a connection that is kept and its driver tell one another: how long it rested until the other side closed it.
#[derive(Debug, Default)]
pub(super) struct Rest {
    since: Cell<Option<u32>>,
    lasted: Cell<Option<u32>>,
}

impl Rest {
    /// It is kept from this tick on.
    pub(super) fn begin(&self, now: u32) {
        self.since.set(Some(now));
    }

    /// It is used again, or closed by ourselves.
    pub(super) fn end(&self) {
        self.since.set(None);
    }

    pub(super) fn is_on(&self) -> bool {
        self.since.get().is_some()
    }

    /// The other side has closed it at this tick.
    pub(super) fn broken(&self, now: u32) {
        self.lasted.set(self.since.get().map(|since| now.wrapping_sub(since)));
    }

    /// Ticks that it rested until the other side closed it, if that is how it ended.
    pub(super) fn lasted(&self) -> Option<u32> {
        self.lasted.get()
    }
}

impl Http1 {
    /// Whether a proxy of the mesh answers.
    pub(super) fn is_hop(&self) -> bool {
        self.tls.as_ref().is_some_and(TlsFacts::is_hop)
    }
}

impl Drop for Http1 {
    fn drop(&mut self) {
        if !self.sender.is_closed() {
            self.rest.end();
        }
    }
}
