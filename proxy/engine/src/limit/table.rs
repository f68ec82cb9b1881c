//! A bounded number of keys, each with a row; the one that rested longest gives way.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::seeded::Seeded;

/// Keys of different shards do not wait for each other.
const SHARDS: usize = 16;
/// No place.
const NONE: u32 = u32::MAX;

/// Rows by key. A key is a digest, so it tells where its row is.
#[derive(Debug)]
pub struct Table<R> {
    shards: [Mutex<Shard<R>>; SHARDS],
    shard_keys_max: usize,
    evicted: AtomicU64,
}

#[derive(Debug)]
struct Shard<R> {
    places: HashMap<u128, u32, Seeded>,
    rows: Vec<Place<R>>,
    /// Used last, and longest ago.
    newest: u32,
    oldest: u32,
}

#[derive(Debug)]
struct Place<R> {
    key: u128,
    row: R,
    newer: u32,
    older: u32,
}

impl<R: Default> Table<R> {
    /// For at most `keys_max` keys, and for one in each of its parts at least.
    pub fn new(keys_max: usize) -> Self {
        let seeded = Seeded::new();
        let shard = |_| Mutex::new(Shard { places: HashMap::with_hasher(seeded), rows: Vec::new(), newest: NONE, oldest: NONE });
        Self { shards: std::array::from_fn(shard), shard_keys_max: (keys_max / SHARDS).max(1), evicted: AtomicU64::new(0) }
    }

    /// Does something with the row of a key, which is used by that. A key that has none gets one; where there is no place, the row that
    /// rested longest is forgotten for it.
    pub fn with<T>(&self, key: u128, act: impl FnOnce(&mut R) -> T) -> T {
        let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        act(shard.used(key, self.shard_keys_max, &self.evicted))
    }

    /// The same with the row that a key has, which is not used by that.
    pub fn peek<T>(&self, key: u128, act: impl FnOnce(&mut R) -> T) -> Option<T> {
        let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        let place = *shard.places.get(&key)?;
        shard.rows.get_mut(place as usize).map(|place| act(&mut place.row))
    }

    /// The same with each row, newest first within its part, until `act` says no.
    pub fn each(&self, mut act: impl FnMut(u128, &mut R) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let mut at = shard.newest;
            while let Some(place) = shard.rows.get_mut(at as usize) {
                if !act(place.key, &mut place.row) {
                    return;
                }
                at = place.older;
            }
        }
    }

    /// Keys that have a row.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).rows.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows that were forgotten for others since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    fn shard(&self, key: u128) -> &Mutex<Shard<R>> {
        let [first, ..] = &self.shards;
        self.shards.get(key as usize % SHARDS).unwrap_or(first)
    }
}

impl<R: Default> Shard<R> {
    fn used(&mut self, key: u128, keys_max: usize, evicted: &AtomicU64) -> &mut R {
        let fresh = u32::try_from(self.rows.len()).unwrap_or(NONE);
        let place = match self.places.entry(key) {
            Entry::Occupied(place) => *place.get(),
            Entry::Vacant(vacant) if self.rows.len() < keys_max && fresh != NONE => {
                vacant.insert(fresh);
                self.rows.push(Place { key, row: R::default(), newer: NONE, older: NONE });
                self.put_first(fresh);
                fresh
            }
            Entry::Vacant(vacant) => {
                let place = self.oldest;
                vacant.insert(place);
                if let Some(gone) = self.rows.get_mut(place as usize) {
                    let former = std::mem::replace(&mut gone.key, key);
                    gone.row = R::default();
                    self.places.remove(&former);
                }
                evicted.fetch_add(1, Ordering::Relaxed);
                place
            }
        };
        if self.newest != place {
            self.take_out(place);
            self.put_first(place);
        }
        &mut self.rows[place as usize].row
    }

    fn take_out(&mut self, at: u32) {
        let Some((newer, older)) = self.rows.get(at as usize).map(|place| (place.newer, place.older)) else { return };
        match self.rows.get_mut(newer as usize) {
            Some(place) => place.older = older,
            None => self.newest = older,
        }
        match self.rows.get_mut(older as usize) {
            Some(place) => place.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn put_first(&mut self, at: u32) {
        let second = self.newest;
        if let Some(place) = self.rows.get_mut(at as usize) {
            (place.newer, place.older) = (NONE, second);
        }
        match self.rows.get_mut(second as usize) {
            Some(place) => place.newer = at,
            None => self.oldest = at,
        }
        self.newest = at;
    }
}
