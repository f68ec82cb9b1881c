//! What says the same is made once and shared.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use xxhash_rust::xxh3::xxh3_128;

use crate::rejected::Wrong;

/// Interned values before those that nobody holds any more are looked for.
const SWEEP_AT_LEAST: usize = 64;

/// Values by the hash of what they were compiled from, for as long as somebody holds them.
#[derive(Debug)]
pub(super) struct Interned<T> {
    held: HashMap<u128, Weak<T>>,
    sweep_at: usize,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self { held: HashMap::new(), sweep_at: SWEEP_AT_LEAST }
    }
}

impl<T> Interned<T> {
    /// The value of this content, which is made where nobody holds it.
    pub(super) fn get(&mut self, content: &[u8], make: impl FnOnce() -> Result<T, Wrong>) -> Result<Arc<T>, Wrong> {
        let key = xxh3_128(content);
        if let Some(held) = self.held.get(&key).and_then(Weak::upgrade) {
            return Ok(held);
        }
        let made = Arc::new(make()?);
        self.held.insert(key, Arc::downgrade(&made));
        if self.held.len() >= self.sweep_at {
            self.held.retain(|_, held| held.strong_count() > 0);
            self.sweep_at = (self.held.len() * 2).max(SWEEP_AT_LEAST);
        }
        Ok(made)
    }
}
