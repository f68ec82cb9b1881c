//! The gateway's door.

use super::*;
use crate::gateway;

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
        for wanted in ["Host: shop.example\r\n", "x-forwarded-for: 198.51.100.1, 192.0.2.9\r\n", "x-forwarded-proto: http\r\n", FRONTEND] {
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
