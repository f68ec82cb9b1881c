//! The resolver: mesh names from whoever has them ([`Names`]), everything else from the resolvers that were there before.
//!
//! In a sidecar it listens on loopback, where redirection sends the application's questions, and names come from the control plane; the
//! cluster DNS of `up` is the same with names of its own. A name in the mesh's own zones, and the reverse name of an address that only the
//! mesh can have, is answered here alone; a short name (up to three labels) or another reverse name is answered here if the mesh has it
//! and passed on otherwise.

#![allow(clippy::disallowed_types, reason = "a door: questions of applications come and go by UDP")]

mod answer;
mod forward;
mod outside;
#[cfg(test)]
mod outside_tests;
mod resolv;

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use engine::dns::{Place, place, zone};
use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::io::{Listening, Socket};
use crate::snapshots::{NameLookup, Snapshots};
use answer::Reply;

pub use forward::Upstream;
pub use outside::{OutsideKeeper, TTL_MAX, TTL_MIN};
pub use resolv::{RESOLV_CONF, nameservers};

/// Questions answered at once; more are refused (TCP) or dropped (UDP: the client asks again).
const QUESTIONS_MAX: usize = 512;
/// TCP connections at once.
const CONNECTIONS_MAX: usize = 64;
/// A TCP connection that asks nothing for this long is closed.
const IDLE: Duration = Duration::from_secs(10);
/// Longest question taken by UDP.
const UDP_BYTES_MAX: usize = 4096;
/// Pause after the kernel refused to give the next packet or connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a question came, and so how its answer may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Answers beyond the client's limit are truncated.
    Udp,
    /// Any size.
    Tcp,
}

/// Where the mesh's names come from.
pub trait Names: Send + Sync + 'static {
    /// Who answers for a name (lower case, no trailing dot).
    fn place(&self, host: &str) -> Place;

    /// What the mesh answers to somebody at that address.
    fn find(&self, host: &str, asker: IpAddr) -> impl Future<Output = NameLookup> + Send;

    /// Somebody else answered for a name with these addresses, each for so many seconds. Before the client hears of it.
    fn learnt(&self, _host: &str, _found: &[(IpAddr, u32)]) {}
}

impl Names for Snapshots {
    fn place(&self, host: &str) -> Place {
        match &self.load().settings {
            Some(settings) => place(host, &settings.dns_zones, |address| settings.mesh_holds(address)),
            None => place(host, &[""; 0], |_| false),
        }
    }

    fn find(&self, host: &str, _: IpAddr) -> impl Future<Output = NameLookup> + Send {
        // While the control plane is away, nobody need wait for it who can be answered by others.
        self.name(host, self.place(host) != Place::Mesh)
    }

    fn learnt(&self, host: &str, found: &[(IpAddr, u32)]) {
        self.learned().note(host, found, Instant::now());
    }
}

/// See the module.
#[derive(Debug)]
pub struct Resolver<N = Snapshots> {
    names: N,
    upstream: Upstream,
    questions: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl<N: Names> Resolver<N> {
    /// A resolver that forwards to `upstream`.
    pub fn new(names: N, upstream: Upstream) -> Arc<Self> {
        Arc::new(Self {
            names,
            upstream,
            questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        })
    }

    /// Where its names come from.
    pub fn names(&self) -> &N {
        &self.names
    }

    /// Answers what comes to a UDP socket, until `stop`.
    pub async fn serve_udp(self: Arc<Self>, socket: UdpSocket, stop: CancellationToken) {
        let socket = Arc::new(socket);
        let mut buffer = vec![0; UDP_BYTES_MAX];
        loop {
            let received = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                received = socket.recv_from(&mut buffer) => received,
            };
            let (length, client) = match received {
                Ok(received) => received,
                Err(error) => {
                    // An ICMP error of an earlier answer, or no memory.
                    debug!("DNS over UDP: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.questions).try_acquire_owned() else { continue };
            let (resolver, socket, question) = (Arc::clone(&self), Arc::clone(&socket), buffer[..length].to_vec());
            tokio::spawn(async move {
                if let Some(reply) = resolver.answer(&question, client.ip(), Transport::Udp).await {
                    let _ = socket.send_to(&reply, client).await;
                }
                drop(permit);
            });
        }
    }

    /// Answers what comes to a TCP listener, until `stop`.
    pub async fn serve_tcp(self: Arc<Self>, mut listening: Listening, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = listening.accept() => accepted,
            };
            let accepted = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!("DNS over TCP: no connection can be accepted: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else { continue };
            let resolver = Arc::clone(&self);
            tokio::spawn(async move {
                let _ = resolver.converse(accepted.socket, accepted.peer.ip()).await;
                drop(permit);
            });
        }
    }

    async fn converse(&self, mut socket: Socket, asker: IpAddr) -> io::Result<()> {
        loop {
            let read = timeout(IDLE, read_message(&mut socket)).await;
            let Ok(Ok(question)) = read else { return Ok(()) };
            let Ok(_permit) = self.questions.try_acquire() else { return Ok(()) };
            let Some(reply) = self.answer(&question, asker, Transport::Tcp).await else { return Ok(()) };
            // Whoever does not read is as idle as who does not ask.
            let Ok(written) = timeout(IDLE, write_message(&mut socket, &reply)).await else { return Ok(()) };
            written?;
        }
    }

    /// The answer to one question of somebody at that address; `None` where nothing should be said (what came is no question).
    pub async fn answer(&self, bytes: &[u8], asker: IpAddr, transport: Transport) -> Option<Vec<u8>> {
        let question = match answer::read(bytes) {
            Ok(question) => question,
            Err(reply) => return reply,
        };
        let say = |reply: &Reply<'_>| question.reply(reply, zone(question.host()), transport);
        if question.is_of_the_future() {
            return say(&Reply::Code(ResponseCode::BADVERS));
        }
        let place = if question.is_internet() { self.names.place(question.host()) } else { Place::Elsewhere };
        if place != Place::Elsewhere {
            match self.names.find(question.host(), asker.to_canonical()).await {
                NameLookup::Found(found) => return say(&Reply::Found(&found)),
                NameLookup::Absent if place == Place::Mesh => return say(&Reply::Denied),
                NameLookup::Unknown if place == Place::Mesh => return say(&Reply::Code(ResponseCode::ServFail)),
                NameLookup::Absent | NameLookup::Unknown => {}
            }
        }
        match self.upstream.ask(bytes, question.id(), transport).await {
            Ok(reply) => {
                let found = answer::found(&reply, question.host());
                if !found.is_empty() {
                    self.names.learnt(question.host(), &found);
                }
                Some(reply)
            }
            Err(error) => {
                debug!("DNS: {} is not answered: {error}", question.host());
                // Without any resolver the mesh is all there is, and it does not have the name.
                let nobody_else = self.upstream.is_empty() && place == Place::Perhaps;
                say(&if nobody_else { Reply::Denied } else { Reply::Code(ResponseCode::ServFail) })
            }
        }
    }
}

/// One message with its length before it (RFC 1035, section 4.2.2).
async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests;
