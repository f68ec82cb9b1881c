#!/bin/sh
# The Rust crate kube 4.2.0, as `Client::try_from(config)` makes it, on a valid answer: one `create` makes several objects.
#
# An API server that cannot say in time what became of a request answers 504, and says that it "may still be processing the request"
# (reason Timeout). Expected: `Api::create` with `generateName`, a POST, is sent once and the caller gets that error; RFC 9110, section 9.2.2:
# "A client SHOULD NOT automatically retry a request with a non-idempotent method unless it has some means to know that the request semantics
# are actually idempotent". Seen: `Config::default_retry` is true, and the client repeats 429, 503 and 504 up to fifteen times whatever the
# method, so where the first two answers get late there are three objects, and the caller knows of one. Where all are late there are sixteen,
# and the caller, who reads of one failure, has waited for minutes: the pauses double, 5 ms to 164 s. What helps: `default_retry = false`.
#
# Exits non-zero when that changes. Needs cargo; builds in a temporary folder. Time is the runtime's own, which does not wait.
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
k8s-openapi = { version = "=0.28.0", features = ["v1_36"] }
kube = { version = "=4.2.0", default-features = false, features = ["client"] }
serde_json = "1"
tokio = { version = "1", features = ["rt", "net", "io-util", "macros", "time", "test-util"] }

[workspace]
TOML
cat > "$folder/src/main.rs" <<'RUST'
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use kube::{Client, Config};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

/// What an API server says that could not find out in time.
const LATE: &str = "Timeout: request did not complete within requested timeout; it may still be processing the request";

/// Keeps what it is given, and answers that it may do so yet to the first `late` requests; the names that it has kept.
async fn serve(listener: TcpListener, late: usize, kept: Arc<Mutex<Vec<String>>>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut got = Vec::new();
        // A request has its length in its head, and is over with its last brace.
        while !got.ends_with(b"}") {
            stream.read_buf(&mut got).await.unwrap();
        }
        assert!(got.starts_with(b"POST /api/v1/namespaces/a/configmaps"));
        let number = kept.lock().unwrap().len() + 1;
        let name = format!("c-{number}");
        kept.lock().unwrap().push(name.clone());
        let (status, answer) = match number <= late {
            true => ("504 Gateway Timeout", json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 504, "reason": "Timeout", "message": LATE})),
            false => ("201 Created", json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name, "generateName": "c-"}})),
        };
        let body = answer.to_string();
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await.unwrap();
    }
}

/// How one `create` ends, and the names of all objects that it made.
async fn create(late: usize, retry: bool) -> (String, usize, u64) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
    if !retry {
        config.default_retry = false;
    }
    let kept = Arc::default();
    let server = tokio::spawn(serve(listener, late, Arc::clone(&kept)));
    let api = Api::<ConfigMap>::namespaced(Client::try_from(config).unwrap(), "a");
    let object = serde_json::from_value(json!({"metadata": {"generateName": "c-"}})).unwrap();
    let began = Instant::now();
    let ended = match api.create(&PostParams::default(), &object).await {
        Ok(object) => object.metadata.name.unwrap(),
        Err(kube::Error::Api(status)) => format!("{} {}", status.code, status.reason),
        Err(error) => panic!("{error}"),
    };
    server.abort();
    let made = kept.lock().unwrap().len();
    (ended, made, began.elapsed().as_secs())
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() {
    for (late, retry) in [(0, true), (2, true), (99, true), (99, false)] {
        let (ended, made, secs) = create(late, retry).await;
        // The pauses have a jitter.
        let waited = if secs < 2 { "at once" } else if (60..400).contains(&secs) { "after minutes" } else { "else" };
        println!("{late} late answers, default_retry {retry}: {ended}, objects made: {made}, {waited}");
    }
}
RUST
cat > "$folder/wanted" <<'WANTED'
0 late answers, default_retry true: c-1, objects made: 1, at once
2 late answers, default_retry true: c-3, objects made: 3, at once
99 late answers, default_retry true: 504 Timeout, objects made: 16, after minutes
99 late answers, default_retry false: 504 Timeout, objects made: 1, at once
WANTED
seen=$(cargo run --quiet --manifest-path "$folder/Cargo.toml")
echo "$seen"
[ "$seen" = "$(cat "$folder/wanted")" ] || { echo "changed; it was:"; cat "$folder/wanted"; exit 1; }
