//! The client's application: one kept connection, one call after the other, so that every call costs the same.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::runtime::Runtime;

use crate::backend::BODY;
use crate::pair::SERVICE_IP;

/// One answer at most.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// What kind of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Road {
    /// HTTP/1.1, no body, 1 KiB back.
    Get,
    /// HTTP/1.1, 1 KiB each way.
    Post,
    /// As `Get`, and may be sent again; endpoints are judged by errors, success rate and latency.
    GovernedGet,
    /// The same, 1 KiB each way.
    GovernedPost,
    /// As `Get`, once both workloads have policies ([`crate::pair::Pair::guard`]).
    GuardedGet,
    /// HTTP/2, 1 KiB each way.
    Http2Post,
    /// gRPC, a message of 1 KiB each way, status in trailers.
    Grpc,
}

impl Road {
    /// Those that are answered from the start.
    pub(crate) const ALL: [Self; 6] = [Self::Get, Self::Post, Self::GovernedGet, Self::GovernedPost, Self::Http2Post, Self::Grpc];

    /// As the book names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Get => "h1 GET",
            Self::Post => "h1 POST",
            Self::GovernedGet => "h1 GET under retries",
            Self::GovernedPost => "h1 POST under retries",
            Self::GuardedGet => "h1 GET under 100 rules",
            Self::Http2Post => "h2 POST",
            Self::Grpc => "gRPC",
        }
    }

    /// Connects to the Service, in the calling thread's namespace.
    pub(crate) fn connect(self) -> io::Result<TcpStream> {
        let port = match self {
            Self::Get | Self::Post | Self::GuardedGet => 80,
            Self::GovernedGet | Self::GovernedPost => 82,
            Self::Http2Post | Self::Grpc => 81,
        };
        let socket = TcpStream::connect((SERVICE_IP, port))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(ANSWER_MAX))?;
        Ok(socket)
    }
}

/// An open connection.
pub(crate) enum Caller {
    Http1 { socket: TcpStream, ask: Vec<u8>, room: Vec<u8> },
    Http2 { runtime: Runtime, sender: SendRequest<Full<Bytes>>, road: Road },
}

impl Caller {
    pub(crate) fn new(road: Road, socket: TcpStream) -> Result<Self, String> {
        let fields = format!("Host: {SERVICE_IP}\r\nUser-Agent: caller/1.0\r\nAccept: */*\r\n");
        match road {
            Road::Get | Road::GovernedGet | Road::GuardedGet => Ok(Self::http1(socket, format!("GET /1k HTTP/1.1\r\n{fields}\r\n"))),
            Road::Post | Road::GovernedPost => {
                let body = "x".repeat(BODY);
                Ok(Self::http1(socket, format!("POST /1k HTTP/1.1\r\n{fields}Content-Length: {BODY}\r\n\r\n{body}")))
            }
            Road::Http2Post | Road::Grpc => Self::http2(road, socket).map_err(|error| error.to_string()),
        }
    }

    fn http1(socket: TcpStream, ask: String) -> Self {
        Self::Http1 { socket, ask: ask.into_bytes(), room: vec![0; 16 << 10] }
    }

    fn http2(road: Road, socket: TcpStream) -> Result<Self, Box<dyn std::error::Error>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        socket.set_nonblocking(true)?;
        let sender = runtime.block_on(async {
            let socket = tokio::net::TcpStream::from_std(socket)?;
            let shake = Builder::new(TokioExecutor::new()).handshake(TokioIo::new(socket));
            let (sender, connection) = tokio::time::timeout(ANSWER_MAX, shake).await??;
            tokio::spawn(connection);
            Ok::<_, Box<dyn std::error::Error>>(sender)
        })?;
        Ok(Self::Http2 { runtime, sender, road })
    }

    /// One call; the answer was 200 and is read to its end.
    pub(crate) fn call(&mut self) -> Result<(), String> {
        match self {
            Self::Http1 { socket, ask, room } => call_http1(socket, ask, room).map_err(|error| error.to_string()),
            Self::Http2 { runtime, sender, road } => runtime.block_on(async {
                let call = tokio::time::timeout(ANSWER_MAX, call_http2(sender, *road));
                call.await.map_err(|_| format!("no answer within {ANSWER_MAX:?}"))?.map_err(|error| error.to_string())
            }),
        }
    }

    /// `count` calls.
    ///
    /// # Panics
    /// One of them failed.
    pub(crate) fn calls(&mut self, count: usize) {
        for n in 0..count {
            self.call().unwrap_or_else(|error| panic!("call {n} of {count}: {error}"));
        }
    }
}

fn call_http1(socket: &mut TcpStream, ask: &[u8], room: &mut [u8]) -> io::Result<()> {
    socket.write_all(ask)?;
    let mut read = 0;
    loop {
        let count = socket.read(&mut room[read..])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        read += count;
        let head = room[..read].windows(4).position(|four| four == b"\r\n\r\n");
        if !room[..read].starts_with(b"HTTP/1.1 200") {
            return Err(io::Error::other(String::from_utf8_lossy(&room[..read.min(200)]).into_owned()));
        }
        if head.is_some_and(|head| read - head - 4 >= BODY) {
            return Ok(());
        }
    }
}

async fn call_http2(sender: &mut SendRequest<Full<Bytes>>, road: Road) -> Result<(), Box<dyn std::error::Error>> {
    sender.ready().await?;
    let request = Request::post(format!("http://{SERVICE_IP}:81/bench.Web/Call")).header("user-agent", "caller/1.0");
    let request = match road {
        Road::Grpc => request.header("content-type", "application/grpc").header("te", "trailers"),
        _ => request.header("content-type", "application/octet-stream"),
    };
    let answer = sender.send_request(request.body(Full::new(Bytes::from_static(&[b'x'; BODY])))?).await?;
    if answer.status() != 200 {
        return Err(format!("{} {:?}", answer.status(), answer.headers()).into());
    }
    let body = answer.into_body().collect().await?;
    let status = body.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
    if road == Road::Grpc && status.as_ref().is_none_or(|status| status != "0") {
        return Err(format!("gRPC status {status:?}").into());
    }
    if body.to_bytes().len() != BODY {
        return Err("a short body".into());
    }
    Ok(())
}
