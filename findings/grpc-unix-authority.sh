#!/bin/sh
# gRPC's C core (grpcio 1.78.0), client, and the Rust crate h2 0.4.20, server: over a Unix socket they cannot talk.
#
# The client says the socket's path as `:authority`, percent-encoded and without its first slash: `tmp%2Fx.sock`. That is a registered name as
# RFC 3986, section 3.2.2, has it (`reg-name = *( unreserved / pct-encoded / sub-delims )`), so the call is valid HTTP/2 (RFC 9113, section
# 8.3.1), and the C core's own server and the Python package h2 4.3.0, which checks header fields, answer it. The crate `http` 1.5.0 takes
# percent signs in user information and zone identifiers only, so `h2` resets the stream with PROTOCOL_ERROR before the application sees
# anything; every tonic and hyper server has it so. Expected: the call is served, or there is a way to let such a name through. Seen by the
# caller: INTERNAL, `Received RST_STREAM with error code 1`. What helps is on the client's side only: the channel option
# `grpc.default_authority`, which who uses a client library over gRPC often cannot set.
# Told of in hyperium/http#836 and #528, hyperium/h2#487, grpc/grpc#38142.
#
# Exits non-zero when one of them changes. Needs cargo, and Python with venv and pip; builds in a temporary folder.
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
http = "=1.5.0"
tokio = { version = "1", features = ["rt", "net", "macros"] }

[workspace]
TOML
cat > "$folder/src/main.rs" <<'RUST'
use bytes::Bytes;
use http::{HeaderMap, Response};

/// Answers every call on the Unix socket at the first argument with gRPC status 0.
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let path = std::env::args().nth(1).unwrap();
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut reply))) = connection.accept().await {
                let answer = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                let mut stream = reply.send_response(answer, false).unwrap();
                // An empty message.
                stream.send_data(Bytes::from_static(&[0; 5]), false).unwrap();
                stream.send_trailers(HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())])).unwrap();
            }
        });
    }
}
RUST
cat > "$folder/calls.py" <<'PYTHON'
"""Calls over Unix sockets: what gRPC's C core says as :authority, and what servers make of it."""
import socket, subprocess, sys, threading, urllib.parse
from concurrent import futures

import grpc
import h2.config, h2.connection, h2.events

FOLDER, SERVER = sys.argv[1], sys.argv[2]
RAW = lambda message: message
# As the C core writes the folder, whose name differs from run to run.
QUOTED = urllib.parse.quote(FOLDER.lstrip("/"), safe="")
HEAD = [(":status", "200"), ("content-type", "application/grpc")]


def call(path, options=()):
    """How one call ends; the server has ten seconds to come up."""
    with grpc.insecure_channel("unix:" + path, options=options) as channel:
        try:
            method = channel.unary_unary("/a.B/C", request_serializer=RAW, response_deserializer=RAW)
            method(b"", timeout=10, wait_for_ready=True)
            return "OK"
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"


def hyper_h2(path, seen):
    """A server of the Python package h2 with its own checks of header fields on; notes each authority."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve(stream):
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        stream.sendall(connection.data_to_send())
        while data := stream.recv(65_536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    seen.append(dict(event.headers)[":authority"])
                    connection.send_headers(event.stream_id, HEAD)
                    connection.send_data(event.stream_id, bytes(5))
                    connection.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
            try:
                stream.sendall(connection.data_to_send())
            except BrokenPipeError:  # The client has what it wanted.
                return

    def accept():
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"", request_deserializer=RAW, response_serializer=RAW)


def c_core(path):
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Echo()])
    server.add_insecure_port("unix:" + path)
    server.start()
    return server


seen = []
hyper_h2(f"{FOLDER}/p.sock", seen)
running = c_core(f"{FOLDER}/c.sock")
rust = subprocess.Popen([SERVER, f"{FOLDER}/r.sock"])
try:
    print("Python h2 server:", call(f"{FOLDER}/p.sock"))
    print("Python h2 server, default_authority:", call(f"{FOLDER}/p.sock", [("grpc.default_authority", "localhost")]))
    print("authorities sent:", *(authority.replace(QUOTED, "FOLDER") for authority in seen))
    print("C core server:", call(f"{FOLDER}/c.sock"))
    print("Rust h2 server:", call(f"{FOLDER}/r.sock"))
    print("Rust h2 server, default_authority:", call(f"{FOLDER}/r.sock", [("grpc.default_authority", "localhost")]))
finally:
    rust.kill()
    running.stop(None)
PYTHON
cat > "$folder/wanted" <<'WANTED'
Python h2 server: OK
Python h2 server, default_authority: OK
authorities sent: FOLDER%2Fp.sock localhost
C core server: OK
Rust h2 server: INTERNAL: Received RST_STREAM with error code 1
Rust h2 server, default_authority: OK
WANTED
python3 -m venv "$folder/python"
"$folder/python/bin/pip" install --quiet --disable-pip-version-check grpcio==1.78.0 h2==4.3.0
cargo build --quiet --manifest-path "$folder/Cargo.toml"
seen=$(timeout 60 "$folder/python/bin/python" "$folder/calls.py" "$folder" "$folder/target/debug/finding")
echo "$seen"
[ "$seen" = "$(cat "$folder/wanted")" ] || { echo "changed; it was:"; cat "$folder/wanted"; exit 1; }
