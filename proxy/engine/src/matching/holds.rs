//! Does a rule's match hold for a request? Gateway API's rules: conditions are a conjunction, values are case-sensitive.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::HeaderName;
use smallvec::SmallVec;

use super::{Match, PathMatch, RequestHead, ValueMatch};

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

pub(crate) fn path(wanted: &PathMatch, path: &str) -> bool {
    match wanted {
        PathMatch::Any => true,
        PathMatch::Exact(exact) => path == exact,
        PathMatch::Prefix(prefix) => path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        PathMatch::StringPrefix(prefix) => path.starts_with(prefix.as_str()),
        PathMatch::Regex(regex) => regex.is_match(path),
    }
}

pub(crate) fn header(wanted: &ValueMatch, headers: &HeaderMap, name: &HeaderName) -> bool {
    value(wanted, joined(headers, name).as_deref())
}

/// The same for policies. A header that repeats is read by some as its first value, by some as its last and by others as all of them: where `widely`,
/// what one of them reads is enough, and a value that is no text meets every expression; else all that is said must hold as one.
pub(crate) fn header_of_policy(wanted: &ValueMatch, headers: &HeaderMap, name: &HeaderName, widely: bool) -> bool {
    if let ValueMatch::Not(inner) = wanted {
        return !header_of_policy(inner, headers, name, !widely);
    }
    let holds = |found: &[u8]| match wanted {
        ValueMatch::Regex(_) if widely && std::str::from_utf8(found).is_err() => true,
        ValueMatch::Contains(text) => contains(found, text.as_bytes()),
        _ => value(wanted, Some(found)),
    };
    match joined(headers, name) {
        None => value(wanted, None),
        Some(Joined::One(found)) => holds(found),
        Some(Joined::Many(all)) => holds(&all) || widely && headers.get_all(name).iter().any(|one| holds(one.as_bytes())),
    }
}

fn contains(found: &[u8], text: &[u8]) -> bool {
    text.is_empty() || found.windows(text.len()).any(|part| part == text)
}

/// A header's value; the values of a repeated one, joined by commas.
#[allow(clippy::large_enum_variant, reason = "it stays on the stack, for the length of a comparison")]
pub(super) enum Joined<'h> {
    /// The usual case.
    One(&'h [u8]),
    Many(SmallVec<[u8; VALUE_BYTES]>),
}

impl std::ops::Deref for Joined<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::One(value) => value,
            Self::Many(values) => values,
        }
    }
}

pub(super) fn joined<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<Joined<'h>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let Some(second) = values.next() else {
        return Some(Joined::One(first.as_bytes()));
    };
    let mut joined: SmallVec<[u8; VALUE_BYTES]> = SmallVec::from_slice(first.as_bytes());
    for more in std::iter::once(second).chain(values) {
        joined.push(b',');
        joined.extend_from_slice(more.as_bytes());
    }
    Some(Joined::Many(joined))
}

fn query(wanted: &ValueMatch, query: Option<&str>, name: &str) -> bool {
    value(wanted, parameter(query, name).as_deref())
}

/// The first parameter of that name counts. Names and values are compared after percent-decoding, `+` as a space.
pub(crate) fn parameter<'q>(query: Option<&'q str>, name: &str) -> Option<Cow<'q, [u8]>> {
    let mut pairs = query?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| decoded(key).as_ref() == name.as_bytes()).map(|(_, text)| decoded(text))
}

/// Percent-decoded, `+` as a space. A malformed escape stays as it is.
pub(crate) fn decoded(text: &str) -> Cow<'_, [u8]> {
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
