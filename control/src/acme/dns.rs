//! Whether a record is seen in DNS, before an authority is told to look: it looks once, and what it does not find counts as a failure.

#![allow(
    clippy::disallowed_types,
    reason = "a door: DNS is outside, and simulations order no certificates"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep, timeout};

/// How long a record has to be seen.
const SEEN_MAX: Duration = Duration::from_secs(300);
/// Pauses between two looks: the first, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// One question.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Longest answer.
const ANSWER_BYTES_MAX: usize = 4096;
/// Where a machine names its resolvers, and how many count (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";
const RESOLVERS_MAX: usize = 3;

/// Returns when every one of these resolvers sees a TXT record of that name (with its last dot) and value; none: the machine's own.
///
/// # Errors
/// One does not, in time.
pub(super) async fn seen(fqdn: &str, value: &str, resolvers: &[SocketAddr]) -> Result<(), String> {
    let resolvers = if resolvers.is_empty() { own_resolvers().await } else { resolvers.to_vec() };
    if resolvers.is_empty() {
        return Err(format!("nobody can be asked for {fqdn}: {RESOLV_CONF} names no resolver; name one in acme.dns01.resolvers"));
    }
    let (until, mut pause) = (Instant::now() + SEEN_MAX, PAUSE_MIN);
    let mut open: Vec<SocketAddr> = resolvers;
    loop {
        let mut why = String::new();
        let mut left = Vec::new();
        for resolver in open {
            match asked(resolver, fqdn).await {
                Ok(found) if found.iter().any(|text| text == value) => {}
                Ok(found) => {
                    why = format!("it knows {} other TXT records there", found.len());
                    left.push(resolver);
                }
                Err(error) => {
                    why = error;
                    left.push(resolver);
                }
            }
        }
        open = left;
        let Some(resolver) = open.first() else { return Ok(()) };
        if Instant::now() + pause > until {
            return Err(format!(
                "the record {fqdn} is not seen by the resolver {resolver} within {} s ({why}): look at what the webhook writes, or name resolvers that see it in acme.dns01.resolvers",
                SEEN_MAX.as_secs()
            ));
        }
        sleep(pause).await;
        pause = pause.mul_f64(1.5).min(PAUSE_MAX);
    }
}

/// The machine's own resolvers.
async fn own_resolvers() -> Vec<SocketAddr> {
    nameservers(&tokio::fs::read_to_string(RESOLV_CONF).await.unwrap_or_default())
}

/// As libc reads them.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let one = |line: &str| {
        let mut words = line.split_whitespace();
        let address = (words.next() == Some("nameserver")).then(|| words.next()).flatten()?;
        Some(SocketAddr::new(address.split('%').next()?.parse::<IpAddr>().ok()?, 53))
    };
    text.lines().filter_map(one).take(RESOLVERS_MAX).collect()
}

/// The TXT records that a resolver knows of a name.
async fn asked(resolver: SocketAddr, fqdn: &str) -> Result<Vec<String>, String> {
    let id = id();
    let question = question(fqdn, id)?;
    let answer = timeout(ANSWER_MAX, by_udp(resolver, &question, id)).await;
    let answer = answer.map_err(|_| "it does not answer".to_owned())?.map_err(|error| error.to_string())?;
    if !answer.metadata.truncation {
        return texts(&answer);
    }
    let answer = timeout(ANSWER_MAX, by_tcp(resolver, &question, id)).await;
    texts(&answer.map_err(|_| "it does not answer by TCP".to_owned())?.map_err(|error| error.to_string())?)
}

fn id() -> u16 {
    let mut bytes = [0; 2];
    // Who answers another question is heard by its name too.
    let _ = rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut bytes);
    u16::from_be_bytes(bytes)
}

fn question(fqdn: &str, id: u16) -> Result<Vec<u8>, String> {
    let name = Name::from_ascii(fqdn).map_err(|error| format!("{fqdn} is no name in DNS: {error}"))?;
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, RecordType::TXT));
    message.to_vec().map_err(|error| error.to_string())
}

/// A message that answers the question with that number.
fn answering(bytes: &[u8], id: u16) -> Option<Message> {
    Message::from_vec(bytes).ok().filter(|answer| answer.metadata.id == id && answer.metadata.message_type == MessageType::Response)
}

async fn by_udp(resolver: SocketAddr, question: &[u8], id: u16) -> std::io::Result<Message> {
    let any: IpAddr = if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(question).await?;
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    loop {
        let bytes = socket.recv(&mut answer).await?;
        if let Some(answer) = answering(&answer[..bytes], id) {
            return Ok(answer);
        }
    }
}

async fn by_tcp(resolver: SocketAddr, question: &[u8], id: u16) -> std::io::Result<Message> {
    let odd = |why: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, why.to_owned());
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(question.len()).map_err(|_| odd("the question is too long"))?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    answering(&answer, id).ok_or_else(|| odd("its answer is none"))
}

/// The texts of an answer, each of its parts in one; none: there is no such name, or no such record.
fn texts(answer: &Message) -> Result<Vec<String>, String> {
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        code => return Err(format!("it answers {code}")),
    }
    let text = |data: &RData| match data {
        RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
        _ => None,
    };
    Ok(answer.answers.iter().filter_map(|record| text(&record.data)).collect())
}
