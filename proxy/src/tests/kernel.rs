//! A worker thread over the kernel's own sockets.

use std::net::TcpListener;

use tokio::net::TcpStream;

use super::*;
use crate::io::bind;
use crate::shell::listener::Purpose;
use crate::shell::worker::Worker;

/// An application that answers every request on every connection with its path.
async fn application(listener: tokio::net::TcpListener) {
    while let Ok((socket, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut socket = Socket::Tcp(socket);
            loop {
                let request = head(&mut socket).await;
                let path = request.split(' ').nth(1).unwrap().to_owned();
                write(&mut socket, &format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len())).await;
            }
        });
    }
}

fn loopback() -> TcpListener {
    bind("127.0.0.1:0".parse().unwrap()).unwrap()
}

#[tokio::test]
async fn a_reset_of_a_live_socket_is_told_by_the_kernel() {
    // Aim: real sockets see a reset where the other side has reset, both ways, for bytes and for an answer without a length.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint: &'static str = Box::leak(listener.local_addr().unwrap().to_string().into_boxed_str());
    for (protocol, said, answered) in
        [(Protocol::Tcp, "hello", "word"), (Protocol::Http, "GET /a HTTP/1.0\r\nhost: a\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\nabc")]
    {
        let setup = Setup { endpoints: vec![endpoint], meshed: false, protocol, ..Setup::default() };
        let snapshots = Snapshots::default();
        snapshots.publish(Arc::new(client_snapshot(&setup, 1)));
        let means = Means {
            snapshots,
            tls: party(&Authority::new("root"), FRONTEND, "frontend").tls,
            telemetry: crate::observe::start(TelemetryOptions::default(), Clock::System).0,
            network: Network::Kernel { mark: None },
            hashing: crate::road::hashing::Hashing::of(2),
            connections_max: usize::MAX,
        };
        let worker = Worker::spawn("worker".to_owned(), means, 1).unwrap();
        let door = loopback();
        let at = door.local_addr().unwrap();
        worker.open(Purpose::Fixed { destination: SERVICE.parse().unwrap() }, door).await;
        for by_client in [true, false] {
            let mut client = Socket::Tcp(TcpStream::connect(at).await.unwrap());
            write(&mut client, said).await;
            let mut application = Socket::Tcp(listener.accept().await.unwrap().0);
            let mut some = [0; 5];
            application.read_exact(&mut some).await.unwrap();
            write(&mut application, answered).await;
            client.read_exact(&mut some[..4]).await.unwrap();
            let (mut from, mut to) = if by_client { (client, application) } else { (application, client) };
            from.abort();
            drop(from);
            let ended = to.read_to_end(&mut Vec::new()).await;
            // What a client no longer waits for is closed for a server of HTTP; bytes are cut.
            if protocol == Protocol::Tcp || !by_client {
                assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "{protocol:?}, by the client: {by_client}");
            }
        }
        drop(worker);
    }
}

#[tokio::test]
async fn a_worker_accepts_serves_drains_and_ends() {
    // Aim: doors open and close while the worker runs, several may share a socket, and its end is orderly.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint: &'static str = Box::leak(listener.local_addr().unwrap().to_string().into_boxed_str());
    let serving = tokio::spawn(application(listener));
    let setup = Setup { endpoints: vec![endpoint], meshed: false, ..Setup::default() };
    let snapshots = Snapshots::default();
    snapshots.publish(Arc::new(client_snapshot(&setup, 1)));
    let means = Means {
        snapshots,
        tls: party(&Authority::new("root"), FRONTEND, "frontend").tls,
        telemetry: crate::observe::start(TelemetryOptions::default(), Clock::System).0,
        network: Network::Kernel { mark: None },
        hashing: crate::road::hashing::Hashing::of(2),
        connections_max: usize::MAX,
    };
    let workers: Vec<_> = (0..2).map(|n| Worker::spawn(format!("worker-{n}"), means.clone(), n).unwrap()).collect();
    let (fixed, redirected) = (loopback(), loopback());
    let (at, direct) = (fixed.local_addr().unwrap(), redirected.local_addr().unwrap());
    let door = Purpose::Fixed { destination: SERVICE.parse().unwrap() };
    for worker in &workers {
        worker.open(door, fixed.try_clone().unwrap()).await;
        worker.open(Purpose::Outbound, redirected.try_clone().unwrap()).await;
    }
    drop(fixed);
    for n in 0..20 {
        let mut client = Socket::Tcp(TcpStream::connect(at).await.unwrap());
        for round in 0..5 {
            write(&mut client, &format!("GET /a{n}-{round} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
            head(&mut client).await;
            assert_eq!(exactly(&mut client, format!("/a{n}-{round}").len()).await, format!("/a{n}-{round}"));
        }
    }
    let mut looping = Socket::Tcp(TcpStream::connect(direct).await.unwrap());
    assert_eq!(rest(&mut looping).await, "", "what nobody redirected is closed");
    drop(redirected);
    for worker in &workers {
        worker.close(Purpose::Outbound).await;
    }
    let mut kept = Socket::Tcp(TcpStream::connect(at).await.unwrap());
    write(&mut kept, "GET /kept HTTP/1.1\r\nhost: a\r\n\r\n").await;
    head(&mut kept).await;
    for worker in &workers {
        worker.drain(Duration::from_secs(10)).await;
    }
    for (door, told) in [(at, "by the drain"), (direct, "by a command")] {
        assert!(TcpStream::connect(door).await.is_err(), "a door is shut {told}");
    }
    assert_eq!(rest(&mut kept).await, "/kept");
    tokio::task::spawn_blocking(|| workers.into_iter().for_each(Worker::join)).await.unwrap();
    serving.abort();
}
