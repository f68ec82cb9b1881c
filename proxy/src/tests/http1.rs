//! HTTP/1.1 end to end.

use std::rc::Rc;
use std::time::Duration;

use engine::model::Protocol;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::*;
use crate::ground::limits;

#[test]
fn connections_are_kept_on_both_sides_and_headers_keep_their_case() {
    // Aim: two requests travel over one connection of the client, one between the proxies and one to the application; header case, host
    // and the peer's certificate arrive as they should, and what the caller said of itself does not.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET /a HTTP/1.1\r\nHost: catalog\r\nX-CaSe: KePt\r\nX-Forwarded-Client-Cert: URI=me\r\n\r\n").await;
        let mut application = world.application().await;
        let request = head(&mut application).await;
        assert!(request.starts_with("GET /a HTTP/1.1\r\nHost: catalog\r\nX-CaSe: KePt\r\n"), "{request}");
        assert!(request.contains(&format!("By={CATALOG};Hash=")), "{request}");
        assert!(request.contains(&format!(";URI={FRONTEND}\r\n")) && !request.contains("URI=me"), "{request}");
        write(&mut application, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-AnSwEr: KePt\r\n\r\nhello").await;
        let answer = head(&mut client).await;
        assert_eq!(answer, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-AnSwEr: KePt\r\n\r\n");
        assert_eq!(exactly(&mut client, 5).await, "hello");
        for round in 0..3 {
            tokio::time::sleep(Duration::from_secs(round)).await;
            write(&mut client, "POST /b HTTP/1.1\r\nhost: catalog\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
            let request = head(&mut application).await;
            assert!(request.starts_with("POST /b HTTP/1.1\r\nhost: catalog\r\n"), "{request}");
            assert_eq!(exactly(&mut application, 13).await, "3\r\nabc\r\n0\r\n\r\n");
            write(&mut application, "HTTP/1.1 204 No Content\r\n\r\n").await;
            assert_eq!(head(&mut client).await, "HTTP/1.1 204 No Content\r\n\r\n");
        }
        assert_eq!((world.client.pool.counts().open.get(), world.server.pool.counts().open.get()), (1, 1));
        assert!(world.applications.try_recv().is_err(), "one connection to the application was enough");
    });
}

#[test]
fn unused_connections_close_in_time_although_the_sweep_rests() {
    // Aim: never early, two ticks late at most, also when the exchange before was a long one and the sweep rested meanwhile.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        for pause in [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(2600)] {
            write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let mut application = world.application().await;
            head(&mut application).await;
            tokio::time::sleep(pause).await;
            write(&mut application, "HTTP/1.1 204 No Content\r\n\r\n").await;
            head(&mut client).await;
            let answered = Instant::now();
            assert_eq!(rest(&mut application).await, "");
            let kept = answered.elapsed();
            assert!(kept >= limits::IDLE_PLAIN - limits::TICK && kept <= limits::IDLE_PLAIN + 2 * limits::TICK, "{pause:?}: {kept:?}");
        }
        tokio::time::sleep(limits::IDLE_MESH + 2 * limits::TICK).await;
        assert_eq!((world.client.pool.counts().open.get(), world.server.pool.counts().open.get()), (0, 0));
    });
}

#[test]
fn head_answers_and_close_delimited_answers_pass() {
    // Aim: a HEAD keeps its length, and an HTTP/1.0 server's answer without one arrives whole.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, "HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await;
        assert_eq!(head(&mut client).await, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n");
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.0 200 OK\r\nserver: BaseHTTP\r\n\r\nold").await;
        drop(application);
        assert_eq!(head(&mut client).await, "HTTP/1.1 200 OK\r\nserver: BaseHTTP\r\ntransfer-encoding: chunked\r\n\r\n");
        assert_eq!(exactly(&mut client, 13).await, "3\r\nold\r\n0\r\n\r\n");
    });
}

#[test]
fn trailers_arrive_announced_or_not() {
    // Aim: both ways, whether a `Trailer` announced them and whether `TE` asked for them; both connections serve on.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        let (mut application, mut round) = (None, 0);
        for announced in ["", "trailer: x-sum\r\n"] {
            for asked in ["", "te: trailers\r\n"] {
                round += 1;
                let body = format!("2\r\nok\r\n0\r\nx-sum: {round}\r\nx-more: a\r\n\r\n");
                let framing = format!("transfer-encoding: chunked\r\n{announced}\r\n{body}");
                write(&mut client, &format!("POST / HTTP/1.1\r\nhost: a\r\n{asked}{framing}")).await;
                if application.is_none() {
                    application = Some(world.application().await);
                }
                let application = application.as_mut().unwrap();
                assert_eq!(head(application).await.contains("te: trailers\r\n"), !asked.is_empty());
                assert_eq!(exactly(application, body.len()).await, body, "{announced:?} {asked:?}");
                write(application, &format!("HTTP/1.1 200 OK\r\n{framing}")).await;
                head(&mut client).await;
                assert_eq!(exactly(&mut client, body.len()).await, body, "{announced:?} {asked:?}");
            }
        }
    });
}

#[test]
fn an_answer_without_a_body_keeps_its_length() {
    // Aim: a 304 says how long the answer to a GET would have been (RFC 9110, section 8.6), and the next answer comes after it.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        for length in [0, 1000] {
            write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\nif-none-match: \"a\"\r\n\r\n").await;
            let mut application = world.application().await;
            head(&mut application).await;
            write(&mut application, &format!("HTTP/1.1 304 Not Modified\r\ncontent-length: {length}\r\netag: \"a\"\r\n\r\n")).await;
            let answer = head(&mut client).await;
            assert_eq!(answer, format!("HTTP/1.1 304 Not Modified\r\ncontent-length: {length}\r\netag: \"a\"\r\n\r\n"));
            write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            head(&mut application).await;
            write(&mut application, "HTTP/1.1 204 No Content\r\n\r\n").await;
            assert_eq!(head(&mut client).await, "HTTP/1.1 204 No Content\r\n\r\n");
            drop(application);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
}

#[test]
fn connect_is_a_tunnel_whatever_its_answer_says_of_a_body() {
    // Aim: RFC 9110, section 9.3.6: Content-Length and Transfer-Encoding of a 2xx to CONNECT are ignored.
    run(|| async {
        for framing in ["", "Content-Length: 0\r\n", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"] {
            let mut world = World::new(Setup::default());
            let mut snapshot = client_snapshot(&world.setup, 2);
            everywhere(&mut snapshot);
            world.client_means.snapshots.publish(Arc::new(snapshot));
            let mut snapshot = server_snapshot(&world.setup, 2);
            everywhere_inbound(&mut snapshot);
            world.server_means.snapshots.publish(Arc::new(snapshot));
            let mut client = world.dial(SERVICE);
            write(&mut client, "CONNECT db:5432 HTTP/1.1\r\nhost: db:5432\r\n\r\n").await;
            let mut application = world.application().await;
            assert!(head(&mut application).await.starts_with("CONNECT db:5432 HTTP/1.1\r\n"));
            write(&mut application, &format!("HTTP/1.1 200 OK\r\n{framing}\r\nfirst")).await;
            let answer = head(&mut client).await;
            assert_eq!(answer, "HTTP/1.1 200 OK\r\n\r\n", "{framing}");
            assert_eq!(exactly(&mut client, 5).await, "first");
            write(&mut client, "HTTP/1.1 400 bytes\r\n\r\n").await;
            assert_eq!(head(&mut application).await, "HTTP/1.1 400 bytes\r\n\r\n");
        }
    });
}

/// Routes with no path at all.
fn everywhere(snapshot: &mut Snapshot) {
    let outbound = snapshot.outbound.get_mut(&SERVICE.parse().unwrap()).unwrap();
    let Outbound { name, protocol, http, tcp, tls, content } = &**outbound;
    let http = http.as_deref().map(any_path);
    *outbound =
        Arc::new(Outbound { name: Arc::clone(name), protocol: *protocol, http, tcp: tcp.clone(), tls: tls.clone(), content: *content });
}

fn everywhere_inbound(snapshot: &mut Snapshot) {
    let inbound = snapshot.inbound.as_ref().unwrap();
    let other = &inbound.other;
    let port = || {
        Arc::new(InboundPort {
            mode: other.mode,
            protocol: other.protocol,
            http: any_path(&other.http),
            service_namespace: Arc::clone(&other.service_namespace),
            service: Arc::clone(&other.service),
            idle_timeout: other.idle_timeout,
        })
    };
    snapshot.inbound = Some(Arc::new(Inbound { ports: HashMap::from([(8080, port())]), other: port(), content: 2 }));
}

fn any_path(before: &RouteTable) -> Arc<RouteTable> {
    let Action::Forward(forward) = &before.hosts[0].rules[0].action else { unreachable!() };
    matching(Match::default(), Arc::clone(forward))
}

/// A head of that many fields.
fn fields(start: &str, count: usize) -> String {
    let named = start.matches("\r\n").count() - 1;
    let more: String = (named..count).map(|number| format!("X-Field-{number}: {number}\r\n")).collect();
    format!("{start}{more}\r\n")
}

#[test]
fn a_hundred_fields_pass_every_hop_and_one_more_passes_none() {
    // Aim: the bound is counted where a head comes in, and what the mesh adds finds room behind it; 431 for requests, 502 for answers.
    run(|| async {
        for edge in [false, true] {
            let mut world = World::new(Setup::default());
            let dial = |world: &World| if edge { world.knock() } else { world.dial(SERVICE) };
            let mut client = dial(&world);
            for _ in 0..2 {
                write(&mut client, &fields("GET / HTTP/1.1\r\nHost: a\r\n", 100)).await;
                let mut application = world.application().await;
                let request = head(&mut application).await.to_lowercase();
                assert!((1..100).all(|n| request.contains(&format!("x-field-{n}: {n}\r\n"))), "{request}");
                assert!(!request.contains("x-meshwright-fields"), "{request}");
                write(&mut application, &fields("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n", 100)).await;
                let answer = head(&mut client).await.to_lowercase();
                assert!(answer.starts_with("http/1.1 200 ok\r\n"), "{answer}");
                assert!((1..100).all(|n| answer.contains(&format!("x-field-{n}: {n}\r\n"))), "{answer}");
                drop(application);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            write(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let mut application = world.application().await;
            head(&mut application).await;
            write(&mut application, &fields("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n", 101)).await;
            let answer = head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("x-meshwright-reason: too_large\r\n"), "{answer}");
            exactly(&mut client, "too_large".len()).await;
            write(&mut client, &fields("GET / HTTP/1.1\r\nHost: a\r\n", 101)).await;
            let answer = rest(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 431 ") && answer.contains("x-meshwright-reason: too_large\r\n"), "{answer}");
        }
    });
}

#[test]
fn the_bound_on_a_heads_bytes_is_the_first_hops() {
    // Aim: as with fields, for 64 KiB, of requests and answers.
    run(|| async {
        let mut world = World::new(Setup::default());
        let filled = |start: &str, bytes: usize| format!("{start}x: {}\r\n\r\n", "x".repeat(bytes - start.len() - 7));
        let (ask, answer) = ("GET / HTTP/1.1\r\nHost: a\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n");
        let mut client = world.knock();
        write(&mut client, &filled(ask, limits::HEAD_BYTES_MAX)).await;
        let mut application = world.application().await;
        head(&mut application).await;
        let writing = filled(answer, limits::HEAD_BYTES_MAX);
        let (_, got) = tokio::join!(write(&mut application, &writing), head(&mut client));
        assert_eq!(got.len(), limits::HEAD_BYTES_MAX);
        write(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        head(&mut application).await;
        let writing = filled(answer, limits::HEAD_BYTES_MAX + 1);
        let (_, got) = tokio::join!(application.write_all(writing.as_bytes()), head(&mut client));
        assert!(got.starts_with("HTTP/1.1 502 ") && got.contains("x-meshwright-reason: too_large\r\n"), "{got}");
        exactly(&mut client, "too_large".len()).await;
        let _ = client.write_all(filled(ask, limits::HEAD_BYTES_MAX + 1).as_bytes()).await;
        let got = rest(&mut client).await;
        assert!(got.starts_with("HTTP/1.1 431 ") && got.contains("x-meshwright-reason: too_large\r\n"), "{got}");
    });
}

#[test]
fn an_upgrade_becomes_a_tunnel() {
    // Aim: WebSocket and its like pass both proxies, bytes flow both ways, and the tunnel ends when both sides have.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET /chat HTTP/1.1\r\nhost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
        let mut application = world.application().await;
        let request = head(&mut application).await;
        assert!(request.contains("Connection: Upgrade\r\nUpgrade: websocket\r\n"), "{request}");
        write(&mut application, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst").await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n") && answer.contains("Upgrade: websocket"), "{answer}");
        assert_eq!(exactly(&mut client, 5).await, "first");
        for n in 0..100 {
            write(&mut client, &format!("{n:03}")).await;
            assert_eq!(exactly(&mut application, 3).await, format!("{n:03}"));
        }
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut application).await, "");
        write(&mut application, "last").await;
        drop(application);
        assert_eq!(rest(&mut client).await, "last");
        assert_eq!(world.client.patience.waiting(), 0, "nothing is left over");
    });
}

#[test]
fn what_was_never_written_is_replayed() {
    // Aim: a dead endpoint costs no request, and neither does a kept connection that the other side has closed.
    run(|| async {
        let mut world = World::new(Setup { endpoints: vec![SERVER, TWIN], ..Setup::default() });
        world.client_wires.refused.lock().insert(TWIN.parse().unwrap());
        let mut client = world.dial(SERVICE);
        for _ in 0..20 {
            write(&mut client, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi").await;
            let mut application = world.application().await;
            head(&mut application).await;
            assert_eq!(exactly(&mut application, 2).await, "hi");
            write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            assert_eq!(head(&mut client).await, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
            // The application closes after each answer without saying so.
            drop(application);
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn failures_have_a_status_and_a_reason() {
    // Aim: each way in which an upstream can fail ends in its own code of the closed set, and the next request is served.
    run(|| async {
        let mut world = World::new(Setup { request_timeout: Some(Duration::from_secs(2)), ..Setup::default() });
        let mut client = world.dial(SERVICE);
        let ask = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        let cases: [(Option<&str>, &str, &str); 4] = [
            (Some("SSH-2.0-OpenSSH\r\n"), "502", "upstream_protocol"),
            (Some("HTTP/1.1 200 O"), "503", "upstream_reset"),
            (Some(""), "503", "upstream_reset"),
            (None, "504", "request_timeout"),
        ];
        for (said, status, reason) in cases {
            write(&mut client, ask).await;
            let mut application = world.application().await;
            head(&mut application).await;
            if let Some(said) = said {
                write(&mut application, said).await;
                drop(application);
            } else {
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
            let answer = head(&mut client).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{reason}: {answer}");
            assert!(answer.contains(&format!("x-meshwright-reason: {reason}\r\n")), "{reason}: {answer}");
            assert_eq!(exactly(&mut client, reason.len()).await, reason);
        }
        write(&mut client, "GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("no_route"), "{answer}");
    });
}

#[test]
fn unreachable_upstreams_have_their_own_reasons() {
    // Aim: refused, silent, and absent endpoints are told apart; connects have a bound; the server side's failures keep their reason.
    run(|| async {
        let ask = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        for (endpoints, refused, silent, at_server, status, reason) in [
            (vec![], false, false, false, "503", "no_endpoints"),
            (vec![SERVER], true, false, false, "503", "connect_failed"),
            (vec![SERVER], false, true, false, "503", "connect_timeout"),
            (vec![SERVER], true, false, true, "503", "connect_failed"),
        ] {
            let world = World::new(Setup { endpoints, ..Setup::default() });
            let wires = if at_server { &world.server_wires } else { &world.client_wires };
            for address in [SERVER, "[fd00:6d77:77::2]:8080"] {
                let address = address.parse().unwrap();
                if refused {
                    wires.refused.lock().insert(address);
                }
                if silent {
                    wires.silent.lock().insert(address);
                }
            }
            let mut client = world.dial(SERVICE);
            let began = Instant::now();
            write(&mut client, ask).await;
            let answer = head(&mut client).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{reason}: {answer}");
            assert!(answer.contains(&format!("x-meshwright-reason: {reason}\r\n")), "{reason}: {answer}");
            // The cluster's connect timeout is a second; the same place is not tried for longer than three times that.
            let took = began.elapsed().as_secs();
            assert!(if silent { (1..=3).contains(&took) } else { took == 0 }, "{reason} after {took} s");
        }
    });
}

#[test]
fn an_answer_cut_short_is_cut_short_for_the_client() {
    // Aim: a reset in the middle of a body never looks like a complete answer.
    run(|| async {
        let mut world = World::new(Setup::default());
        for framing in ["content-length: 10\r\n\r\nabc", "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
            let mut client = world.dial(SERVICE);
            write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let mut application = world.application().await;
            head(&mut application).await;
            write(&mut application, &format!("HTTP/1.1 200 OK\r\n{framing}")).await;
            head(&mut client).await;
            drop(application);
            let rest = rest(&mut client).await;
            assert!(rest.contains("abc") && !rest.ends_with("0\r\n\r\n"), "{rest}");
        }
    });
}

#[test]
fn silence_ends_and_a_client_that_leaves_is_let_go() {
    // Aim: idle timeouts answer 504 idle_timeout, and an abandoned exchange does not keep its upstream connection.
    run(|| async {
        let mut world = World::new(Setup { idle_timeout: Some(Duration::from_secs(5)), ..Setup::default() });
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut application = world.application().await;
        head(&mut application).await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("idle_timeout"), "{answer}");
        assert_eq!(rest(&mut application).await, "");
        for answered in [true, false] {
            let mut client = world.dial(SERVICE);
            write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let mut application = world.application().await;
            head(&mut application).await;
            if answered {
                write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n").await;
                head(&mut client).await;
            }
            let began = Instant::now();
            client.abort();
            drop(client);
            assert_eq!(rest(&mut application).await, "");
            assert!(began.elapsed() < Duration::from_secs(1), "given up at once, not by a timeout");
        }
        assert_eq!((world.client.patience.waiting(), world.server.patience.waiting()), (0, 0));
    });
}

#[test]
fn while_draining_answers_say_close() {
    // Aim: a drain loses nothing: the answer under way is given and says close, and the drain ends with the last connection.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut application = world.application().await;
        head(&mut application).await;
        let shared = Rc::clone(&world.client);
        let draining = tokio::task::spawn_local(async move { worker::drain(&shared, Duration::from_secs(30)).await });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!draining.is_finished(), "a request is under way");
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        assert!(head(&mut client).await.contains("connection: close\r\n"));
        assert_eq!(rest(&mut client).await, "");
        let began = Instant::now();
        draining.await.unwrap();
        assert!(began.elapsed() < Duration::from_millis(10));
    });
}

#[test]
fn the_application_may_speak_one_version_only() {
    // Aim: a cluster declared HTTP/2 gets HTTP/2 although the caller speaks HTTP/1.1.
    run(|| async {
        let mut world = World::new(Setup { application: Protocol::Http2, ..Setup::default() });
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET /a HTTP/1.1\r\nhost: catalog\r\n\r\n").await;
        let application = world.application().await;
        tokio::task::spawn_local(http2::application(application));
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("x-target: http://catalog/a\r\n"), "{answer}");
    });
}

#[test]
fn an_answer_with_two_lengths_is_framed_once() {
    // Aim: `transfer-encoding` wins over `content-length`, which must not travel on (RFC 9112, section 6.3).
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").await;
        assert_eq!(head(&mut client).await, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        assert_eq!(exactly(&mut client, 15).await, "5\r\nhello\r\n0\r\n\r\n");
    });
}

#[test]
fn a_switch_nobody_asked_for_is_garbage() {
    // Aim: an application that answers 101 out of nowhere gets the client a 502, not a connection in no known protocol.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        for _ in 0..2 {
            write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let mut application = world.application().await;
            head(&mut application).await;
            write(&mut application, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await;
            let answer = head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("upstream_protocol"), "{answer}");
            assert_eq!(exactly(&mut client, 17).await, "upstream_protocol");
        }
    });
}

#[test]
fn what_is_no_request_is_refused_with_the_reason() {
    // Aim: hyper's own 400 and 431 say why, as every error of the mesh's does, for a connection's first request and for a later one.
    run(|| async {
        let long = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(limits::HEAD_BYTES_MAX));
        for (text, status, reason) in [
            ("GET / HTTP/1.1\r\nbad header\r\n\r\n", "400 ", "bad_request"),
            ("nonsense\r\n\r\n", "400 ", "bad_request"),
            ("GET / HTTP/9.9\r\nhost: a\r\n\r\n", "400 ", "bad_request"),
            (&long, "431 ", "too_large"),
        ] {
            for later in [false, true] {
                let mut world = World::new(Setup::default());
                let mut client = world.dial(SERVICE);
                if later {
                    write(&mut client, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi").await;
                    let mut application = world.application().await;
                    head(&mut application).await;
                    write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
                    head(&mut client).await;
                    exactly(&mut client, 2).await;
                }
                // The proxy may have answered and closed before it has read everything.
                let _ = client.write_all(text.as_bytes()).await;
                let answer = rest(&mut client).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
                let header = format!("\r\nx-meshwright-reason: {reason}\r\n");
                assert!(answer.contains(&header) && answer.ends_with("\r\n\r\n"), "later {later}: {answer}");
            }
        }
    });
}
