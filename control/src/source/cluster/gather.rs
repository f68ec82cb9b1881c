//! From many watches one stream of changes. Pure: it knows who has not been listed yet, and which Secrets and ConfigMaps the objects refer
//! to, hence whose watches are to begin and to end.

use std::collections::{BTreeMap, BTreeSet};

use super::listing::Watchable;
use super::table::kinds;
use crate::world::problem::{Problem, Severity};
use crate::world::{Change, ObjectKey, Origin, references};

/// Secrets and ConfigMaps watched at most: each is a watch of its own.
pub(super) const REFERENCES_MAX: usize = 256;
/// What problems of references are filed under.
const PLACE: &str = "kubernetes/references";

/// What a watch has to say.
#[derive(Debug)]
pub(super) struct Delivery {
    /// Which watch, by its number: one that has ended may have something on its way.
    pub(super) watch: u64,
    /// What changed.
    pub(super) changes: Vec<Change>,
    /// Whether it has been listed once by now.
    pub(super) listed: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Gathering {
    watches: BTreeMap<u64, Watchable>,
    next: u64,
    /// Who has not been listed yet.
    pending: BTreeSet<Watchable>,
    /// What each object refers to.
    referrers: BTreeMap<ObjectKey, Vec<ObjectKey>>,
    crowded: bool,
    synced: bool,
    changes: Vec<Change>,
}

/// Watches to begin and to end.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Orders {
    pub(super) begin: Vec<(u64, Watchable)>,
    pub(super) end: Vec<u64>,
}

impl Gathering {
    /// Nothing is known yet; the orders are to watch every kind.
    pub(super) fn new() -> (Self, Orders) {
        let mut gathering = Self {
            watches: BTreeMap::new(),
            next: 0,
            pending: BTreeSet::new(),
            referrers: BTreeMap::new(),
            crowded: false,
            synced: false,
            changes: Vec::new(),
        };
        let begin = kinds().map(|kind| gathering.begin(Watchable::All(kind))).collect();
        (gathering, Orders { begin, end: Vec::new() })
    }

    fn begin(&mut self, subject: Watchable) -> (u64, Watchable) {
        self.next += 1;
        self.watches.insert(self.next, subject.clone());
        if !self.synced {
            self.pending.insert(subject.clone());
        }
        (self.next, subject)
    }

    /// Takes in what a watch says.
    pub(super) fn on(&mut self, delivery: Delivery) -> Orders {
        let Some(subject) = self.watches.get(&delivery.watch).cloned() else { return Orders::default() };
        if delivery.listed {
            self.pending.remove(&subject);
        }
        let mut other = false;
        for change in &delivery.changes {
            other |= self.note(change);
        }
        self.changes.extend(delivery.changes);
        let orders = if other { self.follow_references() } else { Orders::default() };
        if !self.synced && self.pending.is_empty() {
            self.synced = true;
            self.changes.push(Change::Synced(Origin::Cluster));
        }
        orders
    }

    /// Whether a change is one of what is referred to.
    fn note(&mut self, change: &Change) -> bool {
        match change {
            Change::Put { candidate, .. } => {
                // A refused version leaves the last good one in force, and what that refers to.
                let Some(object) = &candidate.object else { return false };
                let found = references(object);
                let before = if found.is_empty() {
                    self.referrers.remove(&candidate.key)
                } else {
                    self.referrers.insert(candidate.key.clone(), found.clone())
                };
                before.unwrap_or_default() != found
            }
            Change::Remove { key, .. } => self.referrers.remove(key).is_some(),
            Change::Relisted { kind, keys, .. } => {
                let before = self.referrers.len();
                self.referrers.retain(|key, _| key.kind != *kind || keys.contains(key));
                self.referrers.len() < before
            }
            _ => false,
        }
    }

    fn follow_references(&mut self) -> Orders {
        let all: BTreeSet<&ObjectKey> = self.referrers.values().flatten().collect();
        let crowded = all.len() > REFERENCES_MAX;
        let wanted: BTreeSet<ObjectKey> = all.into_iter().take(REFERENCES_MAX).cloned().collect();
        let mut orders = Orders::default();
        let mut watched = BTreeSet::new();
        for (watch, subject) in &self.watches {
            let Watchable::One(key) = subject else { continue };
            if wanted.contains(key) {
                watched.insert(key.clone());
            } else {
                orders.end.push(*watch);
            }
        }
        for watch in &orders.end {
            let Some(Watchable::One(key)) = self.watches.remove(watch) else { continue };
            self.pending.remove(&Watchable::One(key.clone()));
            self.changes.push(Change::Remove { origin: Origin::Cluster, key });
        }
        orders.begin = wanted.difference(&watched).map(|key| self.begin(Watchable::One(key.clone()))).collect();
        if crowded != self.crowded {
            self.crowded = crowded;
            let message = format!("the objects refer to more than {REFERENCES_MAX} Secrets and ConfigMaps; the rest of them are not read");
            let problem = Problem::of_file(Severity::Error, PLACE, 0, message, "let several objects refer to one");
            self.changes.push(Change::File { file: PLACE.to_owned(), problems: crowded.then_some(problem).into_iter().collect() });
        }
        orders
    }

    /// Changes that nobody has taken yet.
    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    /// Takes them.
    pub(super) fn take(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Whether everything has been listed once.
    pub(super) fn is_synced(&self) -> bool {
        self.synced
    }

    /// Who has not been listed yet.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Watchable> {
        self.pending.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parse;
    use crate::world::Kind;

    /// An EgressPolicy that refers to these ConfigMaps.
    fn policy(roots: &[String]) -> Change {
        let rule = |name: &String| {
            format!(
                "{{hosts: [a.example], ports: [80], tls: {{originate: {{sni: a, caCertificateRefs: [{{kind: ConfigMap, group: '', name: {name}}}]}}}}}}"
            )
        };
        let rules: Vec<_> = roots.iter().map(rule).collect();
        let text = format!(
            "apiVersion: meshwright.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: e, namespace: a}}\nspec: {{allow: [{}]}}\n",
            rules.join(", ")
        );
        let candidate = parse("", &text).candidates.remove(0);
        assert!(candidate.object.is_some(), "{:?}", candidate.problems);
        Change::Put { origin: Origin::Cluster, candidate, now_ms: 0 }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn listed(watch: u64, changes: Vec<Change>) -> Delivery {
        Delivery { watch, changes, listed: true }
    }

    fn begun(orders: &Orders) -> Vec<String> {
        orders.begin.iter().map(|(_, subject)| subject.to_string()).collect()
    }

    fn words(changes: &[Change]) -> Vec<String> {
        let word = |change: &Change| match change {
            Change::Put { candidate, .. } => format!("put {}", candidate.key),
            Change::Remove { key, .. } => format!("remove {key}"),
            Change::Synced(_) => "synced".to_owned(),
            Change::File { problems, .. } => format!("{} problems", problems.len()),
            other => format!("{other:?}"),
        };
        changes.iter().map(word).collect()
    }

    #[test]
    fn it_is_synced_once_everything_has_been_listed() {
        // Aim: also what the listed objects refer to is read before anybody hears that the cluster has been read; and once only.
        let (mut gathering, orders) = Gathering::new();
        let egress = orders.begin.iter().find(|(_, subject)| *subject == Watchable::All(Kind::EgressPolicy)).unwrap().0;
        for (watch, _) in orders.begin.iter().filter(|(watch, _)| *watch != egress) {
            assert_eq!(gathering.on(listed(*watch, vec![])), Orders::default());
        }
        assert_eq!(gathering.waiting().map(ToString::to_string).collect::<Vec<_>>(), ["egresspolicies"]);
        let orders = gathering.on(listed(egress, vec![policy(&names(&["one"]))]));
        assert_eq!(begun(&orders), ["ConfigMap a/one"]);
        assert_eq!((words(&gathering.take()), gathering.is_synced()), (names(&["put EgressPolicy a/e"]), false));
        gathering.on(listed(orders.begin[0].0, vec![]));
        assert_eq!((words(&gathering.take()), gathering.is_synced()), (names(&["synced"]), true));
        gathering.on(listed(egress, vec![]));
        assert!(gathering.take().is_empty());
    }

    #[test]
    fn watches_follow_the_references() {
        // Aim: another reference is another watch, one that nobody makes any more ends and takes its object along, what it has on its way
        // is too late, and beyond the bound it is said instead of asked for.
        let (mut gathering, orders) = Gathering::new();
        let egress = orders.begin[0].0;
        let first = gathering.on(listed(egress, vec![policy(&names(&["one", "two"]))]));
        assert_eq!(begun(&first), ["ConfigMap a/one", "ConfigMap a/two"]);
        gathering.take();
        let second = gathering.on(listed(egress, vec![policy(&names(&["two", "three"]))]));
        assert_eq!((begun(&second), second.end.clone()), (names(&["ConfigMap a/three"]), vec![first.begin[0].0]));
        assert_eq!(words(&gathering.take()), ["put EgressPolicy a/e", "remove ConfigMap a/one"]);
        gathering.on(listed(first.begin[0].0, vec![policy(&[])]));
        assert_eq!(gathering.len(), 0);
        let many: Vec<String> = (0..REFERENCES_MAX).map(|number| format!("more{number}")).collect();
        let key = ObjectKey::new(Kind::EgressPolicy, "a", "other");
        let Change::Put { mut candidate, .. } = policy(&many[..200]) else { panic!("a version") };
        candidate.key = key.clone();
        gathering.on(listed(egress, vec![Change::Put { origin: Origin::Cluster, candidate, now_ms: 0 }]));
        gathering.take();
        let orders = gathering.on(listed(egress, vec![policy(&many[150..])]));
        assert_eq!(orders.begin.len(), 56);
        assert!(!words(&gathering.take()).contains(&"1 problems".to_owned()));
        gathering.on(listed(egress, vec![policy(&[&many[150..], &names(&["last"])].concat())]));
        assert!(words(&gathering.take()).contains(&"1 problems".to_owned()));
        gathering.on(listed(egress, vec![Change::Remove { origin: Origin::Cluster, key }]));
        assert!(words(&gathering.take()).contains(&"0 problems".to_owned()));
    }
}
