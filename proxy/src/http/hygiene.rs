//! What an edge demands of a client's head, and what it takes off, before anything is asked of it.

use engine::decide::Fault;
use engine::failure::Reason;
use engine::model::{CLIENT_HEAD_BYTES_MAX, ClientRules, EscapedSlashes, Underscores};
use http::{HeaderMap, HeaderName, StatusCode, Uri, Version, request, uri::PathAndQuery};

use super::dots;

/// Fields that HTTP/2 counts beside names and values (RFC 9113, section 6.5.2).
const FIELD_BYTES: usize = 32;

/// Judges a head that is well-formed, and cleans it. `fields`: how many it came with.
///
/// # Errors
/// A rule is broken: which, and how it is answered.
pub fn inspect(parts: &mut request::Parts, fields: usize, rules: &ClientRules) -> Result<(), Fault> {
    version(parts.version, rules)?;
    sizes(parts, fields, rules)?;
    if rules.paths.slashes != EscapedSlashes::Keep {
        slashes(&mut parts.uri, rules.paths.slashes)?;
    }
    if rules.paths.underscores != Underscores::Keep {
        underscores(&mut parts.headers, rules.paths.underscores)?;
    }
    for name in &rules.headers.remove {
        parts.headers.remove(name);
    }
    for (name, value) in &rules.headers.set {
        parts.headers.insert(name, value.clone());
    }
    Ok(())
}

const fn bad(why: &'static str) -> Fault {
    Fault { status: StatusCode::BAD_REQUEST, reason: Reason::BadRequest, why }
}

const fn large(status: StatusCode, why: &'static str) -> Fault {
    Fault { status, reason: Reason::TooLarge, why }
}

/// What TLS has not been told already by ALPN.
fn version(version: Version, rules: &ClientRules) -> Result<(), Fault> {
    match version {
        Version::HTTP_2 if rules.http2.disabled => Err(bad("HTTP/2 is not spoken here (ClientPolicy http2.enabled)")),
        // It is on where its port is open.
        Version::HTTP_2 | Version::HTTP_3 => Ok(()),
        _ if rules.http1.disabled => Err(bad("HTTP/1 is not spoken here (ClientPolicy http1.enabled)")),
        Version::HTTP_10 if rules.http1.refuse_10 => Err(bad("HTTP/1.0 is not spoken here (ClientPolicy http1.allow10)")),
        _ => Ok(()),
    }
}

fn sizes(parts: &request::Parts, fields: usize, rules: &ClientRules) -> Result<(), Fault> {
    let limits = &rules.limits;
    let target = parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
    if target > limits.uri_bytes as usize {
        return Err(large(StatusCode::URI_TOO_LONG, "path and query are longer than ClientPolicy limits.uriBytes"));
    }
    if fields > limits.headers as usize {
        return Err(large(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the head has more fields than ClientPolicy limits.headers"));
    }
    // The largest is what the servers of both versions go by themselves.
    if limits.header_bytes < CLIENT_HEAD_BYTES_MAX {
        let field = |(name, value): (&HeaderName, &http::HeaderValue)| name.as_str().len() + value.len() + FIELD_BYTES;
        if parts.headers.iter().map(field).sum::<usize>() + target > limits.header_bytes as usize {
            return Err(large(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is larger than ClientPolicy limits.headerBytes"));
        }
    }
    Ok(())
}

/// `%2F` and `%5C`. What is decoded is resolved once more: it may have become a dot segment.
fn slashes(uri: &mut Uri, rule: EscapedSlashes) -> Result<(), Fault> {
    if !uri.path().as_bytes().windows(3).any(|three| escaped(three).is_some()) {
        return Ok(());
    }
    if rule == EscapedSlashes::Reject {
        return Err(bad("the path holds an escaped slash (ClientPolicy path.escapedSlashes)"));
    }
    let unreadable = || bad("the path is none once its escaped slashes are read");
    let mut text = Vec::with_capacity(uri.path_and_query().map_or(0, |path| path.as_str().len()));
    let mut rest = uri.path().as_bytes();
    while let [first, ..] = rest {
        match escaped(rest) {
            Some(slash) => {
                text.push(slash);
                rest = &rest[3..];
            }
            None => {
                text.push(*first);
                rest = &rest[1..];
            }
        }
    }
    if let Some(query) = uri.query() {
        text.push(b'?');
        text.extend_from_slice(query.as_bytes());
    }
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(text).map_err(|_| unreadable())?);
    *uri = Uri::from_parts(parts).map_err(|_| unreadable())?;
    if dots::resolve(uri) { Ok(()) } else { Err(bad("the path climbs above the root")) }
}

/// A slash, if one begins here. `\` is one to those who read paths as some systems do.
fn escaped(bytes: &[u8]) -> Option<u8> {
    match bytes {
        [b'%', b'2', b'f' | b'F', ..] | [b'%', b'5', b'c' | b'C', ..] => Some(b'/'),
        _ => None,
    }
}

/// Some applications read them as hyphens (CGI, RFC 3875, section 4.1.18): in that spelling they could say what only the mesh may.
fn underscores(headers: &mut HeaderMap, rule: Underscores) -> Result<(), Fault> {
    let with = |name: &&HeaderName| name.as_str().bytes().any(|byte| byte == b'_');
    if !headers.keys().any(|name| with(&name)) {
        return Ok(());
    }
    if rule == Underscores::Reject {
        return Err(bad("a header has an underscore in its name (ClientPolicy path.underscoreHeaders)"));
    }
    let found: Vec<HeaderName> = headers.keys().filter(with).cloned().collect();
    for name in found {
        headers.remove(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use engine::model::{ClientLimits, EarlyHeaders, Http1Rules, Http2Rules, PathRules};

    use super::*;

    /// What becomes of a GET: the status of its refusal, or its target and headers.
    fn inspected(rules: &ClientRules, version: Version, target: &str, headers: &[(&str, &str)]) -> Result<String, u16> {
        let mut request = http::Request::builder().version(version).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        let fields = parts.headers.len();
        inspect(&mut parts, fields, rules).map_err(|fault| fault.status.as_u16())?;
        let told: Vec<String> = parts.headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        Ok(format!("{} {}", parts.uri, told.join(" ")).trim_end().to_owned())
    }

    #[test]
    fn sizes_have_their_own_answers() {
        // Aim: 414 for the target, 431 for fields and for all bytes together; what is at the bound passes.
        let limits = ClientLimits { header_bytes: 200, headers: 2, uri_bytes: 20 };
        let rules = ClientRules { limits, ..ClientRules::default() };
        let get = |target: &str, headers: &[(&str, &str)]| inspected(&rules, Version::HTTP_11, target, headers).err();
        assert_eq!(get("/3456789?123456789.", &[]), None);
        assert_eq!(get("/3456789?123456789.20", &[]), Some(414));
        assert_eq!(get("/", &[("a", "1"), ("b", "1")]), None);
        assert_eq!(get("/", &[("a", "1"), ("b", "1"), ("c", "1")]), Some(431));
        assert_eq!(get("/", &[("a", &"x".repeat(166))]), None, "1 + 166 + 32 + the target");
        assert_eq!(get("/", &[("a", &"x".repeat(167))]), Some(431));
        let usual = ClientRules::default();
        assert_eq!(inspected(&usual, Version::HTTP_2, &format!("/{}", "x".repeat(16_383)), &[]).err(), None);
        assert_eq!(inspected(&usual, Version::HTTP_2, &format!("/{}", "x".repeat(16_384)), &[]).err(), Some(414));
    }

    #[test]
    fn escaped_slashes_are_read_as_the_policy_says() {
        // Aim: kept, refused, or decoded once; what they become is resolved, and may not climb.
        let with = |slashes| ClientRules { paths: PathRules { slashes, ..PathRules::default() }, ..ClientRules::default() };
        let get = |slashes, target: &str| inspected(&with(slashes), Version::HTTP_11, target, &[]);
        assert_eq!(get(EscapedSlashes::Keep, "/a%2Fb%5c?x=%2F").unwrap(), "/a%2Fb%5c?x=%2F");
        assert_eq!(get(EscapedSlashes::Reject, "/a%2fb"), Err(400));
        assert_eq!(get(EscapedSlashes::Reject, "/a?b=%2f").unwrap(), "/a?b=%2f");
        assert_eq!(get(EscapedSlashes::Decode, "/a%2Fb%5Cc?x=%2F").unwrap(), "/a/b/c?x=%2F");
        assert_eq!(get(EscapedSlashes::Decode, "/a%252Fb").unwrap(), "/a%252Fb", "once");
        assert_eq!(get(EscapedSlashes::Decode, "/a/..%2Fb").unwrap(), "/b");
        assert_eq!(get(EscapedSlashes::Decode, "/..%2Fb"), Err(400));
    }

    #[test]
    fn underscores_and_early_headers() {
        // Aim: by default names with underscores are taken off; what a policy sets and removes is so before anything is asked.
        let rules = |underscores| ClientRules { paths: PathRules { underscores, ..PathRules::default() }, ..ClientRules::default() };
        let sent = [("x_user", "root"), ("x-user", "me")];
        assert_eq!(inspected(&rules(Underscores::Drop), Version::HTTP_11, "/", &sent).unwrap(), "/ x-user=me");
        assert_eq!(inspected(&rules(Underscores::Keep), Version::HTTP_11, "/", &sent).unwrap(), "/ x_user=root x-user=me");
        assert_eq!(inspected(&rules(Underscores::Reject), Version::HTTP_11, "/", &sent), Err(400));
        let name = HeaderName::from_static;
        let headers =
            EarlyHeaders { set: vec![(name("x-edge"), "yes".parse().unwrap())], remove: vec![name("x-user")], ..EarlyHeaders::default() };
        let early = ClientRules { headers, ..ClientRules::default() };
        assert_eq!(inspected(&early, Version::HTTP_2, "/", &[("x-edge", "no"), ("x-user", "me")]).unwrap(), "/ x-edge=yes");
    }

    #[test]
    fn versions_that_are_not_spoken_are_refused() {
        // Aim: each switch refuses its version and no other.
        let one = |http1| ClientRules { http1, ..ClientRules::default() };
        let off = one(Http1Rules { disabled: true, ..Http1Rules::default() });
        let no10 = one(Http1Rules { refuse_10: true, ..Http1Rules::default() });
        let no2 = ClientRules { http2: Http2Rules { disabled: true, ..Http2Rules::default() }, ..ClientRules::default() };
        for (rules, wanted) in [(off, [false, false, true]), (no10, [false, true, true]), (no2, [true, true, false])] {
            let found = [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2].map(|version| inspected(&rules, version, "/", &[]).is_ok());
            assert_eq!(found, wanted);
        }
    }
}
