//! Parts of views, kept for all streams and from one edition to the next. A part is used as long as none of its subjects is touched; then it
//! is made again, and what came out as it was before stays the very same resource, which nobody needs to look at twice.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::translate::{Affected, PartKey, Subject, ViewPart};
use crate::world::World;

/// Parts kept (a few kilobytes each at most places); beyond it all are made again.
pub const PARTS_MAX: usize = 200_000;
/// Subjects of which it is known when they were touched; beyond it all count as touched.
const SUBJECTS_MAX: usize = 200_000;

/// See the module.
#[derive(Default)]
pub struct Memo {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// Of the newest edition.
    serial: u64,
    /// The edition in which everything was touched last.
    all: u64,
    /// The edition in which a subject was touched last, where it was later.
    touched: HashMap<Subject, u64>,
    parts: HashMap<PartKey, Slot>,
    /// Parts made since the start.
    made: u64,
}

struct Slot {
    part: Arc<ViewPart>,
    /// The newest edition for which it is known to be right.
    right: u64,
}

impl Memo {
    /// A new edition, before any stream sees it.
    pub fn turn(&self, serial: u64, touched: &Affected) {
        let mut kept = self.kept.lock();
        kept.serial = serial;
        match touched {
            Affected::All => kept.touch_all(),
            Affected::Some(subjects) if kept.touched.len() + subjects.len() > SUBJECTS_MAX => kept.touch_all(),
            Affected::Some(subjects) => kept.touched.extend(subjects.iter().map(|subject| (*subject, serial))),
        }
    }

    /// A part, as that edition has it. Of the newest edition it is kept; whoever is behind has it made for itself.
    pub fn part(&self, serial: u64, world: &World, key: PartKey) -> Arc<ViewPart> {
        let former = match self.kept.lock().find(serial, &key) {
            Ok(part) => return part,
            Err(former) => former,
        };
        // Made outside the lock: streams do so side by side.
        let part = same(former, key.make(world));
        self.kept.lock().keep(serial, key, &part);
        part
    }

    /// Of parts that were right in an edition, those of which something has been touched since, by their places, as they are in the newest
    /// one. `None`: too much was touched to tell, or `serial` is not the newest.
    pub fn since(
        &self,
        right: u64,
        (serial, world): (u64, &World),
        parts: &[(PartKey, Arc<ViewPart>)],
    ) -> Option<Vec<(usize, Arc<ViewPart>)>> {
        let touched: Vec<usize> = {
            let kept = self.kept.lock();
            if serial != kept.serial || kept.all > right {
                return None;
            }
            let touched = |subject| kept.touched.get(subject).is_some_and(|at| *at > right);
            let parts = parts.iter().enumerate().filter(|(_, (_, part))| part.subjects.iter().any(touched));
            parts.map(|(place, _)| place).collect()
        };
        Some(touched.into_iter().map(|place| (place, self.part(serial, world, parts[place].0.clone()))).collect())
    }

    /// How many parts are kept, and how many have been made since the start.
    pub fn counts(&self) -> (usize, u64) {
        let kept = self.kept.lock();
        (kept.parts.len(), kept.made)
    }
}

impl Kept {
    fn touch_all(&mut self) {
        self.all = self.serial;
        self.touched.clear();
    }

    /// The part, or the one that is no longer right.
    fn find(&mut self, serial: u64, key: &PartKey) -> Result<Arc<ViewPart>, Option<Arc<ViewPart>>> {
        if serial != self.serial {
            return Err(None);
        }
        let Some(slot) = self.parts.get_mut(key) else { return Err(None) };
        let touched = |subject| self.touched.get(subject).is_some_and(|at| *at > slot.right);
        if slot.right < self.serial && (self.all > slot.right || slot.part.subjects.iter().any(touched)) {
            return Err(Some(Arc::clone(&slot.part)));
        }
        slot.right = self.serial;
        Ok(Arc::clone(&slot.part))
    }

    fn keep(&mut self, serial: u64, key: PartKey, part: &Arc<ViewPart>) {
        self.made += 1;
        if serial != self.serial {
            return;
        }
        if self.parts.len() >= PARTS_MAX && !self.parts.contains_key(&key) {
            self.parts.clear();
        }
        self.parts.insert(key, Slot { part: Arc::clone(part), right: serial });
    }
}

/// The part with those resources of the former one that are the same; the former one itself where all are.
fn same(former: Option<Arc<ViewPart>>, mut part: ViewPart) -> Arc<ViewPart> {
    let Some(former) = former else { return Arc::new(part) };
    for (url, name, item) in &mut part.resources {
        let known = former.resources.iter().find(|(known, of, _)| (known, of) == (&*url, &*name));
        if let Some((_, _, known)) = known.filter(|(_, _, known)| known.version == item.version) {
            item.clone_from(known);
        }
    }
    if *former == part { former } else { Arc::new(part) }
}

#[cfg(test)]
#[path = "memo_tests.rs"]
mod tests;
