//! Who must not get in by TLS: every wrong way to prove oneself at a Strict port, with the answer given and its cost (docs/hostile.md, TLS).

use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::*;
use crate::ground::limits::HANDSHAKE_WAIT;
use crate::tls::{Anybody, provider};

type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A client that takes whoever answers: what is tried here is what the server does.
fn config(shown: Option<Shown>, version: &'static SupportedProtocolVersion) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match shown {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"mw-h1".to_vec()];
    config
}

fn name() -> ServerName<'static> {
    ServerName::try_from("catalog.shop").unwrap()
}

/// What the server's side says of a handshake.
async fn cause(world: &World, config: ClientConfig) -> String {
    let (near, far) = pipe();
    let connecting = async {
        // Holds the connection open until the server has judged.
        let connected = TlsConnector::from(Arc::new(config)).connect(name(), near).await;
        if let Ok(mut stream) = connected {
            let _ = stream.read(&mut [0]).await;
        }
    };
    let ((), accepted) = tokio::join!(connecting, async {
        let accepted = world.server.tls.accept(crate::io::Rewound::new(bytes::Bytes::new(), far)).await;
        accepted.map(|accepted| accepted.peer.identity.to_string()).map_err(|failure| failure.cause)
    });
    accepted.unwrap_or_else(|cause| cause)
}

/// What comes of a request behind such a handshake at the whole proxy: what the client reads, and how long it took.
async fn request(world: &mut World, config: ClientConfig) -> (String, Duration) {
    let began = Instant::now();
    let mut read = Vec::new();
    if let Ok(mut stream) = TlsConnector::from(Arc::new(config)).connect(name(), world.dial_server()).await {
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let _ = stream.flush().await;
        let _ = stream.read_to_end(&mut read).await;
    }
    (String::from_utf8_lossy(&read).into_owned(), began.elapsed())
}

/// Every wrong certificate, and a part of what the server says of it.
fn wrong(authority: &Authority, other: &Authority) -> Vec<(&'static str, Shown, &'static str)> {
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let uri = |text: &str| vec![SanType::URI(text.try_into().unwrap())];
    let dated = |from, to| authority.leaf(&uri(FRONTEND), "frontend", from, to);
    let named = |text: &str| authority.leaf_with_uris(&[text.as_bytes()]);
    let deep = (0..7).fold(authority.below("0"), |above, number| above.below(&format!("{}", number + 1)));
    let mut long = authority.shaped(FRONTEND, |_| {});
    long.0.extend((0..80).map(|_| CertificateDer::from(vec![0x30; 1000])));
    let mut many = other.below("x").shaped(FRONTEND, |_| {});
    // Sixty authorities of one name, none of which has signed: each is tried, up to a bound.
    many.0.truncate(1);
    many.0.extend((0..60).map(|_| other.below("x").shaped(FRONTEND, |_| {}).0.remove(1)));
    let dns = authority.shaped(FRONTEND, |params| params.subject_alt_names = vec![SanType::DnsName("frontend.shop".try_into().unwrap())]);
    vec![
        ("expired", dated(now - hour, now - Duration::from_secs(60)), "expired"),
        ("not yet valid", dated(now + Duration::from_secs(60), now + hour), "not valid yet"),
        ("another authority", other.shaped(FRONTEND, |_| {}), "UnknownIssuer"),
        ("another trust domain", authority.shaped("spiffe://other.local/ns/shop/sa/frontend", |_| {}), "nor of one that it federates with"),
        (
            "for servers only",
            authority.shaped(FRONTEND, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "is not for calls",
        ),
        (
            "for code only",
            authority.shaped(FRONTEND, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
            "is not for calls",
        ),
        (
            "an authority",
            authority.shaped(FRONTEND, |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            "the certificate of an authority",
        ),
        ("a chain of 80 kB", long, "TooLarge"),
        ("eight authorities", deep.shaped(FRONTEND, |_| {}), "UnknownIssuer|MaximumPathDepthExceeded"),
        ("sixty of one name", many, "UnknownIssuer|BadSignature|MaximumSignatureChecksExceeded"),
        ("two URIs", authority.leaf_with_uris(&[FRONTEND.as_bytes(), CATALOG.as_bytes()]), "2 URI names"),
        ("the same twice", authority.leaf_with_uris(&[FRONTEND.as_bytes(), FRONTEND.as_bytes()]), "2 URI names"),
        ("a DNS name instead", dns, "0 URI names"),
        ("no UTF-8", authority.leaf_with_uris(&[b"spiffe://cluster.local/ns/shop/sa/\xff"]), "not UTF-8"),
        ("a trailing dot", named("spiffe://cluster.local./ns/shop/sa/frontend"), "nor of one that it federates with"),
        ("a trailing slash", named("spiffe://cluster.local/ns/shop/sa/frontend/"), "is not an identity"),
        ("capitals in the domain", named("spiffe://Cluster.local/ns/shop/sa/frontend"), "is not an identity"),
        ("capitals in the scheme", named("SPIFFE://cluster.local/ns/shop/sa/frontend"), "is not an identity"),
        ("capitals in the path", named("spiffe://cluster.local/NS/shop/sa/frontend"), "is not an identity"),
        ("letters that look alike", named("spiffe://cluster.local/ns/shop/sa/fr\u{43e}ntend"), "is not an identity"),
        ("percent signs", named("spiffe://cluster.local/ns/shop/sa/front%65nd"), "is not an identity"),
        ("a path that climbs", named("spiffe://cluster.local/ns/../sa/frontend"), "is not an identity"),
        ("a port", named("spiffe://cluster.local:443/ns/shop/sa/frontend"), "is not an identity"),
        ("a user", named("spiffe://x@cluster.local/ns/shop/sa/frontend"), "is not an identity"),
        ("a query", named("spiffe://cluster.local/ns/shop/sa/frontend?x"), "is not an identity"),
        ("a NUL", named("spiffe://cluster.local/ns/shop/sa/frontend\0"), "is not an identity"),
        ("nothing", named(""), "is not an identity"),
    ]
}

#[test]
fn nobody_gets_in_by_a_wrong_certificate() {
    // Aim: each of them ends in the handshake: the application never hears of it, the client reads nothing, the server's side says why,
    // and no judgement takes long.
    run(|| async {
        let mut world = World::new(Setup::default());
        let other = Authority::new("other");
        let mut unsaid = Vec::new();
        for (case, shown, why) in wrong(&world.authority, &other) {
            let began = std::time::Instant::now();
            let said = cause(&world, config(Some((shown.0.clone(), shown.1.clone_key())), &TLS13)).await;
            if !why.split('|').any(|why| said.contains(why)) {
                unsaid.push(format!("{case}: wanted `{why}` in `{said}`"));
            }
            assert!(began.elapsed() < Duration::from_secs(5), "{case}: {:?}", began.elapsed());
            let (read, lasted) = request(&mut world, config(Some(shown), &TLS13)).await;
            assert_eq!(read, "", "{case}");
            assert!(lasted < HANDSHAKE_WAIT, "{case}: {lasted:?}");
        }
        assert!(unsaid.is_empty(), "{}", unsaid.join("\n"));
        let good = world.authority.shaped(FRONTEND, |_| {});
        assert_eq!(cause(&world, config(Some(good), &TLS13)).await, FRONTEND, "the same client with a good certificate gets in");
        assert!(world.applications.try_recv().is_err());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((world.server.guests.inbound.open(), world.server.bonds.held()), (0, 0), "nothing is left of them");
    });
}

#[test]
fn nobody_gets_in_by_another_way_of_speaking() {
    // Aim: without a certificate, by TLS 1.2 (and so by renegotiation, which later versions do not have), by early data, by plaintext, and
    // by bytes that are no TLS: closed, with nothing of the application's.
    run(|| async {
        let mut world = World::new(Setup::default());
        for (shown, version, why) in
            [(None, &TLS13, "sent no certificate"), (Some(world.authority.shaped(FRONTEND, |_| {})), &TLS12, "TLS")]
        {
            let said = cause(&world, config(shown.as_ref().map(|(chain, key)| (chain.clone(), key.clone_key())), version)).await;
            assert!(said.contains(why), "wanted `{why}` in `{said}`");
            assert_eq!(request(&mut world, config(shown, version)).await.0, "");
        }
        let record = |kind: u8, length: u16, body: &[u8]| [&[kind, 3, 3][..], &length.to_be_bytes(), body].concat();
        for (case, bytes) in [
            ("plaintext", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec()),
            ("HTTP/2 in plaintext", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
            ("a record of zeros", record(22, 100, &[0; 100])),
            ("a hello of nothing", record(22, 4, &[1, 0, 0, 0])),
            ("a hello that is too long", record(22, 0x4000, &[1, 0xff, 0xff, 0xff].repeat(0x1000))),
            ("a record that is too long", record(22, 0xffff, &[1; 0xffff])),
            ("an alert", record(21, 2, &[2, 40])),
            ("data at once", record(23, 100, &[7; 100])),
            ("noise", (0..9000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect()),
        ] {
            let mut socket = world.dial_server();
            let began = Instant::now();
            let _ = socket.write_all(&bytes).await;
            let _ = socket.shutdown().await;
            let mut read = Vec::new();
            let _ = socket.read_to_end(&mut read).await;
            // An alert at most.
            assert!(read.len() < 16, "{case}: {read:?}");
            assert!(began.elapsed() <= HANDSHAKE_WAIT, "{case}: {:?}", began.elapsed());
        }
        assert!(world.applications.try_recv().is_err());
        tokio::time::sleep(HANDSHAKE_WAIT).await;
        assert_eq!(world.server.guests.inbound.open(), 0);
    });
}

#[test]
fn early_data_is_never_taken() {
    // Aim: a session that is resumed brings no bytes along that somebody could send again: no ticket allows for them.
    run(|| async {
        let world = World::new(Setup::default());
        let mut config = config(Some(world.authority.shaped(FRONTEND, |_| {})), &TLS13);
        config.enable_early_data = true;
        let config = Arc::new(config);
        for round in 0..2 {
            let (near, far) = pipe();
            let mut offered = false;
            let connector = TlsConnector::from(Arc::clone(&config));
            let connecting = connector.connect_with(name(), near, |client| offered = client.early_data().is_some());
            let accepting = world.server.tls.accept(crate::io::Rewound::new(bytes::Bytes::new(), far));
            let (connected, accepted) = tokio::join!(connecting, accepting);
            let (mut stream, mut accepted) = (connected.unwrap(), accepted.unwrap());
            assert_eq!(accepted.facts.resumed, round > 0);
            accepted.stream.write_all(b"x").await.unwrap();
            accepted.stream.flush().await.unwrap();
            stream.read_exact(&mut [0]).await.unwrap();
            assert!(!offered && !stream.get_ref().1.is_early_data_accepted());
        }
    });
}

#[test]
fn a_slow_handshake_is_given_up() {
    // Aim: who begins a handshake and does not end it keeps a place for a bounded time, whether it says nothing more or a byte at a time.
    run(|| async {
        let world = World::new(Setup::default());
        let began = Instant::now();
        let mut silent = world.dial_server();
        write(&mut silent, "\x16\x03\x01\x02\0").await;
        let mut dripping = world.dial_server();
        let drips = async {
            write(&mut dripping, "\x16\x03\x01\x02\0\x01\0\x01\x7f").await;
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                if dripping.write_all(&[0]).await.is_err() {
                    return began.elapsed();
                }
            }
        };
        let (read, dripped) = tokio::join!(rest(&mut silent), drips);
        assert!(read.len() < 16 && dripped <= HANDSHAKE_WAIT + Duration::from_secs(2), "{dripped:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(world.server.guests.inbound.open(), 0);
    });
}
