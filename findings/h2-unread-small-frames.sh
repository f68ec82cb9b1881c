#!/bin/sh
# h2 0.4.20, server, on valid frames: a hundred and some small ones that the application has not read yet end the whole connection.
#
# A client streams messages of 10 bytes, as gRPC does for events or clicks; all of them lie far within the flow-control window of 65,535 bytes
# that the server has offered (RFC 9113, section 5.2). Expected: what the window allows may be sent, however it is cut into frames; the sender
# stops at 65,535 bytes. Seen: each unread DATA frame below 256 bytes is charged the difference against a budget of half the connection's
# window, so the 134th frame (1,340 bytes) brings GOAWAY ENHANCE_YOUR_CALM (`too_many_data_frames`), which ends every other stream of the
# connection, too. An application that reads as it goes takes ten thousand of them. Behind a proxy the streams that end are those of
# other callers. What helps a server: `data_frame_budget`, or a larger `initial_connection_window_size`, which the budget follows.
#
# Exits non-zero when that changes. Needs cargo; builds in a temporary folder.
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
tokio = { version = "1", features = ["rt", "io-util", "macros", "time"] }

[workspace]
TOML
cat > "$folder/src/main.rs" <<'RUST'
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tokio::time::sleep;

const BYTES: usize = 10;

/// How many small frames a client gets rid of, and why its connection ended, if it did.
async fn frames_sent(reads: bool, window: Option<u32>, frames: usize) -> (usize, Option<h2::Reason>) {
    let (near, far) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        let mut builder = h2::server::Builder::new();
        if let Some(window) = window {
            builder.initial_connection_window_size(window);
        }
        let mut connection = builder.handshake::<_, Bytes>(far).await.unwrap();
        let mut held = Vec::new();
        while let Some(Ok((request, mut reply))) = connection.accept().await {
            let mut answer = reply.send_response(Response::new(()), false).unwrap();
            let mut body = request.into_body();
            if reads {
                tokio::spawn(async move {
                    while let Some(Ok(piece)) = body.data().await {
                        let _ = body.flow_control().release_capacity(piece.len());
                    }
                    let _ = answer.send_data(Bytes::new(), true);
                });
            } else {
                held.push((body, answer));
            }
        }
    });
    let (sender, connection) = h2::client::handshake(near).await.unwrap();
    let ended = tokio::spawn(connection);
    let (answer, mut stream) = sender.ready().await.unwrap().send_request(Request::post("http://a/").body(()).unwrap(), false).unwrap();
    let answer = answer.await.unwrap();
    let mut sent = 0;
    while sent < frames && stream.send_data(Bytes::from_static(&[0; BYTES]), false).is_ok() {
        sent += 1;
        // Each leaves in a frame of its own, and is taken in before the next.
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        if ended.is_finished() {
            break;
        }
    }
    sleep(Duration::from_millis(50)).await;
    drop(answer);
    let reason = if ended.is_finished() { ended.await.unwrap().err().and_then(|error| error.reason()) } else { None };
    (sent, reason)
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let unread = frames_sent(false, None, 1_000).await;
    let read = frames_sent(true, None, 10_000).await;
    let wide = frames_sent(false, Some(1 << 24), 1_000).await;
    println!("nobody reads:                    {} frames of {BYTES} bytes, then {:?}", unread.0, unread.1);
    println!("read as they come:               {} frames, then {:?}", read.0, read.1);
    println!("nobody reads, window of 16 MiB:  {} frames, then {:?}", wide.0, wide.1);
    assert!(unread.1 == Some(h2::Reason::ENHANCE_YOUR_CALM) && unread.0 < 200, "no longer so");
    assert!(unread.0 * BYTES < 65_535 / 10);
    assert_eq!((read, wide), ((10_000, None), (1_000, None)));
}
RUST
cargo run --quiet --manifest-path "$folder/Cargo.toml"
