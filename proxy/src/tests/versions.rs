//! Callers in one version of HTTP, applications in the other.

use engine::model::{MtlsMode, Protocol};
use http::{Request, Version};
use http_body_util::{BodyExt, Full};

use super::*;

#[test]
fn a_caller_in_http1_of_a_port_declared_http2_is_served() {
    // Aim: `http2`, `grpc` and `kubernetes.io/h2c` say what the application speaks, not what callers must.
    run(|| async {
        for edge in [false, true] {
            let mut world = World::new(Setup { protocol: Protocol::Http2, application: Protocol::Http2, ..Setup::default() });
            let mut client = if edge { world.knock() } else { world.dial(SERVICE) };
            write(&mut client, "POST /a HTTP/1.1\r\nhost: catalog\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").await;
            let application = world.application().await;
            tokio::task::spawn_local(http2::application(application));
            let answer = head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("x-target: http://catalog/a\r\n"), "{answer}");
            let body = "5\r\nhello\r\n0\r\ngrpc-status: 0\r\n\r\n";
            assert_eq!(exactly(&mut client, body.len()).await, body, "trailers nobody announced");
        }
    });
}

#[test]
fn a_caller_in_http2_of_a_port_declared_http1_is_served() {
    // Aim: the same for `http/1.1` and `kubernetes.io/ws`: no cut, and what nobody converts for is said in the answer.
    run(|| async {
        for edge in [false, true] {
            let mut world = World::new(Setup { protocol: Protocol::Http1, application: Protocol::Http1, ..Setup::default() });
            let socket = if edge { world.knock() } else { world.dial(SERVICE) };
            let mut sender = http2::client(socket).await;
            let calling = tokio::task::spawn_local(async move { sender.send_request(http2::call("/a", "hello")).await.unwrap() });
            let mut application = world.application().await;
            let request = head(&mut application).await;
            assert!(request.starts_with("POST /a HTTP/1.1\r\n") && request.contains("host: catalog\r\n"), "{request}");
            assert_eq!(exactly(&mut application, 5).await, "hello");
            write(&mut application, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\n").await;
            let body = calling.await.unwrap().into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["x-sum"], "7");
            assert_eq!(body.to_bytes(), "hi");
        }
    });
}

#[test]
fn a_stranger_in_the_other_version_is_served_too() {
    // Aim: the server's own sidecar converts where the caller has none: by what the port declares.
    run(|| async {
        let setup = |protocol| Setup { mode: MtlsMode::Permissive, protocol, ..Setup::default() };
        let mut world = World::new(setup(Protocol::Http2));
        let mut client = world.dial_server();
        write(&mut client, "GET /a HTTP/1.1\r\nhost: catalog\r\n\r\n").await;
        let application = world.application().await;
        tokio::task::spawn_local(http2::application(application));
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200 OK\r\n"));

        let mut world = World::new(setup(Protocol::Http1));
        let mut sender = http2::client(world.dial_server()).await;
        let request = Request::get("http://catalog/a").version(Version::HTTP_2).body(Full::default().boxed()).unwrap();
        let calling = tokio::task::spawn_local(async move { sender.send_request(request).await.unwrap() });
        let mut application = world.application().await;
        assert!(head(&mut application).await.starts_with("GET /a HTTP/1.1\r\n"));
        write(&mut application, "HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(calling.await.unwrap().status(), 204);
    });
}

#[test]
fn websocket_into_a_port_of_either_declaration() {
    // Aim: what upgrades is HTTP/1.1, whatever the port declares for the rest.
    run(|| async {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let mut world = World::new(Setup { protocol, application: protocol, ..Setup::default() });
            let mut client = world.dial(SERVICE);
            write(&mut client, "GET /chat HTTP/1.1\r\nhost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
            let mut application = world.application().await;
            assert!(head(&mut application).await.contains("Upgrade: websocket\r\n"));
            write(&mut application, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi").await;
            assert!(head(&mut client).await.starts_with("HTTP/1.1 101 "));
            assert_eq!(exactly(&mut client, 2).await, "hi");
        }
    });
}

#[test]
fn grpc_into_a_port_declared_http1_ends_in_a_status() {
    // Aim: an application that speaks HTTP/1 only cannot answer gRPC; the caller learns so by what it answered, and nothing hangs.
    run(|| async {
        let mut world = World::new(Setup { protocol: Protocol::Http1, application: Protocol::Http1, ..Setup::default() });
        let mut sender = http2::client(world.dial(SERVICE)).await;
        let calling = tokio::task::spawn_local(async move { sender.send_request(http2::call("/a", "hello")).await.unwrap() });
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 404 Not Found\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nno").await;
        let answer = calling.await.unwrap();
        assert_eq!(answer.status(), 404);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "no");
    });
}
