//! Connections that rest until their server closes them.

use std::cell::RefCell;

use tokio::time::{Instant, timeout};

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Reads a head; `false`: there is none any more.
async fn asked(socket: &mut Socket) -> bool {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        match socket.read_u8().await {
            Ok(byte) => text.push(byte),
            Err(_) => return false,
        }
    }
    true
}

/// Serves a connection until it has rested for so long; notes after which rest each further request came.
async fn serve_until(mut socket: Socket, rest_max: Duration, rests: Rc<RefCell<Vec<Duration>>>) {
    let mut last: Option<Instant> = None;
    while timeout(rest_max, asked(&mut socket)).await == Ok(true) {
        rests.borrow_mut().extend(last.map(|last| last.elapsed()));
        write(&mut socket, OK).await;
        last = Some(Instant::now());
    }
}

/// Asks with these pauses between; the rests that a server of this patience saw.
async fn rests_seen(rest_max: Duration, pauses_ms: &[u64]) -> Vec<Duration> {
    let mut world = World::new(Setup { meshed: false, endpoints: vec!["10.77.9.1:80"], ..Setup::default() });
    let rests = Rc::new(RefCell::new(Vec::new()));
    let mut client = world.dial(SERVICE);
    let seen = Rc::clone(&rests);
    tokio::task::spawn_local(async move {
        while let Some((_, socket)) = world.applications.recv().await {
            tokio::task::spawn_local(serve_until(socket, rest_max, Rc::clone(&seen)));
        }
    });
    for pause in pauses_ms {
        write(&mut client, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "), "after a rest of {pause} ms");
        tokio::time::sleep(Duration::from_millis(*pause)).await;
    }
    rests.take()
}

#[test]
fn a_server_that_closes_early_is_not_met_at_the_last_moment() {
    // Aim: after the first connection that a server closed, none is used that has rested almost as long; fresh ones still are; where nothing
    // was closed, connections are used as long as ever.
    run(|| async {
        let second = Duration::from_secs(1);
        let pauses: Vec<u64> = [2000].into_iter().chain((0..60).flat_map(|n| [100, 880 + n * 2, 600, 50])).collect();
        let rests = rests_seen(second, &pauses).await;
        let longest = rests.iter().max().unwrap();
        assert!(*longest < second * 9 / 10 - Duration::from_millis(50) && rests.len() > 60, "{longest:?} of {}", rests.len());

        let rests = rests_seen(Duration::from_secs(60), &[2000, 3000, 900, 100]).await;
        assert_eq!(rests.len(), 3);
    });
}

#[test]
fn a_restart_teaches_nothing() {
    // Aim: a server that ends with five connections at rest is not taken for one that closes what rests: what it serves next is kept.
    run(|| async {
        let mut world = World::new(Setup { meshed: false, endpoints: vec!["10.77.9.1:80"], ..Setup::default() });
        let ask = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
        let (mut clients, mut sockets) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            let mut client = world.dial(SERVICE);
            write(&mut client, ask).await;
            let mut socket = world.application().await;
            head(&mut socket).await;
            clients.push(client);
            sockets.push(socket);
        }
        for (client, socket) in clients.iter_mut().zip(&mut sockets) {
            write(socket, OK).await;
            head(client).await;
            tokio::time::sleep(Duration::from_millis(600)).await;
        }
        drop(sockets);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let client = &mut clients[0];
        write(client, ask).await;
        let mut socket = world.application().await;
        for pause in [2000, 3000, 0] {
            head(&mut socket).await;
            write(&mut socket, OK).await;
            head(client).await;
            tokio::time::sleep(Duration::from_millis(pause)).await;
            write(client, ask).await;
        }
        head(&mut socket).await;
        assert!(world.applications.try_recv().is_err(), "it was not kept");
    });
}
