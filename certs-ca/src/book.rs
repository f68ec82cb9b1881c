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
    /// Counts up from leaf to leaf, whatever the clock says: the highest is the newest. 0 in rows of older versions.
    #[serde(default)]
    pub number: u64,
}

impl IssuedLeaf {
    /// Orders leaves by when they were issued. Their dates do not: two may be of one second, and clocks are set back.
    fn age(&self) -> (u64, i64) {
        (self.number, self.not_before)
    }
}

/// Leaves by serial.
#[derive(Clone, Debug, Default)]
pub struct Register {
    entries: BTreeMap<String, IssuedLeaf>,
    /// The highest number given.
    last: u64,
}

impl Register {
    /// The number of the next leaf.
    pub fn next_number(&self) -> u64 {
        self.last + 1
    }

    /// Below which root each unexpired leaf is, by serial number.
    pub fn roots(&self, now: i64) -> BTreeMap<String, String> {
        let unexpired = self.entries.values().filter(|entry| entry.not_after > now);
        unexpired.map(|entry| (entry.serial.clone(), entry.root.clone())).collect()
    }

    /// Adds a leaf; returns the serials that had to go (expired at `now`, or too many).
    pub fn add(&mut self, entry: IssuedLeaf, now: i64) -> Vec<String> {
        self.last = self.last.max(entry.number);
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
            if entry.age() > held.age() {
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
        assert_eq!(book.add(entry(4, "b", 9, 19), 11), ["00000001"]);
        assert!(book.current(20).is_empty());
    }

    #[test]
    fn the_newest_leaf_is_the_one_issued_last() {
        // Aim: neither two leaves of one second nor a clock that was set back hide the leaf in use; the root of each one is known, and
        // rows of older versions come before all others.
        let mut book = Register::default();
        let roots = [("a", 9, 0), ("b", 3, 100), ("c", 2, 100), ("d", 1, 40)];
        for (root, serial, not_before) in roots {
            let number = if root == "a" { 0 } else { book.next_number() };
            book.add(IssuedLeaf { number, root: root.into(), ..entry(serial, "x", not_before, 1000) }, 50);
            assert_eq!(book.current(60)[0].root, root);
        }
        assert_eq!(book.roots(60).len(), 4);
        assert_eq!(book.roots(60)["00000003"], "b");
        assert!(book.roots(1000).is_empty());
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
