//! A check by plain HTTP: the request's method and path, and headers by name. 200 lets it on, any other answer is the client's.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header, request};
use proto::mesh;

use super::changes::{Changes, external_header};
use super::over_grpc::{answer, claims, host};
use super::{CheckVerdict, named};
use crate::callout::{CalloutAnswer, CalloutAway};
use crate::consumers::CONSUMER_HEADER;
use crate::failure::REASON_HEADER;
use crate::filter::{Exchange, HeaderOp};
use crate::rejected::Wrong;

/// Longest path that stands before the request's own.
pub(super) const PATH_BYTES_MAX: usize = 1024;
/// What an answer that is no yes always says to the client.
const TOLD: [HeaderName; 6] =
    [header::LOCATION, header::SET_COOKIE, header::WWW_AUTHENTICATE, header::CONTENT_TYPE, header::CACHE_CONTROL, header::RETRY_AFTER];
/// What is always shown beside what is named.
const SHOWN: [HeaderName; 3] = [header::AUTHORIZATION, CONSUMER_HEADER, HeaderName::from_static("x-forwarded-client-cert")];
/// The claims of a verified token, JSON as base64url.
const CLAIMS_HEADER: HeaderName = HeaderName::from_static("x-meshwright-claims");

/// How a service is asked by HTTP.
#[derive(Debug)]
pub(super) struct HttpForm {
    /// Without a slash at its end.
    path: String,
    shown: Vec<HeaderName>,
    counting: Vec<HeaderName>,
    all_count: bool,
}

impl HttpForm {
    pub(super) fn compile(raw: &mesh::ExternalHttp) -> Result<Self, Wrong> {
        let mesh::ExternalHttp { path, request_headers, response_headers, all_response_headers } = raw;
        let plain = path.len() <= PATH_BYTES_MAX && !path.contains(['?', '#']) && (path.is_empty() || path.starts_with('/'));
        if !plain || PathAndQuery::try_from(format!("{path}/")).is_err() {
            return Err(Wrong::new("path", format!("`{}` is no path", path.escape_debug())));
        }
        Ok(Self {
            path: path.trim_end_matches('/').to_owned(),
            shown: named(request_headers, "request_headers", |_| true)?,
            counting: named(response_headers, "response_headers", external_header)?,
            all_count: *all_response_headers,
        })
    }

    /// The head of the question.
    pub(super) fn head(&self, exchange: &Exchange<'_>) -> request::Parts {
        let asked = &exchange.request;
        let mut head = Request::new(()).into_parts().0;
        // CONNECT names no path, and would make a tunnel of the question.
        head.method = if asked.method == Method::CONNECT { Method::GET } else { asked.method.clone() };
        let target = asked.uri.path_and_query().map_or("/", |target| target.as_str());
        head.uri = format!("{}{target}", self.path).parse().unwrap_or_else(|_| Uri::from_static("/"));
        for name in SHOWN.iter().chain(&self.shown).filter(|name| is_end_to_end(name)) {
            for value in asked.headers.get_all(name) {
                head.headers.append(name.clone(), value.clone());
            }
        }
        let who = exchange.watch.as_ref().and_then(|watch| watch.found.identified());
        let claims = who.map(claims).filter(|claims| !claims.is_empty()).map(|claims| URL_SAFE_NO_PAD.encode(claims));
        match claims.and_then(|claims| HeaderValue::try_from(claims).ok()) {
            Some(claims) => drop(head.headers.insert(CLAIMS_HEADER, claims)),
            // Only the mesh says them.
            None => drop(head.headers.remove(CLAIMS_HEADER)),
        }
        if let Ok(host) = HeaderValue::try_from(host(asked)) {
            head.headers.insert(header::HOST, host);
        }
        head
    }

    /// What an answer means.
    ///
    /// # Errors
    /// It is the mesh's, and not the service's.
    pub(super) fn read(&self, told: &CalloutAnswer) -> Result<CheckVerdict, CalloutAway> {
        let CalloutAnswer { status, headers, body, trailers: _ } = told;
        if headers.contains_key(REASON_HEADER) {
            return Err(CalloutAway::Unreached);
        }
        if !(200..600).contains(&status.as_u16()) {
            return Err(CalloutAway::Garbled);
        }
        if *status == StatusCode::OK {
            return Ok(CheckVerdict::Allowed(Arc::new(Changes::of_request(self.set(headers)))));
        }
        let tells = |name: &HeaderName| TOLD.contains(name) || self.counts(name);
        let told = headers.iter().filter(|(name, _)| tells(name)).map(|(name, value)| (name.clone(), value.clone()));
        Ok(CheckVerdict::Denied(Arc::new(answer(*status, told.collect(), body.clone()))))
    }

    /// What callers say in headers that a service fills means nothing. `authorization` and `cookie` are theirs until it says otherwise.
    pub(super) fn unsay(&self, headers: &mut HeaderMap) {
        self.filled().for_each(|name| _ = headers.remove(name));
    }

    fn filled(&self) -> impl Iterator<Item = &HeaderName> {
        self.counting.iter().filter(|name| **name != header::AUTHORIZATION && **name != header::COOKIE)
    }

    fn counts(&self, name: &HeaderName) -> bool {
        let of_answer =
            self.all_count && is_end_to_end(name) && external_header(name.as_str()) && *name != header::DATE && *name != header::SERVER;
        of_answer || self.counting.contains(name)
    }

    /// Sets, and never appends to, what is forwarded.
    fn set(&self, headers: &HeaderMap) -> Vec<HeaderOp> {
        let mut ops: Vec<HeaderOp> = self.filled().cloned().map(HeaderOp::Remove).collect();
        // A body's own words are of the answer, and not of the request.
        let of_body = |name: &HeaderName| name.as_str().starts_with("content-") || *name == header::SET_COOKIE;
        for name in headers.keys().filter(|name| self.counts(name) && !of_body(name)) {
            for (place, value) in headers.get_all(name).iter().enumerate() {
                let (name, value) = (name.clone(), value.clone());
                ops.push(if place == 0 { HeaderOp::Set(name, value) } else { HeaderOp::Add(name, value) });
            }
        }
        ops
    }
}

/// Whether a header goes further than one hop (RFC 9110, section 7.6.1), and frames nothing.
fn is_end_to_end(name: &HeaderName) -> bool {
    let of_hop = [
        header::CONNECTION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::CONTENT_LENGTH,
        header::HOST,
        header::EXPECT,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
    ];
    !of_hop.contains(name) && !matches!(name.as_str(), "keep-alive" | "proxy-connection")
}
