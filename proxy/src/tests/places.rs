//! Where attempts go, and how often.

use std::cell::Cell;

use engine::gate::Limits;
use engine::health::Outlier;
use http::Response;
use tokio::time::Instant;

use super::*;
use crate::ground::limits::TICK;

const ASK: &str = "GET /a HTTP/1.1\r\nhost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
/// Endpoints that the test itself plays.
const HERE: &str = "10.77.9.1:80";
const THERE: &str = "10.77.9.2:80";

/// Callers of applications that the test plays, over HTTP/2 where `application` is that.
fn outside(endpoints: Vec<&'static str>, application: Protocol, cluster: ClusterPolicy) -> World {
    World::new(Setup { endpoints, application, cluster, meshed: false, ..Setup::default() })
}

#[test]
fn one_place_is_dialled_once() {
    // Aim: who dials into a black hole is held for one connect timeout per place there is, bytes and requests, inside the mesh and outside.
    run(|| async {
        for (endpoints, places) in [(vec![SERVER], 1), (vec![SERVER, TWIN], 2)] {
            let world = World::new(Setup { endpoints: endpoints.clone(), ..Setup::default() });
            world.client_wires.silent.lock().extend(endpoints.iter().map(|address| address.parse::<SocketAddr>().unwrap()));
            let mut client = world.dial(SERVICE);
            let began = Instant::now();
            write(&mut client, ASK).await;
            assert!(head(&mut client).await.contains("x-meshwright-reason: connect_timeout\r\n"));
            assert!(began.elapsed() < Duration::from_secs(places) + TICK, "{:?}", began.elapsed());
        }
        let world = World::new(Setup::default());
        let outside = "192.0.2.1:443";
        world.client_wires.silent.lock().insert(outside.parse().unwrap());
        let began = Instant::now();
        assert_eq!(rest(&mut world.dial(outside)).await, "");
        // One connect timeout of 5 s, and what the control plane is asked before.
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    });
}

#[test]
fn a_kept_connection_that_proved_dead_sends_its_request_elsewhere() {
    // Aim: the replay of what was never written avoids where that happened while there is another place, and dials it anew where there is none.
    run(|| async {
        let (here, there) = ("10.77.0.2:9000", "10.77.0.3:9000");
        for endpoints in [vec![here, there], vec![here]] {
            let others = endpoints.len() > 1;
            let mut world = World::new(Setup { endpoints, meshed: false, ..Setup::default() });
            let mut client = world.dial(SERVICE);
            let mut last = None;
            write(&mut client, ASK).await;
            for _ in 0..30 {
                let (address, mut application) = world.applications.recv().await.unwrap();
                assert!(!others || last != Some(address), "sent to {address} again");
                head(&mut application).await;
                write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
                last = Some(address);
                // The next request is on its way before this is seen.
                write(&mut client, ASK).await;
                drop(application);
            }
        }
    });
}

/// Serves all connections over HTTP/2: [`HERE`] resets every stream, others are answered. Counts what came here.
fn resetting(world: &mut World) -> Rc<Cell<u32>> {
    let arrivals: Rc<Cell<u32>> = Rc::default();
    let mut applications = std::mem::replace(&mut world.applications, mpsc::unbounded_channel().1);
    let counted = Rc::clone(&arrivals);
    tokio::task::spawn_local(async move {
        while let Some((address, socket)) = applications.recv().await {
            let counted = (address.to_string() == HERE).then(|| Rc::clone(&counted));
            tokio::task::spawn_local(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((_, mut reply))) = connection.accept().await {
                    if let Some(counted) = &counted {
                        counted.set(counted.get() + 1);
                        reply.send_reset(h2::Reason::INTERNAL_ERROR);
                    } else {
                        reply.send_response(Response::builder().header("content-length", "0").body(()).unwrap(), true).unwrap();
                    }
                }
            });
        }
    });
    arrivals
}

#[test]
fn a_server_that_resets_streams_is_asked_once_and_left_alone() {
    // Aim: a reset by a server that lives is its answer to that request: it is not asked again for it, and counts as an error of its own.
    run(|| async {
        let mut world = outside(vec![HERE], Protocol::Http2, ClusterPolicy::default());
        let arrivals = resetting(&mut world);
        let mut client = world.dial(SERVICE);
        for asked in 1..=3 {
            write(&mut client, ASK).await;
            let answer = head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("upstream_reset"), "{answer}");
            exactly(&mut client, "upstream_reset".len()).await;
            assert_eq!(arrivals.get(), asked);
        }

        let outlier = Some(Outlier {
            consecutive_errors: Some(5),
            consecutive_connect_failures: None,
            success_rate_min_percent: None,
            latency_factor: None,
            interval: Duration::from_secs(10),
            eject_for: Duration::from_secs(30),
            max_ejected_percent: 100.0,
        });
        let mut world = outside(vec![HERE, THERE], Protocol::Http2, ClusterPolicy { outlier, ..ClusterPolicy::default() });
        let arrivals = resetting(&mut world);
        let mut client = world.dial(SERVICE);
        for _ in 0..60 {
            write(&mut client, ASK).await;
            assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "), "the other one is asked");
        }
        assert_eq!(arrivals.get(), 5, "five errors and no more");
    });
}

#[test]
fn a_kept_http2_connection_that_ends_sends_its_request_once_more() {
    // Aim: a connection that was there before and ends under a safe request says nothing of its server, even where that is the only one.
    run(|| async {
        let mut world = outside(vec![HERE], Protocol::Http2, ClusterPolicy::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, ASK).await;
        for served in [1, 2] {
            let mut connection = h2::server::handshake(world.application().await).await.unwrap();
            for _ in 0..served {
                let (_, mut reply) = connection.accept().await.unwrap().unwrap();
                reply.send_response(Response::builder().header("content-length", "0").body(()).unwrap(), true).unwrap();
                let answered = async {
                    assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
                    write(&mut client, ASK).await;
                };
                tokio::select! {
                    () = answered => {}
                    _ = connection.accept() => panic!("nothing was asked"),
                }
            }
            assert!(connection.accept().await.unwrap().is_ok());
        }
    });
}

#[test]
fn who_waits_for_a_connection_takes_the_first_that_comes_free() {
    // Aim: one that still takes an upload, whose answer came early, keeps nobody from another one, and goes on with it.
    run(|| async {
        let limits = Limits { connections: Some(2), pending: 1, pending_timeout: Some(Duration::from_secs(5)), ..Limits::default() };
        let mut world = outside(vec![HERE], Protocol::Http, ClusterPolicy { limits, ..ClusterPolicy::default() });
        let mut uploading = world.dial(SERVICE);
        write(&mut uploading, "POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\na").await;
        let mut first = world.application().await;
        head(&mut first).await;
        let mut asking = world.dial(SERVICE);
        write(&mut asking, ASK).await;
        let mut second = world.application().await;
        head(&mut second).await;
        let mut waiting = world.dial(SERVICE);
        write(&mut waiting, "GET /waits HTTP/1.1\r\nhost: a\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        write(&mut first, OK).await;
        assert!(head(&mut uploading).await.starts_with("HTTP/1.1 200 "));
        tokio::time::sleep(Duration::from_millis(1)).await;
        write(&mut second, OK).await;
        assert!(head(&mut asking).await.starts_with("HTTP/1.1 200 "));
        assert!(head(&mut second).await.starts_with("GET /waits "));
        write(&mut second, OK).await;
        assert!(head(&mut waiting).await.starts_with("HTTP/1.1 200 "));
        write(&mut uploading, "b").await;
        assert_eq!(exactly(&mut first, 2).await, "ab");
    });
}

#[test]
fn a_tunnel_keeps_its_place() {
    // Aim: what was upgraded counts as under way to its destination until it ends, and then no more.
    run(|| async {
        let limits = Limits { requests: Some(1), ..Limits::default() };
        let mut world = outside(vec![HERE], Protocol::Http, ClusterPolicy { limits, ..ClusterPolicy::default() });
        let mut upgraded = world.dial(SERVICE);
        write(&mut upgraded, "GET /a HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
        head(&mut upgraded).await;
        let mut client = world.dial(SERVICE);
        write(&mut client, ASK).await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("x-meshwright-reason: overflow\r\n"), "{answer}");
        exactly(&mut client, "overflow".len()).await;
        drop((upgraded, application));
        tokio::time::sleep(Duration::from_millis(1)).await;
        write(&mut client, ASK).await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, OK).await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
    });
}
