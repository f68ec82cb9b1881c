#!/bin/sh
# The Rust crate kube 4.2.0, `runtime::watcher`, on valid answers: a watch whose call is refused.
#
# 1. 410 Gone. Kubernetes' API concepts: "clients must handle the case by recognizing the status code `410 Gone`, clearing their local cache,
#    performing a new get or list operation, and starting the watch from the resourceVersion that was returned"; the watcher's own documentation:
#    "If this fails because the resource version is no longer valid then we start over with a new stream". Seen: where 410 comes as an ERROR event
#    of a watch that began, it does so; where it is the status of the call's answer, the watcher asks for the same revision again for ever, each
#    time with `WatchFailed`, and never lists. Who follows it stays at the state of that moment.
# 2. 429 as API servers say it, in plain text. Seen: `SerdeError` ("expected value"), without the status. A list gets it as `Api`, code 429.
# The reason is one: of a watch's answer nobody looks at the status, and its body is read as events.
#
# What helps: judge `WatchFailed(Api(410))` oneself and make a new watcher. Exits non-zero when that changes. Needs cargo; builds in a temporary
# folder. Time is the runtime's own, which does not wait.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat > "$folder/Cargo.toml" <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2024"

[dependencies]
futures = "0.3"
k8s-openapi = { version = "=0.28.0", features = ["v1_36"] }
kube = { version = "=4.2.0", default-features = false, features = ["client", "runtime"] }
tokio = { version = "1", features = ["rt", "net", "io-util", "macros", "time", "test-util"] }

[workspace]
TOML
cat > "$folder/src/main.rs" <<'RUST'
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Error};
use kube::{Api, Client, Config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const LIST: &str = r#"{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"resourceVersion":"5"},"items":[]}"#;
const GONE: &str = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","code":410,"reason":"Expired","message":"too old resource version: 5 (9)"}"#;

/// Answers each list with revision 5, each watch with this; counts both.
async fn serve(listener: TcpListener, status: &str, kind: &str, body: &str, asked: Arc<Mutex<BTreeMap<String, u32>>>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut got).await.unwrap();
        }
        let line = String::from_utf8_lossy(&got).lines().next().unwrap().to_owned();
        let watch = line.contains("watch=true");
        let what = if !watch { "list" } else if line.contains("resourceVersion=5") { "watch from 5" } else { "watch from elsewhere" };
        *asked.lock().unwrap().entry(what.to_owned()).or_default() += 1;
        let (status, kind, body) = if watch { (status, kind, body) } else { ("200 OK", "application/json", LIST) };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

fn told(error: &Error) -> String {
    let (place, error) = match error {
        Error::WatchStartFailed(error) => ("WatchStartFailed", error),
        Error::WatchFailed(error) => ("WatchFailed", error),
        Error::WatchError(status) => return format!("WatchError {}", status.code),
        other => return format!("{other:?}"),
    };
    match error {
        kube::Error::Api(status) => format!("{place} Api {}", status.code),
        kube::Error::SerdeError(error) => format!("{place} SerdeError {error}"),
        other => format!("{place} {other:?}"),
    }
}

/// What a watcher with its default backoff asks for, and says, in an hour.
async fn hour(status: &'static str, kind: &'static str, body: String) -> (Vec<String>, Vec<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
    // Its own pauses at 429 are another matter.
    config.default_retry = false;
    let asked = Arc::<Mutex<BTreeMap<_, _>>>::default();
    let counted = asked.clone();
    let server = tokio::spawn(async move { serve(listener, status, kind, &body, counted).await });
    let api = Api::<ConfigMap>::all(Client::try_from(config).unwrap());
    let mut stream = pin!(watcher::watcher(api, watcher::Config::default()).default_backoff());
    let mut errors = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(3600), async {
        while let Some(event) = stream.next().await {
            errors.extend(event.err().map(|error| told(&error)));
        }
    })
    .await;
    server.abort();
    errors.sort_unstable();
    errors.dedup();
    let many = |count: u32| if count > 20 { "many times".to_owned() } else { format!("{count} times") };
    let asked = asked.lock().unwrap().iter().map(|(what, count)| format!("{what} {}", many(*count))).collect();
    (asked, errors)
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() {
    let event = format!("{{\"type\":\"ERROR\",\"object\":{GONE}}}\n");
    for (name, status, kind, body) in [
        ("410 as an event", "200 OK", "application/json", event),
        ("410 as the answer", "410 Gone", "application/json", GONE.to_owned()),
        ("429 as the answer", "429 Too Many Requests", "text/plain", "Too many requests, please try again later.\n".to_owned()),
    ] {
        let (asked, errors) = hour(status, kind, body).await;
        println!("{name}: {}; {}", asked.join(", "), errors.join(", "));
    }
}
RUST
cat > "$folder/wanted" <<'WANTED'
410 as an event: list many times, watch from 5 many times; WatchError 410
410 as the answer: list 1 times, watch from 5 many times; WatchFailed Api 410
429 as the answer: list 1 times, watch from 5 many times; WatchFailed SerdeError expected value at line 1 column 1
WANTED
seen=$(cargo run --quiet --manifest-path "$folder/Cargo.toml")
echo "$seen"
[ "$seen" = "$(cat "$folder/wanted")" ] || { echo "changed; it was:"; cat "$folder/wanted"; exit 1; }
