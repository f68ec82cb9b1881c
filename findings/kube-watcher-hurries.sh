#!/bin/sh
# The Rust crate kube 4.2.0, `runtime::watcher` with its default backoff, on a valid answer: a watch that ends at once.
#
# An API server may end a watch whenever it likes (one that shuts down does, and so do real ones at a revision that they have no more:
# kubernetes/kubernetes#104171), as 200 with an empty body; something before it that is out of order may say 503 with an empty body. Expected:
# a pause before the next call, as after an error; Go's client calls it a "very short watch" and backs off. Seen: the watcher's stream says
# nothing at all, neither event nor error, so there is nothing that `default_backoff()`, which waits after errors, could wait for: the watcher
# asks again without any pause, more than a thousand times in two seconds here, as fast as the other side answers. Nobody who follows it can see it.
#
# What helps: count the calls oneself, below the client. Exits non-zero when that changes. Needs cargo; builds in a temporary folder.
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
tokio = { version = "1", features = ["rt", "net", "io-util", "macros", "time"] }

[workspace]
TOML
cat > "$folder/src/main.rs" <<'RUST'
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Config};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};

const LIST: &str = r#"{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"resourceVersion":"5"},"items":[]}"#;

/// Answers requests of one connection: a list with an empty one, a watch with nothing, and counts those.
async fn answer(stream: TcpStream, status: &str, watches: Arc<AtomicU32>) -> std::io::Result<()> {
    let mut stream = BufStream::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let watch = head.contains("watch=true");
        watches.fetch_add(watch.into(), Ordering::Relaxed);
        let (status, body) = if watch { (status, "") } else { ("200 OK", LIST) };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
    }
}

/// What a watcher says in two seconds, and how often it asks meanwhile.
async fn follow(status: &'static str) -> (Vec<String>, u32) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
    // The client's own pauses at 503 are another matter.
    config.default_retry = false;
    let watches = Arc::new(AtomicU32::new(0));
    let counted = watches.clone();
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(answer(stream, status, counted.clone()));
        }
    });
    let api = Api::<ConfigMap>::all(Client::try_from(config).unwrap());
    let mut stream = pin!(watcher::watcher(api, watcher::Config::default()).default_backoff());
    let mut said = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(2), async {
        while let Some(event) = stream.next().await {
            said.push(match event {
                Ok(Event::Init) => "Init".to_owned(),
                Ok(Event::InitDone) => "InitDone".to_owned(),
                Ok(_) => "an object".to_owned(),
                Err(error) => error.to_string(),
            });
        }
    })
    .await;
    server.abort();
    (said, watches.load(Ordering::Relaxed))
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    for status in ["200 OK", "503 Service Unavailable"] {
        let (said, watches) = follow(status).await;
        eprintln!("{watches} calls");
        let many = if watches > 1_000 { "more than a thousand".to_owned() } else { watches.to_string() };
        println!("{status}, empty: it says {}; calls in two seconds: {many}", said.join(", "));
    }
}
RUST
cat > "$folder/wanted" <<'WANTED'
200 OK, empty: it says Init, InitDone; calls in two seconds: more than a thousand
503 Service Unavailable, empty: it says Init, InitDone; calls in two seconds: more than a thousand
WANTED
seen=$(cargo run --quiet --manifest-path "$folder/Cargo.toml")
echo "$seen"
[ "$seen" = "$(cat "$folder/wanted")" ] || { echo "changed; it was:"; cat "$folder/wanted"; exit 1; }
