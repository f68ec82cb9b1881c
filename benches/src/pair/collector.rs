//! `benches collector`: takes spans as an OTLP collector does, and keeps none. So that tracing costs what it costs where somebody listens.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::sockets;

/// An empty gRPC message: not compressed, no bytes. `ExportTraceServiceResponse` without a word of reproach.
const ACCEPTED: &[u8] = &[0; 5];

/// Arguments of `benches collector`.
#[derive(Debug, Clone, clap::Args)]
pub struct CollectorArgs {
    /// Where to listen for OTLP over gRPC, without TLS.
    #[arg(long)]
    listen: SocketAddr,
}

/// Takes spans until it is ended.
///
/// # Errors
/// The address cannot be listened on.
pub fn collect(args: &CollectorArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the asynchronous runtime")?;
    runtime.block_on(async {
        let listener = sockets::listen(args.listen)?;
        loop {
            let stream = sockets::accept(&listener).await;
            let served = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service_fn(take));
            tokio::spawn(async move { drop(served.await) });
        }
    })
}

async fn take(request: Request<Incoming>) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let mut body = request.into_body();
    // Read to its end, or to where its sender broke off: the answer is the same.
    while let Some(Ok(_)) = body.frame().await {}
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let mut response = Response::new(Full::new(Bytes::from_static(ACCEPTED)).with_trailers(std::future::ready(Some(Ok(trailers)))));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}
