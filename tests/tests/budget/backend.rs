//! What the sidecars talk to: the application behind the server's, and a collector for spans. All of it in threads of the test.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Status, transport::Server};

/// Ports of the application and of the collector.
const HTTP1: u16 = 8080;
const HTTP2: u16 = 8081;
const OTLP: u16 = 4317;
/// Bytes of each answer.
pub(crate) const BODY: usize = 1024;

/// Opens every port at `address` in the calling thread's namespace and serves for good.
pub(crate) fn serve(address: &str, spans: Arc<Spans>) {
    let listen = |port| TcpListener::bind((address, port)).unwrap();
    let (http1, http2, otlp) = (listen(HTTP1), listen(HTTP2), listen(OTLP));
    thread::spawn(move || {
        for socket in http1.incoming() {
            let socket = socket.unwrap();
            thread::spawn(move || answer_http1(socket));
        }
    });
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::join!(serve_http2(http2), collect(otlp, spans)) });
    });
}

/// Answers as a common web server does: one write, seven header fields. Ends with the connection.
fn answer_http1(socket: TcpStream) -> Option<()> {
    socket.set_nodelay(true).ok()?;
    let (mut reader, mut writer) = (BufReader::new(socket.try_clone().ok()?), socket);
    let head = "HTTP/1.1 200 OK\r\nServer: backend/1.0\r\nDate: Tue, 24 Nov 2026 12:00:00 GMT\r\nContent-Type: application/octet-stream\r\n\
                Content-Length: 1024\r\nConnection: keep-alive\r\nX-Note: 1\r\n\r\n";
    let answer = [head.as_bytes(), &[b'x'; BODY]].concat();
    let mut line = String::new();
    loop {
        let mut length = 0;
        loop {
            line.clear();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let field = line.trim_end().to_ascii_lowercase();
            if let Some(value) = field.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if field.is_empty() {
                break;
            }
        }
        reader.read_exact(&mut vec![0; length]).ok()?;
        writer.write_all(&answer).ok()?;
    }
}

async fn serve_http2(listener: TcpListener) {
    let listener = listen(listener);
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(socket), hyper::service::service_fn(call));
        tokio::spawn(serving.map(drop));
    }
}

fn listen(listener: TcpListener) -> tokio::net::TcpListener {
    listener.set_nonblocking(true).unwrap();
    tokio::net::TcpListener::from_std(listener).unwrap()
}

/// Reads the whole body and answers with one; a gRPC call gets its status in trailers.
async fn call(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, hyper::Error> {
    let kind = request.headers().get("content-type").cloned();
    request.into_body().collect().await?;
    let body = Full::new(Bytes::from_static(&[b'x'; BODY]));
    let mut answer = if kind.as_ref().is_some_and(|kind| kind == "application/grpc") {
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
        Response::new(body.with_trailers(async { Some(Ok(trailers)) }).boxed())
    } else {
        Response::new(body.boxed())
    };
    answer.headers_mut().extend(kind.map(|kind| (http::header::CONTENT_TYPE, kind)));
    Ok(answer)
}

/// Who has sent spans.
#[derive(Default)]
pub(crate) struct Spans {
    from: Mutex<BTreeSet<IpAddr>>,
    came: Condvar,
}

impl Spans {
    /// Whether all of these have, or do within `wait`.
    pub(crate) fn heard(&self, all: &[&str], wait: Duration) -> bool {
        let from = self.from.lock().unwrap();
        let missing = |from: &mut BTreeSet<IpAddr>| !all.iter().all(|address| from.contains(&address.parse().unwrap()));
        !self.came.wait_timeout_while(from, wait, missing).unwrap().1.timed_out()
    }
}

struct Collector(Arc<Spans>);

#[async_trait::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, Status> {
        let from = request.remote_addr().ok_or_else(|| Status::internal("a peer without an address"))?;
        self.0.from.lock().unwrap().insert(from.ip());
        self.0.came.notify_all();
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collect(listener: TcpListener, spans: Arc<Spans>) {
    let incoming = TcpListenerStream::new(listen(listener));
    Server::builder().add_service(TraceServiceServer::new(Collector(spans))).serve_with_incoming(incoming).await.unwrap();
}
