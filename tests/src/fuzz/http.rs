//! Heads, paths and the words in them.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

use engine::authenticate::{Authentication, Remembered, TokenVerdict};
use engine::decide::RequestHead;
use engine::model::build::Parts;
use engine::model::{Session, SessionTerms, Snapshot, session_token};
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, request};
use prost::Name;
use proto::mesh::{Authentication as Tokens, ClaimHeader, TokenHeader, TokenRule};
use proto::names;
use proxy::http::{Hop, Neighbour, OfHop, Raw, clean_request, clean_response, declared_length, judge_answer, judge_request, pack};
use proxy::http::{take_patience, tell_patience, to_http1, to_http2, unpack};
use proxy::observe::trace;

use super::changes::sessions_made;
use super::samples;

fn destination() -> SocketAddr {
    SocketAddr::from(([10, 96, 0, 1], 80))
}

/// A head out of lines; what no library would hand on is left out.
fn head(bytes: &[u8]) -> Option<request::Parts> {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut start = lines.next()?.splitn(3, |byte| *byte == b' ');
    let (method, target, version) = (start.next()?, start.next()?, start.next().unwrap_or_default());
    let mut parts = Request::new(()).into_parts().0;
    parts.method = Method::from_bytes(method).ok()?;
    parts.uri = Uri::try_from(target).ok()?;
    parts.version = match version.last() {
        Some(b'2') => Version::HTTP_2,
        Some(b'0') => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii()));
        if let (Ok(name), Ok(value)) = (name, value)
            && parts.headers.len() < 1000
        {
            parts.headers.append(name, value);
        }
    }
    Some(parts)
}

/// What is let through has one host and one framing, nothing of its hop, a path without dots, and survives every change of version.
pub(super) fn heads(bytes: &[u8]) {
    let Some(given) = head(bytes) else { return };
    for at in [Hop::First, Hop::Inner] {
        let mut parts = given.clone();
        let judged = judge_request(&mut parts, Raw::plainly(at, given.headers.len()));
        patience(given.headers.clone(), at);
        let Ok(there) = judged else { continue };
        assert!(parts.headers.get_all(HOST).iter().count() <= 1, "{parts:?}");
        let codings: Vec<_> = parts.headers.get_all(TRANSFER_ENCODING).iter().collect();
        assert!(codings.last().is_none_or(|coding| coding.as_bytes().to_ascii_lowercase().ends_with(b"chunked")), "{codings:?}");
        clean_request(&mut parts, there);
        assert!(parts.headers.get_all(CONNECTION).iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"upgrade")), "{parts:?}");
        let (mut one, mut two) = (parts.clone(), parts);
        to_http1(&mut one, destination());
        assert!(one.method == Method::CONNECT || one.uri.authority().is_none(), "{one:?}");
        assert!(one.method == Method::CONNECT || one.headers.get_all(HOST).iter().count() == 1, "{one:?}");
        to_http2(&mut two, destination());
        assert!(!two.headers.contains_key(TRANSFER_ENCODING) || given.version == Version::HTTP_2, "{two:?}");
    }
    answer(given.headers);
}

thread_local! {
    static TOKENS: (Arc<Authentication>, RefCell<Remembered>) = {
        let place = |name: &str| TokenHeader { name: name.to_owned(), prefix: "Bearer ".to_owned() };
        let rule = TokenRule {
            policy: "shop/tokens".to_owned(),
            issuer: "https://id.example".to_owned(),
            jwks: samples::JWKS.to_owned(),
            from_headers: vec![place("authorization")],
            from_query: vec!["token".to_owned()],
            from_cookies: vec!["sid".to_owned()],
            claims_to_headers: vec![ClaimHeader { claim: "sub".to_owned(), header: "x-user".to_owned() }],
            ..TokenRule::default()
        };
        let mut parts = Parts::default();
        let any = proto::xds::pack(&Tokens { rules: vec![rule], ..Tokens::default() });
        parts.put(&Tokens::type_url(), names::INBOUND, "1", &any).expect("a rule for tokens");
        let rules = parts.assemble(1, &Snapshot::default()).authentication.expect("a rule for tokens");
        (rules, RefCell::new(Remembered::new(1)))
    };
}

/// Nothing is believed but what was signed, claims alone fill their headers, and what is believed does not reach the application.
pub(super) fn tokens(bytes: &[u8]) {
    let Some(mut parts) = head(bytes) else { return };
    TOKENS.with(|(rules, remembered)| {
        let head = RequestHead::nameless(&parts.method, &parts.uri, &parts.headers);
        let verdict = rules.judge(&head, &mut remembered.borrow_mut(), 1_780_272_000);
        rules.carry_out(&verdict, &mut parts);
        let user = parts.headers.get("x-user").map(HeaderValue::as_bytes);
        assert_eq!(user, matches!(verdict, TokenVerdict::Accepted(_)).then_some(&b"ada"[..]), "{parts:?}");
        if user.is_some() {
            let head = RequestHead::nameless(&parts.method, &parts.uri, &parts.headers);
            assert!(matches!(rules.judge(&head, &mut Remembered::new(1), 1_780_272_000), TokenVerdict::Without), "{parts:?}");
        }
    });
}

fn patience(mut headers: HeaderMap, at: Hop) {
    let found = trace::read(&headers, trace::Forms::of(&headers));
    let context = trace::Context { trace_id: 1, span_id: 2, parent: None, sampled: true };
    trace::write(&mut headers, &found, &context);
    assert_eq!(headers.get_all("traceparent").iter().count(), 1);
    let there = OfHop::in_headers(&headers);
    let patient = take_patience(&mut headers, there, (at, true), || 1_780_272_000_000);
    for to in [Neighbour::Peer, Neighbour::Application, Neighbour::Outside] {
        tell_patience(&mut headers.clone(), patient, true, to, || 1_780_272_000_000);
    }
}

fn answer(mut headers: HeaderMap) {
    let _ = declared_length(&headers);
    if let Ok(there) = judge_answer(&mut headers, Hop::First) {
        clean_response(&mut headers, there, false, Version::HTTP_11, false);
        assert!(!headers.contains_key(CONNECTION) && !headers.contains_key("x-meshwright-reason"), "{headers:?}");
        // What is packed comes back as it was.
        let mut packed = headers.clone();
        if pack(&mut packed) {
            assert!(unpack(&mut packed).is_some());
            assert_eq!(packed.len(), headers.len());
        }
    }
    let _ = unpack(&mut headers);
}

/// A path that is let through has no dots however often it is looked at, and is the same for who looks again.
pub(super) fn paths(bytes: &[u8]) {
    let Ok(uri) = Uri::try_from(bytes) else { return };
    let mut parts = Request::new(()).into_parts().0;
    (parts.uri, parts.version) = (uri, Version::HTTP_11);
    parts.headers.insert(HOST, HeaderValue::from_static("a"));
    if judge_request(&mut parts, Raw::plainly(Hop::First, 1)).is_err() {
        return;
    }
    let path = parts.uri.path().to_owned();
    let dots = |segment: &str| matches!(segment.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..");
    assert!(!path.split('/').any(dots), "{path}");
    let query = parts.uri.query().map(str::to_owned);
    assert!(judge_request(&mut parts, Raw::plainly(Hop::First, 1)).is_ok(), "{path} is refused when it is looked at again");
    assert_eq!((parts.uri.path(), parts.uri.query()), (path.as_str(), query.as_deref()));
}

const KEY: &[u8] = b"a key of the mesh's";

fn terms() -> SessionTerms<'static> {
    SessionTerms { key: KEY, wall_secs: 1_780_272_000, secure: true }
}

thread_local! {
    static KINDS: RefCell<Option<Vec<Session>>> = const { RefCell::new(None) };
}

/// Sessions of every kind, compiled as a proxy does.
fn kinds() -> Vec<Session> {
    KINDS.with(|kinds| kinds.borrow_mut().get_or_insert_with(sessions_made).clone())
}

/// Headers that hold a session.
pub(super) fn sessions_given() -> Vec<Vec<u8>> {
    let token = session_token(KEY, "shop/catalog:80", destination());
    let given = kinds().into_iter().filter_map(|session| session.answer(token, None, terms())).map(|(name, value)| {
        let value = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().to_owned();
        let name = if name == "set-cookie" { "cookie".to_owned() } else { name.to_string() };
        format!("{name}: {value}\n").into_bytes()
    });
    let given: Vec<Vec<u8>> = given.collect();
    assert!(!given.is_empty(), "no kind of session is compiled");
    given
}

/// A session is only ever one that was given out: what is changed in it is forged or another endpoint's code.
pub(super) fn sessions(bytes: &[u8]) {
    let Some(parts) = head(&[b"GET / HTTP/1.1\n", bytes].concat()) else { return };
    for session in kinds() {
        if let Some(kept) = session.wanted(&parts.headers, terms()) {
            let again = session.answer(kept.token, Some(kept), terms());
            assert!(again.is_none_or(|(name, _)| name == session.name() || name == "set-cookie"));
        }
    }
}
