//! Requests that are sent again: by themselves where nothing can go wrong, else as their route says.

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Exchanges one request on a new connection, so that all hops keep one.
async fn warmed(world: &mut World) -> (Socket, Socket) {
    let mut client = world.dial(SERVICE);
    write(&mut client, "GET /first HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut application = world.application().await;
    head(&mut application).await;
    write(&mut application, OK).await;
    head(&mut client).await;
    (client, application)
}

#[test]
fn a_safe_request_on_a_dying_connection_is_sent_once_more() {
    // Aim: an application that closes a kept connection as a request comes is no error of anybody's; what is sent again is the same head,
    // name by name; and once is enough.
    run(|| async {
        let mut world = World::new(Setup::default());
        let (mut client, mut application) = warmed(&mut world).await;
        write(&mut client, "GET /second?q HTTP/1.1\r\nHost: a\r\nX-MixedCase: Yes\r\n\r\n").await;
        let first = head(&mut application).await;
        drop(application);
        let mut again = world.application().await;
        assert_eq!(head(&mut again).await, first);
        assert!(first.contains("X-MixedCase: Yes\r\n") && first.starts_with("GET /second?q HTTP/1.1\r\n"), "{first}");
        write(&mut again, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
        assert_eq!(exactly(&mut client, 2).await, "ok");
        write(&mut client, "HEAD /third HTTP/1.1\r\nhost: a\r\n\r\n").await;
        head(&mut again).await;
        drop(again);
        let mut third = world.application().await;
        head(&mut third).await;
        drop(third);
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("upstream_reset"), "{answer}");
    });
}

#[test]
fn what_may_have_happened_does_not_happen_twice() {
    // Aim: no unsafe method, nothing with a body, nothing whose answer began, and nothing on a connection that was opened for it is sent again.
    run(|| async {
        for (ask, answer) in [
            ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", ""),
            ("DELETE /x HTTP/1.1\r\nhost: a\r\n\r\n", ""),
            ("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nok", ""),
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 2"),
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 103 Early Hints\r\n\r\n"),
        ] {
            let mut world = World::new(Setup::default());
            let (mut client, mut application) = warmed(&mut world).await;
            write(&mut client, ask).await;
            head(&mut application).await;
            write(&mut application, answer).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            drop(application);
            let mut answer = head(&mut client).await;
            if answer.starts_with("HTTP/1.1 103 ") {
                answer = head(&mut client).await;
            }
            assert!(answer.starts_with("HTTP/1.1 50"), "{ask}: {answer}");
            assert!(world.applications.try_recv().is_err(), "{ask}");
        }
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut application = world.application().await;
        head(&mut application).await;
        drop(application);
        assert!(head(&mut client).await.starts_with("HTTP/1.1 503 "));
        assert!(world.applications.try_recv().is_err(), "the one place there is has just failed");
    });
}

/// A service of two meshed endpoints, of which the first one's application is gone.
fn one_is_gone(setup: Setup) -> World {
    let world = World::new(Setup { endpoints: vec![SERVER, TWIN], ..setup });
    world.server_wires.refused.lock().extend([SERVER, "[fd00:6d77:77::2]:8080"].map(|gone| gone.parse::<SocketAddr>().unwrap()));
    world
}

/// What each of some connections is answered, and whether all that reached an application is what was asked.
async fn asked(world: &mut World, ask: &str, times: usize) -> Vec<String> {
    let mut answers = Vec::new();
    for _ in 0..times {
        let mut client = world.dial(SERVICE);
        write(&mut client, ask).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        if let Ok((at, mut application)) = world.applications.try_recv() {
            assert_eq!(at, TWIN.parse().unwrap());
            let (_, body) = ask.split_once("\r\n\r\n").unwrap();
            assert_eq!(head(&mut application).await.split(' ').next(), ask.split(' ').next());
            assert_eq!(exactly(&mut application, body.len()).await, body);
            write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        }
        answers.push(head(&mut client).await);
    }
    answers
}

#[test]
fn what_has_reached_no_application_goes_to_another() {
    // Aim: where a server's own proxy could not connect to its application nothing has happened, so the request is sent as it was to another
    // endpoint, whatever its method.
    run(|| async {
        for ask in [
            "GET /a HTTP/1.1\r\nhost: a\r\n\r\n",
            "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
            "DELETE /a HTTP/1.1\r\nhost: a\r\n\r\n",
            "PATCH /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
        ] {
            let mut world = one_is_gone(Setup::default());
            let answers = asked(&mut world, ask, 12).await;
            assert!(answers.iter().all(|answer| answer.starts_with("HTTP/1.1 200 ")), "{ask}: {answers:?}");
        }
    });
}

#[test]
fn a_body_beyond_the_bound_is_not_kept_over_http1() {
    // Aim: of a body up to the bound all that was written goes to another endpoint, byte by byte, when the server's proxy says at last that its
    // application does not answer; one byte more is sent once, and its caller is told so.
    run(|| async {
        let bound = usize::try_from(crate::ground::limits::REPLAY_HTTP1_BYTES_MAX).unwrap();
        for (bytes, kept) in [(bound, true), (bound + 1, false)] {
            let body: String = "meshwright ".chars().cycle().take(bytes).collect();
            let ask = format!("POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: {bytes}\r\n\r\n{body}");
            let mut world = World::new(Setup { endpoints: vec![SERVER, TWIN], ..Setup::default() });
            // Who refuses at once is heard of before the whole body is written, and then it is not sent again either.
            world.server_wires.silent.lock().extend([SERVER, "[fd00:6d77:77::2]:8080"].map(|gone| gone.parse::<SocketAddr>().unwrap()));
            let mut others = Vec::new();
            for _ in 0..12 {
                let mut client = world.dial(SERVICE);
                write(&mut client, &ask).await;
                let answer = tokio::select! {
                    Some((at, mut application)) = world.applications.recv() => {
                        assert_eq!(at, TWIN.parse().unwrap());
                        head(&mut application).await;
                        assert!(exactly(&mut application, bytes).await == body, "another body of {bytes} bytes");
                        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
                        head(&mut client).await
                    }
                    answer = head(&mut client) => answer,
                };
                others.extend(Some(answer).filter(|answer| !answer.starts_with("HTTP/1.1 200 ")));
            }
            assert_eq!(others.is_empty(), kept, "{bytes} bytes: {others:?}");
            assert!(
                others.len() < 12 && others.iter().all(|answer| answer.contains("x-meshwright-reason: connect_timeout\r\n")),
                "{others:?}"
            );
        }
    });
}

#[test]
fn what_has_reached_no_application_goes_to_another_over_http2() {
    // Aim: the same where sidecars speak HTTP/2 with one another; what they keep is used on.
    run(|| async {
        let mut world = one_is_gone(Setup { application: Protocol::Http2, ..Setup::default() });
        let mut applications = std::mem::replace(&mut world.applications, mpsc::unbounded_channel().1);
        tokio::task::spawn_local(async move {
            while let Some((_, socket)) = applications.recv().await {
                tokio::task::spawn_local(async move {
                    let mut connection = h2::server::handshake(socket).await.unwrap();
                    while let Some(Ok((request, mut reply))) = connection.accept().await {
                        tokio::task::spawn_local(async move {
                            let (mut body, mut text) = (request.into_body(), String::new());
                            while let Some(Ok(piece)) = body.data().await {
                                text += std::str::from_utf8(&piece).unwrap();
                            }
                            let response = http::Response::builder().header("x-body", text).header("content-length", "0");
                            reply.send_response(response.body(()).unwrap(), true).unwrap();
                        });
                    }
                });
            }
        });
        let mut client = world.dial(SERVICE);
        for _ in 0..20 {
            write(&mut client, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello").await;
            let answer = head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("x-body: hello\r\n"), "{answer}");
        }
    });
}

#[test]
fn the_only_application_that_is_gone_is_told_so_at_once() {
    // Aim: with nowhere else to go there is one attempt, and its reason is the caller's.
    run(|| async {
        let world = World::new(Setup::default());
        world.server_wires.refused.lock().extend([SERVER, "[fd00:6d77:77::2]:8080"].map(|gone| gone.parse::<SocketAddr>().unwrap()));
        for _ in 0..2 {
            let mut client = world.dial(SERVICE);
            write(&mut client, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi").await;
            let answer = head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("x-meshwright-reason: connect_failed\r\n"), "{answer}");
        }
    });
}

#[test]
fn a_safe_request_goes_to_another_endpoint() {
    // Aim: a caller's proxy whose server breaks off asks another one.
    run(|| async {
        let mut world = World::new(Setup { meshed: false, endpoints: vec!["10.77.9.1:80", "10.77.9.2:80"], ..Setup::default() });
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let (first, mut application) = world.applications.recv().await.unwrap();
        head(&mut application).await;
        drop(application);
        let (second, mut application) = world.applications.recv().await.unwrap();
        assert_ne!(first, second);
        head(&mut application).await;
        write(&mut application, OK).await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
    });
}
