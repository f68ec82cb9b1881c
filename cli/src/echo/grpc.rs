//! gRPC over the HTTP/2 server that is there anyway: length-prefixed messages and trailers, after the gRPC protocol over HTTP/2.
//!
//! ```proto
//! package meshwright.echo.v1;
//! service Echo { rpc Call(Request) returns (Reply); rpc Chat(stream Request) returns (stream Reply); }
//! message Request { string message = 1; uint32 status = 2; uint32 delay_ms = 3; }   // status: the gRPC code to answer with
//! message Reply { string message = 1; string json = 2; }                          // json: what was seen, as over HTTP
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::channel::Sender;
use http_body_util::{BodyExt, Channel};
use hyper::body::Incoming;
use prost::Message;

use super::EchoService;
use super::answer::{EchoBody, describe};

/// Largest message taken.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Messages that may wait for a client that reads slowly.
const REPLIES_MAX: usize = 16;
/// The compressed flag and the length.
const PREFIX_BYTES: usize = 5;
/// Path of the unary method.
pub(super) const CALL_PATH: &str = "/meshwright.echo.v1.Echo/Call";
const CHAT_PATH: &str = "/meshwright.echo.v1.Echo/Chat";
const HEALTH_PATH: &str = "/grpc.health.v1.Health/Check";
/// `grpc.health.v1.HealthCheckResponse {status: SERVING}`.
const SERVING: &[u8] = &[0x08, 0x01];

/// What a client sends.
#[derive(Clone, PartialEq, Message)]
pub(super) struct EchoRequest {
    /// Comes back.
    #[prost(string, tag = "1")]
    pub(super) message: String,
    /// gRPC code to answer with; 0 is OK.
    #[prost(uint32, tag = "2")]
    pub(super) status: u32,
    /// Wait before the answer.
    #[prost(uint32, tag = "3")]
    pub(super) delay_ms: u32,
}

/// What it gets.
#[derive(Clone, PartialEq, Message)]
pub(super) struct EchoReply {
    /// What was sent.
    #[prost(string, tag = "1")]
    pub(super) message: String,
    /// What was seen.
    #[prost(string, tag = "2")]
    pub(super) json: String,
}

/// How a call ended.
#[derive(Debug)]
struct GrpcStatus {
    code: u32,
    message: String,
}

impl GrpcStatus {
    const INVALID_ARGUMENT: u32 = 3;
    const RESOURCE_EXHAUSTED: u32 = 8;
    const UNIMPLEMENTED: u32 = 12;
    const UNAVAILABLE: u32 = 14;

    fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(self.code));
        if let Ok(message) = HeaderValue::from_str(&self.message) {
            trailers.insert("grpc-message", message);
        }
        trailers
    }
}

/// Whether a request is gRPC.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// One message with its prefix.
pub(super) fn frame(message: &impl Message) -> Bytes {
    raw_frame(&message.encode_to_vec())
}

fn raw_frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    frame.put_u8(0);
    // Never more than MESSAGE_BYTES_MAX and some JSON around it.
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// Takes one whole message from the front of what has arrived; `None` when more must come.
///
/// # Errors
/// The message is compressed or too long.
fn take(arrived: &mut BytesMut) -> Result<Option<Bytes>, &'static str> {
    let Some(mut prefix) = arrived.get(..PREFIX_BYTES) else { return Ok(None) };
    if prefix.get_u8() != 0 {
        return Err("compressed messages are not understood");
    }
    let length = prefix.get_u32() as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err("the message is longer than 4 MiB");
    }
    if arrived.len() < PREFIX_BYTES + length {
        return Ok(None);
    }
    arrived.advance(PREFIX_BYTES);
    Ok(Some(arrived.split_to(length).freeze()))
}

/// The one message of a unary answer's body.
///
/// # Errors
/// It is not there, or not whole, or not ours.
pub(super) fn only_message(body: &[u8]) -> Result<EchoReply, String> {
    let message = take(&mut BytesMut::from(body))?.ok_or("the answer holds no message")?;
    EchoReply::decode(message).map_err(|error| format!("the answer is no echo: {error}"))
}

/// Answers a call; the body streams, so that `Chat` may take its time.
pub(super) fn answer(service: Arc<EchoService>, peer: SocketAddr, request: Request<Incoming>) -> Response<EchoBody> {
    let (mut sender, body) = Channel::<Bytes, std::convert::Infallible>::new(REPLIES_MAX);
    tokio::spawn(async move {
        let (head, body) = request.into_parts();
        let status = match head.uri.path() {
            CALL_PATH | CHAT_PATH => exchange(&service, peer, &head, body, &mut sender).await,
            HEALTH_PATH => {
                let _ = sender.send_data(raw_frame(SERVING)).await;
                Ok(())
            }
            other => Err(GrpcStatus::new(GrpcStatus::UNIMPLEMENTED, format!("{other} is not served here"))),
        };
        let trailers = status.err().unwrap_or_else(|| GrpcStatus::new(0, "")).trailers();
        // A client that left needs no trailers.
        let _ = sender.send_trailers(trailers).await;
    });
    let mut response = Response::new(body.boxed());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// One reply per message, until the client is done.
async fn exchange(
    service: &EchoService,
    peer: SocketAddr,
    head: &http::request::Parts,
    mut body: Incoming,
    sender: &mut Sender<Bytes>,
) -> Result<(), GrpcStatus> {
    let mut arrived = BytesMut::new();
    let mut messages = 0_u64;
    while let Some(chunk) = body.frame().await {
        let chunk = chunk.map_err(|error| GrpcStatus::new(GrpcStatus::UNAVAILABLE, format!("the request broke off: {error}")))?;
        if let Ok(data) = chunk.into_data() {
            arrived.extend_from_slice(&data);
        }
        while let Some(message) = take(&mut arrived).map_err(|why| GrpcStatus::new(GrpcStatus::RESOURCE_EXHAUSTED, why))? {
            messages += 1;
            let reply = reply(service, peer, head, message).await?;
            if sender.send_data(reply).await.is_err() {
                return Ok(());
            }
        }
    }
    if head.uri.path() == CALL_PATH && messages != 1 {
        return Err(GrpcStatus::new(GrpcStatus::INVALID_ARGUMENT, format!("Call takes one message, {messages} came")));
    }
    Ok(())
}

async fn reply(service: &EchoService, peer: SocketAddr, head: &http::request::Parts, message: Bytes) -> Result<Bytes, GrpcStatus> {
    let body_bytes = message.len() as u64;
    let request = EchoRequest::decode(message)
        .map_err(|error| GrpcStatus::new(GrpcStatus::INVALID_ARGUMENT, format!("the message is no meshwright.echo.v1.Request: {error}")))?;
    let (called, all_well) = service.caller.call_all(&service.rules, head.uri.path(), &head.headers).await;
    tokio::time::sleep(Duration::from_millis(request.delay_ms.into())).await;
    if request.status != 0 {
        return Err(GrpcStatus::new(request.status, "as wished"));
    }
    if !all_well {
        return Err(GrpcStatus::new(GrpcStatus::UNAVAILABLE, serde_json::Value::from(called).to_string()));
    }
    let json = describe(&service.who, peer, head, "gRPC", body_bytes, &called);
    Ok(frame(&EchoReply { message: request.message, json: String::from_utf8(json).unwrap_or_default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: messages come out whole however they were cut, and impossible ones are refused before they are stored.
    #[test]
    fn frames_are_taken_whole() {
        let sent = frame(&EchoRequest { message: "hello".into(), status: 0, delay_ms: 0 });
        let twice = [&sent[..], &sent[..]].concat();
        let (mut arrived, mut taken) = (BytesMut::new(), 0);
        for byte in twice {
            arrived.put_u8(byte);
            if let Some(message) = take(&mut arrived).unwrap() {
                assert_eq!(EchoRequest::decode(message).unwrap().message, "hello");
                taken += 1;
            }
        }
        assert_eq!(taken, 2);
        assert!(take(&mut BytesMut::from(&[1, 0, 0, 0, 0][..])).unwrap_err().contains("compressed"));
        assert!(take(&mut BytesMut::from(&[0, 255, 0, 0, 0][..])).unwrap_err().contains("longer"));
        assert!(only_message(&[]).is_err());
    }

    proptest::proptest! {
        /// Aim: no bytes make the reader of frames panic, and what it takes was there.
        #[test]
        fn any_frames_are_survived(mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60), length in 0_u8..40) {
            let _ = only_message(&bytes);
            bytes.splice(0..0, [0, 0, 0, 0, length]);
            let mut arrived = BytesMut::from(&bytes[..]);
            while let Ok(Some(message)) = take(&mut arrived) {
                proptest::prop_assert!(message.len() < bytes.len());
            }
        }
    }
}
