//! One request, one answer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use http::{Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::answer::{EchoBody, describe, reply, text};
use super::wish::Wish;
use super::{EchoService, grpc, websocket};

/// The path that says that this process lives.
const HEALTH_PATH: &str = "/healthz";
/// Answers any request that arrives on an HTTP port.
pub(super) async fn answer(
    service: Arc<EchoService>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<EchoBody>, Infallible> {
    if request.uri().path() == HEALTH_PATH {
        return Ok(text(StatusCode::OK, "ok\n".into()));
    }
    if grpc::is_grpc(request.headers()) {
        return Ok(grpc::answer(service, peer, request));
    }
    if websocket::is_handshake(&request) {
        return Ok(websocket::answer(request));
    }
    Ok(plain(&service, peer, request).await)
}

async fn plain(service: &EchoService, peer: SocketAddr, request: Request<Incoming>) -> Response<EchoBody> {
    let (head, body) = request.into_parts();
    let wish = match Wish::read(head.uri.query().unwrap_or_default()) {
        Ok(wish) => wish.or(service.habit),
        Err(why) => return text(StatusCode::BAD_REQUEST, why + "\n"),
    };
    let Some(body_bytes) = drain(body).await else {
        return text(StatusCode::BAD_REQUEST, "the request's body ended early\n".into());
    };
    let (called, all_well) = service.caller.call_all(&service.rules, head.uri.path(), &head.headers).await;
    if !wish.delay.is_zero() {
        tokio::time::sleep(wish.delay).await;
    }
    let mut status = wish.status(fastrand::f64());
    if status.is_success() && !all_well {
        status = StatusCode::BAD_GATEWAY;
    }
    let (kind, bytes) = match wish.bytes {
        Some(length) => ("application/octet-stream", Bytes::from(vec![b'x'; length])),
        None => {
            let protocol = if head.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" };
            let mut json = describe(&service.who, peer, &head, protocol, body_bytes, &called);
            json.push(b'\n');
            ("application/json", Bytes::from(json))
        }
    };
    reply(status, kind, bytes)
}

/// Reads a body to its end and counts it; `None` when it breaks off.
async fn drain(mut body: Incoming) -> Option<u64> {
    let mut count = 0;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.ok()?.into_data() {
            count += data.remaining() as u64;
        }
    }
    Some(count)
}
