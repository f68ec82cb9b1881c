//! Finds the first rule that matches without asking each in turn.
//!
//! Every rule of a virtual host stands in exactly one list, under conditions that it has itself: a rule that matches a request is
//! therefore in one of the lists that the request leads to. Each of those is walked in order, no further than the best rule found so far,
//! and each rule on the way is asked wholly. So the outcome is that of asking all rules in order, whatever the lists leave out.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use http::{HeaderName, Method};
use smallvec::SmallVec;

use super::holds::joined;
use super::{Match, PathMatch, RequestHead, ValueMatch};

/// Lists of so few are not divided further.
const FEW: usize = 8;
/// Conditions that a list is divided by, one after the other.
const DEPTH_MAX: usize = 4;
/// Elements that prefixes are told apart by; what is the same up to there stands in one list.
const ELEMENTS_MAX: usize = 32;
/// Header names that are looked up in the request; of more, the request's are looked up among them.
const NAMES_ASKED_MAX: usize = 8;

/// Places of rules by what they ask for.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// By whole path.
    exact: HashMap<Box<str>, Bucket>,
    /// By prefix, element by element; the first is the root.
    prefixes: Vec<Element>,
    /// Whatever the path, and what only asking the rule can tell.
    rest: Bucket,
}

/// One element of the prefixes that begin alike.
#[derive(Debug, Default)]
struct Element {
    /// Places of the next ones.
    below: HashMap<Box<str>, usize>,
    here: Bucket,
}

/// Rules that ask for the same path, in ascending order.
#[derive(Debug, Default)]
struct Bucket {
    /// Each is asked.
    all: Vec<u32>,
    /// Of this method.
    methods: HashMap<Method, Bucket>,
    /// With an exact value of a header.
    headers: Vec<HashMap<Box<[u8]>, Bucket>>,
    /// Whose values those are; the places in `headers`.
    names: HashMap<HeaderName, usize>,
    /// The same, where there are few.
    few: Vec<HeaderName>,
}

/// Conditions that a bucket was divided by already.
#[derive(Clone, Default)]
struct Used<'m> {
    method: bool,
    names: Vec<&'m HeaderName>,
}

impl Index {
    /// Of the matches of rules in their order.
    pub(crate) fn new<'m>(matches: impl Iterator<Item = &'m Match>) -> Self {
        let matches: Vec<&Match> = matches.collect();
        if matches.len() <= FEW {
            let rest = Bucket { all: (0..).zip(&matches).map(|(place, _)| place).collect(), ..Bucket::default() };
            return Self { rest, ..Self::default() };
        }
        let mut exact: HashMap<&str, Vec<u32>> = HashMap::new();
        let mut prefixes: HashMap<&str, Vec<u32>> = HashMap::new();
        let mut rest = Vec::new();
        for (place, one) in (0..).zip(&matches) {
            match &one.path {
                PathMatch::Exact(path) => exact.entry(path).or_default().push(place),
                PathMatch::Prefix(prefix) if prefix.starts_with('/') => prefixes.entry(known(prefix)).or_default().push(place),
                PathMatch::Any | PathMatch::Prefix(_) | PathMatch::StringPrefix(_) | PathMatch::Regex(_) => rest.push(place),
            }
        }
        let bucket = |places| Bucket::new(&matches, places, &Used::default());
        let mut elements = vec![Element::default()];
        for (prefix, places) in sorted(prefixes) {
            let end = grow(&mut elements, prefix);
            elements[end].here = bucket(places);
        }
        let exact = sorted(exact).into_iter().map(|(path, places)| (path.into(), bucket(places))).collect();
        Self { exact, prefixes: elements, rest: bucket(rest) }
    }

    /// The place of the first rule that `holds` accepts, of those whose own conditions this request may meet. `holds` must be true of no
    /// rule that does not match the head.
    pub(crate) fn first(&self, head: &RequestHead<'_>, holds: impl Fn(usize) -> bool) -> Option<usize> {
        if self.prefixes.is_empty() {
            // So few that they were not divided.
            return self.rest.all.iter().map(|place| *place as usize).find(|place| holds(*place));
        }
        let mut search = Search { head, holds, best: u32::MAX };
        if let Some(bucket) = self.exact.get(head.path) {
            search.bucket(bucket);
        }
        search.prefixes(&self.prefixes);
        search.bucket(&self.rest);
        (search.best < u32::MAX).then_some(search.best as usize)
    }
}

/// In an order that does not change from run to run.
fn sorted<K: Ord>(map: HashMap<K, Vec<u32>>) -> Vec<(K, Vec<u32>)> {
    let mut all: Vec<_> = map.into_iter().collect();
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    all
}

/// A prefix up to the last element that counts here.
fn known(prefix: &str) -> &str {
    prefix.match_indices('/').nth(ELEMENTS_MAX).map_or(prefix, |(end, _)| &prefix[..end])
}

/// The place of the last element of a prefix, which begins with `/`.
fn grow(elements: &mut Vec<Element>, prefix: &str) -> usize {
    prefix.split('/').skip(1).fold(0, |at, element| {
        let next = elements.len();
        let found = *elements[at].below.entry(element.into()).or_insert(next);
        if found == next {
            elements.push(Element::default());
        }
        found
    })
}

impl Bucket {
    fn new<'m>(matches: &[&'m Match], places: Vec<u32>, used: &Used<'m>) -> Self {
        if places.len() <= FEW || used.names.len() >= DEPTH_MAX {
            return Self { all: places, ..Self::default() };
        }
        let conditions = |place: u32| matches.get(place as usize).into_iter().flat_map(|one| exact_headers(one, used));
        let mut counts: HashMap<(&HeaderName, &str), usize> = HashMap::new();
        for condition in places.iter().flat_map(|place| conditions(*place)) {
            *counts.entry(condition).or_default() += 1;
        }
        let mut whole = Self::default();
        let mut by_header: HashMap<(&str, &str), (&HeaderName, Vec<u32>)> = HashMap::new();
        let mut by_method: HashMap<&str, (&Method, Vec<u32>)> = HashMap::new();
        for place in places {
            // The rarest condition leaves the fewest others to be asked.
            let rarest = conditions(place).min_by_key(|condition| counts.get(condition).copied());
            let method = matches.get(place as usize).and_then(|one| one.method.as_ref()).filter(|_| !used.method);
            match (rarest, method) {
                (Some((name, value)), _) => by_header.entry((name.as_str(), value)).or_insert_with(|| (name, Vec::new())).1.push(place),
                (None, Some(method)) => by_method.entry(method.as_str()).or_insert_with(|| (method, Vec::new())).1.push(place),
                (None, None) => whole.all.push(place),
            }
        }
        let mut by_header: Vec<_> = by_header.into_iter().collect();
        by_header.sort_unstable_by_key(|(condition, _)| *condition);
        for ((_, value), (name, places)) in by_header {
            let mut used = used.clone();
            used.names.push(name);
            let bucket = Self::new(matches, places, &used);
            whole.values(name).insert(value.as_bytes().into(), bucket);
        }
        let mut by_method: Vec<_> = by_method.into_values().collect();
        by_method.sort_by_key(|(method, _)| method.as_str());
        let used = Used { method: true, ..used.clone() };
        whole.methods = by_method.into_iter().map(|(method, places)| (method.clone(), Self::new(matches, places, &used))).collect();
        whole
    }

    fn values(&mut self, name: &HeaderName) -> &mut HashMap<Box<[u8]>, Self> {
        let place = match self.names.entry(name.clone()) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(fresh) => {
                self.headers.push(HashMap::new());
                if self.few.len() <= NAMES_ASKED_MAX {
                    self.few.push(name.clone());
                }
                *fresh.insert(self.headers.len() - 1)
            }
        };
        &mut self.headers[place]
    }
}

/// Headers that must have one value, but for those that were used already.
fn exact_headers<'m>(one: &'m Match, used: &Used<'m>) -> impl Iterator<Item = (&'m HeaderName, &'m str)> {
    one.headers.iter().filter_map(move |(name, wanted)| match wanted {
        ValueMatch::Exact(value) if !used.names.contains(&name) => Some((name, value.as_str())),
        _ => None,
    })
}

struct Search<'s, 'r, H> {
    head: &'s RequestHead<'r>,
    holds: H,
    best: u32,
}

impl<H: Fn(usize) -> bool> Search<'_, '_, H> {
    /// Longest first, which is where a match tends to be.
    fn prefixes(&mut self, elements: &[Element]) {
        let Some(path) = self.head.path.strip_prefix('/') else { return };
        let mut way: SmallVec<[&Bucket; ELEMENTS_MAX]> = SmallVec::new();
        let mut at = elements.first();
        for element in path.split('/').take(ELEMENTS_MAX) {
            at = at.and_then(|at| at.below.get(element)).and_then(|place| elements.get(*place));
            let Some(at) = at else { break };
            way.push(&at.here);
        }
        way.into_iter().rev().for_each(|bucket| self.bucket(bucket));
    }

    fn bucket(&mut self, bucket: &Bucket) {
        for place in &bucket.all {
            if *place >= self.best {
                break;
            }
            if (self.holds)(*place as usize) {
                self.best = *place;
                break;
            }
        }
        if !bucket.methods.is_empty()
            && let Some(bucket) = bucket.methods.get(self.head.method)
        {
            self.bucket(bucket);
        }
        if bucket.few.len() <= NAMES_ASKED_MAX {
            for (name, values) in bucket.few.iter().zip(&bucket.headers) {
                self.header(name, values);
            }
        } else {
            for name in self.head.headers.keys() {
                if let Some(values) = bucket.names.get(name).and_then(|place| bucket.headers.get(*place)) {
                    self.header(name, values);
                }
            }
        }
    }

    fn header(&mut self, name: &HeaderName, values: &HashMap<Box<[u8]>, Bucket>) {
        let found = joined(self.head.headers, name).and_then(|value| values.get(&*value));
        if let Some(bucket) = found {
            self.bucket(bucket);
        }
    }
}

#[cfg(test)]
mod tests;
