//! Cookies, as far as a proxy reads and writes them (RFC 6265).

use std::time::Duration;

use http::{HeaderMap, header};

use crate::rejected::Wrong;

/// Longest name or path of a cookie of ours, in bytes.
const COOKIE_TEXT_BYTES_MAX: usize = 1024;

/// The first cookie of that name.
pub(super) fn find<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    let pairs = headers.get_all(header::COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    pairs.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// A name that a cookie may have: a token (RFC 6265, section 4.1.1).
pub(super) fn name(text: &str) -> Result<String, Wrong> {
    let special = |byte: u8| b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.is_empty() || text.len() > COOKIE_TEXT_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || special(byte)) {
        return Err(Wrong::new("name", format!("`{}` is not a cookie's name", text.escape_debug())));
    }
    Ok(text.to_owned())
}

/// A path that a cookie may have; `/` where none is given.
pub(super) fn path(text: &str) -> Result<String, Wrong> {
    if text.is_empty() {
        return Ok("/".to_owned());
    }
    let plain = text.len() <= COOKIE_TEXT_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b';');
    if !plain || !text.starts_with('/') {
        return Err(Wrong::new("path", format!("`{}` is not a cookie's path: it starts with `/`", text.escape_debug())));
    }
    Ok(text.to_owned())
}

/// The value of `set-cookie`. Scripts never see it; other sites' requests carry it only where a user follows a link.
pub(super) fn written((name, value): (&str, &str), path: &str, life: Option<Duration>, secure: bool) -> String {
    let life = life.map(|life| format!("; Max-Age={}", life.as_secs())).unwrap_or_default();
    let secure = if secure { "; Secure" } else { "" };
    format!("{name}={value}; Path={path}{life}; HttpOnly; SameSite=Lax{secure}")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        // Aim: in any header line, with or without spaces; never by a part of a name; the first counts.
        let mut headers = HeaderMap::new();
        headers.append("cookie", HeaderValue::from_static("xsid=no; sid2=no;sid=one; sid=two"));
        headers.append("cookie", HeaderValue::from_static("other=a=b"));
        for (wanted, value) in [("sid", Some("one")), ("other", Some("a=b")), ("si", None), ("", None)] {
            assert_eq!(find(&headers, wanted), value.map(str::as_bytes), "{wanted}");
        }
        assert_eq!(find(&HeaderMap::new(), "sid"), None);
    }

    #[test]
    fn what_would_break_a_cookie_is_refused() {
        // Aim: a name or path cannot smuggle in attributes or lines.
        assert!(["", "a b", "a;b", "a=b", "a\n", "ä"].iter().all(|text| name(text).is_err()));
        assert!(["a", "/a;b", "/a b", "/\n"].iter().all(|text| path(text).is_err()));
        assert_eq!((name("mw-session").unwrap(), path("").unwrap()), ("mw-session".to_owned(), "/".to_owned()));
        let text = written(("a", "b"), "/c", Some(Duration::from_secs(60)), true);
        assert_eq!(text, "a=b; Path=/c; Max-Age=60; HttpOnly; SameSite=Lax; Secure");
    }
}
