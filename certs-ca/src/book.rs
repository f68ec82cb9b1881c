//! The book of issued leaves: what `get certs` shows, and by what a leaf that asks for the next one is known. Bounded, per instance and
//! in all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::held::Held;
use crate::policy::EXPIRED_GRACE;

/// Most leaves kept in the book: two each for the proxies that a control plane serves and for their applications. Beyond it the one that
/// ends first is forgotten (it stays valid, and is in the audit log).
pub const ENTRIES_MAX: usize = 40_000;
/// Most leaves kept of one instance, and as many of its application. Beyond it the oldest is forgotten: no instance drives out another.
pub const OF_INSTANCE_MAX: usize = 8;
/// Leaves that ended too long ago to be renewed go with the next one, at most so many at a time: a clock that is wrong for a moment
/// forgets little.
pub const ENDED_MAX: usize = 4;

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
    /// Lower-case hex SHA-256 of the leaf; empty in rows of older versions.
    #[serde(default)]
    pub leaf_sha256: String,
    /// Counts up from leaf to leaf, whatever the clock says: the highest is the newest. 0 in rows of older versions.
    #[serde(default)]
    pub number: u64,
    /// Unique id of the pod that it was issued to; empty where a token of another kind spoke for it.
    #[serde(default)]
    pub pod_uid: String,
}

impl IssuedLeaf {
    /// Orders leaves by when they were issued. Their dates do not: two may be of one second, and clocks are set back.
    fn age(&self) -> (u64, i64) {
        (self.number, self.not_before)
    }

    /// Whether this row is about that very certificate. A serial number alone would not do: whoever has stolen a key may sign another
    /// certificate with the same.
    fn is(&self, held: &Held) -> bool {
        if self.leaf_sha256.is_empty() {
            let dates = (self.not_before, self.not_after) == (held.not_before.unix_timestamp(), held.not_after.unix_timestamp());
            return dates && self.identity == held.identity.as_str() && self.workload == held.workload;
        }
        self.leaf_sha256 == held.sha256
    }

    fn holder(&self) -> Holder {
        (self.namespace.clone(), self.workload.clone(), self.instance.clone(), self.for_application)
    }
}

/// Namespace, workload, instance; whether its application.
type Holder = (String, String, String, bool);

/// Leaves by serial.
#[derive(Clone, Debug, Default)]
pub struct Register {
    entries: BTreeMap<String, IssuedLeaf>,
    /// Serials by end.
    ends: BTreeSet<(i64, String)>,
    /// Serials by holder, the oldest first.
    holders: BTreeMap<Holder, VecDeque<String>>,
    /// Serials whose rows are on no disk yet.
    unwritten: BTreeSet<String>,
    /// The highest number given.
    last: u64,
}

impl Register {
    /// Takes up what was kept; returns the serials that had to go, because there are too many.
    pub fn restore(mut entries: Vec<IssuedLeaf>) -> (Self, Vec<String>) {
        entries.sort_by_key(IssuedLeaf::age);
        let mut book = Self::default();
        let gone = entries.into_iter().flat_map(|entry| book.insert(entry)).collect();
        (book, gone)
    }

    /// The number of the next leaf.
    pub fn next_number(&self) -> u64 {
        self.last + 1
    }

    /// Below which root each unexpired leaf is, by serial number.
    pub fn roots(&self, now: i64) -> BTreeMap<String, String> {
        let unexpired = self.entries.values().filter(|entry| entry.not_after > now);
        unexpired.map(|entry| (entry.serial.clone(), entry.root.clone())).collect()
    }

    /// Adds a leaf; returns the serials that had to go (ended too long ago at `now`, or too many).
    pub fn add(&mut self, entry: IssuedLeaf, now: i64) -> Vec<String> {
        self.unwritten.insert(entry.serial.clone());
        let mut gone = self.insert(entry);
        let grace = i64::try_from(EXPIRED_GRACE.as_secs()).unwrap_or(i64::MAX);
        for _ in 0..ENDED_MAX {
            let Some((_, serial)) = self.ends.first().filter(|(end, _)| end.saturating_add(grace) <= now).cloned() else { break };
            self.remove(&serial);
            gone.push(serial);
        }
        gone
    }

    fn insert(&mut self, entry: IssuedLeaf) -> Vec<String> {
        let (serial, holder) = (entry.serial.clone(), entry.holder());
        self.last = self.last.max(entry.number);
        self.ends.insert((entry.not_after, serial.clone()));
        self.entries.insert(serial.clone(), entry);
        let own = self.holders.entry(holder).or_default();
        own.push_back(serial);
        let mut gone = Vec::new();
        if own.len() > OF_INSTANCE_MAX {
            gone.extend(own.front().cloned());
        } else if self.entries.len() > ENTRIES_MAX {
            gone.extend(self.ends.first().map(|(_, serial)| serial.clone()));
        }
        gone.iter().for_each(|serial| self.remove(serial));
        gone
    }

    fn remove(&mut self, serial: &str) {
        let Some(entry) = self.entries.remove(serial) else { return };
        self.unwritten.remove(serial);
        self.ends.remove(&(entry.not_after, entry.serial.clone()));
        let holder = entry.holder();
        if let Some(own) = self.holders.get_mut(&holder) {
            own.retain(|other| other != serial);
            if own.is_empty() {
                self.holders.remove(&holder);
            }
        }
    }

    /// Rows to be written now, which then count as written: those of leaves that no disk took before, too.
    pub fn to_write(&mut self) -> Vec<IssuedLeaf> {
        std::mem::take(&mut self.unwritten).iter().filter_map(|serial| self.entries.get(serial)).cloned().collect()
    }

    /// No disk took these.
    pub fn not_written(&mut self, rows: &[IssuedLeaf]) {
        self.unwritten.extend(rows.iter().map(|row| &row.serial).filter(|serial| self.entries.contains_key(*serial)).cloned());
    }

    /// The row of that leaf.
    pub fn find(&self, held: &Held) -> Option<&IssuedLeaf> {
        self.entries.get(&held.serial).filter(|entry| entry.is(held))
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
            leaf_sha256: String::new(),
            number: 0,
            pod_uid: String::new(),
        }
    }

    const GRACE: i64 = 24 * 3600;

    #[test]
    fn the_newest_leaf_of_each_instance_is_shown_and_the_ended_go() {
        // Aim: rotation replaces what `get certs` shows; a row stays as long as its leaf may be renewed, then it leaves the book.
        let mut book = Register::default();
        assert!(book.add(entry(1, "a", 0, 10), 5).is_empty());
        book.add(entry(2, "a", 5, 15), 5);
        book.add(entry(3, "b", 5, 15), 5);
        assert_eq!(book.current(6).iter().map(|e| e.serial.as_str()).collect::<Vec<_>>(), ["00000002", "00000003"]);
        assert!(book.add(entry(4, "b", 9, 19), 9 + GRACE).is_empty());
        assert_eq!(book.add(entry(5, "b", 9, 19), 11 + GRACE), ["00000001"]);
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
        // Aim: the bound holds while nothing ends, and the one that ends first goes.
        let mut book = Register::default();
        for serial in 0..ENTRIES_MAX + 3 {
            book.add(entry(serial, &format!("i-{serial}"), 0, 100 + i64::try_from(serial).unwrap()), 5);
        }
        assert_eq!((book.entries.len(), book.ends.len(), book.holders.len()), (ENTRIES_MAX, ENTRIES_MAX, ENTRIES_MAX));
        assert!(!book.entries.contains_key("00000002") && book.entries.contains_key("00000003"));
    }

    #[test]
    fn no_instance_drives_out_another() {
        // Aim: of one instance the newest few are kept, whatever their ends; the others' are as they were, and the application's too.
        let mut book = Register::default();
        book.add(entry(1, "b", 0, 10), 5);
        book.add(IssuedLeaf { for_application: true, ..entry(2, "a", 0, 10) }, 5);
        let gone: Vec<_> = (10..100).flat_map(|serial| book.add(entry(serial, "a", 0, 1000), 5)).collect();
        assert_eq!(gone.len(), 90 - OF_INSTANCE_MAX);
        assert_eq!((gone[0].as_str(), book.entries.len()), ("00000010", OF_INSTANCE_MAX + 2));
        assert!(book.entries.contains_key("00000001") && book.entries.contains_key("00000002"));
    }

    #[test]
    fn a_clock_that_is_wrong_for_a_moment_forgets_little() {
        // Aim: one leaf at a time that is years ahead takes a few rows with it; a start under that clock takes none.
        let mut book = Register::default();
        for serial in 0..1000 {
            book.add(entry(serial, &format!("i-{serial}"), 0, 100), 5);
        }
        assert_eq!(book.add(entry(1000, "a", 0, i64::MAX), 1 << 40).len(), ENDED_MAX);
        let (restored, gone) = Register::restore(book.entries.values().cloned().collect());
        assert_eq!((restored.entries.len(), gone.len()), (1001 - ENDED_MAX, 0));
    }

    #[test]
    fn what_no_disk_took_is_written_with_the_next() {
        // Aim: rows that failed are handed out again, unless they left the book meanwhile.
        let mut book = Register::default();
        book.add(entry(1, "a", 0, 10), 5);
        let rows = book.to_write();
        assert_eq!((rows.len(), book.to_write().len()), (1, 0));
        book.not_written(&rows);
        book.add(entry(2, "b", 0, 10), 5);
        assert_eq!(book.to_write().len(), 2);
        book.remove("00000001");
        book.not_written(&rows);
        assert!(book.to_write().is_empty());
    }
}
