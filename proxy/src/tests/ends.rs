//! How connections end: an end stays an end, a cut stays a cut, and half an end leaves the other half.

use std::io::ErrorKind;

use engine::model::Protocol;
use tokio::time::Instant;

use super::*;
use crate::ground::limits::{HEAD_WAIT, KEPT_WAIT};

/// What comes until the connection ends, and whether that is an end (`None`) or what else.
async fn until_the_end(socket: &mut Socket) -> (String, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let ended = socket.read_to_end(&mut bytes).await.err().map(|error| error.kind());
    (String::from_utf8_lossy(&bytes).into_owned(), ended)
}

fn cut(mut socket: Socket) {
    socket.abort();
}

const RESET: Option<ErrorKind> = Some(ErrorKind::ConnectionReset);

/// Every way that bytes can take: through both proxies with TLS between them, in plaintext, declared or not.
fn ways() -> impl Iterator<Item = Setup> {
    let way = |(protocol, meshed)| {
        let mode = if meshed { MtlsMode::Strict } else { MtlsMode::Permissive };
        Setup { protocol, meshed, mode, ..Setup::default() }
    };
    [Protocol::Tcp, Protocol::Auto].into_iter().flat_map(|protocol| [(protocol, true), (protocol, false)]).map(way)
}

/// An opaque connection on which both sides have spoken.
async fn spoken(world: &mut World) -> (Socket, Socket) {
    let mut client = world.dial(SERVICE);
    write(&mut client, "\x01\x02hello").await;
    let mut application = world.application().await;
    exactly(&mut application, 7).await;
    write(&mut application, "word").await;
    exactly(&mut client, 4).await;
    (client, application)
}

#[test]
fn a_reset_of_opaque_bytes_arrives_as_a_reset() {
    // Aim: whoever resets, the other side reads what came before and then a reset, never an end; who ends is read to an end.
    run(|| async {
        for setup in ways() {
            let mut world = World::new(setup);
            let (client, mut application) = spoken(&mut world).await;
            let mut client = client;
            write(&mut client, "last").await;
            cut(client);
            assert_eq!(until_the_end(&mut application).await, ("last".to_owned(), RESET));

            let (mut client, mut application) = spoken(&mut world).await;
            write(&mut application, "last").await;
            cut(application);
            assert_eq!(until_the_end(&mut client).await, ("last".to_owned(), RESET));

            let (mut client, mut application) = spoken(&mut world).await;
            write(&mut application, "last").await;
            application.shutdown().await.unwrap();
            assert_eq!(until_the_end(&mut client).await, ("last".to_owned(), None));
            client.shutdown().await.unwrap();
            assert_eq!(until_the_end(&mut application).await, (String::new(), None));
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!((world.client.patience.waiting(), world.server.patience.waiting()), (0, 0));
        }
    });
}

#[test]
fn a_reset_after_half_an_end_arrives_too() {
    // Aim: a client that has ended its side and is answered still sees its server's reset, and a server that of such a client.
    run(|| async {
        for setup in ways() {
            let mut world = World::new(setup);
            let (mut client, mut application) = spoken(&mut world).await;
            client.shutdown().await.unwrap();
            assert_eq!(until_the_end(&mut application).await, (String::new(), None));
            write(&mut application, "half").await;
            cut(application);
            assert_eq!(until_the_end(&mut client).await, ("half".to_owned(), RESET));
        }
    });
}

#[test]
fn what_the_proxy_ends_by_itself_is_cut() {
    // Aim: a timeout and the end of a proxy are no ends of what was being said, on either side.
    run(|| async {
        for setup in ways() {
            let mut world = World::new(Setup { idle_timeout: Some(Duration::from_secs(10)), ..setup });
            let (mut client, mut application) = spoken(&mut world).await;
            let (at_client, at_application) = tokio::join!(until_the_end(&mut client), until_the_end(&mut application));
            assert_eq!((at_client, at_application), ((String::new(), RESET), (String::new(), RESET)));
        }
    });
}

const ASK: &str = "GET /a HTTP/1.1\r\nhost: a\r\n\r\n";

#[test]
fn an_answer_until_the_end_is_whole_or_cut() {
    // Aim: an answer without a length that is cut does not end like a whole one, and what came before the cut arrives.
    run(|| async {
        for (meshed, together) in [(true, true), (true, false), (false, true), (false, false)] {
            let mode = if meshed { MtlsMode::Strict } else { MtlsMode::Permissive };
            for whole in [true, false] {
                let mut world = World::new(Setup { meshed, mode, ..Setup::default() });
                let mut client = world.dial(SERVICE);
                write(&mut client, "GET /a HTTP/1.0\r\nhost: a\r\n\r\n").await;
                let mut application = world.application().await;
                head(&mut application).await;
                write(&mut application, "HTTP/1.0 200 OK\r\n\r\nabc").await;
                if !together {
                    head(&mut client).await;
                    assert_eq!(exactly(&mut client, 3).await, "abc");
                }
                if whole {
                    application.shutdown().await.unwrap();
                } else {
                    cut(application);
                }
                let (text, ended) = until_the_end(&mut client).await;
                assert_eq!(ended, if whole { None } else { RESET }, "meshed {meshed}, together {together}: {text}");
                assert!(!together || text.ends_with("\r\n\r\nabc"), "{text}");
            }
        }
    });
}

#[test]
fn a_tunnels_reset_is_a_reset() {
    // Aim: what was HTTP before is cut like bytes, both ways.
    run(|| async {
        for by_client in [true, false] {
            let mut world = World::new(Setup::default());
            let mut client = world.dial(SERVICE);
            write(&mut client, "GET /a HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
            let mut application = world.application().await;
            head(&mut application).await;
            write(&mut application, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhi").await;
            head(&mut client).await;
            assert_eq!(exactly(&mut client, 2).await, "hi");
            let (from, mut to) = if by_client { (client, application) } else { (application, client) };
            cut(from);
            assert_eq!(until_the_end(&mut to).await, (String::new(), RESET));
        }
    });
}

#[test]
fn a_client_that_closes_its_side_after_its_request_is_answered() {
    // Aim: a shell's `printf | nc` gets its answer as it does directly, however late, and in both framings.
    run(|| async {
        for protocol in [Protocol::Http, Protocol::Auto] {
            for (meshed, mode) in [(true, MtlsMode::Strict), (false, MtlsMode::Permissive)] {
                let mut world = World::new(Setup { protocol, meshed, mode, ..Setup::default() });
                let mut client = world.dial(SERVICE);
                write(&mut client, "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi").await;
                client.shutdown().await.unwrap();
                let mut application = world.application().await;
                head(&mut application).await;
                assert_eq!(exactly(&mut application, 2).await, "hi");
                tokio::time::sleep(Duration::from_secs(600)).await;
                write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
                let (text, ended) = until_the_end(&mut client).await;
                assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nhello") && ended.is_none(), "{text}");
            }
        }
    });
}

#[test]
fn a_client_that_has_gone_is_noticed_by_its_reset() {
    // Aim: what nobody waits for is given up end to end, also where the client had ended its side before, and before or within the answer.
    run(|| async {
        for (half, answered) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut world = World::new(Setup::default());
            let mut client = world.dial(SERVICE);
            write(&mut client, ASK).await;
            if half {
                client.shutdown().await.unwrap();
            }
            let mut application = world.application().await;
            head(&mut application).await;
            if answered {
                write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n").await;
                head(&mut client).await;
            }
            let began = Instant::now();
            cut(client);
            assert_eq!(rest(&mut application).await, "");
            assert!(began.elapsed() <= Duration::from_secs(1), "{:?}", began.elapsed());
            assert_eq!((world.client.patience.waiting(), world.server.patience.waiting()), (0, 0));
        }
    });
}

#[test]
fn a_client_that_has_gone_is_noticed_behind_its_answer() {
    // Aim: an application that has answered and reads no further keeps nobody's upload for long: with its client it is given up.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n").await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        let uploaded = tokio::time::timeout(Duration::from_secs(1), client.write_all(&vec![0; 100_000_000])).await;
        assert!(uploaded.is_err(), "nobody reads it");
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200 OK\r\n"));
        assert_eq!(exactly(&mut client, 2).await, "ok");
        let began = Instant::now();
        cut(client);
        let read = tokio::time::timeout(Duration::from_secs(60), until_the_end(&mut application)).await;
        assert!(read.is_ok() && began.elapsed() <= Duration::from_secs(2), "{:?}", began.elapsed());
    });
}

#[test]
fn a_client_that_says_nothing_and_ends_its_side_hears_its_server() {
    // Aim: `nc HOST PORT </dev/null` reads the greeting of a server that speaks first, as it does directly.
    run(|| async {
        for pause in [Duration::ZERO, Duration::from_millis(5), Duration::from_secs(1)] {
            for protocol in [Protocol::Tcp, Protocol::Auto] {
                let mut world = World::new(Setup { protocol, ..Setup::default() });
                let mut client = world.dial(SERVICE);
                tokio::time::sleep(pause).await;
                client.shutdown().await.unwrap();
                let mut application = world.application().await;
                assert_eq!(until_the_end(&mut application).await, (String::new(), None));
                write(&mut application, "12:00").await;
                drop(application);
                assert_eq!(until_the_end(&mut client).await, ("12:00".to_owned(), None));
            }
        }
    });
}

#[test]
fn silence_does_not_end_an_exchange_and_ends_a_kept_connection() {
    // Aim: a slow answer, a silent stream of events and a WebSocket take hours; a connection without an exchange five minutes; both versions.
    run(|| async {
        let hours = Duration::from_secs(5400);
        let mut world = World::new(Setup { idle_timeout: None, ..Setup::default() });
        let mut client = world.dial(SERVICE);
        let mut web_socket = world.dial(SERVICE);
        write(&mut client, ASK).await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut web_socket, "GET /a HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
        let mut socket = world.application().await;
        head(&mut socket).await;
        write(&mut socket, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
        head(&mut web_socket).await;
        tokio::time::sleep(hours / 2).await;
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n").await;
        head(&mut client).await;
        tokio::time::sleep(hours / 2).await;
        write(&mut application, "x").await;
        assert_eq!(exactly(&mut client, 1).await, "x");
        write(&mut socket, "y").await;
        assert_eq!(exactly(&mut web_socket, 1).await, "y");
        let began = Instant::now();
        assert_eq!(until_the_end(&mut client).await, (String::new(), None));
        let (least, most) = (KEPT_WAIT, KEPT_WAIT + Duration::from_secs(1));
        assert!((least..=most).contains(&began.elapsed()), "{:?}", began.elapsed());
        drop((web_socket, socket));

        let mut silent = world.dial(SERVICE);
        let began = Instant::now();
        assert_eq!(until_the_end(&mut silent).await, (String::new(), None));
        assert!((least..=most).contains(&began.elapsed()), "{:?}", began.elapsed());

        let began = Instant::now();
        let sender = http2::client(world.dial(SERVICE)).await;
        tokio::time::sleep(least - Duration::from_secs(1)).await;
        assert!(!sender.is_closed());
        while !sender.is_closed() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!((least..=most).contains(&began.elapsed()), "{:?}", began.elapsed());
    });
}

#[test]
fn half_a_head_does_not_take_longer_than_allowed() {
    // Aim: a stranger has 75 s for a head, every time anew, and five minutes between two.
    run(|| async {
        let mut world = World::new(Setup { mode: MtlsMode::Permissive, ..Setup::default() });
        let mut stranger = world.dial_server();
        write(&mut stranger, ASK).await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        head(&mut stranger).await;
        tokio::time::sleep(KEPT_WAIT - Duration::from_secs(10)).await;
        write(&mut stranger, "GET /b HTTP").await;
        let began = Instant::now();
        until_the_end(&mut stranger).await;
        assert!((HEAD_WAIT..=HEAD_WAIT + Duration::from_secs(1)).contains(&began.elapsed()), "{:?}", began.elapsed());
    });
}

#[test]
fn a_port_that_is_no_http_any_more_serves_its_connections_once_more() {
    // Aim: a request on a connection that was open is answered by what its port was, in order and for the last time, in both versions and on
    // both sides; the next connection is carried as declared.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        let mut calls = http2::client(world.dial(SERVICE)).await;
        write(&mut client, ASK).await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        assert!(!head(&mut client).await.contains("close"));
        let opening = tokio::task::spawn_local({
            let mut calls = calls.clone();
            async move { http2::finished(calls.send_request(http2::call("/a", "")).await.unwrap()).await }
        });
        tokio::task::spawn_local(http2::application(world.application().await));
        opening.await.unwrap();

        let bytes = Setup { protocol: Protocol::Tcp, ..Setup::default() };
        world.client_means.snapshots.publish(Arc::new(client_snapshot(&bytes, 2)));
        world.server_means.snapshots.publish(Arc::new(server_snapshot(&bytes, 2)));
        write(&mut client, ASK).await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close\r\n"), "{answer}");
        assert_eq!(until_the_end(&mut client).await, (String::new(), None));
        http2::finished(calls.send_request(http2::call("/a", "")).await.unwrap()).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(calls.is_closed(), "no GOAWAY");
        spoken(&mut world).await;
    });
}

#[test]
fn bytes_go_on_as_bytes_when_their_port_becomes_http() {
    // Aim: the other way round an open connection is carried to its end as what it was.
    run(|| async {
        let mut world = World::new(Setup { protocol: Protocol::Tcp, ..Setup::default() });
        let (mut client, mut application) = spoken(&mut world).await;
        world.client_means.snapshots.publish(Arc::new(client_snapshot(&Setup::default(), 2)));
        world.server_means.snapshots.publish(Arc::new(server_snapshot(&Setup::default(), 2)));
        write(&mut client, "\x01more").await;
        assert_eq!(exactly(&mut application, 5).await, "\x01more");
        client.shutdown().await.unwrap();
        assert_eq!(until_the_end(&mut application).await, (String::new(), None));
    });
}
