//! What a certificate authority asks at an edge (RFC 8555, section 8.3; RFC 8737).

use engine::model::{Challenge, OwnCertificate};
use rustls::version::{TLS12, TLS13};

use super::tls::{cell, certificate, client, connect, https, serve_chains, table_of, terms};
use super::*;

/// These are pending at the client's proxy.
fn pending(world: &World, all: Vec<(String, Challenge)>) {
    world.client_means.snapshots.load().challenges.publish(all.into_iter().collect());
}

fn answer(host: &str, token: &str, text: &'static str) -> (String, Challenge) {
    (proto::names::challenge_answer(host, token), Challenge::Answer(::bytes::Bytes::from_static(text.as_bytes())))
}

fn shown(authority: &Authority, host: &str) -> (String, Challenge) {
    let (chain, key) = authority.shaped("spiffe://outside/server", |params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName(host.try_into().unwrap())];
        params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(&[7; 32])];
    });
    (proto::names::challenge_certificate(host), Challenge::Certificate(Arc::new(OwnCertificate { chain, key, ocsp: Vec::new() })))
}

#[test]
fn a_pending_token_is_answered_before_any_rule() {
    // Aim: the token's text, to GET and HEAD at its host, whatever else is served; other tokens, other methods, other hosts (which may be another
    // tenant's) and a token whose time is over go to the routes.
    run(|| async {
        let mut world = World::new(Setup::default());
        pending(&world, vec![answer("any.example", "tok-en_1", "tok-en_1.hash")]);
        let asked_at = async |world: &World, host: &str, method: &str, path: &str| {
            let mut client = world.knock();
            write(&mut client, &format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")).await;
            client
        };
        let asked = async |world: &World, method: &str, path: &str| asked_at(world, "any.example", method, path).await;
        let path = "/.well-known/acme-challenge/tok-en_1";
        let told = rest(&mut asked(&world, "GET", path).await).await;
        assert!(told.starts_with("HTTP/1.1 200 OK\r\n") && told.ends_with("\r\n\r\ntok-en_1.hash"), "{told}");
        assert!(told.contains("content-type: application/octet-stream\r\n") && told.contains("cache-control: no-store\r\n"), "{told}");
        let told = rest(&mut asked(&world, "HEAD", path).await).await;
        assert!(told.starts_with("HTTP/1.1 200 OK\r\n") && told.ends_with("\r\n\r\n"), "{told}");
        assert!(world.applications.try_recv().is_err());
        for (method, path) in
            [("GET", "/.well-known/acme-challenge/other"), ("GET", "/.well-known/acme-challenge/"), ("POST", path), ("GET", "/")]
        {
            let _client = asked(&world, method, path).await;
            let request = head(&mut world.application().await).await;
            assert!(request.starts_with(&format!("{method} {path} HTTP/1.1\r\n")), "{request}");
        }
        let told = rest(&mut asked_at(&world, "ANY.example:8080", "GET", path).await).await;
        assert!(told.ends_with("\r\n\r\ntok-en_1.hash"), "{told}");
        let _client = asked_at(&world, "other.example", "GET", path).await;
        assert!(head(&mut world.application().await).await.starts_with("GET /.well-known/"), "another host's token is the route's");
        pending(&world, Vec::new());
        let _client = asked(&world, "GET", path).await;
        assert!(head(&mut world.application().await).await.starts_with("GET /.well-known/"));
    });
}

#[test]
fn an_authority_is_shown_its_certificate_and_nothing_else() {
    // Aim: who offers `acme-tls/1` alone for a pending name gets that certificate and a goodbye, in both versions of TLS, at a port that serves the
    // name otherwise and for a name that nobody else has here; without one that is pending, and with other protocols beside it, everything is as
    // ever; the listener's own clients notice nothing.
    run(|| async {
        let world = World::new(Setup::default());
        let (public, own) = (Authority::new("public"), Authority::new("own"));
        let served = cell("tls/shop/a", Some(certificate(&public, &["a.example"])));
        serve_chains(&world, vec![("a.example", https("a", terms(&served), &table_of(&world)))]);
        let all = vec![shown(&own, "a.example"), shown(&own, "b.example")];
        let leaf_of = |name: &str| match all.iter().find(|(known, _)| known.ends_with(name)) {
            Some((_, Challenge::Certificate(own))) => own.chain[0].clone(),
            _ => panic!("no certificate"),
        };
        pending(&world, all.clone());
        for versions in [&[&TLS13][..], &[&TLS12]] {
            for name in ["a.example", "b.example"] {
                let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(crate::tls::provider()))
                    .with_protocol_versions(versions)
                    .unwrap()
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(crate::tls::Anybody))
                    .with_no_client_auth();
                config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
                let mut stream = connect(&world.client, &Arc::new(config), name).await.unwrap();
                let state = stream.get_ref().1;
                assert_eq!(state.alpn_protocol(), Some(&b"acme-tls/1"[..]));
                assert_eq!(state.peer_certificates().unwrap(), [leaf_of(name)]);
                let mut after = Vec::new();
                stream.read_to_end(&mut after).await.unwrap();
                assert!(after.is_empty(), "{after:?}");
            }
        }
        let usual = connect(&world.client, &Arc::new(client(&["http/1.1"])), "a.example").await.unwrap();
        assert_ne!(usual.get_ref().1.peer_certificates().unwrap()[0], leaf_of("a.example"));
        let both = connect(&world.client, &Arc::new(client(&["http/1.1", "acme-tls/1"])), "a.example").await.unwrap();
        assert_eq!(both.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let authority = Arc::new(client(&["acme-tls/1"]));
        assert!(connect(&world.client, &authority, "c.example").await.unwrap_err().to_string().contains("UnrecognisedName"));
        pending(&world, Vec::new());
        assert!(connect(&world.client, &authority, "b.example").await.unwrap_err().to_string().contains("UnrecognisedName"));
        assert!(connect(&world.client, &authority, "a.example").await.unwrap_err().to_string().contains("NoApplicationProtocol"));
    });
}
