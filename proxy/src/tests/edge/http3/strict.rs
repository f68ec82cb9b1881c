//! What clients of HTTP/3 may not do, and what becomes of those that move, stand still, or meet an end.

use engine::model::{ClientLives, ClientTimeouts};

use super::*;

/// One host by this name, whose requests go into the mesh.
fn chain_of(world: &World, authority: &Authority, name: &'static str) -> (&'static str, Arc<engine::model::Chain>) {
    let own = cell(name, Some(certificate(authority, &[name])));
    (name, https(name, terms(&own), &table_of(world)))
}

/// The code that a server has reset a stream with.
fn reset(error: &h3::error::StreamError) -> Option<u64> {
    match error {
        h3::error::StreamError::RemoteTerminate { code, .. } => Some(code.value()),
        _ => None,
    }
}

#[test]
fn fields_of_a_connection_make_a_request_none() {
    // Aim: what other versions say of their connection is a malformed message here (RFC 9114, section 4.2), which reaches nobody and counts as taken
    // back; `te: trailers` is none of it, and pieces of a cookie are joined.
    really(|| async {
        let (mut world, port) = edge(http1(), ClientRules::default());
        let mut caller = call(port.address, config(), "a.example").await.unwrap();
        for (name, value) in [
            ("transfer-encoding", "chunked"),
            ("connection", "close"),
            ("keep-alive", "5"),
            ("proxy-connection", "close"),
            ("upgrade", "websocket"),
            ("te", "gzip"),
        ] {
            let mut request = get("a.example");
            request.headers_mut().insert(name, value.parse().unwrap());
            let mut stream = caller.ask(request).await;
            stream.finish().await.unwrap();
            let error = stream.recv_response().await.unwrap_err();
            assert_eq!(reset(&error), Some(h3::error::Code::H3_MESSAGE_ERROR.value()), "{name}: {error:?}");
        }
        assert!(world.applications.try_recv().is_err());
        let mut request = get("a.example");
        request.headers_mut().insert("te", "trailers".parse().unwrap());
        for crumb in ["a=1", "b=2"] {
            request.headers_mut().append("cookie", crumb.parse().unwrap());
        }
        let mut stream = caller.ask(request).await;
        stream.finish().await.unwrap();
        let asked = head(&mut world.application().await).await;
        assert!(asked.contains("cookie: a=1; b=2\r\n"), "{asked}");
    });
}

#[test]
fn uploads_that_are_taken_back_count() {
    // Aim: who begins uploads and breaks them off, without a word that the answer is not wanted, is sent away as one that takes requests back: each
    // was begun at the application.
    really(|| async {
        let http2 = Http2Rules { resets_per_minute: 3, ..Http2Rules::default() };
        let (world, port) = edge(http1(), ClientRules { http2, ..ClientRules::default() });
        let mut caller = call(port.address, config(), "a.example").await.unwrap();
        for _ in 0..4 {
            let mut stream = caller.ask(Request::post("https://a.example/up").body(()).unwrap()).await;
            stream.send_data(Bytes::from_static(b"some")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            stream.stop_stream(h3::error::Code::H3_REQUEST_CANCELLED);
            // Whatever is answered is taken.
            drop(timeout(Duration::from_millis(100), stream.recv_response()).await);
        }
        let error = caller.quic.closed().await;
        assert!(matches!(&error, quinn::ConnectionError::ApplicationClosed(close) if u64::from(close.error_code) == 0x107), "{error:?}");
        drop(world);
    });
}

#[test]
fn a_client_that_moves_comes_anew() {
    // Aim: policies of addresses and counts are of the address that a connection came from. From another one what is under way is answered to its
    // end, and what comes is not served: reset with the code that says so, and served on a connection that is made from there.
    really(|| async {
        let (mut world, port) = edge(http1(), ClientRules::default());
        let mut caller = call(port.address, config(), "a.example").await.unwrap();
        let mut first = caller.ask(get("a.example")).await;
        first.finish().await.unwrap();
        let mut application = world.application().await;
        head(&mut application).await;
        caller.endpoint.rebind(UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap()).unwrap();
        let mut second = caller.ask(get("a.example")).await;
        second.finish().await.unwrap();
        let error = second.recv_response().await.unwrap_err();
        assert_eq!(reset(&error), Some(h3::error::Code::H3_REQUEST_REJECTED.value()), "{error:?}");
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
        assert_eq!(whole(&mut first).await.1, "hi");
        drop((first, second));
        assert!(caller.over.await.unwrap().is_h3_no_error());
        assert!(timeout(Duration::from_millis(50), head(&mut application)).await.is_err(), "nobody was asked for it");
    });
}

#[test]
fn a_client_that_takes_nothing_is_not_waited_for() {
    // Aim: one that lets nothing of its answer pass for as long as it may has its stream reset, and the connection goes on.
    really(|| async {
        let timeouts = ClientTimeouts { write_stall: Duration::from_secs(1), ..ClientTimeouts::default() };
        let (mut world, port) = edge(http1(), ClientRules { timeouts, ..ClientRules::default() });
        let mut transport = quinn::TransportConfig::default();
        transport.stream_receive_window(2048_u32.into());
        let mut caller = call_by(port.address, (config(), transport), "a.example").await.unwrap();
        let mut stream = caller.ask(get("a.example")).await;
        stream.finish().await.unwrap();
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await;
        write(&mut application, &"x".repeat(50_000)).await;
        assert_eq!(stream.recv_response().await.unwrap().status(), 200);
        assert_eq!(rest(&mut application).await, "", "the application hears of it");
        let error = loop {
            match stream.recv_data().await {
                Ok(piece) => assert!(piece.is_some(), "half an answer does not look whole"),
                Err(error) => break error,
            }
        };
        assert_eq!(reset(&error), Some(h3::error::Code::H3_REQUEST_CANCELLED.value()), "{error:?}");
        let mut stream = caller.ask(get("a.example")).await;
        stream.finish().await.unwrap();
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(whole(&mut stream).await.0.status(), 204);
    });
}

#[test]
fn an_answer_may_take_longer_than_a_connection_may_rest() {
    // Aim: where a connection may rest for a second only, an application may take its time: the client is asked whether it lives, and does.
    really(|| async {
        let lives = ClientLives { idle: Duration::from_secs(1), ..ClientLives::default() };
        let (mut world, port) = edge(http1(), ClientRules { lives, ..ClientRules::default() });
        let mut caller = call(port.address, config(), "a.example").await.unwrap();
        let mut stream = caller.ask(get("a.example")).await;
        stream.finish().await.unwrap();
        let mut application = world.application().await;
        head(&mut application).await;
        tokio::time::sleep(Duration::from_secs(7)).await;
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
        assert_eq!(whole(&mut stream).await.1, "hi");
        drop(stream);
        assert!(caller.over.await.unwrap().is_h3_no_error(), "it rests, and ends");
    });
}

#[test]
fn each_name_has_its_own_bounds() {
    // Aim: QUIC is told how many requests may be at once before a name is known; what the name's own listener says holds all the same.
    really(|| async {
        let world = World::new(http1());
        let authority = Authority::new("public");
        let streams = |max_streams| {
            let http2 = Http2Rules { max_streams, ..Http2Rules::default() };
            Arc::new(ClientRules { http2, ..ClientRules::default() })
        };
        let chains = vec![("a.example".into(), streams(1)), ("b.example".into(), streams(3))];
        let clients = ClientPolicy { chains, ..with_http3(ClientRules::default()) };
        serve_chains_under(&world, ["a.example", "b.example"].map(|name| chain_of(&world, &authority, name)).into(), clients);
        let port = open(&world, QUIC_UNPROVED_MAX);
        for (name, max) in [("a.example", 1), ("b.example", 3)] {
            let mut caller = call(port.address, config(), name).await.unwrap();
            let mut kept = Vec::new();
            for _ in 0..max {
                kept.push(caller.ask(get(name)).await);
            }
            assert!(timeout(Duration::from_millis(200), caller.ask(get(name))).await.is_err(), "{name}");
        }
    });
}

#[test]
fn a_client_that_has_asked_nothing_may_still_when_an_end_begins() {
    // Aim: what is on its way when a drain begins is served, on a connection without a request too; then it ends without an error.
    really(|| async {
        let (mut world, port) = edge(http1(), ClientRules::default());
        let mut caller = call(port.address, config(), "a.example").await.unwrap();
        let shared = Rc::clone(&world.client);
        let drained = tokio::task::spawn_local(async move { worker::drain(&shared, Duration::from_secs(20)).await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut stream = caller.ask(get("a.example")).await;
        stream.finish().await.unwrap();
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
        assert_eq!(whole(&mut stream).await.1, "hi");
        drop(stream);
        assert!(caller.over.await.unwrap().is_h3_no_error());
        drained.await.unwrap();
    });
}

#[test]
fn who_is_cut_hears_of_it() {
    // Aim: at the end of a drain's time a client hears that its connection is over; of a process that has gone it would hear nothing for half a minute.
    really(|| async {
        let (mut world, port) = edge(http1(), ClientRules::default());
        let mut caller = call(port.address, config(), "a.example").await.unwrap();
        let mut stream = caller.ask(get("a.example")).await;
        stream.finish().await.unwrap();
        let mut application = world.application().await;
        head(&mut application).await;
        worker::drain(&world.client, Duration::from_millis(500)).await;
        let error = timeout(Duration::from_secs(2), caller.quic.closed()).await.expect("it hears of it");
        assert!(matches!(&error, quinn::ConnectionError::ApplicationClosed(close) if u64::from(close.error_code) == 0x102), "{error:?}");
    });
}

#[test]
fn all_workers_serve_a_port() {
    // Aim: two workers with room for one connection each take two clients at a port's one socket; the third waits until one has gone. Once the port is
    // closed and all have gone its socket is free, while the workers go on.
    really(|| async {
        let world = World::new(Setup::default());
        let own = cell("tls", Some(certificate(&Authority::new("public"), &["a.example"])));
        let chain = https("a", terms(&own), &replying(LocalReply::of(Reason::NoRoute)));
        serve_chains_under(&world, vec![("a.example", chain)], with_http3(ClientRules::default()));
        let means = Means { connections_max: 1, ..world.client_means.clone() };
        let workers = [1, 2].map(|seed| worker::Worker::spawn(format!("worker-{seed}"), means.clone(), seed).unwrap());
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let opened = workers[0].open_http3(PORT, socket).await.unwrap();
        workers[1].join_http3(PORT, Arc::clone(&opened[0])).await;
        let mut callers = Vec::new();
        for _ in 0..2 {
            let mut caller = call(address, config(), "a.example").await.unwrap();
            assert_eq!(caller.get("a.example").await.0.status(), 404);
            callers.push(caller);
        }
        let mut third = tokio::task::spawn_local(call(address, config(), "a.example"));
        assert!(timeout(Duration::from_millis(300), &mut third).await.is_err(), "there is no room");
        callers.pop().unwrap().quic.close(0_u32.into(), b"");
        let mut third = third.await.unwrap().unwrap();
        assert_eq!(third.get("a.example").await.0.status(), 404);
        for worker in &workers {
            worker.close_http3(PORT).await;
        }
        for caller in [callers.pop().unwrap(), third] {
            assert!(caller.over.await.unwrap().is_h3_no_error());
        }
        drop(opened);
        // The harness ends a test that waits for ever.
        while UdpSocket::bind(address).is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        workers.into_iter().for_each(worker::Worker::join);
    });
}

#[test]
fn requests_without_heads_have_a_bound() {
    // Aim: of streams that bring no head something stays with the connection, whatever a policy says of what may be taken back: after so many of them
    // it is told to go, without an error.
    really(|| async {
        let http2 = Http2Rules { resets_per_minute: u32::MAX, ..Http2Rules::default() };
        let (world, port) = edge(http1(), ClientRules { http2, ..ClientRules::default() });
        let caller = call(port.address, config(), "a.example").await.unwrap();
        let mut opened = 0;
        while let Ok((mut sending, mut receiving)) = caller.quic.open_bi().await {
            opened += 1;
            let _ = sending.finish();
            // Reset, as all of them are.
            drop(receiving.read_to_end(16).await);
        }
        assert!(opened >= crate::ground::limits::QUIC_HEADLESS_MAX, "{opened}");
        assert!(caller.over.await.unwrap().is_h3_no_error());
        drop(world);
    });
}
