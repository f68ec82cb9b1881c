//! Clients that take their time: each has its bound, and costs little until then.

use engine::decide::Version;
use tokio::time::{Instant, sleep};

use super::frames::*;
use super::*;
use crate::ground::limits::{HEAD_WAIT, KEPT_WAIT};
use crate::http::{Caller, CutOff, serve};
use crate::io::{Rewound, Stream};

/// How many of them there are.
const MANY: usize = 500;

/// Writes a byte of something every ten seconds until nobody takes it; how long that was.
async fn trickle(mut socket: Socket, first: &'static [u8], byte: &'static [u8]) -> Duration {
    let began = Instant::now();
    let _ = socket.write_all(first).await;
    let (mut from, mut to) = tokio::io::split(socket);
    let mut ended = std::pin::pin!(async move {
        let mut room = [0; 256];
        while let Ok(1..) = from.read(&mut room).await {}
    });
    loop {
        if to.write_all(byte).await.is_err() || tokio::time::timeout(Duration::from_secs(10), &mut ended).await.is_ok() {
            return began.elapsed();
        }
    }
}

async fn many(door: Door, what: &str, first: &'static [u8], byte: &'static [u8], (wait, each_bytes_max): (Duration, i64)) {
    let what = format!("{MANY} times {what}, {door:?}");
    let mut world = door.world(Protocol::Http1);
    let _seen = record(&mut world, DONE);
    let meter = Meter::begin();
    let slow: Vec<_> = (0..MANY).map(|_| tokio::task::spawn_local(trickle(door.dial(&world), first, byte))).collect();
    sleep(Duration::from_secs(30)).await;
    // Meanwhile others are served.
    let mut other = door.dial(&world);
    write(&mut other, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(hear(&mut other).await.text.starts_with("HTTP/1.1 200 "), "{what}");
    meter.judge(&what, MANY as i64 * each_bytes_max);
    for slow in slow {
        let took = slow.await.unwrap();
        assert!(took <= wait + Duration::from_secs(21), "{what}: {took:?}");
    }
}

#[test]
fn slow_heads_have_their_time() {
    // Aim: strangers have HEAD_WAIT (at an edge what its ClientPolicy says) for a head however they dose it, over HTTP/1.1; half a header block or preface of HTTP/2 has its time too.
    for door in [Door::Edge, Door::Inbound] {
        run(|| many(door, "a head that never ends", b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"a", (HEAD_WAIT, 48 << 10)));
        run(|| many(door, "a first line that never ends", b"GET /", b"a", (HEAD_WAIT, 48 << 10)));
        run(|| many(door, "half a preface", b"PRI * HTTP/2.0\r\n\r\n", b"", (HEAD_WAIT, 48 << 10)));
        run(|| many(door, "no SETTINGS", PREFACE, b"", (KEPT_WAIT, 96 << 10)));
        run(|| many(door, "half a block of HTTP/2", half_a_block(), b"", (KEPT_WAIT, 96 << 10)));
    }
}

/// Kept for the test's life.
fn half_a_block() -> &'static [u8] {
    let bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, END_STREAM, 1, &block(&PLAIN))].concat();
    Box::leak(bytes.into_boxed_slice())
}

#[test]
fn slow_bodies_have_their_time() {
    // Aim: where a route says how long a request may take, or be silent, a body that trickles or stops is answered 504 in that time; at an edge
    // its client's own bound comes first, and says 408.
    for door in Door::ALL {
        for (request_timeout, idle_timeout, byte) in
            [(Some(Duration::from_secs(60)), None, &b"a"[..]), (None, Some(Duration::from_secs(60)), b"")]
        {
            run(|| async move {
                let mode = if door == Door::Inbound { MtlsMode::Permissive } else { MtlsMode::Strict };
                let mut world = World::new(Setup { mode, request_timeout, idle_timeout, ..Setup::default() });
                let mut client = door.dial(&world);
                write(&mut client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n").await;
                let mut application = world.application().await;
                head(&mut application).await;
                let began = Instant::now();
                let (mut from, mut to) = tokio::io::split(client);
                let trickling = tokio::task::spawn_local(async move {
                    while to.write_all(byte).await.is_ok() {
                        sleep(Duration::from_secs(5)).await;
                    }
                });
                let mut answer = Vec::new();
                let _ = from.read_buf(&mut answer).await;
                let took = began.elapsed();
                assert!(took < Duration::from_secs(62), "{door:?}: {took:?}");
                let status: &[u8] = if door == Door::Edge { b"HTTP/1.1 408 " } else { b"HTTP/1.1 504 " };
                assert!(answer.starts_with(status), "{door:?}: {}", String::from_utf8_lossy(&answer));
                trickling.abort();
            });
        }
    }
}

#[test]
fn slow_bodies_cost_little() {
    // Aim: bodies that trickle hold a connection each and little else, and others are served.
    for door in [Door::Edge, Door::Inbound] {
        run(|| async move {
            let mut world = door.world(Protocol::Http1);
            let _seen = record(&mut world, DONE);
            let meter = Meter::begin();
            let mut slow = Vec::new();
            for _ in 0..MANY {
                let mut client = door.dial(&world);
                write(&mut client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\na").await;
                slow.push(client);
            }
            let mut other = door.dial(&world);
            write(&mut other, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            assert!(hear(&mut other).await.text.starts_with("HTTP/1.1 200 "));
            meter.judge(&format!("{MANY} bodies that trickle, {door:?}"), MANY as i64 * (200 << 10));
        });
    }
}

#[test]
fn slow_readers_hold_little() {
    // Aim: who asks for a GiB and reads nothing of it has a bounded part of it held, in the proxies and on their ways.
    for door in Door::ALL {
        run(|| async move {
            let mut world = door.world(Protocol::Http1);
            let mut client = door.dial(&world);
            write(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let mut application = world.application().await;
            head(&mut application).await;
            write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n").await;
            let meter = Meter::begin();
            let mut given: i64 = 0;
            while let Ok(Ok(())) = tokio::time::timeout(QUIET, application.write_all(&[b'x'; 16 << 10])).await {
                given += 16 << 10;
            }
            println!("{} KiB given", given >> 10);
            assert!(given < 2 << 20, "{door:?}: {given} bytes");
            meter.judge(&format!("an answer that nobody reads, {door:?}"), 4 << 20);
            drop(client);
        });
    }
}

#[test]
fn half_a_preface_has_its_time_from_any_caller() {
    // Aim: where a peer of the mesh has said by ALPN that HTTP/2 comes, nobody waits for it for ever.
    run(|| async {
        let world = World::new(Setup::default());
        let (mut near, far) = pipe();
        write(&mut near, "PRI * HTTP/2.0\r\n").await;
        let (shared, began) = (Rc::clone(&world.server), Instant::now());
        let stream = Rewound::new(bytes::Bytes::new(), Stream::Plain(far));
        let answer = |_, _| std::future::ready(Err(CutOff));
        serve(stream, (Version::Http2, Caller::Peer), (&shared.serving, None), shared.drain.of(Direction::Inbound), answer).await;
        assert_eq!(began.elapsed().as_secs(), HEAD_WAIT.as_secs());
    });
}
