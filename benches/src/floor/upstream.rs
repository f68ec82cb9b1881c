//! Connections onward: idle ones of HTTP/1.1 in a pool, one of HTTP/2 for all.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::tls::Dial;
use super::{Http, convert};
use crate::sockets;

/// Idle connections kept; one that comes back beyond is closed.
const IDLE_MAX: usize = 4096;

type One = http1::SendRequest<Incoming>;
type Many = http2::SendRequest<Incoming>;

/// Where requests go on to.
pub(super) struct Upstream {
    address: SocketAddr,
    http: Http,
    dial: Option<Dial>,
    idle: Arc<Idle>,
    shared: tokio::sync::Mutex<Option<Many>>,
}

/// Idle connections, the one used last on top: few are kept warm rather than many lukewarm.
#[derive(Default)]
struct Idle(Mutex<Vec<One>>);

impl Idle {
    fn pop(&self) -> Option<One> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn push(&self, connection: One) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && !connection.is_closed() {
            idle.push(connection);
        }
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Upstream {
    pub(super) fn new(address: SocketAddr, http: Http, dial: Option<Dial>) -> Self {
        Self { address, http, dial, idle: Arc::default(), shared: tokio::sync::Mutex::default() }
    }

    /// Sends one request on and waits for the answer's head.
    pub(super) async fn send(&self, mut request: Request<Incoming>) -> io::Result<Response<Passing>> {
        match self.http {
            Http::H1 => {
                convert::into_h1(&mut request)?;
                let mut connection = self.one().await?;
                let response = connection.send_request(request).await.map_err(io::Error::other)?;
                let back = Some((connection, Arc::clone(&self.idle)));
                Ok(response.map(|body| Passing { body, back }))
            }
            Http::H2 => {
                convert::into_h2(&mut request)?;
                let mut connection = self.many().await?;
                connection.ready().await.map_err(io::Error::other)?;
                let response = connection.send_request(request).await.map_err(io::Error::other)?;
                Ok(response.map(|body| Passing { body, back: None }))
            }
        }
    }

    async fn one(&self) -> io::Result<One> {
        loop {
            let mut connection = match self.idle.pop() {
                Some(connection) => connection,
                None => {
                    let (connection, work) = http1::handshake(TokioIo::new(self.open().await?)).await.map_err(io::Error::other)?;
                    // What breaks the connection is told to the request on it.
                    tokio::spawn(async move { drop(work.await) });
                    connection
                }
            };
            if connection.ready().await.is_ok() {
                return Ok(connection);
            }
        }
    }

    async fn many(&self) -> io::Result<Many> {
        let mut shared = self.shared.lock().await;
        if let Some(connection) = shared.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(convert::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(convert::CONNECTION_WINDOW_BYTES);
        let (connection, work) = builder.handshake(TokioIo::new(self.open().await?)).await.map_err(io::Error::other)?;
        tokio::spawn(async move { drop(work.await) });
        *shared = Some(connection.clone());
        Ok(connection)
    }

    async fn open(&self) -> io::Result<Box<dyn Duplex>> {
        let stream = sockets::connect(self.address).await?;
        Ok(match &self.dial {
            Some(dial) => Box::new(dial.open(stream).await?),
            None => Box::new(stream),
        })
    }
}

/// An answer's body. Its connection is idle again when it is dropped; hyper closes the connection of a body that was not read to its end.
pub(super) struct Passing {
    body: Incoming,
    back: Option<(One, Arc<Idle>)>,
}

impl Body for Passing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        if let Some((connection, idle)) = self.back.take() {
            idle.push(connection);
        }
    }
}
