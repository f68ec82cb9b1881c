use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use engine::failure::{Reason, Retry};
use engine::model::{Revocation, Revoked, Trust};
use rcgen::SanType;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use crate::io::{Listening, Network, Rewound, Stream, bind};

use super::testing::{Authority, Party, party};
use super::*;

const FRONTEND: &str = "spiffe://cluster.local/ns/shop/sa/frontend";
const CATALOG: &str = "spiffe://cluster.local/ns/shop/sa/catalog";

type Pair = (Result<TlsConnected<DuplexStream>, Failure>, Result<TlsAccepted<DuplexStream>, Failure>);

/// One handshake, with a byte each way so that tickets arrive.
async fn pair(client: &Party, server: &Party, expected: &str, carries: Carries) -> Pair {
    let (near, far) = duplex(64 << 10);
    let expected = Arc::new(expected.parse().unwrap());
    let address = "10.77.0.9:80".parse().unwrap();
    let (mut connected, mut accepted) = tokio::join!(client.tls.connect(&expected, address, carries, near), server.tls.accept(far));
    if let (Ok(connected), Ok(accepted)) = (&mut connected, &mut accepted) {
        accepted.stream.write_all(b"x").await.unwrap();
        accepted.stream.flush().await.unwrap();
        connected.stream.read_exact(&mut [0]).await.unwrap();
    }
    (connected, accepted)
}

/// Aim: two proxies prove themselves to each other with the post-quantum group, and each learns whom it speaks to and what is carried.
#[tokio::test]
async fn a_pair_proves_itself() {
    let authority = Authority::new("root");
    let (client, server) = (party(&authority, FRONTEND, "frontend"), party(&authority, CATALOG, "catalog-v1"));
    for (carries, alpn) in [(Carries::H1, "mw-h1"), (Carries::H2, "mw-h2"), (Carries::Tcp, "mw-tcp")] {
        let (connected, accepted) = pair(&client, &server, CATALOG, carries).await;
        let (connected, accepted) = (connected.unwrap(), accepted.unwrap());
        assert_eq!((accepted.carries, accepted.alpn), (Some(carries), Some(alpn)));
        assert_eq!((accepted.peer.identity.to_string().as_str(), &*accepted.peer.workload), (FRONTEND, "frontend"));
        assert_eq!((connected.peer.identity.to_string().as_str(), &*connected.peer.workload), (CATALOG, "catalog-v1"));
        assert_eq!((connected.facts.version, connected.facts.group), ("TLSv1.3", "X25519MLKEM768"));
        assert_eq!(connected.peer.certificate_hash_hex.len(), 64);
    }
}

/// Aim: the second connection resumes, also when it carries something else; a rotation ends resumption once and raises the generation.
#[tokio::test]
async fn sessions_resume_until_the_leaf_changes() {
    let authority = Authority::new("root");
    let (client, server) = (party(&authority, FRONTEND, "frontend"), party(&authority, CATALOG, "catalog"));
    let resumed = async |carries| pair(&client, &server, CATALOG, carries).await.0.unwrap().facts.resumed;
    assert!(!resumed(Carries::H1).await);
    assert!(resumed(Carries::H1).await);
    assert!(resumed(Carries::Tcp).await);
    client.credentials.publish(authority.issue(FRONTEND, "frontend"));
    assert_eq!(client.tls.generation(), 2);
    assert!(!resumed(Carries::H1).await);
    assert!(resumed(Carries::H1).await);
    client.trust.publish([authority.roots(), Authority::new("next").roots()].concat()).unwrap();
    assert!(!resumed(Carries::H1).await);
}

/// Aim: a server whose certificate is revoked and replaced is met in full at the first attempt: no ticket that rests on the revoked one is tried.
#[tokio::test]
async fn no_session_rests_on_a_revoked_certificate() {
    let authority = Authority::new("root");
    let (client, server) = (party(&authority, FRONTEND, "frontend"), party(&authority, CATALOG, "catalog"));
    for _ in 0..2 {
        assert!(pair(&client, &server, CATALOG, Carries::H1).await.0.is_ok());
    }
    let mut trust = Trust::of(authority.roots());
    let revocation = Revocation { until_secs: None, object: "meshwright-system/stolen".into() };
    let serial = proto::identity::serial(&server.credentials.current().unwrap().serial).to_owned();
    let serials = [(serial, revocation)].into();
    trust.revoked = Arc::new(Revoked { serials, ..Revoked::default() });
    client.trust.believe(&trust).unwrap();
    assert!(pair(&client, &server, CATALOG, Carries::H1).await.0.is_err());
    server.credentials.publish(authority.issue(CATALOG, "catalog"));
    let connected = pair(&client, &server, CATALOG, Carries::H1).await.0.unwrap();
    assert!(!connected.facts.resumed);
}

/// Aim: connections one after another and many at once resume; most of them bring no ticket, and the stock stays within its bound.
#[tokio::test]
async fn opaque_connections_fetch_tickets_in_batches() {
    let authority = Authority::new("root");
    let (client, server) = (party(&authority, FRONTEND, "frontend"), party(&authority, CATALOG, "catalog"));
    let name = ServerName::IpAddress("10.77.0.9".parse::<std::net::IpAddr>().unwrap().into());
    let mut fetched = 0;
    for number in 0..40 {
        let before = client.tls.sessions.stock(&name);
        let resumed = pair(&client, &server, CATALOG, Carries::Tcp).await.0.unwrap().facts.resumed;
        assert_eq!(resumed, number > 0, "connection {number}");
        fetched += usize::from(client.tls.sessions.stock(&name) >= before);
        assert!(client.tls.sessions.stock(&name) <= 16);
    }
    assert!(fetched <= 40 / 7 + 2, "{fetched} of 40 connections fetched tickets");
    while client.tls.sessions.stock(&name) < 6 {
        assert!(pair(&client, &server, CATALOG, Carries::Tcp).await.0.unwrap().facts.resumed);
    }
    let at_once = (0..6).map(|_| pair(&client, &server, CATALOG, Carries::Tcp));
    assert!(futures::future::join_all(at_once).await.into_iter().all(|pair| pair.0.unwrap().facts.resumed));
}

/// Aim: over the kernel's sockets each direction comes whole and ends by itself, with TLS's own word for it, also to a reader that is slow.
#[tokio::test]
async fn each_direction_says_goodbye() {
    let authority = Authority::new("root");
    let (client, server) = (party(&authority, FRONTEND, "frontend"), party(&authority, CATALOG, "catalog"));
    let mut listening = Listening::adopt(bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
    let address = listening.local_address().unwrap();
    let network = Network::Kernel { mark: None };
    let (near, far) = tokio::join!(network.connect(address), listening.accept());
    let (near, far) = (near.unwrap(), Rewound::new(Bytes::new(), far.unwrap().socket));
    let expected = Arc::new(CATALOG.parse().unwrap());
    let (near, far) = tokio::join!(client.tls.connect(&expected, address, Carries::Tcp, near), server.tls.accept(far));
    let mut near = Stream::opened(near.unwrap().stream);
    let mut far = Stream::accepted(far.unwrap().stream);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let up = async {
        near.write_all(&bytes).await.unwrap();
        near.shutdown().await.unwrap();
        let mut read = Vec::new();
        near.read_to_end(&mut read).await.unwrap();
        assert!(read == bytes, "{} bytes came down", read.len());
    };
    let down = async {
        let (mut read, mut piece) = (Vec::new(), [0; 1000]);
        loop {
            tokio::task::yield_now().await;
            match far.read(&mut piece).await.unwrap() {
                0 => break,
                count => read.extend_from_slice(&piece[..count]),
            }
        }
        assert!(read == bytes, "{} bytes came up", read.len());
        far.write_all(&bytes).await.unwrap();
        far.shutdown().await.unwrap();
    };
    tokio::join!(up, down);
}

/// Aim: a session outlives neither side's leaf: after the server rotated and its old leaf ended, a full handshake opens the connection.
#[tokio::test]
async fn a_session_ends_with_the_leaf_it_rests_on() {
    let authority = Authority::new("root");
    let (client, server) = (party(&authority, FRONTEND, "frontend"), party(&authority, CATALOG, "catalog"));
    let now = SystemTime::now();
    server.credentials.publish(authority.issue_for(CATALOG, "catalog", now - Duration::from_secs(5), now + Duration::from_secs(60)));
    assert!(!pair(&client, &server, CATALOG, Carries::H1).await.0.unwrap().facts.resumed);
    server.credentials.publish(authority.issue_for(CATALOG, "catalog", now, now + Duration::from_secs(3600)));
    client.time.advance(Duration::from_secs(120));
    server.time.advance(Duration::from_secs(120));
    assert!(!pair(&client, &server, CATALOG, Carries::H1).await.0.unwrap().facts.resumed);
}

/// Aim: every wrong peer is refused with the right reason, and nothing was written.
#[tokio::test]
async fn wrong_peers_are_refused() {
    let (authority, other) = (Authority::new("root"), Authority::new("other"));
    let client = party(&authority, FRONTEND, "frontend");
    let now = SystemTime::now();
    let server = |credential| {
        let server = party(&authority, CATALOG, "catalog");
        server.credentials.publish(credential);
        server
    };
    let expired = authority.issue_for(CATALOG, "catalog", now - Duration::from_secs(3600), now - Duration::from_secs(60));
    let cases = [
        ("someone else", server(authority.issue("spiffe://cluster.local/ns/shop/sa/checkout", "x")), Reason::IdentityMismatch),
        ("another trust domain", server(authority.issue("spiffe://other.local/ns/shop/sa/catalog", "x")), Reason::IdentityMismatch),
        ("another authority", server(other.issue(CATALOG, "catalog")), Reason::TlsFailed),
        ("expired", server(expired), Reason::TlsFailed),
    ];
    for (case, server, reason) in cases {
        let failure = pair(&client, &server, CATALOG, Carries::H1).await.0.unwrap_err();
        assert_eq!((failure.reason, failure.retry), (reason, Retry::NeverWritten), "{case}: {failure}");
        assert!(failure.cause.contains("10.77.0.9:80"), "{case}: {failure}");
    }
}

/// Aim: the accepting side refuses strangers too, and says why.
#[tokio::test]
async fn wrong_callers_are_refused() {
    let (authority, other) = (Authority::new("root"), Authority::new("other"));
    let server = party(&authority, CATALOG, "catalog");
    let stranger = party(&authority, FRONTEND, "frontend");
    stranger.credentials.publish(other.issue(FRONTEND, "frontend"));
    assert_eq!(pair(&stranger, &server, CATALOG, Carries::H1).await.1.unwrap_err().reason, Reason::TlsFailed);
    let foreign = party(&authority, FRONTEND, "frontend");
    foreign.credentials.publish(authority.issue("spiffe://other.local/ns/a/sa/b", "b"));
    let (near, far) = duplex(64 << 10);
    let expected = Arc::new(CATALOG.parse().unwrap());
    let bare = Tls::new(Arc::clone(&foreign.credentials), Arc::new(TrustCell::default()), Arc::clone(&foreign.time) as _).unwrap();
    let (connected, accepted) =
        tokio::join!(bare.connect(&expected, "10.77.0.9:1".parse().unwrap(), Carries::H1, near), server.tls.accept(far));
    assert!(connected.unwrap_err().cause.contains("no trust bundle yet"));
    assert_eq!(accepted.unwrap_err().reason, Reason::TlsFailed);
}

const PARTNER: &str = "spiffe://partner.example/ns/shop/sa/frontend";

/// Makes a party believe another trust domain by the roots of an authority.
fn federate(party: &Party, own: &Authority, domain: &str, partner: &Authority) {
    let mut trust = Trust::of(own.roots());
    trust.federated = [(domain.to_owned(), partner.roots())].into();
    party.trust.believe(&trust).unwrap();
}

/// Aim: federation: the other authority is believed for its own trust domain, on both sides, and for no other: not for ours, not for a third;
/// nor is ours for the other's. Taken back, nobody of it is believed any more, by no session either.
#[tokio::test]
async fn an_authority_is_believed_for_its_own_trust_domain() {
    let (own, partner) = (Authority::new("root"), Authority::new("partner"));
    let stranger = |issuer: &Authority, identity: &str| {
        let stranger = party(&partner, PARTNER, "frontend");
        stranger.credentials.publish(issuer.issue(identity, "frontend"));
        // Whatever the stranger believes, ours decides.
        let other = if identity.starts_with("spiffe://cluster.local/") { "partner.example" } else { "cluster.local" };
        let mut trust = Trust::of([partner.roots(), own.roots()].concat());
        trust.federated = [(other.to_owned(), own.roots())].into();
        stranger.trust.believe(&trust).unwrap();
        stranger
    };
    let ours = party(&own, CATALOG, "catalog");
    federate(&ours, &own, "partner.example", &partner);
    for (case, caller, believed) in [
        ("the partner for itself", stranger(&partner, PARTNER), true),
        ("the partner for us", stranger(&partner, FRONTEND), false),
        ("the partner for a third", stranger(&partner, "spiffe://third.example/ns/shop/sa/frontend"), false),
        ("the partner for something below its name", stranger(&partner, "spiffe://a.partner.example/ns/shop/sa/frontend"), false),
        ("we for the partner", stranger(&own, PARTNER), false),
        ("we for ourselves", stranger(&own, FRONTEND), true),
    ] {
        let identity = caller.credentials.current().unwrap().identity.clone();
        let (_, accepted) = pair(&caller, &ours, CATALOG, Carries::H1).await;
        assert_eq!(accepted.as_ref().map(|accepted| accepted.peer.identity.clone()).ok(), believed.then(|| identity.clone()), "{case}");
        let (connected, _) = pair(&ours, &caller, &identity.to_string(), Carries::H1).await;
        assert_eq!(connected.as_ref().map(|connected| connected.peer.identity.clone()).ok(), believed.then_some(identity), "{case}");
    }
    let caller = stranger(&partner, PARTNER);
    let wrong = pair(&ours, &caller, FRONTEND, Carries::H1).await.0.unwrap_err();
    assert_eq!(wrong.reason, Reason::IdentityMismatch, "it is met only where it is meant: {wrong}");
    assert!(pair(&caller, &ours, CATALOG, Carries::H1).await.1.is_ok());
    ours.trust.believe(&Trust::of(own.roots())).unwrap();
    let refused = pair(&caller, &ours, CATALOG, Carries::H1).await.1.unwrap_err();
    assert_eq!(refused.reason, Reason::IdentityMismatch, "{refused}");
    assert!(refused.cause.contains("nor of one that it federates with"), "{refused}");
}

/// Aim: a session opens nothing for another identity: neither when somebody else answers at the address where it was made, nor when a
/// ticket comes back that another server made; a full handshake follows, in which the right peer proves itself.
#[tokio::test]
async fn sessions_never_cross_identities() {
    let authority = Authority::new("root");
    let (client, catalog) = (party(&authority, FRONTEND, "frontend"), party(&authority, CATALOG, "catalog"));
    let checkout_identity = "spiffe://cluster.local/ns/shop/sa/checkout";
    let checkout = party(&authority, checkout_identity, "checkout");
    assert!(!pair(&client, &catalog, CATALOG, Carries::H1).await.0.unwrap().facts.resumed);
    // The same address now belongs to somebody else, who is called by the right name, and by the old one.
    let connected = pair(&client, &checkout, checkout_identity, Carries::H1).await.0.unwrap();
    assert!(!connected.facts.resumed && connected.peer.identity.to_string() == checkout_identity);
    assert_eq!(pair(&client, &checkout, CATALOG, Carries::H1).await.0.unwrap_err().reason, Reason::IdentityMismatch);
    assert!(pair(&client, &catalog, CATALOG, Carries::H1).await.0.is_ok());
    // Another instance of the same workload cannot read the tickets of the first, and is met in full.
    let twin = party(&authority, CATALOG, "catalog");
    let connected = pair(&client, &twin, CATALOG, Carries::H1).await.0.unwrap();
    assert!(!connected.facts.resumed && connected.peer.identity.to_string() == CATALOG);
}

/// Aim: sessions survive a rotation of roots by a full handshake, in every step: the next root beside the old one, leaves of the next one,
/// the old one gone; nobody is refused on the way.
#[tokio::test]
async fn sessions_survive_a_rotation_of_roots() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let (client, server) = (party(&old, FRONTEND, "frontend"), party(&old, CATALOG, "catalog"));
    let resumed = async |carries| pair(&client, &server, CATALOG, carries).await.0.unwrap().facts.resumed;
    let both = [old.roots(), new.roots()].concat();
    assert!(!resumed(Carries::H1).await && resumed(Carries::H1).await);
    for (party, roots) in [(&client, &both), (&server, &both)] {
        party.trust.publish(roots.clone()).unwrap();
        assert!([resumed(Carries::H1).await, resumed(Carries::H1).await][1]);
    }
    server.credentials.publish(new.issue(CATALOG, "catalog"));
    assert!([resumed(Carries::H1).await, resumed(Carries::H1).await][1]);
    client.credentials.publish(new.issue(FRONTEND, "frontend"));
    assert!([resumed(Carries::H1).await, resumed(Carries::H1).await][1]);
    for party in [&server, &client] {
        party.trust.publish(new.roots()).unwrap();
        assert!([resumed(Carries::H1).await, resumed(Carries::H1).await][1]);
    }
}

/// Aim: before the first certificate a call fails as `config_pending`.
#[tokio::test]
async fn no_certificate_is_pending() {
    let authority = Authority::new("root");
    let client = party(&authority, FRONTEND, "frontend");
    let none = Tls::new(Arc::new(CredentialCell::default()), Arc::clone(&client.trust), Arc::clone(&client.time) as _).unwrap();
    let (near, _far) = duplex(1024);
    let failure = none.connect(&client.identity, "10.77.0.9:1".parse().unwrap(), Carries::H1, near).await.unwrap_err();
    assert_eq!(failure.reason, Reason::ConfigPending);
}

/// Aim: a stock client (`h2`, mutual TLS) is accepted as foreign, its protocol kept.
#[tokio::test]
async fn foreign_alpn_is_kept() {
    let authority = Authority::new("root");
    let (client, server) = (party(&authority, FRONTEND, "frontend"), party(&authority, CATALOG, "catalog"));
    let name = ServerName::try_from("catalog.shop").unwrap();
    let config = client.tls.client_config(&Arc::new(CATALOG.parse().unwrap()), Carries::H2, &name).unwrap();
    let mut config = (*config).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (near, far) = duplex(64 << 10);
    let (_connected, accepted) = tokio::join!(TlsConnector::from(Arc::new(config)).connect(name, near), server.tls.accept(far));
    let accepted = accepted.unwrap();
    assert_eq!((accepted.carries, accepted.alpn), (None, Some("h2")));
}

/// Aim: what is no SPIFFE certificate is refused by name.
#[test]
fn leaves_are_read_strictly() {
    let authority = Authority::new("root");
    let now = SystemTime::now();
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    for (names, expected) in [
        (vec![], "0 URI names"),
        (vec![uri(FRONTEND), uri(CATALOG)], "2 URI names"),
        (vec![uri("https://example.com/")], "is not an identity"),
        (vec![SanType::DnsName("catalog.shop".try_into().unwrap())], "0 URI names"),
    ] {
        let (chain, _) = authority.leaf(&names, "x", now, now + Duration::from_secs(60));
        let error = read_peer(&chain[0]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(read_peer(&vec![1, 2, 3].into()).is_err());
}

/// Aim: the control plane is known by its SPIFFE identity under the given roots; a workload of the same authority is not believed.
#[tokio::test]
async fn only_the_control_plane_is_the_control_plane() {
    let (authority, other) = (Authority::new("root"), Authority::new("other"));
    let me = party(&authority, FRONTEND, "frontend");
    let control = "spiffe://cluster.local/ns/meshwright-system/sa/control";
    for (issuer, identity, works) in [
        (&authority, control, true),
        (&authority, CATALOG, false),
        (&other, control, false),
        (&authority, "spiffe://x/ns/meshwright-system/sa/control", false),
    ] {
        let time: Arc<dyn TimeProvider> = Arc::clone(&me.time) as _;
        let tls = ControlTls::new(authority.roots(), &me.credentials, &me.trust, &time).unwrap();
        let now = UnixTime::now();
        assert!(tls.pinned(&authority.root_hash_hex(), now) && !tls.pinned(&other.root_hash_hex(), now));
        let server = party(&authority, CATALOG, "catalog");
        server.credentials.publish(issuer.issue(identity, "control"));
        let (near, far) = duplex(64 << 10);
        let name = ServerName::try_from("10.77.0.1").unwrap();
        let (connected, _) = tokio::join!(TlsConnector::from(tls.config(true)).connect(name, near), server.tls.accept(far));
        assert_eq!(connected.is_ok(), works, "{identity}");
    }
}

/// Aim: a mesh may be of another trust domain by the time when a proxy comes back: a leaf that has ended says nothing of the control plane.
#[tokio::test]
async fn a_leaf_that_has_ended_speaks_for_no_trust_domain() {
    let authority = Authority::new("root");
    let me = party(&authority, FRONTEND, "frontend");
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    for (end, works) in [(now + hour, false), (now - Duration::from_secs(5), true)] {
        me.credentials.publish(authority.issue_for(FRONTEND, "frontend", now - hour, end));
        let time: Arc<dyn TimeProvider> = Arc::clone(&me.time) as _;
        let tls = ControlTls::new(authority.roots(), &me.credentials, &me.trust, &time).unwrap();
        let server = party(&authority, CATALOG, "catalog");
        server.credentials.publish(authority.issue("spiffe://x/ns/meshwright-system/sa/control", "control"));
        let (near, far) = duplex(64 << 10);
        let name = ServerName::try_from("10.77.0.1").unwrap();
        let (connected, _) = tokio::join!(TlsConnector::from(tls.config(false)).connect(name, near), server.tls.accept(far));
        assert_eq!(connected.is_ok(), works, "{end:?}");
    }
}

/// Aim: facts.md, SPIFFE: a URI name that is not UTF-8 counts as a URI name: beside a good one it makes two, alone it is no identity, and
/// it keeps the control plane's certificate from being judged by host name.
#[tokio::test]
async fn a_uri_name_that_is_not_utf8_is_a_uri_name() {
    let authority = Authority::new("root");
    let read = |uris: &[&[u8]]| read_peer(&authority.leaf_with_uris(uris).0[0]);
    assert_eq!(read(&[FRONTEND.as_bytes()]).unwrap().identity.to_string(), FRONTEND);
    let bad: &[u8] = b"spiffe://cluster.local/ns/shop/sa/\xff\xfe";
    for (uris, why) in
        [(&[FRONTEND.as_bytes(), bad][..], "2 URI names"), (&[bad, FRONTEND.as_bytes()], "2 URI names"), (&[bad], "not UTF-8")]
    {
        let error = read(uris).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let me = party(&authority, FRONTEND, "frontend");
    let time: Arc<dyn TimeProvider> = Arc::clone(&me.time) as _;
    let control = ControlTls::new(authority.roots(), &me.credentials, &me.trust, &time).unwrap();
    let server = party(&authority, CATALOG, "catalog");
    let (chain, key) = authority.leaf_with_uris(&[bad]);
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
    let certified = Arc::new(rustls::sign::CertifiedKey::new(chain, key));
    let mut config = (*server.tls.server).clone();
    config.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from((*certified).clone()));
    let (near, far) = duplex(64 << 10);
    let connecting = TlsConnector::from(control.config(true)).connect(ServerName::try_from("control.example").unwrap(), near);
    let (connected, _) = tokio::join!(connecting, TlsAcceptor::from(Arc::new(config)).accept(far));
    assert!(connected.unwrap_err().to_string().contains("not UTF-8"));
}

/// Aim: facts.md, SPIFFE: a TLS 1.3 client without a certificate finishes its handshake and may never see the alert, so the cause is told
/// by the server's side.
#[tokio::test]
async fn a_client_without_a_certificate_is_told_of_by_the_server() {
    let authority = Authority::new("root");
    let server = party(&authority, CATALOG, "catalog");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.roots().remove(0)).unwrap();
    let time: Arc<dyn TimeProvider> = Arc::clone(&server.time) as _;
    let verifier = ServerVerifier { verify: Arc::clone(&server.tls.verify), expected: Arc::new(CATALOG.parse().unwrap()) };
    let config = ClientConfig::builder_with_details(Arc::new(provider()), time)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let (near, far) = duplex(64 << 10);
    let connecting = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("catalog.shop").unwrap(), near);
    let (connected, accepted) = tokio::join!(connecting, server.tls.accept(far));
    assert!(connected.is_ok(), "its own side sees nothing wrong");
    let failure = accepted.unwrap_err();
    assert_eq!(failure.reason, Reason::TlsFailed);
    assert!(failure.cause.contains("sent no certificate"), "{failure}");
}

/// Aim: facts.md, SPIFFE: a private ALPN makes some strangers end the handshake, so `mw-*` is offered to mesh peers alone: the control
/// plane, the one other TLS server that a proxy calls, is offered `h2`.
#[test]
fn private_alpn_is_offered_to_mesh_peers_only() {
    let authority = Authority::new("root");
    let me = party(&authority, FRONTEND, "frontend");
    let time: Arc<dyn TimeProvider> = Arc::clone(&me.time) as _;
    let control = ControlTls::new(authority.roots(), &me.credentials, &me.trust, &time).unwrap();
    for with_leaf in [true, false] {
        assert_eq!(control.config(with_leaf).alpn_protocols, [b"h2"]);
    }
    let name = ServerName::try_from("catalog.shop").unwrap();
    for carries in [Carries::H1, Carries::H2, Carries::Tcp] {
        let config = me.tls.client_config(&Arc::new(CATALOG.parse().unwrap()), carries, &name).unwrap();
        assert_eq!(config.alpn_protocols, [carries.alpn().as_bytes()], "a peer that must prove an identity is a known one");
    }
}

/// Aim: facts.md, SPIFFE: OpenSSL 3.0 knows no X25519MLKEM768 and meets X25519 at once, so a server offers both, the hybrid first.
#[tokio::test]
async fn a_peer_without_the_hybrid_group_is_met() {
    let groups: Vec<NamedGroup> = provider().kx_groups.iter().map(|group| group.name()).collect();
    assert_eq!(groups[0], NamedGroup::X25519MLKEM768);
    let authority = Authority::new("root");
    let (client, server) = (party(&authority, FRONTEND, "frontend"), party(&authority, CATALOG, "catalog"));
    let mut old = provider();
    old.kx_groups.retain(|group| group.name() != NamedGroup::X25519MLKEM768);
    let tls = Tls { provider: Arc::new(old), ..Tls::new(client.credentials, client.trust, Arc::clone(&client.time) as _).unwrap() };
    let (near, far) = duplex(64 << 10);
    let expected = Arc::new(CATALOG.parse().unwrap());
    let (connected, accepted) =
        tokio::join!(tls.connect(&expected, "10.77.0.9:80".parse().unwrap(), Carries::H1, near), server.tls.accept(far));
    assert_eq!((connected.unwrap().facts.group, accepted.unwrap().facts.group), ("x25519", "x25519"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]
    /// Aim: no certificate makes its reader panic: bytes at random, and a real one cut and spoilt.
    #[test]
    fn any_certificate_is_survived(
        noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
        flips in proptest::collection::vec(proptest::prelude::any::<(u16, u8)>(), 1..4),
        cut in proptest::prelude::any::<u16>(),
    ) {
        static LEAF: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| Authority::new("root").roots()[0].to_vec());
        let mut spoilt = LEAF.clone();
        for (at, bits) in flips {
            let at = usize::from(at) % spoilt.len();
            spoilt[at] ^= bits;
        }
        let cut = usize::from(cut) % spoilt.len();
        for bytes in [&noise[..], &spoilt, &spoilt[..cut]] {
            let _ = read_peer(&CertificateDer::from(bytes.to_vec()));
        }
    }
}
