//! A check by `envoy.service.auth.v3`, as Envoy's `ext_authz` makes it and reads its answer.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use proto::xds::auth::attribute_context::{HttpRequest, Peer, Request as RawRequest};
use proto::xds::auth::check_response::HttpResponse;
use proto::xds::auth::{AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse};
use proto::xds::core::{Address, SocketAddress, address, socket_address};

use super::changes::{Changes, of_denial, ops};
use super::{CheckVerdict, PARTIAL_HEADER};
use crate::callout::{CalloutAnswer, CalloutAway};
use crate::consumers::Identified;
use crate::failure::{LocalReply, Reason};
use crate::filter::Exchange;
use crate::filter::guard::{Watch, grpc};
use crate::versions;

/// The method that is called.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// What is said of a request, without its body.
pub(super) fn attributes(exchange: &Exchange<'_>, headers: &[HeaderName]) -> AttributeContext {
    let request = &exchange.request;
    let watch = exchange.watch.as_ref();
    let host = host(request);
    let path = request.uri.path_and_query().map_or("/", |target| target.as_str());
    let scheme = if exchange.called.tls { "https" } else { "http" };
    let mut shown: BTreeMap<String, String> = BTreeMap::new();
    // What is said elsewhere, or is of this hop alone, Envoy does not show either.
    let of_interest =
        |name: &&HeaderName| ![header::HOST, header::TRANSFER_ENCODING].contains(*name) && (headers.is_empty() || headers.contains(name));
    for name in request.headers.keys().filter(of_interest) {
        shown.insert(name.as_str().to_owned(), joined(&request.headers, name));
    }
    for (name, value) in [(":method", request.method.as_str()), (":path", path), (":authority", &*host), (":scheme", scheme)] {
        shown.insert(name.to_owned(), value.to_owned());
    }
    let text = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let size = text("content-length").parse().unwrap_or(0);
    let certificate = watch.and_then(|watch| watch.certificate);
    AttributeContext {
        source: Some(Peer {
            address: Some(socket(exchange.address, watch.map_or(0, |watch| watch.port))),
            principal: certificate.map(|certificate| certificate.principal().to_owned()).unwrap_or_default(),
            ..Peer::default()
        }),
        destination: Some(Peer {
            address: Some(socket(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), exchange.called.port)),
            ..Peer::default()
        }),
        request: Some(RawRequest {
            time: watch.map(|watch| prost_types::Timestamp { seconds: i64::try_from(watch.wall_secs).unwrap_or(i64::MAX), nanos: 0 }),
            http: Some(HttpRequest {
                id: text("x-request-id").to_owned(),
                method: request.method.as_str().to_owned(),
                path: path.to_owned(),
                host: host.clone(),
                scheme: scheme.to_owned(),
                size,
                protocol: versions::text(request.version).to_owned(),
                headers: shown,
                ..HttpRequest::default()
            }),
        }),
        context_extensions: watch.map(context).unwrap_or_default(),
        ..AttributeContext::default()
    }
}

/// Who calls, as far as it is known.
fn context(watch: &Watch<'_>) -> BTreeMap<String, String> {
    let mut said: Vec<(&str, String)> = Vec::new();
    if let Some(certificate) = watch.certificate {
        said.push(("certificate_sha256", certificate.hash_hex()));
        said.push(("certificate_uris", certificate.uris().join(",")));
        said.push(("certificate_dns", certificate.dns_names().join(",")));
    }
    if let Some(who) = watch.found.identified() {
        said.push(("auth_method", who.method.text().to_owned()));
        said.push(("subject", who.subject().map(|subject| subject.into_owned()).unwrap_or_default()));
        said.push(("claims", claims(who)));
    }
    if let Some(consumer) = watch.found.identified().and_then(|who| who.consumer.as_ref()) {
        said.push(("consumer", consumer.path.to_string()));
        said.push(("consumer_groups", consumer.groups.join(",")));
    }
    said.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The claims of a verified token, JSON.
pub(super) fn claims(who: &Identified) -> String {
    who.claims.as_ref().and_then(|claims| serde_json::to_string(&claims.content).ok()).unwrap_or_default()
}

/// The host that a request is for.
pub(super) fn host(request: &http::request::Parts) -> String {
    let named = request.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    request.uri.authority().map(Authority::as_str).or(named).unwrap_or_default().to_owned()
}

/// All values of a header as one; what is no text is shown as far as it is.
fn joined(headers: &HeaderMap, name: &HeaderName) -> String {
    let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    values.collect::<Vec<_>>().join(",")
}

fn socket(address: IpAddr, port: u16) -> Address {
    let socket = SocketAddress {
        address: address.to_canonical().to_string(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(port.into())),
        ..SocketAddress::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

/// The call, with as much of the body as is shown.
pub(super) fn request(
    mut attributes: AttributeContext,
    authority: &Authority,
    shown: Option<(Bytes, bool)>,
    timeout: Duration,
) -> Result<Request<Bytes>, http::Error> {
    if let (Some((body, more)), Some(http)) = (shown, attributes.request.as_mut().and_then(|request| request.http.as_mut())) {
        http.headers.insert(PARTIAL_HEADER.as_str().to_owned(), more.to_string());
        if http.size == 0 {
            http.size = i64::try_from(body.len()).unwrap_or(i64::MAX);
        }
        match std::str::from_utf8(&body) {
            Ok(text) => text.clone_into(&mut http.body),
            Err(_) => http.raw_body = body,
        }
    }
    grpc::call((authority, CHECK), &CheckRequest { attributes: Some(attributes) }, timeout)
}

/// What an answer means.
///
/// # Errors
/// It is none: the call failed, or what came cannot be read.
pub(super) fn read(answer: &CalloutAnswer) -> Result<CheckVerdict, CalloutAway> {
    let CheckResponse { status, http_response, dynamic_metadata: _ } = grpc::message(answer)?;
    match (status.map_or(0, |status| status.code), http_response) {
        (_, Some(HttpResponse::ErrorResponse(_))) => Err(CalloutAway::Unreached),
        (0, Some(HttpResponse::OkResponse(ok))) => {
            let query = (&*ok.query_parameters_to_set, &*ok.query_parameters_to_remove);
            let answer = ops(&ok.response_headers_to_add, &[]);
            Ok(CheckVerdict::Allowed(Arc::new(Changes::new(ops(&ok.headers, &ok.headers_to_remove), query, answer))))
        }
        (0, _) => Ok(CheckVerdict::Allowed(Arc::default())),
        (_, Some(HttpResponse::DeniedResponse(denied))) => Ok(CheckVerdict::Denied(Arc::new(denial(&denied)))),
        (_, _) => Ok(CheckVerdict::Denied(Arc::new(denial(&DeniedHttpResponse::default())))),
    }
}

fn denial(DeniedHttpResponse { status, headers, body }: &DeniedHttpResponse) -> LocalReply {
    let code = status.as_ref().and_then(|status| u16::try_from(status.code).ok()).filter(|code| (200..600).contains(code));
    let status = code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::FORBIDDEN);
    answer(status, of_denial(headers), Bytes::copy_from_slice(body.as_bytes()))
}

/// What the client is told. Only an error is one of the mesh's own words: another answer is the service's alone.
pub(super) fn answer(status: StatusCode, headers: Vec<(HeaderName, HeaderValue)>, body: Bytes) -> LocalReply {
    let reason = match status {
        StatusCode::UNAUTHORIZED => Some(Reason::Unauthenticated),
        StatusCode::TOO_MANY_REQUESTS => Some(Reason::RateLimited),
        status if status.is_client_error() || status.is_server_error() => Some(Reason::Denied),
        _ => None,
    };
    LocalReply { status, reason, headers, body, grpc_status: None }
}
