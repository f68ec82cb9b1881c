//! Connections to peers that proved themselves, one worker's: each is cut when its peer is no longer believed.
//!
//! A handshake is judged once, and a connection may last for weeks. So whoever keeps one holds a [`Bond`]; when what is believed changes,
//! [`Bonds::review`] looks at every peer again, and the bonds to those that are revoked break. Until then a bond costs one comparison
//! per wake-up of its connection.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use pin_project_lite::pin_project;

use super::{Peer, PeerError, Tls};

/// See the module.
#[derive(Debug)]
pub struct Bonds {
    tls: Arc<Tls>,
    /// Bonds that have ever been broken.
    broken: Cell<u64>,
    entries: RefCell<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    held: Vec<Option<Entry>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Entry {
    peer: Arc<Peer>,
    waker: Option<Waker>,
    /// Boxed because there are as many entries as connections, and few ever break.
    broken: Option<Box<PeerError>>,
}

impl Bonds {
    /// No bonds yet. Peers are judged by `tls`.
    pub fn new(tls: Arc<Tls>) -> Rc<Self> {
        Rc::new(Self { tls, broken: Cell::new(0), entries: RefCell::default() })
    }

    /// Who judges.
    pub fn tls(&self) -> &Arc<Tls> {
        &self.tls
    }

    /// A bond to a peer that has just proved itself.
    pub fn join(self: &Rc<Self>, peer: &Arc<Peer>) -> Bond {
        // What is believed may have changed since the handshake, and who reviews looks only at those that have joined.
        let broken = self.tls.stands(peer).err().map(Box::new);
        self.broken.set(self.broken.get() + u64::from(broken.is_some()));
        let entry = Some(Entry { peer: Arc::clone(peer), waker: None, broken });
        let mut entries = self.entries.borrow_mut();
        let index = match entries.free.pop() {
            Some(index) => {
                entries.held[index as usize] = entry;
                index
            }
            None => {
                entries.held.push(entry);
                u32::try_from(entries.held.len() - 1).unwrap_or(u32::MAX)
            }
        };
        Bond { bonds: Rc::clone(self), index, seen: u64::MAX }
    }

    /// Looks at every peer again and breaks the bonds to those that are no longer believed; returns how many.
    pub fn review(&self) -> usize {
        let mut count = 0;
        for entry in self.entries.borrow_mut().held.iter_mut().flatten().filter(|entry| entry.broken.is_none()) {
            entry.broken = self.tls.stands(&entry.peer).err().map(Box::new);
            if entry.broken.is_some() {
                count += 1;
                entry.waker.iter().for_each(Waker::wake_by_ref);
            }
        }
        self.broken.set(self.broken.get() + count as u64);
        count
    }

    /// Bonds that are held.
    pub fn held(&self) -> usize {
        let entries = self.entries.borrow();
        entries.held.len() - entries.free.len()
    }
}

/// One connection's bond to its peer. Dropped with the connection.
#[derive(Debug)]
pub struct Bond {
    bonds: Rc<Bonds>,
    index: u32,
    /// [`Bonds::broken`] when it looked last; none has been so many yet.
    seen: u64,
}

impl Bond {
    /// Whom it binds to.
    pub fn peer(&self) -> Option<Arc<Peer>> {
        self.bonds.entries.borrow().held[self.index as usize].as_ref().map(|entry| Arc::clone(&entry.peer))
    }

    /// Ready once the peer is no longer believed, with the reason. Must be polled by one task only.
    #[inline]
    pub fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<PeerError> {
        if self.seen == self.bonds.broken.get() {
            return Poll::Pending;
        }
        self.look(cx)
    }

    #[cold]
    fn look(&mut self, cx: &mut Context<'_>) -> Poll<PeerError> {
        let mut entries = self.bonds.entries.borrow_mut();
        let Some(entry) = entries.held[self.index as usize].as_mut() else { return Poll::Pending };
        if let Some(error) = &entry.broken {
            return Poll::Ready(PeerError::clone(error));
        }
        if self.seen == u64::MAX {
            entry.waker = Some(cx.waker().clone());
        }
        self.seen = self.bonds.broken.get();
        Poll::Pending
    }
}

impl Drop for Bond {
    fn drop(&mut self) {
        let mut entries = self.bonds.entries.borrow_mut();
        entries.held[self.index as usize] = None;
        entries.free.push(self.index);
    }
}

pin_project! {
    /// Work on a connection that ends when a bond breaks, of which there may be none.
    #[must_use = "it does nothing unless polled"]
    pub struct Bound<F, B> {
        bonds: B,
        #[pin]
        work: F,
    }
}

/// Does `work` for as long as the bonds hold. Must stay in one task.
///
/// # Errors
/// Why one of them broke. The work is dropped with the future then, which cuts its connections.
pub fn bound<F: Future, const N: usize>(bonds: [Option<Bond>; N], work: F) -> Bound<F, [Option<Bond>; N]> {
    Bound { bonds, work }
}

impl<F: Future, B: AsMut<[Option<Bond>]>> Future for Bound<F, B> {
    type Output = Result<F::Output, PeerError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        for bond in this.bonds.as_mut().iter_mut().flatten() {
            if let Poll::Ready(error) = bond.poll_broken(cx) {
                return Poll::Ready(Err(error));
            }
        }
        this.work.poll(cx).map(Ok)
    }
}
