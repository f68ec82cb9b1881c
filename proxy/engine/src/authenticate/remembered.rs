//! Tokens that were verified before: a signature costs some hundred times what finding it here does.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::Accepted;
use super::keys::KeySet;
use super::places::RuleBits;
use crate::limit::MadeKeys;

/// Sets of tokens; a token can stand in one of them only.
const SETS: usize = 256;
/// Tokens of one set: beyond that the one that was not used for longest goes.
const WAYS: usize = 4;
/// Bytes of a token that say where it stands.
const PLACED_BY: usize = 16;
/// Bytes of all tokens together; beyond them all are forgotten.
pub const REMEMBERED_BYTES_MAX: usize = 4 << 20;

/// What one worker has verified or made before: a thousand tokens at most, and keys of limits.
#[derive(Debug)]
pub struct Remembered {
    /// Nobody outside knows it, so nobody can choose tokens that push others out.
    seed: u64,
    /// Keys of limits.
    pub(crate) made: MadeKeys,
    sets: Vec<[Option<Box<Entry>>; WAYS]>,
    bytes: usize,
    turn: u64,
}

#[derive(Debug)]
struct Entry {
    rule: RuleBits,
    /// Of the configuration that it was accepted by.
    content: u64,
    keys: Arc<KeySet>,
    accepted: Arc<Accepted>,
    used: u64,
}

impl Entry {
    fn is_of(&self, token: &[u8], content: u64) -> bool {
        self.content == content && *self.accepted.token == *token
    }
}

impl Remembered {
    /// Nothing yet. `seed` is by chance.
    pub const fn new(seed: u64) -> Self {
        Self { seed, made: MadeKeys::new(seed), sets: Vec::new(), bytes: 0, turn: 0 }
    }

    /// How many bytes of tokens are remembered.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// What a token was accepted as, if it still holds: by one of these rules of this configuration, with keys that are still at hand.
    pub(super) fn find(
        &mut self,
        token: &[u8],
        (content, rules): (u64, RuleBits),
        now_secs: u64,
        holds: impl Fn(&Accepted, &Arc<KeySet>) -> bool,
    ) -> Option<&Arc<Accepted>> {
        let place = self.place(token);
        self.turn += 1;
        let set = self.sets.get_mut(place)?;
        let entry = set.iter_mut().flatten().find(|entry| entry.rule & rules != 0 && entry.is_of(token, content))?;
        if now_secs >= entry.accepted.until_secs || !holds(&entry.accepted, &entry.keys) {
            return None;
        }
        entry.used = self.turn;
        Some(&entry.accepted)
    }

    /// Remembers an accepted token.
    pub(super) fn keep(&mut self, (content, rule): (u64, RuleBits), keys: Arc<KeySet>, accepted: Arc<Accepted>) {
        let token = &accepted.token;
        if self.sets.is_empty() || self.bytes + token.len() > REMEMBERED_BYTES_MAX {
            self.sets.clear();
            self.sets.resize_with(SETS, Default::default);
            self.bytes = 0;
        }
        let (place, used) = (self.place(token), self.turn);
        let set = &mut self.sets[place];
        let same = set.iter().position(|way| way.as_ref().is_some_and(|entry| entry.is_of(token, content)));
        let oldest = || (0..WAYS).min_by_key(|way| set[*way].as_ref().map_or(0, |entry| entry.used + 1)).unwrap_or(0);
        let way = same.unwrap_or_else(oldest);
        let bytes = token.len();
        let former = set[way].replace(Box::new(Entry { rule, content, keys, accepted, used }));
        self.bytes = self.bytes + bytes - former.map_or(0, |former| former.accepted.token.len());
    }

    /// By its end, which is the signature's, so that no two good tokens have the same.
    fn place(&self, token: &[u8]) -> usize {
        let end = token.last_chunk::<PLACED_BY>().map_or(token, |end| end.as_slice());
        xxh3_64_with_seed(end, self.seed) as usize % SETS
    }
}
