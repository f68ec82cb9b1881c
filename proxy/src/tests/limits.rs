//! Bounds on the connections to a destination.

use engine::gate::Limits;
use engine::model::{Algorithm, Balance};
use tokio::time::Instant;

use super::*;

const ASK: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const WAIT: Duration = Duration::from_secs(1);

fn bounded(limits: Limits, endpoints: Vec<&'static str>) -> Setup {
    let balance = Balance { algorithm: Algorithm::RoundRobin, ..Balance::default() };
    Setup { meshed: false, endpoints, cluster: ClusterPolicy { limits, balance, ..ClusterPolicy::default() }, ..Setup::default() }
}

fn one_at_a_time() -> Limits {
    Limits { connections: Some(1), pending: 1, pending_timeout: Some(WAIT), ..Limits::default() }
}

/// A client that has asked.
async fn asking(world: &World) -> Socket {
    let mut client = world.dial(SERVICE);
    write(&mut client, ASK).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    client
}

async fn answer(application: &mut Socket, client: &mut Socket) {
    write(application, OK).await;
    assert_eq!(head(client).await, OK);
}

async fn assert_overflow(client: &mut Socket) {
    let answer = head(client).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("x-meshwright-reason: overflow"), "{answer}");
}

#[test]
fn requests_wait_for_a_connection_to_come_free() {
    // Aim: at the bound a request waits and gets the connection that comes free; who finds too many waiting or waits too long is told.
    run(|| async {
        let mut world = World::new(bounded(one_at_a_time(), vec!["10.77.9.1:80"]));
        let mut first = asking(&world).await;
        let mut application = world.application().await;
        head(&mut application).await;
        let mut second = asking(&world).await;
        assert_overflow(&mut asking(&world).await).await;
        answer(&mut application, &mut first).await;
        head(&mut application).await;
        answer(&mut application, &mut second).await;

        let mut first = asking(&world).await;
        head(&mut application).await;
        let began = Instant::now();
        assert_overflow(&mut asking(&world).await).await;
        assert!((1000..1100).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
        answer(&mut application, &mut first).await;
        let mut next = asking(&world).await;
        head(&mut application).await;
        answer(&mut application, &mut next).await;
        assert!(world.applications.try_recv().is_err());
    });
}

#[test]
fn a_connection_elsewhere_makes_room() {
    // Aim: an unused connection to another endpoint is closed for who needs one, at once, or as soon as it is given back.
    run(|| async {
        let mut world = World::new(bounded(one_at_a_time(), vec!["10.77.9.1:80", "10.77.9.2:80"]));
        let mut client = asking(&world).await;
        let (before, mut unused) = world.applications.recv().await.unwrap();
        head(&mut unused).await;
        answer(&mut unused, &mut client).await;
        let mut client = asking(&world).await;
        let (now, mut busy) = world.applications.recv().await.unwrap();
        assert_ne!(before, now);
        assert_eq!(rest(&mut unused).await, "");
        head(&mut busy).await;
        let mut other = asking(&world).await;
        assert!(world.applications.try_recv().is_err(), "one is open");
        answer(&mut busy, &mut client).await;
        assert_eq!(rest(&mut busy).await, "");
        let (last, mut application) = world.applications.recv().await.unwrap();
        assert_eq!(last, before);
        head(&mut application).await;
        answer(&mut application, &mut other).await;
        assert_eq!(world.client.pool.counts().open.get(), 1);
    });
}

#[test]
fn opaque_connections_beyond_the_bound_are_refused() {
    // Aim: closed at once and recorded as overflow; there is room again when one has ended.
    run(|| async {
        let mut world = World::new(Setup { protocol: Protocol::Tcp, ..bounded(one_at_a_time(), vec!["10.77.9.1:80"]) });
        let first = world.dial(SERVICE);
        let application = world.application().await;
        assert_eq!(rest(&mut world.dial(SERVICE)).await, "");
        let metrics = world.client_means.telemetry.render();
        let refused = |line: &str| line.starts_with("meshwright_tcp_connections_closed_total") && line.contains("overflow");
        assert!(metrics.lines().any(|line| refused(line) && line.ends_with(" 1")), "{metrics}");
        drop((first, application));
        tokio::time::sleep(Duration::from_millis(1)).await;
        let _next = world.dial(SERVICE);
        world.application().await;
    });
}

/// An HTTP/2 server of one stream at a time.
async fn single_file(socket: Socket) -> h2::server::Connection<Socket, bytes::Bytes> {
    h2::server::Builder::new().max_concurrent_streams(1).handshake(socket).await.unwrap()
}

/// The next request, while the connection is driven.
async fn taken(server: &mut h2::server::Connection<Socket, bytes::Bytes>) -> h2::server::SendResponse<bytes::Bytes> {
    server.accept().await.unwrap().unwrap().1
}

#[test]
fn http2_shares_what_is_open() {
    // Aim: at the bound a request waits for a stream of the connection that there is; none is opened beside it.
    run(|| async {
        let setup = bounded(one_at_a_time(), vec!["10.77.9.1:80"]);
        let mut world = World::new(Setup { application: Protocol::Http2, ..setup });
        let mut first = asking(&world).await;
        let mut server = single_file(world.application().await).await;
        let mut response = taken(&mut server).await;
        let mut second = asking(&world).await;
        response.send_response(http::Response::new(()), true).unwrap();
        let mut response = taken(&mut server).await;
        assert!(head(&mut first).await.starts_with("HTTP/1.1 200 "));
        response.send_response(http::Response::new(()), true).unwrap();
        tokio::task::spawn_local(async move { while server.accept().await.is_some() {} });
        assert!(head(&mut second).await.starts_with("HTTP/1.1 200 "));
        assert!(world.applications.try_recv().is_err());
    });
}

#[test]
fn a_connection_serves_so_many_requests() {
    // Aim: after its last request a connection is closed, and the next request has a new one; both versions.
    run(|| async {
        let limits = Limits { requests_per_connection: Some(2), ..Limits::default() };
        let mut world = World::new(bounded(limits.clone(), vec!["10.77.9.1:80"]));
        for _ in 0..2 {
            let mut application = None;
            for _ in 0..2 {
                let mut client = asking(&world).await;
                if application.is_none() {
                    application = world.applications.try_recv().ok().map(|dialled| dialled.1);
                }
                let application = application.as_mut().expect("one connection for two");
                head(application).await;
                answer(application, &mut client).await;
            }
            assert_eq!(rest(&mut application.unwrap()).await, "", "it is closed after two");
        }

        let mut world = World::new(Setup { application: Protocol::Http2, ..bounded(limits, vec!["10.77.9.1:80"]) });
        let mut connections = 0;
        for _ in 0..5 {
            let mut client = asking(&world).await;
            if let Ok((_, socket)) = world.applications.try_recv() {
                connections += 1;
                tokio::task::spawn_local(async move {
                    let mut server = single_file(socket).await;
                    while let Some(Ok((_, mut response))) = server.accept().await {
                        response.send_response(http::Response::new(()), true).unwrap();
                    }
                });
            }
            assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
        }
        assert_eq!(connections, 3);
    });
}
