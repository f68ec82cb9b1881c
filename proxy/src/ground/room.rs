//! Room for bodies that are kept: one worker's, of all bodies together.

use std::cell::Cell;
use std::rc::Rc;

use crate::ground::limits::REPLAYS_BYTES_MAX;

/// Bytes that one worker keeps of all bodies together, with what keeping them takes.
#[derive(Debug, Default)]
pub struct ReplayRoom(Cell<usize>);

/// So much of it, until it is dropped.
#[derive(Debug)]
pub struct ReplayPlace {
    room: Rc<ReplayRoom>,
    bytes: usize,
}

impl ReplayRoom {
    /// Bytes kept now.
    pub fn used(&self) -> usize {
        self.0.get()
    }

    /// A place for so many bytes; `None`: there is none.
    pub fn place(self: &Rc<Self>, bytes: usize) -> Option<ReplayPlace> {
        self.take(bytes).then(|| ReplayPlace { room: Rc::clone(self), bytes })
    }

    pub(super) fn take(&self, bytes: usize) -> bool {
        let used = self.0.get() + bytes;
        let fits = used <= REPLAYS_BYTES_MAX;
        if fits {
            self.0.set(used);
        }
        fits
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.0.set(self.0.get() - bytes);
    }
}

impl Drop for ReplayPlace {
    fn drop(&mut self) {
        self.room.give_back(self.bytes);
    }
}
