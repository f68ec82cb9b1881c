//! Where replicas share a limit: the meters of all its keys, and what is given of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::numbers::{KeyStanding, Meter, Now, Numbers};
use super::table::Table;

/// A share of a rate is good for so long after it was given; one of a quota as long as its window.
const LASTS: Duration = Duration::from_secs(60);

/// What a replica wants of one key.
#[derive(Clone, Debug)]
pub struct ShareAsk {
    /// The limit's memory.
    pub limit: Arc<str>,
    /// Whose.
    pub key: u128,
    /// So much.
    pub want: u64,
    /// So much of what was given before comes back.
    pub back: u64,
    /// Was used without having been given, while the store was away.
    pub spent: u64,
    /// What the replica knows of the key.
    pub known: Option<KeyKnown>,
}

/// What a replica was told of a key, for a store that has lost it: a new one goes on from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyKnown {
    /// Left then.
    pub remaining: u64,
    /// So long ago.
    pub heard_ago: Duration,
    /// All of it is there again after so long.
    pub reset_in: Duration,
}

/// What it gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// So much.
    pub granted: u64,
    /// It is good for so long.
    pub lasts: Duration,
    /// How the key stands then; `retry` is above zero where there is no more.
    pub standing: KeyStanding,
}

impl Grant {
    /// So much, of a key that stands so then; it is good as long as a limit of these numbers lets it be.
    pub const fn of(granted: u64, standing: KeyStanding, numbers: &Numbers) -> Self {
        Self { granted, lasts: lasts(numbers, &standing), standing }
    }
}

/// Meters by limit and key. What a replica knows of a key is believed ([`KeyKnown`]), so that a store which begins anew gives nobody
/// more than those who ask know to be there.
#[derive(Debug)]
pub struct LimitBook {
    limits: Mutex<HashMap<Arc<str>, Arc<Table<Meter>>>>,
    limits_max: usize,
    keys_max: usize,
    refused: AtomicU64,
}

impl LimitBook {
    /// Of at most so many limits, each with at most so many keys.
    pub fn new(limits_max: usize, keys_max: usize) -> Self {
        Self { limits: Mutex::default(), limits_max, keys_max, refused: AtomicU64::new(0) }
    }

    /// Gives as much as there is. `None`: there are as many limits as there may be.
    pub fn take(&self, ask: &ShareAsk, numbers: &Numbers, now: Now) -> Option<Grant> {
        let table = self.table(&ask.limit)?;
        Some(table.with(ask.key, |meter| {
            if let Some(known) = ask.known {
                believe(meter, &known, numbers, now);
            }
            if ask.spent > 0 {
                numbers.charge(meter, ask.spent, now);
            }
            if ask.back > 0 {
                numbers.give_back(meter, ask.back, now);
            }
            let (granted, mut standing) = numbers.take_some(meter, ask.want, now);
            if granted == ask.want {
                standing.retry = Duration::ZERO;
            }
            Grant::of(granted, standing, numbers)
        }))
    }

    /// Forgets limits that are no more.
    pub fn keep(&self, there: impl Fn(&str) -> bool) {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).retain(|limit, _| there(limit));
    }

    /// Whether there are as many limits as there may be.
    pub fn is_full(&self) -> bool {
        self.len() >= self.limits_max
    }

    /// Questions that found no place for their limit.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Limits that are known.
    pub fn len(&self) -> usize {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How the keys of a limit stand, the newest first; at most so many.
    pub fn standings(&self, limit: &str, numbers: &Numbers, (most, now): (usize, Now)) -> Vec<(u128, KeyStanding)> {
        let Some(table) = self.limits.lock().unwrap_or_else(PoisonError::into_inner).get(limit).cloned() else { return Vec::new() };
        let mut found = Vec::new();
        table.each(|key, meter| {
            found.push((key, numbers.look(&mut meter.clone(), 1, now)));
            found.len() < most
        });
        found
    }

    fn table(&self, limit: &Arc<str>) -> Option<Arc<Table<Meter>>> {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = limits.get(limit) {
            return Some(Arc::clone(table));
        }
        if limits.len() >= self.limits_max {
            drop(limits);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let table = Arc::new(Table::new(self.keys_max));
        limits.insert(Arc::clone(limit), Arc::clone(&table));
        Some(table)
    }
}

/// A meter goes on from what a replica knows: it was used up as far, when that was heard.
fn believe(meter: &mut Meter, known: &KeyKnown, numbers: &Numbers, now: Now) {
    if known.reset_in.is_zero() {
        return;
    }
    match numbers {
        Numbers::Rate(rate) => {
            let back = known.heard_ago.as_nanos() * u128::from(rate.pace().0) / rate.pace().1.as_nanos();
            let remaining = known.remaining.saturating_add(u64::try_from(back).unwrap_or(u64::MAX));
            numbers.at_least(meter, remaining.min(numbers.whole()), now);
        }
        Numbers::Quota(_) => numbers.at_least(meter, known.remaining, now),
    }
}

const fn lasts(numbers: &Numbers, standing: &KeyStanding) -> Duration {
    match numbers {
        Numbers::Rate(_) => LASTS,
        Numbers::Quota(_) => standing.reset,
    }
}
