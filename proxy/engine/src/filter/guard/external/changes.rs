//! What a service has done to a request that it lets on, and to its answer.

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header, request};
use proto::xds::core::header_value_option::HeaderAppendAction;
use proto::xds::core::{HeaderValue as RawValue, HeaderValueOption, QueryParameter};

use crate::filter::HeaderOp;
use crate::matching::decoded;

/// Most changes of one answer, and most bytes of one value. What is beyond is left out.
const CHANGES_MAX: usize = 64;
const VALUE_BYTES_MAX: usize = 16 << 10;

/// Headers that no service may change: they frame the message, choose where it goes, or say what the mesh itself says.
const NEVER_CHANGED: [HeaderName; 14] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-client-cert"),
];

/// Whether a service may say something in a header of that name, in lower case.
pub fn external_header(name: &str) -> bool {
    !name.starts_with("x-meshwright-") && !NEVER_CHANGED.iter().any(|never| name == never.as_str())
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Changes {
    request: Vec<HeaderOp>,
    query: Vec<QueryOp>,
    answer: Vec<HeaderOp>,
}

#[derive(Debug)]
enum QueryOp {
    Set(String, String),
    Remove(String),
}

impl Changes {
    /// Of headers that a service sets.
    pub(super) fn of_request(request: Vec<HeaderOp>) -> Self {
        Self { request, ..Self::default() }
    }

    /// The same, of query and answer.
    pub(super) fn new(request: Vec<HeaderOp>, (set, removed): (&[QueryParameter], &[String]), answer: Vec<HeaderOp>) -> Self {
        let set = set.iter().map(|QueryParameter { key, value }| QueryOp::Set(key.clone(), value.clone()));
        let query = removed.iter().cloned().map(QueryOp::Remove).chain(set).take(CHANGES_MAX).collect();
        Self { request, query, answer }
    }

    /// What is said on the answer.
    pub(super) fn answer(&self) -> &[HeaderOp] {
        &self.answer
    }

    /// Changes a request's head.
    pub(super) fn apply(&self, request: &mut request::Parts) {
        self.request.iter().for_each(|op| op.apply(&mut request.headers));
        if !self.query.is_empty() {
            change_query(request, &self.query);
        }
    }
}

/// Removals first, as Envoy does; what no service may change is left as it is.
pub(super) fn ops(set: &[HeaderValueOption], removed: &[String]) -> Vec<HeaderOp> {
    let removed = removed.iter().filter_map(|name| name_of(name)).map(HeaderOp::Remove);
    removed.chain(set.iter().filter_map(op)).take(CHANGES_MAX).collect()
}

/// As `ext_authz` reads it: `append` says whether what is there stays, and without it what is there goes, unless `append_action` says more.
fn op(HeaderValueOption { header, append, append_action, keep_empty_value: _ }: &HeaderValueOption) -> Option<HeaderOp> {
    let RawValue { key, value } = header.as_ref()?;
    let name = name_of(key)?;
    let value = HeaderValue::from_str(value).ok().filter(|value| value.len() <= VALUE_BYTES_MAX)?;
    Some(match (append, HeaderAppendAction::try_from(*append_action)) {
        (Some(true), _) => HeaderOp::Add(name, value),
        (Some(false), _) => HeaderOp::Set(name, value),
        (None, Ok(HeaderAppendAction::AddIfAbsent)) => HeaderOp::AddIfAbsent(name, value),
        (None, Ok(HeaderAppendAction::OverwriteIfExists)) => HeaderOp::OverwriteIfPresent(name, value),
        (None, _) => HeaderOp::Set(name, value),
    })
}

fn name_of(text: &str) -> Option<HeaderName> {
    let name: HeaderName = text.parse().ok()?;
    external_header(name.as_str()).then_some(name)
}

/// Headers of an answer that a service makes for the client, in their order.
pub(super) fn of_denial(set: &[HeaderValueOption]) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = HeaderMap::new();
    for op in set.iter().filter_map(op).take(CHANGES_MAX) {
        // Several cookies are several headers.
        match op {
            HeaderOp::Set(name, value) if name == header::SET_COOKIE => drop(headers.append(name, value)),
            op => op.apply(&mut headers),
        }
    }
    headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn change_query(request: &mut request::Parts, ops: &[QueryOp]) {
    let gone = |pair: &str| {
        let name = decoded(pair.split_once('=').map_or(pair, |(name, _)| name));
        ops.iter().any(|op| matches!(op, QueryOp::Set(known, _) | QueryOp::Remove(known) if known.as_bytes() == &*name))
    };
    let query = request.uri.query().unwrap_or_default();
    let mut pairs: Vec<String> = query.split('&').filter(|pair| !pair.is_empty() && !gone(pair)).map(str::to_owned).collect();
    for op in ops {
        if let QueryOp::Set(name, value) = op {
            pairs.push(format!("{}={}", encoded(name), encoded(value)));
        }
    }
    let mark = if pairs.is_empty() { "" } else { "?" };
    let Ok(target) = PathAndQuery::try_from(format!("{}{mark}{}", request.uri.path(), pairs.join("&"))) else { return };
    let mut parts = request.uri.clone().into_parts();
    parts.path_and_query = Some(target);
    if let Ok(uri) = Uri::from_parts(parts) {
        request.uri = uri;
    }
}

/// Percent-encoded, but for what needs none (RFC 3986, section 2.3).
pub(in crate::filter::guard) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for digit in [byte >> 4, byte & 15] {
                out.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
            }
        }
    }
    out
}
