//! Plain requests to an API server: a method, a path, JSON in and JSON out. What a test asserts is then what is on the wire, not what a
//! client's types make of it.

use std::time::Duration;

use anyhow::bail;
use http::{Request, header};
use serde_json::Value;

/// Longest wait of [`eventually`].
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two of its looks.
const LOOK: Duration = Duration::from_millis(20);

/// The server said no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub code: u16,
    /// The status object's reason, such as `Conflict`.
    pub reason: String,
    /// Its message.
    pub message: String,
}

/// Sends one request. `method` is an HTTP method, or one of `APPLY` (server-side, as manager `test` unless the path names one) and
/// `MERGE` (a JSON merge patch).
///
/// # Errors
/// The server refuses. A server that cannot be reached is a refusal with code 0.
pub async fn ask(client: &kube::Client, method: &str, path: &str, body: impl Into<Value>) -> Result<Value, Refusal> {
    let (method, kind) = match method {
        "APPLY" => ("PATCH", "application/apply-patch+yaml"),
        "MERGE" => ("PATCH", "application/merge-patch+json"),
        method => (method, "application/json"),
    };
    let mut path = path.to_owned();
    if kind.contains("apply") && !path.contains("fieldManager=") {
        path = format!("{path}{}fieldManager=test", if path.contains('?') { "&" } else { "?" });
    }
    let body: Value = body.into();
    let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, kind).body(bytes);
    let request = request.map_err(|error| Refusal { code: 0, reason: String::new(), message: error.to_string() })?;
    client.request::<Value>(request).await.map_err(|error| match error {
        kube::Error::Api(status) => Refusal { code: status.code, reason: status.reason.clone(), message: status.message.clone() },
        error => Refusal { code: 0, reason: String::new(), message: error.to_string() },
    })
}

/// Asks again and again until the answer is the wanted one; gives that answer, null where it is a refusal.
///
/// # Errors
/// It never came; the error shows the last answer.
pub async fn eventually(client: &kube::Client, path: &str, wanted: impl Fn(&Result<Value, Refusal>) -> bool) -> anyhow::Result<Value> {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let answer = ask(client, "GET", path, ()).await;
        if wanted(&answer) {
            return Ok(answer.unwrap_or_default());
        }
        if tokio::time::Instant::now() > end {
            bail!("{path} stayed {answer:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
}
