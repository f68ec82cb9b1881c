//! One HTTP question from within a namespace: is the topology up?

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;
use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

/// Longest wait for a connection and for each read.
const WAIT: Duration = Duration::from_secs(2);
/// Longest head we look at; the status is in its first line.
const HEAD_BYTES_MAX: usize = 256;

/// Host and path of `http://IP:PORT/PATH`; port 80 where none is given. Pure.
///
/// # Errors
/// It is no such URL: names are not resolved here.
pub(super) fn parts(url: &str) -> anyhow::Result<(SocketAddr, String)> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url} does not begin with http://"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = host.parse().or_else(|_| format!("{host}:80").parse()).ok();
    Ok((address.with_context(|| format!("{url} has no IP address"))?, format!("/{path}")))
}

/// Status of a GET from within a namespace (`None`: our own).
///
/// # Errors
/// No connection, or no HTTP answer, within two seconds.
pub(super) async fn status(namespace: Option<String>, address: SocketAddr, path: String) -> anyhow::Result<u16> {
    let (answer, answered) = oneshot::channel();
    // A thread of its own: it never comes back to the namespace it was born in.
    std::thread::spawn(move || answer.send(ask(namespace.as_deref(), address, &path)));
    answered.await.context("the probe ended without an answer")?
}

fn ask(namespace: Option<&str>, address: SocketAddr, path: &str) -> anyhow::Result<u16> {
    if let Some(name) = namespace {
        let file = File::open(format!("/run/netns/{name}")).with_context(|| format!("there is no namespace {name}"))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter namespace {name}"))?;
    }
    let head = exchange(address, path).with_context(|| format!("no answer from {address}"))?;
    let status = head.split_ascii_whitespace().nth(1).and_then(|word| word.parse().ok());
    status.with_context(|| format!("{address} does not answer in HTTP: {head:?}"))
}

fn exchange(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, WAIT)?;
    stream.set_read_timeout(Some(WAIT))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut head = vec![0; HEAD_BYTES_MAX];
    let mut filled = 0;
    while filled < head.len() && !head[..filled].contains(&b'\n') {
        match stream.read(&mut head[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(String::from_utf8_lossy(&head[..filled]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: URLs of specs are taken apart, and what is none is named.
    #[test]
    fn urls_are_taken_apart() {
        for (url, address, path) in [
            ("http://10.0.0.1:81/1k", "10.0.0.1:81", "/1k"),
            ("http://10.0.0.1", "10.0.0.1:80", "/"),
            ("http://[::1]:1/a/b", "[::1]:1", "/a/b"),
        ] {
            assert_eq!(parts(url).unwrap(), (address.parse().unwrap(), path.to_owned()));
        }
        for url in ["https://10.0.0.1", "http://name:80/", "x"] {
            assert!(parts(url).unwrap_err().to_string().contains(url));
        }
    }
}
