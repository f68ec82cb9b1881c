//! Applications for tests: a server that says who it is, and a client that counts what it gets. Plain hyper; nothing of ours but the
//! network.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proxy::io::{Network, Socket};
use tokio::time::Instant;

/// What a server does with a request.
pub type Answering = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Full<Bytes>>> + Send + Sync>;

/// Header in which the server says who it is.
pub const SERVED_BY: &str = "x-served-by";
/// Prefix of headers in which the server repeats what it was sent.
pub const SEEN: &str = "x-seen-";

/// Serves HTTP/1.1 until dropped: each answer names the server and repeats the request's headers.
///
/// # Errors
/// The port is taken.
pub async fn serve(network: Network, address: SocketAddr, name: &'static str) -> anyhow::Result<()> {
    let answering: Answering = Arc::new(move |request| std::future::ready(answer(name, StatusCode::OK, &request)).boxed());
    serve_as(network, address, answering, None).await
}

/// Serves HTTP/1.1 until dropped. A connection without a request is closed after `idle`, without a word, as many servers do.
///
/// # Errors
/// The port is taken.
pub async fn serve_as(network: Network, address: SocketAddr, answering: Answering, idle: Option<Duration>) -> anyhow::Result<()> {
    let mut listening = network.listen(address).await.with_context(|| format!("cannot listen on {address}"))?;
    loop {
        let accepted = listening.accept().await?;
        tokio::spawn(converse(accepted.socket, Arc::clone(&answering), idle));
    }
}

async fn converse(socket: Socket, answering: Answering, idle: Option<Duration>) {
    // Requests under way, and when the last one began or ended.
    let busy = Arc::new(Mutex::new((0_u32, Instant::now())));
    let seen = Arc::clone(&busy);
    let answer = service_fn(move |request: Request<Incoming>| {
        let (answering, busy) = (answering(request), Arc::clone(&seen));
        async move {
            let count = |more: bool| {
                let mut busy = busy.lock().unwrap_or_else(PoisonError::into_inner);
                *busy = (if more { busy.0 + 1 } else { busy.0 - 1 }, Instant::now());
            };
            count(true);
            let response = answering.await;
            count(false);
            Ok::<_, Infallible>(response)
        }
    });
    let quiet = async {
        let Some(idle) = idle else { return std::future::pending().await };
        loop {
            let (under_way, since) = *busy.lock().unwrap_or_else(PoisonError::into_inner);
            let end = since + idle;
            if under_way == 0 && end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end.max(Instant::now() + Duration::from_millis(5))).await;
        }
    };
    tokio::select! {
        // A connection that ends early is the caller's affair.
        _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), answer) => {}
        () = quiet => {}
    }
}

/// Names the server and repeats the request's headers.
pub fn answer(name: &'static str, status: StatusCode, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{} {}\n", request.method(), request.uri().path())));
    *response.status_mut() = status;
    response.headers_mut().insert(SERVED_BY, http::HeaderValue::from_static(name));
    for (header, value) in request.headers() {
        if let Ok(seen) = http::HeaderName::try_from(format!("{SEEN}{header}")) {
            response.headers_mut().append(seen, value.clone());
        }
    }
    response
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// Who served it; empty if nobody said.
    pub fn served_by(&self) -> &str {
        self.header(SERVED_BY)
    }

    /// A header of the request as the server saw it; empty if absent.
    pub fn seen(&self, header: &str) -> &str {
        self.header(&format!("{SEEN}{header}"))
    }

    /// A header of the answer; empty if absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

/// A client with one keep-alive connection, opened again where it is gone.
#[derive(Debug)]
pub struct Client {
    network: Network,
    target: SocketAddr,
    host: String,
    connection: Option<SendRequest<Full<Bytes>>>,
    /// Answers by status, and `error` where none came.
    pub tally: BTreeMap<String, u64>,
}

impl Client {
    /// Calls `host` at `target`.
    pub fn new(network: Network, target: SocketAddr, host: impl Into<String>) -> Self {
        Self { network, target, host: host.into(), connection: None, tally: BTreeMap::new() }
    }

    /// One GET.
    ///
    /// # Errors
    /// No connection, or no whole answer.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        self.send(Request::get(path)).await
    }

    /// One request without a body.
    ///
    /// # Errors
    /// No connection, or no whole answer.
    pub async fn send(&mut self, request: http::request::Builder) -> anyhow::Result<Answer> {
        let result = self.exchange(request.header("host", &*self.host).body(Full::default())?).await;
        let key = match &result {
            Ok(answer) => answer.status.as_u16().to_string(),
            Err(_) => "error".to_owned(),
        };
        *self.tally.entry(key).or_default() += 1;
        if result.is_err() {
            self.connection = None;
        }
        result
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        let mut kept = self.connection.take();
        if let Some(connection) = &mut kept
            && connection.ready().await.is_err()
        {
            kept = None;
        }
        let mut connection = match kept {
            Some(connection) => connection,
            None => self.open().await?,
        };
        let (parts, body) = connection.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        self.connection = Some(connection);
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    /// Next time a new connection is opened.
    pub fn hang_up(&mut self) {
        self.connection = None;
    }

    async fn open(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let socket = self.network.connect(self.target).await.with_context(|| format!("cannot reach {}", self.target))?;
        let (sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    /// How many requests did not end with 200.
    pub fn failures(&self) -> u64 {
        self.tally.iter().filter(|(key, _)| *key != "200").map(|(_, count)| count).sum()
    }
}
