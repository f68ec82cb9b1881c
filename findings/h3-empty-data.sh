#!/bin/sh
# h3 0.0.8, server (over h3-quinn 0.0.10), on a valid request: what follows an empty DATA frame of its body is not seen.
#
# RFC 9114 (sections 4.1, 7.2.1) has a body be any number of DATA frames, each of any length, zero among them; clients that pass on a stream write one
# where a piece was empty. Expected: `recv_data` gives all of the body before it says `None`. Seen: it says `None` at the empty frame, as at the
# body's end, and the rest ("all") comes only to who asks once more after the end. Who reads until `None`, as one does, has half of the body and hears of
# no error.
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
h3 = "=0.0.8"
h3-quinn = { version = "=0.0.10", default-features = false }
quinn = { version = "0.11", default-features = false, features = ["runtime-tokio", "rustls-aws-lc-rs"] }
rcgen = { version = "=0.14.10", default-features = false, features = ["crypto", "aws_lc_rs"] }
rustls = { version = "=0.23.46", default-features = false, features = ["aws_lc_rs", "std"] }
tokio = { version = "1", features = ["rt", "net", "macros", "time"] }

[workspace]
TOML
cat > "$folder/src/main.rs" <<'RUST'
use std::sync::Arc;

use bytes::{Buf, Bytes};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// GET https://a/ in fields of QPACK's static table.
const HEAD: &[u8] = b"\x01\x08\x00\x00\xd4\xd7\xc1\x50\x01a";
/// The begin of a control stream, and empty SETTINGS.
const CONTROL: &[u8] = b"\x00\x04\x00";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["a".to_owned()]).unwrap().self_signed(&key).unwrap();
    let own = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let tls13 = &[&rustls::version::TLS13];
    let server = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(tls13).unwrap();
    let mut server = server.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], own).unwrap();
    server.alpn_protocols = vec![b"h3".to_vec()];
    let server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server).unwrap()));
    let server = quinn::Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider).with_protocol_versions(tls13).unwrap();
    let mut client = client.with_root_certificates(roots).with_no_client_auth();
    client.alpn_protocols = vec![b"h3".to_vec()];
    let client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).unwrap()));
    let address = server.local_addr().unwrap();
    for (what, body) in [("two frames", &b"\x00\x02hi\x00\x03all"[..]), ("an empty one between", b"\x00\x02hi\x00\x00\x00\x03all")] {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connecting = endpoint.connect_with(client.clone(), address, "a").unwrap();
        let asking = async {
            let connection = connecting.await.unwrap();
            let mut control = connection.open_uni().await.unwrap();
            control.write_all(CONTROL).await.unwrap();
            let (mut request, _answer) = connection.open_bi().await.unwrap();
            request.write_all(&[HEAD, body].concat()).await.unwrap();
            request.finish().unwrap();
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            drop((control, connection));
        };
        let serving = async {
            let connection = h3_quinn::Connection::new(server.accept().await.unwrap().await.unwrap());
            let mut connection: h3::server::Connection<_, Bytes> = h3::server::Connection::new(connection).await.unwrap();
            let resolver = connection.accept().await.unwrap().unwrap();
            let (_, mut stream) = resolver.resolve_request().await.unwrap();
            let mut seen = Vec::new();
            while let Some(mut piece) = stream.recv_data().await.unwrap() {
                seen.extend_from_slice(&piece.copy_to_bytes(piece.remaining()));
            }
            println!("{what}: {}", String::from_utf8(seen).unwrap());
            // Until the client has gone.
            while let Ok(Some(_)) = connection.accept().await {}
        };
        tokio::join!(asking, serving);
    }
}
RUST
seen=$(cd "$folder" && cargo run --quiet 2>"$folder/err") || { cat "$folder/err"; exit 1; }
echo "$seen"
[ "$(echo "$seen" | sed -n 1p)" = "two frames: hiall" ] || { echo "the program did not run as it was"; exit 1; }
[ "$(echo "$seen" | sed -n 2p)" = "an empty one between: hi" ] || { echo "changed: what follows an empty frame is seen"; exit 1; }
