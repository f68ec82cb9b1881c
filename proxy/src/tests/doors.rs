//! Doors: their bounds, and how they are shut.

use std::cell::Cell;

use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::ground::limits::{PARTING_HUSHED, PARTING_TOLD};
use crate::io::{Accepted, Listening};
use crate::shell::listener::{Purpose, listen};

const ASK: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const DONE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const BOUND: Duration = Duration::from_secs(30);

/// A listening socket before which connections queue up.
struct Queue(mpsc::UnboundedReceiver<Accepted>);

#[async_trait]
impl VirtualListening for Queue {
    async fn accept(&mut self) -> io::Result<Accepted> {
        match self.0.recv().await {
            Some(accepted) => Ok(accepted),
            None => std::future::pending().await,
        }
    }

    fn local_address(&self) -> SocketAddr {
        "10.77.0.1:15001".parse().unwrap()
    }
}

/// Where clients knock.
struct Knocker(mpsc::UnboundedSender<Accepted>, &'static str);

impl Knocker {
    /// `None`: nobody listens any more.
    fn knock(&self) -> Option<Socket> {
        let (near, far) = pipe();
        let (peer, local) = (CLIENT.parse().unwrap(), "10.77.0.1:15001".parse().unwrap());
        let accepted = Accepted { socket: far, peer, local, original: Some(self.1.parse().unwrap()) };
        self.0.send(accepted).ok().map(|()| near)
    }
}

fn open(shared: &Rc<Shared>, door: Purpose) -> Knocker {
    let (sender, queue) = mpsc::unbounded_channel();
    spawn_local(listen(Listening::Virtual(Box::new(Queue(queue))), door, Rc::clone(shared)));
    Knocker(sender, if door == Purpose::Inbound { SERVER } else { SERVICE })
}

/// Answers every request, on every connection that reaches the applications.
fn applications(world: &mut World) -> JoinHandle<()> {
    let (_, none) = mpsc::unbounded_channel();
    let mut reached = std::mem::replace(&mut world.applications, none);
    spawn_local(async move {
        while let Some((_, mut socket)) = reached.recv().await {
            spawn_local(async move {
                let mut room = vec![0; 4096];
                while let Ok(1..) = socket.read(&mut room).await {
                    if socket.write_all(DONE.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

/// A world whose server knows where to call, too.
fn callable() -> World {
    let world = World::new(Setup { mode: MtlsMode::Permissive, endpoints: vec![TWIN], meshed: false, ..Setup::default() });
    let outbound = client_snapshot(&world.setup, 2).outbound;
    world.server_means.snapshots.publish(Arc::new(Snapshot { outbound, ..server_snapshot(&world.setup, 2) }));
    world
}

fn draining(shared: &Rc<Shared>) -> JoinHandle<Duration> {
    let (shared, began) = (Rc::clone(shared), Instant::now());
    spawn_local(async move {
        worker::drain(&shared, BOUND).await;
        began.elapsed()
    })
}

#[test]
fn a_drain_ends_however_many_want_in() {
    // Aim: a constant stream of new connections does not keep the doors open until the bound; nobody who was let in is cut.
    run(|| async {
        let mut world = World::new(Setup::default());
        applications(&mut world);
        let knocker = open(&world.client, Purpose::Outbound);
        let (served, refused) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (count, turned_away) = (Rc::clone(&served), Rc::clone(&refused));
        spawn_local(async move {
            loop {
                sleep(Duration::from_millis(5)).await;
                let Some(mut client) = knocker.knock() else {
                    turned_away.set(turned_away.get() + 1);
                    continue;
                };
                let count = Rc::clone(&count);
                spawn_local(async move {
                    write(&mut client, ASK).await;
                    assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
                    count.set(count.get() + 1);
                    sleep(Duration::from_secs(3600)).await;
                });
            }
        });
        sleep(Duration::from_secs(1)).await;
        let took = draining(&world.client).await.unwrap();
        assert!(took <= Duration::from_millis(1500), "{took:?}");
        sleep(Duration::from_millis(100)).await;
        assert!(served.get() > 150 && refused.get() > 5, "{} served, {} refused", served.get(), refused.get());
    });
}

#[test]
fn who_queues_is_let_in_once() {
    // Aim: connections that were made before the doors are shut are served, also those that wait at the bound; the socket closes then.
    run(|| async {
        let mut world = World::new(Setup::default());
        applications(&mut world);
        world.client.guests.outbound.bound(2);
        let knocker = open(&world.client, Purpose::Outbound);
        let mut clients: Vec<_> = (0..10).map(|_| knocker.knock().unwrap()).collect();
        sleep(Duration::from_millis(100)).await;
        let drained = draining(&world.client);
        sleep(Duration::from_millis(100)).await;
        for client in &mut clients {
            write(client, ASK).await;
            assert!(head(client).await.contains("connection: close\r\n"));
            assert_eq!(rest(client).await, "");
        }
        assert!(drained.await.unwrap() < Duration::from_millis(200));
        assert!(knocker.knock().is_none());
    });
}

#[test]
fn who_is_let_in_late_is_served() {
    // Aim: at the bound, silent connections make room for those that wait, which have their time to speak, however far the drain is.
    run(|| async {
        for protocol in [Protocol::Http, Protocol::Auto] {
            let mut world = World::new(Setup { protocol, ..Setup::default() });
            applications(&mut world);
            world.client.guests.outbound.bound(1);
            let knocker = open(&world.client, Purpose::Outbound);
            let (mut silent, mut late) = (knocker.knock().unwrap(), knocker.knock().unwrap());
            sleep(Duration::from_millis(100)).await;
            let drained = draining(&world.client);
            assert_eq!(rest(&mut silent).await, "");
            sleep(Duration::from_millis(500)).await;
            write(&mut late, ASK).await;
            assert!(head(&mut late).await.contains("connection: close\r\n"));
            assert!(drained.await.unwrap() < Duration::from_secs(2));
        }
    });
}

#[test]
fn who_has_nothing_to_do_is_sent_away() {
    // Aim: kept connections and silent ones end with the grace, in both directions, and what is under way is waited for.
    run(|| async {
        for (door, inbound) in [(Purpose::Outbound, false), (Purpose::Inbound, true)] {
            for protocol in [Protocol::Http, Protocol::Auto] {
                let mut world = World::new(Setup { protocol, mode: MtlsMode::Permissive, ..Setup::default() });
                let shared = Rc::clone(if inbound { &world.server } else { &world.client });
                let knocker = open(&shared, door);
                let mut busy = knocker.knock().unwrap();
                write(&mut busy, ASK).await;
                let mut application = world.application().await;
                head(&mut application).await;
                applications(&mut world);
                let mut kept = knocker.knock().unwrap();
                write(&mut kept, ASK).await;
                assert_eq!(head(&mut kept).await, DONE);
                let mut silent = knocker.knock().unwrap();
                sleep(Duration::from_millis(100)).await;
                let drained = draining(&shared);
                let began = Instant::now();
                assert_eq!(rest(&mut kept).await, "");
                assert_eq!(rest(&mut silent).await, "");
                assert!((Duration::from_secs(1)..Duration::from_millis(1100)).contains(&began.elapsed()), "{:?}", began.elapsed());
                sleep(Duration::from_secs(5)).await;
                assert!(!drained.is_finished(), "a request is under way");
                write(&mut application, DONE).await;
                assert!(head(&mut busy).await.contains("connection: close\r\n"));
                let took = drained.await.unwrap();
                assert!(took < Duration::from_millis(6200), "{took:?}");
            }
        }
    });
}

#[test]
fn callers_are_told_of_an_end_that_is_near() {
    // Aim: after a moment, in which others take the instance out of their lists, an answer ends its connection; who asks nothing then is let go in
    // the end; the doors stay open, who has just come is served, and the application's own calls are as ever.
    run(|| async {
        let mut world = callable();
        applications(&mut world);
        let shared = Rc::clone(&world.server);
        let (called, calls) = (open(&shared, Purpose::Inbound), open(&shared, Purpose::Outbound));
        let ask = async |client: &mut Socket| {
            write(client, ASK).await;
            head(client).await.contains("connection: close\r\n")
        };
        let (mut kept, mut active, mut silent) = (called.knock().unwrap(), called.knock().unwrap(), called.knock().unwrap());
        assert!(!ask(&mut kept).await && !ask(&mut active).await);
        let began = Instant::now();
        spawn_local(async move { worker::part(&shared).await });
        sleep(PARTING_TOLD / 2).await;
        assert!(!ask(&mut active).await, "too soon: its client would come back");
        sleep(PARTING_TOLD).await;
        assert!(ask(&mut active).await);
        assert_eq!(rest(&mut active).await, "");
        assert!(ask(&mut called.knock().unwrap()).await);
        assert!(!ask(&mut calls.knock().unwrap()).await);
        assert_eq!(rest(&mut kept).await, "");
        assert!((PARTING_HUSHED..PARTING_HUSHED + PARTING_TOLD * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
        sleep(Duration::from_secs(1)).await;
        assert!(ask(&mut silent).await);
        let late = called.knock().unwrap();
        sleep(Duration::from_secs(1)).await;
        assert!(ask(&mut { late }).await);
    });
}

#[test]
fn an_application_may_call_while_it_answers() {
    // Aim: the application's own doors stay open as long as somebody waits for its answer, and are shut then.
    run(|| async {
        let mut world = callable();
        let shared = Rc::clone(&world.server);
        let (called, calls) = (open(&shared, Purpose::Inbound), open(&shared, Purpose::Outbound));
        let mut caller = called.knock().unwrap();
        write(&mut caller, ASK).await;
        let mut application = world.application().await;
        head(&mut application).await;
        let drained = draining(&shared);
        sleep(Duration::from_secs(5)).await;
        assert!(called.knock().is_none(), "nobody is let in to the application");
        let mut call = calls.knock().unwrap();
        write(&mut call, ASK).await;
        let mut other = world.application().await;
        head(&mut other).await;
        write(&mut other, DONE).await;
        assert!(head(&mut call).await.contains("connection: close\r\n"));
        write(&mut application, DONE).await;
        head(&mut caller).await;
        assert!(drained.await.unwrap() < Duration::from_millis(5100));
        assert!(calls.knock().is_none());
    });
}

#[test]
fn a_drain_has_a_bound() {
    // Aim: what never ends is cut at the bound and not before, and the application's callers cannot use up the whole of it.
    run(|| async {
        let mut world = callable();
        let shared = Rc::clone(&world.server);
        let (called, calls) = (open(&shared, Purpose::Inbound), open(&shared, Purpose::Outbound));
        let mut caller = called.knock().unwrap();
        write(&mut caller, ASK).await;
        let mut application = world.application().await;
        head(&mut application).await;
        let drained = draining(&shared);
        sleep(BOUND * 3 / 4 + Duration::from_millis(10)).await;
        assert!(calls.knock().is_none());
        assert_eq!(drained.await.unwrap(), BOUND);
    });
}

#[test]
fn tunnels_are_guests() {
    // Aim: a WebSocket keeps the place of the connection it was, under load and in a drain.
    run(|| async {
        let mut world = World::new(Setup::default());
        let shared = Rc::clone(&world.client);
        let knocker = open(&shared, Purpose::Outbound);
        let mut client = knocker.knock().unwrap();
        write(&mut client, "GET /chat HTTP/1.1\r\nhost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
        head(&mut client).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!((shared.guests.outbound.open(), world.server.guests.inbound.open()), (1, 1));
        let drained = draining(&shared);
        sleep(Duration::from_secs(5)).await;
        assert!(!drained.is_finished());
        write(&mut client, "bye").await;
        assert_eq!(exactly(&mut application, 3).await, "bye");
        drop((client, application));
        assert!(drained.await.unwrap() < Duration::from_millis(5100));
    });
}

#[test]
fn one_direction_cannot_starve_the_other() {
    // Aim: at its bound a direction lets further connections wait, says so in a metric, and the other direction does not notice.
    run(|| async {
        let mut world = callable();
        applications(&mut world);
        let shared = Rc::clone(&world.server);
        shared.guests.outbound.bound(3);
        let (called, calls) = (open(&shared, Purpose::Inbound), open(&shared, Purpose::Outbound));
        let mut callers: Vec<_> = (0..5).map(|_| calls.knock().unwrap()).collect();
        for caller in &mut callers {
            write(caller, ASK).await;
        }
        sleep(Duration::from_secs(1)).await;
        for caller in &mut callers[..3] {
            assert_eq!(head(caller).await, DONE);
        }
        assert!(timeout(Duration::from_secs(1), head(&mut callers[3])).await.is_err(), "beyond the bound");
        for _ in 0..20 {
            let mut client = called.knock().unwrap();
            write(&mut client, ASK).await;
            assert_eq!(head(&mut client).await, DONE);
        }
        let text = world.server_means.telemetry.render();
        for line in [
            "meshwright_connections{direction=\"outbound\"} 3\n",
            "meshwright_connections_full_total{direction=\"outbound\"} 1\n",
            "meshwright_connections_full_total{direction=\"inbound\"} 0\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        callers.remove(0);
        callers.remove(0);
        for caller in &mut callers[1..] {
            assert_eq!(head(caller).await, DONE);
        }
    });
}
