//! The book of issued leaves, for `get certs`. Bounded: the expired go first, then the oldest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
}

/// Leaves by serial.
#[derive(Clone, Debug, Default)]
pub struct Register {
    entries: BTreeMap<String, IssuedLeaf>,
}

impl Register {
    /// Adds a leaf; returns the serials that had to go (expired at `now`, or too many).
    pub fn add(&mut self, entry: IssuedLeaf, now: i64) -> Vec<String> {
        self.entries.insert(entry.serial.clone(), entry);
        let mut gone: Vec<_> = self.entries.values().filter(|entry| entry.not_after <= now).map(|entry| entry.serial.clone()).collect();
        if self.entries.len() - gone.len() > ENTRIES_MAX {
            let earliest = self.entries.values().filter(|entry| entry.not_after > now).min_by_key(|entry| entry.not_after);
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
            if entry.not_before > held.not_before {
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
        assert_eq!(book.add(entry(4, "b", 9, 19), 11), ["00000001"]);
        assert!(book.current(20).is_empty());
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
