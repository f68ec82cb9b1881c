//! What the first bytes of a connection are. Never guesses by time: it answers [`Sniffed::NeedMore`] until the bytes decide, and a
//! decision never changes with more bytes.

/// Most bytes that [`sniff`] needs before it decides.
pub const SNIFF_BYTES_MAX: usize = 18 << 10;
/// Longest method that is taken for one (the IANA registry's longest has 17).
const METHOD_BYTES_MAX: usize = 32;
/// A request target this long that starts with `/` is HTTP, whatever follows.
const TARGET_BYTES_CERTAIN: usize = 1024;
/// Longest ClientHello that is looked into; a longer one is TLS without a known name.
const CLIENT_HELLO_BYTES_MAX: usize = 16 << 10;
/// Most ALPN names kept.
const ALPN_MAX: usize = 16;
/// The extension that holds an encrypted ClientHello (RFC 9849, section 5).
const ENCRYPTED_CLIENT_HELLO: usize = 0xfe0d;
/// RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The answer of [`sniff`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sniffed {
    /// Not decided yet.
    NeedMore,
    /// An HTTP/1.x request.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// A TLS ClientHello.
    Tls(ClientHello),
    /// Anything else.
    Opaque,
}

/// What a ClientHello says about where it wants to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// Server name (RFC 6066), lower case.
    pub sni: Option<String>,
    /// Offered protocols (RFC 7301), in order.
    pub alpn: Vec<Vec<u8>>,
    /// It has (or pretends to have, which nobody can tell) another name, encrypted (RFC 9849): the one in the clear may not be the one it asks for.
    pub encrypted: bool,
}

impl ClientHello {
    /// Whether a protocol is among those offered.
    pub fn offers(&self, protocol: &str) -> bool {
        self.alpn.iter().any(|name| name == protocol.as_bytes())
    }
}

/// Judges the first bytes of a connection.
pub fn sniff(bytes: &[u8]) -> Sniffed {
    match bytes.first() {
        None => Sniffed::NeedMore,
        Some(22) => tls(bytes),
        Some(_) => http(bytes),
    }
}

fn http(bytes: &[u8]) -> Sniffed {
    if bytes.starts_with(PREFACE) {
        return Sniffed::Http2;
    }
    if PREFACE.starts_with(bytes) {
        return Sniffed::NeedMore;
    }
    request_line(bytes)
}

/// `METHOD SP TARGET SP HTTP/1.x (CR | LF)`: RFC 9112, section 3.
fn request_line(bytes: &[u8]) -> Sniffed {
    let Some(method) = bytes.iter().position(|byte| !token(*byte)) else {
        return if bytes.len() > METHOD_BYTES_MAX { Sniffed::Opaque } else { Sniffed::NeedMore };
    };
    if method == 0 || method > METHOD_BYTES_MAX || bytes[method] != b' ' {
        return Sniffed::Opaque;
    }
    let rest = &bytes[method + 1..];
    let rooted = rest.first() == Some(&b'/');
    let window = &rest[..rest.len().min(TARGET_BYTES_CERTAIN + 1)];
    let Some(target) = window.iter().position(|byte| *byte <= b' ' || *byte == 0x7f) else {
        return match (window.len() > TARGET_BYTES_CERTAIN, rooted) {
            (true, true) => Sniffed::Http1,
            (true, false) => Sniffed::Opaque,
            (false, _) => Sniffed::NeedMore,
        };
    };
    if target == 0 || rest[target] != b' ' {
        return Sniffed::Opaque;
    }
    version(&rest[target + 1..])
}

fn version(bytes: &[u8]) -> Sniffed {
    const NAME: &[u8] = b"HTTP/1.";
    let seen = bytes.len().min(NAME.len());
    if bytes[..seen] != NAME[..seen] {
        return Sniffed::Opaque;
    }
    match &bytes[seen..] {
        [] => Sniffed::NeedMore,
        [b'0'..=b'9'] => Sniffed::NeedMore,
        [b'0'..=b'9', b'\r' | b'\n', ..] => Sniffed::Http1,
        _ => Sniffed::Opaque,
    }
}

/// Whether words that are no request by the book, or not yet, may be the beginning of one to a lenient reader: one that skips blank lines and
/// white space before it, and takes any white space for the space between its parts (RFC 9112, sections 2.2 and 3).
pub fn may_be_request(bytes: &[u8]) -> bool {
    let white = |byte: &u8| matches!(byte, b' ' | b'\t' | 0x0b | 0x0c | b'\r');
    let begun = bytes.iter().position(|byte| !white(byte) && *byte != b'\n').unwrap_or(bytes.len());
    let mut rest = &bytes[begun..];
    for number in 0..2 {
        let part = rest.iter().position(|byte| white(byte) || *byte == b'\n').unwrap_or(rest.len());
        let is_method = || part <= METHOD_BYTES_MAX && rest[..part].iter().all(|byte| token(*byte));
        if number == 0 && !is_method() {
            return false;
        }
        rest = &rest[part..];
        let gap = rest.iter().position(|byte| !white(byte)).unwrap_or(rest.len());
        rest = &rest[gap..];
        match rest.first() {
            None => return !bytes.is_empty(),
            // The line ends before there is a version.
            Some(b'\n') => return false,
            Some(_) => {}
        }
    }
    const VERSION: &[u8] = b"HTTP/";
    let seen = rest.len().min(VERSION.len());
    rest[..seen].eq_ignore_ascii_case(&VERSION[..seen])
}

/// RFC 9110, section 5.6.2.
const fn token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

/// What begins like a ClientHello but is broken further on is still TLS: the handshake will say so.
fn tls(bytes: &[u8]) -> Sniffed {
    let begins = [Some(22), Some(3), None, None, None, Some(1)];
    for (byte, wanted) in bytes.iter().zip(begins) {
        if wanted.is_some_and(|wanted| wanted != *byte) {
            return Sniffed::Opaque;
        }
    }
    if bytes.len() < begins.len() {
        return Sniffed::NeedMore;
    }
    match gather(&bytes[..bytes.len().min(SNIFF_BYTES_MAX)]) {
        Reassembled::Incomplete if bytes.len() < SNIFF_BYTES_MAX => Sniffed::NeedMore,
        Reassembled::Incomplete | Reassembled::Broken => Sniffed::Tls(ClientHello::default()),
        Reassembled::Whole(message) => Sniffed::Tls(client_hello(&message).unwrap_or_default()),
    }
}

/// What a ClientHello says that comes without records, as in QUIC (RFC 9001, section 4.1.3); `None`: it is not whole yet, and no longer than one
/// may be. What is none, is broken or is too long says nothing: the handshake will tell.
pub fn hello_of(message: &[u8]) -> Option<ClientHello> {
    match message {
        [1, a, b, c, body @ ..] => {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if length > CLIENT_HELLO_BYTES_MAX {
                return Some(ClientHello::default());
            }
            body.get(..length).map(|body| client_hello(body).unwrap_or_default())
        }
        [] | [1, ..] => None,
        _ => Some(ClientHello::default()),
    }
}

enum Reassembled {
    Whole(Vec<u8>),
    Incomplete,
    Broken,
}

/// Takes the first handshake message out of its records (RFC 8446, section 5.1).
fn gather(bytes: &[u8]) -> Reassembled {
    let mut message = Vec::new();
    let mut rest = bytes;
    while let Some((head, content)) = rest.split_at_checked(5) {
        let length = usize::from(head[3]) << 8 | usize::from(head[4]);
        if head[0] != 22 || head[1] != 3 || length == 0 {
            return Reassembled::Broken;
        }
        let part = &content[..length.min(content.len())];
        message.extend_from_slice(part);
        rest = &content[part.len()..];
        if let [1, a, b, c, body @ ..] = &message[..] {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if length > CLIENT_HELLO_BYTES_MAX {
                return Reassembled::Broken;
            }
            if let Some(body) = body.get(..length) {
                return Reassembled::Whole(body.to_vec());
            }
        }
        if part.len() < length {
            break;
        }
    }
    Reassembled::Incomplete
}

/// A cursor over bytes; every read is checked.
struct ByteReader<'a>(&'a [u8]);

impl<'a> ByteReader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<usize> {
        Some(usize::from(self.take(1)?[0]))
    }

    fn u16(&mut self) -> Option<usize> {
        let two = self.take(2)?;
        Some(usize::from(two[0]) << 8 | usize::from(two[1]))
    }

    fn block8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length)
    }

    fn block16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length)
    }
}

/// RFC 8446, section 4.1.2.
fn client_hello(body: &[u8]) -> Option<ClientHello> {
    let mut body = ByteReader(body);
    body.take(2 + 32)?;
    body.block8()?;
    body.block16()?;
    body.block8()?;
    let mut hello = ClientHello::default();
    let Some(extensions) = body.block16() else {
        return Some(hello);
    };
    let mut extensions = ByteReader(extensions);
    while let Some(kind) = extensions.u16() {
        let content = extensions.block16()?;
        match kind {
            0 => hello.sni = server_name(content),
            16 => hello.alpn = alpn(content)?,
            ENCRYPTED_CLIENT_HELLO => hello.encrypted = true,
            _ => {}
        }
    }
    Some(hello)
}

fn server_name(content: &[u8]) -> Option<String> {
    let mut names = ByteReader(ByteReader(content).block16()?);
    while let Some(kind) = names.u8() {
        let name = names.block16()?;
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if kind == 0 && !name.is_empty() && name.len() <= 253 && name.iter().all(plain) {
            return std::str::from_utf8(name).ok().map(str::to_ascii_lowercase);
        }
    }
    None
}

fn alpn(content: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut names = ByteReader(ByteReader(content).block16()?);
    let mut list = Vec::new();
    while let Some(name) = names.block8() {
        if list.len() < ALPN_MAX {
            list.push(name.to_vec());
        }
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block16(content: &[u8]) -> Vec<u8> {
        [&(content.len() as u16).to_be_bytes()[..], content].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &block16(content)].concat()
    }

    /// A ClientHello in records of at most `record` bytes.
    fn hello(extensions: &[Vec<u8>], record: usize) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend(block16(&extensions.concat()));
        let mut message = vec![1, 0];
        message.extend(block16(&body));
        message.chunks(record).flat_map(|chunk| [&[22, 3, 1][..], &block16(chunk)].concat()).collect()
    }

    fn usual() -> [Vec<u8>; 2] {
        let name = [&[0][..], &block16(b"Shop.Example")].concat();
        [extension(0, &block16(&name)), extension(16, &block16(b"\x05mw-h2\x02h2"))]
    }

    #[test]
    fn a_hello_without_records_is_read_when_it_is_whole() {
        // Aim: the same words as with records, at its last byte and not before; what is no ClientHello, or too long for one, says nothing.
        let whole = hello(&usual(), 1 << 14)[5..].to_vec();
        for length in 0..whole.len() {
            assert_eq!(hello_of(&whole[..length]), None, "{length}");
        }
        let said = hello_of(&whole).unwrap();
        assert_eq!((said.sni.as_deref(), said.offers("h2")), (Some("shop.example"), true));
        for other in [&[2, 0][..], &[1, 1, 0, 0]] {
            assert_eq!(hello_of(other), Some(ClientHello::default()));
        }
    }

    #[test]
    fn first_bytes_decide() {
        // Aim: each protocol by its first bytes, as early as it is certain and no earlier.
        let long = format!("GET /{}", "a".repeat(TARGET_BYTES_CERTAIN));
        let table: &[(&[u8], Sniffed)] = &[
            (b"", Sniffed::NeedMore),
            (b"GET", Sniffed::NeedMore),
            (b"GET / HTTP/1.", Sniffed::NeedMore),
            (b"GET / HTTP/1.1", Sniffed::NeedMore),
            (b"GET / HTTP/1.1\r", Sniffed::Http1),
            (b"PURGE-X http://a/b HTTP/1.0\n", Sniffed::Http1),
            (b"OPTIONS * HTTP/1.1\r\n", Sniffed::Http1),
            (long.as_bytes(), Sniffed::Http1),
            (b"PRI * HTTP/2.0\r\n", Sniffed::NeedMore),
            (PREFACE, Sniffed::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSX", Sniffed::Opaque),
            (b"PRI / HTTP/1.1\r\n", Sniffed::Http1),
            (b"EHLO example.com\r\n", Sniffed::Opaque),
            (b"get key\r\n", Sniffed::Opaque),
            (b"use tube\r\n", Sniffed::Opaque),
            (b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n", Sniffed::Opaque),
            // pymongo: OP_MSG. The Cassandra driver: version 2 and 4, OPTIONS.
            (b"\x9c\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xdd\x07\x00\x00", Sniffed::Opaque),
            (b"\x42\x00\x00\x00\x05\x00\x00\x00\x00", Sniffed::Opaque),
            (b"\x04\x00\x00\x00\x05\x00\x00\x00\x00", Sniffed::Opaque),
            (b"SSH-2.0-OpenSSH_9.6\r\n", Sniffed::Opaque),
            (b"*1\r\n$4\r\nPING\r\n", Sniffed::Opaque),
            (b"\x00\x00\x00\x08", Sniffed::Opaque),
            (b" GET /", Sniffed::Opaque),
            (b"GET  /", Sniffed::Opaque),
            (&[b'A'; 40], Sniffed::Opaque),
            (&[22, 3, 1], Sniffed::NeedMore),
            (&[22, 3, 1, 0, 4, 2], Sniffed::Opaque),
            (&[22, 2], Sniffed::Opaque),
        ];
        for (bytes, wanted) in table {
            assert_eq!(sniff(bytes), *wanted, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn what_a_lenient_reader_takes_for_a_request_may_be_one() {
        // Aim: blank lines and white space before and within a request line hide nothing, whole or begun; whole lines of other protocols,
        // and binary ones, are none.
        for bytes in [
            &b"G"[..],
            b"GE",
            b"GET / HT",
            b"\r\n",
            b"\r\nGET / HTTP/1.1\r\n",
            b"\n \tGET / HTTP/1.1\r\n",
            b"GET\t/\tHTTP/1.1\r\n",
            b"GET  /  http/1.1\n",
            b"GET\r/\x0cHTTP/1.1\n",
            b"GET / HTTP/2.0\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSX",
        ] {
            assert!(may_be_request(bytes), "{}", bytes.escape_ascii());
        }
        for bytes in [
            &b""[..],
            b"EHLO example.com\r\n",
            b"get key\r\n",
            b"PING\r\n",
            b"set key 0 0 5\r\nvalue\r\n",
            b"SSH-2.0-OpenSSH_9.6 a b\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
            b"\x9c\x01\x00\x00",
            &[22, 3, 1],
            &[b'A'; 40],
        ] {
            assert!(!may_be_request(bytes), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_client_hello_tells_name_and_protocols() {
        // Aim: SNI and ALPN are read from one record and from many, and a hello without them is TLS all the same.
        for record in [1, 9, 4000] {
            let bytes = hello(&usual(), record);
            let Sniffed::Tls(found) = sniff(&bytes) else { panic!("not TLS") };
            assert_eq!(found.sni.as_deref(), Some("shop.example"));
            assert!(found.offers("mw-h2") && found.offers("h2") && !found.offers("mw-h1"));
            assert_eq!(sniff(&bytes[..bytes.len() - 1]), Sniffed::NeedMore);
        }
        assert_eq!(sniff(&hello(&[], 4000)), Sniffed::Tls(ClientHello::default()));
        let Sniffed::Tls(found) = sniff(&hello(&[&usual()[..], &[extension(0xfe0d, &[0; 40])]].concat(), 4000)) else { panic!("not TLS") };
        assert!(found.encrypted && found.sni.as_deref() == Some("shop.example"), "{found:?}");
        let endless = [&[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xff][..], &[0; SNIFF_BYTES_MAX]].concat();
        assert!(matches!(sniff(&endless), Sniffed::Tls(_)), "bounded");
    }

    #[test]
    fn a_hello_of_1493_bytes_in_two_segments_is_read() {
        // Aim: facts.md, SPIFFE: Go's ClientHello with three hybrid groups does not fit one segment, and its SNI may come in the second:
        // nothing is decided before the last byte, wherever it is cut.
        let groups = extension(51, &[7; 1401]);
        let [name, alpn] = usual();
        let bytes = hello(&[groups, alpn, name], 1 << 14);
        assert_eq!(bytes.len(), 1493);
        for cut in [1, 5, 43, 1380, 1448, 1460, 1492] {
            assert_eq!(sniff(&bytes[..cut]), Sniffed::NeedMore, "cut at {cut}");
        }
        let Sniffed::Tls(found) = sniff(&bytes) else { panic!("not TLS") };
        assert!(found.sni.as_deref() == Some("shop.example") && found.offers("mw-h2"), "{found:?}");
    }

    proptest! {
        /// Aim: never panics, and what n bytes decided, n + 1 bytes decide alike, also for broken input.
    #[test]
        fn a_decision_never_changes_with_more_bytes(
            head in prop_oneof![
                Just(b"GET /a HTTP/1.1\r\nHost: x\r\n".to_vec()),
                Just(PREFACE.to_vec()),
                (1..60_usize).prop_map(|record| hello(&usual(), record)),
                Just(vec![22, 3, 1]),
                Just(Vec::new()),
            ],
            cut in 0..300_usize,
            tail in prop::collection::vec(any::<u8>(), 0..300),
            flip in any::<(u16, u8)>(),
        ) {
            let mut bytes = head;
            bytes.truncate(cut.max(3));
            bytes.extend(tail);
            if !bytes.is_empty() {
                let at = usize::from(flip.0) % bytes.len();
                bytes[at] ^= flip.1;
            }
            let mut decided = Sniffed::NeedMore;
            for n in 0..=bytes.len() {
                let now = sniff(&bytes[..n]);
                if decided != Sniffed::NeedMore {
                    prop_assert_eq!(&now, &decided, "at {} of {}", n, bytes.escape_ascii());
                }
                decided = now;
            }
        }
    }
}
