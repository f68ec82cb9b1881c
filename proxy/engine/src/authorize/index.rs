//! Finds the rules that may hold for a call without asking each.
//!
//! A list of rules is divided by what each asks for itself: who calls, the host, the path or the method, whichever of these the fewest others
//! share; then each part again. A rule stands under every one of its alternatives, so one that holds for a call is always in a list that the
//! call leads to. Every rule found is asked wholly: whatever the lists leave open, the outcome is that of asking all.

use std::cell::Cell;
use std::collections::BTreeMap;

use http::Method;

use super::Call;
use super::hash::Map;
use super::path::PathPattern;
use super::rule::{PolicyRule, SourceMatch, TargetMatch, plain_host};
use super::text::TextPattern;

/// Lists of so few are not divided further.
const FEW: usize = 4;
/// A rule with more alternatives of a kind is not divided by them: it is asked, and looks them up by itself.
const ALTERNATIVES_MAX: usize = 256;
/// Places of rules in one index. Where it is full, lists stay as they are.
const PLACES_MAX: usize = 1 << 20;
/// Elements that paths are told apart by; what is the same up to there stands in one list.
const ELEMENTS_MAX: usize = 32;
/// Lengths of prefixes, and of suffixes, that are told apart; each costs a call a look.
const LENGTHS_MAX: usize = 16;

/// What rules are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Principal,
    Namespace,
    Path,
    Host,
    Method,
}

const OF_PEERS: [Kind; 2] = [Kind::Principal, Kind::Namespace];
const OF_REQUESTS: [Kind; 5] = [Kind::Principal, Kind::Path, Kind::Host, Kind::Namespace, Kind::Method];

/// One alternative of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key<'r> {
    Exact(&'r str),
    Prefix(&'r str),
    Suffix(&'r str),
    /// Whole elements of a path, and how many.
    Elements(usize, &'r str),
}

impl Key<'_> {
    /// Length of a beginning, or of an end.
    const fn length(&self, of_end: bool) -> Option<usize> {
        match (self, of_end) {
            (Self::Prefix(text), false) | (Self::Suffix(text), true) => Some(text.len()),
            _ => None,
        }
    }
}

/// Places of rules by what they ask for.
#[derive(Debug, Default)]
pub(super) struct Sieve(Node);

#[derive(Debug, Default)]
struct Node {
    /// Each is asked; ascending.
    all: Vec<u32>,
    /// The first place here or below.
    lowest: u32,
    divided: Option<Box<Divided>>,
}

#[derive(Debug, Default)]
struct Divided {
    principals: Affixes,
    namespaces: Affixes,
    hosts: Affixes,
    paths: Affixes,
    methods: Map<Method, Node>,
}

/// Nodes by texts: whole ones, beginnings and ends.
#[derive(Debug, Default)]
struct Affixes {
    exact: Map<Box<str>, Node>,
    /// By length.
    prefixes: Vec<(usize, Map<Box<str>, Node>)>,
    suffixes: Vec<(usize, Map<Box<str>, Node>)>,
    /// By number of elements, ascending.
    elements: Vec<(usize, Map<Box<str>, Node>)>,
}

/// What building goes by.
struct Building<'r> {
    rules: &'r [PolicyRule],
    placed: Cell<usize>,
}

impl Sieve {
    /// Of rules in their order.
    pub(super) fn new(rules: &[PolicyRule]) -> Self {
        Self::by(rules, &OF_REQUESTS)
    }

    /// The same by who calls alone.
    pub(super) fn of_peers(rules: &[PolicyRule]) -> Self {
        Self::by(rules, &OF_PEERS)
    }

    fn by(rules: &[PolicyRule], kinds: &[Kind]) -> Self {
        let places = (0..).zip(rules).map(|(place, _)| place).collect();
        Self(Building { rules, placed: Cell::new(0) }.node(places, kinds))
    }

    /// The first place, of those that this call may lead to, that `holds` accepts.
    pub(super) fn first(&self, call: &Call<'_>, holds: impl Fn(usize) -> bool) -> Option<usize> {
        let mut best = u32::MAX;
        self.0.visit(call, &mut |node: &Node| {
            if node.lowest >= best {
                return false;
            }
            let before = node.all.iter().take_while(|place| **place < best);
            if let Some(found) = before.copied().find(|place| holds(*place as usize)) {
                best = found;
            }
            true
        });
        (best < u32::MAX).then_some(best as usize)
    }

    /// Every place that this call may lead to, some of them repeatedly.
    pub(super) fn each(&self, call: &Call<'_>, mut visit: impl FnMut(usize)) {
        self.0.visit(call, &mut |node: &Node| {
            node.all.iter().for_each(|place| visit(*place as usize));
            true
        });
    }
}

impl<'r> Building<'r> {
    fn node(&self, places: Vec<u32>, kinds: &[Kind]) -> Node {
        let lowest = places.first().copied().unwrap_or(u32::MAX);
        self.placed.set(self.placed.get() + places.len());
        if places.len() <= FEW || kinds.is_empty() || self.placed.get() > PLACES_MAX {
            return Node { all: places, lowest, divided: None };
        }
        let mut node = Node { lowest, ..Node::default() };
        let mut parts: Vec<(Kind, BTreeMap<Key<'r>, Vec<u32>>)> = kinds.iter().map(|kind| (*kind, BTreeMap::new())).collect();
        let counts: Vec<Map<Key<'r>, usize>> = kinds.iter().map(|kind| self.counts(&places, *kind)).collect();
        for place in &places {
            match self.narrowest(*place, kinds, &counts).filter(|(_, _, shared)| *shared < places.len()) {
                Some((number, keys, _)) => {
                    let part = &mut parts[number].1;
                    keys.into_iter().for_each(|key| part.entry(key).or_default().push(*place));
                }
                None => node.all.push(*place),
            }
        }
        for (kind, part) in parts {
            let rest: Vec<Kind> = kinds.iter().copied().filter(|other| *other != kind).collect();
            for (key, places) in part {
                let below = self.node(places, &rest);
                node.divided.get_or_insert_default().insert(kind, &key, below);
            }
        }
        node
    }

    /// How many of these rules share each alternative. Beginnings and ends of the rarer lengths are left out.
    fn counts(&self, places: &[u32], kind: Kind) -> Map<Key<'r>, usize> {
        let mut counts = Map::default();
        for key in places.iter().filter_map(|place| self.keys(*place, kind)).flatten() {
            *counts.entry(key).or_default() += 1;
        }
        for of_end in [false, true] {
            let mut lengths: BTreeMap<usize, usize> = BTreeMap::new();
            counts.keys().filter_map(|key| key.length(of_end)).for_each(|length| *lengths.entry(length).or_default() += 1);
            let mut common: Vec<(usize, usize)> = lengths.into_iter().map(|(length, count)| (count, length)).collect();
            if common.len() > LENGTHS_MAX {
                common.sort_unstable_by(|a, b| b.cmp(a));
                common.truncate(LENGTHS_MAX);
                counts.retain(|key, _| key.length(of_end).is_none_or(|length| common.iter().any(|(_, known)| *known == length)));
            }
        }
        counts
    }

    /// Of a rule's kinds the one whose most common alternative the fewest share: its number, the alternatives, and how many those are.
    fn narrowest(&self, place: u32, kinds: &[Kind], counts: &[Map<Key<'r>, usize>]) -> Option<(usize, Vec<Key<'r>>, usize)> {
        let candidates = kinds.iter().zip(counts).enumerate().filter_map(|(number, (kind, counts))| {
            let keys = self.keys(place, *kind)?;
            let shared = keys.iter().map(|key| counts.get(key).copied()).collect::<Option<Vec<usize>>>()?;
            Some((number, keys, shared.into_iter().max()?))
        });
        candidates.min_by_key(|(number, keys, shared)| (*shared, keys.len(), *number))
    }

    /// The alternatives of a rule; `None`: it takes others, too, or they are too many.
    fn keys(&self, place: u32, kind: Kind) -> Option<Vec<Key<'r>>> {
        let rule = self.rules.get(place as usize)?;
        let mut keys = match kind {
            Kind::Principal | Kind::Namespace => alternatives(&rule.from, |source, keys| of_source(source, kind, keys)),
            Kind::Path | Kind::Host | Kind::Method => alternatives(&rule.to, |target, keys| of_target(target, kind, keys)),
        }?;
        keys.sort();
        keys.dedup();
        Some(keys)
    }
}

/// Of a list of which one must hold: nothing, if one of it takes anything.
fn alternatives<'r, T>(list: &'r [T], mut of: impl FnMut(&'r T, &mut Vec<Key<'r>>) -> bool) -> Option<Vec<Key<'r>>> {
    let mut keys = Vec::new();
    let narrow = list.iter().all(|one| of(one, &mut keys) && keys.len() <= ALTERNATIVES_MAX);
    (narrow && !keys.is_empty()).then_some(keys)
}

/// False: it takes anybody.
fn of_source<'r>(source: &'r SourceMatch, kind: Kind, keys: &mut Vec<Key<'r>>) -> bool {
    of_texts(if kind == Kind::Principal { source.principals.all() } else { source.namespaces.all() }, keys)
}

fn of_target<'r>(target: &'r TargetMatch, kind: Kind, keys: &mut Vec<Key<'r>>) -> bool {
    match kind {
        Kind::Path => !target.paths.is_empty() && target.paths.iter().all(|path| of_path(path).map(|key| keys.push(key)).is_some()),
        Kind::Method => {
            keys.extend(target.methods.iter().map(|method| Key::Exact(method.as_str())));
            !target.methods.is_empty()
        }
        _ => of_texts(target.hosts.all(), keys),
    }
}

fn of_texts<'r>(texts: &'r [TextPattern], keys: &mut Vec<Key<'r>>) -> bool {
    let key = |text: &'r TextPattern| match text {
        TextPattern::Any => None,
        TextPattern::Exact(text) => Some(Key::Exact(text)),
        TextPattern::Prefix(text) => Some(Key::Prefix(text)),
        TextPattern::Suffix(text) => Some(Key::Suffix(text)),
    };
    !texts.is_empty() && texts.iter().all(|text| key(text).map(|key| keys.push(key)).is_some())
}

fn of_path(path: &PathPattern) -> Option<Key<'_>> {
    match path {
        PathPattern::Any => None,
        PathPattern::Exact(path) => Some(Key::Exact(path)),
        PathPattern::Prefix(prefix) => elements(prefix),
        PathPattern::Suffix(suffix) => Some(Key::Suffix(suffix)),
        PathPattern::Template(template) => elements(&template.known),
    }
}

/// The first elements of what begins with `/`.
fn elements(path: &str) -> Option<Key<'_>> {
    let count = path.matches('/').count().min(ELEMENTS_MAX);
    let end = path.match_indices('/').nth(count).map_or(path.len(), |(end, _)| end);
    (count > 0).then(|| Key::Elements(count, &path[..end]))
}

impl Divided {
    fn insert(&mut self, kind: Kind, key: &Key<'_>, node: Node) {
        match (kind, key) {
            (Kind::Method, Key::Exact(name)) => {
                // It was a method before it was a key.
                if let Ok(method) = Method::from_bytes(name.as_bytes()) {
                    self.methods.insert(method, node);
                }
            }
            (Kind::Principal, key) => self.principals.insert(key, node),
            (Kind::Namespace, key) => self.namespaces.insert(key, node),
            (Kind::Host, key) => self.hosts.insert(key, node),
            (Kind::Path | Kind::Method, key) => self.paths.insert(key, node),
        }
    }
}

impl Affixes {
    /// Each key comes once.
    fn insert(&mut self, key: &Key<'_>, node: Node) {
        let (lengths, length, text) = match key {
            Key::Exact(text) => {
                self.exact.insert((*text).into(), node);
                return;
            }
            Key::Prefix(text) => (&mut self.prefixes, text.len(), *text),
            Key::Suffix(text) => (&mut self.suffixes, text.len(), *text),
            Key::Elements(count, text) => (&mut self.elements, *count, *text),
        };
        let at = lengths.partition_point(|(other, _)| *other < length);
        if lengths.get(at).is_none_or(|(other, _)| *other != length) {
            lengths.insert(at, (length, Map::default()));
        }
        lengths[at].1.insert(text.into(), node);
    }

    /// Every node whose text this one may meet.
    fn visit(&self, text: &str, visit: &mut dyn FnMut(&Node)) {
        if let Some(node) = self.exact.get(text) {
            visit(node);
        }
        for (length, nodes) in &self.prefixes {
            if let Some(node) = text.get(..*length).and_then(|start| nodes.get(start)) {
                visit(node);
            }
        }
        for (length, nodes) in &self.suffixes {
            if let Some(node) = text.len().checked_sub(*length).and_then(|start| text.get(start..)).and_then(|end| nodes.get(end)) {
                visit(node);
            }
        }
        if !self.elements.is_empty() && text.starts_with('/') {
            self.visit_elements(text, visit);
        }
    }

    fn visit_elements(&self, path: &str, visit: &mut dyn FnMut(&Node)) {
        let ends = path.bytes().enumerate().skip(1).filter(|(_, byte)| *byte == b'/').map(|(end, _)| end).chain([path.len()]);
        let mut levels = self.elements.iter().peekable();
        for (count, end) in (1..).zip(ends) {
            match levels.peek() {
                None => return,
                Some((wanted, _)) if *wanted != count => {}
                Some((_, nodes)) => {
                    if let Some(node) = nodes.get(&path[..end]) {
                        visit(node);
                    }
                    levels.next();
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.is_empty() && self.suffixes.is_empty() && self.elements.is_empty()
    }
}

impl Node {
    /// Visits this node and those below that a call leads to; `visit` says whether to go on below.
    fn visit(&self, call: &Call<'_>, visit: &mut dyn FnMut(&Self) -> bool) {
        if visit(self)
            && let Some(divided) = &self.divided
        {
            divided.visit(call, visit);
        }
    }
}

impl Divided {
    fn visit(&self, call: &Call<'_>, visit: &mut dyn FnMut(&Node) -> bool) {
        let mut below = |node: &Node| node.visit(call, visit);
        if let Some(peer) = call.peer {
            if !self.principals.is_empty() {
                self.principals.visit(peer.as_str(), &mut below);
            }
            if !self.namespaces.is_empty() {
                self.namespaces.visit(peer.namespace(), &mut below);
            }
        }
        let Some(head) = call.head else { return };
        if !self.paths.is_empty() {
            self.paths.visit(head.path, &mut below);
        }
        if !self.hosts.is_empty() {
            plain_host(head.host, |host| self.hosts.visit(host, &mut below));
        }
        if !self.methods.is_empty()
            && let Some(node) = self.methods.get(head.method)
        {
            below(node);
        }
    }
}
