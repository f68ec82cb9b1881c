//! Readiness probes of the kubelet's shape, run inside an instance's namespace with the exempt mark, as a kubelet's pass by a sidecar.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use proxy::intercept::EXEMPT_MARK;
use socket2::{Domain, Protocol, Socket, Type};

/// Longest answer that is looked at: the status line is in front.
const ANSWER_BYTES_MAX: usize = 4 << 10;

/// What is asked of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// A connection.
    Tcp(u16),
    /// A status from 200 to 399.
    Http {
        /// The port.
        port: u16,
        /// The path.
        path: String,
    },
}

/// Asks once, at the instance's addresses in turn: a program may listen on one family only. Blocks for at most `limit`.
///
/// # Errors
/// In words for a person: what was asked and what came back.
pub(crate) fn ask(check: &Check, addresses: &[IpAddr], limit: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + limit;
    let port = match check {
        Check::Tcp(port) | Check::Http { port, .. } => *port,
    };
    let mut last = None;
    for address in addresses {
        let target = SocketAddr::new(*address, port);
        match connect(target, until) {
            Ok(stream) => {
                return match check {
                    Check::Tcp(_) => Ok(()),
                    Check::Http { path, .. } => get(stream, target, path, until),
                };
            }
            Err(error) => last = last.or(Some(error)),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("the instance has no address")))
}

fn left(until: Instant) -> anyhow::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        bail!("no answer in time");
    }
    Ok(left)
}

fn connect(target: SocketAddr, until: Instant) -> anyhow::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_mark(EXEMPT_MARK).context("cannot mark a probe's socket (CAP_NET_ADMIN)")?;
    socket.connect_timeout(&target.into(), left(until)?).with_context(|| format!("nothing listens on port {}", target.port()))?;
    Ok(socket.into())
}

fn get(mut stream: TcpStream, target: SocketAddr, path: &str, until: Instant) -> anyhow::Result<()> {
    stream.set_write_timeout(Some(left(until)?))?;
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {target}\r\nuser-agent: meshwright-probe\r\naccept: */*\r\nconnection: close\r\n\r\n")
        .with_context(|| format!("{path} on port {} did not take the question", target.port()))?;
    let mut answer = Vec::new();
    let mut buffer = [0; 512];
    while !answer.contains(&b'\n') && answer.len() < ANSWER_BYTES_MAX {
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => answer.extend_from_slice(&buffer[..len]),
            Err(error) => return Err(error).with_context(|| format!("{path} on port {} did not answer", target.port())),
        }
    }
    match status(&answer) {
        Some(200..=399) => Ok(()),
        Some(code) => bail!("{path} on port {} answered {code}", target.port()),
        None => bail!("{path} on port {} did not answer with HTTP", target.port()),
    }
}

fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| *byte == b' ');
    words.next().filter(|version| version.starts_with(b"HTTP/"))?;
    std::str::from_utf8(words.next()?).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: the status is read from real and from broken answers without a panic.
    #[test]
    fn statuses() {
        for (answer, expected) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", Some(204)),
            ("HTTP/1.0 503\r\n", Some(503)),
            ("SSH-2.0-x\r\n", None),
            ("HTTP/1.1", None),
            ("", None),
        ] {
            assert_eq!(status(answer.as_bytes()), expected, "{answer:?}");
        }
    }
}
