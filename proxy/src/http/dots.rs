//! Dot segments of a path (RFC 3986, section 5.2.4): resolved wherever a request comes in, so that what is matched, judged and sent on is
//! one and the same: at the first hop once and for all, unless a peer that is no proxy of ours says more. Everything else stays as it came: empty segments, encoded slashes, parameters, case.

use http::Uri;
use http::uri::PathAndQuery;

/// Gives a target its path without dot segments, plain or percent-encoded. Whether that can be done: `false` for one that climbs above
/// the root. A path without any costs a look at each pair of its bytes.
#[must_use]
pub(super) fn resolve(uri: &mut Uri) -> bool {
    let path = uri.path();
    if !path.as_bytes().windows(2).any(|pair| matches!(pair, b"/." | b"/%")) {
        return true;
    }
    let Some(resolved) = resolved(path) else { return false };
    if resolved == path {
        return true;
    }
    let whole = uri.query().map_or_else(|| resolved.clone(), |query| format!("{resolved}?{query}"));
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = PathAndQuery::try_from(whole).ok();
    Uri::from_parts(parts).map(|changed| *uri = changed).is_ok()
}

/// How many dots a segment is, if it is one or two and nothing else.
fn dots(segment: &str) -> usize {
    let (mut rest, mut count) = (segment, 0);
    while !rest.is_empty() {
        let Some(left) = [".", "%2e", "%2E"].iter().find_map(|dot| rest.strip_prefix(dot)) else { return 0 };
        (rest, count) = (left, count + 1);
    }
    if count > 2 { 0 } else { count }
}

/// The path without dot segments; `None` above the root.
fn resolved(path: &str) -> Option<String> {
    let mut kept = Vec::new();
    let mut ends_in_dots = false;
    for segment in path.split('/').skip(1) {
        let count = dots(segment);
        ends_in_dots = count > 0;
        match count {
            0 => kept.push(segment),
            1 => {}
            _ => drop(kept.pop()?),
        }
    }
    if ends_in_dots {
        kept.push("");
    }
    Some(format!("/{}", kept.join("/")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dot_segments_are_resolved_and_nothing_else() {
        // Aim: plain and encoded dots, at any place; what is above the root is refused; queries and everything else stay.
        for (path, wanted) in [
            ("/a/b?c=/../d", Some("/a/b?c=/../d")),
            ("/a/./b", Some("/a/b")),
            ("/a/../b?q", Some("/b?q")),
            ("/a/%2e%2E/b", Some("/b")),
            ("/a/.%2e/b", Some("/b")),
            ("/a/..", Some("/")),
            ("/a/b/.", Some("/a/b/")),
            ("/.", Some("/")),
            ("/a//../b", Some("/a/b")),
            ("/a/.../b", Some("/a/.../b")),
            ("/a/..b/.c", Some("/a/..b/.c")),
            ("/a/%2Fb/%20", Some("/a/%2Fb/%20")),
            ("/..", None),
            ("/a/../../b", None),
            ("/%2e%2e", None),
        ] {
            let mut uri: Uri = path.parse().unwrap();
            let done = resolve(&mut uri);
            assert_eq!(done.then(|| uri.to_string()).as_deref(), wanted, "{path}");
        }
        let mut absolute: Uri = "http://a:80/b/../c?d".parse().unwrap();
        assert!(resolve(&mut absolute));
        assert_eq!(absolute, "http://a:80/c?d");
    }

    proptest! {
        #[test]
        fn once_is_enough(segments in prop::collection::vec(prop::sample::select(vec!["", ".", "..", "%2e", "%2E.", "a", "b%2F", "..."]), 0..8)) {
            // Aim: what is resolved has no dot segment left.
            let path = format!("/{}", segments.join("/"));
            if let Some(once) = resolved(&path) {
                prop_assert_eq!(resolved(&once), Some(once.clone()));
                prop_assert!(once.starts_with('/'));
            }
        }
    }
}
