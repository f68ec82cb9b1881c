//! What a request asks for, seen by a login: whether its sender can be sent elsewhere, and where it is to come back to.

use http::header::ACCEPT;
use http::{HeaderMap, HeaderName, Method};

/// What kind of request it is (W3C Fetch Metadata).
const MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
/// Who has caused it.
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Longest path to come back to; from a longer one browsers come back to `/`.
pub const RETURN_BYTES_MAX: usize = 2_048;

/// Whose requests are sent to the provider; all else is 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginWhen {
    /// Those that show a page.
    Navigation,
    /// All.
    Always,
    /// None.
    Never,
}

impl LoginWhen {
    /// Whether such a request is sent to the provider. A browser that says what it does is believed; else who asks for a page is one.
    pub fn redirects(self, method: &Method, headers: &HeaderMap) -> bool {
        match (self, headers.get(MODE)) {
            (Self::Never, _) => false,
            (Self::Always, _) => true,
            (Self::Navigation, Some(mode)) => mode == "navigate",
            (Self::Navigation, None) => *method == Method::GET && takes_pages(headers),
        }
    }
}

fn takes_pages(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut types = values.flat_map(|value| value.split(',')).map(|range| range.split(';').next().unwrap_or_default().trim_ascii());
    types.any(|range| range.eq_ignore_ascii_case("text/html"))
}

/// Whether another site has caused a request, as far as the browser says.
pub(super) fn is_of_others(headers: &HeaderMap) -> bool {
    headers.get(SITE).is_some_and(|site| site == "cross-site")
}

/// Where a browser comes back to: a path of its own origin, never another's. What a browser could read as a host is none.
pub(super) fn way_back<'t>(method: &Method, target: &'t str, own: &[&str]) -> &'t str {
    let path = target.split('?').next().unwrap_or_default();
    let plain = target.len() <= RETURN_BYTES_MAX && target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let reads = matches!(*method, Method::GET | Method::HEAD);
    if reads && plain && target.starts_with('/') && !target.starts_with("//") && !own.contains(&path) { target } else { "/" }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn only_who_shows_pages_is_sent_elsewhere() {
        // Aim: what a browser says of its request decides; where it says nothing, a GET for a page; programs get an answer that they can read.
        let headers = |pairs: &[(&'static str, &'static str)]| {
            pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect::<HeaderMap>()
        };
        let (get, post) = (Method::GET, Method::POST);
        for (method, pairs, navigation) in [
            (&get, &[("sec-fetch-mode", "navigate")][..], true),
            (&post, &[("sec-fetch-mode", "navigate")], true),
            (&get, &[("sec-fetch-mode", "cors"), ("accept", "text/html")], false),
            (&get, &[("sec-fetch-mode", "no-cors"), ("accept", "text/html")], false),
            (&get, &[("accept", "text/html,application/xhtml+xml;q=0.9")], true),
            (&get, &[("accept", "application/json, Text/HTML;q=0.1")], true),
            (&post, &[("accept", "text/html")], false),
            (&get, &[("accept", "*/*")], false),
            (&get, &[("accept", "application/json")], false),
            (&get, &[], false),
        ] {
            let headers = headers(pairs);
            assert_eq!(LoginWhen::Navigation.redirects(method, &headers), navigation, "{method} {pairs:?}");
            assert!(LoginWhen::Always.redirects(method, &headers) && !LoginWhen::Never.redirects(method, &headers));
        }
        assert!(is_of_others(&headers(&[("sec-fetch-site", "cross-site")])));
        assert!(!is_of_others(&headers(&[("sec-fetch-site", "same-origin")])) && !is_of_others(&HeaderMap::new()));
    }

    #[test]
    fn nobody_is_sent_to_another_origin() {
        // Aim: a path with its query comes back as it was; what a browser may read as another host, what is too long, and the login's own paths are `/`.
        let own = ["/oauth2/callback", "/oauth2/logout"];
        for (target, back) in [
            ("/", "/"),
            ("/a/b?c=d&e=%2F", "/a/b?c=d&e=%2F"),
            ("//evil.example/", "/"),
            ("/\\evil.example", "/"),
            ("/a\\b", "/"),
            ("https://evil.example/", "/"),
            ("evil", "/"),
            ("", "/"),
            ("/a\r\nset-cookie: b", "/"),
            ("/a b", "/"),
            ("/\u{e4}", "/"),
            ("/oauth2/callback?code=1", "/"),
            ("/oauth2/logout", "/"),
            ("/oauth2/callbacks", "/oauth2/callbacks"),
        ] {
            assert_eq!(way_back(&Method::GET, target, &own), back, "{target}");
        }
        let (most, more) = ("/".to_owned() + &"a".repeat(RETURN_BYTES_MAX - 1), "/".to_owned() + &"a".repeat(RETURN_BYTES_MAX));
        assert_eq!((way_back(&Method::GET, &most, &own), way_back(&Method::GET, &more, &own)), (&*most, "/"));
        assert_eq!((way_back(&Method::POST, "/a", &own), way_back(&Method::HEAD, "/a", &own)), ("/", "/a"));
    }
}
