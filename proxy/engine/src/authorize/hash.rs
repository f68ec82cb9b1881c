//! How texts of rules are hashed. Callers choose what is looked up and never what is kept, so nothing has to be secret here, and a quick hash
//! does: every call is hashed several times.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use xxhash_rust::xxh3::xxh3_64;

/// A map by texts, or by what hashes as texts do.
pub(super) type Map<K, V> = HashMap<K, V, BuildHasherDefault<TextHasher>>;
/// A set of them.
pub(super) type Set<K> = HashSet<K, BuildHasherDefault<TextHasher>>;

/// XXH3 of each piece, folded.
#[derive(Debug, Default)]
pub(super) struct TextHasher(u64);

impl Hasher for TextHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = self.0.rotate_left(1) ^ xxh3_64(bytes);
    }

    /// Ends a text; what its end is, its bytes have said.
    fn write_u8(&mut self, byte: u8) {
        self.0 = self.0.rotate_left(1) ^ u64::from(byte);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
