//! How long an exchange may live.

use tokio::time::Instant;

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
