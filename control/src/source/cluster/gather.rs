//! From many watches one stream of changes. Pure: it knows who has not been listed yet, and which Secrets and ConfigMaps the objects refer
//! to, hence whose watches are to begin and to end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::annotations::ROOT_NAMESPACE;
use tokio::time::Instant;

use super::listing::Watchable;
use super::table::kinds;
use crate::world::problem::{Problem, Severity};
use crate::world::{Change, Kind, ObjectKey, Origin, references};

/// Secrets and ConfigMaps watched at most: each is a watch of its own. A big edge has a certificate for each of its customers.
pub(super) const REFERENCES_MAX: usize = 1_024;
/// Those of one namespace at most, beside what the Mesh refers to: no tenant takes the place of all others.
const REFERENCES_PER_NAMESPACE_MAX: usize = 256;
/// So long at most a version waits for what it refers to.
const HELD_MAX: Duration = Duration::from_secs(5);
/// What problems of references are filed under.
const PLACE: &str = crate::world::REFERENCES;

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
    /// What each object refers to, by the version that has been handed on.
    referrers: BTreeMap<ObjectKey, Vec<ObjectKey>>,
    /// Newer versions, which refer to what has not been listed yet.
    held: BTreeMap<ObjectKey, Held>,
    /// A namespace of whose Secrets and ConfigMaps some are not read.
    crowded: Option<String>,
    synced: bool,
    changes: Vec<Change>,
}

/// See [`Gathering::put`].
#[derive(Debug)]
struct Held {
    /// A good one, and maybe a refused one after it.
    versions: Vec<Change>,
    references: Vec<ObjectKey>,
    until: Instant,
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
            held: BTreeMap::new(),
            crowded: None,
            synced: false,
            changes: Vec::new(),
        };
        let begin = kinds().map(|kind| gathering.begin(Watchable::All(kind))).collect();
        (gathering, Orders { begin, end: Vec::new() })
    }

    fn begin(&mut self, subject: Watchable) -> (u64, Watchable) {
        self.next += 1;
        self.watches.insert(self.next, subject.clone());
        self.pending.insert(subject.clone());
        (self.next, subject)
    }

    /// Takes in what a watch says.
    pub(super) fn on(&mut self, delivery: Delivery, now: Instant) -> Orders {
        let Some(subject) = self.watches.get(&delivery.watch).cloned() else { return Orders::default() };
        if delivery.listed {
            self.pending.remove(&subject);
        }
        let mut orders = Orders::default();
        let mut other = false;
        for change in delivery.changes {
            other |= self.note(change, now);
        }
        if other {
            self.follow_references(&mut orders);
        }
        self.release(now, &mut orders);
        if !self.synced && self.pending.is_empty() {
            self.synced = true;
            self.changes.push(Change::Synced(Origin::Cluster));
        }
        orders
    }

    /// When the next version has been held back for long enough.
    pub(super) fn held_until(&self) -> Option<Instant> {
        self.held.values().map(|held| held.until).min()
    }

    /// Lets go of versions that were held back: those whose references have been listed, and those for which it is time.
    pub(super) fn release(&mut self, now: Instant, orders: &mut Orders) {
        let waits = |held: &Held| held.until > now && held.references.iter().any(|key| self.pending.contains(&Watchable::One(key.clone())));
        let ripe: Vec<ObjectKey> = self.held.iter().filter(|(_, held)| !waits(held)).map(|(key, _)| key.clone()).collect();
        for key in &ripe {
            let Some(held) = self.held.remove(key) else { continue };
            self.changes.extend(held.versions);
            self.referrers.insert(key.clone(), held.references);
        }
        if !ripe.is_empty() {
            // What only the former versions referred to goes after them.
            self.follow_references(orders);
        }
    }

    /// Takes in a change, now or later; whether it is one of what is referred to.
    fn note(&mut self, change: Change, now: Instant) -> bool {
        let other = match &change {
            Change::Put { candidate, .. } => return self.put(candidate.key.clone(), change, now),
            Change::Remove { key, .. } => {
                let held = self.held.remove(key);
                self.referrers.remove(key).is_some() || held.is_some()
            }
            Change::Relisted { kind, keys, .. } => {
                let before = self.referrers.len() + self.held.len();
                self.referrers.retain(|key, _| key.kind != *kind || keys.contains(key));
                self.held.retain(|key, _| key.kind != *kind || keys.contains(key));
                self.referrers.len() + self.held.len() < before
            }
            _ => false,
        };
        self.changes.push(change);
        other
    }

    /// A version that refers to what has not been listed is held back: in force without it, it would cut what it means to let through. Before
    /// everything has been listed once nothing is in force.
    fn put(&mut self, key: ObjectKey, change: Change, now: Instant) -> bool {
        let Change::Put { candidate, .. } = &change else { return false };
        // A refused version leaves the last good one in force, and what that refers to.
        let Some(object) = &candidate.object else {
            match self.held.get_mut(&key) {
                Some(held) => {
                    held.versions.truncate(1);
                    held.versions.push(change);
                }
                None => self.changes.push(change),
            }
            return false;
        };
        let references = references(object);
        let before = self.held.remove(&key);
        if self.synced && references.iter().any(|reference| !self.is_listed(reference)) {
            let until = before.map_or(now + HELD_MAX, |before| before.until);
            self.held.insert(key, Held { versions: vec![change], references, until });
            return true;
        }
        self.changes.push(change);
        let former = if references.is_empty() { self.referrers.remove(&key) } else { self.referrers.insert(key, references.clone()) };
        before.is_some() || former.unwrap_or_default() != references
    }

    fn is_listed(&self, key: &ObjectKey) -> bool {
        let subject = Watchable::One(key.clone());
        !self.pending.contains(&subject) && self.watches.values().any(|watched| *watched == subject)
    }

    fn watched(&self) -> BTreeSet<&ObjectKey> {
        self.watches.values().filter_map(|subject| if let Watchable::One(key) = subject { Some(key) } else { None }).collect()
    }

    /// What is to be watched, and a namespace for which that is not all: what the Mesh refers to, then what is watched already, then the rest.
    fn wanted(&self) -> (BTreeSet<ObjectKey>, Option<String>) {
        let mut all = BTreeMap::<&ObjectKey, bool>::new();
        let held = self.held.iter().map(|(key, held)| (key, &held.references));
        for (referrer, references) in self.referrers.iter().chain(held) {
            let mesh = referrer.kind == Kind::Mesh && referrer.namespace == ROOT_NAMESPACE;
            references.iter().for_each(|reference| *all.entry(reference).or_default() |= mesh);
        }
        let watched = self.watched();
        let mut ranked: Vec<_> = all.into_iter().map(|(key, mesh)| (!mesh, !watched.contains(key), key)).collect();
        ranked.sort();
        let (mut wanted, mut of_namespaces, mut crowded) = (BTreeSet::new(), BTreeMap::<&str, usize>::new(), None);
        for (tenant, _, key) in ranked {
            let count = of_namespaces.entry(&key.namespace).or_default();
            if wanted.len() >= REFERENCES_MAX || (tenant && *count >= REFERENCES_PER_NAMESPACE_MAX) {
                crowded.get_or_insert_with(|| key.namespace.clone());
                continue;
            }
            *count += usize::from(tenant);
            wanted.insert(key.clone());
        }
        (wanted, crowded)
    }

    fn follow_references(&mut self, orders: &mut Orders) {
        let (wanted, crowded) = self.wanted();
        let watched = self.watched();
        let fresh: Vec<ObjectKey> = wanted.iter().filter(|key| !watched.contains(key)).cloned().collect();
        let gone = |subject: &Watchable| matches!(subject, Watchable::One(key) if !wanted.contains(key));
        let ended: Vec<u64> = self.watches.iter().filter(|(_, subject)| gone(subject)).map(|(watch, _)| *watch).collect();
        for watch in ended {
            let Some(subject) = self.watches.remove(&watch) else { continue };
            self.pending.remove(&subject);
            orders.end.push(watch);
            if let Watchable::One(key) = subject {
                self.changes.push(Change::Remove { origin: Origin::Cluster, key });
            }
        }
        for key in fresh {
            let begun = self.begin(Watchable::One(key));
            orders.begin.push(begun);
        }
        if crowded != self.crowded {
            let told = |namespace: &String| {
                let message = format!(
                    "the objects refer to more Secrets and ConfigMaps of namespace {namespace} than are read: {REFERENCES_PER_NAMESPACE_MAX} of one namespace, {REFERENCES_MAX} in all"
                );
                Problem::of_file(Severity::Error, PLACE, 0, message, "let several objects refer to one")
            };
            self.changes.push(Change::File { file: PLACE.to_owned(), problems: crowded.iter().map(told).collect() });
            self.crowded = crowded;
        }
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
        of("a", "e", roots)
    }

    fn of(namespace: &str, name: &str, roots: &[String]) -> Change {
        let rule = |name: &String| {
            format!(
                "{{hosts: [a.example], ports: [80], tls: {{originate: {{sni: a, caCertificateRefs: [{{kind: ConfigMap, group: '', name: {name}}}]}}}}}}"
            )
        };
        let rules: Vec<_> = roots.iter().map(rule).collect();
        let text = format!(
            "apiVersion: meshwright.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{allow: [{}]}}\n",
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

    fn hear(gathering: &mut Gathering, delivery: Delivery) -> Orders {
        gathering.on(delivery, Instant::now())
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
            assert_eq!(hear(&mut gathering, listed(*watch, vec![])), Orders::default());
        }
        assert_eq!(gathering.waiting().map(ToString::to_string).collect::<Vec<_>>(), ["egresspolicies"]);
        let orders = hear(&mut gathering, listed(egress, vec![policy(&names(&["one"]))]));
        assert_eq!(begun(&orders), ["ConfigMap a/one"]);
        assert_eq!((words(&gathering.take()), gathering.is_synced()), (names(&["put EgressPolicy a/e"]), false));
        hear(&mut gathering, listed(orders.begin[0].0, vec![]));
        assert_eq!((words(&gathering.take()), gathering.is_synced()), (names(&["synced"]), true));
        hear(&mut gathering, listed(egress, vec![]));
        assert!(gathering.take().is_empty());
    }

    #[test]
    fn watches_follow_the_references() {
        // Aim: another reference is another watch, one that nobody makes any more ends and takes its object along, what it has on its way
        // is too late, and beyond a namespace's share it is said instead of asked for.
        let (mut gathering, orders) = Gathering::new();
        let egress = orders.begin[0].0;
        let first = hear(&mut gathering, listed(egress, vec![policy(&names(&["one", "two"]))]));
        assert_eq!(begun(&first), ["ConfigMap a/one", "ConfigMap a/two"]);
        gathering.take();
        let second = hear(&mut gathering, listed(egress, vec![policy(&names(&["two", "three"]))]));
        assert_eq!((begun(&second), second.end.clone()), (names(&["ConfigMap a/three"]), vec![first.begin[0].0]));
        assert_eq!(words(&gathering.take()), ["put EgressPolicy a/e", "remove ConfigMap a/one"]);
        hear(&mut gathering, listed(first.begin[0].0, vec![policy(&[])]));
        assert_eq!(gathering.len(), 0);
        let many: Vec<String> = (0..REFERENCES_PER_NAMESPACE_MAX).map(|number| format!("more{number}")).collect();
        for (number, some) in many[32..].chunks(56).enumerate() {
            hear(&mut gathering, listed(egress, vec![of("a", &format!("bulk{number}"), some)]));
        }
        hear(&mut gathering, listed(egress, vec![of("a", "other", &many[..20])]));
        gathering.take();
        let orders = hear(&mut gathering, listed(egress, vec![policy(&many[15..32])]));
        assert_eq!(orders.begin.len(), 12);
        assert!(!words(&gathering.take()).contains(&"1 problems".to_owned()));
        hear(&mut gathering, listed(egress, vec![policy(&[&many[15..32], &names(&["last"])].concat())]));
        assert!(words(&gathering.take()).contains(&"1 problems".to_owned()));
        let key = ObjectKey::new(Kind::EgressPolicy, "a", "other");
        hear(&mut gathering, listed(egress, vec![Change::Remove { origin: Origin::Cluster, key }]));
        assert!(words(&gathering.take()).contains(&"0 problems".to_owned()));
    }

    /// One whose watches are all listed, and the number of one that may say anything.
    fn synced() -> (Gathering, u64) {
        let (mut gathering, orders) = Gathering::new();
        for (watch, _) in &orders.begin {
            hear(&mut gathering, listed(*watch, vec![]));
        }
        gathering.take();
        (gathering, orders.begin[0].0)
    }

    #[test]
    fn nobody_takes_the_place_of_others() {
        // Aim: many references of one namespace unread neither the Mesh's, which come first, nor another namespace's; what is watched stays so
        // when more is asked for; all together have a bound.
        let (mut gathering, egress) = synced();
        let mesh = "apiVersion: meshwright.dev/v1alpha1\nkind: Mesh\nmetadata: {name: default, namespace: meshwright-system}\nspec: {federation: [{trustDomain: b.example, bundle: {configMapRef: {name: roots, key: ca.pem}}}]}\n";
        let mesh = Change::Put { origin: Origin::Cluster, candidate: parse("", mesh).candidates.remove(0), now_ms: 0 };
        let orders = hear(&mut gathering, listed(egress, vec![mesh, of("b", "e", &names(&["kept"]))]));
        assert_eq!(begun(&orders), ["ConfigMap b/kept", "ConfigMap meshwright-system/roots"]);
        let many = |letter: &str, count: usize| (0..count).map(|number| format!("{letter}{number:03}")).collect::<Vec<_>>();
        for letter in ["m", "n", "o", "p", "q"] {
            hear(&mut gathering, listed(egress, vec![of("a", letter, &many(letter, 60))]));
        }
        let watched = |gathering: &Gathering| gathering.watched().into_iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(watched(&gathering).len(), 2 + REFERENCES_PER_NAMESPACE_MAX);
        assert!(watched(&gathering).contains(&"ConfigMap meshwright-system/roots".to_owned()));
        let orders = hear(&mut gathering, listed(egress, vec![of("a", "g", &many("a", 32))]));
        assert_eq!(orders, Orders::default());
        for number in 0..20 {
            hear(&mut gathering, listed(egress, vec![of(&format!("a-{number}"), "e", &many("m", 60))]));
        }
        let all = watched(&gathering);
        assert!(all.len() == REFERENCES_MAX && all.contains(&"ConfigMap meshwright-system/roots".to_owned()), "{}", all.len());
        assert!(all.contains(&"ConfigMap b/kept".to_owned()));
    }

    #[test]
    fn a_version_waits_for_what_it_refers_to() {
        // Aim: a version that leads to something new comes after that, and what only the former one led to goes after it; a newer version
        // takes its place, a refused one stays behind it, a removal ends it, and no wait is without end.
        let (mut gathering, egress) = synced();
        let first = hear(&mut gathering, listed(egress, vec![policy(&names(&["one"]))]));
        assert_eq!((begun(&first), gathering.len()), (names(&["ConfigMap a/one"]), 0));
        hear(&mut gathering, listed(first.begin[0].0, vec![]));
        assert_eq!(words(&gathering.take()), ["put EgressPolicy a/e"]);
        let second = hear(&mut gathering, listed(egress, vec![policy(&names(&["two"]))]));
        assert_eq!((begun(&second), second.end.len(), gathering.len()), (names(&["ConfigMap a/two"]), 0, 0));
        let refused = || {
            let mut refused = policy(&[]);
            if let Change::Put { candidate, .. } = &mut refused {
                candidate.object = None;
            }
            refused
        };
        hear(&mut gathering, listed(egress, vec![refused(), refused()]));
        assert_eq!(gathering.len(), 0);
        let orders = hear(&mut gathering, listed(second.begin[0].0, vec![]));
        assert_eq!(words(&gathering.take()), ["put EgressPolicy a/e", "put EgressPolicy a/e", "remove ConfigMap a/one"]);
        assert_eq!((orders.end, gathering.held_until()), (vec![first.begin[0].0], None));

        hear(&mut gathering, listed(egress, vec![policy(&names(&["three"]))]));
        let orders = hear(&mut gathering, listed(egress, vec![policy(&names(&["two"]))]));
        assert_eq!((words(&gathering.take()), orders.end.len()), (names(&["put EgressPolicy a/e", "remove ConfigMap a/three"]), 1));
        hear(&mut gathering, listed(egress, vec![policy(&names(&["four"]))]));
        let until = gathering.held_until().unwrap();
        let mut orders = Orders::default();
        gathering.release(until - Duration::from_millis(1), &mut orders);
        assert_eq!((&orders, gathering.len()), (&Orders::default(), 0));
        gathering.release(until, &mut orders);
        assert_eq!((words(&gathering.take()), orders.end.len()), (names(&["put EgressPolicy a/e", "remove ConfigMap a/two"]), 1));
        hear(&mut gathering, listed(egress, vec![policy(&names(&["five"]))]));
        hear(
            &mut gathering,
            listed(egress, vec![Change::Remove { origin: Origin::Cluster, key: ObjectKey::new(Kind::EgressPolicy, "a", "e") }]),
        );
        assert_eq!(words(&gathering.take()), ["remove EgressPolicy a/e", "remove ConfigMap a/four", "remove ConfigMap a/five"]);
        assert_eq!(gathering.held_until(), None);
    }
}
