//! What is known of the objects behind one watch, as changes of the world. Pure: events in, [`Change`]s out.
//!
//! A new list is compared with what is known, and only the difference is told: what is the same says nothing, and what is gone goes at the
//! list's end, so that the world never sees an empty list that is about to be filled.

use std::collections::{BTreeMap, BTreeSet};

use crate::world::{Candidate, Change, Kind, ObjectKey, Origin};

/// Which objects a watch is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Watchable {
    /// All of a kind.
    All(Kind),
    /// One object that others refer to.
    One(ObjectKey),
}

impl Watchable {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::All(kind) => *kind,
            Self::One(key) => key.kind,
        }
    }
}

impl std::fmt::Display for Watchable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All(kind) => f.write_str(super::table::plural(*kind)),
            Self::One(key) => write!(f, "{key}"),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Listing {
    subject: Watchable,
    /// Digest of each object's last version, good or refused.
    known: BTreeMap<ObjectKey, String>,
    /// What the list that is being read has had so far.
    found: Option<BTreeSet<ObjectKey>>,
}

impl Listing {
    pub(super) fn new(subject: Watchable) -> Self {
        Self { subject, known: BTreeMap::new(), found: None }
    }

    /// Objects known now.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether a list is being read.
    pub(super) fn is_open(&self) -> bool {
        self.found.is_some()
    }

    /// A list begins, maybe in place of one that broke off.
    pub(super) fn begin(&mut self) {
        self.found = Some(BTreeSet::new());
    }

    /// An object of the list, or one that changed.
    pub(super) fn put(&mut self, candidate: Candidate, now_ms: i64) -> Option<Change> {
        let key = candidate.key.clone();
        if let Some(found) = &mut self.found {
            found.insert(key.clone());
        }
        if self.known.get(&key) == Some(&candidate.digest) {
            return None;
        }
        self.known.insert(key, candidate.digest.clone());
        Some(Change::Put { origin: Origin::Cluster, candidate, now_ms })
    }

    /// An object is there and cannot be kept; what was known of it stays.
    pub(super) fn unreadable(&mut self, key: ObjectKey) {
        if let (Some(found), true) = (&mut self.found, self.known.contains_key(&key)) {
            found.insert(key);
        }
    }

    /// An object is gone.
    pub(super) fn remove(&mut self, key: ObjectKey) -> Option<Change> {
        self.known.remove(&key)?;
        Some(Change::Remove { origin: Origin::Cluster, key })
    }

    /// The list has been read to its end.
    pub(super) fn end(&mut self) -> Option<Change> {
        let found = self.found.take()?;
        let before = self.known.len();
        self.known.retain(|key, _| found.contains(key));
        let gone = self.known.len() < before;
        gone.then(|| match &self.subject {
            Watchable::All(kind) => Change::Relisted { origin: Origin::Cluster, kind: *kind, keys: found },
            Watchable::One(key) => Change::Remove { origin: Origin::Cluster, key: key.clone() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parse;

    fn account(name: &str, label: &str) -> Candidate {
        let text = format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: a, labels: {{v: {label}}}}}\n");
        parse("", &text).candidates.remove(0)
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new(Kind::ServiceAccount, "a", name)
    }

    fn told(change: Option<Change>) -> String {
        match change {
            None => "nothing".to_owned(),
            Some(Change::Put { candidate, .. }) => format!("put {}", candidate.key.name),
            Some(Change::Remove { key, .. }) => format!("remove {}", key.name),
            Some(Change::Relisted { keys, .. }) => {
                keys.iter().map(|key| format!(" {}", key.name)).fold("only".to_owned(), |all, one| all + &one)
            }
            Some(other) => format!("{other:?}"),
        }
    }

    #[test]
    fn a_new_list_tells_the_difference() {
        // Aim: what is the same is not told again, what is gone is told once at the end, a list that breaks off and begins anew removes
        // nothing, and what cannot be read any more keeps its last version.
        let mut listing = Listing::new(Watchable::All(Kind::ServiceAccount));
        listing.begin();
        assert_eq!(told(listing.put(account("x", "one"), 1)), "put x");
        assert_eq!(told(listing.put(account("y", "one"), 1)), "put y");
        assert_eq!((told(listing.end()), listing.len()), ("nothing".to_owned(), 2));
        assert_eq!(told(listing.put(account("x", "one"), 2)), "nothing");
        assert_eq!(told(listing.put(account("x", "two"), 2)), "put x");
        assert_eq!((told(listing.remove(key("z"))), told(listing.remove(key("y")))), ("nothing".to_owned(), "remove y".to_owned()));
        listing.begin();
        assert!(listing.is_open());
        listing.begin();
        assert_eq!(told(listing.put(account("w", "one"), 3)), "put w");
        listing.unreadable(key("x"));
        assert_eq!(told(listing.end()), "nothing");
        listing.begin();
        listing.put(account("w", "one"), 3);
        listing.unreadable(key("never"));
        assert_eq!(told(listing.end()), "only w");
        assert_eq!(told(listing.end()), "nothing", "no list is open");
    }

    #[test]
    fn one_object_goes_alone() {
        // Aim: where one object is watched, its absence takes nothing else of its kind away.
        let mut listing = Listing::new(Watchable::One(key("x")));
        listing.begin();
        listing.put(account("x", "one"), 1);
        listing.end();
        listing.begin();
        assert_eq!(told(listing.end()), "remove x");
    }
}
