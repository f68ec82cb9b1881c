//! Passing questions on, unread: a socket each, so that the port is as hard to guess as the id (RFC 5452).

#![allow(clippy::disallowed_types, reason = "a door: questions of applications come and go by UDP")]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Type};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Transport, read_message, write_message};
use crate::io::Network;

/// Longest wait for an answer, all servers together.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// A question by UDP that is not answered by then is sent again: packets get lost.
const AGAIN: Duration = Duration::from_millis(500);
/// Largest answer by UDP.
const UDP_BYTES_MAX: usize = 4096;

/// The resolvers that questions are passed on to.
#[derive(Clone, Debug)]
pub struct Upstream {
    network: Network,
    servers: Vec<SocketAddr>,
}

impl Upstream {
    /// Asks `servers` in that order, through `network`.
    pub fn new(network: Network, servers: Vec<SocketAddr>) -> Self {
        Self { network, servers }
    }

    /// Whether there is nobody to ask.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// The first answer of a server, each given an equal share of [`ANSWER_WAIT`].
    pub(super) async fn ask(&self, question: &[u8], id: u16, transport: Transport) -> io::Result<Vec<u8>> {
        let share = ANSWER_WAIT / u32::try_from(self.servers.len().max(1)).unwrap_or(1);
        let mut last = io::Error::new(io::ErrorKind::NotFound, "there is no resolver to pass it on to (--dns-upstream)");
        for server in &self.servers {
            let deadline = Instant::now() + share;
            let asked = async {
                match transport {
                    Transport::Udp => self.ask_udp(*server, question, id).await,
                    Transport::Tcp => self.ask_tcp(*server, question).await,
                }
            };
            match timeout_at(deadline, asked).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => last = io::Error::new(error.kind(), format!("{server}: {error}")),
                Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{server} does not answer")),
            }
        }
        Err(last)
    }

    async fn ask_udp(&self, server: SocketAddr, question: &[u8], id: u16) -> io::Result<Vec<u8>> {
        let socket = self.udp(server)?;
        socket.connect(server).await?;
        socket.send(question).await?;
        let mut buffer = vec![0; UDP_BYTES_MAX];
        loop {
            let Ok(received) = timeout(AGAIN, socket.recv(&mut buffer)).await else {
                socket.send(question).await?;
                continue;
            };
            let length = received?;
            // Anything else is late or forged.
            if buffer[..length].first_chunk::<2>() == Some(&id.to_be_bytes()) && length >= 12 && buffer[2] & 0x80 != 0 {
                buffer.truncate(length);
                return Ok(buffer);
            }
        }
    }

    async fn ask_tcp(&self, server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let mut socket = self.network.connect(server).await?;
        write_message(&mut socket, question).await?;
        read_message(&mut socket).await
    }

    fn udp(&self, server: SocketAddr) -> io::Result<UdpSocket> {
        let socket = socket2::Socket::new(Domain::for_address(server), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        if let Some(mark) = self.network.mark() {
            socket.set_mark(mark)?;
        }
        let any: SocketAddr = if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        socket.bind(&any.into())?;
        UdpSocket::from_std(socket.into())
    }
}
