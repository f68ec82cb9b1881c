//! The test service of examples and tests: HTTP/1.1, HTTP/2, gRPC, WebSocket and raw TCP; says what it saw and calls on if told to.
//!
//! `mod` listens, `http` answers (in the words of `answer`), `wish` reads what the request wants, `call` calls on, `grpc`, `websocket` and `tcp` speak the rest.

mod answer;
mod call;
mod grpc;
mod http;
mod listen;
mod tcp;
mod websocket;
mod wish;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use call::{CallRule, rule};
pub(crate) use tcp::unescape;
pub(crate) use wish::{Habit, percent};

/// Pause after an accept that failed, e.g. for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time that requests in flight have after SIGTERM.
const DRAIN: Duration = Duration::from_secs(5);

/// Who answers.
#[derive(Debug, Clone)]
pub(crate) struct Answerer {
    /// Workload name.
    pub(crate) workload: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Instance name.
    pub(crate) instance: String,
    /// Version label, or empty.
    pub(crate) version: String,
}

/// What to serve.
#[derive(Debug)]
pub(crate) struct EchoSettings {
    /// Who answers.
    pub(crate) who: Answerer,
    /// Ports of HTTP and gRPC; 0 takes a free one.
    pub(crate) http: Vec<u16>,
    /// Ports of raw TCP.
    pub(crate) tcp: Vec<u16>,
    /// What TCP clients hear first.
    pub(crate) greeting: Bytes,
    /// Whom to call before answering.
    pub(crate) rules: Vec<CallRule>,
    /// How HTTP requests are answered that wish for nothing else.
    pub(crate) habit: Habit,
    /// One address, or both families' wildcard.
    pub(crate) listen: Option<IpAddr>,
}

/// What every connection shares.
#[derive(Debug)]
struct EchoService {
    who: Answerer,
    rules: Vec<CallRule>,
    habit: Habit,
    caller: call::Callees,
}

/// Serves until SIGTERM or SIGINT, then finishes what is in flight.
///
/// # Errors
/// A port cannot be opened; the sentence names it.
pub(crate) async fn serve(settings: EchoSettings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let name = format!("{}/{}", settings.who.namespace, settings.who.instance);
    let EchoSettings { who, rules, habit, .. } = settings;
    let service = Arc::new(EchoService { who, rules, habit, caller: call::Callees::new(&name) });
    let connections = Arc::new(GracefulShutdown::new());
    let mut accepting = tokio::task::JoinSet::new();
    for port in settings.http {
        let listener = listen::open(settings.listen, port)?;
        eprintln!("{name}: HTTP/1.1, HTTP/2, gRPC and WebSocket on {}", listener.local_addr().context("a listener has no address")?);
        accepting.spawn(accept_http(listener, Arc::clone(&service), Arc::clone(&connections)));
    }
    for port in settings.tcp {
        let listener = listen::open(settings.listen, port)?;
        eprintln!("{name}: TCP on {}", listener.local_addr().context("a listener has no address")?);
        accepting.spawn(accept_tcp(listener, settings.greeting.clone()));
    }
    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // Ends the accept loops, and with them the other owners of `connections`.
    accepting.shutdown().await;
    if let Some(connections) = Arc::into_inner(connections) {
        let _ = tokio::time::timeout(DRAIN, connections.shutdown()).await;
    }
    Ok(())
}

async fn accept(listener: &TcpListener) -> (TcpStream, std::net::SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Not fatal: the kernel refuses it on a connection that is gone already.
                let _ = stream.set_nodelay(true);
                return (stream, peer);
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn accept_http(listener: TcpListener, service: Arc<EchoService>, connections: Arc<GracefulShutdown>) {
    let builder = auto::Builder::new(TokioExecutor::new());
    loop {
        let (stream, peer) = accept(&listener).await;
        let peer = std::net::SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let service = Arc::clone(&service);
        let answer = hyper::service::service_fn(move |request| http::answer(Arc::clone(&service), peer, request));
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), answer).into_owned();
        let connection = connections.watch(connection);
        // A connection that breaks is its client's business; the test service keeps no log per request.
        tokio::spawn(async move { connection.await.ok() });
    }
}

async fn accept_tcp(listener: TcpListener, greeting: Bytes) {
    loop {
        let (stream, _) = accept(&listener).await;
        tokio::spawn(tcp::echo(stream, greeting.clone()));
    }
}
