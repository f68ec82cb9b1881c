//! What a service said before, and still counts.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use proto::mesh;

use super::{CheckVerdict, ENTRIES_MAX};
use crate::Moment;
use crate::filter::Exchange;
use crate::filter::guard::limits::key::{self, Key, Part, Seen};
use crate::raw::duration;
use crate::rejected::Wrong;

/// Longest that a verdict counts.
const TTL_MAX: Duration = Duration::from_secs(3600);

/// See the module. Shared by all workers, and by all rules that say the same.
#[derive(Debug)]
pub(super) struct Verdicts {
    ttl: Duration,
    key: Vec<Part>,
    /// Of one generation; there are two.
    most: usize,
    held: Mutex<Generations>,
}

/// When the younger is full it becomes the older, whose verdicts are forgotten: so there are never more than were asked for, and what is used
/// again within a generation stays.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Key, (Moment, CheckVerdict)>,
    old: HashMap<Key, (Moment, CheckVerdict)>,
}

impl Verdicts {
    pub(super) fn compile(raw: &mesh::CheckCache) -> Result<Self, Wrong> {
        let mesh::CheckCache { ttl, key, entries } = raw;
        let ttl = duration(ttl.as_ref(), "ttl")?.filter(|ttl| !ttl.is_zero() && *ttl <= TTL_MAX);
        let ttl = ttl.ok_or_else(|| Wrong::new("ttl", format!("is not above 0s and up to {}s", TTL_MAX.as_secs())))?;
        if key.is_empty() {
            return Err(Wrong::new("key", "is empty: one verdict would be everybody's"));
        }
        if !(2..=ENTRIES_MAX).contains(entries) {
            return Err(Wrong::new("entries", format!("{entries} is not from 2 to {ENTRIES_MAX}")));
        }
        Ok(Self { ttl, key: key::compile(key)?, most: (*entries / 2) as usize, held: Mutex::default() })
    }

    /// What counts for a request; one that lacks a part of the key is asked about each time.
    pub(super) fn find(&self, exchange: &Exchange<'_>) -> Option<CheckVerdict> {
        let key = self.of(exchange)?;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Generations { young, old } = &mut *held;
        let fresh = |(at, _): &(Moment, CheckVerdict)| exchange.now.since(*at) < self.ttl;
        if let Some((_, verdict)) = young.get(&key).filter(|known| fresh(known)) {
            return Some(verdict.clone());
        }
        let known = old.remove(&key).filter(fresh)?;
        let verdict = known.1.clone();
        self.put(&mut held, key, known);
        Some(verdict)
    }

    pub(super) fn keep(&self, exchange: &Exchange<'_>, verdict: &CheckVerdict) {
        let Some(key) = self.of(exchange) else { return };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        self.put(&mut held, key, (exchange.now, verdict.clone()));
    }

    fn put(&self, held: &mut Generations, key: Key, known: (Moment, CheckVerdict)) {
        if held.young.len() >= self.most && !held.young.contains_key(&key) {
            held.old = std::mem::take(&mut held.young);
        }
        held.young.insert(key, known);
    }

    fn of(&self, exchange: &Exchange<'_>) -> Option<Key> {
        Seen::of(exchange).key("", &self.key, false).ok()
    }
}
