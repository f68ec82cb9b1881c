#!/bin/sh
# hyper 1.12.0, HTTP/1 server, on valid input: what a service answers and the client does not get.
#
# 1. A 304 to GET with Content-Length (RFC 9110, section 8.6: the length that a 200 would have had) loses it.
# 2. Trailers of a chunked answer are dropped unless the answer announces each by `Trailer` *and* the request says `TE: trailers`
#    (RFC 9110, section 6.5.2, makes both advice, and a proxy has to pass on what it gets).
# 3. `100 Continue` is written by itself as soon as the service polls the body; there is no way to say another interim answer, and 103 as an
#    answer ends in 500 (RFC 9110, section 15.2: any number of them may come before the final one).
#
# Expected: the field, the trailer, the 103. Exits non-zero when one of them changes. Needs cargo; builds in a temporary folder.
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
http-body-util = "=0.1.5"
hyper = { version = "=1.12.0", features = ["http1", "server"] }
hyper-util = { version = "=0.1.21", features = ["tokio"] }
tokio = { version = "1", features = ["rt", "net", "macros", "io-util"] }

[workspace]
TOML
cat > "$folder/src/main.rs" <<'RUST'
use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, combinators::BoxBody};
use hyper::{HeaderMap, Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Body = BoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let builder = Response::builder();
    Ok(match request.uri().path() {
        "/304" => builder.status(304).header("content-length", "1000").body(Empty::new().boxed()).unwrap(),
        "/103" => builder.status(103).header("link", "</a>").body(Empty::new().boxed()).unwrap(),
        _ => {
            let trailers = async { Some(Ok(HeaderMap::from_iter([("x-sum".parse().unwrap(), "7".parse().unwrap())]))) };
            let body = Full::new(Bytes::from("hi")).with_trailers(trailers);
            builder.header("transfer-encoding", "chunked").body(body.boxed()).unwrap()
        }
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    for path in ["/304", "/trailers", "/103"] {
        let (near, mut far) = tokio::io::duplex(4096);
        let serve = http1::Builder::new().serve_connection(TokioIo::new(near), service_fn(answer));
        let ask = async {
            far.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            String::from_utf8(got).unwrap().to_lowercase()
        };
        let (_, got) = tokio::join!(serve, ask);
        println!("{path} {}", got.replace("\r\n", "|"));
    }
}
RUST
seen=$(cd "$folder" && cargo run --quiet 2>/dev/null)
echo "$seen"
status=0
check() { # line, pattern that is expected and was not seen, what it is
    if echo "$seen" | grep "^$1 " | grep -q "$2"; then echo "changed: $3 arrives now"; status=1; fi
}
check /304 'content-length: 1000' "a 304's Content-Length"
check /trailers 'x-sum: 7' 'a trailer that Trailer did not announce'
check /103 '^/103 http/1.1 103' 'a 103'
[ "$(echo "$seen" | wc -l)" -eq 3 ] || { echo "the program did not run"; status=1; }
exit $status
