//! What answers in the pods of a table: says its name, remembers what it saw, and answers as the request asks.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use proxy::io::Network;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::judge::Seen;
use super::table::Wish;

/// Header in which a pod says its name.
pub const POD: &str = "x-pod";
/// Header that tells requests of different cases apart.
pub const TAG: &str = "x-case";
/// Header that says what to answer.
pub const ANSWER: &str = "x-answer";

/// What all pods saw, and what they have answered so far. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Mutex<Pages>>);

#[derive(Debug, Default)]
struct Pages {
    seen: Vec<Seen>,
    counts: BTreeMap<String, u32>,
}

impl Ledger {
    /// Everything seen since the last time.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.0.lock().seen)
    }

    fn write(&self, seen: Seen) {
        self.0.lock().seen.push(seen);
    }

    /// How often a request of that tag came, this time included.
    fn count(&self, tag: &str) -> u32 {
        let mut pages = self.0.lock();
        let count = pages.counts.entry(tag.to_owned()).or_default();
        *count += 1;
        *count
    }
}

/// Serves HTTP/1.1 and HTTP/2 until dropped.
///
/// # Errors
/// The port is taken.
pub async fn serve(network: Network, address: SocketAddr, pod: String, ledger: Ledger) -> io::Result<()> {
    let mut listening = network.listen(address).await?;
    loop {
        let accepted = listening.accept().await?;
        let (pod, ledger) = (pod.clone(), ledger.clone());
        tokio::spawn(async move {
            let answer = service_fn(move |request: Request<Incoming>| answer(pod.clone(), ledger.clone(), request));
            // A connection that ends early is the caller's affair.
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(accepted.socket), answer).await;
        });
    }
}

async fn answer(
    pod: String,
    ledger: Ledger,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let text = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let host = parts.uri.authority().map_or_else(|| text("host"), ToString::to_string);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let (tag, asked) = (text(TAG), text(ANSWER));
    let is_grpc = text("content-type").starts_with("application/grpc");
    let body = String::from_utf8_lossy(&body).into_owned();
    ledger.write(Seen { pod: pod.clone(), method: parts.method.to_string(), path, host, headers: parts.headers, body });
    let mut wanted: Wish = serde_json::from_str(&asked).unwrap_or_default();
    if wanted.first > 0 && ledger.count(&tag) > wanted.first {
        wanted = Wish::default();
    }
    tokio::time::sleep(Duration::from_millis(wanted.delay_ms)).await;
    if wanted.reset {
        return Err("as asked".into());
    }
    let mut response = Response::new(Full::from("served\n"));
    *response.status_mut() = StatusCode::from_u16(wanted.status)?;
    if is_grpc {
        *response.body_mut() = Full::default();
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        response.headers_mut().insert("grpc-status", wanted.grpc.to_string().parse()?);
    }
    response.headers_mut().insert(POD, pod.parse()?);
    for (name, value) in wanted.headers {
        response.headers_mut().append(HeaderName::try_from(name)?, value.parse()?);
    }
    Ok(response)
}

/// Answers the first bytes of each connection with the pod's name, until dropped.
///
/// # Errors
/// The port is taken.
pub async fn serve_bytes(network: Network, address: SocketAddr, pod: String, ledger: Ledger) -> io::Result<Infallible> {
    let mut listening = network.listen(address).await?;
    loop {
        let mut socket = listening.accept().await?.socket;
        let (pod, ledger) = (pod.clone(), ledger.clone());
        tokio::spawn(async move {
            let mut bytes = [0; 64];
            if let Ok(count @ 1..) = socket.read(&mut bytes).await {
                let body = String::from_utf8_lossy(bytes.get(..count).unwrap_or_default()).into_owned();
                ledger.write(Seen { pod: pod.clone(), body, ..Seen::default() });
                // A caller that is gone has what it wanted.
                let _ = socket.write_all(pod.as_bytes()).await;
                let _ = socket.shutdown().await;
            }
        });
    }
}
