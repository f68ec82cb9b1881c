//! A hash for keys that are digests or short: a fifth of what the library's takes.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Hashes keys that are digests: nobody outside knows the seed, so nobody can choose keys that fall together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seeded(u64);

/// One key's hash.
#[derive(Debug)]
pub(crate) struct SeededHash(u64);

impl Seeded {
    /// With a seed by chance.
    pub(crate) fn new() -> Self {
        Self(RandomState::new().hash_one(0))
    }
}

impl Default for Seeded {
    fn default() -> Self {
        Self::new()
    }
}

impl BuildHasher for Seeded {
    type Hasher = SeededHash;

    fn build_hasher(&self) -> SeededHash {
        SeededHash(self.0)
    }
}

impl Hasher for SeededHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }
}
