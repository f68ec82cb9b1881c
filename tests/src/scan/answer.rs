//! What a server says first, read from its bytes.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a server is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// The randomness of a HelloRetryRequest (RFC 8446, section 4.1.3), its begin.
const RETRY: [u8; 4] = [0xcf, 0x21, 0xad, 0x74];
/// Bytes of a record that holds a sealed alert: itself, what it is, and a tag (RFC 8446, section 5.2).
const SEALED_ALERT_BYTES: usize = 2 + 1 + 16;
const SUPPORTED_VERSIONS: u16 = 43;
const KEY_SHARE: u16 = 51;

/// What came of a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstWords {
    /// It is taken.
    Hello(Box<ServerHello>),
    /// It is refused, with a fatal alert of this description.
    Alert(u8),
    /// It is refused after a hello of TLS 1.3, by what cannot be read and has an alert's length.
    Sealed,
    /// The connection was closed without a word.
    Closed,
    /// Nothing came.
    Silence,
    /// Something that is no TLS.
    Other(Vec<u8>),
}

/// What a server has chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerHello {
    /// As it counts: that of the extension, where there is one.
    pub version: u16,
    /// Cipher suite.
    pub suite: u16,
    /// Compression method.
    pub compression: u8,
    /// 32 bytes.
    pub random: Vec<u8>,
    /// It asks for another share.
    pub retry: bool,
    /// The group of its share, or of its key exchange.
    pub group: Option<u16>,
    /// The scheme of its signature, where that is in the clear: TLS 1.2.
    pub scheme: Option<u16>,
    /// Number and content of each.
    pub extensions: Vec<(u16, Vec<u8>)>,
}

impl ServerHello {
    /// Content of an extension.
    pub fn extension(&self, number: u16) -> Option<&[u8]> {
        self.extensions.iter().find(|(own, _)| *own == number).map(|(_, content)| content.as_slice())
    }
}

impl FirstWords {
    /// What was chosen, if the hello was taken.
    pub fn taken(&self) -> Option<&ServerHello> {
        if let Self::Hello(hello) = self { Some(hello) } else { None }
    }
}

/// Sends bytes over a connection of their own and reads what is said.
///
/// # Errors
/// There is no connection.
pub fn say(at: SocketAddr, bytes: &[u8]) -> io::Result<FirstWords> {
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
    // A server that has refused may be gone before all is sent: then what it said is read all the same.
    let _ = stream.write_all(bytes);
    Ok(listen(&mut stream))
}

/// Reads what is said until it is understood.
pub fn listen(stream: &mut TcpStream) -> FirstWords {
    let mut reader = Reader::default();
    let mut piece = [0; 16 << 10];
    if stream.set_read_timeout(Some(PATIENCE)).is_err() {
        return FirstWords::Closed;
    }
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return reader.end(FirstWords::Closed),
            Ok(count) => {
                reader.bytes.extend_from_slice(&piece[..count]);
                if let Some(answer) = reader.read() {
                    return answer;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return reader.end(FirstWords::Silence),
            Err(_) => return reader.end(FirstWords::Closed),
        }
    }
}

/// Bytes that have come, and what of the handshake is in them.
#[derive(Default)]
struct Reader {
    bytes: Vec<u8>,
    handshake: Vec<u8>,
    hello: Option<ServerHello>,
}

impl Reader {
    /// The answer, once it is whole.
    fn read(&mut self) -> Option<FirstWords> {
        while let [kind, major, _, high, low, rest @ ..] = self.bytes.as_slice() {
            if !(20..=24).contains(kind) || *major != 3 {
                return Some(FirstWords::Other(std::mem::take(&mut self.bytes)));
            }
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if *kind == 23
                && let Some(hello) = self.hello.take()
            {
                return Some(if length == SEALED_ALERT_BYTES { FirstWords::Sealed } else { FirstWords::Hello(Box::new(hello)) });
            }
            let content = rest.get(..length)?;
            match (*kind, content) {
                (21, [2, description, ..]) => return Some(FirstWords::Alert(*description)),
                (22, content) => self.handshake.extend_from_slice(content),
                // Warnings, and what is sent for middleboxes.
                _ => {}
            }
            self.bytes.drain(..5 + length);
            if let Some(hello) = self.messages() {
                return Some(FirstWords::Hello(Box::new(hello)));
            }
        }
        None
    }

    /// What there is when nothing more comes.
    fn end(self, otherwise: FirstWords) -> FirstWords {
        match self.hello {
            Some(hello) => FirstWords::Hello(Box::new(hello)),
            None if self.bytes.is_empty() => otherwise,
            None => FirstWords::Other(self.bytes),
        }
    }

    /// Takes whole messages; the hello, once nothing in the clear can be added to it. After one of TLS 1.3 the next record says whether it stands.
    fn messages(&mut self) -> Option<ServerHello> {
        while let [kind, a, b, c, rest @ ..] = self.handshake.as_slice() {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            let body = rest.get(..length)?.to_vec();
            let kind = *kind;
            self.handshake.drain(..4 + length);
            match (kind, &mut self.hello) {
                (2, hello) => {
                    let read = server_hello(&body)?;
                    if read.retry {
                        return Some(read);
                    }
                    *hello = Some(read);
                }
                (12, Some(hello)) => key_exchange(&body, hello),
                (14, _) => return self.hello.take(),
                _ => {}
            }
        }
        None
    }
}

fn server_hello(body: &[u8]) -> Option<ServerHello> {
    let (version, rest) = number(body)?;
    let (random, rest) = rest.split_at_checked(32)?;
    let (id, rest) = rest.split_first()?;
    let (suite, rest) = number(rest.get(usize::from(*id)..)?)?;
    let (compression, rest) = rest.split_first()?;
    let mut hello = ServerHello { version, suite, compression: *compression, random: random.to_vec(), ..ServerHello::default() };
    hello.retry = random.starts_with(&RETRY);
    let mut rest = rest.get(2..).unwrap_or_default();
    while let Some((name, after)) = number(rest) {
        let (length, after) = number(after)?;
        let (content, after) = after.split_at_checked(usize::from(length))?;
        hello.extensions.push((name, content.to_vec()));
        rest = after;
    }
    if let Some((version, _)) = hello.extension(SUPPORTED_VERSIONS).and_then(number) {
        hello.version = version;
    }
    hello.group = hello.extension(KEY_SHARE).and_then(number).map(|(group, _)| group);
    Some(hello)
}

/// Of a named curve: which, and how it is signed (RFC 8422, section 5.4).
fn key_exchange(body: &[u8], hello: &mut ServerHello) {
    let [3, high, low, length, rest @ ..] = body else { return };
    hello.group = Some(u16::from_be_bytes([*high, *low]));
    hello.scheme = rest.get(usize::from(*length)..).and_then(number).map(|(scheme, _)| scheme);
}

fn number(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u16::from_be_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: an alert, what is no TLS, and a hello in pieces are told from one another; half of one is waited for.
    #[test]
    fn first_words_are_read() {
        let read = |bytes: &[u8]| Reader { bytes: bytes.to_vec(), ..Reader::default() }.read();
        assert_eq!(read(&[21, 3, 3, 0, 2, 2, 40]), Some(FirstWords::Alert(40)));
        assert_eq!(read(&[21, 3, 3, 0, 2, 2]), None);
        assert_eq!(read(b"HTTP/1.1 400"), Some(FirstWords::Other(b"HTTP/1.1 400".to_vec())));
        let mut body = [&[3, 3][..], &[1; 32], &[0], &[0x13, 1], &[0], &[0, 12], &[0, 43, 0, 2, 3, 4], &[0, 51, 0, 2, 0, 29]].concat();
        let message = [&[2, 0, 0, body.len() as u8][..], &body].concat();
        let (first, second) = message.split_at(20);
        let record = |part: &[u8]| [&[22, 3, 3, 0, part.len() as u8][..], part].concat();
        let hello = [record(first), record(second)].concat();
        let sealed = |length: u8| [&hello[..], &[23, 3, 3, 0, length], &[0; 19]].concat();
        assert_eq!(read(&sealed(19)), Some(FirstWords::Sealed));
        let Some(FirstWords::Hello(hello)) = read(&sealed(200)) else { panic!("it is a hello") };
        assert_eq!((hello.version, hello.suite, hello.group, hello.retry), (0x0304, 0x1301, Some(29), false));
        body.truncate(30);
        assert_eq!(server_hello(&body), None);
    }
}
