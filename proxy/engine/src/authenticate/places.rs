//! Where requests show tokens, and how they are taken out again.

use std::borrow::Cow;

use http::header::COOKIE;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, request};

use super::TokenFault;
use crate::matching::{RequestHead, decoded};

/// Longest text before a token in a header, in bytes.
pub const PREFIX_BYTES_MAX: usize = 2048;

/// One place where a token may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenPlace {
    /// Behind these first bytes of a header's value, in any case.
    Header(HeaderName, String),
    /// A parameter of the query.
    Query(String),
    /// A cookie.
    Cookie(String),
}

/// Rules by their places among the rules of a workload, one bit each.
pub(super) type RuleBits = u64;

/// The one token of a request, and the rules that look where it is.
#[derive(Debug)]
pub(super) struct Shown<'r> {
    pub(super) token: Cow<'r, [u8]>,
    pub(super) rules: RuleBits,
}

/// The token that a request shows. The same one at several places is one; with different ones nobody can say who asks (RFC 6750, section 2).
pub(super) fn shown<'r>(
    places: &[(TokenPlace, RuleBits)],
    request: &RequestHead<'r>,
    may_be: &dyn Fn(&[u8]) -> bool,
) -> Result<Option<Shown<'r>>, TokenFault> {
    let mut found: Option<Shown<'r>> = None;
    for (place, rules) in places {
        let mut several = false;
        place.each(request, |token| match &mut found {
            _ if !may_be(&token) => {}
            None => found = Some(Shown { token, rules: *rules }),
            Some(known) if known.token == token => known.rules |= rules,
            Some(_) => several = true,
        });
        if several {
            return Err(TokenFault::Several);
        }
    }
    Ok(found)
}

/// Takes a token out wherever it stands.
pub(super) fn strip(places: &[(TokenPlace, RuleBits)], request: &mut request::Parts, token: &[u8]) {
    places.iter().for_each(|(place, _)| place.strip(request, &|found| found == token));
}

impl TokenPlace {
    /// Takes what stands there and is it out of a request.
    pub(crate) fn strip(&self, request: &mut request::Parts, is_it: &dyn Fn(&[u8]) -> bool) {
        match self {
            Self::Header(name, prefix) => {
                retain_values(&mut request.headers, name, |value| !behind(prefix, value.as_bytes()).is_some_and(is_it));
            }
            Self::Query(name) => strip_query(request, name, is_it),
            Self::Cookie(name) => strip_cookie(&mut request.headers, name, is_it),
        }
    }

    /// Every token there. What is empty is none.
    pub(crate) fn each<'r>(&self, request: &RequestHead<'r>, mut meet: impl FnMut(Cow<'r, [u8]>)) {
        let mut meet = |token: Cow<'r, [u8]>| {
            if !token.is_empty() {
                meet(token);
            }
        };
        match self {
            Self::Header(name, prefix) => {
                let values = request.headers.get_all(name).iter();
                values.filter_map(|value| behind(prefix, value.as_bytes())).for_each(|token| meet(Cow::Borrowed(token)));
            }
            Self::Query(name) => {
                let pairs = request.query.into_iter().flat_map(|query| query.split('&'));
                pairs.filter_map(|pair| parameter(pair, name)).for_each(meet);
            }
            Self::Cookie(name) => {
                let values = request.headers.get_all(COOKIE).iter();
                let pairs = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
                pairs.filter_map(|pair| cookie(pair, name)).for_each(|token| meet(Cow::Borrowed(token)));
            }
        }
    }
}

/// What stands behind a prefix. Schemes of authentication have no case (RFC 9110, section 11.1), and a space at the end of a prefix is any space.
fn behind<'v>(prefix: &str, value: &'v [u8]) -> Option<&'v [u8]> {
    let scheme = prefix.trim_ascii_end();
    let (head, rest) = value.split_at_checked(scheme.len())?;
    // Whatever space there is, so that no application sees a token where this proxy sees none.
    let parted = scheme.len() == prefix.len() || rest.first().is_some_and(u8::is_ascii_whitespace);
    (parted && head.eq_ignore_ascii_case(scheme.as_bytes())).then(|| rest.trim_ascii())
}

/// The value of a pair of the query, if it is of that name, read as applications read it.
fn parameter<'q>(pair: &'q str, name: &str) -> Option<Cow<'q, [u8]>> {
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    (decoded(key).as_ref() == name.as_bytes()).then(|| decoded(value))
}

/// The value of a pair of a cookie header, if it is of that name; it may stand in quotes (RFC 6265, section 4.1.1).
fn cookie<'c>(pair: &'c [u8], name: &str) -> Option<&'c [u8]> {
    let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
    Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
}

/// Keeps the values of a header that are worth it; where all are, nothing is touched.
fn retain_values(headers: &mut HeaderMap, name: &HeaderName, keeps: impl Fn(&HeaderValue) -> bool) {
    let (mut all, mut some) = (true, false);
    for value in headers.get_all(name) {
        let keeps = keeps(value);
        (all, some) = (all && keeps, some || keeps);
    }
    if all {
        return;
    }
    let kept: Vec<HeaderValue> =
        if some { headers.get_all(name).iter().filter(|value| keeps(value)).cloned().collect() } else { Vec::new() };
    headers.remove(name);
    for value in kept {
        headers.append(name.clone(), value);
    }
}

fn strip_query(request: &mut request::Parts, name: &str, meant: &dyn Fn(&[u8]) -> bool) {
    let is_it = |pair: &&str| parameter(pair, name).is_some_and(|value| meant(&value));
    let Some(query) = request.uri.query().filter(|query| query.split('&').any(|pair| is_it(&pair))) else { return };
    let kept: Vec<&str> = query.split('&').filter(|pair| !is_it(pair)).collect();
    let mut text = request.uri.path().to_owned();
    if !kept.is_empty() {
        text.push('?');
        text.push_str(&kept.join("&"));
    }
    let mut parts = request.uri.clone().into_parts();
    // A part of what was a target is one.
    let Ok(target) = PathAndQuery::try_from(text) else { return };
    parts.path_and_query = Some(target);
    if let Ok(uri) = Uri::from_parts(parts) {
        request.uri = uri;
    }
}

fn strip_cookie(headers: &mut HeaderMap, name: &str, meant: &dyn Fn(&[u8]) -> bool) {
    let is_it = |pair: &[u8]| cookie(pair, name).is_some_and(meant);
    let pairs = |value: &HeaderValue| value.as_bytes().split(|byte| *byte == b';').map(<[u8]>::to_vec).collect::<Vec<_>>();
    if !headers.get_all(COOKIE).iter().any(|value| pairs(value).iter().any(|pair| is_it(pair))) {
        return;
    }
    let values: Vec<Vec<u8>> = headers
        .get_all(COOKIE)
        .iter()
        .map(|value| {
            let kept: Vec<Vec<u8>> = pairs(value).into_iter().filter(|pair| !is_it(pair)).collect();
            kept.join(&b';').trim_ascii().to_vec()
        })
        .collect();
    headers.remove(COOKIE);
    for value in values.into_iter().filter(|value| !value.is_empty()) {
        // Less of a value is a value.
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            headers.append(COOKIE, value);
        }
    }
}
