//! What holds for clients of an edge before any rule is asked, on whole roads.

use engine::client::{Admission, AdmissionBounds, ClientAddress, ForwardedHeader};
use engine::consumers::AddressList;
use engine::model::{ClientLimits, ClientLives, ClientPolicy, ClientRules, ClientTimeouts, Edge, Policy, ProxyRule};
use tokio::time::Instant;

use super::*;

/// Serves the edge's port under these rules.
pub(super) fn under(world: &World, clients: ClientPolicy) {
    let mut snapshot = client_snapshot(&world.setup, 2);
    let Edge { name, port, content, .. } = Arc::try_unwrap(snapshot.edges.remove(&80).unwrap()).unwrap();
    snapshot.edges.insert(80, Arc::new(Edge { name, port, clients: Arc::new(clients), content }));
    world.client_means.snapshots.publish(Arc::new(snapshot));
}

fn behind(hops: usize) -> ClientRules {
    ClientRules { address: ClientAddress::of_hops(hops, ForwardedHeader::XForwardedFor), ..ClientRules::default() }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n";

#[test]
fn a_trusted_proxy_says_who_asks() {
    // Aim: the client and its proxies are sent on, by whatever stood before the client nobody is fooled.
    run(|| async {
        let mut world = World::new(Setup::default());
        under(&world, ClientPolicy::of_all(behind(1)));
        let mut client = world.knock();
        write(
            &mut client,
            &format!("{GET}x-forwarded-for: 127.0.0.1, 203.0.113.9\r\nx-forwarded-proto: https\r\nx-forwarded-host: b\r\n\r\n"),
        )
        .await;
        let request = head(&mut world.application().await).await;
        for wanted in ["x-forwarded-for: 203.0.113.9, 192.0.2.9\r\n", "x-forwarded-proto: https\r\n", "x-forwarded-host: b\r\n"] {
            assert!(request.contains(wanted), "{wanted}: {request}");
        }
        assert!(!request.contains("127.0.0.1"), "{request}");
    });
}

#[test]
fn a_stranger_forges_nothing() {
    // Aim: by default every header of the family is ours, an id is not taken, and names with underscores are gone.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.knock();
        let lies = "X-Forwarded-For: 1.1.1.1\r\nx-forwarded-host: evil\r\nForwarded: for=1.1.1.1\r\nx-forwarded-port: 1\r\nx-request-id: mine\r\nx_own: 1\r\n";
        write(&mut client, &format!("{GET}{lies}\r\n")).await;
        let request = head(&mut world.application().await).await.to_lowercase();
        for lie in ["1.1.1.1", "evil", "x-forwarded-port", "mine", "x_own"] {
            assert!(!request.contains(lie), "{lie}: {request}");
        }
        assert!(
            request.contains("forwarded: for=192.0.2.9;proto=http;host=\"a\"\r\n") && request.contains("x-forwarded-host: a\r\n"),
            "{request}"
        );
    });
}

fn proxied(required: bool, trusted: &str) -> ClientPolicy {
    let trusted = Some(AddressList::read(trusted).unwrap());
    ClientPolicy { proxy: Some(ProxyRule { required, trusted, timeout: Duration::from_secs(3) }), ..ClientPolicy::default() }
}

#[test]
fn a_balancer_says_who_comes() {
    // Aim: the address of the PROXY protocol is the client's, in one segment with the request or apart; who does not say it is reset and counted.
    run(|| async {
        let mut world = World::new(Setup::default());
        under(&world, proxied(true, "192.0.2.0/24"));
        for apart in [false, true] {
            let mut client = world.knock();
            write(&mut client, "PROXY TCP4 203.0.113.9 10.0.0.1 4711 80\r\n").await;
            if apart {
                tokio::task::yield_now().await;
            }
            write(&mut client, &format!("{GET}\r\n")).await;
            let request = head(&mut world.application().await).await;
            assert!(request.contains("x-forwarded-for: 203.0.113.9\r\n"), "{request}");
        }
        let mut client = world.knock();
        write(&mut client, &format!("{GET}\r\n")).await;
        assert_eq!(rest(&mut client).await, "");
        let metrics = world.client_means.telemetry.render();
        assert!(metrics.contains("meshwright_edge_proxy_protocol_refused_total 1\n"), "{metrics}");
    });
}

#[test]
fn a_balancer_introduces_bytes_too() {
    // Aim: what follows the header goes on untouched, to a server that may speak first.
    run(|| async {
        let mut world = World::new(Setup { protocol: Protocol::Tcp, application: Protocol::Tcp, ..Setup::default() });
        under(&world, proxied(false, "192.0.2.0/24"));
        let mut client = world.knock();
        write(&mut client, "PROXY TCP4 203.0.113.9 10.0.0.1 4711 80\r\nhello").await;
        assert_eq!(exactly(&mut world.application().await, 5).await, "hello");
    });
}

#[test]
fn more_than_may_come_are_closed() {
    // Aim: at the bound of an address a further connection is reset and counted; the place of one that ends is free.
    run(|| async {
        let mut world = World::new(Setup::default());
        let bounds = AdmissionBounds { per_address: 1, ..AdmissionBounds::default() };
        let admission = Arc::new(Admission::new(bounds));
        under(&world, ClientPolicy { admission: Some(Arc::clone(&admission)), ..ClientPolicy::default() });
        let mut first = world.knock();
        write(&mut first, &format!("{GET}\r\n")).await;
        let mut application = world.application().await;
        head(&mut application).await;
        assert_eq!(rest(&mut world.knock()).await, "");
        assert_eq!(admission.open(), 1);
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        head(&mut first).await;
        drop(first);
        while admission.open() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let metrics = world.client_means.telemetry.render();
        assert!(metrics.contains("meshwright_edge_clients_refused_total{bound=\"per_address\"} 1\n"), "{metrics}");
    });
}

/// The edge's rule takes bodies of so many bytes.
fn bodies(world: &World, most: u64, timeouts: ClientTimeouts) {
    let mut snapshot = client_snapshot(&world.setup, 2);
    let cluster = cluster("shop/catalog:80", ClusterKind::Endpoints, &world.setup);
    let policy = Policy { body_bytes_max: most, ..Policy::default() };
    let port = Port::Http(table(Arc::new(Forward::to(Arc::new(policy), Target::Cluster(cluster)))));
    let clients = Arc::new(ClientPolicy::of_all(ClientRules { timeouts, ..ClientRules::default() }));
    snapshot.edges.insert(80, Arc::new(Edge { name: "edge/80".into(), port, clients, content: 3 }));
    world.client_means.snapshots.publish(Arc::new(snapshot));
}

#[test]
fn a_body_is_no_longer_than_it_may_be() {
    // Aim: 413 too_large by the declared length, and by what comes where nobody says how long it is; one at the bound passes.
    run(|| async {
        let mut world = World::new(Setup::default());
        bodies(&world, 5, ClientTimeouts::default());
        let post = "POST / HTTP/1.1\r\nHost: a\r\n";
        let mut client = world.knock();
        write(&mut client, &format!("{post}content-length: 6\r\n\r\n123456")).await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("x-meshwright-reason: too_large\r\n"), "{answer}");
        let mut client = world.knock();
        write(&mut client, &format!("{post}transfer-encoding: chunked\r\n\r\n3\r\n123\r\n")).await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut client, "3\r\n456\r\n0\r\n\r\n").await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        let mut client = world.knock();
        write(&mut client, &format!("{post}content-length: 5\r\n\r\n12345")).await;
        let mut application = world.application().await;
        head(&mut application).await;
        assert_eq!(exactly(&mut application, 5).await, "12345");
    });
}

#[test]
fn a_body_that_trickles_is_given_up() {
    // Aim: silence of the bound, or a byte a second for longer than the grace, is 408.
    run(|| async {
        let world = World::new(Setup::default());
        let timeouts = ClientTimeouts { body_idle: Duration::from_secs(3), bytes_per_sec_min: 100, ..ClientTimeouts::default() };
        bodies(&world, 0, timeouts);
        let post = "POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 1000\r\n\r\n";
        let (mut silent, began) = (world.knock(), Instant::now());
        write(&mut silent, post).await;
        let answer = head(&mut silent).await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("request_timeout"), "{answer}");
        assert!((3..5).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        let (mut slow, began) = (world.knock(), Instant::now());
        write(&mut slow, post).await;
        let (mut read, mut written) = tokio::io::split(slow);
        let trickle = tokio::task::spawn_local(async move {
            for _ in 0..100 {
                if written.write_all(b"x").await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let mut answer = [0; 12];
        read.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 408");
        assert!((5..8).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        trickle.abort();
    });
}

#[test]
fn heads_and_connections_have_the_times_of_the_policy() {
    // Aim: half a head and silence end a connection when the policy says it; the last of so many requests says so.
    run(|| async {
        let world = World::new(Setup::default());
        let rules = ClientRules {
            timeouts: ClientTimeouts { request_headers: Duration::from_secs(2), ..ClientTimeouts::default() },
            lives: ClientLives { idle: Duration::from_secs(20), max_requests: 2, ..ClientLives::default() },
            limits: ClientLimits { uri_bytes: 10, ..ClientLimits::default() },
            ..ClientRules::default()
        };
        under(&world, ClientPolicy::of_all(rules));
        let (mut half, began) = (world.knock(), Instant::now());
        write(&mut half, "GET / HTTP/1.1\r\nHost: a\r\n").await;
        rest(&mut half).await;
        assert!((2..4).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        let mut client = world.knock();
        write(&mut client, "GET /nowhere/long HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let first = head(&mut client).await;
        assert!(first.starts_with("HTTP/1.1 414 ") && !first.contains("connection: close"), "{first}");
        let text = rest_of_body(&mut client, &first).await;
        write(&mut client, "GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let second = head(&mut client).await;
        assert!(second.starts_with("HTTP/1.1 404 "), "{text} {second}");
        rest(&mut client).await;
    });
}

/// Reads the body that a head declares.
async fn rest_of_body(client: &mut Socket, head: &str) -> String {
    let length = head.to_lowercase().split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    exactly(client, length.unwrap_or(0)).await
}

/// The edge's only rule is a GRPCRoute's.
fn grpc_route(world: &World) {
    let mut snapshot = client_snapshot(&world.setup, 2);
    let cluster = cluster("shop/catalog:80", ClusterKind::Endpoints, &world.setup);
    let forward = Arc::new(Forward::to(Arc::default(), Target::Cluster(cluster)));
    let text = |text: &str| Arc::<str>::from(text);
    let source = RuleSource {
        kind: text("GRPCRoute"),
        namespace: text("shop"),
        name: text("catalog"),
        rule: text("0"),
        label: text("shop/catalog"),
    };
    let rule = Rule { id: 9, source, matches: Arc::default(), action: Action::Forward(forward) };
    let port = Port::Http(Arc::new(RouteTable::everywhere("edge/80", vec![Arc::new(rule)], 4)));
    snapshot.edges.insert(80, Arc::new(Edge { name: "edge/80".into(), port, clients: Arc::default(), content: 4 }));
    world.client_means.snapshots.publish(Arc::new(snapshot));
}

/// Answers one call of gRPC with what it said, and trailers.
async fn echo(socket: Socket) {
    let mut connection = h2::server::handshake(socket).await.unwrap();
    while let Some(Ok((request, mut reply))) = connection.accept().await {
        tokio::task::spawn_local(async move {
            assert_eq!(request.headers()["content-type"], "application/grpc+proto");
            assert_eq!(request.headers()["te"], "trailers");
            let mut body = request.into_body();
            let mut said = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                said.extend_from_slice(&data);
            }
            let head = http::Response::builder().header("content-type", "application/grpc+proto").body(()).unwrap();
            let mut stream = reply.send_response(head, false).unwrap();
            stream.send_data(said.into(), false).unwrap();
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            stream.send_trailers(trailers).unwrap();
        });
    }
}

#[test]
fn a_browser_calls_grpc_over_http1() {
    // Aim: both forms of gRPC-Web reach a gRPC server over HTTP/2, and their trailers come in the body.
    run(|| async {
        let mut world = World::new(Setup::default());
        grpc_route(&world);
        for (kind, said, heard) in [
            ("application/grpc-web+proto", "\0\0\0\0\u{1}x", "\\x00\\x00\\x00\\x00\\x01x\\x80\\x00\\x00\\x00\\x10grpc-status: 0\\r\\n"),
            ("application/grpc-web-text+proto", "AAAAAAF4", "AAAAAAF4gAAAABBncnBjLXN0YXR1czogMA0K"),
        ] {
            let mut client = world.knock();
            let length = said.len();
            write(
                &mut client,
                &format!(
                    "POST /a.B/C HTTP/1.1\r\nHost: a\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{said}"
                ),
            )
            .await;
            if kind == "application/grpc-web+proto" {
                let application = world.application().await;
                tokio::task::spawn_local(echo(application));
            }
            let answer = head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(&format!("content-type: {kind}\r\n")), "{answer}");
            let mut body = Vec::new();
            client.read_to_end(&mut body).await.unwrap();
            assert_eq!(unchunked(&body).escape_ascii().to_string(), heard, "{kind}");
        }
    });
}

/// The data of a body that came in chunks.
fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    while let Some(end) = body.windows(2).position(|pair| pair == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        data.extend_from_slice(&body[end + 2..end + 2 + size]);
        body = &body[end + 2 + size + 2..];
    }
    data
}
