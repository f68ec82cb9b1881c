//! The PROXY protocol, versions 1 and 2 (HAProxy's `proxy-protocol.txt`): who connected to the balancer in front of us, told before anything else.
//! Reads what has come by now; nothing is kept between.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest header that is read; version 2 allows more, for facts that nobody here asks for.
pub const HEADER_BYTES_MAX: usize = 4096;
/// Longest header of version 1, its line's end included.
const V1_BYTES_MAX: usize = 107;
const V1: &[u8] = b"PROXY ";
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version, family and length behind the signature of version 2.
const V2_HEAD_BYTES: usize = 16;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// They may become a header.
    NeedMore,
    /// No header begins so.
    Nothing,
    /// A header.
    Header {
        /// Its length; what follows is the client's.
        bytes: usize,
        /// Who connected; `None`: the balancer itself, or somebody it cannot name.
        source: Option<SocketAddr>,
    },
    /// A header begins, and breaks a rule.
    Broken(&'static str),
}

/// Reads the first bytes of a connection.
pub fn read(bytes: &[u8]) -> Heard {
    if begins(bytes, V2) {
        return if bytes.len() < V2_HEAD_BYTES { Heard::NeedMore } else { version_2(bytes) };
    }
    if begins(bytes, V1) {
        return if bytes.len() < V1.len() { Heard::NeedMore } else { version_1(bytes) };
    }
    Heard::Nothing
}

/// Whether bytes are, or may become, what begins so.
fn begins(bytes: &[u8], with: &[u8]) -> bool {
    let common = bytes.len().min(with.len());
    bytes[..common] == with[..common]
}

fn version_1(bytes: &[u8]) -> Heard {
    let within = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = within.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() < V1_BYTES_MAX { Heard::NeedMore } else { Heard::Broken("a line of version 1 is longer than 107 bytes") };
    };
    let Some(line) = within[V1.len()..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok()) else {
        return Heard::Broken("a line of version 1 does not end with CR LF");
    };
    let header = |source| Heard::Header { bytes: end + 1, source };
    let (family, rest) = line.split_once(' ').unwrap_or((line, ""));
    if family == "UNKNOWN" {
        return header(None);
    }
    let words: Vec<&str> = rest.split(' ').collect();
    let [source, destination, source_port, destination_port] = words.as_slice() else {
        return Heard::Broken("a line of version 1 is not family, two addresses and two ports");
    };
    let read = match family {
        "TCP4" => pair::<Ipv4Addr>(source, destination),
        "TCP6" => pair::<Ipv6Addr>(source, destination),
        _ => return Heard::Broken("a line of version 1 names a family other than TCP4, TCP6 and UNKNOWN"),
    };
    match (read, port(source_port), port(destination_port)) {
        (Some(ip), Some(port), Some(_)) => header(Some(SocketAddr::new(ip.to_canonical(), port))),
        _ => Heard::Broken("a line of version 1 holds an address or a port that is none"),
    }
}

/// The first of two addresses of one family.
fn pair<A: std::str::FromStr + Into<IpAddr>>(source: &str, destination: &str) -> Option<IpAddr> {
    let (source, _): (A, A) = (source.parse().ok()?, destination.parse().ok()?);
    Some(source.into())
}

/// Without sign or leading zeros.
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

/// At least [`V2_HEAD_BYTES`] are there.
fn version_2(bytes: &[u8]) -> Heard {
    let [command, family, high, low] = [bytes[12], bytes[13], bytes[14], bytes[15]];
    if command >> 4 != 2 {
        return Heard::Broken("a binary header is not of version 2");
    }
    let whole = V2_HEAD_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if whole > HEADER_BYTES_MAX {
        return Heard::Broken("a header is longer than 4096 bytes");
    }
    let local = match command & 0xf {
        0 => true,
        1 => false,
        _ => return Heard::Broken("a header's command is neither LOCAL nor PROXY"),
    };
    let Some(addresses) = bytes.get(V2_HEAD_BYTES..whole) else { return Heard::NeedMore };
    let header = |source| Heard::Header { bytes: whole, source };
    if local {
        return header(None);
    }
    // The low half says TCP or UDP, which we know.
    let source = match family >> 4 {
        1 => addresses.get(..12).map(|told| (IpAddr::from([told[0], told[1], told[2], told[3]]), [told[8], told[9]])),
        2 => addresses.get(..36).and_then(|told| {
            let source: [u8; 16] = told.get(..16)?.try_into().ok()?;
            Some((IpAddr::from(source), [told[32], told[33]]))
        }),
        // Unspecified, and sockets of UNIX.
        0 | 3 => return header(None),
        _ => return Heard::Broken("a header's family is unknown"),
    };
    match source {
        Some((ip, port)) => header(Some(SocketAddr::new(ip.to_canonical(), u16::from_be_bytes(port)))),
        None => Heard::Broken("a header is shorter than the addresses of its family"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
        [V2.as_slice(), &[command, family], &length, addresses].concat()
    }

    fn source(heard: Heard) -> Option<String> {
        match heard {
            Heard::Header { source, .. } => Some(source.map_or_else(|| "itself".to_owned(), |source| source.to_string())),
            _ => None,
        }
    }

    #[test]
    fn both_versions_name_the_client() {
        // Aim: addresses of both families, the balancer's own connections, and extensions that nobody asks for.
        let v4 = [&[203, 0, 113, 9, 10, 0, 0, 1][..], &[0x1f, 0x90, 1, 187]].concat();
        let v6 = [&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9][..], &[0; 16], &[0x1f, 0x90, 1, 187]].concat();
        for (bytes, wanted) in [
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 8080 443\r\n".to_vec(), "203.0.113.9:8080"),
            (b"PROXY TCP6 2001:db8::9 ::1 8080 443\r\n".to_vec(), "[2001:db8::9]:8080"),
            (b"PROXY TCP6 ::ffff:203.0.113.9 ::1 8080 443\r\n".to_vec(), "203.0.113.9:8080"),
            (b"PROXY UNKNOWN\r\n".to_vec(), "itself"),
            (b"PROXY UNKNOWN whatever it is\r\n".to_vec(), "itself"),
            (binary(0x21, 0x11, &v4), "203.0.113.9:8080"),
            (binary(0x21, 0x21, &v6), "[2001:db8::9]:8080"),
            (binary(0x21, 0x11, &[v4.as_slice(), &[3, 0, 4, 1, 2, 3, 4]].concat()), "203.0.113.9:8080"),
            (binary(0x20, 0x11, &v4), "itself"),
            (binary(0x20, 0, &[]), "itself"),
            (binary(0x21, 0, &[]), "itself"),
            (binary(0x21, 0x31, &[0; 216]), "itself"),
        ] {
            let with_more = [bytes.as_slice(), b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(source(read(&with_more)).as_deref(), Some(wanted));
            let Heard::Header { bytes: length, .. } = read(&with_more) else { unreachable!() };
            assert_eq!(length, bytes.len(), "what follows is the client's");
            for short in 0..bytes.len() {
                assert_eq!(read(&bytes[..short]), Heard::NeedMore, "{short} bytes");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_told_from_a_broken_one() {
        // Aim: other protocols' first bytes are nothing; each broken rule is a refusal, never an address.
        for first in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n", b"PROXYING", b"\r\n\r\nGET", b"\0"] {
            assert_eq!(read(first), Heard::Nothing);
        }
        let long = [b"PROXY TCP4 ".as_slice(), &[b'1'; 120]].concat();
        for broken in [
            b"PROXY TCP4 203.0.113.9 10.0.0.1 8080 443\n".to_vec(),
            b"PROXY TCP4 203.0.113.9 10.0.0.1 8080\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.9  10.0.0.1 8080 443\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::9 ::1 8080 443\r\n".to_vec(),
            b"PROXY TCP6 203.0.113.9 10.0.0.1 8080 443\r\n".to_vec(),
            b"PROXY UDP4 203.0.113.9 10.0.0.1 8080 443\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.9 10.0.0.1 65536 443\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.9 10.0.0.1 +80 443\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.9 10.0.0.1 080 443\r\n".to_vec(),
            b"PROXY \r\n".to_vec(),
            long,
            binary(0x11, 0x11, &[0; 12]),
            binary(0x22, 0x11, &[0; 12]),
            binary(0x21, 0x41, &[0; 12]),
            binary(0x21, 0x11, &[0; 11]),
            binary(0x21, 0x21, &[0; 35]),
            binary(0x21, 0x11, &[0; 4096]),
        ] {
            assert!(matches!(read(&broken), Heard::Broken(_)), "{}", broken.escape_ascii());
        }
    }

    proptest::proptest! {
        #[test]
        fn more_bytes_never_change_a_verdict(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), of in 0..3) {
            // Aim: incremental: what was decided stays decided, whatever comes behind, and no bytes make it panic.
            let start: &[u8] = [&[][..], V1, V2][of as usize];
            let whole = [start, &bytes].concat();
            for length in 0..whole.len() {
                let now = read(&whole[..length]);
                proptest::prop_assert!(now == Heard::NeedMore || now == read(&whole));
            }
        }
    }
}
