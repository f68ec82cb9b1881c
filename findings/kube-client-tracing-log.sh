#!/bin/sh
# The Rust crates kube-client 4.2.0 and tracing 0.1.44: a program that has the first among its dependencies pays for it at each HTTP/2 request
# that it makes or serves, whether or not it ever calls a Kubernetes API.
#
# kube-client asks for `tracing` with its feature `log`, of which the crates that ask for nothing get the code, too, h2 among them. With it each
# span and event that is *off* keeps its metadata and looks, when it is made, entered, left and dropped, whether a `log` logger might want it.
# Expected: a client library's choice of logging costs its own calls, and spans below the level cost next to nothing. Seen: in a program that
# logs warnings by tracing-subscriber, a request over h2 and its answer take 44,000 instructions instead of 39,400; the feature by itself makes
# nearly all of it. Nobody can tell such a dependency otherwise: features add up.
#
# Exits non-zero when that changes. Needs cargo and valgrind; builds in a temporary folder, three times.
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
bytes = "1"
h2 = "=0.4.20"
http = "1"
kube-client = { version = "=4.2.0", default-features = false, features = ["client"], optional = true }
k8s-openapi = { version = "=0.28.0", features = ["v1_36"], optional = true }
tokio = { version = "1", features = ["rt", "io-util", "macros"] }
tracing = { version = "=0.1.44", default-features = false }
tracing-subscriber = { version = "=0.3.23", default-features = false, features = ["fmt"] }

[features]
kube = ["dep:kube-client", "dep:k8s-openapi"]
log = ["tracing/log"]

[workspace]
TOML
cat > "$folder/src/main.rs" <<'RUST'
use bytes::Bytes;
use http::{Request, Response};

/// So many HTTP/2 requests over memory, in a program that logs warnings.
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let requests: u32 = std::env::args().nth(1).unwrap().parse().unwrap();
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).init();
    let (near, far) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move {
        let mut connection = h2::server::handshake(far).await.unwrap();
        while let Some(Ok((_, mut reply))) = connection.accept().await {
            let mut answer = reply.send_response(Response::new(()), false).unwrap();
            answer.send_data(Bytes::from_static(b"hello"), true).unwrap();
        }
    });
    let (sender, connection) = h2::client::handshake(near).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..requests {
        let (answer, _) = sender.clone().ready().await.unwrap().send_request(Request::get("http://a/").body(()).unwrap(), true).unwrap();
        let mut body = answer.await.unwrap().into_body();
        while let Some(piece) = body.data().await {
            let piece = piece.unwrap();
            body.flow_control().release_capacity(piece.len()).unwrap();
        }
    }
}
RUST
# Instructions of so many requests.
count() { valgrind --tool=cachegrind --cache-sim=no --cachegrind-out-file=/dev/null "$folder/target/release/finding" "$1" 2>&1 | sed -n 's/,//g; s/.*I *refs: *//p'; }
cost() { # feature: instructions of one request
    cargo build --quiet --release --manifest-path "$folder/Cargo.toml" --target-dir "$folder/target" --features "$1"
    echo $((($(count 3000) - $(count 1000)) / 2000))
}
without=$(cost "") log=$(cost log) kube=$(cost kube)
echo "instructions of a request: $without; with tracing/log $log; with kube-client $kube"
share=$(((kube - without) * 100 / without))
[ "$share" -ge 5 ] && [ "$share" -le 20 ] || { echo "changed: $share % more"; exit 1; }
[ $(((log - without) * 4)) -ge $(((kube - without) * 3)) ] || { echo "changed: it is not the feature"; exit 1; }
