//! The webhook: HTTPS for API servers. `POST /inject` puts sidecars into pods, `POST /validate` judges objects; beside them `GET /metrics`,
//! `/healthz/live` and `/healthz/ready`. Certificate, world and analysis come from the caller. Nobody proves who he is here: an answer says
//! nothing that its question did not, so bounds are what protects it.

#![allow(clippy::disallowed_types, reason = "a door: the port that API servers call")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

use crate::callers::{Caller, Callers};
use crate::counts::Counts;
use crate::decide::Label;
use crate::review::{self, Analysis, Answer, Asked};
use crate::settings::SidecarSettings;

/// Longest question; etcd takes objects of 1.5 MiB, and an update comes with what was there before.
pub const BODY_BYTES_MAX: usize = 3 << 20;
/// Questions that are in memory at once; further ones wait within [`ANSWER_WAIT`].
pub const REVIEWS_MAX: usize = 128;
/// Questions that are read, or answered about pods, at once: there are few processors, and each takes milliseconds.
const WORKED_ON_MAX: usize = 4;
/// Objects that are judged or wait for it; further ones pass with a warning at once, because an API server does not wait long.
pub const ANALYSES_MAX: usize = 16;
/// Longest time for an answer, waiting included; an API server waits ten seconds.
pub const ANSWER_WAIT: Duration = Duration::from_secs(8);
/// Longest wait for a question, from its head on.
const BODY_WAIT: Duration = Duration::from_secs(3);
/// Most connections; further ones wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 512;
/// Streams of one connection.
const STREAMS_MAX: u32 = 100;
/// A handshake that takes longer is cut.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(5);
/// A connection that has asked nothing by then is cut: an API server connects because it asks.
const FIRST_WAIT: Duration = Duration::from_secs(5);
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
    settings: Arc<SidecarSettings>,
    labels: Option<Labels>,
    analyzer: Option<Analyzer>,
    unready: Option<Unready>,
    counts: Counts,
    callers: Callers,
    reviews: Semaphore,
    worked_on: Arc<Semaphore>,
    analyses: Semaphore,
}

impl Webhook {
    /// Injects by these settings into whatever pod it is asked about, and judges nothing.
    pub fn new(settings: SidecarSettings) -> Self {
        Self {
            settings: Arc::new(settings),
            labels: None,
            analyzer: None,
            unready: None,
            counts: Counts::default(),
            callers: Callers::default(),
            reviews: Semaphore::new(REVIEWS_MAX),
            worked_on: Arc::new(Semaphore::new(WORKED_ON_MAX)),
            analyses: Semaphore::new(ANALYSES_MAX),
        }
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
    pub async fn respond<B>(&self, request: Request<B>, caller: &Caller) -> Page
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
                self.reviewed(&path, body, caller).await
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

    async fn reviewed<B>(&self, path: &str, body: B, caller: &Caller) -> Page
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let begun = Instant::now();
        let (page, verdict) = match timeout(ANSWER_WAIT, self.review(path, body, caller)).await {
            Ok(answered) => answered,
            Err(_) => (page(StatusCode::SERVICE_UNAVAILABLE, format!("no answer within {ANSWER_WAIT:?}; try again\n")), "timeout"),
        };
        self.counts.reviewed(path.trim_start_matches('/'), verdict, begun.elapsed());
        page
    }

    async fn review<B>(&self, path: &str, body: B, caller: &Caller) -> (Page, &'static str)
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let own = if path == "/inject" { &caller.injections } else { &caller.validations };
        // Neither is ever closed. Its origin's queue comes first: there one who does not send what he promised keeps nobody else waiting.
        let _places = (own.acquire().await, self.reviews.acquire().await);
        let body = match timeout(BODY_WAIT, Limited::new(body, BODY_BYTES_MAX).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return (page(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {BODY_BYTES_MAX} bytes\n")), "too_large");
            }
            Ok(Err(error)) => return (page(StatusCode::BAD_REQUEST, format!("the body did not arrive: {error}\n")), "malformed"),
            Err(_) => return (page(StatusCode::REQUEST_TIMEOUT, format!("the body did not arrive within {BODY_WAIT:?}\n")), "too_slow"),
        };
        let asked = match self.apart(move || review::read(&body)).await {
            Ok(asked) => asked,
            Err(why) => return (page(StatusCode::BAD_REQUEST, format!("{why}\n")), "malformed"),
        };
        let uid = asked.uid.clone();
        let answer = if path == "/inject" { Ok(self.inject(asked).await) } else { self.validate(asked, caller).await };
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => return (page(StatusCode::NOT_FOUND, why.to_owned()), "unserved"),
        };
        let verdict = answer.verdict;
        let text = self.apart(move || answer.review(&uid).to_string()).await;
        (of_kind(page(StatusCode::OK, text), JSON), verdict)
    }

    /// Does what takes its time with a long question, and not on the threads that serve the mesh. Work that has begun is done to its end.
    async fn apart<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        // Never closed.
        let place = Arc::clone(&self.worked_on).acquire_owned().await;
        let working = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(place);
            done
        });
        match working.await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is ending, and this with it.
                Err(_) => std::future::pending().await,
            },
        }
    }

    async fn inject(&self, asked: Asked) -> Answer {
        let label = match &self.labels {
            Some(labels) => labels(asked.namespace.clone()).await,
            None => None,
        };
        let settings = Arc::clone(&self.settings);
        self.apart(move || {
            let label = label.as_ref().map_or(Label::Unknown, |label| Label::from(label.as_deref()));
            let answer = review::inject(&asked, label, &settings);
            let (namespace, name) = (&asked.namespace, name(&asked));
            match &answer.denial {
                Some(denial) => tracing::warn!(%namespace, name, why = denial.message, "a pod is refused"),
                None => tracing::info!(%namespace, name, verdict = answer.verdict, "a pod is reviewed"),
            }
            answer
        })
        .await
    }

    async fn validate(&self, asked: Asked, caller: &Caller) -> Result<Answer, &'static str> {
        let Some(analyzer) = &self.analyzer else {
            return Err("this webhook has no world to judge in: let the ValidatingWebhookConfiguration ask the control plane\n");
        };
        let (judged, asked) = self.apart(move || (review::is_for_analysis(&asked), asked)).await;
        if !judged {
            return Ok(review::validate(None));
        }
        let (Ok(_own), Ok(_place)) = (caller.analyses.try_acquire(), self.analyses.try_acquire()) else {
            let warning = "meshwright: not analyzed: too many objects are; `meshwright analyze` tells what is wrong with it".to_owned();
            return Ok(Answer { warnings: vec![warning], ..review::validate(None) });
        };
        Ok(review::validate(Some(analyzer(asked).await)))
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
    while let Some((socket, address, place)) = accept(&listener, &places, &stop).await {
        let (tls, webhook, stop) = (tls.clone(), Arc::clone(&webhook), stop.clone());
        let caller = webhook.callers.of(address.ip());
        connections.spawn(async move {
            match caller.connections.try_acquire() {
                Ok(_share) => converse(socket, Arc::clone(&caller), tls, webhook, stop).await,
                Err(_) => tracing::debug!(%address, "webhook: closed, there are enough connections from there"),
            }
            drop(place);
        });
    }
    connections.close();
    // Who does not end is cut with the runtime.
    let _ = timeout(END_WAIT, connections.wait()).await;
    Ok(())
}

/// The next connection with its place; `None` when it is time to stop.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    loop {
        let accepted = async {
            let place = Arc::clone(places).acquire_owned().await.ok()?;
            Some(listener.accept().await.map(|(socket, address)| (socket, address, place)))
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

async fn converse(socket: TcpStream, caller: Arc<Caller>, tls: TlsAcceptor, webhook: Arc<Webhook>, stop: CancellationToken) {
    let stream = match timeout(HANDSHAKE_WAIT, tls.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            webhook.counts.handshake_failed();
            tracing::debug!(%error, "webhook: a handshake failed");
            return;
        }
        Err(_) => return webhook.counts.handshake_failed(),
    };
    let asks = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&asks);
    let service = hyper::service::service_fn(move |request| {
        asks.store(true, Ordering::Relaxed);
        let (webhook, caller) = (Arc::clone(&webhook), Arc::clone(&caller));
        async move { Ok::<_, Infallible>(webhook.respond::<hyper::body::Incoming>(request, &caller).await) }
    });
    let silent = async {
        tokio::time::sleep(FIRST_WAIT).await;
        if asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
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
        () = silent => return,
        () = stop.cancelled() => {}
        () = tokio::time::sleep(CONNECTION_LIFE) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(END_WAIT, connection).await;
}

#[cfg(test)]
#[path = "webhook_tests.rs"]
mod tests;
