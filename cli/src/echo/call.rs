//! Calling on: the trace headers go along, the answers come back as JSON.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http::header::{CONTENT_TYPE, TE};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::grpc::{self, EchoRequest};

/// Time for one call, its answer included.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a TCP peer may keep silent before we speak first.
const SILENCE: Duration = Duration::from_millis(300);
/// Largest answer taken.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Bytes shown of an answer that is no JSON, and of what a TCP peer says.
const SHOWN_BYTES_MAX: usize = 1024;
/// What ties the spans of one request together, and travels with it.
const TRACE_HEADERS: [&str; 10] = [
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-request-id",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Http1,
    Http2,
    Grpc,
    Tcp,
}

/// Whom to call, and for which paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CallRule {
    /// Only for requests to this path or below it; empty for all.
    path: String,
    scheme: Scheme,
    authority: Authority,
    target: String,
    /// As it was written.
    url: String,
}

/// Reads `[PATH=]URL`.
///
/// # Errors
/// A sentence for clap that shows the right form.
pub(crate) fn rule(text: &str) -> Result<CallRule, String> {
    let wrong = |why: &str| format!("`{text}` {why}; write for example http://catalog.shop/items or /buy=grpc://checkout.shop:9090");
    let (path, url) = match text.split_once('=') {
        Some((path, url)) if path.starts_with('/') => (path, url),
        _ => ("", text),
    };
    let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("has no scheme"))?;
    let scheme = match scheme {
        "http" => Scheme::Http1,
        "http2" => Scheme::Http2,
        "grpc" => Scheme::Grpc,
        "tcp" => Scheme::Tcp,
        _ => return Err(wrong("has a scheme other than http, http2, grpc and tcp")),
    };
    let (authority, target) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
    let authority: Authority = authority.parse().map_err(|_| wrong("has no host"))?;
    if scheme == Scheme::Tcp && authority.port().is_none() {
        return Err(wrong("names no port, which tcp:// needs"));
    }
    Ok(CallRule { path: path.trim_end_matches('/').to_owned(), scheme, authority, target: target.to_owned(), url: url.to_owned() })
}

impl CallRule {
    fn applies(&self, path: &str) -> bool {
        path.strip_prefix(self.path.as_str()).is_some_and(|rest| self.path.is_empty() || rest.is_empty() || rest.starts_with('/'))
    }
}

/// Whom a request to this path calls: the rules of the longest path that fits; rules without a path apply where no other does.
fn applicable<'a>(rules: &'a [CallRule], path: &str) -> Vec<&'a CallRule> {
    let fitting: Vec<&CallRule> = rules.iter().filter(|rule| rule.applies(path)).collect();
    let longest = fitting.iter().map(|rule| rule.path.len()).max().unwrap_or(0);
    fitting.into_iter().filter(|rule| rule.path.len() == longest).collect()
}

type HttpPool = Client<HttpConnector, Full<Bytes>>;

/// Pooled connections to those whom we call.
#[derive(Debug)]
pub(super) struct Callees {
    http1: HttpPool,
    http2: HttpPool,
    name: String,
}

impl Callees {
    /// `name` is how TCP peers are greeted.
    pub(super) fn new(name: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CALL_TIMEOUT));
        let builder = Client::builder(TokioExecutor::new());
        Self {
            http1: builder.clone().build(connector.clone()),
            http2: builder.clone().http2_only(true).build(connector),
            name: name.to_owned(),
        }
    }

    /// Calls all that the path's rules name, at once; the answers in the rules' order, and whether all went well.
    pub(super) async fn call_all(&self, rules: &[CallRule], path: &str, headers: &HeaderMap) -> (Vec<Value>, bool) {
        if rules.is_empty() {
            return (Vec::new(), true);
        }
        let answers = join_all(applicable(rules, path).into_iter().map(|rule| self.call(rule, headers))).await;
        let all_well = answers.iter().all(|(_, well)| *well);
        (answers.into_iter().map(|(answer, _)| answer).collect(), all_well)
    }

    async fn call(&self, rule: &CallRule, headers: &HeaderMap) -> (Value, bool) {
        let call = async {
            match rule.scheme {
                Scheme::Http1 => http(&self.http1, rule, headers).await,
                Scheme::Http2 => http(&self.http2, rule, headers).await,
                Scheme::Grpc => grpc(&self.http2, rule, headers).await,
                Scheme::Tcp => tcp(rule, &self.name).await,
            }
        };
        let outcome = timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|_| Err(format!("no answer within {} s", CALL_TIMEOUT.as_secs())));
        match outcome {
            Ok((mut answer, well)) => {
                if let Some(fields) = answer.as_object_mut() {
                    fields.insert("url".into(), rule.url.clone().into());
                }
                (answer, well)
            }
            Err(why) => (json!({"url": rule.url, "error": why}), false),
        }
    }
}

fn request(rule: &CallRule, method: Method, target: &str, headers: &HeaderMap, body: Bytes) -> Result<Request<Full<Bytes>>, String> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://{}{target}", rule.authority))
        .body(Full::new(body))
        .map_err(|error| format!("cannot be asked for: {error}"))?;
    for name in TRACE_HEADERS {
        for value in headers.get_all(name) {
            request.headers_mut().append(HeaderName::from_static(name), value.clone());
        }
    }
    Ok(request)
}

async fn http(pool: &HttpPool, rule: &CallRule, headers: &HeaderMap) -> Result<(Value, bool), String> {
    let request = request(rule, Method::GET, &rule.target, headers, Bytes::new())?;
    let response = pool.request(request).await.map_err(|error| chain(&error))?;
    let status = response.status();
    let reason = response.headers().get("x-meshwright-reason").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| chain(&*error))?.to_bytes();
    let mut answer: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    if !answer.is_object() {
        answer = json!({"body": shown(&body)});
    }
    if let Some(fields) = answer.as_object_mut() {
        fields.insert("status".into(), status.as_u16().into());
        fields.extend(reason.map(|reason| ("reason".to_owned(), Value::from(reason))));
    }
    Ok((answer, !status.is_server_error() && !status.is_client_error()))
}

async fn grpc(pool: &HttpPool, rule: &CallRule, headers: &HeaderMap) -> Result<(Value, bool), String> {
    let message = grpc::frame(&EchoRequest { message: "called on".into(), status: 0, delay_ms: 0 });
    let mut request = request(rule, Method::POST, grpc::CALL_PATH, headers, message)?;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    let response = pool.request(request).await.map_err(|error| chain(&error))?;
    let head = response.headers().clone();
    let collected = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| chain(&*error))?;
    // A call that fails at once has its status in the headers ("trailers only").
    let trailers = collected.trailers().cloned().unwrap_or(head);
    let field = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let status = field("grpc-status");
    if status != "0" {
        return Ok((json!({"grpc_status": status, "error": field("grpc-message")}), false));
    }
    let reply = grpc::only_message(&collected.to_bytes())?;
    let mut answer: Value = serde_json::from_str(&reply.json).map_err(|error| format!("the answer is no JSON: {error}"))?;
    if let Some(fields) = answer.as_object_mut() {
        fields.insert("grpc_status".into(), status.into());
    }
    Ok((answer, true))
}

/// Listens first, for protocols in which the server speaks first; then says one line and takes what comes back.
async fn tcp(rule: &CallRule, name: &str) -> Result<(Value, bool), String> {
    let started = Instant::now();
    let mut stream = TcpStream::connect(rule.authority.as_str()).await.map_err(|error| format!("cannot connect: {error}"))?;
    let mut heard = [0; SHOWN_BYTES_MAX];
    let mut greeting = String::new();
    let mut first_byte = None;
    if let Ok(count) = timeout(SILENCE, stream.read(&mut heard)).await {
        let count = count.map_err(|error| format!("cannot read: {error}"))?;
        if count == 0 {
            return Err("the peer closed the connection without a word".into());
        }
        first_byte = Some(started.elapsed());
        greeting = shown(&heard[..count]);
    }
    stream.write_all(format!("hello from {name}\n").as_bytes()).await.map_err(|error| format!("cannot write: {error}"))?;
    let count = stream.read(&mut heard).await.map_err(|error| format!("cannot read: {error}"))?;
    if count == 0 {
        return Err("the peer closed the connection without an answer".into());
    }
    let ms = first_byte.unwrap_or_else(|| started.elapsed()).as_secs_f64() * 1000.0;
    Ok((
        json!({"protocol": "TCP", "greeting": greeting, "echo": shown(&heard[..count]), "first_byte_ms": (ms * 10.0).round() / 10.0}),
        true,
    ))
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_BYTES_MAX)]).into_owned()
}

/// An error and its causes in one line: hyper keeps the interesting part at the bottom.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: the longest path that fits decides, on whole segments; rules without a path are for all the rest.
    #[test]
    fn the_longest_path_decides() {
        let rules = ["http://catalog", "/buy=grpc://checkout:9090", "/buy=http://catalog/items", "/buy/now=tcp://store:7000"];
        let rules: Vec<CallRule> = rules.iter().map(|text| rule(text).unwrap()).collect();
        let urls = |path: &str| applicable(&rules, path).iter().map(|rule| rule.url.clone()).collect::<Vec<_>>();
        assert_eq!(urls("/"), ["http://catalog"]);
        assert_eq!(urls("/buyer"), ["http://catalog"]);
        assert_eq!(urls("/buy"), ["grpc://checkout:9090", "http://catalog/items"]);
        assert_eq!(urls("/buy/now"), ["tcp://store:7000"]);
    }

    /// Aim: what cannot be called is a usage error with an example.
    #[test]
    fn impossible_targets_are_refused() {
        for text in ["catalog", "ftp://x", "tcp://store", "http://", "/buy=nothing"] {
            assert!(rule(text).unwrap_err().contains("for example"), "{text}");
        }
        assert_eq!(rule("http://[fd00::1]:80/a?b=c").unwrap().target, "/a?b=c");
    }
}
