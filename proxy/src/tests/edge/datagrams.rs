//! Datagrams, over the machine's own loopback: a simulation has none.

use std::net::{Ipv4Addr, UdpSocket as StdSocket};
use std::sync::atomic::Ordering;

use engine::model::Datagrams;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::*;
use crate::io::{adopt_datagrams, bind_datagrams};
use crate::road::datagrams;

/// Runs in real time: the kernel's sockets know no other.
fn really<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        timeout(Duration::from_secs(30), test()).await.expect("the test hangs");
    });
}

/// Lets that time pass at once: nothing is on its way through the kernel meanwhile.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
    // Whoever it wakes has its turn.
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
}

/// A worker that serves port 53 with sessions to these backends, and where it listens.
async fn serving(backends: &[SocketAddr], idle: Duration) -> (Rc<Shared>, SocketAddr) {
    let world = World::new(Setup::default());
    let means = Means { network: Network::Kernel { mark: None }, ..world.client_means.clone() };
    let shared = worker::shared(&means, 3);
    let addresses: Vec<String> = backends.iter().map(ToString::to_string).collect();
    let listed = addresses.iter().map(|address| endpoint(address, false)).collect();
    let policy = Arc::<ClusterPolicy>::default();
    let whole = Arc::into_inner(cluster("dns", ClusterKind::Endpoints, &Setup::default())).unwrap();
    let cell = Arc::new(EndpointCell::holding(EndpointSet::new(listed, Vec::new())).under(&policy));
    let cluster = Arc::new(Cluster { endpoints: cell, policy, ..whole });
    let policy = Policy { idle_timeout: Some(idle), ..Policy::default() };
    let forward = Arc::new(Forward::to(Arc::new(policy), Target::Cluster(cluster)));
    let mut snapshot = client_snapshot(&world.setup, 2);
    snapshot.datagrams.insert(53, Arc::new(Datagrams { name: "edge/53/udp".into(), forward, content: 2 }));
    means.snapshots.publish(Arc::new(snapshot));
    let socket = bind_datagrams("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    tokio::task::spawn_local(datagrams::serve(adopt_datagrams(socket).unwrap(), 53, Rc::clone(&shared)));
    (shared, address)
}

async fn client(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(to).await.unwrap();
    socket
}

/// A backend that answers each datagram with it, twice.
async fn echo() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        let mut room = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut room).await {
            let _ = socket.send_to(&room[..length], from).await;
        }
    });
    address
}

async fn ask(client: &UdpSocket, text: &str) -> Option<String> {
    client.send(text.as_bytes()).await.unwrap();
    let mut room = [0; 2048];
    let length = timeout(Duration::from_millis(500), client.recv(&mut room)).await.ok()?.ok()?;
    Some(String::from_utf8_lossy(&room[..length]).into_owned())
}

#[test]
fn each_client_has_a_session_of_its_own() {
    // Aim: clients get their own answers, a session stays with its endpoint, and ends by silence.
    really(|| async {
        let (shared, address) = serving(&[echo().await, echo().await], Duration::from_millis(300)).await;
        let (one, other) = (client(address).await, client(address).await);
        for round in 0..3 {
            assert_eq!(ask(&one, &format!("one {round}")).await, Some(format!("one {round}")));
            assert_eq!(ask(&other, &format!("other {round}")).await, Some(format!("other {round}")));
        }
        let edge = shared.observer.edge();
        assert_eq!(edge.sessions.load(Ordering::Relaxed), 2);
        assert_eq!((edge.datagrams_received.load(Ordering::Relaxed), edge.datagrams_sent.load(Ordering::Relaxed)), (6, 6));
        pass(Duration::from_secs(1)).await;
        assert_eq!(edge.sessions.load(Ordering::Relaxed), 0);
        assert_eq!(ask(&one, "again").await.as_deref(), Some("again"));
    });
}

#[test]
fn a_session_ends_with_its_endpoint() {
    // Aim: what the network says of an endpoint (ICMP) ends the session; a later datagram is another session's.
    really(|| async {
        let gone = {
            let socket = StdSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            socket.local_addr().unwrap()
        };
        let (shared, address) = serving(&[gone], Duration::from_secs(60)).await;
        let one = client(address).await;
        assert_eq!(ask(&one, "lost").await, None);
        assert_eq!(shared.observer.edge().sessions.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_session_follows_what_its_port_leads_to() {
    // Aim: a client that never pauses stays while its endpoint is listed, ready or not; it goes on to another one when that is taken away, and
    // nowhere when its port leads nowhere any more.
    really(|| async {
        let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (shared, address) = serving(&[echo().await], Duration::from_secs(60)).await;
        let one = client(address).await;
        assert_eq!(ask(&one, "a").await.as_deref(), Some("a"));
        let snapshot = shared.reader.load();
        let Target::Cluster(cluster) = &snapshot.datagrams[&53].forward.backends[0].target else { panic!("it leads to a cluster") };
        let first = cluster.endpoints.load_full().ready.clone();
        let second = || vec![endpoint(&other.local_addr().unwrap().to_string(), false)];
        cluster.endpoints.replace(EndpointSet::new(second(), first));
        assert_eq!(ask(&one, "b").await.as_deref(), Some("b"));
        cluster.endpoints.replace(EndpointSet::new(second(), Vec::new()));
        one.send(b"c").await.unwrap();
        let mut room = [0; 8];
        assert_eq!(other.recv_from(&mut room).await.unwrap().0, 1);
        assert_eq!(shared.observer.edge().sessions.load(Ordering::Relaxed), 1);
        shared.snapshots.publish(Arc::new(Snapshot::default()));
        assert_eq!(ask(&one, "d").await, None);
        assert_eq!(shared.observer.edge().sessions.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn sessions_have_a_bound_that_forgers_do_not_hold() {
    // Aim: at the bound the oldest that nobody has answered makes room, then one that has been silent for long; those that were answered lately
    // stay, and the rest is dropped and counted.
    really(|| async {
        let (shared, address) = serving(&[echo().await], Duration::from_secs(60)).await;
        let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let first = client(address).await;
        assert!(ask(&first, "a").await.is_some());
        shared.datagram_sessions.set(1);
        let second = client(address).await;
        assert!(ask(&second, "b").await.is_some());
        let third = client(address).await;
        assert_eq!(ask(&third, "c").await, None);
        let edge = shared.observer.edge();
        assert_eq!((edge.sessions_full.load(Ordering::Relaxed), edge.datagrams_dropped.load(Ordering::Relaxed)), (1, 1));
        assert!(ask(&first, "d").await.is_some());
        drop(silent);
    });
    really(|| async {
        let (shared, address) = serving(&[echo().await], Duration::from_secs(4)).await;
        let (first, second) = (client(address).await, client(address).await);
        assert!(ask(&first, "a").await.is_some());
        shared.datagram_sessions.set(0);
        pass(Duration::from_secs(1)).await;
        assert!(ask(&second, "b").await.is_some(), "who has been silent for long makes room although it was answered");
        assert_eq!(shared.observer.edge().sessions.load(Ordering::Relaxed), 1);
    });
    really(|| async {
        let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (shared, address) = serving(&[silent.local_addr().unwrap()], Duration::from_secs(60)).await;
        shared.datagram_sessions.set(2);
        for _ in 0..5 {
            let forged = client(address).await;
            forged.send(b"x").await.unwrap();
            let mut room = [0; 8];
            silent.recv_from(&mut room).await.unwrap();
        }
        assert_eq!(shared.observer.edge().sessions.load(Ordering::Relaxed), 2);
        assert_eq!(shared.observer.edge().sessions_full.load(Ordering::Relaxed), 0);
    });
}
