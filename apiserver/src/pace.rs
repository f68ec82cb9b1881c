//! What the client leaves out between an API server and those who watch it: a pause where a watch ends as soon as it begins, and answers that
//! are no JSON.
//!
//! The watcher of `kube` waits after errors only. A watch that ends at once is none to it, and is asked for again as fast as it is answered, a
//! thousand times a second (`findings/kube-watcher-hurries.sh`); API servers that shut down answer so, and some at a revision that they have
//! forgotten, without saying that. So such calls wait here, longer each time, and now and then whoever watches is told to list anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use kube::Client;
use kube::client::Body;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

/// A watch that is asked for again within this time has ended at once.
const SHORT: Duration = Duration::from_secs(1);
/// Pause after the first of them; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause: below the time that callers allow for the head of an answer.
const PAUSE_MAX: Duration = Duration::from_secs(20);
/// After so many in a row comes a new list: the revision may be one that nobody remembers.
const LIST_AFTER: u32 = 5;
/// Watches whose pace is kept; of more the one that was asked for longest ago is forgotten.
const WATCHES_MAX: usize = 2_048;
/// Of an answer that is no JSON this much is told.
const TEXT_BYTES_MAX: usize = 2 << 10;

/// How one watch fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    /// When it was last asked for.
    asked: Instant,
    /// How many in a row have ended at once.
    short: u32,
    /// The last answer was our own word that a list is due.
    told: bool,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is made, after this.
    Ask(Duration),
    /// It is answered by us after this: the revision is gone.
    Gone(Duration),
}

impl Pace {
    fn next(&mut self, now: Instant) -> Step {
        if !self.told {
            self.short = if now.saturating_duration_since(self.asked) < SHORT { self.short.saturating_add(1) } else { 0 };
        }
        let pause = match self.short {
            0 => Duration::ZERO,
            short => PAUSE_MIN.saturating_mul(1 << (short - 1).min(16)).min(PAUSE_MAX),
        };
        self.told = !self.told && self.short > 0 && self.short.is_multiple_of(LIST_AFTER);
        self.asked = now + pause;
        if self.told { Step::Gone(pause) } else { Step::Ask(pause) }
    }
}

/// The paces of all watches of one client.
#[derive(Debug, Default)]
struct Paces(BTreeMap<String, Pace>);

impl Paces {
    /// What becomes of the watch of that name.
    fn next(&mut self, name: String, now: Instant) -> Step {
        if let Some(pace) = self.0.get_mut(&name) {
            let step = pace.next(now);
            if pace.short == LIST_AFTER {
                tracing::warn!(watch = name, "the API server ends this watch whenever it begins; it is asked for less and less often");
            }
            return step;
        }
        if self.0.len() >= WATCHES_MAX
            && let Some(oldest) = self.0.iter().min_by_key(|(_, pace)| pace.asked).map(|(name, _)| name.clone())
        {
            self.0.remove(&oldest);
        }
        self.0.insert(name, Pace { asked: now, short: 0, told: false });
        Step::Ask(Duration::ZERO)
    }
}

/// What is watched: path and selectors; `None`: the call is no watch.
fn watched(uri: &http::Uri) -> Option<String> {
    let query = uri.query().unwrap_or_default();
    if !query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1")) {
        return None;
    }
    let selectors = query.split('&').filter(|pair| pair.starts_with("fieldSelector=") || pair.starts_with("labelSelector="));
    Some(selectors.fold(uri.path().to_owned(), |name, pair| format!("{name} {pair}")))
}

/// The same client, which keeps the pace of its watches and says every refusal as Kubernetes does.
#[must_use]
pub fn paced(client: Client) -> Client {
    let (namespace, paces) = (client.default_namespace().to_owned(), Arc::new(Mutex::new(Paces::default())));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, paces) = (client.clone(), Arc::clone(&paces));
        async move {
            if let Some(name) = watched(request.uri()) {
                let step = paces.lock().await.next(name, Instant::now());
                let (Step::Ask(pause) | Step::Gone(pause)) = step;
                if !pause.is_zero() {
                    sleep(pause).await;
                }
                if matches!(step, Step::Gone(_)) {
                    return Ok(gone());
                }
            }
            Ok::<_, kube::Error>(told(client.send(request).await?).await)
        }
    });
    Client::new(service, namespace)
}

/// As an API server says that a revision is gone: as an event, after which the watcher lists anew.
fn gone() -> Response<Body> {
    let why = "the API server ends this watch whenever it begins";
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired", "message": why});
    let event = format!("{}\n", json!({"type": "ERROR", "object": status}));
    Response::new(Body::from(event.into_bytes()))
}

/// An API server that is too busy, or what stands before it, refuses in plain text, and says in a header when to come again: the client reads
/// neither.
async fn told(response: Response<Body>) -> Response<Body> {
    let refused = response.status().is_client_error() || response.status().is_server_error();
    if !refused || is_json(response.headers()) {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let text = Limited::new(body, TEXT_BYTES_MAX).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    let status = refusal(head.status, &head.headers, text);
    head.headers = HeaderMap::new();
    Response::from_parts(head, Body::from(status.to_string().into_bytes()))
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).is_some_and(|kind| kind.starts_with("application/json"))
}

fn refusal(code: StatusCode, headers: &HeaderMap, text: String) -> serde_json::Value {
    let reason = code.canonical_reason().unwrap_or_default();
    let message = if text.is_empty() { reason.to_owned() } else { text };
    let after = headers.get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse::<u32>().ok()).unwrap_or_default();
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(), "reason": reason.replace(' ', ""), "message": message,
        "details": {"retryAfterSeconds": after},
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::StreamExt as _;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::{Api, ListParams, WatchParams};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_ends_at_once_slows_down() {
        // Aim: half a second, doubling to twenty; every fifth time a list is due; one watch that lasts ends it; others go on as they were.
        let mut paces = Paces::default();
        let secs = |step| match step {
            Step::Ask(pause) => (pause.as_secs_f32(), "ask"),
            Step::Gone(pause) => (pause.as_secs_f32(), "gone"),
        };
        let mut now = Instant::now();
        let mut next = |lasts_ms: u64| {
            let step = secs(paces.next("pods".to_owned(), now));
            now += Duration::from_secs_f32(step.0) + Duration::from_millis(lasts_ms);
            step
        };
        let seen: Vec<_> = (0..13).map(|_| next(10)).collect();
        let (ask, gone) = ("ask", "gone");
        let begin = [(0.0, ask), (0.5, ask), (1.0, ask), (2.0, ask), (4.0, ask), (8.0, gone), (8.0, ask)];
        assert_eq!(seen, [&begin[..], &[(16.0, ask), (20.0, ask), (20.0, ask), (20.0, ask), (20.0, gone), (20.0, ask)]].concat());
        assert_eq!((next(60_000).1, next(10), next(10)), (ask, (0.0, ask), (0.5, ask)));
        assert_eq!(secs(paces.next("nodes".to_owned(), Instant::now())), (0.0, ask));
    }

    #[test]
    fn a_watch_is_known_by_what_it_selects() {
        // Aim: where it goes on from is not what it is; a list is no watch.
        for (uri, wanted) in [
            ("/api/v1/pods?&watch=true&timeoutSeconds=60&resourceVersion=7", Some("/api/v1/pods")),
            (
                "/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%3Dx&watch=true",
                Some("/api/v1/namespaces/a/secrets fieldSelector=metadata.name%3Dx"),
            ),
            ("/api/v1/pods?limit=500", None),
            ("/api/v1/watch", None),
        ] {
            assert_eq!(watched(&uri.parse().unwrap()).as_deref(), wanted, "{uri}");
        }
        let mut paces = Paces::default();
        for number in 0..WATCHES_MAX + 10 {
            paces.next(number.to_string(), Instant::now());
        }
        assert_eq!(paces.0.len(), WATCHES_MAX);
    }

    /// A client whose every call is answered so.
    fn answered(answer: impl Fn() -> Response<Body> + Send + Sync + 'static) -> Client {
        let service = tower::service_fn(move |_: Request<Body>| {
            let answer = answer();
            async move { Ok::<_, Infallible>(answer) }
        });
        paced(Client::new(service, "mesh"))
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_in_plain_text_are_read() {
        // Aim: code, words and the time to come again, of a list and of a watch; what is JSON stays as it came.
        let busy = || {
            let builder = Response::builder().status(429).header(RETRY_AFTER, "7").header(CONTENT_TYPE, "text/plain; charset=utf-8");
            builder.body(Body::from(b"Too many requests, please try again later.\n".to_vec())).unwrap()
        };
        let client = answered(busy);
        assert_eq!(client.default_namespace(), "mesh");
        let maps: Api<ConfigMap> = Api::all(client);
        let listed = maps.list(&ListParams::default()).await.unwrap_err();
        let stream = maps.watch(&WatchParams::default(), "5").await.unwrap();
        let watched = std::pin::pin!(stream).next().await.unwrap().unwrap_err();
        for error in [listed, watched] {
            let kube::Error::Api(status) = error else { panic!("{error}") };
            let after = status.details.as_ref().map(|details| details.retry_after_seconds);
            assert_eq!((status.code, after, status.message.as_str()), (429, Some(7), "Too many requests, please try again later."));
        }
        let own = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 409, "reason": "AlreadyExists", "message": "it is there"});
        let client = answered(move || {
            let builder = Response::builder().status(409).header(CONTENT_TYPE, "application/json");
            builder.body(Body::from(own.to_string().into_bytes())).unwrap()
        });
        let kube::Error::Api(status) = Api::<ConfigMap>::all(client).get("x").await.unwrap_err() else { panic!("a refusal") };
        assert_eq!((status.reason.as_str(), status.message.as_str()), ("AlreadyExists", "it is there"));
    }
}
