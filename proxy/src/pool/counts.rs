//! How many connections there are.

use std::cell::Cell;
use std::rc::Rc;

use engine::gate::Pass;

/// Connections of one worker's pool.
#[derive(Debug, Default)]
pub struct Counts {
    /// Kept and unused.
    pub idle: Cell<usize>,
    /// All.
    pub open: Cell<usize>,
    /// Those of them that lead to the application beside us.
    pub local: Cell<usize>,
    /// Requests that wait for one.
    pub waiting: Cell<usize>,
}

/// An open connection is counted as long as this lives.
pub struct Open {
    counts: Rc<Counts>,
    local: bool,
    _pass: Option<Pass>,
}

impl Open {
    /// Counts one more. `local`: it leads to the application beside us. `pass`: its place among those of its cluster.
    pub fn count(counts: &Rc<Counts>, local: bool, pass: Option<Pass>) -> Self {
        step(&counts.open, 1);
        step(&counts.local, isize::from(local));
        Self { counts: Rc::clone(counts), local, _pass: pass }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        step(&self.counts.open, -1);
        step(&self.counts.local, -isize::from(self.local));
    }
}

pub(super) fn step(count: &Cell<usize>, by: isize) {
    count.set(count.get().saturating_add_signed(by));
}
