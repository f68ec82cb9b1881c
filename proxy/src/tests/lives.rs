//! How long an exchange may live.

use http_body_util::BodyExt;
use proto::mesh::{Delay, Fault, RoutePolicy};
use tokio::time::Instant;

use super::resources::{Told, told};
use super::*;

const LIFE: Duration = Duration::from_secs(10);

/// Sends a piece every second until nobody takes one any more.
async fn chatter(mut socket: Socket, piece: &str) {
    while socket.write_all(piece.as_bytes()).await.is_ok() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[test]
fn a_busy_answer_and_a_tunnel_end_with_their_time() {
    // Aim: however busy, an answer or a tunnel is cut on both sides when its route's time is over, not earlier, and is recorded as such.
    run(|| async {
        for (ask, answer, piece) in [
            ("", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "1\r\na\r\n"),
            (
                "connection: upgrade\r\nupgrade: websocket\r\n",
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
                "a",
            ),
        ] {
            let mut world = World::new(Setup { stream_timeout: Some(LIFE), ..Setup::default() });
            let mut client = world.dial(SERVICE);
            write(&mut client, &format!("GET / HTTP/1.1\r\nhost: a\r\n{ask}\r\n")).await;
            let mut application = world.application().await;
            head(&mut application).await;
            // The wait for the head does not count.
            tokio::time::sleep(LIFE * 2).await;
            write(&mut application, answer).await;
            head(&mut client).await;
            let began = Instant::now();
            let chattering = tokio::task::spawn_local(chatter(application, piece));
            let said = rest(&mut client).await;
            assert!((9..=11).contains(&began.elapsed().as_secs()) && said.matches('a').count() >= 9, "{:?} {said}", began.elapsed());
            chattering.await.unwrap();
            // Both proxies have the same bound, and one of them is first.
            let metrics = world.client_means.telemetry.render() + &world.server_means.telemetry.render();
            assert!(metrics.lines().any(|line| line.contains("request_timeout") && line.ends_with(" 1")), "{metrics}");
        }
    });
}

/// A caller whose every request is held back so long, by a fault, within that time for the whole of it.
fn held_back(secs: i64, timeout: Option<Duration>) -> World {
    let wait = Some(prost_types::Duration { seconds: secs, nanos: 0 });
    let fault = Fault { per_million: 1_000_000, delay: Some(Delay { min: wait, max: wait }), ..Fault::default() };
    let policy = RoutePolicy { faults: vec![fault], ..RoutePolicy::default() };
    told(&Told { policy, timeout, ..Told::to(vec!["10.77.9.1:80"]) }).0
}

#[test]
fn a_delay_on_purpose_is_within_the_time_of_the_request() {
    // Aim: the route's timeout and the caller's deadline end a longer delay when they are over, and nothing is sent.
    run(|| async {
        let mut world = held_back(5, Some(Duration::from_secs(1)));
        let (mut client, began) = (world.dial(SERVICE), Instant::now());
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("request_timeout"), "{answer}");
        assert_eq!((began.elapsed().as_secs(), world.applications.try_recv().is_err()), (1, true));

        let mut world = held_back(5, None);
        let mut sender = http2::client(world.dial(SERVICE)).await;
        let mut call = http2::call("/a", "");
        call.headers_mut().insert("grpc-timeout", "1S".parse().unwrap());
        let began = Instant::now();
        let answer = sender.send_request(call).await.unwrap();
        assert_eq!((&answer.headers()["grpc-status"], began.elapsed().as_secs()), (&"4".parse().unwrap(), 1));
        assert!(world.applications.try_recv().is_err());
    });
}

#[test]
fn what_was_waited_is_not_left() {
    // Aim: after a delay the next hop is told what is left of the time, and the rest of the exchange has no more than that.
    run(|| async {
        let mut world = held_back(1, Some(Duration::from_secs(5)));
        let mut sender = http2::client(world.dial(SERVICE)).await;
        let began = Instant::now();
        let calling = tokio::task::spawn_local(async move { sender.send_request(http2::call("/a", "")).await.unwrap() });
        let mut connection = h2::server::handshake(world.application().await).await.unwrap();
        let (request, _unanswered) = connection.accept().await.unwrap().unwrap();
        let left: u64 = request.headers()["grpc-timeout"].to_str().unwrap().strip_suffix('m').unwrap().parse().unwrap();
        assert!((3900..=4000).contains(&left), "{left}");
        tokio::task::spawn_local(async move { while connection.accept().await.is_some() {} });
        let answer = calling.await.unwrap();
        assert_eq!((&answer.headers()["grpc-status"], began.elapsed().as_secs()), (&"4".parse().unwrap(), 5));
        answer.into_body().collect().await.unwrap();
    });
}

#[test]
fn a_wait_for_configuration_is_within_the_time_of_the_request() {
    // Aim: what a request waits until its destination is known again counts; what is over is not forwarded.
    run(|| async {
        for (timeout, left) in [(300, None), (2000, Some(1500))] {
            let setup = || Setup { request_timeout: Some(Duration::from_millis(timeout)), ..Setup::default() };
            let mut world = World::new(setup());
            let mut client = world.dial(SERVICE);
            let ask = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
            write(&mut client, ask).await;
            let mut application = world.application().await;
            head(&mut application).await;
            write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            head(&mut client).await;
            let without = Snapshot { outbound: HashMap::new(), ..client_snapshot(&setup(), 2) };
            world.client_means.snapshots.publish(Arc::new(without));
            write(&mut client, ask).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            world.client_means.snapshots.publish(Arc::new(client_snapshot(&setup(), 3)));
            let Some(left) = left else {
                let answer = head(&mut client).await;
                assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("request_timeout"), "{answer}");
                continue;
            };
            let text = head(&mut application).await;
            let told: u64 = text.lines().find_map(|line| line.strip_prefix("x-meshwright-deadline-ms: ")).unwrap().parse().unwrap();
            assert!((left - 100..=left).contains(&told), "{text}");
        }
    });
}
