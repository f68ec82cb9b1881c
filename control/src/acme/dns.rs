//! Whether a record is seen in DNS, before an authority is told to look: it looks once, and what it does not find counts as a failure.

#![allow(clippy::disallowed_types, reason = "a door: DNS is outside, and simulations order no certificates")]

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_libc_reads_them() {
        // Aim: their lines, three at most, other lines passed over.
        let text = "# nameserver 1.1.1.1\nsearch a\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver no\nnameserver 9.9.9.9\nnameserver 8.8.8.8\n";
        assert_eq!(nameservers(text), ["10.0.0.1:53", "[fe80::1]:53", "9.9.9.9:53"].map(|text| text.parse::<SocketAddr>().unwrap()));
    }

    #[test]
    fn answers_are_read() {
        // Aim: a question for TXT; the parts of a text are one; another name of an alias is no text; no such name is nothing; a failure is one; who answers
        // another question is not heard.
        let bytes = question("_acme-challenge.a.example.", 7).unwrap();
        let asked = Message::from_vec(&bytes).unwrap();
        assert_eq!((asked.queries[0].query_type(), asked.metadata.recursion_desired), (RecordType::TXT, true));
        assert!(question(&"a".repeat(300), 7).is_err());
        assert!(answering(&bytes, 7).is_none(), "a question is no answer");
        let mut answer = bytes.clone();
        (answer[2], answer[3], answer[7]) = (0x81, 0x80, 1);
        answer.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 1, 0, 6, 2, b'a', b'b', 2, b'c', b'd']);
        let read = answering(&answer, 7).unwrap();
        assert_eq!(texts(&read), Ok(vec!["abcd".to_owned()]));
        assert!(answering(&answer, 8).is_none() && answering(&answer[..9], 7).is_none());
        answer.truncate(bytes.len());
        (answer[3], answer[7]) = (0x83, 0);
        assert_eq!(texts(&answering(&answer, 7).unwrap()), Ok(Vec::new()));
        answer[3] = 0x82;
        assert!(texts(&answering(&answer, 7).unwrap()).is_err_and(|why| why.contains("it answers")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_that_never_comes_is_given_up() {
        // Aim: a resolver that does not answer is named, with what may be done, in bounded time.
        let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let why = seen("_acme-challenge.a.example.", "v", &[silent.local_addr().unwrap()]).await.unwrap_err();
        assert!(why.contains("within 300 s (it does not answer)") && why.contains("acme.dns01.resolvers"), "{why}");
    }
}
