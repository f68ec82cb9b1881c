//! The sidecar's resolver: mesh names from the control plane, everything else from the resolvers that were there before.
//!
//! Listens on loopback, where redirection sends the application's questions. A name in the mesh's own zones is answered here alone; a
//! short name (up to three labels, or ending in `.svc`) is answered here if the mesh has it and passed on otherwise.

mod answer;
mod forward;
mod resolv;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use engine::model::Settings;
use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::io::{Listening, Socket};
use crate::snapshots::{NameLookup, Snapshots};
use answer::{Question, Reply};

pub use forward::Upstream;
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

/// See the module.
#[derive(Debug)]
pub struct Resolver {
    snapshots: Snapshots,
    upstream: Upstream,
    questions: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Resolver {
    /// A resolver that forwards to `upstream`.
    pub fn new(snapshots: Snapshots, upstream: Upstream) -> Arc<Self> {
        Arc::new(Self {
            snapshots,
            upstream,
            questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        })
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
                if let Some(reply) = resolver.answer(&question, Transport::Udp).await {
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
                let _ = resolver.converse(accepted.socket).await;
                drop(permit);
            });
        }
    }

    async fn converse(&self, mut socket: Socket) -> io::Result<()> {
        loop {
            let read = timeout(IDLE, read_message(&mut socket)).await;
            let Ok(Ok(question)) = read else { return Ok(()) };
            let Ok(_permit) = self.questions.try_acquire() else { return Ok(()) };
            let Some(reply) = self.answer(&question, Transport::Tcp).await else { return Ok(()) };
            write_message(&mut socket, &reply).await?;
        }
    }

    /// The answer to one question; `None` where nothing should be said (what came is no question).
    pub async fn answer(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let question = match answer::read(bytes) {
            Ok(question) => question,
            Err(reply) => return reply,
        };
        let settings = self.snapshots.load().settings.clone();
        let place = place(&question, settings.as_deref());
        if place != Place::Elsewhere {
            match self.snapshots.name(question.host()).await {
                NameLookup::Found(found) => return question.reply(&Reply::Addresses(&found), transport),
                NameLookup::Absent if place == Place::Mesh => return question.reply(&Reply::Code(ResponseCode::NXDomain), transport),
                NameLookup::Unknown if place == Place::Mesh => return question.reply(&Reply::Code(ResponseCode::ServFail), transport),
                NameLookup::Absent | NameLookup::Unknown => {}
            }
        }
        match self.upstream.ask(bytes, question.id(), transport).await {
            Ok(reply) => Some(reply),
            Err(error) => {
                debug!("DNS: {} is not answered: {error}", question.host());
                // Without any resolver the mesh is all there is, and it does not have the name.
                let nobody_else = self.upstream.is_empty() && place == Place::Perhaps;
                let code = if nobody_else { ResponseCode::NXDomain } else { ResponseCode::ServFail };
                question.reply(&Reply::Code(code), transport)
            }
        }
    }
}

/// Who answers for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The mesh alone.
    Mesh,
    /// The mesh, if it has the name.
    Perhaps,
    /// Others.
    Elsewhere,
}

fn place(question: &Question, settings: Option<&Settings>) -> Place {
    let host = question.host();
    if host.is_empty() || !question.is_internet() {
        return Place::Elsewhere;
    }
    let within = |zone: &String| host == zone || host.strip_suffix(zone.as_str()).is_some_and(|rest| rest.ends_with('.'));
    if settings.is_some_and(|settings| settings.dns_zones.iter().any(within)) {
        return Place::Mesh;
    }
    let labels = host.split('.').count();
    let reverse = host.ends_with(".arpa");
    if !reverse && (labels <= 3 || host.ends_with(".svc")) { Place::Perhaps } else { Place::Elsewhere }
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
