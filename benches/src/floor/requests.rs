//! Requests: hyper in, hyper out.

use std::sync::Arc;

use http::header;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Http;
use super::convert::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use super::upstream::Upstream;

/// Streams at once on one connection.
const STREAMS_MAX: u32 = 1000;

/// Serves one connection to its end. A request that cannot be forwarded ends it.
pub(super) async fn serve<S>(http: Http, stream: S, to: Arc<Upstream>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let forward = service_fn(move |request| {
        let to = Arc::clone(&to);
        async move {
            let answer = to.send(request).await;
            answer.inspect_err(|error| eprintln!("{error}")).map(|mut response| {
                response.headers_mut().remove(header::CONNECTION);
                response
            })
        }
    });
    // A connection that breaks has been told to whoever is at its other end.
    match http {
        Http::H1 => drop(http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), forward).await),
        Http::H2 => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .max_concurrent_streams(STREAMS_MAX);
            drop(builder.serve_connection(TokioIo::new(stream), forward).await);
        }
    }
}
