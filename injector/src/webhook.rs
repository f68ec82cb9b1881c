//! The webhook: HTTPS for API servers. `POST /inject` puts sidecars into pods, `POST /validate` judges objects; beside them `GET /metrics`,
//! `/healthz/live` and `/healthz/ready`. Certificate, world and analysis come from the caller. Nobody proves who he is here: an answer says
//! nothing that its question did not, so bounds are what protects it.

#![allow(clippy::disallowed_types, reason = "a door: the port that API servers call")]

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::counts::Counts;
use crate::decide::Label;
use crate::review::{self, Analysis, Answer, Asked};
use crate::settings::SidecarSettings;

/// Longest question; etcd takes objects of 1.5 MiB, and an update comes with what was there before.
pub const BODY_BYTES_MAX: usize = 3 << 20;
/// Questions that are worked on at once; further ones wait within [`ANSWER_WAIT`].
pub const REVIEWS_MAX: usize = 64;
/// Longest time for an answer, waiting included; an API server waits ten seconds.
pub const ANSWER_WAIT: Duration = Duration::from_secs(8);
/// Most connections; further ones wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 512;
/// Streams of one connection.
const STREAMS_MAX: u32 = 100;
/// A handshake that takes longer is cut.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for a head.
const HEAD_WAIT: Duration = Duration::from_secs(10);
/// After this a connection is ended in good order, so that nobody holds a place for ever and a rotated certificate is seen.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
/// How long connections may take to end in good order.
const END_WAIT: Duration = Duration::from_secs(10);
/// Pause after the kernel refused to give the next connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const JSON: &str = "application/json";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// The `meshwright.dev/inject` label of a namespace: `None` where it is not known, `Some(None)` where there is none.
pub type Labels = Arc<dyn Fn(String) -> BoxFuture<'static, Option<Option<String>>> + Send + Sync>;
/// What the control plane's translator says of an object in its world.
pub type Analyzer = Arc<dyn Fn(Asked) -> BoxFuture<'static, Analysis> + Send + Sync>;
/// Why the webhook is not ready; `None`: it is.
pub type Unready = Arc<dyn Fn() -> Option<String> + Send + Sync>;

type Page = Response<Full<Bytes>>;

/// What the webhook answers with.
pub struct Webhook {
    settings: SidecarSettings,
    labels: Option<Labels>,
    analyzer: Option<Analyzer>,
    unready: Option<Unready>,
    counts: Counts,
    places: Semaphore,
}

impl Webhook {
    /// Injects by these settings into whatever pod it is asked about, and judges nothing.
    pub fn new(settings: SidecarSettings) -> Self {
        Self { settings, labels: None, analyzer: None, unready: None, counts: Counts::default(), places: Semaphore::new(REVIEWS_MAX) }
    }

    /// Looks at namespaces' labels, too: needed where the MutatingWebhookConfiguration does not select by them.
    #[must_use]
    pub fn with_labels(self, labels: Labels) -> Self {
        Self { labels: Some(labels), ..self }
    }

    /// Judges objects.
    #[must_use]
    pub fn with_analyzer(self, analyzer: Analyzer) -> Self {
        Self { analyzer: Some(analyzer), ..self }
    }

    /// Is ready only while this has nothing against it.
    #[must_use]
    pub fn with_readiness(self, unready: Unready) -> Self {
        Self { unready: Some(unready), ..self }
    }

    /// What has been counted.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Answers one request. Dropping the future gives up.
    pub async fn respond<B>(&self, request: Request<B>) -> Page
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        match (head.method.clone(), path.as_str()) {
            (Method::POST, "/inject" | "/validate") => {
                let json = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).is_some_and(|kind| kind.starts_with(JSON));
                if !json {
                    return page(StatusCode::UNSUPPORTED_MEDIA_TYPE, "an AdmissionReview is application/json\n".to_owned());
                }
                self.reviewed(&path, body).await
            }
            (Method::GET, "/metrics") => of_kind(page(StatusCode::OK, self.counts.text()), OPEN_METRICS),
            (Method::GET, "/healthz/live") => page(StatusCode::OK, "ok\n".to_owned()),
            (Method::GET, "/healthz/ready") => match self.unready.as_ref().and_then(|unready| unready()) {
                None => page(StatusCode::OK, "ok\n".to_owned()),
                Some(why) => page(StatusCode::SERVICE_UNAVAILABLE, why + "\n"),
            },
            (_, "/inject" | "/validate") => only("POST"),
            (_, "/metrics" | "/healthz/live" | "/healthz/ready") => only("GET"),
            _ => page(StatusCode::NOT_FOUND, "no such page: POST /inject, POST /validate\n".to_owned()),
        }
    }

    async fn reviewed<B>(&self, path: &str, body: B) -> Page
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let begun = Instant::now();
        let (page, verdict) = match timeout(ANSWER_WAIT, self.review(path, body)).await {
            Ok(answered) => answered,
            Err(_) => (page(StatusCode::SERVICE_UNAVAILABLE, format!("no answer within {ANSWER_WAIT:?}; try again\n")), "timeout"),
        };
        self.counts.reviewed(path.trim_start_matches('/'), verdict, begun.elapsed());
        page
    }

    async fn review<B>(&self, path: &str, body: B) -> (Page, &'static str)
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        // Never closed.
        let _place = self.places.acquire().await;
        let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return (page(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {BODY_BYTES_MAX} bytes\n")), "too_large");
            }
            Err(error) => return (page(StatusCode::BAD_REQUEST, format!("the body did not arrive: {error}\n")), "malformed"),
        };
        let asked = match review::read(&body) {
            Ok(asked) => asked,
            Err(why) => return (page(StatusCode::BAD_REQUEST, format!("{why}\n")), "malformed"),
        };
        let uid = asked.uid.clone();
        let answer = if path == "/inject" { self.inject(&asked).await } else { self.validate(asked).await };
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => return (page(StatusCode::NOT_FOUND, why.to_owned()), "unserved"),
        };
        (of_kind(page(StatusCode::OK, answer.review(&uid).to_string()), JSON), answer.verdict)
    }

    async fn inject(&self, asked: &Asked) -> Result<Answer, &'static str> {
        let label = match &self.labels {
            Some(labels) => labels(asked.namespace.clone()).await,
            None => None,
        };
        let label = label.as_ref().map_or(Label::Unknown, |label| Label::from(label.as_deref()));
        let answer = review::inject(asked, label, &self.settings);
        let (namespace, name) = (&asked.namespace, name(asked));
        match &answer.denial {
            Some(denial) => tracing::warn!(%namespace, name, why = denial.message, "a pod is refused"),
            None => tracing::info!(%namespace, name, verdict = answer.verdict, "a pod is reviewed"),
        }
        Ok(answer)
    }

    async fn validate(&self, asked: Asked) -> Result<Answer, &'static str> {
        let Some(analyzer) = &self.analyzer else {
            return Err("this webhook has no world to judge in: let the ValidatingWebhookConfiguration ask the control plane\n");
        };
        let analysis = if review::is_for_analysis(&asked) { Some(analyzer(asked).await) } else { None };
        Ok(review::validate(analysis))
    }
}

/// The pod's name, or what the API server will make one of.
fn name(asked: &Asked) -> &str {
    let metadata = &asked.object["metadata"];
    metadata["name"].as_str().or_else(|| metadata["generateName"].as_str()).unwrap_or(&asked.name)
}

fn page(status: StatusCode, body: String) -> Page {
    let mut page = Response::new(Full::new(Bytes::from(body)));
    *page.status_mut() = status;
    of_kind(page, TEXT)
}

fn of_kind(mut page: Page, kind: &'static str) -> Page {
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    page
}

fn only(method: &'static str) -> Page {
    let mut page = page(StatusCode::METHOD_NOT_ALLOWED, format!("use {method}\n"));
    page.headers_mut().insert(ALLOW, HeaderValue::from_static(method));
    page
}

/// Serves until `stop`, and then until open connections have ended in good order, ten seconds at most. `certificate` may give another one
/// at each handshake.
///
/// # Errors
/// The crypto library is unusable.
pub async fn serve(
    listener: TcpListener,
    certificate: Arc<dyn ResolvesServerCert>,
    webhook: Arc<Webhook>,
    stop: CancellationToken,
) -> Result<(), rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tls = TlsAcceptor::from(Arc::new(config));
    let (connections, places) = (TaskTracker::new(), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    while let Some((socket, place)) = accept(&listener, &places, &stop).await {
        let (tls, webhook, stop) = (tls.clone(), Arc::clone(&webhook), stop.clone());
        connections.spawn(async move {
            converse(socket, tls, webhook, stop).await;
            drop(place);
        });
    }
    connections.close();
    // Who does not end is cut with the runtime.
    let _ = timeout(END_WAIT, connections.wait()).await;
    Ok(())
}

/// The next connection with its place; `None` when it is time to stop.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>, stop: &CancellationToken) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    loop {
        let accepted = async {
            let place = Arc::clone(places).acquire_owned().await.ok()?;
            Some(listener.accept().await.map(|(socket, _)| (socket, place)))
        };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            accepted = accepted => accepted?,
        };
        match accepted {
            Ok(accepted) => return Some(accepted),
            Err(error) => {
                tracing::warn!(%error, "webhook: no connection can be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(socket: TcpStream, tls: TlsAcceptor, webhook: Arc<Webhook>, stop: CancellationToken) {
    let stream = match timeout(HANDSHAKE_WAIT, tls.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            webhook.counts.handshake_failed();
            tracing::debug!(%error, "webhook: a handshake failed");
            return;
        }
        Err(_) => return webhook.counts.handshake_failed(),
    };
    let service = hyper::service::service_fn(move |request| {
        let webhook = Arc::clone(&webhook);
        async move { Ok::<_, Infallible>(webhook.respond::<hyper::body::Incoming>(request).await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_WAIT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(HEAD_WAIT)
        .keep_alive_timeout(HEAD_WAIT);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // A client that goes away is no news.
        _ = connection.as_mut() => return,
        () = stop.cancelled() => {}
        () = tokio::time::sleep(CONNECTION_LIFE) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(END_WAIT, connection).await;
}

#[cfg(test)]
#[path = "webhook_tests.rs"]
mod tests;
