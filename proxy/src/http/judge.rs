//! What a head must be before anybody acts on it. hyper and the HTTP/2 library leave these rules to whom they serve.
//!
//! What two readers could read in two ways is refused, however likely one of them is.

use engine::decide::Fault;
use engine::failure::{Failure, Reason};
use engine::versions::has_streams;
use http::header::{EXPECT, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, request};

use super::dots;
use super::hop::{BadHost, OfHop};
use super::packed::{X_MESHWRIGHT_FIELDS, unpack};
use crate::ground::body::Received;
use crate::ground::limits::{FIELDS_ADDED_MAX, FIELDS_MAX};

/// Which hop of the mesh a message has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// It comes from outside, or from the application beside us: bounds are counted here.
    First,
    /// It comes from another sidecar or an edge, which may have added something.
    Inner,
}

/// How a request came, before anything was added to it.
#[derive(Clone, Copy, Debug)]
pub struct Raw {
    at: Hop,
    fields: usize,
    fragment: bool,
    /// What it has of its hop, where it was looked for already.
    walked: Option<OfHop>,
}

impl Raw {
    /// As it comes from its connection, and which of the names that matter it has. What is added before it is judged must be none of them.
    pub fn of(headers: &HeaderMap, received: &Received, at: Hop) -> (Self, OfHop) {
        let hop = OfHop::in_headers(headers);
        let fragment = received.line().is_some_and(|line| line.has_fragment());
        (Self { at, fields: headers.len(), fragment, walked: Some(hop) }, hop)
    }

    /// How many fields it came with.
    pub const fn fields(self) -> usize {
        self.fields
    }

    /// With so many fields, over no connection.
    pub const fn plainly(at: Hop, fields: usize) -> Self {
        Self { at, fields, fragment: false, walked: None }
    }
}

const fn bad(why: &'static str) -> Fault {
    Fault { status: StatusCode::BAD_REQUEST, reason: Reason::BadRequest, why }
}

/// Judges a request's head, and resolves the dot segments of its path. What it says of its hop is handed back,
/// so that nobody has to look for it again.
///
/// # Errors
/// A rule is broken: which, and how it is answered.
pub fn judge_request(parts: &mut request::Parts, raw: Raw) -> Result<OfHop, Fault> {
    let Raw { at, mut fields, fragment, walked } = raw;
    let mut hop = walked.unwrap_or_else(|| OfHop::in_headers(&parts.headers));
    if hop.packed {
        let before = parts.headers.len();
        hop = unpacked(&mut parts.headers, at).ok_or(bad("packed fields are not packed as a mesh peer does"))?;
        fields = (fields + parts.headers.len()).saturating_sub(before);
    }
    if parts.version == Version::HTTP_3 && parts.method == Method::CONNECT {
        let why = "CONNECT is not carried over HTTP/3: come by HTTP/2 or HTTP/1.1";
        return Err(Fault { status: StatusCode::NOT_IMPLEMENTED, ..bad(why) });
    }
    host(parts, hop)?;
    target(parts)?;
    // Also of a peer: one that holds a key need not be a proxy of ours, which has left none.
    if !dots::resolve(&mut parts.uri) {
        return Err(bad("the path climbs above the root"));
    }
    if fragment {
        return Err(bad("the target has a fragment (RFC 9112, section 3.2)"));
    }
    if hop.transfer_encoding && !one_final_chunked(&parts.headers) {
        return Err(bad("Transfer-Encoding is not one final `chunked` (RFC 9112, section 6.1)"));
    }
    if hop.transfer_encoding && is_coded(&parts.headers) {
        let why = "Transfer-Encoding codes the body, which no hop of HTTP/2 could say (RFC 9112, section 6.1)";
        return Err(Fault { status: StatusCode::NOT_IMPLEMENTED, ..bad(why) });
    }
    if hop.expect && parts.version != Version::HTTP_10 && !expects_only_continue(&parts.headers) {
        let why = "Expect asks for something other than 100-continue (RFC 9110, section 10.1.1)";
        return Err(Fault { status: StatusCode::EXPECTATION_FAILED, ..bad(why) });
    }
    if fields > fields_max(at) {
        let why = "the head has more fields than a head may have";
        return Err(Fault { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, reason: Reason::TooLarge, why });
    }
    Ok(hop)
}

/// Judges an answer's head, as [`judge_request`] does a request's.
///
/// # Errors
/// A rule is broken.
pub fn judge_answer(headers: &mut HeaderMap, at: Hop) -> Result<OfHop, Failure> {
    let mut hop = OfHop::in_headers(headers);
    if hop.packed {
        let broken = || Failure::new(Reason::UpstreamProtocol, "the answer's packed fields are not packed as a mesh peer does");
        hop = unpacked(headers, at).ok_or_else(broken)?;
    }
    if hop.transfer_encoding && !one_final_chunked(headers) {
        return Err(Failure::new(Reason::UpstreamProtocol, "the answer's Transfer-Encoding is not one final `chunked`"));
    }
    if hop.transfer_encoding && is_coded(headers) {
        return Err(Failure::new(Reason::UpstreamProtocol, "the answer's Transfer-Encoding codes its body, which nobody has asked for"));
    }
    if headers.len() > fields_max(at) {
        return Err(Failure::upstream(Reason::TooLarge, "the answer's head has more fields than a head may have"));
    }
    Ok(hop)
}

/// Packed fields mean something between sidecars only.
#[cold]
fn unpacked(headers: &mut HeaderMap, at: Hop) -> Option<OfHop> {
    match at {
        Hop::First => drop(headers.remove(X_MESHWRIGHT_FIELDS)),
        Hop::Inner => unpack(headers)?,
    }
    Some(OfHop::in_headers(headers))
}

const fn fields_max(at: Hop) -> usize {
    match at {
        Hop::First => FIELDS_MAX,
        Hop::Inner => FIELDS_MAX + FIELDS_ADDED_MAX,
    }
}

/// One host, which is one (RFC 9112, section 3.2; RFC 9113, section 8.3.1). HTTP/1.1 must name it.
fn host(parts: &request::Parts, hop: OfHop) -> Result<(), Fault> {
    let authority = parts.uri.authority();
    match hop.bad_host {
        Some(BadHost::Several) => return Err(bad("more than one Host")),
        Some(BadHost::NoHost) => return Err(bad("Host is no host")),
        None if hop.host => {}
        None if parts.version != Version::HTTP_11 || authority.is_some() => return Ok(()),
        None => return Err(bad("no Host")),
    }
    if has_streams(parts.version)
        && let Some(name) = authority
        && parts.headers.get(HOST).is_some_and(|host| !name.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()))
    {
        return Err(bad("Host and :authority differ"));
    }
    Ok(())
}

/// A target in the form that its method wants (RFC 9112, section 3.2; RFC 9113, sections 8.3.1 and 8.5).
fn target(parts: &request::Parts) -> Result<(), Fault> {
    let uri = &parts.uri;
    let Some(path) = uri.path_and_query() else {
        // Only a name: for CONNECT, and with a port.
        return match (parts.method == Method::CONNECT, uri.port_u16()) {
            (false, _) => Err(bad("the target is no path: it lacks its slash")),
            (true, None | Some(0)) => Err(bad("the target of CONNECT has no port")),
            (true, Some(_)) => no_user(parts),
        };
    };
    if parts.method == Method::CONNECT {
        return Err(bad("the target of CONNECT is no host and port"));
    }
    match path.as_str().as_bytes() {
        [b'/', ..] => {}
        b"*" if parts.method == Method::OPTIONS => {}
        b"*" => return Err(bad("the target `*` is for OPTIONS")),
        _ => return Err(bad("the target is no path: it lacks its slash")),
    }
    match uri.scheme_str() {
        None => Ok(()),
        Some("http" | "https") => no_user(parts),
        Some(_) => Err(bad("the target's scheme is neither http nor https")),
    }
}

/// Who reads as far as the `@` and who reads on would see different hosts (RFC 9110, section 4.2.4).
fn no_user(parts: &request::Parts) -> Result<(), Fault> {
    match parts.uri.authority() {
        Some(authority) if authority.as_str().contains('@') => Err(bad("the target names a user")),
        _ => Ok(()),
    }
}

/// `chunked` once and last, in one line: who takes the first of several lines, or the last, would frame by another word. What comes before
/// it are codings of the body's own, which have names (RFC 9112, section 7).
fn one_final_chunked(headers: &HeaderMap) -> bool {
    const OF_BODIES: [&[u8]; 5] = [b"gzip", b"deflate", b"compress", b"x-gzip", b"x-compress"];
    let mut lines = headers.get_all(TRANSFER_ENCODING).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return false };
    let mut codings = members(line).rev();
    let known = |coding: &[u8]| OF_BODIES.iter().any(|known| coding.eq_ignore_ascii_case(known));
    codings.next().is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked")) && codings.all(known)
}

/// Whether the body has codings of its own below `chunked`. They are of one hop: the next one may be HTTP/2, which has no word for them, and whoever
/// is shown a body would see it coded.
fn is_coded(headers: &HeaderMap) -> bool {
    headers.get(TRANSFER_ENCODING).is_some_and(|line| members(line).nth(1).is_some())
}

/// Also where it is said twice.
fn expects_only_continue(headers: &HeaderMap) -> bool {
    headers.get_all(EXPECT).iter().flat_map(members).all(|member| member.is_empty() || member.eq_ignore_ascii_case(b"100-continue"))
}

/// The members of a comma-separated value, empty ones too.
fn members(value: &HeaderValue) -> impl DoubleEndedIterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// The length that a head declares, if it is one.
pub fn declared_length(headers: &HeaderMap) -> Option<u64> {
    let value: &HeaderValue = headers.get(http::header::CONTENT_LENGTH)?;
    let digits = value.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    value.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(version: Version, method: &str, uri: &str, headers: &[(&str, &str)]) -> Option<u16> {
        let mut request = http::Request::builder().version(version).method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        let raw = Raw::plainly(Hop::First, parts.headers.len());
        judge_request(&mut parts, raw).err().map(|wrong| wrong.status.as_u16())
    }

    const HOST_A: (&str, &str) = ("host", "a");

    #[test]
    fn targets_have_the_form_of_their_method() {
        // Aim: origin, absolute, authority and asterisk form, each where it belongs and nowhere else.
        for (method, uri, wanted) in [
            ("GET", "/", None),
            ("GET", "//a?b", None),
            ("GET", "http://a/b", None),
            ("GET", "https://a:1", None),
            ("OPTIONS", "*", None),
            ("CONNECT", "a:80", None),
            ("CONNECT", "[::1]:80", None),
            ("DELETE", "products", Some(400)),
            ("GET", "a:80", Some(400)),
            ("GET", "*", Some(400)),
            ("GET", "ftp://a/", Some(400)),
            ("GET", "http://u@a/", Some(400)),
            ("CONNECT", "a", Some(400)),
            ("CONNECT", "a:0", Some(400)),
            ("CONNECT", "u@a:80", Some(400)),
            ("CONNECT", "/", Some(400)),
            ("CONNECT", "http://a:80/", Some(400)),
            ("CONNECT", "*", Some(400)),
        ] {
            assert_eq!(judged(Version::HTTP_11, method, uri, &[HOST_A]), wanted, "{method} {uri}");
        }
    }

    #[test]
    fn h2s_rules_on_names_and_schemes() {
        // Aim: RFC 9113, section 8.3.1, which the library leaves to us: authority against host, no user, schemes, `*`.
        for (method, uri, headers, wanted) in [
            ("GET", "http://a/", &[][..], None),
            ("GET", "https://a/", &[HOST_A], None),
            ("GET", "http://A/", &[HOST_A], None),
            ("GET", "/", &[HOST_A], None),
            ("GET", "http://b/", &[HOST_A], Some(400)),
            ("GET", "http://a:80/", &[HOST_A], Some(400)),
            ("GET", "http://a@b/", &[], Some(400)),
            ("GET", "ws://a/", &[], Some(400)),
            ("CONNECT", "a:80", &[], None),
            ("CONNECT", "a", &[], Some(400)),
        ] {
            assert_eq!(judged(Version::HTTP_2, method, uri, headers), wanted, "{method} {uri} {headers:?}");
        }
    }

    #[test]
    fn hypers_rules_on_hosts_codings_and_expectations() {
        // Aim: RFC 9112, sections 3.2 and 6.1, RFC 9110, section 10.1.1, which hyper leaves to us.
        let te = |value| ("transfer-encoding", value);
        let expect = |value| ("expect", value);
        for (headers, wanted) in [
            (vec![HOST_A], None),
            (vec![("host", "[::1]:80")], None),
            (vec![("host", "")], None),
            (vec![], Some(400)),
            (vec![HOST_A, HOST_A], Some(400)),
            (vec![("host", "a/b")], Some(400)),
            (vec![("host", "u@a")], Some(400)),
            (vec![("host", "a b")], Some(400)),
            (vec![("host", "a#b")], Some(400)),
            (vec![HOST_A, te("chunked")], None),
            (vec![HOST_A, te("Chunked")], None),
            (vec![HOST_A, te("gzip, chunked")], Some(501)),
            (vec![HOST_A, te("x-compress,gzip,chunked")], Some(501)),
            (vec![HOST_A, te("gzip"), te("chunked")], Some(400)),
            (vec![HOST_A, te("identity, chunked")], Some(400)),
            (vec![HOST_A, te("x y, chunked")], Some(400)),
            (vec![HOST_A, te("chunked, chunked")], Some(400)),
            (vec![HOST_A, te("chunked"), te("chunked")], Some(400)),
            (vec![HOST_A, te("chunked, gzip")], Some(400)),
            (vec![HOST_A, te("gzip")], Some(400)),
            (vec![HOST_A, te(", chunked")], Some(400)),
            (vec![HOST_A, te("chunked,")], Some(400)),
            (vec![HOST_A, te("")], Some(400)),
            (vec![HOST_A, te("chunked;a=b")], Some(400)),
            (vec![HOST_A, expect("100-Continue")], None),
            (vec![HOST_A, expect("100-continue, 100-continue")], None),
            (vec![HOST_A, expect("200-ok")], Some(417)),
            (vec![HOST_A, expect("100-continue, magic")], Some(417)),
        ] {
            assert_eq!(judged(Version::HTTP_11, "GET", "/", &headers), wanted, "{headers:?}");
        }
        assert_eq!(judged(Version::HTTP_10, "GET", "/", &[expect("magic")]), None, "HTTP/1.0 knows no expectations");
    }

    #[test]
    fn heads_have_a_bound_and_the_mesh_has_room_beyond_it() {
        // Aim: a hundred fields where a head comes in, and sixteen more between sidecars, of requests and answers.
        let with = |count: usize| {
            let mut parts = http::Request::new(()).into_parts().0;
            for number in 1..count {
                parts.headers.append(format!("x-{number}").parse::<http::HeaderName>().unwrap(), HeaderValue::from_static("1"));
            }
            parts.headers.insert(HOST, HeaderValue::from_static("a"));
            parts
        };
        for (count, at, fits) in [(100, Hop::First, true), (101, Hop::First, false), (116, Hop::Inner, true), (117, Hop::Inner, false)] {
            let mut parts = with(count);
            let judged = judge_request(&mut parts, Raw::plainly(at, count));
            assert_eq!(judged.is_ok(), fits, "{count}");
            if let Err(wrong) = judged {
                assert_eq!((wrong.status.as_u16(), wrong.reason), (431, Reason::TooLarge));
            }
            assert_eq!(judge_answer(&mut parts.headers, at).is_ok(), fits, "{count}");
        }
    }
}
