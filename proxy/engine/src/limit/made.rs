//! Keys of limits that a worker has made before: most callers come again, and to find a key here takes a tenth of what its digest does.

use std::cell::RefCell;

use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Places; a text can stand in one of them only, and the last one that was made does.
const PLACES: usize = 256;
/// Longest text that is remembered, in bytes.
const TEXT_BYTES_MAX: usize = 96;

/// A text, and its key.
type MadeKey = (SmallVec<[u8; TEXT_BYTES_MAX]>, u128);

/// Digests by what they are of. Nothing secret is remembered: keys are told apart by what callers are, not by their credentials.
#[derive(Debug)]
pub(crate) struct MadeKeys {
    /// Nobody outside knows it, so nobody can choose texts that push others out.
    seed: u64,
    places: RefCell<Vec<Option<MadeKey>>>,
}

impl MadeKeys {
    /// Nothing yet.
    pub(crate) const fn new(seed: u64) -> Self {
        Self { seed, places: RefCell::new(Vec::new()) }
    }

    /// The key of a text: `make` makes it where it is not remembered.
    pub(crate) fn key(&self, text: &[u8], make: impl FnOnce(&[u8]) -> u128) -> u128 {
        if text.len() > TEXT_BYTES_MAX {
            return make(text);
        }
        // Nothing below comes back here, so it is never borrowed twice; if it were, the key would only be made again.
        let Ok(mut places) = self.places.try_borrow_mut() else { return make(text) };
        if places.is_empty() {
            places.resize_with(PLACES, Default::default);
        }
        let at = xxh3_64_with_seed(text, self.seed) as usize % PLACES;
        let Some(place) = places.get_mut(at) else { return make(text) };
        match place {
            Some((known, key)) if known.as_slice() == text => *key,
            _ => place.insert((SmallVec::from_slice(text), make(text))).1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_never_another_texts() {
        // Aim: what comes again is found, what shares its place is not taken for it, and long texts are made each time.
        let (made, count) = (MadeKeys::new(7), Cell::new(0));
        let key = |text: &[u8]| {
            made.key(text, |text| {
                count.set(count.get() + 1);
                text.iter().fold(1_u128, |sum, byte| sum.wrapping_mul(251).wrapping_add((*byte).into()))
            })
        };
        let all: Vec<[u8; 2]> = (0..2000_u16).map(u16::to_be_bytes).collect();
        for text in &all {
            assert_eq!(key(text), (251 + u128::from(text[0])) * 251 + u128::from(text[1]));
        }
        let last = all.last().unwrap();
        let before = count.get();
        assert_eq!((key(last), count.get()), (key(last), before));
        let long = [1; TEXT_BYTES_MAX + 1];
        let _ = (key(&long), key(&long));
        assert_eq!(count.get(), before + 2);
    }
}
