//! Bytes at an edge: as they come, inside TLS that is ended, and inside TLS that passes.

use engine::failure::{LocalReply, Reason};
use engine::model::{Chain, Edge, Port, Serves, TlsTerms};
use rustls::pki_types::ServerName;
use rustls::server::ServerConfig;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::tls::{cell, certificate, client, connect, issued, knock, serve_chains, terms};
use super::*;
use crate::road::gateway;
use crate::tls::provider;

fn tcp() -> Setup {
    Setup { protocol: Protocol::Tcp, application: Protocol::Tcp, ..Setup::default() }
}

fn forward_of(world: &World) -> Arc<Forward> {
    match &world.client_means.snapshots.load().edges[&80].port {
        Port::Bytes(forward) => Arc::clone(forward),
        _ => panic!("no bytes"),
    }
}

fn bytes(name: &str, ended: Option<TlsTerms>, forward: &Arc<Forward>) -> Arc<Chain> {
    let serves = Serves::Bytes(Arc::clone(forward));
    Arc::new(Chain { name: name.into(), terms: ended.map(Arc::new), serves, tells_client: false, policies: None })
}

#[test]
fn bytes_pass_into_the_mesh_and_end_as_they_ended() {
    // Aim: the server may speak first, half an end leaves the other half, over mTLS to the application.
    run(|| async {
        let mut world = World::new(tcp());
        let mut client = world.knock();
        let mut application = world.application().await;
        write(&mut application, "220 hello\r\n").await;
        assert_eq!(exactly(&mut client, 11).await, "220 hello\r\n");
        write(&mut client, "all").await;
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut application).await, "all");
        write(&mut application, "and back").await;
        application.shutdown().await.unwrap();
        assert_eq!(rest(&mut client).await, "and back");
    });
}

#[test]
fn a_backend_that_is_bad_resets() {
    // Aim: a bad reference and a cluster without endpoints reset the client, with their reasons in the metrics.
    run(|| async {
        for (target, reason) in [(Some(Reason::BadBackend), "bad_backend"), (None, "no_endpoints")] {
            let world = World::new(Setup { endpoints: Vec::new(), ..tcp() });
            let forward = match target {
                Some(reason) => Arc::new(Forward::to(Arc::default(), Target::Reply(LocalReply::of(reason)))),
                None => forward_of(&world),
            };
            let mut snapshot = client_snapshot(&world.setup, 2);
            snapshot
                .edges
                .insert(80, Arc::new(Edge { name: "edge/80".into(), port: Port::Bytes(forward), clients: Arc::default(), content: 2 }));
            world.client_means.snapshots.publish(Arc::new(snapshot));
            let mut client = world.knock();
            let error = client.read(&mut [0]).await.expect_err("a reset");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{reason}");
            let metrics = world.client_means.telemetry.render();
            assert!(metrics.contains(&format!("reason=\"{reason}\"")), "{metrics}");
        }
    });
}

#[test]
fn ended_tls_carries_bytes() {
    // Aim: what is inside goes to the application by mTLS, both ways, half-closed; a cut inside stays a cut.
    run(|| async {
        let mut world = World::new(tcp());
        let own = cell("tls", Some(certificate(&Authority::new("public"), &["db.example"])));
        let terms = TlsTerms { alpn: Vec::new(), ..terms(&own) };
        serve_chains(&world, vec![("db.example", bytes("db", Some(terms), &forward_of(&world)))]);
        let config = Arc::new(client(&[]));
        let mut stream = connect(&world.client, &config, "db.example").await.unwrap();
        let mut application = world.application().await;
        stream.write_all(b"select 1").await.unwrap();
        assert_eq!(exactly(&mut application, 8).await, "select 1");
        stream.shutdown().await.unwrap();
        assert_eq!(rest(&mut application).await, "");
        write(&mut application, "1").await;
        application.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "1");
        let mut cut = connect(&world.client, &config, "db.example").await.unwrap();
        let mut application = world.application().await;
        write(&mut application, "part").await;
        let mut part = [0; 4];
        cut.read_exact(&mut part).await.unwrap();
        application.abort();
        drop(application);
        assert!(cut.read(&mut [0]).await.is_err(), "an end without a goodbye is a cut");
    });
}

#[test]
fn tls_that_passes_is_the_applications_own() {
    // Aim: the client's handshake is with the application, by the name that it asks for; other names of the port are ended or sent away.
    run(|| async {
        let mut world = World::new(tcp());
        let public = Authority::new("public");
        let own = cell("tls", Some(certificate(&public, &["ended.example"])));
        let forward = forward_of(&world);
        let ended = bytes("ended", Some(TlsTerms { alpn: Vec::new(), ..terms(&own) }), &forward);
        serve_chains(&world, vec![("*.pass.example", bytes("pass", None, &forward)), ("ended.example", ended)]);
        let (chain, key) = issued(&public, &["a.pass.example"]);
        let mut server = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.clone(), key)
            .unwrap();
        server.alpn_protocols = vec![b"imap".to_vec()];
        let name = ServerName::try_from("a.pass.example").unwrap();
        let connecting = TlsConnector::from(Arc::new(client(&["imap"]))).connect(name, knock(&world.client));
        let accepting = async {
            let socket = world.application().await;
            TlsAcceptor::from(Arc::new(server)).accept(socket).await
        };
        let (near, far) = tokio::join!(connecting, accepting);
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        assert_eq!(near.get_ref().1.peer_certificates().unwrap()[0], chain[0]);
        near.write_all(b"secret").await.unwrap();
        let mut text = [0; 6];
        far.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"secret");
        let ended = connect(&world.client, &Arc::new(client(&[])), "ended.example").await.unwrap();
        assert_ne!(ended.get_ref().1.peer_certificates().unwrap()[0], chain[0]);
        // Nobody is told in TLS of a name that nobody has where TLS passes.
        let error = connect(&world.client, &Arc::new(client(&[])), "pass.example").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    });
}

#[test]
fn a_chain_asks_its_own_policies() {
    // Aim: of two names at a port the one whose policies deny the client's address is cut off before anything is carried, the other goes on.
    use engine::model::build::Parts;
    use proto::mesh;
    run(|| async {
        let mut world = World::new(tcp());
        let source = mesh::CallSource { ip_blocks: vec!["192.0.2.0/24".into()], ..mesh::CallSource::default() };
        let policy = mesh::AuthorizationPolicy {
            name: "shop/no".into(),
            action: mesh::authorization_policy::Action::Deny.into(),
            rules: vec![mesh::AuthorizationRule { from: vec![source], ..mesh::AuthorizationRule::default() }],
            ..mesh::AuthorizationPolicy::default()
        };
        let any = proto::xds::pack(&mesh::Authorization { policies: vec![policy], dry_run: false });
        let mut parts = Parts::default();
        parts.put(&<mesh::Authorization as prost::Name>::type_url(), "edge/1", "1", &any).unwrap();
        let policies = parts.assemble(1, &Snapshot::default()).doors.get(&1).cloned();
        let forward = forward_of(&world);
        let serves = Serves::Bytes(Arc::clone(&forward));
        let denied = Arc::new(Chain { name: "denied".into(), terms: None, serves, tells_client: false, policies });
        serve_chains(&world, vec![("denied.example", denied), ("open.example", bytes("open", None, &forward))]);
        let cut = connect(&world.client, &Arc::new(client(&[])), "denied.example").await;
        assert!(cut.is_err() && world.applications.try_recv().is_err());
        let (config, name) = (Arc::new(client(&[])), ServerName::try_from("open.example").unwrap());
        let opening = TlsConnector::from(config).connect(name, knock(&world.client));
        tokio::select! {
            _ = opening => panic!("nobody answers"),
            _ = world.application() => {}
        }
    });
}

#[test]
fn a_port_that_is_gone_ends_what_it_carries_by_itself() {
    // Aim: a configuration change does not cut bytes that are under way.
    run(|| async {
        let mut world = World::new(tcp());
        let mut client = world.knock();
        let mut application = world.application().await;
        let mut snapshot = client_snapshot(&world.setup, 2);
        snapshot.edges.clear();
        world.client_means.snapshots.publish(Arc::new(snapshot));
        write(&mut client, "still").await;
        assert_eq!(exactly(&mut application, 5).await, "still");
        let (near, far) = pipe();
        let arrival = Arrival { socket: far, peer: "192.0.2.9:5000".parse().unwrap(), destination: "10.0.0.1:8080".parse().unwrap() };
        tokio::task::spawn_local(gateway::serve_connection(arrival, 80, Rc::clone(&world.client)));
        let mut near = near;
        write(&mut near, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(head(&mut near).await.starts_with("HTTP/1.1 404 "));
    });
}
