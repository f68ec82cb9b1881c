//! Who called the application, as the server's proxy tells it.

use super::*;
use crate::observe::CallsTold;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const NOT_FOUND: &str = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";

/// Identity, port, method, path and count of each row.
fn told(world: &World) -> Vec<String> {
    let calls = world.server_means.telemetry.calls(&mut CallsTold::default());
    let line = |call: proto::mesh::Call| format!("{} {} {} {} {}", call.identity, call.port, call.method, call.path, call.count);
    calls.into_iter().flat_map(|calls| calls.calls).map(line).collect()
}

async fn exchange(client: &mut Socket, application: &mut Socket, request: &str, answer: &str) {
    write(client, &format!("{request} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
    head(application).await;
    write(application, answer).await;
    assert_eq!(head(client).await.lines().next(), answer.lines().next());
}

#[test]
fn requests_are_told_by_caller_method_and_path() {
    // Aim: what a caller with an identity asks for is counted by what it is, without queries and ids, and only what the application knows.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET /users/1?token=secret HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut application = world.application().await;
        head(&mut application).await;
        assert_eq!(told(&world), [""; 0], "nothing is told before the application has answered");
        write(&mut application, OK).await;
        head(&mut client).await;
        exchange(&mut client, &mut application, "GET /users/2", OK).await;
        exchange(&mut client, &mut application, "DELETE /users/2", OK).await;
        exchange(&mut client, &mut application, "GET /.git/config", NOT_FOUND).await;
        let wanted = [format!("{FRONTEND} 8080 DELETE /users/{{id}} 1"), format!("{FRONTEND} 8080 GET /users/{{id}} 2")];
        assert_eq!(told(&world), wanted);
    });
}

#[test]
fn plaintext_has_no_name() {
    // Aim: a caller without mTLS is counted as what it is, nobody in particular.
    run(|| async {
        let mut world = World::new(Setup { mode: MtlsMode::Permissive, ..Setup::default() });
        let mut client = world.dial_server();
        write(&mut client, "GET /a HTTP/1.1\r\nhost: a\r\nx-forwarded-client-cert: URI=forged\r\n\r\n").await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, OK).await;
        head(&mut client).await;
        assert_eq!(told(&world), [" 8080 GET /a 1"]);
    });
}

#[test]
fn an_opaque_connection_is_told_while_it_lives() {
    // Aim: connections may last for months; who opened one is known at once.
    run(|| async {
        let mut world = World::new(Setup { protocol: Protocol::Tcp, ..Setup::default() });
        let mut client = world.dial(SERVICE);
        write(&mut client, "hello").await;
        let mut application = world.application().await;
        assert_eq!(exactly(&mut application, 5).await, "hello");
        assert_eq!(told(&world), [format!("{FRONTEND} 8080   1")]);
        drop((client, application));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(told(&world), [format!("{FRONTEND} 8080   1")]);
    });
}

#[test]
fn what_the_mesh_refuses_is_no_call() {
    // Aim: a request that never reached the application is no reason to allow the next one.
    run(|| async {
        let world = World::new(Setup { mode: MtlsMode::Permissive, ..Setup::default() });
        let mut client = world.dial_server();
        write(&mut client, "GET /../../etc HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 400 "));
        assert_eq!(told(&world), [""; 0]);
    });
}
