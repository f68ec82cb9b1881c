//! HTTP/2 and gRPC end to end.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use engine::model::Protocol;
use http::{HeaderMap, Request, Response, Version};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::*;

/// Runs hyper's tasks on the test's own thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct LocalTasks;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalTasks {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

type Sender = hyper::client::conn::http2::SendRequest<BoxBody<Bytes, Infallible>>;

/// An application that sends back what it got, with the target in a header and a gRPC status in the trailers.
pub(super) async fn application(socket: Socket) {
    let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
        let target = request.uri().to_string();
        let (mut trailers, version) = (HeaderMap::new(), request.version());
        assert_eq!(version, Version::HTTP_2);
        trailers.insert("grpc-status", "0".parse().unwrap());
        let forwarded = request.headers().get("x-forwarded-client-cert").cloned();
        let body = request.into_body().with_trailers(async move { Some(Ok(trailers)) });
        let mut response = Response::new(body);
        response.headers_mut().insert("x-target", target.parse().unwrap());
        if let Some(forwarded) = forwarded {
            response.headers_mut().insert("x-peer", forwarded);
        }
        Ok::<_, Infallible>(response)
    });
    let builder = hyper::server::conn::http2::Builder::new(LocalTasks);
    let _ = builder.serve_connection(TokioIo::new(socket), service).await;
}

pub(super) async fn client(socket: Socket) -> Sender {
    let (sender, connection) = hyper::client::conn::http2::Builder::new(LocalTasks).handshake(TokioIo::new(socket)).await.unwrap();
    tokio::task::spawn_local(connection);
    sender
}

pub(super) fn call(path: &str, body: &'static str) -> Request<BoxBody<Bytes, Infallible>> {
    Request::builder()
        .version(Version::HTTP_2)
        .method("POST")
        .uri(format!("http://catalog{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from_static(body.as_bytes())).boxed())
        .unwrap()
}

/// Reads an answer to its end.
pub(super) async fn finished(answer: Response<Incoming>) {
    answer.into_body().collect().await.unwrap();
}

#[test]
fn calls_share_a_connection_and_trailers_pass() {
    // Aim: HTTP/2 stays HTTP/2, many calls at once share one connection between the proxies and one to the application, trailers arrive.
    run(|| async {
        let mut world = World::new(Setup::default());
        let sender = client(world.dial(SERVICE)).await;
        let calls: Vec<_> = (0..50)
            .map(|n| {
                let mut sender = sender.clone();
                tokio::task::spawn_local(async move { sender.send_request(call(&format!("/{n}"), "hello")).await.unwrap() })
            })
            .collect();
        let application_socket = world.application().await;
        tokio::task::spawn_local(application(application_socket));
        for (n, call) in calls.into_iter().enumerate() {
            let response = call.await.unwrap();
            assert_eq!(response.headers()["x-target"], format!("http://catalog/{n}"));
            assert!(response.headers()["x-peer"].to_str().unwrap().ends_with(&format!("URI={FRONTEND}")));
            let body = response.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
            assert_eq!(body.to_bytes(), "hello");
        }
        assert_eq!((world.client.pool.counts().open.get(), world.server.pool.counts().open.get()), (1, 1));
    });
}

#[test]
fn streams_flow_both_ways_and_wait_for_a_slow_reader() {
    // Aim: a message is answered before the next is sent, and a reader that does not read stops the writer (bounded memory).
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut sender = client(world.dial(SERVICE)).await;
        let (feed, fed) = mpsc::channel::<Bytes>(1);
        let stream = futures::stream::unfold(fed, |mut fed| async move {
            let item = fed.recv().await?;
            Some((Ok::<_, Infallible>(Frame::data(item)), fed))
        });
        let body = BodyExt::boxed(StreamBody::new(stream));
        let request = call("/stream", "").map(|_| body);
        let calling = tokio::task::spawn_local(async move { sender.send_request(request).await.unwrap() });
        let socket = world.application().await;
        tokio::task::spawn_local(application(socket));
        let mut answer = calling.await.unwrap().into_body();
        for n in 0..10 {
            feed.send(Bytes::from(format!("message {n}"))).await.unwrap();
            let frame = answer.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(frame, format!("message {n}"));
        }
        let chunk = Bytes::from(vec![0; 1 << 20]);
        let mut sent = 0;
        while tokio::time::timeout(Duration::from_secs(1), feed.send(chunk.clone())).await.is_ok() {
            sent += 1;
            assert!(sent < 100, "nobody reads, and everything is taken");
        }
        let mut read = 0;
        while read < sent << 20 {
            read += answer.frame().await.unwrap().unwrap().into_data().unwrap().len();
        }
        drop(feed);
        assert_eq!(answer.collect().await.unwrap().trailers().unwrap()["grpc-status"], "0");
    });
}

#[test]
fn grpc_callers_get_their_own_codes() {
    // Aim: the mesh's own answers reach gRPC callers as status 200 with a grpc-status, and with the reason.
    run(|| async {
        let world = World::new(Setup { endpoints: vec![], ..Setup::default() });
        let mut sender = client(world.dial(SERVICE)).await;
        for (path, code, reason) in [("/a", "14", "no_endpoints"), ("/nowhere", "12", "no_route")] {
            let response = sender.send_request(call(path, "")).await.unwrap();
            let headers = response.headers();
            assert_eq!(
                (response.status().as_u16(), &headers["grpc-status"], &headers["x-meshwright-reason"]),
                (200, &code.parse().unwrap(), &reason.parse().unwrap())
            );
        }
    });
}

#[test]
fn a_stream_that_takes_too_long_ends_with_its_code() {
    // Aim: where the head has gone already, the caller's deadline and the route's end a gRPC stream with DEADLINE_EXCEEDED in trailers, and the
    // server's stream as well; a plain answer is cut.
    run(|| async {
        for (timeout, content) in [(true, "application/grpc"), (false, "application/grpc"), (true, "text/plain")] {
            let request_timeout = timeout.then_some(Duration::from_secs(2));
            let mut world = World::new(Setup { request_timeout, ..Setup::default() });
            let mut sender = client(world.dial(SERVICE)).await;
            let (feed, fed) = mpsc::channel::<Bytes>(1);
            let stream = futures::stream::unfold(fed, |mut fed| async move {
                let item = fed.recv().await?;
                Some((Ok::<_, Infallible>(Frame::data(item)), fed))
            });
            let mut request = call("/stream", "").map(|_| BodyExt::boxed(StreamBody::new(stream)));
            request.headers_mut().insert("content-type", content.parse().unwrap());
            if !timeout {
                request.headers_mut().insert("grpc-timeout", "2S".parse().unwrap());
            }
            let calling = tokio::task::spawn_local(async move { sender.send_request(request).await.unwrap() });
            let socket = world.application().await;
            tokio::task::spawn_local(application(socket));
            let mut answer = calling.await.unwrap().into_body();
            feed.send(Bytes::from_static(b"one")).await.unwrap();
            assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
            let (began, end) = (Instant::now(), answer.frame().await.unwrap());
            assert!(began.elapsed() <= Duration::from_secs(3), "{:?}", began.elapsed());
            if content == "text/plain" {
                assert!(end.is_err());
            } else {
                let trailers = end.unwrap().into_trailers().unwrap();
                assert_eq!(
                    (&trailers["grpc-status"], &trailers["grpc-message"]),
                    (&"4".parse().unwrap(), &"request_timeout".parse().unwrap())
                );
                assert!(answer.frame().await.is_none());
            }
            feed.closed().await;
        }
    });
}

#[test]
fn a_drain_says_goaway_and_finishes_what_is_under_way() {
    // Aim: the call under way is answered, and the connection ends by itself.
    run(|| async {
        let mut world = World::new(Setup::default());
        let socket = world.dial(SERVICE);
        let (mut sender, connection) = hyper::client::conn::http2::Builder::new(LocalTasks).handshake(TokioIo::new(socket)).await.unwrap();
        let connection = tokio::task::spawn_local(connection);
        let calling = tokio::task::spawn_local(async move { sender.send_request(call("/", "hi")).await.unwrap() });
        let socket = world.application().await;
        let shared = Rc::clone(&world.client);
        let draining = tokio::task::spawn_local(async move { worker::drain(&shared, Duration::from_secs(30)).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        tokio::task::spawn_local(application(socket));
        assert_eq!(calling.await.unwrap().into_body().collect().await.unwrap().to_bytes(), "hi");
        connection.await.unwrap().unwrap();
        draining.await.unwrap();
    });
}

#[test]
fn an_application_that_speaks_http1_only_is_reached() {
    // Aim: a cluster declared HTTP/1 gets HTTP/1.1 although the caller speaks HTTP/2; cookies are joined again.
    run(|| async {
        let mut world = World::new(Setup { application: Protocol::Http1, ..Setup::default() });
        let mut sender = client(world.dial(SERVICE)).await;
        let request = Request::get("http://catalog/a").header("cookie", "a=1").header("cookie", "b=2");
        let request = request.version(Version::HTTP_2).body(Full::default().boxed()).unwrap();
        let calling = tokio::task::spawn_local(async move { sender.send_request(request).await.unwrap() });
        let mut application = world.application().await;
        let request = head(&mut application).await;
        assert!(request.starts_with("GET /a HTTP/1.1\r\n") && request.contains("host: catalog\r\n"), "{request}");
        assert!(request.contains("cookie: a=1; b=2\r\n"), "{request}");
        write(&mut application, "HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
            .await;
        let response = calling.await.unwrap();
        assert!(!response.headers().contains_key("transfer-encoding") && !response.headers().contains_key("connection"));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hi");
    });
}

#[test]
fn a_peer_that_vanished_is_found_out() {
    // Aim: a machine that died in silence ends the calls on its connection within half a minute, and the next call goes elsewhere.
    run(|| async {
        let mut world = World::new(Setup { idle_timeout: None, ..Setup::default() });
        let mut sender = client(world.dial(SERVICE)).await;
        world.client_wires.frozen.lock().insert(SERVER.parse().unwrap());
        let response = sender.send_request(call("/a", "hello"));
        let calling = tokio::task::spawn_local(response);
        let _socket = world.application().await;
        world.freeze();
        let began = Instant::now();
        let response = calling.await.unwrap().unwrap();
        assert_eq!(
            (&response.headers()["grpc-status"], &response.headers()["x-meshwright-reason"]),
            (&"14".parse().unwrap(), &"upstream_reset".parse().unwrap())
        );
        assert!(began.elapsed() <= Duration::from_secs(35), "{:?}", began.elapsed());
    });
}

#[test]
fn a_request_is_framed_anew_for_http1() {
    // Aim: what HTTP/2 frames by itself keeps its body in HTTP/1.1, whatever the method.
    run(|| async {
        let mut world = World::new(Setup { application: Protocol::Http1, ..Setup::default() });
        let mut sender = client(world.dial(SERVICE)).await;
        let stream = futures::stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"hello")))]);
        let with_body = Request::get("http://catalog/a").version(Version::HTTP_2).body(BodyExt::boxed(StreamBody::new(stream))).unwrap();
        let calling = tokio::task::spawn_local(sender.send_request(with_body));
        let mut application = world.application().await;
        let request = head(&mut application).await;
        assert!(request.contains("transfer-encoding: chunked\r\n"), "{request}");
        assert_eq!(exactly(&mut application, 15).await, "5\r\nhello\r\n0\r\n\r\n");
        write(&mut application, "HTTP/1.1 204 No Content\r\n\r\n").await;
        calling.await.unwrap().unwrap();
    });
}

/// The same rule for every target, also of a CONNECT, which has no path.
fn for_every_target(table: &RouteTable) -> Arc<RouteTable> {
    let Action::Forward(forward) = &table.hosts[0].rules[0].action else { unreachable!("the tests' rule forwards") };
    matching(Match::default(), Arc::clone(forward))
}

/// Lets CONNECT through at the client's proxy; the snapshot that lets it through at the server's.
fn connectable(world: &World) -> Snapshot {
    let mut near = client_snapshot(&world.setup, 2);
    let outbound = near.outbound.values().next().unwrap();
    let http = outbound.http.as_deref().map(for_every_target);
    let outbound = Outbound { name: "out".into(), protocol: outbound.protocol, http, tcp: None, tls: None, content: 2 };
    near.outbound.insert(SERVICE.parse().unwrap(), Arc::new(outbound));
    world.client_means.snapshots.publish(Arc::new(near));
    let mut far = server_snapshot(&world.setup, 2);
    let inbound = far.inbound.take().unwrap();
    let port = inbound.port(8080);
    let port = |service: &str| {
        Arc::new(InboundPort {
            mode: port.mode,
            protocol: port.protocol,
            http: for_every_target(&port.http),
            service_namespace: "shop".into(),
            service: service.into(),
            idle_timeout: None,
        })
    };
    far.inbound = Some(Arc::new(Inbound { ports: HashMap::from([(8080, port("catalog"))]), other: port("other"), content: 2 }));
    far
}

/// A tunnel to an application that says everything again, and then goodbye.
async fn tunnel(world: &mut World) -> (h2::SendStream<Bytes>, h2::RecvStream) {
    let mut sender = unread::client(world.dial(SERVICE)).await;
    let request = Request::builder().method("CONNECT").uri("catalog:80").body(()).unwrap();
    let (answer, up) = sender.send_request(request, false).unwrap();
    let socket = world.application().await;
    tokio::task::spawn_local(async move {
        let mut connection = h2::server::handshake(socket).await.unwrap();
        while let Some(Ok((request, mut reply))) = connection.accept().await {
            tokio::task::spawn_local(async move {
                assert_eq!(request.method(), "CONNECT");
                let mut down = reply.send_response(Response::new(()), false).unwrap();
                let mut up = request.into_body();
                while let Some(Ok(data)) = up.data().await {
                    up.flow_control().release_capacity(data.len()).unwrap();
                    down.send_data(data, false).unwrap();
                }
                let _ = down.send_data(Bytes::from_static(b"bye"), true);
            });
        }
    });
    (up, answer.await.unwrap().into_body())
}

async fn say(up: &mut h2::SendStream<Bytes>, down: &mut h2::RecvStream, word: &'static str) {
    up.send_data(Bytes::from_static(word.as_bytes()), false).unwrap();
    assert_eq!(down.data().await.unwrap().unwrap(), word);
}

#[test]
fn a_connect_is_a_tunnel() {
    // Aim: bytes pass both ways at once over CONNECT on HTTP/2, each side ends by itself, and the exchange is over with both.
    run(|| async {
        let mut world = World::new(Setup::default());
        let far = connectable(&world);
        world.server_means.snapshots.publish(Arc::new(far));
        let (mut up, mut down) = tunnel(&mut world).await;
        for word in ["one", "two"] {
            say(&mut up, &mut down, word).await;
        }
        up.send_data(Bytes::new(), true).unwrap();
        assert_eq!(down.data().await.unwrap().unwrap(), "bye");
        assert!(down.data().await.is_none());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((world.client.patience.waiting(), world.server.patience.waiting()), (0, 0));
    });
}

#[test]
fn a_connect_is_asked_again() {
    // Aim: a tunnel over HTTP/2 is cut within a second by policies that deny it, and outlives others.
    run(|| async {
        let mut world = World::new(Setup::default());
        let far = connectable(&world);
        world.server_means.snapshots.publish(Arc::new(far));
        let (mut up, mut down) = tunnel(&mut world).await;
        say(&mut up, &mut down, "one").await;
        for (who, goes_on) in [("*", true), (CATALOG, false)] {
            let authorization = authorized::allowing(who);
            world.server_means.snapshots.publish(Arc::new(Snapshot { authorization, ..connectable(&world) }));
            tokio::time::sleep(Duration::from_millis(500)).await;
            if goes_on {
                say(&mut up, &mut down, "two").await;
            }
        }
        assert!(down.data().await.unwrap().is_err());
        assert!(world.server.standing.is_empty());
    });
}
