//! Answers that come before the request has ended, and bodies that nobody wants.

use std::convert::Infallible;

use bytes::Bytes;
use engine::model::Protocol;
use http::{Request, Version};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::time::Instant;

use super::*;
use crate::ground::limits::UNWANTED_SILENCE;

const TOO_LARGE: &str = "HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 3\r\n\r\nbig";

/// Answers 413 by the head, ends its side, and reads on.
async fn refuses_and_reads_on(mut socket: Socket) {
    head(&mut socket).await;
    write(&mut socket, TOO_LARGE).await;
    socket.shutdown().await.unwrap();
    let _ = tokio::io::copy(&mut socket, &mut tokio::io::sink()).await;
}

fn applications(world: &mut World, serve: impl AsyncFn(Socket) + Copy + 'static) {
    let (_, none) = mpsc::unbounded_channel();
    let mut applications = std::mem::replace(&mut world.applications, none);
    tokio::task::spawn_local(async move {
        while let Some((_, socket)) = applications.recv().await {
            tokio::task::spawn_local(async move { serve(socket).await });
        }
    });
}

/// Sends everything and only then looks for the answer, as simple clients do.
async fn uploads(mut client: Socket, path: &str, size: usize) -> String {
    write(&mut client, &format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n")).await;
    let chunk = vec![b'x'; 64 << 10];
    let mut left = size;
    while left > 0 {
        let now = left.min(chunk.len());
        if let Err(error) = client.write_all(&chunk[..now]).await {
            return format!("cut off with {left} bytes to go: {error}");
        }
        left -= now;
    }
    head(&mut client).await
}

/// The same over HTTP/2; the whole body must be taken, too.
async fn uploads_over_http2(client: Socket, size: usize) -> u16 {
    let mut sender = http2::client(client).await;
    let (sent, all_sent) = tokio::sync::oneshot::channel();
    let chunks = futures::stream::unfold((size, Some(sent)), |(left, mut sent)| async move {
        if left == 0 {
            let _ = sent.take()?.send(());
            return None;
        }
        let now = left.min(64 << 10);
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(vec![b'x'; now]))), (left - now, sent)))
    });
    let request = Request::post("http://catalog/a").version(Version::HTTP_2).body(BodyExt::boxed(StreamBody::new(chunks))).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "big");
    drop(all_sent);
    status
}

#[test]
fn an_early_answer_reaches_who_sends_on() {
    // Aim: the application refuses by the head, ends its side and reads on; every client gets its 413, as without a mesh, whatever it sends.
    run(|| async {
        for size in [1_000, 300_000, 5_000_000] {
            for edge in [false, true] {
                let mut world = World::new(Setup::default());
                applications(&mut world, refuses_and_reads_on);
                for _ in 0..5 {
                    let client = if edge { world.knock() } else { world.dial(SERVICE) };
                    let answer = uploads(client, "/a", size).await;
                    assert!(answer.starts_with("HTTP/1.1 413 "), "{size} bytes, edge {edge}: {answer}");
                }
            }
        }
    });
}

#[test]
fn an_early_answer_reaches_callers_over_http2() {
    // Aim: the same where the caller speaks HTTP/2 and the application HTTP/1.
    run(|| async {
        for size in [1_000, 300_000, 5_000_000] {
            for edge in [false, true] {
                let mut world = World::new(Setup { application: Protocol::Http1, ..Setup::default() });
                applications(&mut world, refuses_and_reads_on);
                for _ in 0..5 {
                    let client = if edge { world.knock() } else { world.dial(SERVICE) };
                    assert_eq!(uploads_over_http2(client, size).await, 413, "{size} bytes, edge {edge}");
                }
            }
        }
    });
}

#[test]
fn an_early_answer_survives_the_kernel() {
    // Aim: the same over real sockets, where a connection that is closed with bytes unread is reset and takes the answer with it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let mut world = World::new(Setup::default());
        *world.client_wires.real.lock() = true;
        *world.server_wires.real.lock() = true;
        applications(&mut world, refuses_and_reads_on);
        for edge in [false, true] {
            let calls: Vec<_> = (0..20)
                .map(|_| if edge { world.knock() } else { world.dial(SERVICE) })
                .map(|client| tokio::task::spawn_local(uploads(client, "/a", 2_000_000)))
                .collect();
            for call in calls {
                let answer = tokio::time::timeout(Duration::from_secs(60), call).await.expect("the call hangs").unwrap();
                assert!(answer.starts_with("HTTP/1.1 413 "), "edge {edge}: {answer}");
            }
        }
    });
}

#[test]
fn an_answer_is_heard_although_the_application_stopped_reading() {
    // Aim: an application that answers, closes and takes nothing more is heard by who still sends, also where the write fails first.
    run(|| async {
        let mut world = World::new(Setup::default());
        applications(&mut world, async |mut socket| {
            head(&mut socket).await;
            write(&mut socket, TOO_LARGE).await;
        });
        for _ in 0..10 {
            let answer = uploads(world.dial(SERVICE), "/a", 1_000_000).await;
            assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        }
    });
}

#[test]
fn the_mesh_s_own_answer_reaches_who_sends_on() {
    // Aim: a refusal of the mesh's own is an early answer too; and the connection goes on with the next request.
    run(|| async {
        let mut world = World::new(Setup::default());
        for mut client in [world.dial(SERVICE), world.knock()] {
            write(&mut client, "POST /nowhere HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n").await;
            client.write_all(&vec![b'x'; 1_000_000]).await.unwrap();
            assert!(head(&mut client).await.starts_with("HTTP/1.1 404 "));
            exactly(&mut client, "no_route".len()).await;
            write(&mut client, "GET /a HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let mut application = world.application().await;
            assert!(head(&mut application).await.starts_with("GET /a "));
        }
    });
}

#[test]
fn a_body_that_nobody_wants_has_its_bound() {
    // Aim: who announces a body, is refused and goes silent does not hold its connection for ever.
    run(|| async {
        let world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, "POST /nowhere HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nsome").await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("\r\ndate: ") && answer.contains(" GMT\r\n"), "{answer}");
        let began = Instant::now();
        assert_eq!(rest(&mut client).await, "no_route");
        assert!((UNWANTED_SILENCE..UNWANTED_SILENCE * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    });
}
