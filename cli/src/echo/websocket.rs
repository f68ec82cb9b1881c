//! WebSocket, the server's half of RFC 6455: whatever arrives goes back.

use std::io;

use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::answer::{EchoBody, text};

/// Appended to the client's key (RFC 6455, section 1.3).
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Largest frame taken.
const FRAME_BYTES_MAX: u64 = 1 << 20;
/// Largest payload of a control frame (section 5.5).
const CONTROL_BYTES_MAX: u64 = 125;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;
const PROTOCOL_ERROR: u16 = 1002;
const TOO_BIG: u16 = 1009;

/// Whether a request asks for a WebSocket.
pub(super) fn is_handshake(request: &Request<Incoming>) -> bool {
    request.method() == Method::GET
        && request.headers().get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Answers the handshake and echoes from then on.
pub(super) fn answer(mut request: Request<Incoming>) -> Response<EchoBody> {
    let version_fits = request.headers().get(SEC_WEBSOCKET_VERSION).is_some_and(|value| value == "13");
    let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY).filter(|_| version_fits) else {
        let mut refusal = text(StatusCode::UPGRADE_REQUIRED, "a WebSocket of version 13 needs sec-websocket-key\n".into());
        refusal.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return refusal;
    };
    let accept = accept(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let _ = echo(TokioIo::new(upgraded)).await;
        }
    });
    let mut response = Response::new(Full::new(Bytes::new()).boxed());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(value) = HeaderValue::from_str(&accept) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, value);
    }
    response
}

/// `sec-websocket-accept` for a key (section 4.2.2). SHA-1 is the protocol's choice; nothing secret hangs on it.
fn accept(key: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &[key, KEY_SUFFIX.as_bytes()].concat());
    BASE64_STANDARD.encode(digest)
}

/// One frame of the client's.
struct Frame {
    /// FIN and the reserved bits, as they came.
    flags: u8,
    opcode: u8,
    payload: Vec<u8>,
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    loop {
        match read(&mut stream).await? {
            Ok(Frame { opcode: CLOSE, payload, .. }) => {
                write(&mut stream, 0x80, CLOSE, &payload).await?;
                return stream.shutdown().await;
            }
            Ok(Frame { opcode: PING, payload, .. }) => write(&mut stream, 0x80, PONG, &payload).await?,
            Ok(Frame { opcode: PONG, .. }) => {}
            Ok(frame) => write(&mut stream, frame.flags, frame.opcode, &frame.payload).await?,
            Err(code) => {
                write(&mut stream, 0x80, CLOSE, &code.to_be_bytes()).await?;
                return stream.shutdown().await;
            }
        }
    }
}

/// Reads a frame (section 5.2); the inner error is the code to close with.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Result<Frame, u16>> {
    let (first, second) = (stream.read_u8().await?, stream.read_u8().await?);
    let (flags, opcode) = (first & 0x80, first & 0x0F);
    let length = match second & 0x7F {
        126 => u64::from(stream.read_u16().await?),
        127 => stream.read_u64().await?,
        short => u64::from(short),
    };
    let (masked, reserved, control) = (second & 0x80 != 0, first & 0x70 != 0, opcode & 0x8 != 0);
    let known = matches!(opcode, 0..=2 | CLOSE | PING | PONG);
    if !masked || reserved || !known || (control && (flags == 0 || length > CONTROL_BYTES_MAX)) {
        return Ok(Err(PROTOCOL_ERROR));
    }
    if length > FRAME_BYTES_MAX {
        return Ok(Err(TOO_BIG));
    }
    let mut mask = [0; 4];
    stream.read_exact(&mut mask).await?;
    let mut payload = Vec::new();
    stream.take(length).read_to_end(&mut payload).await?;
    if payload.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Ok(Ok(Frame { flags, opcode, payload }))
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), flags: u8, opcode: u8, payload: &[u8]) -> io::Result<()> {
    let mut frame = vec![flags | opcode];
    match payload.len() {
        length @ 0..=125 => frame.push(u8::try_from(length).unwrap_or(0)),
        length => match u16::try_from(length) {
            Ok(length) => {
                frame.push(126);
                frame.extend_from_slice(&length.to_be_bytes());
            }
            Err(_) => {
                frame.push(127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        },
    }
    frame.extend_from_slice(payload);
    stream.write_all(&frame).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: the accept key of RFC 6455's own example.
    #[test]
    fn the_accept_key_is_the_rfcs() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match u8::try_from(payload.len()).ok().filter(|length| *length < 126) {
            Some(length) => frame.push(0x80 | length),
            None => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&[1, 2, 3, 4]);
        frame.extend(payload.iter().zip([1, 2, 3, 4].iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    async fn converse(sent: &[u8]) -> Vec<u8> {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let serving = tokio::spawn(echo(server));
        client.write_all(sent).await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        let _ = serving.await.unwrap();
        got
    }

    /// Aim: text, long binary, ping and close are answered as the RFC says; what breaks its rules is closed with the right code.
    #[tokio::test]
    async fn frames_are_echoed_or_refused() {
        assert_eq!(converse(&masked(0x81, b"hi")).await, [0x81, 2, b'h', b'i']);
        assert_eq!(converse(&masked(0x89, b"p")).await, [0x8A, 1, b'p']);
        assert_eq!(converse(&masked(0x88, &[3, 232])).await, [0x88, 2, 3, 232]);
        let long = converse(&masked(0x82, &vec![7; 70_000])).await;
        assert_eq!((long.len(), &long[..2]), (70_010, &[0x82, 127][..]));
        assert_eq!(converse(&[0x81, 1, b'x']).await, [0x88, 2, 3, 234], "unmasked");
        assert_eq!(converse(&[0x82, 0xFF, 0, 0, 0, 0, 1, 0, 0, 0]).await, [0x88, 2, 3, 241], "16 MiB");
    }

    proptest::proptest! {
        /// Aim: no bytes make the server panic or hang.
        #[test]
        fn any_bytes_are_survived(sent in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), first in 0_u8..16) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (mut client, server) = tokio::io::duplex(1 << 20);
                client.write_all(&[&[0x80 | first, 0x80 | 20][..], &sent].concat()).await.unwrap();
                client.shutdown().await.unwrap();
                let _ = echo(server).await;
            });
        }
    }
}
