//! Bytes that are no HTTP.

use std::time::Duration;

use engine::failure::{LocalReply, Reason};
use engine::model::{ByServerName, MtlsMode, Protocol};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::*;

fn undeclared(mode: MtlsMode) -> Setup {
    Setup { mode, protocol: Protocol::Auto, ..Setup::default() }
}

#[test]
fn a_server_may_speak_first() {
    // Aim: a greeting passes both proxies with no declaration and no wait worth the name.
    run(|| async {
        for mode in [MtlsMode::Strict, MtlsMode::Permissive] {
            for meshed in [true, false] {
                if mode == MtlsMode::Strict && !meshed {
                    continue;
                }
                let mut world = World::new(Setup { meshed, ..undeclared(mode) });
                let began = Instant::now();
                let mut client = world.dial(SERVICE);
                let mut application = world.application().await;
                write(&mut application, "220 ready\r\n").await;
                assert_eq!(exactly(&mut client, 11).await, "220 ready\r\n");
                assert!(began.elapsed() <= Duration::from_millis(25), "{:?}", began.elapsed());
                write(&mut client, "QUIT\r\n").await;
                assert_eq!(exactly(&mut application, 6).await, "QUIT\r\n");
            }
        }
    });
}

#[test]
fn http_that_comes_late_is_http_still() {
    // Aim: what was opened on suspicion is given up when the client turns out to speak HTTP.
    run(|| async {
        let mut world = World::new(undeclared(MtlsMode::Strict));
        let mut client = world.dial(SERVICE);
        let mut suspected = world.application().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(rest(&mut suspected).await, "");
        let mut application = world.application().await;
        assert!(head(&mut application).await.contains("x-forwarded-client-cert"));
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        head(&mut client).await;
    });
}

#[test]
fn each_direction_closes_on_its_own() {
    // Aim: half-close works both ways through both proxies, declared or not, at any size.
    run(|| async {
        for protocol in [Protocol::Tcp, Protocol::Auto] {
            let mut world = World::new(Setup { protocol, ..Setup::default() });
            let mut client = world.dial(SERVICE);
            let big = "x".repeat(1 << 20);
            let sent = big.clone();
            let sending = tokio::task::spawn_local(async move {
                write(&mut client, &sent).await;
                client.shutdown().await.unwrap();
                rest(&mut client).await
            });
            let mut application = world.application().await;
            assert!(rest(&mut application).await == big);
            write(&mut application, &big).await;
            application.shutdown().await.unwrap();
            assert!(sending.await.unwrap() == big);
        }
    });
}

#[test]
fn the_applications_own_tls_passes_untouched() {
    // Aim: an application's ClientHello reaches the application byte for byte, over mTLS between the proxies and past a permissive port.
    run(|| async {
        let mut hello = vec![22, 3, 1, 0, 47, 1, 0, 0, 43, 3, 3];
        hello.extend([7; 32]);
        hello.extend([0, 0, 2, 0x13, 1, 1, 0, 0, 0]);
        let hello = String::from_utf8(hello).unwrap();
        for from_mesh in [true, false] {
            let mut world = World::new(undeclared(MtlsMode::Permissive));
            let mut client = if from_mesh { world.dial(SERVICE) } else { world.dial_server() };
            write(&mut client, &hello).await;
            let mut application = world.application().await;
            assert_eq!(exactly(&mut application, hello.len()).await, hello);
            write(&mut application, "answer").await;
            assert_eq!(exactly(&mut client, 6).await, "answer");
        }
    });
}

#[test]
fn silence_ends_a_connection_and_a_dead_server_closes_it() {
    // Aim: idle connections end, which is no end of what was being said, and where nothing can be reached the client learns it.
    run(|| async {
        let setup = Setup { protocol: Protocol::Tcp, idle_timeout: Some(Duration::from_secs(10)), ..Setup::default() };
        let mut world = World::new(setup);
        let mut client = world.dial(SERVICE);
        let mut application = world.application().await;
        let began = Instant::now();
        assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(application.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!((10..=11).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        world.client_wires.refused.lock().insert(SERVER.parse().unwrap());
        assert_eq!(rest(&mut world.dial(SERVICE)).await, "");
    });
}

#[test]
fn outside_the_mesh_bytes_pass_in_plaintext_or_are_refused() {
    // Aim: what the mesh does not know goes where it wanted to, unless the mesh forbids it; HTTP is told why.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial("192.0.2.1:443");
        let (destination, mut outside) = world.applications.recv().await.unwrap();
        assert_eq!(destination.to_string(), "192.0.2.1:443");
        write(&mut client, "hello").await;
        assert_eq!(exactly(&mut outside, 5).await, "hello");

        let world = World::new(Setup { outside_denied: true, ..Setup::default() });
        let mut client = world.dial("192.0.2.1:80");
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("x-meshwright-reason: denied"), "{answer}");
        assert_eq!(rest(&mut world.dial("192.0.2.1:80")).await, "");
        let mut client = world.dial("10.96.0.9:80");
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(head(&mut client).await.contains("x-meshwright-reason: config_pending"));
    });
}

#[test]
fn a_port_that_a_mesh_address_does_not_serve_is_refused_at_once() {
    // Aim: 404 `no_route` for HTTP, a close for bytes, no wait; and a connection whose port is taken away is told the same.
    run(|| async {
        let world = World::new(Setup::default());
        let nowhere = |port: u16| {
            let address = format!("10.96.0.1:{port}").parse().unwrap();
            (address, Arc::new(Outbound { name: "nowhere".into(), protocol: Protocol::Auto, http: None, tcp: None, tls: None, content: 9 }))
        };
        let mut closed = client_snapshot(&Setup::default(), 2);
        closed.outbound.extend([nowhere(81)]);
        world.client_means.snapshots.publish(Arc::new(closed));
        let began = Instant::now();
        let mut client = world.dial("10.96.0.1:81");
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("x-meshwright-reason: no_route"), "{answer}");
        assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
        let mut client = world.dial("10.96.0.1:81");
        write(&mut client, "\x01\x02\x03\x04\x05\x06\x07\x08").await;
        assert_eq!(rest(&mut client).await, "");

        let mut open = world.dial(SERVICE);
        write(&mut open, "GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(head(&mut open).await.contains("x-meshwright-reason: no_route"));
        let mut taken = client_snapshot(&Setup::default(), 3);
        taken.outbound.extend([nowhere(80)]);
        world.client_means.snapshots.publish(Arc::new(taken));
        write(&mut open, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(head(&mut open).await.contains("x-meshwright-reason: no_route"));
    });
}

#[test]
fn a_server_that_turns_away_is_heard() {
    // Aim: what a server says before it closes without having read everything arrives, and the connection ends.
    run(|| async {
        let mut world = World::new(Setup { protocol: Protocol::Tcp, ..Setup::default() });
        let client = world.dial(SERVICE);
        let mut application = world.application().await;
        let (mut from, mut to) = tokio::io::split(client);
        let sending = tokio::task::spawn_local(async move { while to.write_all(&[0; 4096]).await.is_ok() {} });
        tokio::time::sleep(Duration::from_secs(1)).await;
        write(&mut application, "421 too busy\r\n").await;
        drop(application);
        let mut said = Vec::new();
        let _ = from.read_to_end(&mut said).await;
        assert_eq!(String::from_utf8_lossy(&said), "421 too busy\r\n");
        tokio::time::timeout(Duration::from_secs(1), sending).await.unwrap().unwrap();
        assert_eq!((world.client.patience.waiting(), world.server.patience.waiting()), (0, 0));
    });
}

/// A ClientHello that asks for a name.
fn hello(name: &str) -> String {
    let block16 = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let names = block16(&[&[0][..], &block16(name.as_bytes())].concat());
    let extensions = [&[0, 0][..], &block16(&names)].concat();
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &block16(&extensions)].concat();
    let message = [&[1, 0][..], &block16(&body)].concat();
    String::from_utf8([&[22, 3, 1][..], &block16(&message)].concat()).unwrap()
}

#[test]
fn tls_goes_where_its_name_leads() {
    // Aim: told apart by the name it asks for, in one piece or several, untouched; what is no TLS, asks for another name or leads to a
    // bad backend is closed, and none of it is heard by anybody.
    run(|| async {
        let setup = |address| Setup { meshed: false, endpoints: vec![address], protocol: Protocol::Tcp, ..Setup::default() };
        let to = |address| {
            let setup = setup(address);
            forward_to(cluster(address, ClusterKind::Endpoints, &setup), &setup)
        };
        let mut world = World::new(setup("10.77.9.9:443"));
        let bad = Arc::new(Forward::to(Arc::default(), Target::Reply(LocalReply::of(Reason::BadBackend))));
        let names = ByServerName::leading([("a.example", to("10.77.9.1:443")), ("*.example", to("10.77.9.2:443")), ("bad.example", bad)]);
        let mut snapshot = client_snapshot(&world.setup, 2);
        let listener =
            Outbound { name: "out".into(), protocol: Protocol::Tcp, http: None, tcp: None, tls: Some(Arc::new(names)), content: 2 };
        snapshot.outbound.insert(SERVICE.parse().unwrap(), Arc::new(listener));
        world.client_means.snapshots.publish(Arc::new(snapshot));
        for (name, wanted) in [("a.example", "10.77.9.1:443"), ("A.Example", "10.77.9.1:443"), ("x.y.example", "10.77.9.2:443")] {
            for pieces in [1, 2] {
                let hello = hello(name);
                let mut client = world.dial(SERVICE);
                for piece in hello.as_bytes().chunks(hello.len().div_ceil(pieces)) {
                    client.write_all(piece).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                let (address, mut application) = world.applications.recv().await.unwrap();
                assert_eq!((address.to_string().as_str(), exactly(&mut application, hello.len()).await), (wanted, hello), "{name}");
                write(&mut application, "answer").await;
                assert_eq!(exactly(&mut client, 6).await, "answer");
            }
        }
        for words in [hello("example"), hello("other"), "GET / HTTP/1.1\r\nhost: a.example\r\n\r\n".into(), "\x01\x02\x03".into()] {
            let mut client = world.dial(SERVICE);
            write(&mut client, &words).await;
            assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "{words:?}");
        }
        let mut client = world.dial(SERVICE);
        write(&mut client, &hello("bad.example")).await;
        assert_eq!(rest(&mut client).await, "");
        assert!(world.applications.try_recv().is_err());
        let scraped = world.client_means.telemetry.render();
        let closed = scraped.lines().find(|line| line.starts_with("meshwright_tcp_connections_closed_total") && line.contains("no_route"));
        assert!(closed.is_some_and(|line| line.ends_with(" 4")), "{scraped}");
    });
}
