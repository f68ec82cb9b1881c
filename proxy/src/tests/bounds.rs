//! Bounds of a worker, reached.

use engine::failure::REASON_HEADER;
use http::{HeaderMap, StatusCode};

use super::*;
use crate::ground::limits::{IDLE_MAX, IDLE_PER_DESTINATION_MAX, INTERIM_ANSWERS_MAX};
use crate::ground::line::{Interim, Line};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Servers without a mesh, so that each connection to them carries one request at a time.
fn plain() -> World {
    World::new(Setup { meshed: false, endpoints: vec!["10.77.9.1:80"], ..Setup::default() })
}

#[test]
fn upstream_connections_have_a_bound() {
    // Aim: at the bound a request that needs another connection is answered `overflow`, and one that finds one free is not.
    run(|| async {
        let mut world = plain();
        world.client.pool.bound(2);
        let mut under_way = Vec::new();
        for _ in 0..2 {
            let mut client = world.dial(SERVICE);
            write(&mut client, GET).await;
            let mut server = world.application().await;
            head(&mut server).await;
            under_way.push((client, server));
        }
        let mut third = world.dial(SERVICE);
        write(&mut third, GET).await;
        let answer = head(&mut third).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains(&format!("{REASON_HEADER}: overflow")), "{answer}");
        let (client, server) = &mut under_way[0];
        write(server, OK).await;
        assert!(head(client).await.starts_with("HTTP/1.1 200 "));
        let mut fourth = world.dial(SERVICE);
        write(&mut fourth, GET).await;
        head(server).await;
        write(server, OK).await;
        assert!(head(&mut fourth).await.starts_with("HTTP/1.1 200 "));
    });
}

#[test]
fn kept_connections_have_a_bound() {
    // Aim: of more connections to one destination than are kept, just so many are; the others are closed, and so nothing grows without end.
    run(|| async {
        const { assert!(IDLE_PER_DESTINATION_MAX < IDLE_MAX) };
        let mut world = plain();
        let mut under_way = Vec::new();
        for _ in 0..IDLE_PER_DESTINATION_MAX + 5 {
            let mut client = world.dial(SERVICE);
            write(&mut client, GET).await;
            let mut server = world.application().await;
            head(&mut server).await;
            under_way.push((client, server));
        }
        for (client, server) in &mut under_way {
            write(server, OK).await;
            assert!(head(client).await.starts_with("HTTP/1.1 200 "));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(world.client.pool.counts().idle.get(), IDLE_PER_DESTINATION_MAX);
        assert_eq!(world.client.pool.counts().open.get(), IDLE_PER_DESTINATION_MAX);
    });
}

#[test]
fn interim_answers_that_wait_are_bounded() {
    // Aim: a server that says "soon" without end to a client that does not read fills nothing: what is beyond the bound is forgotten.
    let line = Line::of(Arc::default());
    line.begin();
    for _ in 0..10 * INTERIM_ANSWERS_MAX {
        line.pass(Interim { status: StatusCode::EARLY_HINTS, headers: HeaderMap::new() });
    }
    let waiting = line.take_interim().unwrap();
    assert_eq!(String::from_utf8_lossy(&waiting).matches("HTTP/1.1 103").count(), INTERIM_ANSWERS_MAX);
}
