//! Headers that belong to one hop (RFC 9110, section 7.6.1).

use engine::consumers::CONSUMER_HEADER;
use engine::failure::REASON_HEADER;
use engine::versions::has_streams;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, request};

use super::forwarded::{CLIENT_CERT_HEADER, is_forwarded};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// What `connection` cannot take off: what this proxy says itself may stand there already, and a sender must not unsay it.
const KEPT: [HeaderName; 11] = [
    UPGRADE,
    TE,
    HOST,
    HeaderName::from_static("x-forwarded-client-cert"),
    HeaderName::from_static("forwarded"),
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("x-request-id"),
];

/// Names in which the mesh says something. Some applications read `x_forwarded_for` as `x-forwarded-for` (CGI, RFC 3875, section 4.1.18): in that
/// spelling they would be the caller's word for the mesh's.
const SAID: [&str; 9] = [
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-meshwright-client-cert",
    "x-meshwright-consumer",
    "x-meshwright-deadline-ms",
    "x-meshwright-fields",
    "x-meshwright-reason",
    "x-meshwright-retry",
];

/// Whether a request asks for its connection to become something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// It does not.
    No,
    /// By `Upgrade` (WebSocket and others) or CONNECT.
    Asked,
}

/// Takes off a request what was meant for this hop alone. `Upgrade` stays where it is asked for (h2c excepted: this hop speaks HTTP/2 by
/// prior knowledge only), `te: trailers` stays, `transfer-encoding` stays for hyper to frame by. `there` is what the head was judged to have.
pub fn clean_request(parts: &mut request::Parts, there: OfHop) -> Upgrade {
    let connect = parts.method == Method::CONNECT;
    let headers = &mut parts.headers;
    if let Some(authority) = parts.uri.authority() {
        only_name(headers, authority, parts.version, connect);
    }
    if there.shadow {
        remove_shadows(headers);
    }
    if there.reason {
        // It is of answers, and the mesh's to say.
        headers.remove(REASON_HEADER);
    }
    if there.te {
        keep_te_trailers(headers);
    }
    if there.expect && parts.version == Version::HTTP_10 {
        // It goes on as HTTP/1.1, where it would mean something (RFC 9110, section 10.1.1).
        headers.remove(EXPECT);
    }
    let mut upgrades = false;
    if there.connection {
        upgrades = parts.version == Version::HTTP_11 && names_upgrade(headers);
        clean_connection(headers, upgrades, there);
    } else if there.upgrade {
        // Without `connection: upgrade` the header means nothing.
        headers.remove(UPGRADE);
    }
    there.clean_keeping_alive(headers);
    if connect || upgrades { Upgrade::Asked } else { Upgrade::No }
}

/// Leaves a target's authority, which was judged, the only name: another beside it would be believed by some.
fn only_name(headers: &mut HeaderMap, authority: &Authority, version: Version, connect: bool) {
    if has_streams(version) {
        // RFC 9113, section 8.3.1.
        headers.remove(HOST);
    } else if !connect
        && headers.get(HOST).is_none_or(|host| host.as_bytes() != authority.as_str().as_bytes())
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        // RFC 9112, section 3.2.2. Inserting keeps the place and the case of the name.
        headers.insert(HOST, host);
    }
}

/// Which headers are there that belong to one hop or are not believed of everybody: one walk spares a lookup for each, of which most
/// messages have none.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "each is the name of a header")]
pub struct OfHop {
    pub te: bool,
    pub expect: bool,
    pub upgrade: bool,
    pub connection: bool,
    pub keep_alive: bool,
    pub http2_settings: bool,
    pub proxy_connection: bool,
    pub transfer_encoding: bool,
    pub reason: bool,
    pub packed: bool,
    pub deadline: bool,
    pub layered: bool,
    pub consumer: bool,
    pub client_cert: bool,
    pub grpc_timeout: bool,
    pub tracestate: bool,
    pub traceparent: bool,
    pub b3: bool,
    pub x_b3: bool,
    pub host: bool,
    /// What says for whom a proxy asks, beside what an edge always says itself.
    pub forwarded: bool,
    /// A name that some read as one of the mesh's own.
    pub shadow: bool,
    /// More than one, or one that is none.
    pub bad_host: Option<BadHost>,
}

/// What is wrong with `host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHost {
    /// There is more than one.
    Several,
    /// It holds what no host does.
    NoHost,
}

impl OfHop {
    /// Looks once at each name.
    pub fn in_headers(headers: &HeaderMap) -> Self {
        let (mut there, mut host) = (Self::default(), None);
        for (at, name) in headers.keys().enumerate() {
            let name = name.as_str();
            there.forwarded |= is_forwarded(name);
            match name.len() {
                2 if name == "te" => there.te = true,
                2 => there.b3 |= name == "b3",
                4 if name == "host" => host = Some(at),
                6 => there.expect |= name == "expect",
                7 => there.upgrade |= name == "upgrade",
                10 if name == "connection" => there.connection = true,
                10 if name == "tracestate" => there.tracestate = true,
                10 if name == "x-b3-flags" => there.x_b3 = true,
                10 => there.keep_alive |= name == "keep-alive",
                11 => there.traceparent |= name == "traceparent",
                12 if name == "grpc-timeout" => there.grpc_timeout = true,
                12 => there.x_b3 |= name == "x-b3-sampled" || name == "x-b3-traceid",
                14 => there.http2_settings |= name == "http2-settings",
                15 | 23 => there.shadow |= shadows(name),
                16 => there.proxy_connection |= name == "proxy-connection",
                17 if name == "transfer-encoding" => there.transfer_encoding = true,
                18 if name == "x-meshwright-retry" => there.layered = true,
                19 if name == REASON_HEADER.as_str() => there.reason = true,
                19 if name == "x-meshwright-fields" => there.packed = true,
                21 if name == CONSUMER_HEADER.as_str() => there.consumer = true,
                24 if name == "x-meshwright-deadline-ms" => there.deadline = true,
                24 if name == CLIENT_CERT_HEADER.as_str() => there.client_cert = true,
                17..=19 | 21 | 24 => there.shadow |= shadows(name),
                _ => {}
            }
        }
        if let Some(at) = host {
            there.host = true;
            there.bad_host = bad_host(headers, at);
        }
        there
    }

    /// Takes off what is of this hop whether `connection` says so or not.
    fn clean_keeping_alive(self, headers: &mut HeaderMap) {
        if self.http2_settings {
            headers.remove(HTTP2_SETTINGS);
        }
        if self.keep_alive {
            headers.remove(KEEP_ALIVE);
        }
        if self.proxy_connection {
            headers.remove(PROXY_CONNECTION);
        }
    }
}

/// Takes off an answer what was meant for this hop alone. `mesh_peer` says whether the sender proved itself: only then is its word on
/// what the mesh did believed. A downstream of HTTP/1.0 knows no transfer codings, and what becomes a tunnel has no framing
/// (RFC 9110, section 9.3.6).
pub fn clean_response(headers: &mut HeaderMap, there: OfHop, switching: bool, downstream: Version, mesh_peer: bool) {
    if there.connection && !switching {
        clean_connection(headers, false, there);
    }
    if there.upgrade && !switching && has_streams(downstream) {
        headers.remove(UPGRADE);
    }
    there.clean_keeping_alive(headers);
    if switching {
        headers.remove(CONTENT_LENGTH);
        headers.remove(TRANSFER_ENCODING);
    } else if there.transfer_encoding {
        // It overrides a length, which must not travel on (RFC 9112, section 6.3).
        headers.remove(CONTENT_LENGTH);
        if downstream != Version::HTTP_11 {
            headers.remove(TRANSFER_ENCODING);
        }
    }
    if there.reason && !mesh_peer {
        headers.remove(REASON_HEADER);
    }
}

/// Whether a name is read as one that the mesh says something in, and is none.
fn shadows(name: &str) -> bool {
    name.starts_with('x') && name.contains('_') && is_said(name)
}

/// Whether a name is, or is read as, one that the mesh says something in.
fn is_said(name: &str) -> bool {
    let same = |(said, byte): (u8, u8)| said == byte || (said == b'-' && byte == b'_');
    SAID.iter().any(|said| said.len() == name.len() && said.bytes().zip(name.bytes()).all(same))
}

#[cold]
fn remove_shadows(headers: &mut HeaderMap) {
    let shadows: Vec<HeaderName> = headers.keys().filter(|name| shadows(name.as_str())).cloned().collect();
    for name in shadows {
        headers.remove(name);
    }
}

/// `te` may pass as `trailers` only: other codings are between neighbours.
fn keep_te_trailers(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(TE).iter();
    if lines.next().is_some_and(|value| value.as_bytes() == b"trailers") && lines.next().is_none() {
        return;
    }
    let trailers = headers.get_all(TE).iter().any(|value| list(value).any(|item| item.eq_ignore_ascii_case(b"trailers")));
    headers.remove(TE);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Whether `connection` names `upgrade` and `upgrade` names something, and nothing of HTTP: a server may choose any of what it finds there, and
/// requests within a tunnel are nobody's to judge.
fn names_upgrade(headers: &HeaderMap) -> bool {
    let asked = headers.get_all(CONNECTION).iter().any(|value| list(value).any(|item| item.eq_ignore_ascii_case(b"upgrade")));
    asked && headers.get_all(UPGRADE).iter().flat_map(list).next().is_some() && !names_http(headers)
}

/// Whether one of the protocols that `upgrade` names is HTTP: `h2c`, a draft of it, `HTTP/2.0`.
pub fn names_http(headers: &HeaderMap) -> bool {
    let begins = |protocol: &[u8], name: &[u8]| protocol.get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name));
    headers.get_all(UPGRADE).iter().flat_map(list).any(|protocol| begins(protocol, b"h2") || begins(protocol, b"http/"))
}

/// Takes off a request's trailers what only the mesh may say, in any spelling: some applications take them for more of the head.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    let said: Vec<HeaderName> = trailers.keys().filter(|name| is_said(name.as_str())).cloned().collect();
    for name in said {
        trailers.remove(name);
    }
}

/// Removes `connection` and every header it names; where an upgrade goes on, leaves those two.
fn clean_connection(headers: &mut HeaderMap, upgrades: bool, there: OfHop) {
    let some_name_repeats = headers.len() > headers.keys_len();
    if upgrades || some_name_repeats {
        clean_listed(headers, upgrades);
    } else if let Some(value) = headers.remove(CONNECTION)
        && !names_no_header(&value)
    {
        named(&value).for_each(|name| drop(headers.remove(name)));
    }
    if there.upgrade && !upgrades {
        headers.remove(UPGRADE);
    }
}

/// The same where there may be several lines, or an upgrade goes on.
fn clean_listed(headers: &mut HeaderMap, upgrades: bool) {
    let only = headers.get(CONNECTION).filter(|_| headers.get_all(CONNECTION).iter().nth(1).is_none());
    if upgrades && only.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"upgrade")) {
        return;
    }
    if !only.is_some_and(names_no_header) {
        let all: Vec<HeaderName> = headers.get_all(CONNECTION).iter().flat_map(named).collect();
        for name in all {
            headers.remove(name);
        }
    }
    headers.remove(CONNECTION);
    if upgrades {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// The usual values.
fn names_no_header(value: &HeaderValue) -> bool {
    value.as_bytes().eq_ignore_ascii_case(b"keep-alive") || value.as_bytes().eq_ignore_ascii_case(b"close")
}

/// The headers that a `connection` line takes off.
fn named(value: &HeaderValue) -> impl Iterator<Item = HeaderName> {
    list(value).filter_map(|name| HeaderName::from_bytes(name).ok()).filter(|name| !KEPT.contains(name))
}

/// The items of a comma-separated value.
fn list(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|item| !item.is_empty())
}

/// What is wrong with the host that stands at a place among the names.
fn bad_host(headers: &HeaderMap, at: usize) -> Option<BadHost> {
    // Values stand in the order of their names where no name has several: a lookup is spared, for the host comes early.
    let value = if headers.len() == headers.keys_len() {
        headers.values().nth(at)
    } else {
        let mut all = headers.get_all(HOST).iter();
        let first = all.next();
        if all.next().is_some() {
            return Some(BadHost::Several);
        }
        first
    };
    let is_host = value.is_some_and(|value| value.as_bytes().iter().all(|byte| of_host(*byte)));
    (!is_host).then_some(BadHost::NoHost)
}

/// RFC 3986, section 3.2.2, and a port. No user: that is nobody's business but a browser's.
const fn of_host(byte: u8) -> bool {
    const OF_HOST: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0;
        while byte < 256 {
            table[byte] = (byte as u8).is_ascii_alphanumeric();
            byte += 1;
        }
        let others = b"-._~!$&'()*+,;=%:[]";
        let mut index = 0;
        while index < others.len() {
            table[others[index] as usize] = true;
            index += 1;
        }
        table
    };
    OF_HOST[byte as usize]
}

#[cfg(test)]
mod tests {
    use proptest::strategy::Strategy as _;

    use super::*;
    use crate::http::{Hop, Raw, judge_request};

    type Headers = &'static [(&'static str, &'static str)];

    fn parts(method: &str, headers: &[(&str, &str)]) -> request::Parts {
        let mut request = http::Request::builder().method(method).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn text(headers: &HeaderMap) -> String {
        headers.iter().map(|(name, value)| format!("{name}={} ", value.to_str().unwrap())).collect::<String>().trim_end().to_owned()
    }

    #[test]
    fn requests_lose_what_is_for_one_hop() {
        // Aim: RFC 9110 7.6.1 without breaking upgrade, te: trailers or host.
        let cases: [(Headers, &str, Upgrade); 18] = [
            (&[("host", "a")], "host=a", Upgrade::No),
            (&[("connection", "keep-alive"), ("keep-alive", "timeout=5")], "", Upgrade::No),
            (&[("connection", "close, X-One"), ("x-one", "1"), ("x-two", "2")], "x-two=2", Upgrade::No),
            (&[("connection", "host, x-one"), ("host", "a"), ("x-one", "1")], "host=a", Upgrade::No),
            (&[("connection", "Upgrade"), ("upgrade", "websocket")], "connection=Upgrade upgrade=websocket", Upgrade::Asked),
            (&[("upgrade", "tls/1.3"), ("connection", "keep-alive, Upgrade")], "upgrade=tls/1.3 connection=upgrade", Upgrade::Asked),
            (&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AA")], "", Upgrade::No),
            (&[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")], "", Upgrade::No),
            (&[("connection", "upgrade"), ("upgrade", "x, H2C"), ("http2-settings", "AA")], "", Upgrade::No),
            (&[("connection", "upgrade"), ("upgrade", "HTTP/2.0, websocket")], "", Upgrade::No),
            (
                &[("connection", "upgrade"), ("upgrade", "websocket"), ("http2-settings", "AA")],
                "connection=upgrade upgrade=websocket",
                Upgrade::Asked,
            ),
            (&[("connection", "upgrade"), ("upgrade", " , ")], "", Upgrade::No),
            (&[("upgrade", "websocket")], "", Upgrade::No),
            (&[("te", "trailers"), ("connection", "te")], "te=trailers", Upgrade::No),
            (&[("te", "gzip, trailers")], "te=trailers", Upgrade::No),
            (&[("te", "trailers"), ("te", "gzip")], "te=trailers", Upgrade::No),
            (&[("te", "gzip")], "", Upgrade::No),
            (&[("transfer-encoding", "chunked")], "transfer-encoding=chunked", Upgrade::No),
        ];
        for (given, wanted, upgrade) in cases {
            let mut parts = parts("GET", given);
            let there = OfHop::in_headers(&parts.headers);
            assert_eq!(clean_request(&mut parts, there), upgrade, "{given:?}");
            assert_eq!(text(&parts.headers), wanted, "{given:?}");
        }
        assert_eq!(clean_request(&mut parts("CONNECT", &[]), OfHop::default()), Upgrade::Asked);
        let mut named = parts("GET", &[("host", "b")]);
        (named.version, named.uri) = (Version::HTTP_2, "http://a/".parse().unwrap());
        clean_request(&mut named, OfHop::default());
        assert_eq!(text(&named.headers), "", "the authority is the only name");
        let mut absolute = parts("GET", &[("host", "public.shop")]);
        absolute.uri = "http://admin.shop/".parse().unwrap();
        clean_request(&mut absolute, OfHop::default());
        assert_eq!(text(&absolute.headers), "host=admin.shop", "what is sent on is what is judged");
    }

    #[test]
    fn trailers_lose_what_only_the_mesh_says() {
        // Aim: in any spelling, and nothing else.
        let mut trailers =
            parts("GET", &[("X-Forwarded-Client-Cert", "1"), ("x_meshwright-fields", "1"), ("x-meshwright-retry", "1"), ("x-sum", "1")])
                .headers;
        clean_trailers(&mut trailers);
        assert_eq!(text(&trailers), "x-sum=1");
    }

    #[test]
    fn answers_lose_what_is_for_one_hop_and_foreign_reasons() {
        // Aim: an application cannot speak for the mesh, and a 101 keeps what makes it one.
        let given = [("connection", "close"), ("upgrade", "h2c"), ("x-meshwright-reason", "denied"), ("transfer-encoding", "chunked")];
        let of = |switching, version, mesh| {
            let mut headers = parts("GET", &given).headers;
            let there = OfHop::in_headers(&headers);
            clean_response(&mut headers, there, switching, version, mesh);
            text(&headers)
        };
        assert_eq!(of(false, Version::HTTP_11, false), "transfer-encoding=chunked");
        assert_eq!(of(false, Version::HTTP_10, true), "x-meshwright-reason=denied");
        assert_eq!(of(true, Version::HTTP_11, true), "connection=close upgrade=h2c x-meshwright-reason=denied");
    }

    proptest::proptest! {
        /// Aim: no header makes the cleaning panic, and nothing that belongs to one hop gets through it: neither what `connection` names
        /// nor what is known to, but for an upgrade and `te: trailers`.
        #[test]
        fn any_headers_are_survived(
            method in proptest::sample::select(vec!["GET", "CONNECT", "POST", "OPTIONS"]),
            given in proptest::collection::vec(
                (
                    proptest::sample::select(vec![
                        "connection", "connection", "te", "upgrade", "expect", "host", "keep-alive", "proxy-connection", "x-a",
                        "transfer-encoding",
                    ]),
                    proptest::prop_oneof![
                        proptest::collection::vec(proptest::prelude::any::<u8>(), 0..30),
                        proptest::sample::select(vec![
                            "close", "Keep-Alive", "x-a", "Upgrade", "upgrade, X-A", "te,, expect", "trailers", "gzip, trailers", "websocket",
                            "h2c", "transfer-encoding , host",
                        ])
                        .prop_map(|text| text.as_bytes().to_vec()),
                    ],
                ),
                0..8,
            ),
        ) {
            let mut parts = parts(method, &[]);
            for (name, value) in &given {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    parts.headers.append(*name, value);
                }
            }
            let mut answer = parts.headers.clone();
            let listed: Vec<HeaderName> = answer.get_all(CONNECTION).iter().flat_map(named).collect();
            let gone = || [KEEP_ALIVE, PROXY_CONNECTION].into_iter().chain(listed.clone());
            let _ = judge_request(&mut parts, Raw::plainly(Hop::First, 0));
            let there = OfHop::in_headers(&parts.headers);
            let upgrade = clean_request(&mut parts, there);
            let left = &parts.headers;
            proptest::prop_assert!(gone().all(|name| name == CONNECTION || !left.contains_key(name)), "{:?}", left);
            proptest::prop_assert!(left.get_all(CONNECTION).iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"upgrade")));
            proptest::prop_assert!(!left.contains_key(CONNECTION) || upgrade == Upgrade::Asked);
            proptest::prop_assert!(!left.contains_key(UPGRADE) || left.contains_key(CONNECTION), "{:?}", left);
            proptest::prop_assert!(left.get_all(TE).iter().all(|value| value == "trailers"), "{:?}", left);
            let there = OfHop::in_headers(&answer);
            clean_response(&mut answer, there, false, Version::HTTP_11, true);
            proptest::prop_assert!(gone().all(|name| !answer.contains_key(name)) && !answer.contains_key(CONNECTION), "{:?}", answer);
        }
    }
}
