//! The book of issued leaves, for `get certs`. Bounded: what ended first goes first.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::policy::EXPIRED_GRACE;

/// Most leaves kept in the book. Beyond it the one that ends first is forgotten (it stays valid).
pub const ENTRIES_MAX: usize = 10_000;

/// One issued leaf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedLeaf {
    /// Lower-case hex.
    pub serial: String,
    /// SPIFFE URI.
    pub identity: String,
    /// Namespace of the workload.
    pub namespace: String,
    /// Its name.
    pub workload: String,
    /// The instance that asked.
    pub instance: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    /// Subject of the issuing certificate.
    pub issuer: String,
    /// For the application beside the proxy, which has a key of its own.
    #[serde(default)]
    pub for_application: bool,
    /// Lower-case hex SHA-256 of the root it was issued below; empty in rows of older versions.
    #[serde(default)]
    pub root: String,
    /// Counts leaves in the order in which they were issued, which dates do not say where a clock was set back; 0 in rows of older versions.
    #[serde(default)]
    pub number: u64,
}

/// Leaves by serial.
#[derive(Clone, Debug, Default)]
pub struct Register {
    entries: BTreeMap<String, IssuedLeaf>,
    last: u64,
}

impl Register {
    /// The number of the next leaf.
    pub fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Adds a leaf; returns the serials that had to go: ended a day before `now`, so that a clock that was ahead takes nothing away, or
    /// too many.
    pub fn add(&mut self, entry: IssuedLeaf, now: i64) -> Vec<String> {
        self.last = self.last.max(entry.number);
        self.entries.insert(entry.serial.clone(), entry);
        let ended = now - i64::try_from(EXPIRED_GRACE.as_secs()).unwrap_or(0);
        let mut gone: Vec<_> = self.entries.values().filter(|entry| entry.not_after <= ended).map(|entry| entry.serial.clone()).collect();
        if self.entries.len() - gone.len() > ENTRIES_MAX {
            let earliest = self.entries.values().filter(|entry| entry.not_after > ended).min_by_key(|entry| entry.not_after);
            gone.extend(earliest.map(|entry| entry.serial.clone()));
        }
        for serial in &gone {
            self.entries.remove(serial);
        }
        gone
    }

    /// When the last leaf that is not below this root ends; `None`: there is none in the book.
    pub fn last_end_but(&self, root: &str) -> Option<i64> {
        self.entries.values().filter(|entry| entry.root != root).map(|entry| entry.not_after).max()
    }

    /// The newest unexpired leaf of each instance, ordered by namespace, workload, instance; its application's after it.
    pub fn current(&self, now: i64) -> Vec<IssuedLeaf> {
        let mut newest: BTreeMap<(&str, &str, &str, bool), &IssuedLeaf> = BTreeMap::new();
        for entry in self.entries.values().filter(|entry| entry.not_after > now) {
            let key = (entry.namespace.as_str(), entry.workload.as_str(), entry.instance.as_str(), entry.for_application);
            let held = newest.entry(key).or_insert(entry);
            if (entry.number, entry.not_before) > (held.number, held.not_before) {
                *held = entry;
            }
        }
        newest.into_values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(serial: usize, instance: &str, not_before: i64, not_after: i64) -> IssuedLeaf {
        IssuedLeaf {
            serial: format!("{serial:08}"),
            identity: "spiffe://cluster.local/ns/shop/sa/catalog".into(),
            namespace: "shop".into(),
            workload: "catalog".into(),
            instance: instance.into(),
            not_before,
            not_after,
            issuer: String::new(),
            for_application: false,
            root: String::new(),
            number: 0,
        }
    }

    #[test]
    fn the_newest_leaf_of_each_instance_is_shown_and_the_expired_go() {
        // Aim: rotation replaces what `get certs` shows, and expired rows leave the book.
        let mut book = Register::default();
        assert!(book.add(entry(1, "a", 0, 10), 5).is_empty());
        book.add(entry(2, "a", 5, 15), 5);
        book.add(entry(3, "b", 5, 15), 5);
        assert_eq!(book.current(6).iter().map(|e| e.serial.as_str()).collect::<Vec<_>>(), ["00000002", "00000003"]);
        let day = 24 * 3600;
        assert_eq!(book.add(entry(4, "b", 9, 19), 11 + day), ["00000001"]);
        assert!(book.current(20).is_empty());
    }

    #[test]
    fn a_clock_that_was_ahead_hides_no_leaf() {
        // Aim: the leaf issued last is the newest though it begins before one that was issued while the clock was ahead; what had ended by
        // that clock is there when it is right again.
        let mut book = Register::default();
        let numbered = |book: &mut Register, entry| IssuedLeaf { number: book.next_number(), ..entry };
        for (serial, begin, now) in [(1, 100, 100), (2, 9000, 9000), (3, 200, 200)] {
            let entry = numbered(&mut book, entry(serial, "a", begin, begin + 3600));
            assert!(book.add(entry, now).is_empty());
        }
        assert_eq!(book.current(300).iter().map(|entry| entry.serial.as_str()).collect::<Vec<_>>(), ["00000003"]);
        let read: Vec<_> = book.entries.values().cloned().collect();
        let mut again = Register::default();
        read.into_iter().for_each(|entry| assert!(again.add(entry, 300).is_empty()));
        assert_eq!((again.current(300), again.next_number()), (book.current(300), 4));
    }

    #[test]
    fn the_book_is_bounded() {
        // Aim: the bound holds while nothing expires, and the one that ends first goes.
        let mut book = Register::default();
        for serial in 0..ENTRIES_MAX + 3 {
            book.add(entry(serial, "a", 0, 100 + i64::try_from(serial).unwrap()), 5);
        }
        assert_eq!(book.entries.len(), ENTRIES_MAX);
        assert!(!book.entries.contains_key("00000002") && book.entries.contains_key("00000003"));
    }
}
