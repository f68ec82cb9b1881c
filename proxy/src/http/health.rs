//! The health protocol of gRPC (grpc.health.v1), as who asks speaks it.

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use prost::Message;

use crate::ground::limits::CHECK_ANSWER_BYTES_MAX;

/// The method that is called.
const GRPC_HEALTH: &str = "/grpc.health.v1.Health/Check";
/// Flag and length before a message of gRPC.
const GRPC_FRAME_BYTES: usize = 5;
/// `ServingStatus.SERVING`.
const SERVING: i32 = 1;

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct HealthQuestion {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, Copy, PartialEq, Message)]
struct HealthAnswer {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The head of the question; its body is [`framed`].
pub(crate) fn question(authority: &str) -> http::request::Builder {
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://{authority}{GRPC_HEALTH}"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
}

/// A message of gRPC: not compressed, its length, itself.
pub(crate) fn framed(service: &str) -> Bytes {
    let question = HealthQuestion { service: service.to_owned() }.encode_to_vec();
    let mut frame = BytesMut::with_capacity(GRPC_FRAME_BYTES + question.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(question.len()).unwrap_or(u32::MAX));
    frame.put_slice(&question);
    frame.freeze()
}

/// Whether the answer is that the service is serving.
///
/// # Errors
/// Why it is not, in words for a person.
pub(crate) async fn serving(response: Response<RecvStream>) -> Result<(), String> {
    if response.status() != StatusCode::OK {
        return Err(format!("the answer is {}", response.status()));
    }
    let (head, mut body) = response.into_parts();
    let mut message = BytesMut::new();
    while let Some(data) = body.data().await {
        message.extend_from_slice(&data.map_err(|error| error.to_string())?);
        if message.len() > CHECK_ANSWER_BYTES_MAX {
            return Err("the answer is too long".to_owned());
        }
    }
    let trailers = body.trailers().await.map_err(|error| error.to_string())?;
    let code = |headers: &HeaderMap| headers.get("grpc-status").and_then(|code| code.to_str().ok()?.parse::<u32>().ok());
    match trailers.as_ref().and_then(code).or_else(|| code(&head.headers)) {
        Some(0) => {}
        Some(code) => return Err(format!("the gRPC status is {code}")),
        None => return Err("the answer has no gRPC status".to_owned()),
    }
    let answer = message.get(GRPC_FRAME_BYTES..).and_then(|message| HealthAnswer::decode(message).ok());
    match answer {
        Some(HealthAnswer { status: SERVING }) => Ok(()),
        Some(HealthAnswer { status }) => Err(format!("the serving status is {status}")),
        None => Err("the answer is no message of the health protocol".to_owned()),
    }
}
