#!/bin/sh
# rustls 0.23.46, server, on a valid certificate: `with_single_cert` refuses what it serves all the same.
#
# RFC 8737 (section 3) has a server that answers TLS-ALPN-01 show a certificate with the critical extension `acmeIdentifier`. Expected: a
# ServerConfig takes it, as it takes any certificate whose key is at hand: nobody but the authority that asks has to understand the extension. Seen:
# `with_single_cert` fails with `UnsupportedCriticalExtension` of the server's own certificate, since it reads it as a client would to see whether the
# key is its; a `CertifiedKey` by a resolver is served without a question. Who answers such challenges has to go by the latter.
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
rcgen = { version = "=0.14.10", default-features = false, features = ["crypto", "aws_lc_rs"] }
rustls = { version = "=0.23.46", default-features = false, features = ["aws_lc_rs", "std", "tls12"] }

[workspace]
TOML
cat > "$folder/src/main.rs" <<'RUST'
use std::sync::Arc;

use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

#[derive(Debug)]
struct Own(Arc<CertifiedKey>);

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

fn builder() -> rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap().with_no_client_auth()
}

/// The bytes that a server answers a hello with.
fn answered(config: ServerConfig) -> usize {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(client), "a.example".try_into().unwrap()).unwrap();
    let (mut server, mut hello, mut answer) = (ServerConnection::new(Arc::new(config)).unwrap(), Vec::new(), Vec::new());
    client.write_tls(&mut hello).unwrap();
    server.read_tls(&mut hello.as_slice()).unwrap();
    server.process_new_packets().unwrap();
    server.write_tls(&mut answer).unwrap();
    answer.len()
}

fn main() {
    for marked in [false, true] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["a.example".to_owned()]).unwrap();
        if marked {
            params.custom_extensions = vec![CustomExtension::new_acme_identifier(&[7; 32])];
        }
        let chain = vec![params.self_signed(&key).unwrap().der().clone()];
        let own = || PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let single = builder().with_single_cert(chain.clone(), own()).map(|_| ()).map_err(|error| format!("{error:?}"));
        let signs = aws_lc_rs::sign::any_supported_type(&own()).unwrap();
        let resolved = builder().with_cert_resolver(Arc::new(Own(Arc::new(CertifiedKey::new(chain, signs)))));
        println!("acmeIdentifier {marked}: with_single_cert {single:?}; by a resolver it answers: {}", answered(resolved) > 500);
    }
}
RUST
seen=$(cd "$folder" && cargo run --quiet 2>"$folder/err") || { cat "$folder/err"; exit 1; }
echo "$seen"
[ "$(echo "$seen" | sed -n 1p)" = "acmeIdentifier false: with_single_cert Ok(()); by a resolver it answers: true" ] ||
    { echo "the program did not run as it was"; exit 1; }
second=$(echo "$seen" | sed -n 2p)
case "$second" in
*UnsupportedCriticalExtension*"by a resolver it answers: true") ;;
*) echo "changed: a certificate with acmeIdentifier is not refused as it was"; exit 1 ;;
esac
