//! Backends that are no peers of the mesh and prove a name (BackendTLSPolicy).

use engine::model::{Named, PeerName, Roots, Secret};
use rustls::RootCertStore;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio_rustls::TlsAcceptor;

use super::tls::{cell, certificate, issued, put};
use super::*;
use crate::tls::provider;

/// The world whose edge meets its backend by these terms.
fn world(named: Named) -> World {
    world_of(named, Setup { meshed: false, endpoints: vec!["10.77.0.9:8443"], ..Setup::default() })
}

/// The same, of another backend.
fn world_of(named: Named, setup: Setup) -> World {
    let world = World::new(setup);
    let mut snapshot = client_snapshot(&world.setup, 2);
    let cluster = Arc::into_inner(cluster("shop/catalog:80", ClusterKind::Endpoints, &world.setup)).unwrap();
    let cluster = Arc::new(Cluster { tls: Some(Arc::new(named)), ..cluster });
    let table = table(Arc::new(Forward::to(Arc::default(), Target::Cluster(cluster))));
    snapshot.edges.insert(80, Arc::new(Edge { name: "edge/80".into(), port: Port::Http(table), clients: Arc::default(), content: 2 }));
    world.client_means.snapshots.publish(Arc::new(snapshot));
    world
}

fn given(authority: &Authority) -> Roots {
    Roots::Given(authority.roots().iter().map(|root| root.to_vec()).collect())
}

/// A backend with a certificate for these names; it may ask for one of that authority's.
fn backend(authority: &Authority, names: &[&str], clients: Option<&Authority>) -> Arc<ServerConfig> {
    let (chain, key) = issued(authority, names);
    let builder = ServerConfig::builder_with_provider(Arc::new(provider())).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        Some(clients) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(store(clients), Arc::new(provider())).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Asks once; the answer's head, and what the server was asked for by name.
async fn ask(world: &mut World, server: &Arc<ServerConfig>) -> (String, Option<String>) {
    let mut client = world.knock();
    write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    let (_, socket) = world.applications.recv().await.unwrap();
    let accepted = TlsAcceptor::from(Arc::clone(server)).accept(socket).await;
    let mut name = None;
    let mut held = None;
    if let Ok(mut stream) = accepted {
        name = stream.get_ref().1.server_name().map(str::to_owned);
        let mut seen = Vec::new();
        let mut byte = [0];
        while !seen.ends_with(b"\r\n\r\n") && stream.read(&mut byte).await.is_ok_and(|count| count == 1) {
            seen.push(byte[0]);
        }
        let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        let _ = stream.flush().await;
        held = Some(stream);
    }
    let answer = head(&mut client).await;
    drop(held);
    (answer, name)
}

#[test]
fn a_backend_must_prove_what_its_policy_says() {
    // Aim: its own name, or one of those given in its place; anything else is 503, and nothing of the request was told.
    run(|| async {
        let (trusted, other) = (Authority::new("trusted"), Authority::new("other"));
        let dns = |name: &str| PeerName::Dns(name.into());
        for (proves, authority, names, wanted) in [
            (vec![], &trusted, &["b.example"][..], "204"),
            (vec![], &trusted, &["c.example"], "identity_mismatch"),
            (vec![], &other, &["b.example"], "tls_failed"),
            (vec![dns("c.example")], &trusted, &["c.example"], "204"),
            (vec![dns("c.example")], &trusted, &["b.example"], "identity_mismatch"),
            (vec![dns("x.c.example")], &trusted, &["*.c.example"], "204"),
            (vec![dns("*.c.example")], &trusted, &["x.c.example"], "204"),
            (vec![dns("*.c.example")], &trusted, &["c.example"], "identity_mismatch"),
            (vec![dns("c.example")], &other, &["c.example"], "tls_failed"),
            (vec![PeerName::Uri("spiffe://x/y".into()), dns("c.example")], &trusted, &["c.example"], "204"),
        ] {
            let named = Named::new("b.example", given(&trusted)).unwrap().proving(proves.clone());
            let mut world = world(named);
            let (answer, name) = ask(&mut world, &backend(authority, names, None)).await;
            assert!(answer.contains(wanted), "{proves:?} {names:?}: {answer}");
            if wanted == "204" {
                assert_eq!(name.as_deref(), Some("b.example"));
            } else {
                assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
            }
        }
    });
}

#[test]
fn an_applications_tls_goes_inside_that_of_its_proxy() {
    // Aim: a backend with a sidecar proves its name through it, and its sidecar knows who calls; a wrong name, or strangers' roots, are 503 and
    // told nothing; where the sidecar expects HTTP, TLS does not get through, and nothing goes in plaintext instead.
    run(|| async {
        let (trusted, other) = (Authority::new("trusted"), Authority::new("other"));
        let named = || Named::new("b.example", given(&trusted)).unwrap();
        let meshed = |protocol| Setup { protocol, ..Setup::default() };
        for (authority, names, wanted) in
            [(&trusted, &["b.example"][..], "204"), (&trusted, &["c.example"], "identity_mismatch"), (&other, &["b.example"], "tls_failed")]
        {
            let mut world = world_of(named(), meshed(Protocol::Tcp));
            let (answer, name) = ask(&mut world, &backend(authority, names, None)).await;
            assert!(answer.contains(wanted), "{names:?}: {answer}");
            assert_eq!(name.as_deref(), (wanted == "204").then_some("b.example"));
        }
        let mut world = world_of(named(), meshed(Protocol::Http));
        let mut client = world.knock();
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("tls_failed"), "{answer}");
        assert!(world.applications.try_recv().is_err(), "the application was reached");
    });
}

#[test]
fn a_backend_is_shown_the_gateways_certificate() {
    // Aim: mutual TLS with a certificate that may rotate; without one, a backend that asks is not reached.
    run(|| async {
        let (servers, gateways) = (Authority::new("servers"), Authority::new("gateways"));
        let own = cell("tls/shop/own", Some(certificate(&gateways, &["edge.example"])));
        let named = Named::new("b.example", given(&servers)).unwrap().shown(Some(Arc::clone(&own)));
        let mut world = world(named);
        let server = backend(&servers, &["b.example"], Some(&gateways));
        assert!(ask(&mut world, &server).await.0.contains(" 204 "));
        put(&own, Some(certificate(&Authority::new("strangers"), &["edge.example"])));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(!ask(&mut world, &server).await.0.contains(" 204 "));
        put(&own, None::<Secret>);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(!ask(&mut world, &server).await.0.contains(" 204 "));
    });
}

/// Those that can be read.
fn store(authority: &Authority) -> Arc<RootCertStore> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(authority.roots());
    Arc::new(store)
}
