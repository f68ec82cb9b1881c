//! From one HTTP version to the other.

use std::net::SocketAddr;

use engine::versions::has_streams;
use http::header::{COOKIE, HOST, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Uri, Version, request};

/// Makes a request fit for an HTTP/1.1 upstream: origin form, `host` present, one `cookie` line.
///
/// A request in absolute form gets its `host` from the target (RFC 9112, section 3.2.2); one without either gets `destination`. One of HTTP/1.1 was
/// judged to have a host.
pub fn to_http1(parts: &mut request::Parts, destination: SocketAddr) {
    let (from_http2, names_host) = (has_streams(parts.version), parts.version == Version::HTTP_11);
    parts.version = Version::HTTP_11;
    if parts.method == Method::CONNECT {
        return;
    }
    if let Some(authority) = parts.uri.authority() {
        // Beside an HTTP/2 authority, a host is the route's own (the client's was taken off).
        if !(from_http2 && parts.headers.contains_key(HOST))
            && let Ok(host) = HeaderValue::from_str(without_user(authority))
        {
            // Inserting keeps the place and, on HTTP/1, the case of the name.
            parts.headers.insert(HOST, host);
        }
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        parts.uri = Uri::from(path);
    } else if !names_host
        && !parts.headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(&destination.to_string())
    {
        parts.headers.insert(HOST, host);
    }
    if from_http2 {
        join_cookies(parts);
    }
}

/// Makes a request fit for an HTTP/2 upstream: scheme and authority in the target, no headers that HTTP/2 forbids.
pub fn to_http2(parts: &mut request::Parts, destination: SocketAddr) {
    if has_streams(parts.version) && parts.uri.authority().is_some() && parts.uri.scheme().is_some() {
        parts.version = Version::HTTP_2;
        if let Some(host) = parts.headers.remove(HOST) {
            rename(parts, &host);
        }
        return;
    }
    if !has_streams(parts.version) {
        parts.headers.remove(TRANSFER_ENCODING);
        parts.headers.remove(UPGRADE);
    }
    parts.version = Version::HTTP_2;
    if parts.method == Method::CONNECT {
        return;
    }
    let host = parts.headers.remove(HOST);
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    if uri.authority.is_none() {
        uri.authority =
            host.and_then(|host| Authority::try_from(host.as_bytes()).ok()).or_else(|| Authority::try_from(destination.to_string()).ok());
    }
    uri.scheme.get_or_insert(Scheme::HTTP);
    uri.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
    parts.uri = Uri::from_parts(uri).unwrap_or_default();
}

/// A route has named another host.
#[cold]
fn rename(parts: &mut request::Parts, host: &HeaderValue) {
    let Ok(authority) = Authority::try_from(host.as_bytes()) else { return };
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.authority = Some(authority);
    parts.uri = Uri::from_parts(uri).unwrap_or_default();
}

/// Frames a body that came over HTTP/2 with no `length` of its own: hyper takes a GET or HEAD that does not say for one without a body.
pub fn frame_for_http1(parts: &mut request::Parts, empty: bool, length: Option<u64>) {
    if !empty && length.is_none() {
        parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

fn without_user(authority: &Authority) -> &str {
    let text = authority.as_str();
    text.rsplit_once('@').map_or(text, |(_, host)| host)
}

/// HTTP/2 may split `cookie`; HTTP/1.1 has one line (RFC 9113, section 8.2.3).
fn join_cookies(parts: &mut request::Parts) {
    if parts.headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let joined = parts.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        parts.headers.insert(COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Headers = &'static [(&'static str, &'static str)];

    fn parts(version: Version, uri: &str, headers: Headers) -> request::Parts {
        let mut request = http::Request::builder().version(version).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn destination() -> SocketAddr {
        "10.96.0.1:80".parse().unwrap()
    }

    #[test]
    fn to_http1_has_origin_form_and_a_host() {
        // Aim: target, host and cookies as RFC 9112 and 9113 want them.
        let cases: [(Version, &str, Headers, &str, &str); 5] = [
            (Version::HTTP_11, "/a?b", &[("host", "x")], "/a?b", "x"),
            (Version::HTTP_11, "http://y:81/a", &[("host", "x")], "/a", "y:81"),
            (Version::HTTP_11, "http://u@y", &[], "/", "y"),
            (Version::HTTP_10, "/a", &[], "/a", "10.96.0.1:80"),
            (Version::HTTP_2, "http://z/a", &[], "/a", "z"),
        ];
        for (version, uri, headers, path, host) in cases {
            let mut parts = parts(version, uri, headers);
            to_http1(&mut parts, destination());
            assert_eq!((parts.uri.to_string().as_str(), parts.version), (path, Version::HTTP_11), "{uri}");
            assert_eq!(parts.headers[HOST], host, "{uri}");
        }
        let mut renamed = parts(Version::HTTP_2, "http://z/", &[("host", "route")]);
        to_http1(&mut renamed, destination());
        assert_eq!(renamed.headers[HOST], "route", "the route's word counts");
        let mut parts = parts(Version::HTTP_2, "http://z/", &[("cookie", "a=1"), ("cookie", "b=2")]);
        to_http1(&mut parts, destination());
        assert_eq!(parts.headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn to_http2_has_scheme_and_authority() {
        // Aim: the authority comes from host, else from the destination; forbidden headers go.
        let mut one = parts(Version::HTTP_11, "/a?b", &[("host", "x:1"), ("transfer-encoding", "chunked")]);
        to_http2(&mut one, destination());
        assert_eq!(one.uri.to_string(), "http://x:1/a?b");
        assert!(one.headers.is_empty());
        let mut none = parts(Version::HTTP_10, "/", &[]);
        to_http2(&mut none, destination());
        assert_eq!(none.uri.to_string(), "http://10.96.0.1:80/");
        let mut same = parts(Version::HTTP_2, "https://x/a", &[]);
        to_http2(&mut same, destination());
        assert_eq!(same.uri.to_string(), "https://x/a");
        let mut renamed = parts(Version::HTTP_2, "http://z/a", &[("host", "route")]);
        to_http2(&mut renamed, destination());
        assert_eq!((renamed.uri.to_string().as_str(), renamed.headers.len()), ("http://route/a", 0), "the route's word counts");
    }

    proptest::proptest! {
        /// Aim: no address of a request makes the change of version panic.
        #[test]
        fn any_request_is_survived(
            uri in "\\*|/[!-~]{0,20}|[a-z0-9@:.-]{1,20}|https?://[a-z0-9@:.\\[\\]-]{1,20}(/[!-~]{0,9})?",
            host in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..20),
        ) {
            let Ok(uri) = uri.parse::<Uri>() else { return Ok(()) };
            let Ok(host) = HeaderValue::from_bytes(&host) else { return Ok(()) };
            for change in [to_http1, to_http2] {
                let mut parts = http::Request::new(()).into_parts().0;
                parts.uri = uri.clone();
                parts.headers.append("host", host.clone());
                parts.headers.append("cookie", host.clone());
                parts.headers.append("cookie", host.clone());
                change(&mut parts, destination());
            }
        }
    }
}
