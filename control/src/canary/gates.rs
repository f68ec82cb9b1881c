//! Who else is asked before a canary goes on: a webhook says yes by 2xx, a Prometheus by a number within bounds.
//!
//! A name of the mesh leads to the ready endpoints of its Service, as the control plane knows them; any other is the resolver's. The control
//! plane has no identity of the mesh, so a pod that takes mesh TLS alone cannot be asked. One call per question, bounded in time and in what is read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Full;
use parking_lot::Mutex;
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::tally::Tally;
use crate::acme::calls::{believing, call};
use crate::translate::called_endpoints;
use crate::world::canary::CanaryGate;
use crate::world::{Index, ObjectKey};

/// How long Prometheus may take.
const QUERY_MAX: Duration = Duration::from_secs(10);
/// Of what a webhook says no with, what is told.
const ANSWER_CHARS_TOLD: usize = 200;

/// What a gate is asked about.
#[derive(Clone, Debug)]
pub struct GateQuestion {
    /// The Canary.
    pub canary: ObjectKey,
    /// Which of its steps is to be over, from 1.
    pub step: usize,
    /// Of how many.
    pub steps: usize,
    /// The candidate's share of requests now, per cent.
    pub weight: u8,
    /// What was counted of the stable version.
    pub stable: Tally,
    /// What was counted of the candidate.
    pub candidate: Tally,
}

/// What a gate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateAnswer {
    /// It says yes.
    pub passed: bool,
    /// It says nothing: it cannot be reached, or has no number yet. Neither a yes nor a no.
    pub away: bool,
    /// Who says what, with the number or the reason.
    pub words: String,
}

/// Who is believed by TLS: the machine's roots, read once.
#[derive(Clone, Default)]
pub struct GateRoots(Arc<Mutex<Option<Arc<ClientConfig>>>>);

impl GateRoots {
    /// Reads files the first time.
    fn get(&self) -> Result<Arc<ClientConfig>, String> {
        let mut kept = self.0.lock();
        if let Some(tls) = &*kept {
            return Ok(tls.clone());
        }
        let tls = believing(None, "the machine's store")?;
        *kept = Some(tls.clone());
        Ok(tls)
    }
}

/// Asks one gate; where it is, is looked up at once, the future is the call. Dropping it gives up.
pub fn ask(
    index: &Index,
    gate: &CanaryGate,
    question: &GateQuestion,
    roots: &GateRoots,
) -> impl Future<Output = GateAnswer> + Send + 'static + use<> {
    let (gate, question, roots) = (gate.clone(), question.clone(), roots.clone());
    let found = uri(&gate).and_then(|uri| Ok((known(index, &question.canary.namespace, &uri)?, uri)));
    async move {
        let (known, uri) = match found {
            Ok(found) => found,
            Err(why) => return said(&gate, false, true, &why),
        };
        let (patience, request) = match &gate {
            CanaryGate::Webhook { timeout, .. } => {
                (*timeout, Request::post(uri).header(CONTENT_TYPE, "application/json").body(body(&question)))
            }
            CanaryGate::Prometheus { .. } => (QUERY_MAX, Request::get(uri).body(Full::default())),
        };
        let Ok(request) = request else { return said(&gate, false, true, "its address cannot be asked") };
        let tls = match request.uri().scheme_str() {
            Some("https") => match roots.get() {
                Ok(tls) => Some(tls),
                Err(why) => return said(&gate, false, true, &why),
            },
            _ => None,
        };
        match timeout(patience, call(tls.as_ref(), known.as_deref(), request)).await {
            Ok(Ok(answer)) => judged(&gate, &answer),
            Ok(Err(why)) => said(&gate, false, true, &why),
            Err(_) => said(&gate, false, true, &format!("no answer within {} ms", patience.as_millis())),
        }
    }
}

/// What is asked, as JSON.
fn body(question: &GateQuestion) -> Full<Bytes> {
    let version = |tally: &Tally| json!({"requests": tally.requests, "errors": tally.failures, "p50_ms": tally.quantile_ms(0.5), "p99_ms": tally.quantile_ms(0.99)});
    let GateQuestion { canary, step, steps, weight, stable, candidate } = question;
    let value = json!({
        "canary": {"namespace": canary.namespace, "name": canary.name},
        "step": step, "steps": steps, "weight": weight,
        "stable": version(stable), "candidate": version(candidate),
    });
    Full::from(value.to_string())
}

/// What is called. A query goes into the address, with all that means something there written as `%xx`.
fn uri(gate: &CanaryGate) -> Result<Uri, String> {
    let text = match gate {
        CanaryGate::Webhook { url, .. } => url.clone(),
        CanaryGate::Prometheus { url, query, .. } => {
            let written: String = query
                .bytes()
                .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
                .collect();
            format!("{}/api/v1/query?query={written}", url.trim_end_matches('/'))
        }
    };
    let uri: Uri = text.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("its address holds a password, and is not asked".to_owned());
    }
    Ok(uri)
}

/// Endpoints of a name of the mesh; `None` where it is none.
fn known(index: &Index, namespace: &str, uri: &Uri) -> Result<Option<Vec<SocketAddr>>, String> {
    let host = uri.host().unwrap_or_default();
    let short = host.trim_end_matches(".cluster.local").trim_end_matches(".svc");
    let name = match short.split_once('.') {
        None => (namespace.to_owned(), short.to_owned()),
        Some((name, namespace)) => (namespace.to_owned(), name.to_owned()),
    };
    if !index.services.contains_key(&name) {
        return Ok(None);
    }
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    called_endpoints(index, &name, port).map(Some)
}

fn judged(gate: &CanaryGate, answer: &Response<Bytes>) -> GateAnswer {
    let status = answer.status();
    let passing = matches!(
        status,
        StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    );
    if passing {
        return said(gate, false, true, &format!("it answers {status}"));
    }
    match gate {
        CanaryGate::Webhook { .. } if status.is_success() => said(gate, true, false, &format!("yes ({})", status.as_u16())),
        CanaryGate::Webhook { .. } => {
            let told: String = String::from_utf8_lossy(answer.body()).chars().take(ANSWER_CHARS_TOLD).collect();
            said(gate, false, false, format!("no: {status} {}", told.trim().escape_debug()).trim_end())
        }
        CanaryGate::Prometheus { min, max, .. } => match number(status, answer.body()) {
            Ok(Some(number)) => {
                let (low, high) = (min.is_some_and(|min| number < min), max.is_some_and(|max| number > max));
                let bound = match (low, high) {
                    (true, _) => format!(", less than {}", min.unwrap_or_default()),
                    (_, true) => format!(", more than {}", max.unwrap_or_default()),
                    _ => String::new(),
                };
                said(gate, bound.is_empty(), false, &format!("{number}{bound}"))
            }
            Ok(None) => said(gate, false, true, "the query has no number now"),
            Err(why) => said(gate, false, false, &why),
        },
    }
}

/// The number of an instant query's answer (Prometheus' HTTP API): a scalar, or a vector of one; `None` where there is none yet.
fn number(status: StatusCode, body: &[u8]) -> Result<Option<f64>, String> {
    let value: Value = serde_json::from_slice(body).map_err(|_| format!("it answers {status} and no JSON; is it a Prometheus?"))?;
    if value["status"] != "success" {
        let why = value["error"].as_str().unwrap_or("it says not why");
        return Err(format!("it refuses the query: {}", why.chars().take(ANSWER_CHARS_TOLD).collect::<String>().escape_debug()));
    }
    let result = &value["data"]["result"];
    let sample = match value["data"]["resultType"].as_str() {
        Some("scalar") => result,
        Some("vector") => match result.as_array().map(Vec::as_slice) {
            Some([]) => return Ok(None),
            Some([one]) => &one["value"],
            Some(many) => return Err(format!("the query has {} numbers, and one is needed; write for example sum(…)", many.len())),
            None => return Err("its answer has no result".to_owned()),
        },
        other => return Err(format!("the query is a {}, and one number is needed", other.unwrap_or("riddle"))),
    };
    let text = sample[1].as_str().ok_or("its answer has no number")?;
    // `0/0` and the like: nothing was counted.
    Ok(text.parse().ok().filter(|number: &f64| !number.is_nan()))
}

fn said(gate: &CanaryGate, passed: bool, away: bool, what: &str) -> GateAnswer {
    let who = match gate {
        CanaryGate::Webhook { url, .. } => format!("webhook {url}"),
        CanaryGate::Prometheus { url, .. } => format!("prometheus {url}"),
    };
    GateAnswer { passed, away, words: format!("{who}: {what}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook() -> CanaryGate {
        CanaryGate::Webhook { url: "http://tests.shop/verify".to_owned(), timeout: Duration::from_secs(1) }
    }

    fn prometheus(min: Option<f64>, max: Option<f64>) -> CanaryGate {
        CanaryGate::Prometheus { url: "http://prometheus:9090/".to_owned(), query: "sum(rate(a{b=\"c d\"}[1m])) or 0".to_owned(), min, max }
    }

    fn answer(status: u16, body: &str) -> Response<Bytes> {
        Response::builder().status(status).body(Bytes::copy_from_slice(body.as_bytes())).unwrap()
    }

    /// Aim: 2xx is a yes, what says that nobody is there is neither, anything else a no with its reason.
    #[test]
    fn webhooks_are_judged_by_their_status() {
        for (status, body, passed, away, words) in [
            (200, "", true, false, "webhook http://tests.shop/verify: yes (200)"),
            (204, "", true, false, "webhook http://tests.shop/verify: yes (204)"),
            (302, "", false, false, "webhook http://tests.shop/verify: no: 302 Found"),
            (409, "cart broken\n", false, false, "webhook http://tests.shop/verify: no: 409 Conflict cart broken"),
            (500, "", false, false, "webhook http://tests.shop/verify: no: 500 Internal Server Error"),
            (503, "", false, true, "webhook http://tests.shop/verify: it answers 503 Service Unavailable"),
        ] {
            assert_eq!(judged(&webhook(), &answer(status, body)), GateAnswer { passed, away, words: words.to_owned() }, "{status}");
        }
    }

    /// Aim: one number is held against the bounds; none yet is no answer; what is not one number is a no that says what to write.
    #[test]
    fn numbers_are_held_against_their_bounds() {
        let vector = |samples: &str| format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{samples}]}}}}"#);
        let one = |number: &str| vector(&format!(r#"{{"metric":{{}},"value":[1435781451.781,"{number}"]}}"#));
        let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1435781451.781,"0.5"]}}"#.to_owned();
        let range = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#.to_owned();
        let refused = r#"{"status":"error","errorType":"bad_data","error":"parse error"}"#.to_owned();
        for (gate, body, passed, away, told) in [
            (prometheus(None, Some(0.5)), scalar, true, false, ": 0.5"),
            (prometheus(None, Some(0.5)), one("0.51"), false, false, "0.51, more than 0.5"),
            (prometheus(Some(1.0), None), one("0.9"), false, false, "0.9, less than 1"),
            (prometheus(Some(1.0), Some(2.0)), one("1"), true, false, ": 1"),
            (prometheus(None, Some(0.5)), one("+Inf"), false, false, "inf, more than 0.5"),
            (prometheus(None, Some(0.5)), one("NaN"), false, true, "no number now"),
            (prometheus(None, Some(0.5)), vector(""), false, true, "no number now"),
            (prometheus(None, Some(0.5)), vector(r#"{"value":[1,"1"]},{"value":[1,"2"]}"#), false, false, "2 numbers"),
            (prometheus(None, Some(0.5)), range, false, false, "is a matrix"),
            (prometheus(None, Some(0.5)), refused, false, false, "refuses the query: parse error"),
            (prometheus(None, Some(0.5)), "<html>".to_owned(), false, false, "is it a Prometheus?"),
        ] {
            let said = judged(&gate, &answer(200, &body));
            assert!(said.words.contains(told) && (said.passed, said.away) == (passed, away), "{body}: {said:?}");
        }
    }

    /// Aim: a query arrives as it was written, and an address with a password is not asked.
    #[test]
    fn queries_are_written_into_the_address() {
        let written = uri(&prometheus(None, None)).unwrap().to_string();
        let query = "sum%28rate%28a%7Bb%3D%22c%20d%22%7D%5B1m%5D%29%29%20or%200";
        assert_eq!(written, format!("http://prometheus:9090/api/v1/query?query={query}"));
        let gate = CanaryGate::Webhook { url: "http://me:secret@tests/".to_owned(), timeout: Duration::from_secs(1) };
        assert!(uri(&gate).unwrap_err().contains("password"));
    }

    fn question() -> GateQuestion {
        let mut candidate = Tally::default();
        candidate.record(true, 3.0);
        let canary = ObjectKey::new(crate::world::Kind::Canary, "shop", "catalog");
        GateQuestion { canary, step: 2, steps: 3, weight: 25, stable: Tally::default(), candidate }
    }

    /// Whoever asks there gets this answer, byte for byte; nothing where it is empty. What was asked.
    async fn server(answer: &'static str) -> (String, tokio::sync::oneshot::Receiver<String>) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/verify", listener.local_addr().unwrap());
        let (sender, asked) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; 4096];
            let mut read = 0;
            let body = |text: &str| text.split_once("\r\n\r\n").is_some_and(|(_, body)| serde_json::from_str::<Value>(body).is_ok());
            while !body(&String::from_utf8_lossy(&bytes[..read])) {
                read += stream.read(&mut bytes[read..]).await.unwrap();
            }
            sender.send(String::from_utf8_lossy(&bytes[..read]).into_owned()).unwrap();
            if answer.is_empty() {
                std::future::pending::<()>().await;
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        (url, asked)
    }

    /// Aim: a webhook is told the canary, the step and both versions' numbers, and its answer counts; one that is silent, or is not there, is away,
    /// after its own time.
    #[tokio::test]
    async fn a_webhook_is_asked_and_waited_for() {
        let call = async |url: String| {
            let gate = CanaryGate::Webhook { url, timeout: Duration::from_millis(300) };
            ask(&Index::default(), &gate, &question(), &GateRoots::default()).await
        };
        let (url, asked) = server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let said = call(url).await;
        assert!(said.passed, "{said:?}");
        let asked = asked.await.unwrap();
        let body: Value = serde_json::from_str(asked.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert!(asked.starts_with("POST /verify HTTP/1.1\r\n") && asked.contains("content-type: application/json"), "{asked}");
        assert_eq!((&body["step"], &body["weight"], &body["canary"]["name"]), (&json!(2), &json!(25), &json!("catalog")));
        assert_eq!(
            (&body["candidate"]["requests"], &body["candidate"]["errors"], &body["stable"]["p99_ms"]),
            (&json!(1), &json!(1), &Value::Null)
        );
        let (silent, _asked) = server("").await;
        for (url, told) in [(silent, "no answer within 300 ms"), ("http://127.0.0.1:1/".to_owned(), "127.0.0.1:1: ")] {
            let said = call(url).await;
            assert!(said.away && !said.passed && said.words.contains(told), "{said:?}");
        }
    }

    /// Aim: a name of the mesh leads to its Service's endpoints, seen from the canary's namespace; any other is left to the resolver; pods that take
    /// mesh TLS alone are said to.
    #[test]
    fn names_of_the_mesh_lead_to_endpoints() {
        use crate::source::{FileChange, Folder};
        use crate::world::{Allocations, World, WorldSettings};

        let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: verify, namespace: shop, labels: {app: verify}}
spec: {serviceAccount: verify, addresses: [10.1.0.1], ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: tests, namespace: shop}
spec: {selector: {app: verify}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: MODE}}
";
        let found = |mode: &str, namespace: &str, url: &str| {
            let change = FileChange { file: "f".to_owned(), text: Some(Ok(text.replace("MODE", mode))) };
            let mut world = World::new(WorldSettings::default(), Allocations::default());
            world.apply(Folder::default().update(vec![change], 0));
            known(world.index(), namespace, &url.parse().unwrap())
        };
        let endpoint: Vec<SocketAddr> = vec!["10.1.0.1:8080".parse().unwrap()];
        for (namespace, url, addresses) in [
            ("shop", "http://tests/verify", Some(&endpoint)),
            ("other", "http://tests.shop/verify", Some(&endpoint)),
            ("other", "http://tests.shop.svc/verify", Some(&endpoint)),
            ("other", "http://tests.shop.svc.cluster.local:80/verify", Some(&endpoint)),
            ("other", "http://tests/verify", None),
            ("shop", "http://tests.example/verify", None),
        ] {
            assert_eq!(found("Permissive", namespace, url).as_ref().map(Option::as_ref), Ok(addresses), "{url}");
        }
        assert!(found("Permissive", "shop", "http://tests:81/").unwrap_err().contains("no ready endpoint"));
        assert!(found("Strict", "shop", "http://tests/").unwrap_err().contains("mesh TLS alone"));
    }
}
