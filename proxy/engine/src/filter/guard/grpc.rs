//! Calls of gRPC with one message each way, as guards make them: how a question is written down, and what an answer holds.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::uri::Authority;
use http::{HeaderMap, Method, Request, StatusCode, Version, header};
use prost::Message;

use crate::callout::{CalloutAnswer, CalloutAway};

/// Flag and length before a message (gRPC over HTTP/2).
const FRAME_BYTES: usize = 5;

/// A call of a method (`/SERVICE/METHOD`).
///
/// # Errors
/// It cannot be written down.
pub(super) fn call(
    (authority, method): (&Authority, &str),
    message: &impl Message,
    timeout: Duration,
) -> Result<Request<Bytes>, http::Error> {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(FRAME_BYTES + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    frame.put_slice(&message.encode_to_vec());
    Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!("http://{authority}{method}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header("grpc-timeout", format!("{}m", timeout.as_millis().max(1)))
        .body(frame.freeze())
}

/// The message of an answer.
///
/// # Errors
/// There is none: the call failed, or what came cannot be read.
pub(super) fn message<M: Message + Default>(CalloutAnswer { status, headers, body, trailers }: &CalloutAnswer) -> Result<M, CalloutAway> {
    let code = |headers: &HeaderMap| headers.get("grpc-status").and_then(|code| code.to_str().ok()?.parse::<u32>().ok());
    if *status != StatusCode::OK {
        return Err(CalloutAway::Unreached);
    }
    match code(trailers).or_else(|| code(headers)) {
        Some(0) => {}
        Some(_) => return Err(CalloutAway::Unreached),
        None => return Err(CalloutAway::Garbled),
    }
    let (prefix, message) = body.split_at_checked(FRAME_BYTES).ok_or(CalloutAway::Garbled)?;
    let told = prefix.iter().skip(1).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    if prefix[0] != 0 || told != message.len() as u64 {
        return Err(CalloutAway::Garbled);
    }
    M::decode(message).map_err(|_| CalloutAway::Garbled)
}
