//! Posts to a collector over HTTP/1.1: one connection, kept between posts.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::collector::{CollectorPlace, Way};
use super::refusal::Refusal;
use crate::tls::Carries;

/// Largest head and body of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 32 << 10;
const BODY_BYTES_MAX: usize = 64 << 10;
/// Who posts.
const POSTER: HeaderValue = HeaderValue::from_static("meshwright");

/// One at a time. Clones share the connection.
#[derive(Debug, Clone)]
pub(super) struct Poster {
    way: Way,
    place: Arc<CollectorPlace>,
    kept: Arc<Mutex<Option<Kept>>>,
}

#[derive(Debug)]
struct Kept {
    sender: SendRequest<Full<Bytes>>,
    /// Ends with it.
    _driver: JoinSet<()>,
}

impl Poster {
    pub(super) fn new(way: Way, place: CollectorPlace) -> Self {
        Self { way, place: Arc::new(place), kept: Arc::default() }
    }

    /// Posts to a path below the place's own; the answer, whatever it says. Dropping the future closes the connection.
    ///
    /// # Errors
    /// There is no answer.
    pub(super) async fn post(&self, below: &str, content_type: HeaderValue, body: Bytes) -> Result<Response<Bytes>, Refusal> {
        let path = format!("{}{below}", self.place.path);
        let request = Request::post(if path.is_empty() { "/" } else { &path })
            .header(CONTENT_TYPE, content_type)
            .body(Full::new(body))
            .map_err(|error| Refusal::Never(error.to_string()))?;
        self.send(request).await
    }

    async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Refusal> {
        let host = HeaderValue::from_str(&self.place.authority).map_err(|error| Refusal::Never(error.to_string()))?;
        request.headers_mut().insert(HOST, host);
        request.headers_mut().insert(USER_AGENT, POSTER);
        let mut kept = self.kept.lock().await;
        // What was kept may have been closed since: then nothing of the request was read.
        if let Some(mut rested) = kept.take()
            && rested.sender.ready().await.is_ok()
        {
            match rested.sender.try_send_request(request).await {
                Ok(answer) => return finish(&mut kept, rested, answer).await,
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(Refusal::broken(failed.into_error().to_string())),
                },
            }
        }
        let mut opened = self.open().await?;
        let answer = opened.sender.send_request(request).await.map_err(|error| Refusal::broken(error.to_string()))?;
        finish(&mut kept, opened, answer).await
    }

    async fn open(&self) -> Result<Kept, Refusal> {
        let wire = self.way.open(&self.place, Carries::H1).await.map_err(|error| Refusal::broken(error.to_string()))?;
        let made = Builder::new().max_header_size(HEAD_BYTES_MAX).handshake(TokioIo::new(wire)).await;
        let (sender, connection) = made.map_err(|error| Refusal::broken(error.to_string()))?;
        let mut driver = JoinSet::new();
        // How it ends shows in what is sent over it.
        driver.spawn(async { drop(connection.await) });
        Ok(Kept { sender, _driver: driver })
    }
}

/// Reads an answer to its end, after which its connection may be used again.
async fn finish(kept: &mut Option<Kept>, wire: Kept, answer: Response<hyper::body::Incoming>) -> Result<Response<Bytes>, Refusal> {
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let bytes = match body {
        Ok(body) => {
            *kept = Some(wire);
            body.to_bytes()
        }
        // A status is an answer, whatever its text.
        Err(_) if !head.status.is_success() => Bytes::new(),
        Err(error) => return Err(Refusal::broken(format!("its answer cannot be read: {error}"))),
    };
    Ok(Response::from_parts(head, bytes))
}

/// The OTLP library posts through it as well.
#[async_trait]
impl HttpClient for Poster {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (mut head, body) = request.into_parts();
        // The library names the whole URL.
        if let Some(path) = head.uri.path_and_query() {
            head.uri = path.as_str().parse()?;
        }
        let answer = self.send(Request::from_parts(head, Full::new(body))).await;
        answer.map_err(|refusal| refusal.why().to_owned().into())
    }
}

/// An answer that is a success, or what it means.
pub(super) fn taken(answer: Response<Bytes>, now_unix_secs: u64) -> Result<Bytes, Refusal> {
    let (status, headers): (StatusCode, &HeaderMap) = (answer.status(), answer.headers());
    if status.is_success() { Ok(answer.into_body()) } else { Err(Refusal::of_http(status, headers, now_unix_secs)) }
}
