//! What was given and lies unused, which goes back.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use engine::Moment;
use engine::filter::guard::ObjectLimits;
use engine::limit::Row;

/// What was given and not used for so long goes back.
const IDLE: Duration = Duration::from_secs(5);
/// Keys whose share is watched for that. What is beyond goes back when it expires.
const WATCHED_MAX: usize = 65_536;

/// Keys that were given something, the longest ago first.
#[derive(Debug, Default)]
pub struct Unused(VecDeque<Watched>);

#[derive(Debug)]
struct Watched {
    since: Moment,
    object: Weak<ObjectLimits>,
    limit: usize,
    key: u128,
}

impl Unused {
    /// A key was given something.
    pub fn watch(&mut self, (object, limit, key): (&Arc<ObjectLimits>, usize, u128), now: Moment) {
        if self.0.len() < WATCHED_MAX {
            self.0.push_back(Watched { since: now, object: Arc::downgrade(object), limit, key });
        }
    }

    /// What goes back now: the object, its limit, whose, how much. It is in hand no more.
    pub fn due(&mut self, now: Moment) -> Vec<(Arc<ObjectLimits>, usize, u128, u64)> {
        let mut due = Vec::new();
        while self.0.front().is_some_and(|watched| now.since(watched.since) >= IDLE) {
            let Some(watched) = self.0.pop_front() else { break };
            let Some(object) = watched.object.upgrade() else { continue };
            let look = |row: &mut Row| {
                let held = row.shared();
                (held.idle(IDLE, now), held.have())
            };
            match object.memory.rows.peek(watched.key, look) {
                Some((Some(back), _)) => due.push((object, watched.limit, watched.key, back)),
                Some((None, have)) if have > 0 => self.0.push_back(Watched { since: now, ..watched }),
                Some(_) | None => {}
            }
        }
        due
    }
}
