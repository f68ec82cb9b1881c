//! HTTP/1.1, HTTP/2 and gRPC.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// What `/1k` answers.
static KIB: [u8; 1 << 10] = [b'x'; 1 << 10];
/// What `/bulk` is cut from.
static BULK: [u8; 256 << 10] = [b'x'; 256 << 10];
/// Length of `/bulk`.
pub(super) const BULK_BYTES: u64 = 100 << 20;
/// Biggest body that is given back.
const ECHO_BYTES_MAX: usize = 64 << 20;
/// Windows that never stand in the way of what is measured.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Streams at once on one connection.
const STREAMS_MAX: u32 = 1000;
/// The gRPC method.
const GRPC_PATH: &str = "/bench.Echo/Unary";

pub(super) async fn serve_h1(stream: TcpStream) {
    // A connection that breaks is no matter of the backend's; the load generator counts it.
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await);
}

pub(super) async fn serve_h2(stream: TcpStream) {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX);
    drop(builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await);
}

async fn answer(request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    let grpc = request.uri().path() == GRPC_PATH;
    Ok(match (request.method(), request.uri().path()) {
        (&Method::GET, "/1k") => Response::new(Answer::whole(Bytes::from_static(&KIB))),
        (&Method::GET, "/bulk") => Response::new(Answer::Bulk(BULK_BYTES)),
        (&Method::POST, _) => echo(request, grpc).await,
        _ => status(StatusCode::NOT_FOUND),
    })
}

/// Waits for the whole body, then gives it back: an answer that begins earlier would make two writes of one.
async fn echo(request: Request<Incoming>, grpc: bool) -> Response<Answer> {
    let Ok(body) = Limited::new(request.into_body(), ECHO_BYTES_MAX).collect().await else {
        return status(StatusCode::PAYLOAD_TOO_LARGE);
    };
    let body = body.to_bytes();
    if !grpc {
        return Response::new(Answer::whole(body));
    }
    let mut response = Response::new(Answer::Grpc(Some(body), Some(grpc_ok())));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn grpc_ok() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers
}

fn status(code: StatusCode) -> Response<Answer> {
    let mut response = Response::new(Answer::Whole(None));
    *response.status_mut() = code;
    response
}

/// A body of the backend's.
enum Answer {
    Whole(Option<Bytes>),
    /// So many bytes left.
    Bulk(u64),
    /// A message and its trailers.
    Grpc(Option<Bytes>, Option<HeaderMap>),
}

impl Answer {
    fn whole(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = match self.get_mut() {
            Self::Whole(bytes) => bytes.take().map(Frame::data),
            Self::Grpc(message, trailers) => message.take().map(Frame::data).or_else(|| trailers.take().map(Frame::trailers)),
            Self::Bulk(0) => None,
            Self::Bulk(left) => {
                let count = BULK.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= count as u64;
                Some(Frame::data(Bytes::from_static(&BULK[..count])))
            }
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None) | Self::Bulk(0) | Self::Grpc(None, None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Bulk(left) => SizeHint::with_exact(*left),
            Self::Grpc(..) => SizeHint::default(),
        }
    }
}
