use std::sync::Arc;
use std::time::{Duration, SystemTime};

use engine::failure::{Failure, Reason, Retry};
use engine::model::{Named, Roots};
use rcgen::SanType;
use rustls::server::ServerConfig;
use rustls::version::{TLS12, TLS13};
use rustls::{HandshakeKind, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::TlsAcceptor;

use super::testing::{Authority, Party, party};
use super::{Carries, provider};

/// A server outside the mesh, for `id.example` and 192.0.2.1.
fn server(authority: &Authority, alpn: &[&str], version: &'static SupportedProtocolVersion) -> Arc<ServerConfig> {
    let names = [SanType::DnsName("id.example".try_into().unwrap()), SanType::IpAddress([192, 0, 2, 1].into())];
    let now = SystemTime::now();
    let (chain, key) = authority.leaf(&names, "id", now - Duration::from_secs(60), now + Duration::from_secs(3600));
    let builder = ServerConfig::builder_with_provider(Arc::new(provider())).with_protocol_versions(&[version]).unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

fn named(name: &str, roots: &Authority) -> Arc<Named> {
    let roots = roots.roots().iter().map(|root| root.to_vec()).collect();
    Arc::new(Named::new(name, Roots::Given(roots)).unwrap())
}

/// A client, and one call of it: what was agreed on and whether a session was resumed.
struct Client(Party);

impl Client {
    fn new() -> Self {
        Self(party(&Authority::new("mesh"), "spiffe://cluster.local/ns/shop/sa/frontend", "frontend"))
    }

    async fn call(&self, named: &Arc<Named>, carries: Carries, server: &Arc<ServerConfig>) -> Result<(Option<String>, bool), Failure> {
        let (near, far) = duplex(64 << 10);
        let serve = async {
            let Ok(mut accepted) = TlsAcceptor::from(Arc::clone(server)).accept(far).await else { return };
            // What is read after it, tickets come before.
            let _ = accepted.write_all(b"x").await;
            let _ = accepted.read(&mut [0]).await;
        };
        let call = async {
            let address = "192.0.2.1:443".parse().unwrap();
            let mut stream: tokio_rustls::client::TlsStream<DuplexStream> = self.0.tls.connect_named(named, address, carries, near).await?;
            stream.read_exact(&mut [0]).await.unwrap();
            let state = stream.get_ref().1;
            let alpn = state.alpn_protocol().map(|name| String::from_utf8(name.to_vec()).unwrap());
            Ok((alpn, state.handshake_kind() == Some(HandshakeKind::Resumed)))
        };
        tokio::join!(call, serve).0
    }
}

/// Aim: a server that proves its name (or address) is spoken to by what is carried, in TLS 1.3 and 1.2.
#[tokio::test]
async fn a_named_server_is_met() {
    let (public, client) = (Authority::new("public"), Client::new());
    let both = server(&public, &["h2", "http/1.1"], &TLS13);
    for (carries, alpn) in [(Carries::H1, Some("http/1.1")), (Carries::H2, Some("h2")), (Carries::Tcp, None)] {
        let (agreed, _) = client.call(&named("id.example", &public), carries, &both).await.unwrap();
        assert_eq!(agreed.as_deref(), alpn);
    }
    client.call(&named("192.0.2.1", &public), Carries::H1, &both).await.unwrap();
    // One that has never heard of ALPN speaks HTTP/1.1.
    let old = server(&public, &[], &TLS12);
    assert_eq!(client.call(&named("id.example", &public), Carries::H1, &old).await.unwrap().0, None);
    let failure = client.call(&named("id.example", &public), Carries::H2, &old).await.unwrap_err();
    assert_eq!((failure.reason, failure.retry), (Reason::TlsFailed, Retry::NeverWritten));
    assert!(failure.cause.contains("does not speak HTTP/2"), "{failure}");
}

/// Aim: another name, other roots, no roots that can be read: each is refused before a byte of a request, and says so. The mesh's own roots
/// count for nothing here.
#[tokio::test]
async fn nobody_else_is_believed() {
    let (public, other, client) = (Authority::new("public"), Authority::new("other"), Client::new());
    let there = server(&public, &["http/1.1"], &TLS13);
    let broken = Arc::new(Named::new("id.example", Roots::Given(vec![vec![0x30, 0]].into())).unwrap());
    let of_mesh = Named::new("id.example", Roots::Given(client.0.trust.roots().iter().map(|root| root.to_vec()).collect()));
    for (named, reason, word) in [
        (named("other.example", &public), Reason::IdentityMismatch, "other.example"),
        (named("192.0.2.2", &public), Reason::IdentityMismatch, "192.0.2.2"),
        (named("id.example", &other), Reason::TlsFailed, "UnknownIssuer"),
        (of_mesh.map(Arc::new).unwrap(), Reason::TlsFailed, "UnknownIssuer"),
        (broken, Reason::TlsFailed, "none of the root certificates"),
    ] {
        let failure = client.call(&named, Carries::H1, &there).await.unwrap_err();
        assert_eq!((failure.reason, failure.retry), (reason, Retry::NeverWritten), "{failure}");
        assert!(failure.cause.contains(word) && failure.cause.contains("192.0.2.1:443"), "{failure}");
    }
}

/// Aim: a session is resumed under the same name and roots only, whatever else is carried; equal content is the same server.
#[tokio::test]
async fn sessions_never_cross_names_or_roots() {
    let (public, other, client) = (Authority::new("public"), Authority::new("other"), Client::new());
    let there = server(&public, &["http/1.1"], &TLS13);
    let resumed = async |named: &Arc<Named>, carries| client.call(named, carries, &there).await.unwrap().1;
    let by_name = named("id.example", &public);
    assert!(!resumed(&by_name, Carries::H1).await);
    assert!(resumed(&by_name, Carries::H1).await);
    assert!(resumed(&named("id.example", &public), Carries::Tcp).await);
    assert!(!resumed(&named("192.0.2.1", &public), Carries::H1).await);
    let more = [public.roots(), other.roots()].concat().iter().map(|root| root.to_vec()).collect();
    assert!(!resumed(&Arc::new(Named::new("id.example", Roots::Given(more)).unwrap()), Carries::H1).await);
}
