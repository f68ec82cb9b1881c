//! Does a rule's match hold for a request? Gateway API's rules: conditions are a conjunction, values are case-sensitive.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::HeaderName;
use smallvec::SmallVec;

use super::RequestHead;
use crate::model::{Match, PathMatch, ValueMatch};

/// Room for a joined or decoded value before it needs the heap.
const VALUE_BYTES: usize = 256;

/// The part of a match that does not hold, for `explain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Miss<'m> {
    Path,
    Method,
    Header(&'m HeaderName),
    Query(&'m str),
}

/// Whether every condition holds.
pub(crate) fn matches(rule: &Match, head: &RequestHead<'_>) -> bool {
    misses(rule, head).is_none()
}

/// The first condition that does not hold.
pub(crate) fn misses<'m>(rule: &'m Match, head: &RequestHead<'_>) -> Option<Miss<'m>> {
    if !path(&rule.path, head.path) {
        return Some(Miss::Path);
    }
    if rule.method.as_ref().is_some_and(|method| method != head.method) {
        return Some(Miss::Method);
    }
    if let Some((name, _)) = rule.headers.iter().find(|(name, wanted)| !header(wanted, head.headers, name)) {
        return Some(Miss::Header(name));
    }
    rule.query.iter().find(|(name, wanted)| !query(wanted, head.query, name)).map(|(name, _)| Miss::Query(name))
}

fn path(wanted: &PathMatch, path: &str) -> bool {
    match wanted {
        PathMatch::Any => true,
        PathMatch::Exact(exact) => path == exact,
        PathMatch::Prefix(prefix) => path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        PathMatch::StringPrefix(prefix) => path.starts_with(prefix.as_str()),
        PathMatch::Regex(regex) => regex.is_match(path),
    }
}

fn header(wanted: &ValueMatch, headers: &HeaderMap, name: &HeaderName) -> bool {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else {
        return value(wanted, None);
    };
    let Some(second) = values.next() else {
        return value(wanted, Some(first.as_bytes()));
    };
    let mut joined: SmallVec<[u8; VALUE_BYTES]> = SmallVec::from_slice(first.as_bytes());
    for more in std::iter::once(second).chain(values) {
        joined.push(b',');
        joined.extend_from_slice(more.as_bytes());
    }
    value(wanted, Some(&joined))
}

/// The first parameter of that name counts. Names and values are compared after percent-decoding, `+` as a space.
fn query(wanted: &ValueMatch, query: Option<&str>, name: &str) -> bool {
    let found = query.and_then(|query| {
        query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).find(|(key, _)| decoded(key).as_ref() == name.as_bytes())
    });
    value(wanted, found.map(|(_, text)| decoded(text)).as_deref())
}

/// A malformed escape stays as it is.
fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(text.as_bytes());
    }
    let hex = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        out.push(match (first, tail) {
            (b'+', _) => b' ',
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    rest = after;
                    high << 4 | low
                }
                _ => b'%',
            },
            _ => *first,
        });
    }
    Cow::Owned(out)
}

fn value(wanted: &ValueMatch, found: Option<&[u8]>) -> bool {
    match (wanted, found) {
        (ValueMatch::Not(inner), _) => !value(inner, found),
        (ValueMatch::Present(present), _) => *present == found.is_some(),
        (_, None) => false,
        (ValueMatch::Exact(text), Some(found)) => found == text.as_bytes(),
        (ValueMatch::Prefix(text), Some(found)) => found.starts_with(text.as_bytes()),
        (ValueMatch::Suffix(text), Some(found)) => found.ends_with(text.as_bytes()),
        (ValueMatch::Contains(text), Some(found)) => std::str::from_utf8(found).is_ok_and(|found| found.contains(text.as_str())),
        (ValueMatch::Regex(regex), Some(found)) => std::str::from_utf8(found).is_ok_and(|found| regex.is_match(found)),
    }
}
