//! Endpoints that are asked whether they are well.

use std::cell::RefCell;

use bytes::Bytes;
use engine::health::{ActiveCheck, CheckQuestion, Outlier};
use http::{HeaderMap, Response};

use super::*;
use crate::road::checks;

const GOOD: &str = "10.77.9.1:80";
const OTHER: &str = "10.77.9.2:80";
const SECOND: Duration = Duration::from_secs(1);

/// A world whose client asks two endpoints every second.
fn asking(question: CheckQuestion) -> (World, Arc<Cluster>) {
    let check = ActiveCheck { question, interval: SECOND, timeout: SECOND / 2, healthy_after: 1, unhealthy_after: 2 };
    let policy = ClusterPolicy { check: Some(check), ..ClusterPolicy::default() };
    let world = World::new(Setup { meshed: false, endpoints: vec![GOOD, OTHER], cluster: policy, ..Setup::default() });
    let cluster = cluster("shop/catalog:80", ClusterKind::Endpoints, &world.setup);
    let mut snapshot = client_snapshot(&world.setup, 2);
    snapshot.clusters.insert("shop/catalog:80".to_owned(), Arc::clone(&cluster));
    world.client_means.snapshots.publish(Arc::new(snapshot));
    tokio::task::spawn_local(checks::run(Rc::downgrade(&world.client)));
    (world, cluster)
}

fn ready(cluster: &Cluster) -> Vec<String> {
    let mut ready: Vec<String> = cluster.endpoints.load().ready.iter().map(|endpoint| endpoint.address.to_string()).collect();
    ready.sort_unstable();
    ready
}

#[test]
fn a_check_by_http_goes_by_the_status() {
    // Aim: path and host as declared, another status or none is no good answer, and who answers well again is back.
    run(|| async {
        let question = CheckQuestion::Http { path: "/healthz?a".into(), expect: vec![200, 204], host: "catalog.shop".into() };
        let (mut world, cluster) = asking(question);
        let answers = Rc::new(RefCell::new("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"));
        let now = Rc::clone(&answers);
        tokio::task::spawn_local(async move {
            while let Some((address, mut socket)) = world.applications.recv().await {
                let now = Rc::clone(&now);
                tokio::task::spawn_local(async move {
                    let asked = head(&mut socket).await;
                    assert!(asked.starts_with("GET /healthz?a HTTP/1.1\r\n") && asked.contains("host: catalog.shop\r\n"), "{asked}");
                    let answer = if address.to_string() == GOOD { "HTTP/1.1 204 No Content\r\n\r\n" } else { *now.borrow() };
                    write(&mut socket, answer).await;
                    if answer.is_empty() {
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        for bad in ["HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n", "", "<html>what?</html>"] {
            answers.replace("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
            tokio::time::sleep(SECOND * 4).await;
            assert_eq!(ready(&cluster), [GOOD, OTHER], "before {bad:?}");
            answers.replace(bad);
            tokio::time::sleep(SECOND * 5).await;
            assert_eq!(ready(&cluster), [GOOD], "{bad:?}");
        }
    });
}

/// Answers checks by gRPC with a serving status.
async fn health(socket: Socket, serving: u8) {
    let Ok(mut server) = h2::server::handshake(socket).await else { return };
    while let Some(Ok((request, mut response))) = server.accept().await {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        tokio::task::spawn_local(async move {
            let mut body = request.into_body();
            let asked = body.data().await.unwrap().unwrap();
            assert_eq!(asked.as_ref(), b"\0\0\0\0\x06\x0a\x04shop");
            let mut stream = response.send_response(Response::new(()), false).unwrap();
            stream.send_data(Bytes::from(vec![0, 0, 0, 0, 2, 8, serving]), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            stream.send_trailers(trailers).unwrap();
        });
    }
}

#[test]
fn a_check_by_grpc_wants_serving() {
    // Aim: SERVING is good; NOT_SERVING is not, and neither is a server of something else that answers HTTP/2 with what it has.
    run(|| async {
        for serves_grpc in [true, false] {
            let (mut world, cluster) = asking(CheckQuestion::Grpc { service: "shop".into() });
            tokio::task::spawn_local(async move {
                while let Some((address, mut socket)) = world.applications.recv().await {
                    if address.to_string() == GOOD || serves_grpc {
                        tokio::task::spawn_local(health(socket, if address.to_string() == GOOD { 1 } else { 2 }));
                    } else {
                        write(&mut socket, "<html><body>Error code: 505</body></html>").await;
                    }
                }
            });
            tokio::time::sleep(SECOND * 5).await;
            assert_eq!(ready(&cluster), [GOOD], "{serves_grpc}");
        }
    });
}

#[test]
fn a_check_by_tcp_wants_a_connection() {
    // Aim: who refuses or does not answer is out, who takes a connection is in.
    run(|| async {
        let (mut world, cluster) = asking(CheckQuestion::Tcp);
        let wires = Arc::clone(&world.client_wires);
        tokio::task::spawn_local(async move { while world.applications.recv().await.is_some() {} });
        for troubled in [&wires.refused, &wires.silent] {
            troubled.lock().insert(OTHER.parse().unwrap());
            tokio::time::sleep(SECOND * 5).await;
            assert_eq!(ready(&cluster), [GOOD]);
            troubled.lock().clear();
            tokio::time::sleep(SECOND * 3).await;
            assert_eq!(ready(&cluster), [GOOD, OTHER]);
        }
    });
}

#[test]
fn opaque_connections_tell_who_cannot_be_reached() {
    // Aim: failed connects in a row throw an endpoint out, which is counted; a connection brings it back when its time is over.
    run(|| async {
        let outlier = Outlier {
            consecutive_errors: Some(5),
            consecutive_connect_failures: Some(3),
            success_rate_min_percent: None,
            latency_factor: None,
            interval: SECOND * 10,
            eject_for: SECOND * 30,
            max_ejected_percent: 50.0,
        };
        let policy = ClusterPolicy { outlier: Some(outlier), ..ClusterPolicy::default() };
        let setup = Setup { meshed: false, protocol: Protocol::Tcp, endpoints: vec![GOOD, OTHER], cluster: policy, ..Setup::default() };
        let mut world = World::new(setup);
        let snapshot = world.client_means.snapshots.load();
        let forward = snapshot.outbound[&SERVICE.parse().unwrap()].tcp.as_ref().unwrap();
        let Target::Cluster(cluster) = &forward.backends[0].target else { unreachable!() };
        let cluster = Arc::clone(cluster);
        world.client_wires.refused.lock().insert(OTHER.parse().unwrap());
        for _ in 0..40 {
            let _client = world.dial(SERVICE);
            assert_eq!(world.applications.recv().await.unwrap().0.to_string(), GOOD);
            // Who refuses is tried again by time.
            tokio::time::sleep(SECOND / 10).await;
        }
        assert_eq!(ready(&cluster), [GOOD]);
        assert!(world.client_means.telemetry.render().contains("meshwright_ejections_total 1\n"));
        world.client_wires.refused.lock().clear();
        tokio::time::sleep(SECOND * 31).await;
        let mut reached = HashSet::new();
        for _ in 0..40 {
            let _client = world.dial(SERVICE);
            reached.insert(world.applications.recv().await.unwrap().0.to_string());
        }
        assert_eq!((reached.len(), ready(&cluster).len()), (2, 2));
    });
}
