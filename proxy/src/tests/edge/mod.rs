//! The gateway's door.

mod backends;
mod bytes;
mod challenges;
mod client_policy;
mod client_times;
mod clients;
mod datagrams;
mod ending;
mod held;
#[cfg(feature = "http3")]
mod http3;
mod tls;
mod told;

use super::*;
use crate::road::gateway;

#[test]
fn the_edge_says_who_called_and_goes_into_the_mesh() {
    // Aim: from plaintext outside over mTLS to the application, with forwarded headers and nothing forged.
    run(|| async {
        let mut world = World::new(Setup::default());
        let (mut client, far) = pipe();
        let arrival = Arrival { socket: far, peer: "192.0.2.9:5000".parse().unwrap(), destination: "10.0.0.1:8080".parse().unwrap() };
        tokio::task::spawn_local(gateway::serve_connection(arrival, 80, Rc::clone(&world.client)));
        write(
            &mut client,
            "GET / HTTP/1.1\r\nHost: shop.example\r\nx-forwarded-for: 198.51.100.1\r\nx-forwarded-client-cert: URI=me\r\n\r\n",
        )
        .await;
        let mut application = world.application().await;
        let request = head(&mut application).await;
        for wanted in ["Host: shop.example\r\n", "x-forwarded-for: 192.0.2.9\r\n", "x-forwarded-proto: http\r\n", FRONTEND] {
            assert!(request.contains(wanted), "{wanted}: {request}");
        }
        assert!(!request.contains("URI=me"), "{request}");
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200 OK\r\n"));
    });
}

#[test]
fn a_port_without_configuration_says_so() {
    // Aim: no listener is 404 no_route, and what is no HTTP gets 400 or is closed.
    run(|| async {
        let world = World::new(Setup::default());
        for (port, said, wanted) in
            [(81, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 404 "), (80, "\r\nnonsense\r\n\r\n", "HTTP/1.1 400 ")]
        {
            let (mut client, far) = pipe();
            let arrival = Arrival { socket: far, peer: "192.0.2.9:5000".parse().unwrap(), destination: "10.0.0.1:8080".parse().unwrap() };
            tokio::task::spawn_local(gateway::serve_connection(arrival, port, Rc::clone(&world.client)));
            write(&mut client, said).await;
            let answer = head(&mut client).await;
            assert!(answer.starts_with(wanted), "{answer}");
            rest(&mut client).await;
        }
        let metrics = world.client_means.telemetry.render();
        assert!(metrics.contains("reason=\"bad_request\""), "{metrics}");
    });
}

#[test]
fn a_client_cannot_take_off_what_the_edge_adds() {
    // Aim: `connection` names headers of this hop; naming the edge's own words does not remove them.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.knock();
        let ask = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Forwarded-For, x-forwarded-proto, x-forwarded-client-cert, x-own\r\nx-own: 1\r\n\r\n";
        write(&mut client, ask).await;
        let request = head(&mut world.application().await).await;
        for wanted in ["x-forwarded-for: 192.0.2.9\r\n", "x-forwarded-proto: http\r\n", "x-forwarded-client-cert: By="] {
            assert!(request.contains(wanted), "{wanted}: {request}");
        }
        assert!(!request.contains("x-own"), "{request}");
    });
}

#[test]
fn two_hosts_are_refused() {
    // Aim: who routes by the first host and who serves by the last must not disagree (RFC 9112, section 3.2).
    run(|| async {
        let mut world = World::new(Setup::default());
        let ask = "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
        for mut client in [world.knock(), world.dial(SERVICE)] {
            write(&mut client, ask).await;
            let answer = head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("bad_request"), "{answer}");
        }
        assert!(world.applications.try_recv().is_err());
    });
}

#[test]
fn a_port_without_the_http3_that_is_wanted_is_told() {
    // Aim: the control plane hears which port it is, why, and since when that is so; and that it is over.
    run(|| async {
        let world = World::new(Setup::default());
        let telemetry = &world.client_means.telemetry;
        let away = |why: &str| BTreeMap::from([(443, why.to_owned())]);
        telemetry.http3_away(away("taken"));
        let first = telemetry.traffic().services_away;
        assert_eq!(first.iter().map(|row| (&*row.kind, &*row.name, &*row.error)).collect::<Vec<_>>(), [("Http3", "443", "taken")]);
        tokio::time::sleep(Duration::from_secs(60)).await;
        telemetry.http3_away(away("still taken"));
        let second = telemetry.traffic().services_away;
        assert_eq!((&*second[0].error, second[0].since_secs), ("still taken", first[0].since_secs));
        telemetry.http3_away(BTreeMap::new());
        assert!(telemetry.traffic().services_away.is_empty());
    });
}
