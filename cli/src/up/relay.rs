//! Bytes between two namespaces, in user space: the host's network stays untouched.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::socket::{getsockopt, sockopt};
use socket2::SockRef;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::netns::Namespace;

/// Most connections of one relay at once; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 1_024;
/// How long the far side may take to accept.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Wait after an `accept` that failed (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts and copies until dropped, and what it carries ends with it: a client that keeps its connection must not go on to where nobody wants
/// it. `dial` opens the far side for each connection.
pub(crate) async fn run<F: Future<Output = anyhow::Result<TcpStream>> + 'static>(
    listener: std::net::TcpListener,
    dial: impl Fn(&TcpStream) -> F,
) -> anyhow::Result<()> {
    let listener = TcpListener::from_std(listener).context("cannot relay")?;
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut carried = JoinSet::new();
    loop {
        while carried.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return Ok(()) };
        let Ok((mut near, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let far = dial(&near);
        carried.spawn_local(async move {
            let _permit = permit;
            // A far side that does not answer shows to the near one as a closed connection, as it would through any router.
            if let Ok(Ok(mut far)) = timeout(CONNECT_MAX, far).await {
                let _ = near.set_nodelay(true);
                let _ = far.set_nodelay(true);
                let _ = copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}

/// `HOST:PORT` of an endpoint.
pub(crate) fn authority(endpoint: &str) -> &str {
    let rest = endpoint.strip_prefix("http://").unwrap_or(endpoint);
    rest.split_once(['/', '?']).map_or(rest, |(authority, _)| authority)
}

/// Dials from the namespace of `up`.
pub(crate) async fn from_host(target: String) -> anyhow::Result<TcpStream> {
    TcpStream::connect(&target).await.with_context(|| format!("{target} does not answer"))
}

/// Dials from inside another namespace.
pub(crate) async fn from_inside(namespace: Namespace, target: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = namespace
        .spawn(move || {
            let stream = std::net::TcpStream::connect_timeout(&target, CONNECT_MAX)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        })
        .await?;
    Ok(TcpStream::from_std(stream)?)
}

/// Where a redirected connection wanted to go.
///
/// # Errors
/// The connection was not redirected: there would be nowhere to relay it but back here.
pub(crate) fn original_destination(stream: &impl AsFd) -> anyhow::Result<SocketAddr> {
    let local = SockRef::from(stream).local_addr()?.as_socket().context("the connection has no address")?;
    let destination = if local.ip().to_canonical().is_ipv4() {
        let raw = getsockopt(stream, sockopt::OriginalDst).map_err(io::Error::from)?;
        SocketAddr::new(IpAddr::V4(Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr))), u16::from_be(raw.sin_port))
    } else {
        let raw = getsockopt(stream, sockopt::Ip6tOriginalDst).map_err(io::Error::from)?;
        SocketAddr::new(IpAddr::V6(Ipv6Addr::from(raw.sin6_addr.s6_addr)), u16::from_be(raw.sin6_port))
    };
    if destination.port() == local.port() && destination.ip() == local.ip().to_canonical() {
        bail!("the connection was made to the relay itself");
    }
    Ok(destination)
}
