//! The mesh's own answers.

use bytes::Bytes;
use engine::failure::{LocalReply, REASON_HEADER, Reason};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::ground::body::Body;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// There is no answer, on purpose: what carries the exchange is to be cut.
#[derive(Debug, thiserror::Error)]
#[error("cut off on purpose")]
pub struct CutOff;

/// Makes the answer. A gRPC caller gets an answer of trailers only: status 200, and the code where it looks for it.
pub fn local_reply(reply: &LocalReply, grpc: bool) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    let headers = response.headers_mut();
    if let Some(reason) = reply.reason {
        headers.insert(REASON_HEADER, reason.header());
    }
    if grpc {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.extend(grpc_trailers(reply));
        return response;
    }
    for (name, value) in &reply.headers {
        headers.append(name.clone(), value.clone());
    }
    *response.status_mut() = reply.status;
    *response.body_mut() = body(reply);
    response
}

/// What a gRPC caller is told at the end: the code and its text.
pub fn grpc_trailers(reply: &LocalReply) -> HeaderMap {
    let message = reply.reason.map_or("answered by the mesh", Reason::text);
    HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from(grpc_status(reply))), (GRPC_MESSAGE, HeaderValue::from_static(message))])
}

/// What a person sees who looks at the body: the reason, where the reply has no text of its own.
fn body(reply: &LocalReply) -> Body {
    match (&reply.body, reply.reason) {
        (text, _) if !text.is_empty() => Body::Bytes(text.clone()),
        (_, Some(reason)) => Body::Bytes(Bytes::from_static(reason.text().as_bytes())),
        _ => Body::Empty,
    }
}

/// Whether a client takes JSON (RFC 9110, section 12.5.1). One that asks for a page is shown text, unless it names JSON as well.
pub fn takes_json(headers: &HeaderMap) -> bool {
    let mut told = false;
    let (mut json, mut page, mut any) = (false, false, false);
    for range in headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')) {
        told = true;
        let (range, rest) = range.split_once(';').unwrap_or((range, ""));
        // A weight of zero is a refusal (section 12.4.2).
        let refused = rest.split(';').filter_map(|one| one.trim().strip_prefix("q=")).any(|weight| weight.trim().parse() == Ok(0.0_f32));
        match range.trim() {
            _ if refused => {}
            "application/json" | "application/problem+json" => json = true,
            "text/html" | "application/xhtml+xml" => page = true,
            "*/*" | "application/*" => any = true,
            _ => {}
        }
    }
    !told || json || (any && !page)
}

/// Makes an answer of the mesh's own a problem (RFC 9457): for clients outside, who may not know our reason codes.
pub fn problem(response: &mut Response<Body>, reason: Reason, request_id: Option<&str>) {
    let status = response.status();
    let (title, detail, code) = (status.canonical_reason().unwrap_or_default(), reason.sentence(), reason.text());
    let id = request_id.map(|id| format!(",\"request_id\":{}", serde_json::Value::from(id))).unwrap_or_default();
    let text = format!(
        "{{\"type\":\"about:blank\",\"title\":\"{title}\",\"status\":{},\"detail\":\"{detail}\",\"reason\":\"{code}\"{id}}}\n",
        status.as_u16()
    );
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    *response.body_mut() = Body::Bytes(Bytes::from(text));
}

/// The gRPC status of a reply: its own, that of its reason, else of its HTTP status (gRPC's "HTTP to gRPC status code mapping").
pub fn grpc_status(reply: &LocalReply) -> u16 {
    const UNKNOWN: u16 = 2;
    const DEADLINE_EXCEEDED: u16 = 4;
    const PERMISSION_DENIED: u16 = 7;
    const RESOURCE_EXHAUSTED: u16 = 8;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const UNAUTHENTICATED: u16 = 16;
    if let Some(code) = reply.grpc_status {
        return u16::from(code);
    }
    match (reply.reason, reply.status) {
        (Some(Reason::RequestTimeout | Reason::AttemptTimeout | Reason::IdleTimeout), _) => DEADLINE_EXCEEDED,
        (Some(Reason::Denied), _) | (None, StatusCode::FORBIDDEN) => PERMISSION_DENIED,
        (Some(Reason::Unauthenticated), _) | (None, StatusCode::UNAUTHORIZED) => UNAUTHENTICATED,
        (Some(Reason::NoRoute | Reason::Misdirected), _) | (None, StatusCode::NOT_FOUND) => UNIMPLEMENTED,
        (Some(Reason::TooLarge), _) => RESOURCE_EXHAUSTED,
        (Some(Reason::BadRequest | Reason::UpstreamProtocol), _) | (None, StatusCode::BAD_REQUEST) => INTERNAL,
        (Some(_), _)
        | (None, StatusCode::TOO_MANY_REQUESTS | StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT) => {
            UNAVAILABLE
        }
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_reaches_both_kinds_of_caller() {
        // Aim: status, reason header, and the gRPC codes that the contract names.
        for reason in Reason::ALL {
            let plain = local_reply(&reason.into(), false);
            assert_eq!(plain.status(), reason.status());
            assert_eq!(plain.headers()[REASON_HEADER], reason.text());
            let grpc = local_reply(&reason.into(), true);
            assert_eq!((grpc.status(), &grpc.headers()[REASON_HEADER]), (StatusCode::OK, &reason.header()));
            assert_ne!(grpc.headers()[GRPC_STATUS], "0");
        }
        let codes = [
            (Reason::NoEndpoints, "14"),
            (Reason::ConnectTimeout, "14"),
            (Reason::RequestTimeout, "4"),
            (Reason::Denied, "7"),
            (Reason::NoRoute, "12"),
        ];
        for (reason, code) in codes {
            assert_eq!(local_reply(&reason.into(), true).headers()[GRPC_STATUS], code, "{reason:?}");
        }
    }
}
