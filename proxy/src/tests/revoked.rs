//! Whose word counts no more: handshakes are refused, and what is open is cut.

use std::time::Duration;

use engine::model::{Protocol, Revocation, Revoked, Trust};
use rustls::pki_types::CertificateDer;

use super::*;

/// Within this time a revocation has cut everything.
const AT_ONCE: Duration = Duration::from_secs(1);

fn trusting(roots: Vec<CertificateDer<'static>>, revoked: Revoked) -> Trust {
    let mut trust = Trust::of(roots);
    trust.revoked = Arc::new(revoked);
    trust
}

impl World {
    /// Revokes at one proxy (0: the client's, 1: the server's) or at both.
    fn revoke(&self, at: &[usize], revoked: &Revoked) {
        for place in at {
            self.trust[*place].believe(&trusting(self.authority.roots(), revoked.clone())).unwrap();
        }
    }

    /// One exchange of HTTP/1 on a connection of the client; its status.
    async fn exchange(&mut self, client: &mut Socket) -> String {
        write(client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let answered = async {
            let answer = head(client).await;
            let length = answer.to_lowercase().split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
            exactly(client, length.unwrap_or(0)).await;
            answer
        };
        tokio::pin!(answered);
        let reached = async {
            loop {
                let Some((_, mut application)) = self.applications.recv().await else { return };
                tokio::task::spawn_local(async move {
                    let mut bytes = [0; 4096];
                    while let Ok(1..) = application.read(&mut bytes).await {
                        write(&mut application, "HTTP/1.1 204 No Content\r\n\r\n").await;
                    }
                });
            }
        };
        tokio::select! {
            answer = &mut answered => answer.lines().next().unwrap_or_default().to_owned(),
            () = reached => String::new(),
        }
    }
}

fn of(identity: &str) -> Revoked {
    until(identity, None)
}

fn until(identity: &str, until_secs: Option<u64>) -> Revoked {
    let revocation = Revocation { until_secs, object: "meshwright-system/r".into() };
    Revoked { identities: BTreeMap::from([(identity.parse().unwrap(), revocation)]), ..Revoked::default() }
}

#[test]
fn a_revoked_peer_is_cut_at_once_on_both_sides() {
    // Aim: a request under way, opaque bytes and a tunnel end within a second when the caller is revoked at the server's proxy, and when
    // the server is revoked at the caller's; whichever side knows, both applications see a cut, and nothing of the connection is left.
    run(|| async {
        for (place, revoked) in [(1, of(FRONTEND)), (0, of(CATALOG))] {
            for protocol in [Protocol::Http, Protocol::Tcp] {
                let mut world = World::new(Setup { protocol, ..Setup::default() });
                let mut client = world.dial(SERVICE);
                write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
                let mut application = world.application().await;
                head(&mut application).await;
                assert!(world.server.bonds.held() == 1 && world.client.bonds.held() == 1);
                write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun").await;
                head(&mut client).await;
                assert_eq!(exactly(&mut client, 5).await, "begun");
                world.revoke(&[place], &revoked);
                let both = async { (rest(&mut client).await, rest(&mut application).await) };
                let ended = tokio::time::timeout(AT_ONCE, both).await.expect("something goes on");
                assert_eq!(ended, (String::new(), String::new()), "{protocol:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                assert_eq!((world.server.bonds.held(), world.client.bonds.held()), (0, 0), "{protocol:?}");
            }
        }
    });
}

#[test]
fn a_tunnel_of_a_revoked_peer_is_cut() {
    // Aim: what has stopped being HTTP is still a connection to a peer, on either side.
    run(|| async {
        for (place, revoked) in [(1, of(FRONTEND)), (0, of(CATALOG))] {
            let mut world = World::new(Setup::default());
            let mut client = world.dial(SERVICE);
            write(&mut client, "GET /chat HTTP/1.1\r\nhost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
            let mut application = world.application().await;
            head(&mut application).await;
            write(&mut application, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst").await;
            head(&mut client).await;
            assert_eq!(exactly(&mut client, 5).await, "first");
            world.revoke(&[place], &revoked);
            let both = async { (rest(&mut client).await, rest(&mut application).await) };
            let ended = tokio::time::timeout(AT_ONCE, both).await.expect("the tunnel goes on");
            assert_eq!(ended, (String::new(), String::new()));
        }
    });
}

#[test]
fn streams_of_a_revoked_peer_are_cut() {
    // Aim: the same over HTTP/2, where many requests share a connection: the caller is answered by its own proxy, with a reason.
    run(|| async {
        for (place, revoked) in [(1, of(FRONTEND)), (0, of(CATALOG))] {
            let mut world = World::new(Setup { application: Protocol::Http2, ..Setup::default() });
            let mut sender = http2::client(world.dial(SERVICE)).await;
            let calling = tokio::task::spawn_local(async move { sender.send_request(http2::call("/a", "")).await.unwrap() });
            let application = world.application().await;
            let mut connection = h2::server::handshake(application).await.unwrap();
            let (_request, _reply) = connection.accept().await.unwrap().unwrap();
            tokio::task::spawn_local(async move { while connection.accept().await.is_some() {} });
            world.revoke(&[place], &revoked);
            let answer = tokio::time::timeout(AT_ONCE, calling).await.expect("the stream goes on").unwrap();
            assert_eq!(answer.headers()["x-meshwright-reason"], "upstream_reset");
        }
    });
}

#[test]
fn kept_connections_go_and_new_ones_are_refused_until_the_end() {
    // Aim: a connection that is only kept does not outlive the revocation, no session of before opens another, on whichever side it is
    // known; when `until` has passed by the clock, calls work again without any new configuration.
    run(|| async {
        for (place, identity) in [(1, FRONTEND), (0, CATALOG)] {
            let mut world = World::new(Setup::default());
            let mut client = world.dial(SERVICE);
            assert_eq!(world.exchange(&mut client).await, "HTTP/1.1 204 No Content");
            assert_eq!(world.client.pool.counts().idle.get(), 1);
            let now = world.times[place].0.load(std::sync::atomic::Ordering::SeqCst);
            world.revoke(&[place], &until(identity, Some(now + 60)));
            tokio::time::sleep(AT_ONCE).await;
            assert_eq!((world.client.pool.counts().open.get(), world.server.bonds.held()), (0, 0));
            for _ in 0..3 {
                assert!(world.exchange(&mut client).await.starts_with("HTTP/1.1 503 "));
            }
            world.times[place].advance(Duration::from_secs(60));
            // What could not be connected to is left alone for a moment.
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!(world.exchange(&mut client).await, "HTTP/1.1 204 No Content");
        }
    });
}

#[test]
fn a_certificate_is_revoked_alone() {
    // Aim: a serial number ends the connections of that certificate; the same identity with another one is served, and so is everybody
    // else, whose connections nobody touches.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        assert_eq!(world.exchange(&mut client).await, "HTTP/1.1 204 No Content");
        let others = of("spiffe://cluster.local/ns/shop/sa/other");
        world.revoke(&[0, 1], &others);
        tokio::time::sleep(AT_ONCE).await;
        assert_eq!((world.client.pool.counts().idle.get(), world.server.bonds.held()), (1, 1), "somebody else was meant");
        let serial = proto::identity::serial(&world.credentials.current().unwrap().serial).to_owned();
        let revocation = Revocation { until_secs: None, object: "meshwright-system/r".into() };
        let revoked = Revoked { serials: BTreeMap::from([(serial, revocation)]), ..Revoked::default() };
        world.revoke(&[1], &revoked);
        tokio::time::sleep(AT_ONCE).await;
        assert_eq!((world.client.pool.counts().open.get(), world.server.bonds.held()), (0, 0));
        assert!(world.exchange(&mut client).await.starts_with("HTTP/1.1 503 "));
        world.credentials.publish(world.authority.issue(FRONTEND, "frontend"));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(world.exchange(&mut client).await, "HTTP/1.1 204 No Content");
    });
}

#[test]
fn a_federated_caller_is_a_peer_until_it_is_taken_back() {
    // Aim: a caller of another trust domain passes a Strict port, the application reads its identity, whatever it said of itself; when the
    // federation ends, so does its connection, and it gets no other.
    run(|| async {
        let mut world = World::new(Setup::default());
        let (partner, identity) = (Authority::new("partner"), "spiffe://partner.example/ns/shop/sa/frontend");
        let believe = |world: &World, place: usize, own: &Authority, others: &[(&str, &Authority)]| {
            let federated = others.iter().map(|(domain, authority)| ((*domain).to_owned(), authority.roots())).collect();
            let mut trust = Trust::of(own.roots());
            trust.federated = federated;
            world.trust[place].believe(&trust).unwrap();
        };
        world.credentials.publish(partner.issue(identity, "frontend"));
        believe(&world, 0, &partner, &[("cluster.local", &world.authority)]);
        believe(&world, 1, &world.authority, &[("partner.example", &partner)]);
        let mut client = world.dial(SERVICE);
        write(&mut client, &format!("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-client-cert: URI={FRONTEND}\r\n\r\n")).await;
        let mut application = world.application().await;
        let request = head(&mut application).await;
        assert!(request.contains(&format!("By={CATALOG};Hash=")) && request.contains(&format!(";URI={identity}\r\n")), "{request}");
        assert!(!request.contains(FRONTEND), "{request}");
        believe(&world, 1, &world.authority, &[]);
        assert_eq!(tokio::time::timeout(AT_ONCE, rest(&mut application)).await.expect("it goes on"), "");
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("x-meshwright-reason: "), "{answer}");
    });
}
