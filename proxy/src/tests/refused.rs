//! Work that an HTTP/2 server refused without processing it (RFC 9113, sections 8.7 and 6.8), and how many streams it takes.

use std::cell::Cell;

use bytes::Bytes;
use h2::Reason;
use http::Response;
use proto::mesh::{Hedge, Retry, RoutePolicy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::resources::{Told, told};
use super::unread::{ask, client, send, take};
use super::*;

/// Refuses the first `refused` streams of all its connections, answers the others with the length of their body.
async fn application(socket: Socket, refused: Rc<Cell<usize>>, streams_max: u32) {
    let mut builder = h2::server::Builder::new();
    let Ok(mut connection) = builder.max_concurrent_streams(streams_max).handshake::<_, Bytes>(socket).await else { return };
    while let Some(Ok((request, mut reply))) = connection.accept().await {
        if refused.get() > 0 {
            refused.set(refused.get() - 1);
            reply.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        tokio::task::spawn_local(async move {
            let length = take(&mut request.into_body()).await;
            // As long as a real one takes.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let response = Response::builder().header("x-length", length).body(()).unwrap();
            reply.send_response(response, true).unwrap();
        });
    }
}

/// Status, reason and what the application says it got, of a POST with a body.
async fn post(sender: &h2::client::SendRequest<Bytes>, length: usize) -> (u16, String, usize) {
    let mut sender = sender.clone().ready().await.unwrap();
    let (answer, mut stream) = sender.send_request(ask("POST", "/a"), false).unwrap();
    let sending = async {
        send(&mut stream, length).await;
        let _ = stream.send_data(Bytes::new(), true);
    };
    let (answer, ()) = tokio::join!(answer, sending);
    let answer = answer.unwrap();
    let header = |name: &str| answer.headers().get(name).map_or_else(String::new, |value| value.to_str().unwrap().to_owned());
    (answer.status().as_u16(), header("x-meshwright-reason"), header("x-length").parse().unwrap_or(0))
}

#[test]
fn a_refused_stream_is_sent_again_whatever_its_method() {
    // Aim: REFUSED_STREAM means not processed, so a POST goes again with its whole body; not for ever, and not when its body is gone.
    for (refused, length, status, got) in [(1, 1000, 200, 1000), (2, 60_000, 200, 60_000), (3, 1000, 503, 0), (1, 300_000, 503, 0)] {
        run(|| async move {
            let mut world = World::new(Setup::default());
            let sender = client(world.dial(SERVICE)).await;
            let refusals = Rc::new(Cell::new(refused));
            let posting = tokio::task::spawn_local(async move { post(&sender, length).await });
            tokio::task::spawn_local(application(world.application().await, refusals, 100));
            let (answered, reason, arrived) = posting.await.unwrap();
            let wanted = if status == 503 { "upstream_reset" } else { "" };
            assert_eq!((answered, reason.as_str(), arrived), (status, wanted, got), "{refused} refused, {length} bytes");
        });
    }
}

#[test]
fn a_policy_takes_nothing_from_what_was_refused() {
    // Aim: the same under policies that keep less of a body than was taken: a hedge for GETs, and retries of no bytes.
    let hedge = Some(Hedge { at_quantile: 95.0, max_percent: 5.0, methods: vec!["GET".into()] });
    let retry = governed::retry(2).map(|retry| Retry { body_buffer_bytes: 0, ..retry });
    for policy in [RoutePolicy { hedge, ..RoutePolicy::default() }, RoutePolicy { retry, ..RoutePolicy::default() }] {
        run(|| async move {
            let (mut world, _) = told(&Told { policy, ..Told::to(vec!["10.77.9.1:80"]) });
            let sender = client(world.dial(SERVICE)).await;
            let posting = tokio::task::spawn_local(async move { post(&sender, 1000).await });
            tokio::task::spawn_local(application(world.application().await, Rc::new(Cell::new(1)), 100));
            assert_eq!(posting.await.unwrap(), (200, String::new(), 1000));
        });
    }
}

/// An HTTP/2 frame's type, flags and stream, and its payload.
async fn frame(socket: &mut Socket) -> (u8, u8, u32, Vec<u8>) {
    let mut head = [0; 9];
    socket.read_exact(&mut head).await.unwrap();
    let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
    socket.read_exact(&mut payload).await.unwrap();
    (head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload)
}

#[test]
fn streams_beyond_a_goaway_are_sent_again() {
    // Aim: a server that goes away and names no stream has processed none; the request goes to its next connection.
    run(|| async {
        let mut world = World::new(Setup::default());
        let sender = client(world.dial(SERVICE)).await;
        let posting = tokio::task::spawn_local(async move { post(&sender, 1000).await });
        let mut leaving = world.application().await;
        leaving.read_exact(&mut [0; 24]).await.unwrap();
        leaving.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        while frame(&mut leaving).await.0 != 1 {}
        // GOAWAY: last stream 0, NO_ERROR.
        leaving.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
        tokio::task::spawn_local(application(world.application().await, Rc::default(), 100));
        assert_eq!(posting.await.unwrap(), (200, String::new(), 1000));
        drop(leaving);
    });
}

#[test]
fn a_server_that_takes_few_streams_gets_no_more() {
    // Aim: a burst on a new connection waits for the server's SETTINGS and honours them: nothing is refused, nothing fails.
    for streams_max in [1, 3, 7] {
        run(|| async move {
            let mut world = World::new(Setup::default());
            let sender = client(world.dial(SERVICE)).await;
            let posting: Vec<_> = (0..50)
                .map(|_| {
                    let sender = sender.clone();
                    tokio::task::spawn_local(async move { post(&sender, 100).await })
                })
                .collect();
            let mut applications = std::mem::replace(&mut world.applications, mpsc::unbounded_channel().1);
            tokio::task::spawn_local(async move {
                while let Some((_, socket)) = applications.recv().await {
                    tokio::task::spawn_local(application(socket, Rc::default(), streams_max));
                }
            });
            for posted in posting {
                assert_eq!(posted.await.unwrap(), (200, String::new(), 100), "{streams_max} at once");
            }
            assert!(!world.server_means.telemetry.render().contains("meshwright_retries_total{"), "something was refused");
        });
    }
}

#[test]
fn interim_answers_and_trailers_pass() {
    // Aim: 102 and 103 arrive where they came, in order and with their fields, and trailers pass both ways without any announcement.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut sender = client(world.dial(SERVICE)).await;
        let (mut answer, mut stream) = sender.send_request(ask("POST", "/a"), false).unwrap();
        stream.send_data(Bytes::from_static(b"hi"), false).unwrap();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        stream.send_trailers(trailers).unwrap();
        let socket = world.application().await;
        tokio::task::spawn_local(async move {
            let mut connection = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((request, mut reply))) = connection.accept().await {
                tokio::task::spawn_local(async move {
                    let mut body = request.into_body();
                    assert_eq!(take(&mut body).await, 2);
                    let trailers = body.trailers().await.unwrap().unwrap();
                    for (status, link) in [(102, "none"), (103, "</a.css>; rel=preload")] {
                        reply.send_informational(Response::builder().status(status).header("link", link).body(()).unwrap()).unwrap();
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    let mut stream = reply.send_response(Response::new(()), false).unwrap();
                    stream.send_data(Bytes::from_static(b"yes"), false).unwrap();
                    stream.send_trailers(trailers).unwrap();
                });
            }
        });
        for (status, link) in [(102, "none"), (103, "</a.css>; rel=preload")] {
            let interim = std::future::poll_fn(|cx| answer.poll_informational(cx)).await.unwrap().unwrap();
            assert_eq!((interim.status().as_u16(), &interim.headers()["link"]), (status, &link.parse().unwrap()));
        }
        let mut body = answer.await.unwrap().into_body();
        assert_eq!(take(&mut body).await, 3);
        assert_eq!(body.trailers().await.unwrap().unwrap()["x-sum"], "7");
    });
}

#[test]
fn large_heads_are_refused_with_a_reason() {
    // Aim: a head beyond 64 KiB is 431 too_large at the first hop, one just below it passes both hops with what the mesh adds.
    run(|| async {
        let mut world = World::new(Setup::default());
        let sender = client(world.dial(SERVICE)).await;
        let ask_with = |bytes: usize| {
            let mut request = ask("GET", "/a");
            request.headers_mut().insert("x-large", "x".repeat(bytes).parse().unwrap());
            request
        };
        let (refused, _) = sender.clone().send_request(ask_with(65 << 10), true).unwrap();
        let (passes, _) = sender.clone().send_request(ask_with((64 << 10) - 100), true).unwrap();
        let refused = refused.await.unwrap();
        assert_eq!((refused.status().as_u16(), &refused.headers()["x-meshwright-reason"]), (431, &"too_large".parse().unwrap()));
        let socket = world.application().await;
        tokio::task::spawn_local(async move {
            let builder = h2::server::Builder::new().max_header_list_size(1 << 20).clone();
            let mut connection = builder.handshake::<_, Bytes>(socket).await.unwrap();
            while let Some(Ok((_, mut reply))) = connection.accept().await {
                reply.send_response(Response::new(()), true).unwrap();
            }
        });
        assert_eq!(passes.await.unwrap().status(), 200);
    });
}

#[test]
fn answers_with_large_heads_are_not_the_callers_fault() {
    // Aim: an answer's head beyond 64 KiB, or with more than 100 fields, is 502 too_large; one just below arrives.
    for (bytes, fields, status) in [((64 << 10) - 100, 1, 200), (65 << 10, 1, 502), (1000, 98, 200), (1000, 101, 502)] {
        run(|| async move {
            let mut world = World::new(Setup::default());
            let mut sender = client(world.dial(SERVICE)).await;
            let (answer, _) = sender.send_request(ask("GET", "/a"), true).unwrap();
            let socket = world.application().await;
            tokio::task::spawn_local(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                let (_, mut reply) = connection.accept().await.unwrap().unwrap();
                let mut response = Response::new(());
                for _ in 0..fields {
                    response.headers_mut().append("x-large", "x".repeat(bytes / fields).parse().unwrap());
                }
                reply.send_response(response, true).unwrap();
                while connection.accept().await.is_some() {}
            });
            let answer = answer.await.unwrap();
            let reason = answer.headers().get("x-meshwright-reason").map(|value| value.to_str().unwrap());
            assert_eq!(
                (answer.status().as_u16(), reason),
                (status, (status == 502).then_some("too_large")),
                "{bytes} bytes, {fields} fields"
            );
        });
    }
}

#[test]
fn expectations_pass_over_http2() {
    // Aim: the body waits for the application's own 100, which arrives as it comes, and nobody says one for it.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut sender = client(world.dial(SERVICE)).await;
        let mut request = ask("POST", "/a");
        request.headers_mut().insert("expect", "100-continue".parse().unwrap());
        let (mut answer, mut stream) = sender.send_request(request, false).unwrap();
        let socket = world.application().await;
        tokio::task::spawn_local(async move {
            let mut connection = h2::server::handshake(socket).await.unwrap();
            let (request, mut reply) = connection.accept().await.unwrap().unwrap();
            tokio::task::spawn_local(async move { while connection.accept().await.is_some() {} });
            assert_eq!(request.headers()["expect"], "100-continue");
            tokio::time::sleep(Duration::from_secs(3)).await;
            reply.send_informational(Response::builder().status(100).body(()).unwrap()).unwrap();
            let length = take(&mut request.into_body()).await;
            reply.send_response(Response::builder().header("x-length", length).body(()).unwrap(), true).unwrap();
        });
        let begun = tokio::time::Instant::now();
        let interim = std::future::poll_fn(|cx| answer.poll_informational(cx)).await.unwrap().unwrap();
        assert_eq!((interim.status().as_u16(), begun.elapsed() >= Duration::from_secs(3)), (100, true));
        stream.send_data("body".into(), true).unwrap();
        assert_eq!(answer.await.unwrap().headers()["x-length"], "4");
    });
}
