//! An ordered map whose clones share everything but what one of them changes later: a change copies one piece of the map, not the map.
//! So each [`super::World`] has an index of its own, and keeps little more than what sets it apart.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Index;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Entries of a piece at most; one that grows beyond it is halved.
const PIECE_MAX: usize = 64;

/// Entries in the order of their keys.
type Piece<K, V> = Arc<Vec<(K, Arc<V>)>>;

/// A key, and its value before and after.
pub type Apart<'a, K, V> = (&'a K, Option<&'a V>, Option<&'a V>);

/// See the module.
pub struct Sorted<K, V> {
    /// None is empty.
    pieces: Arc<Vec<Piece<K, V>>>,
    len: usize,
}

impl<K, V> Clone for Sorted<K, V> {
    fn clone(&self) -> Self {
        Self { pieces: Arc::clone(&self.pieces), len: self.len }
    }
}

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Self { pieces: Arc::default(), len: 0 }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Sorted<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.pieces.iter().flat_map(|piece| piece.iter()).map(|(key, value)| (key, value))).finish()
    }
}

impl<K: Ord, V> Sorted<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether nothing was changed since one of them was the clone of the other.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pieces, &other.pieces)
    }

    /// The piece where a key is, or would be.
    fn piece<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        let after = self.pieces.partition_point(|piece| piece.first().is_some_and(|(first, _)| first.borrow() <= key));
        after.saturating_sub(1)
    }

    /// The value of a key, to be shared.
    pub fn shared<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&Arc<V>>
    where
        K: Borrow<Q>,
    {
        let piece = self.pieces.get(self.piece(key))?;
        piece.binary_search_by(|(known, _)| known.borrow().cmp(key)).ok().map(|at| &piece[at].1)
    }

    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.shared(key).map(Arc::as_ref)
    }

    /// Whether it has that key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.shared(key).is_some()
    }

    /// Every entry, in the order of keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> + Clone {
        self.pieces.iter().flat_map(|piece| piece.iter()).map(|(key, value)| (key, value.as_ref()))
    }

    /// Every key, in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// Every value, in the order of keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// The entries from that key on.
    pub fn from<'a>(&'a self, key: &K) -> impl Iterator<Item = (&'a K, &'a V)> + Clone + use<'a, K, V> {
        let first = self.piece(key);
        let skipped = self.pieces.get(first).map_or(0, |piece| piece.partition_point(|(known, _)| known < key));
        let entries = self.pieces.iter().skip(first).flat_map(|piece| piece.iter()).skip(skipped);
        entries.map(|(key, value)| (key, value.as_ref()))
    }
}

impl<K: Ord + Clone, V> Sorted<K, V> {
    /// Sets the value of a key.
    pub fn insert(&mut self, key: K, value: V) {
        self.share(key, Arc::new(value));
    }

    /// Sets the value of a key to one that others have, too.
    pub fn share(&mut self, key: K, value: Arc<V>) {
        let at = self.piece(&key);
        let pieces = Arc::make_mut(&mut self.pieces);
        let Some(piece) = pieces.get_mut(at) else {
            pieces.push(Arc::new(vec![(key, value)]));
            self.len += 1;
            return;
        };
        let entries = Arc::make_mut(piece);
        match entries.binary_search_by(|(known, _)| known.cmp(&key)) {
            Ok(place) => entries[place].1 = value,
            Err(place) => {
                entries.insert(place, (key, value));
                self.len += 1;
                if entries.len() > PIECE_MAX {
                    let rest = entries.split_off(PIECE_MAX / 2);
                    pieces.insert(at + 1, Arc::new(rest));
                }
            }
        }
    }

    /// Takes a key out. What stays is joined where two neighbours fit well into one piece.
    pub fn remove(&mut self, key: &K) {
        if !self.contains_key(key) {
            return;
        }
        let at = self.piece(key);
        let pieces = Arc::make_mut(&mut self.pieces);
        let entries = Arc::make_mut(&mut pieces[at]);
        entries.retain(|(known, _)| known != key);
        let left = entries.len();
        self.len -= 1;
        if left == 0 {
            pieces.remove(at);
        } else if let Some(next) = pieces.get(at + 1).filter(|next| left + next.len() <= PIECE_MAX / 2) {
            let next = Arc::clone(next);
            Arc::make_mut(&mut pieces[at]).extend(next.iter().cloned());
            pieces.remove(at + 1);
        }
    }

    /// Changes the value of a key; it is a default one where there was none, and one that is left a default is taken out.
    pub fn edit(&mut self, key: &K, edit: impl FnOnce(&mut V))
    where
        V: Clone + Default + PartialEq,
    {
        let mut value = self.get(key).cloned().unwrap_or_default();
        edit(&mut value);
        if value == V::default() {
            self.remove(key);
        } else if self.get(key) != Some(&value) {
            self.insert(key.clone(), value);
        }
    }

    /// Keys whose values differ, with the value before (here) and after. What both share is not looked at.
    pub fn changes<'a>(&'a self, after: &'a Self) -> Vec<Apart<'a, K, V>>
    where
        V: PartialEq,
    {
        let mut changes = self.apart(after);
        changes.retain(|(_, was, is)| was != is);
        changes
    }

    /// The same of values that are not the very same one, equal or not.
    pub fn apart<'a>(&'a self, after: &'a Self) -> Vec<Apart<'a, K, V>> {
        let (mut before, mut after) = (self.unlike(after).peekable(), after.unlike(self).peekable());
        let mut changes = Vec::new();
        loop {
            let order = match (before.peek(), after.peek()) {
                (Some((a, _)), Some((b, _))) => a.cmp(b),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (None, None) => return changes,
            };
            let was = if order.is_le() { before.next() } else { None };
            let is = if order.is_ge() { after.next() } else { None };
            let same = was.zip(is).is_some_and(|((_, was), (_, is))| Arc::ptr_eq(was, is));
            if let Some((key, _)) = was.or(is).filter(|_| !same) {
                changes.push((key, was.map(|(_, value)| value.as_ref()), is.map(|(_, value)| value.as_ref())));
            }
        }
    }

    /// The entries of pieces that the other one does not have.
    fn unlike<'a>(&'a self, other: &Self) -> impl Iterator<Item = (&'a K, &'a Arc<V>)> + use<'a, K, V> {
        // After few changes nearly all pieces are the same from either end.
        let same = |(one, two): &(&Piece<K, V>, &Piece<K, V>)| Arc::ptr_eq(one, two);
        let first = self.pieces.iter().zip(other.pieces.iter()).take_while(same).count();
        let (own, others) = (&self.pieces[first..], &other.pieces[first..]);
        let last = own.iter().rev().zip(others.iter().rev()).take_while(same).count();
        let (own, others) = (&own[..own.len() - last], &others[..others.len() - last]);
        let known: BTreeSet<*const Vec<(K, Arc<V>)>> = others.iter().map(Arc::as_ptr).collect();
        let own = own.iter().filter(move |piece| !known.contains(&Arc::as_ptr(piece)));
        own.flat_map(|piece| piece.iter()).map(|(key, value)| (key, value))
    }
}

impl<K: Ord + Clone, V> FromIterator<(K, V)> for Sorted<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut sorted = Self::default();
        entries.into_iter().for_each(|(key, value)| sorted.insert(key, value));
        sorted
    }
}

impl<K: Ord, V: PartialEq> PartialEq for Sorted<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || self.iter().eq(other.iter())
    }
}

impl<K: Ord, V: Eq> Eq for Sorted<K, V> {}

/// As the library's map.
impl<K: Ord + Serialize, V: Serialize> Serialize for Sorted<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, K: Ord + Clone + Deserialize<'de>, V: Deserialize<'de>> Deserialize<'de> for Sorted<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::deserialize(deserializer)?.into_iter().collect())
    }
}

impl<K: Ord, V> Index<&K> for Sorted<K, V> {
    type Output = V;

    /// # Panics
    /// There is no such key, as with the library's maps.
    fn index(&self, key: &K) -> &V {
        match self.get(key) {
            Some(value) => value,
            None => panic!("no such key"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_map_whose_clones_live_on() {
        // Aim: whatever is put in and taken out in whatever order, it holds what the library's map holds, former clones hold what they held,
        // and the changes between two of them are just those keys whose values differ.
        let mut seed = 7_u64;
        let mut draw = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let (mut sorted, mut plain) = (Sorted::<u64, u64>::default(), BTreeMap::new());
        let mut former = vec![(sorted.clone(), plain.clone())];
        for round in 0..4_000_u64 {
            // It grows, and shrinks again.
            let (key, grows) = (draw(600), draw(10) < if round < 2_000 { 8 } else { 2 });
            if grows {
                let value = draw(3);
                sorted.edit(&key, |entry| *entry = value + 1);
                plain.insert(key, value + 1);
            } else {
                sorted.edit(&key, |entry| *entry = 0);
                plain.remove(&key);
            }
            if round % 97 == 0 {
                former.push((sorted.clone(), plain.clone()));
            }
        }
        for (sorted, plain) in &former {
            assert!(sorted.iter().eq(plain.iter()) && sorted.len() == plain.len());
            assert!(sorted.pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= PIECE_MAX));
            for key in [0, 17, 300, 599] {
                assert_eq!(sorted.get(&key), plain.get(&key));
                assert!(sorted.from(&key).eq(plain.range(key..)));
            }
        }
        for pair in former.windows(2) {
            let keys = pair[0].1.keys().chain(pair[1].1.keys()).collect::<BTreeSet<_>>();
            let all = keys.into_iter().map(|key| (key, pair[0].1.get(key), pair[1].1.get(key)));
            let differ: Vec<_> = all.filter(|(_, was, is)| was != is).collect();
            assert_eq!(pair[0].0.changes(&pair[1].0), differ);
        }
        assert_eq!(format!("{:?}", Sorted::from_iter([(2, 'b'), (1, 'a')])), "{1: 'a', 2: 'b'}");
    }

    #[test]
    fn it_is_written_as_a_map_is() {
        // Aim: what was stored from the library's map reads back, and the other way round; equal content is equal, however it came about.
        let (plain, mut sorted) = (BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]), Sorted::<String, i32>::default());
        for (name, value) in [("c", 3), ("b", 2), ("a", 1)] {
            sorted.insert(name.to_owned(), value);
        }
        sorted.remove(&"c".to_owned());
        let text = serde_json::to_string(&sorted).unwrap();
        assert_eq!(text, serde_json::to_string(&plain).unwrap());
        assert_eq!(serde_json::from_str::<Sorted<String, i32>>(&text).unwrap(), sorted);
        assert!(sorted == plain.into_iter().collect() && !sorted.is_same(&Sorted::default()) && sorted.is_same(&sorted.clone()));
    }

    #[test]
    fn a_change_copies_one_piece() {
        // Aim: of ten thousand entries a clone that differs in one shares all but a piece.
        let first: Sorted<u32, u32> = (0..10_000).map(|number| (number, number)).collect();
        let mut second = first.clone();
        second.insert(5_000, 1);
        assert!(first.unlike(&second).count() <= PIECE_MAX && first.pieces.len() > 100);
        assert_eq!(first.changes(&second), [(&5_000, Some(&5_000), Some(&1))]);
        second.insert(5_001, 5_001);
        assert_eq!((first.changes(&second).len(), first.apart(&second).len()), (1, 2));
    }
}
