//! Where a connection comes from, by the word of a balancer in front of us (PROXY protocol), before anything else is heard.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Poll, ready};

use bytes::{Bytes, BytesMut};
use engine::client::proxy_protocol::{self, Heard};
use engine::model::ProxyRule;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::timeout;

/// Bytes that are read at once.
const LOOK_BYTES: usize = 1024;

/// What was heard.
#[derive(Debug)]
pub struct Introduced {
    /// Who comes: as the balancer says, else whoever has connected.
    pub from: SocketAddr,
    /// What the client said behind it, which was taken off the stream.
    pub rest: Bytes,
}

/// Hears where a connection of `peer` comes from. Nothing is read of those who may not say it. Dropping the future loses what was read.
///
/// # Errors
/// It is to be closed: it does not say what it must, not in time, or breaks a rule.
pub async fn introduced<S: AsyncRead + Unpin>(socket: &mut S, rule: &ProxyRule, peer: SocketAddr) -> Result<Introduced, &'static str> {
    if rule.trusted.as_ref().is_some_and(|trusted| !trusted.holds(peer.ip())) {
        return match rule.required {
            true => Err("who has connected is none of those who may send the PROXY protocol"),
            false => Ok(Introduced { from: peer, rest: Bytes::new() }),
        };
    }
    let mut seen = BytesMut::new();
    let hearing = async {
        loop {
            match proxy_protocol::read(&seen) {
                Heard::NeedMore if more(socket, &mut seen).await => {}
                heard => return heard,
            }
        }
    };
    let heard = timeout(rule.timeout, hearing).await;
    match heard {
        Ok(Heard::Header { bytes, source }) => {
            drop(seen.split_to(bytes));
            Ok(Introduced { from: source.unwrap_or(peer), rest: seen.freeze() })
        }
        Ok(Heard::Broken(why)) => Err(why),
        Ok(Heard::Nothing | Heard::NeedMore) if rule.required => Err("it does not begin with the PROXY protocol"),
        Ok(Heard::Nothing | Heard::NeedMore) => Ok(Introduced { from: peer, rest: seen.freeze() }),
        // Who is silent may wait for the server to speak first.
        Err(_) if !rule.required && seen.is_empty() => Ok(Introduced { from: peer, rest: Bytes::new() }),
        Err(_) => Err("the PROXY protocol's header took too long"),
    }
}

/// Reads once; whether there was anything. Cancel-safe.
async fn more<S: AsyncRead + Unpin>(stream: &mut S, seen: &mut BytesMut) -> bool {
    poll_fn(|cx| {
        let mut room = [MaybeUninit::uninit(); LOOK_BYTES];
        let mut look = ReadBuf::uninit(&mut room);
        let read = ready!(Pin::new(&mut *stream).poll_read(cx, &mut look));
        seen.extend_from_slice(look.filled());
        Poll::Ready(read.is_ok() && !look.filled().is_empty())
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use engine::consumers::AddressList;
    use tokio::io::AsyncWriteExt as _;
    use tokio::time::Instant;

    use super::*;

    const PEER: &str = "10.0.0.1:4711";
    const WAIT: Duration = Duration::from_secs(3);

    fn rule(required: bool, trusted: &str) -> ProxyRule {
        let trusted = (!trusted.is_empty()).then(|| AddressList::read(trusted).unwrap());
        ProxyRule { required, trusted, timeout: WAIT }
    }

    /// What comes of a client that says this, byte by byte; `None` after it: it goes on to live.
    async fn heard(rule: &ProxyRule, said: &[u8], ends: bool) -> Result<(String, Vec<u8>), &'static str> {
        let (mut near, mut far) = tokio::io::duplex(1);
        let said = said.to_vec();
        let client = tokio::spawn(async move {
            let _ = far.write_all(&said).await;
            if !ends {
                std::future::pending::<()>().await;
            }
        });
        let introduced = introduced(&mut near, rule, PEER.parse().unwrap()).await;
        client.abort();
        introduced.map(|introduced| (introduced.from.to_string(), introduced.rest.to_vec()))
    }

    #[tokio::test(start_paused = true)]
    async fn who_must_say_it_says_it_first() {
        // Aim: the client's address from the header, however its bytes come; no header, a broken one, a slow one and a stranger are closed.
        let line = b"PROXY TCP4 203.0.113.9 10.0.0.1 8080 443\r\n";
        let must = rule(true, "");
        assert_eq!(heard(&must, line, false).await, Ok(("203.0.113.9:8080".to_owned(), Vec::new())));
        assert_eq!(heard(&must, b"PROXY UNKNOWN\r\n", false).await, Ok((PEER.to_owned(), Vec::new())));
        for (said, ends) in [(&b"GET / HTTP/1.1\r\n"[..], false), (b"PROXY TCP4 a b c d\r\n", false), (b"PROXY TC", true), (b"", true)] {
            assert!(heard(&must, said, ends).await.is_err(), "{}", said.escape_ascii());
        }
        let began = Instant::now();
        assert!(heard(&must, b"PROXY TC", false).await.is_err() && began.elapsed() == WAIT);
        assert!(heard(&rule(true, "192.0.2.0/24"), line, false).await.is_err(), "a stranger");
    }

    #[tokio::test(start_paused = true)]
    async fn who_may_say_it_need_not() {
        // Aim: of the trusted, with or without a header, nothing is lost; a stranger's header is not read; who begins one ends it.
        let may = rule(false, "10.0.0.0/8");
        let (from, rest) = heard(&may, b"GET", false).await.unwrap();
        assert_eq!((from.as_str(), rest.first()), (PEER, Some(&b'G')));
        assert_eq!(heard(&may, b"", false).await, Ok((PEER.to_owned(), Vec::new())), "silent: the server may speak first");
        assert!(heard(&may, b"PROXY TC", false).await.is_err(), "begun and not ended");
        let stranger = rule(false, "192.0.2.0/24");
        assert_eq!(heard(&stranger, b"PROXY UNKNOWN\r\n", false).await, Ok((PEER.to_owned(), Vec::new())));
    }

    #[tokio::test]
    async fn what_comes_behind_is_kept() {
        // Aim: a header and the first request in one segment.
        let (mut near, mut far) = tokio::io::duplex(256);
        far.write_all(b"PROXY TCP4 203.0.113.9 10.0.0.1 8080 443\r\nGET / HTTP/1.1\r\n").await.unwrap();
        let told = introduced(&mut near, &rule(true, ""), PEER.parse().unwrap()).await.unwrap();
        assert_eq!(told.rest, "GET / HTTP/1.1\r\n");
    }
}
