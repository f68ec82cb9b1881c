//! What connections and requests cost in memory, asserted like correctness.

use super::*;
use crate::forward::Answering;
use crate::gateway;

#[test]
fn connection_futures_stay_small() {
    // Aim: 20,000 connections are 20,000 times this.
    run(|| async {
        let world = World::new(Setup::default());
        let arrival = || Arrival { socket: pipe().0, peer: CLIENT.parse().unwrap(), destination: SERVICE.parse().unwrap() };
        let sizes = [
            ("outbound", size_of_val(&outbound::serve_connection(arrival(), Rc::clone(&world.client)))),
            ("inbound", size_of_val(&inbound::serve_connection(arrival(), Rc::clone(&world.client)))),
            ("gateway", size_of_val(&gateway::serve_connection(arrival(), 80, Rc::clone(&world.client)))),
        ];
        for (road, size) in sizes {
            assert!(size <= 1280, "{road}: {size} bytes");
        }
    });
}

fn size_of_answer<F>(_: impl Fn(Answering) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn a_request_future_stays_small() {
    // Aim: HTTP/1 keeps room for one per connection, HTTP/2 makes one per stream, and each is moved about.
    let size = size_of_answer(Answering::answer);
    assert!(size <= 1408, "{size} bytes");
}

/// Asks and answers once over connections that are open.
async fn exchange(client: &mut Socket, application: &mut Socket, room: &mut [u8]) {
    const ASK: &[u8] = b"GET /a HTTP/1.1\r\nHost: catalog\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n";
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer: test\r\n\r\nhello";
    client.write_all(ASK).await.unwrap();
    let mut count = 0;
    while !room[..count].ends_with(b"\r\n\r\n") {
        count += application.read(&mut room[count..]).await.unwrap();
    }
    application.write_all(ANSWER).await.unwrap();
    client.read_exact(&mut room[..ANSWER.len()]).await.unwrap();
}

#[test]
fn a_plain_request_stays_within_its_allocation_budget() {
    // Aim: what hyper and rustls allocate, of it 20 for the case of header names, and two of ours, over both proxies together.
    run(|| async {
        let mut world = World::new(Setup::default());
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET /a HTTP/1.1\r\nHost: catalog\r\n\r\n").await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 204 No Content\r\n\r\n").await;
        head(&mut client).await;
        let mut room = vec![0; 4096];
        for _ in 0..16 {
            exchange(&mut client, &mut application, &mut room).await;
        }
        let before = allocations();
        for _ in 0..100 {
            exchange(&mut client, &mut application, &mut room).await;
        }
        let each = (allocations() - before) / 100;
        assert!(each <= 40, "{each} allocations");
    });
}
