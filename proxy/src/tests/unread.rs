//! Streams of HTTP/2 that nobody reads cost their own share and nothing else.

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Request, Response};

use super::*;
use crate::road::gateway;

/// More than any window of an application.
const LARGE: usize = 100 << 10;
/// What is tried, however it is configured.
const NUMBERS: [usize; 5] = [1, 4, 6, 100, 1000];
/// A backend that is no peer of the mesh.
const BACKEND: &str = "10.77.0.9:9090";

/// A client with the library's own, small windows.
pub(super) async fn client(socket: Socket) -> SendRequest<Bytes> {
    let (sender, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::task::spawn_local(connection);
    sender
}

pub(super) fn ask(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://catalog{path}")).body(()).unwrap()
}

/// Sends as much as the other side lets pass, piece by piece.
pub(super) async fn send(stream: &mut SendStream<Bytes>, mut count: usize) {
    while count > 0 {
        stream.reserve_capacity(count.min(16 << 10));
        let Some(Ok(room)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { return };
        let piece = room.min(count);
        if stream.send_data(vec![b'x'; piece].into(), false).is_err() {
            return;
        }
        count -= piece;
    }
}

/// Takes a body to its end; its length.
pub(super) async fn take(body: &mut RecvStream) -> usize {
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        length += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    length
}

/// Answers `/large` with more than anybody wants, `/leave` never, and leaves its body; everything else with the length of its body, twice.
async fn application(socket: Socket) {
    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
    while let Some(Ok((request, mut reply))) = connection.accept().await {
        tokio::task::spawn_local(async move {
            let path = request.uri().path().to_owned();
            let mut body = request.into_body();
            match path.as_str() {
                "/large" => {
                    let mut stream = reply.send_response(Response::new(()), false).unwrap();
                    send(&mut stream, 64 << 20).await;
                }
                "/leave" => std::future::pending().await,
                _ => {
                    let length = take(&mut body).await;
                    let mut stream = reply.send_response(Response::new(()), false).unwrap();
                    send(&mut stream, length).await;
                    stream.send_data(Bytes::new(), true).unwrap();
                }
            }
        });
    }
}

/// Serves every connection that reaches an application; counts them.
fn serve_applications(world: &mut World) -> Rc<std::cell::Cell<usize>> {
    let mut applications = std::mem::replace(&mut world.applications, mpsc::unbounded_channel().1);
    let count = Rc::new(std::cell::Cell::new(0));
    let counted = Rc::clone(&count);
    tokio::task::spawn_local(async move {
        while let Some((_, socket)) = applications.recv().await {
            counted.set(counted.get() + 1);
            tokio::task::spawn_local(application(socket));
        }
    });
    count
}

/// Where a stream stands still.
#[derive(Clone, Copy, Debug)]
enum Where {
    Mesh,
    Edge,
}

impl Where {
    fn world(self) -> World {
        match self {
            Self::Mesh => World::new(Setup { idle_timeout: None, ..Setup::default() }),
            Self::Edge => World::new(Setup { idle_timeout: None, meshed: false, endpoints: vec![BACKEND], ..Setup::default() }),
        }
    }

    fn dial(self, world: &World) -> Socket {
        match self {
            Self::Mesh => world.dial(SERVICE),
            Self::Edge => {
                let (near, far) = pipe();
                let arrival = Arrival { socket: far, peer: CLIENT.parse().unwrap(), destination: "10.77.0.1:80".parse().unwrap() };
                serve(&world.client, Direction::Outbound, gateway::serve_connection(arrival, 80, Rc::clone(&world.client)));
                near
            }
        }
    }
}

/// A call with a body that another client makes; it must be answered.
async fn call(at: Where, world: &World, what: &str) {
    let mut other = client(at.dial(world)).await;
    let (answer, mut stream) = other.send_request(ask("POST", "/take"), false).unwrap();
    let calling = async {
        send(&mut stream, LARGE).await;
        stream.send_data(Bytes::new(), true).unwrap();
        take(answer.await.unwrap().body_mut()).await
    };
    let answered = tokio::time::timeout(Duration::from_secs(30), calling).await;
    assert_eq!(answered.ok(), Some(LARGE), "{what}: another's call is stopped");
    let (answer, _) = other.send_request(ask("GET", "/a"), true).unwrap();
    let answered = tokio::time::timeout(Duration::from_secs(30), answer).await;
    assert!(answered.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status() == 200)), "{what}: another's call is stopped");
}

#[test]
fn what_a_reset_body_left_behind_stops_nobody() {
    // Aim: an application that never opens its window again for the bodies of streams that were reset stops no later caller.
    for at in [Where::Mesh, Where::Edge] {
        run(|| async move {
            let mut world = at.world();
            serve_applications(&mut world);
            for round in 0..3 {
                let mut leaving = client(at.dial(&world)).await;
                let (answer, mut stream) = leaving.send_request(ask("POST", "/leave"), false).unwrap();
                let stuck = tokio::time::timeout(Duration::from_secs(5), send(&mut stream, 10 << 20)).await;
                assert!(stuck.is_err(), "nobody reads it");
                stream.send_reset(h2::Reason::CANCEL);
                drop((answer, stream, leaving));
                tokio::time::sleep(Duration::from_secs(1)).await;
                call(at, &world, &format!("{at:?}, round {round}")).await;
            }
        });
    }
}

#[test]
fn answers_that_nobody_reads_stop_nobody() {
    // Aim: RFC 9113, 5.2: however many answers one caller leaves unread, all others get theirs, in the mesh and at an edge.
    for at in [Where::Mesh, Where::Edge] {
        for number in NUMBERS {
            run(|| async move {
                let mut world = at.world();
                serve_applications(&mut world);
                let sender = client(at.dial(&world)).await;
                let mut unread = Vec::new();
                for _ in 0..number {
                    let mut sender = sender.clone().ready().await.unwrap();
                    let (answer, _) = sender.send_request(ask("GET", "/large"), true).unwrap();
                    unread.push(answer.await.unwrap());
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
                call(at, &world, &format!("{number} answers, {at:?}")).await;
                drop(unread);
            });
        }
    }
}

#[test]
fn uploads_that_nobody_reads_stop_nobody() {
    // Aim: the same for bodies that an application with the smallest windows leaves where they are, and no connection is spent beyond those.
    for at in [Where::Mesh, Where::Edge] {
        for number in NUMBERS {
            run(|| async move {
                let mut world = at.world();
                let connections = serve_applications(&mut world);
                let sender = client(at.dial(&world)).await;
                let mut unread = Vec::new();
                for _ in 0..number {
                    let mut sender = sender.clone().ready().await.unwrap();
                    let (answer, mut stream) = sender.send_request(ask("POST", "/leave"), false).unwrap();
                    tokio::task::spawn_local(async move { send(&mut stream, LARGE).await });
                    unread.push(answer);
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
                call(at, &world, &format!("{number} uploads, {at:?}")).await;
                assert!(connections.get() <= number + 1, "{} connections for {number} bodies", connections.get());
                drop(unread);
            });
        }
    }
}

#[test]
fn what_stands_still_is_bounded() {
    // Aim: the documented bound on memory of one connection: a caller with a thousand bodies that nobody reads is stopped below it.
    run(|| async {
        let mut world = Where::Edge.world();
        serve_applications(&mut world);
        // So that what it gives out has left it.
        let builder = h2::client::Builder::new().max_send_buffer_size(8 << 10).clone();
        let (sender, connection) = builder.handshake::<_, Bytes>(Where::Edge.dial(&world)).await.unwrap();
        tokio::task::spawn_local(connection);
        let taken = Rc::new(std::cell::Cell::new(0));
        let mut unread = Vec::new();
        for _ in 0..1000 {
            let mut sender = sender.clone().ready().await.unwrap();
            let (answer, mut stream) = sender.send_request(ask("POST", "/leave"), false).unwrap();
            let taken = Rc::clone(&taken);
            tokio::task::spawn_local(async move {
                loop {
                    send(&mut stream, 4 << 10).await;
                    taken.set(taken.get() + (4 << 10));
                }
            });
            unread.push(answer);
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        // What the application itself lets pass is not held here.
        let held = taken.get() - 1000 * 65_535;
        assert!(held < 58 << 20, "{} MiB", held >> 20);
        drop(unread);
    });
}

#[test]
fn a_large_body_flows() {
    // Aim: windows that change with the number of bodies never bring one to a halt: 100 MiB up and down, alone and beside many others.
    run(|| async {
        const MANY: usize = 100 << 20;
        let mut world = Where::Mesh.world();
        serve_applications(&mut world);
        let mut sender = client(Where::Mesh.dial(&world)).await;
        let (answer, mut stream) = sender.send_request(ask("POST", "/take"), false).unwrap();
        tokio::task::spawn_local(async move {
            send(&mut stream, MANY).await;
            stream.send_data(Bytes::new(), true).unwrap();
        });
        assert_eq!(take(answer.await.unwrap().body_mut()).await, MANY);
    });
}

#[test]
fn beyond_the_bound_on_bodies_a_request_is_told_so() {
    // Aim: at the worker's bound a request with a body is answered 503 overflow, one without goes on, and there is room again afterwards.
    run(|| async {
        let mut world = Where::Edge.world();
        serve_applications(&mut world);
        let mut sender = client(Where::Edge.dial(&world)).await;
        world.client.pool.bodies().bound(1);
        let (one, mut first) = sender.send_request(ask("POST", "/take"), false).unwrap();
        first.send_data(Bytes::from_static(b"a"), false).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(world.client_means.telemetry.render().contains("meshwright_http2_bodies 2\n"), "its request and its answer");
        let (two, mut stream) = sender.send_request(ask("POST", "/take"), false).unwrap();
        stream.send_data(Bytes::from_static(b"a"), true).unwrap();
        let refused = two.await.unwrap();
        assert_eq!((refused.status().as_u16(), &refused.headers()["x-meshwright-reason"]), (503, &"overflow".parse().unwrap()));
        let (none, _) = sender.send_request(ask("GET", "/a"), true).unwrap();
        assert_eq!(none.await.unwrap().status(), 200);
        first.send_data(Bytes::new(), true).unwrap();
        assert_eq!(take(one.await.unwrap().body_mut()).await, 1);
        assert_eq!(world.client.pool.bodies().open(), 0);
    });
}

#[test]
fn where_no_connection_is_left_bodies_share_one() {
    // Aim: at the bound on connections a body goes beside others, on the connection where the fewest bytes may stand still, and is not refused.
    run(|| async {
        let mut world = Where::Edge.world();
        let connections = serve_applications(&mut world);
        let sender = client(Where::Edge.dial(&world)).await;
        world.client.pool.bound(2);
        let mut unread = Vec::new();
        for _ in 0..4 {
            let mut sender = sender.clone().ready().await.unwrap();
            let (answer, mut stream) = sender.send_request(ask("POST", "/leave"), false).unwrap();
            stream.send_data(Bytes::from_static(b"a"), false).unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            unread.push((answer, stream));
        }
        let (answer, mut stream) = sender.clone().send_request(ask("POST", "/take"), false).unwrap();
        stream.send_data(Bytes::from_static(b"abc"), true).unwrap();
        assert_eq!((take(answer.await.unwrap().body_mut()).await, connections.get()), (3, 2));
    });
}
