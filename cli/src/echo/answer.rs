//! What was seen of a request, and answers in words.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use serde::Serialize;
use serde_json::Value;

use super::Answerer;

/// Header in which the sidecar tells the caller's identity.
const CLIENT_CERT: &str = "x-forwarded-client-cert";

/// The one body type of answers.
pub(super) type EchoBody = BoxBody<Bytes, Infallible>;

/// What was seen of a request; the JSON of kinds.md.
#[derive(Debug, Serialize)]
struct Echo<'a> {
    workload: &'a str,
    namespace: &'a str,
    instance: &'a str,
    version: &'a str,
    method: &'a str,
    path: &'a str,
    host: &'a str,
    protocol: &'static str,
    headers: BTreeMap<&'a str, Vec<Cow<'a, str>>>,
    source_address: String,
    identity: Option<&'a str>,
    body_bytes: u64,
    called: &'a [Value],
}

/// The answer's JSON as bytes.
pub(super) fn describe(
    who: &Answerer,
    peer: SocketAddr,
    head: &http::request::Parts,
    protocol: &'static str,
    body_bytes: u64,
    called: &[Value],
) -> Vec<u8> {
    let mut headers: BTreeMap<&str, Vec<Cow<'_, str>>> = BTreeMap::new();
    for (name, value) in &head.headers {
        headers.entry(name.as_str()).or_default().push(String::from_utf8_lossy(value.as_bytes()));
    }
    let answer = Echo {
        workload: &who.workload,
        namespace: &who.namespace,
        instance: &who.instance,
        version: &who.version,
        method: head.method.as_str(),
        path: head.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str),
        host: host(head),
        protocol,
        headers,
        source_address: peer.to_string(),
        identity: identity(&head.headers),
        body_bytes,
        called,
    };
    // Strings and numbers only: there is nothing in it that JSON could not say.
    serde_json::to_vec(&answer).unwrap_or_default()
}

/// The host as the client wrote it: HTTP/2 puts it into the URI.
fn host(head: &http::request::Parts) -> &str {
    let authority = head.uri.authority().map(http::uri::Authority::as_str);
    authority.or_else(|| head.headers.get(HOST).and_then(|value| value.to_str().ok())).unwrap_or_default()
}

/// The caller's identity: `URI=` of the last element, which the nearest sidecar wrote.
fn identity(headers: &HeaderMap) -> Option<&str> {
    let element = headers.get_all(CLIENT_CERT).iter().next_back()?.to_str().ok()?.rsplit(',').next()?;
    element.split(';').find_map(|field| field.trim().strip_prefix("URI=")).map(|uri| uri.trim_matches('"'))
}

/// A short answer in words.
pub(super) fn text(status: StatusCode, words: String) -> Response<EchoBody> {
    reply(status, "text/plain; charset=utf-8", words.into())
}

/// An answer with a body of that type.
pub(super) fn reply(status: StatusCode, kind: &'static str, bytes: Bytes) -> Response<EchoBody> {
    let mut response = Response::new(Full::new(bytes).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    /// Aim: the answer has the fields of kinds.md, and believes the nearest sidecar about the caller.
    #[test]
    fn the_answer_says_what_was_seen() {
        let request = Request::builder()
            .uri("/items?x=1")
            .header("host", "catalog")
            .header("x-a", "1")
            .header("x-a", "2")
            .header(CLIENT_CERT, "By=spiffe://a;URI=spiffe://liar,By=spiffe://b;Hash=00;URI=spiffe://cluster.local/ns/shop/sa/frontend")
            .body(())
            .unwrap();
        let who = Answerer { workload: "c".into(), namespace: "shop".into(), instance: "c-0".into(), version: "v1".into() };
        let (head, ()) = request.into_parts();
        let json = describe(&who, "10.0.0.1:5".parse().unwrap(), &head, "HTTP/1.1", 3, &[]);
        let value: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(value["path"], "/items?x=1");
        assert_eq!(value["host"], "catalog");
        assert_eq!(value["headers"]["x-a"], serde_json::json!(["1", "2"]));
        assert_eq!(value["identity"], "spiffe://cluster.local/ns/shop/sa/frontend");
        assert_eq!(value["body_bytes"], 3);
        assert_eq!(value["called"], serde_json::json!([]));
        assert_eq!(identity(&HeaderMap::new()), None);
    }
}
