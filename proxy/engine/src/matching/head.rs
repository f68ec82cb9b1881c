//! What of a request is compared.

use http::{HeaderMap, Method};
use smallvec::SmallVec;

/// Longest host name that is compared (RFC 1035); a longer one is nobody's.
const HOST_BYTES_MAX: usize = 255;

/// What a decision may depend on; borrowed from the request.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'r> {
    /// Method.
    pub method: &'r Method,
    /// Path as received, without query.
    pub path: &'r str,
    /// Query as received, without the question mark.
    pub query: Option<&'r str>,
    /// Host as the client named it; a port is ignored.
    pub host: &'r str,
    /// Headers.
    pub headers: &'r HeaderMap,
}

impl<'r> RequestHead<'r> {
    /// The head of a request: the host is the URI's authority, else the `host` header (RFC 9112, section 3.2.2), else empty.
    pub fn of<B>(request: &'r http::Request<B>) -> Self {
        Self::new(request.method(), request.uri(), request.headers())
    }

    /// See [`RequestHead::of`].
    pub fn new(method: &'r Method, uri: &'r http::Uri, headers: &'r HeaderMap) -> Self {
        let named = || headers.get(http::header::HOST).and_then(|value| value.to_str().ok()).unwrap_or("");
        let host = uri.authority().map_or_else(named, http::uri::Authority::as_str);
        Self { host, ..Self::nameless(method, uri, headers) }
    }

    /// The same without its host, for rules to which no name makes a difference: looking for it costs a request more than they do.
    pub fn nameless(method: &'r Method, uri: &'r http::Uri, headers: &'r HeaderMap) -> Self {
        Self { method, path: uri.path(), query: uri.query(), host: "", headers }
    }
}

/// The host without its port; brackets of an IPv6 literal stay.
pub fn without_port(host: &str) -> &str {
    if host.starts_with('[') {
        return host.find(']').map_or(host, |end| &host[..=end]);
    }
    host.split_once(':').map_or(host, |(name, _)| name)
}

/// Looks at a host as it is compared: without port and last dot (`shop.example.` is the same name, spelled in full: RFC 1034, section 3.1), in lower
/// case. Nothing is allocated.
pub(crate) fn plain_host<T>(host: &str, look: impl FnOnce(&str) -> T) -> T {
    let host = without_port(host);
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.len() > HOST_BYTES_MAX {
        return look("");
    }
    if !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return look(host);
    }
    let lower: SmallVec<[u8; HOST_BYTES_MAX]> = host.bytes().map(|byte| byte.to_ascii_lowercase()).collect();
    look(std::str::from_utf8(&lower).unwrap_or_default())
}
