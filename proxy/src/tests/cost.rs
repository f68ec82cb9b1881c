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
