//! What connections and requests cost in memory, compared with the book of budgets like correctness.

use tokio::task::LocalSet;

use super::counting::{Place, Taken, Within, taken};
use super::*;
use crate::road::answer::Answering;
use crate::road::gateway;
use book::{Budget, Tolerance};

#[path = "../../../tests/budgets/book.rs"]
mod book;

/// Exchanges before counting begins: tables and buffers have grown, the route is known.
const WARM_UP: usize = 16;
/// Exchanges that are counted.
const COUNTED: usize = 100;

/// Where a future's size comes from.
const LOOK_SIZES: &str = "RUSTC_BOOTSTRAP=1 cargo rustc -p proxy --lib -- -Zprint-type-sizes prints the parts of every future";
/// Where allocations come from.
const LOOK_ALLOCATIONS: &str = "valgrind --tool=dhat target/debug/deps/proxy-HASH tests::cost writes down every place that allocates";

fn figures<const N: usize>(sizes: [(&str, usize); N]) -> Vec<(String, f64)> {
    sizes.map(|(name, size)| (name.to_owned(), size as f64)).to_vec()
}

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
        let budget = Budget { group: "size/connection", unit: "bytes", tolerance: |_| Tolerance::Units(64.0), look: LOOK_SIZES };
        budget.judge(&figures(sizes));
    });
}

fn size_of_answer<F>(_: impl Fn(Answering) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn a_request_future_stays_small() {
    // Aim: HTTP/1 keeps room for one per connection, HTTP/2 makes one per stream, and each is moved about.
    let budget = Budget { group: "size/request", unit: "bytes", tolerance: |_| Tolerance::Units(64.0), look: LOOK_SIZES };
    budget.judge(&figures([("answer", size_of_answer(Answering::answer))]));
}

/// Both hops in one thread and in virtual time, each with tasks of its own, so that every allocation is one hop's or the test's.
fn by_hop<F: Future<Output = ()>>(drive: impl FnOnce(World, Socket) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (outside, client, server) = (LocalSet::new(), LocalSet::new(), LocalSet::new());
    runtime.block_on(async {
        let world = {
            let _here = server.enter();
            World::new(Setup::default())
        };
        let socket = {
            let _here = client.enter();
            world.dial(SERVICE)
        };
        let drive = tokio::time::timeout(Duration::from_secs(60), drive(world, socket));
        tokio::select! {
            biased;
            done = outside.run_until(drive) => done.expect("the test hangs"),
            () = Within { place: Place::Client, tasks: client } => panic!("the client's proxy ended"),
            () = Within { place: Place::Server, tasks: server } => panic!("the server's proxy ended"),
        }
    });
}

/// Counts from its making on.
struct Count([Taken; 2]);

impl Count {
    fn begin() -> Self {
        Self([Place::Client, Place::Server].map(taken))
    }

    /// Judges what [`COUNTED`] exchanges took since.
    fn judge(&self, road: &str) {
        let mut counts = Vec::new();
        let mut sizes = Vec::new();
        for (name, before, place) in [("client", self.0[0], Place::Client), ("server", self.0[1], Place::Server)] {
            let after = taken(place);
            counts.push((name.to_owned(), (after.allocations - before.allocations) as f64 / COUNTED as f64));
            sizes.push((name.to_owned(), (after.bytes - before.bytes) as f64 / COUNTED as f64));
        }
        let group = format!("allocations/{road}");
        Budget { group: &group, unit: "per request", tolerance: |_| Tolerance::Units(0.1), look: LOOK_ALLOCATIONS }.judge(&counts);
        let group = format!("bytes allocated/{road}");
        Budget { group: &group, unit: "per request", tolerance: |_| Tolerance::Share(0.01), look: LOOK_ALLOCATIONS }.judge(&sizes);
    }
}

/// A body of a KiB.
const BODY: [u8; 1024] = [b'x'; 1024];

fn message(head: &str, body: &[u8]) -> Vec<u8> {
    [head.as_bytes(), body].concat()
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// Whether that is a head and so much body. Proxies add to the head, so its length is not known.
fn is_whole(bytes: &[u8], body: usize) -> bool {
    end_of_head(bytes).is_some_and(|head| bytes.len() - head == body)
}

/// Asks and answers over connections that are open, in whole messages. The test itself allocates nothing.
async fn exchanges(ask: Vec<u8>, answer: Vec<u8>, road: &'static str, (mut world, mut client): (World, Socket)) {
    let mut room = vec![0; 16 << 10];
    let body = ask.len() - end_of_head(&ask).unwrap();
    client.write_all(&ask).await.unwrap();
    let mut application = world.application().await;
    let mut count = None;
    for n in 0..WARM_UP + COUNTED {
        if n == WARM_UP {
            count = Some(Count::begin());
        }
        if n > 0 {
            client.write_all(&ask).await.unwrap();
        }
        let mut read = 0;
        while !is_whole(&room[..read], body) {
            read += application.read(&mut room[read..]).await.unwrap();
        }
        application.write_all(&answer).await.unwrap();
        client.read_exact(&mut room[..answer.len()]).await.unwrap();
    }
    count.unwrap().judge(road);
}

#[test]
fn a_get_stays_within_its_allocations() {
    // Aim: what hyper and rustls allocate for a request without a body, and next to nothing of ours, counted for each hop.
    let ask = b"GET /a HTTP/1.1\r\nHost: catalog\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n".to_vec();
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer: test\r\n\r\nhello".to_vec();
    by_hop(|world, client| exchanges(ask, answer, "h1 GET", (world, client)));
}

#[test]
fn a_post_stays_within_its_allocations() {
    // Aim: a body each way costs no more than its buffers.
    let ask = message("POST /a HTTP/1.1\r\nHost: catalog\r\nUser-Agent: test\r\nContent-Length: 1024\r\n\r\n", &BODY);
    let answer = message("HTTP/1.1 200 OK\r\nContent-Length: 1024\r\nServer: test\r\n\r\n", &BODY);
    by_hop(|world, client| exchanges(ask, answer, "h1 POST", (world, client)));
}

#[test]
fn a_call_stays_within_its_allocations() {
    // Aim: a unary gRPC call over HTTP/2, counted for each hop.
    by_hop(|mut world, socket| async move {
        let mut sender = http2::client(socket).await;
        let mut opener = sender.clone();
        let first = tokio::task::spawn_local(async move { opener.send_request(http2::call("/a", "hello")).await });
        let application = world.application().await;
        tokio::task::spawn_local(http2::application(application));
        http2::finished(first.await.unwrap().unwrap()).await;
        let mut count = None;
        for n in 0..WARM_UP + COUNTED {
            if n == WARM_UP {
                count = Some(Count::begin());
            }
            http2::finished(sender.send_request(http2::call("/a", "hello")).await.unwrap()).await;
        }
        count.unwrap().judge("gRPC");
    });
}
