//! Peers that do not read.

use std::pin::Pin;
use std::task::{Context, Poll};

use engine::model::Protocol;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;
use crate::ground::limits::PRESSURE_ASKED_EVERY;

const IDLE: Duration = Duration::from_secs(5);

/// Writes until nobody takes anything for a second; says how much was taken.
async fn fill(socket: &mut Socket) -> usize {
    let mut taken = 0;
    let chunk = vec![b'x'; 16 << 10];
    while let Ok(Ok(count)) = tokio::time::timeout(Duration::from_secs(1), socket.write(&chunk)).await {
        taken += count;
        assert!(taken < 64 << 20, "nobody reads, and everything is taken");
    }
    taken
}

/// An hour's standstill ends nothing; that somebody wants a place ends it.
async fn assert_given_up_in_need(world: &World) {
    let waiting = || (world.client.patience.waiting(), world.server.patience.waiting());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(waiting(), (1, 1), "given up without need");
    let guests = Rc::clone(&world.client.guests.outbound);
    guests.bound(1);
    let wanting = tokio::task::spawn_local(async move { drop(guests.place().await) });
    tokio::time::sleep(PRESSURE_ASKED_EVERY + Duration::from_secs(1)).await;
    assert_eq!(waiting(), (0, 0), "still under way");
    wanting.await.unwrap();
}

#[test]
fn a_client_that_does_not_read_its_answer_gives_way_when_places_are_wanted() {
    // Aim: a client may stand still for as long as it lives and is in nobody's way; then the exchange ends on both proxies, for both versions.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").await;
        fill(&mut application).await;
        assert_given_up_in_need(&world).await;
        assert_eq!((world.client.guests.outbound.open(), world.server.guests.inbound.open()), (0, 0));
        assert!(application.write(&[0; 1 << 20]).await.is_err(), "the application is told");
        drop(client);
    });
}

#[test]
fn a_client_that_does_not_read_its_calls_gives_way_when_places_are_wanted() {
    // Aim: the same for a connection of HTTP/2 with calls whose answers fill it.
    run(|| async {
        let mut world = World::new(Setup { application: Protocol::Http1, ..Setup::default() });
        let (stopped, running) = watch::channel(false);
        let mut sender = http2::client(Stopping::wrap(world.dial(SERVICE), running)).await;
        let calling = tokio::task::spawn_local(async move { sender.send_request(http2::call("/a", "")).await.unwrap().into_body() });
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").await;
        let answer = calling.await.unwrap();
        stopped.send_replace(true);
        fill(&mut application).await;
        assert_given_up_in_need(&world).await;
        assert_eq!(world.client.guests.outbound.open(), 0);
        drop(answer);
    });
}

/// A socket whose owner stops reading.
struct Stopping(Socket, watch::Receiver<bool>);

impl Stopping {
    fn wrap(socket: Socket, stopped: watch::Receiver<bool>) -> Socket {
        Socket::Virtual(Box::new(Self(socket, stopped)))
    }
}

impl VirtualSocket for Stopping {}

impl AsyncRead for Stopping {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if *self.1.borrow() { Poll::Pending } else { Pin::new(&mut self.0).poll_read(cx, buf) }
    }
}

impl AsyncWrite for Stopping {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[test]
fn an_application_that_does_not_read_is_let_go() {
    // Aim: a body that nobody takes ends in the idle timeout, for both versions.
    run(|| async {
        let mut world = World::new(Setup { idle_timeout: Some(IDLE), ..Setup::default() });
        let mut client = world.dial(SERVICE);
        write(&mut client, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000\r\n\r\n").await;
        let mut application = world.application().await;
        head(&mut application).await;
        fill(&mut client).await;
        let answer = tokio::time::timeout(IDLE * 3, head(&mut client)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("idle_timeout"), "{answer}");
        assert_eq!((world.client.patience.waiting(), world.server.patience.waiting()), (0, 0));
    });
}
