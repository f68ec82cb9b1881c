//! Who may come in, and how.

use std::sync::Arc;

use engine::model::{MtlsMode, Protocol};

use super::*;

const ASK: &str = "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-client-cert: URI=forged\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

#[test]
fn plaintext_into_a_strict_port_gets_no_byte() {
    // Aim: Strict closes without an answer, and the application never hears of it.
    run(|| async {
        for protocol in [Protocol::Http, Protocol::Auto, Protocol::Tcp] {
            let mut world = World::new(Setup { protocol, ..Setup::default() });
            let mut client = world.dial_server();
            write(&mut client, ASK).await;
            assert_eq!(rest(&mut client).await, "");
            assert!(world.applications.try_recv().is_err());
        }
    });
}

#[test]
fn plaintext_into_other_modes_reaches_the_application() {
    // Aim: Permissive and Disabled serve plaintext, and a client cannot forge an identity.
    run(|| async {
        for mode in [MtlsMode::Permissive, MtlsMode::Disabled] {
            for protocol in [Protocol::Http, Protocol::Auto] {
                let mut world = World::new(Setup { mode, protocol, ..Setup::default() });
                let mut client = world.dial_server();
                write(&mut client, ASK).await;
                let mut application = world.application().await;
                let request = head(&mut application).await;
                assert!(!request.contains("forged"), "{request}");
                write(&mut application, OK).await;
                assert_eq!(head(&mut client).await, OK);
            }
        }
    });
}

#[test]
fn the_wrong_identity_is_not_spoken_to() {
    // Aim: a peer that proves another identity than the endpoint's gets nothing, and the caller learns why.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut snapshot = client_snapshot(&world.setup, 2);
        let other = Arc::new(Endpoint { identity: Some(Arc::new(FRONTEND.parse().unwrap())), ..unshared(endpoint(SERVER, true)) });
        let outbound = snapshot.outbound.remove(&SERVICE.parse().unwrap()).unwrap();
        let Some(Action::Forward(forward)) = outbound.http.as_ref().map(|table| &table.hosts[0].rules[0].action) else { unreachable!() };
        let Target::Cluster(cluster) = &forward.backends[0].target else { unreachable!() };
        cluster.endpoints.replace(EndpointSet::new(vec![other], Vec::new()));
        snapshot.outbound.insert(SERVICE.parse().unwrap(), outbound);
        world.client_means.snapshots.publish(Arc::new(snapshot));
        let mut client = world.dial(SERVICE);
        write(&mut client, ASK).await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("identity_mismatch"), "{answer}");
        assert!(world.applications.try_recv().is_err());
    });
}

fn unshared(endpoint: Arc<Endpoint>) -> Endpoint {
    Arc::into_inner(endpoint).unwrap()
}

#[test]
fn a_port_that_becomes_strict_is_strict_at_the_next_request() {
    // Aim: policy is judged per request on connections that were open before.
    run(|| async {
        let mut world = World::new(Setup { mode: MtlsMode::Permissive, ..Setup::default() });
        let mut client = world.dial_server();
        write(&mut client, ASK).await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, OK).await;
        assert_eq!(head(&mut client).await, OK);
        world.setup.mode = MtlsMode::Strict;
        world.server_means.snapshots.publish(Arc::new(server_snapshot(&world.setup, 2)));
        write(&mut client, ASK).await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("denied"), "{answer}");
        assert_eq!(rest(&mut client).await, "denied");
    });
}

#[test]
fn the_other_family_is_tried_where_one_refuses_and_never_loopback() {
    // Aim: a program that listens on IPv6 only is reached by an IPv4 caller.
    run(|| async {
        let mut world = World::new(Setup::default());
        world.server_wires.refused.lock().insert(SERVER.parse().unwrap());
        let mut client = world.dial(SERVICE);
        write(&mut client, ASK).await;
        let (address, _) = world.applications.recv().await.unwrap();
        assert_eq!(address.to_string(), "[fd00:6d77:77::2]:8080");
    });
}

#[test]
fn a_call_to_ones_own_address_stays_inside() {
    // Aim: the hairpin carries mTLS like any other way in, without the network.
    run(|| async {
        let mut world = World::new(Setup { endpoints: vec!["10.77.0.2:9000"], ..Setup::default() });
        let mut both = server_snapshot(&world.setup, 2);
        both.outbound = client_snapshot(&world.setup, 2).outbound;
        world.server_means.snapshots.publish(Arc::new(both));
        let (mut client, far) = pipe();
        let arrival = Arrival { socket: far, peer: SERVER.parse().unwrap(), destination: SERVICE.parse().unwrap() };
        tokio::task::spawn_local(outbound::serve_connection(arrival, Rc::clone(&world.server)));
        write(&mut client, ASK).await;
        let (address, mut application) = world.applications.recv().await.unwrap();
        assert_eq!(address.to_string(), "10.77.0.2:9000");
        let request = head(&mut application).await;
        assert!(request.contains(&format!(";URI={CATALOG}\r\n")), "{request}");
        write(&mut application, OK).await;
        assert_eq!(head(&mut client).await, OK);
    });
}

#[test]
fn a_call_to_ones_own_untouched_port_goes_straight_there() {
    // Aim: what arrives untouched from others (the sidecar's own metrics, excluded ports) is called by oneself in the same way, although
    // everything else is Strict.
    run(|| async {
        let mut world = World::new(Setup { endpoints: vec!["10.77.0.2:15020"], meshed: false, ..Setup::default() });
        let mut both = server_snapshot(&world.setup, 2);
        both.outbound = client_snapshot(&world.setup, 2).outbound;
        world.server_means.snapshots.publish(Arc::new(both));
        let (mut client, far) = pipe();
        let arrival = Arrival { socket: far, peer: SERVER.parse().unwrap(), destination: SERVICE.parse().unwrap() };
        tokio::task::spawn_local(outbound::serve_connection(arrival, Rc::clone(&world.server)));
        write(&mut client, ASK).await;
        let (address, mut application) = world.applications.recv().await.unwrap();
        assert_eq!(address.to_string(), "10.77.0.2:15020");
        let request = head(&mut application).await;
        assert!(request.contains("x-forwarded-client-cert: URI=forged\r\n"), "the inbound side has touched it: {request}");
        write(&mut application, OK).await;
        assert_eq!(head(&mut client).await, OK);
    });
}

#[test]
fn a_new_credential_cuts_nothing() {
    // Aim: after a rotation new connections are opened, the exchange under way goes on.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, ASK).await;
        let mut application = world.application().await;
        head(&mut application).await;
        world.credentials.publish(world.authority.issue(FRONTEND, "frontend"));
        write(&mut application, OK).await;
        assert_eq!(head(&mut client).await, OK);
        write(&mut client, ASK).await;
        head(&mut application).await;
        write(&mut application, OK).await;
        assert_eq!(head(&mut client).await, OK);
        assert_eq!(world.client.pool.counts().open.get(), 1, "the connection of the older credential is closed");
    });
}

#[test]
fn a_stranger_that_says_nothing_is_let_go() {
    // Aim: connections from outside that never speak do not hold a place for ever.
    run(|| async {
        for mode in [MtlsMode::Permissive, MtlsMode::Disabled] {
            let world = World::new(Setup { mode, ..Setup::default() });
            let mut client = world.dial_server();
            let ended = tokio::time::timeout(crate::ground::limits::HEAD_WAIT * 2, rest(&mut client)).await;
            assert_eq!(ended.as_deref(), Ok(""), "{mode:?}");
        }
    });
}

#[test]
fn a_connection_opened_across_a_rotation_serves_once() {
    // Aim: what was opened with the old credential is not kept as if it were of the new one, though another request met that meanwhile.
    run(|| async {
        let mut world = World::new(Setup::default());
        world.client_wires.slow.lock().insert(SERVER.parse().unwrap());
        let (mut early, mut late) = (world.dial(SERVICE), world.dial(SERVICE));
        write(&mut early, ASK).await;
        tokio::time::sleep(SLOW / 2).await;
        world.credentials.publish(world.authority.issue(FRONTEND, "frontend"));
        world.client_wires.slow.lock().clear();
        write(&mut late, ASK).await;
        for client in [&mut late, &mut early] {
            let mut application = world.application().await;
            head(&mut application).await;
            write(&mut application, OK).await;
            assert_eq!(head(client).await, OK);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let counts = world.client.pool.counts();
        assert_eq!((counts.idle.get(), counts.open.get()), (1, 1));
    });
}
