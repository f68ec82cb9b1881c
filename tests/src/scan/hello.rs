//! First words of a client, in bytes (RFC 8446, section 4.1.2; RFC 5246, section 7.4.1.2; RFC 6101).

use super::names::{EVERY_SUITE_12, EVERY_SUITE_13, GROUPS, SCHEMES};

/// Most bytes of a record's content (RFC 8446, section 5.1).
pub const RECORD_BYTES_MAX: usize = 1 << 14;
/// Where the numbers of extensions stand in this file.
mod extension {
    pub(super) const SERVER_NAME: u16 = 0;
    pub(super) const GROUPS: u16 = 10;
    pub(super) const POINT_FORMATS: u16 = 11;
    pub(super) const SCHEMES: u16 = 13;
    pub(super) const ALPN: u16 = 16;
    pub(super) const MASTER_SECRET: u16 = 23;
    pub(super) const VERSIONS: u16 = 43;
    pub(super) const PSK_MODES: u16 = 45;
    pub(super) const SHARES: u16 = 51;
}

/// A hello of SSL 2.0 that offers RC4 and triple DES of its time.
pub const SSL2_HELLO: [u8; 33] =
    [0x80, 31, 1, 0, 2, 0, 6, 0, 0, 0, 16, 1, 0, 0x80, 7, 0, 0xc0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

/// A version of the protocol, by its number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// RFC 6101.
    Ssl3 = 0x0300,
    /// RFC 2246.
    Tls10 = 0x0301,
    /// RFC 4346.
    Tls11 = 0x0302,
    /// RFC 5246.
    Tls12 = 0x0303,
    /// RFC 8446.
    Tls13 = 0x0304,
}

impl Version {
    /// The oldest first.
    pub const ALL: [Self; 5] = [Self::Ssl3, Self::Tls10, Self::Tls11, Self::Tls12, Self::Tls13];

    /// As people write it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Ssl3 => "SSL 3.0",
            Self::Tls10 => "TLS 1.0",
            Self::Tls11 => "TLS 1.1",
            Self::Tls12 => "TLS 1.2",
            Self::Tls13 => "TLS 1.3",
        }
    }

    /// On the wire.
    pub const fn number(self) -> u16 {
        self as u16
    }
}

/// A ClientHello to be.
#[derive(Clone, Debug)]
pub struct Hello {
    /// Of its head, and the only one that it offers.
    pub version: Version,
    /// Cipher suites.
    pub suites: Vec<u16>,
    /// Groups of key exchange; none: without that extension.
    pub groups: Vec<u16>,
    /// Groups for which a key share is sent.
    pub shares: Vec<u16>,
    /// Schemes of signatures; none: without that extension.
    pub schemes: Vec<u16>,
    /// Compression methods.
    pub compressions: Vec<u8>,
    /// What it asks for: as it is, whatever that may be.
    pub name: Option<Vec<u8>>,
    /// Protocols; none: without that extension.
    pub alpn: Vec<String>,
    /// Whether the extended master secret (RFC 7627) is offered, to 1.2 and before.
    pub master_secret: bool,
    /// Further extensions: number and content.
    pub more: Vec<(u16, Vec<u8>)>,
}

impl Hello {
    /// One that offers all of a version that has a name.
    pub fn of(version: Version, name: &str) -> Self {
        let suites = if version == Version::Tls13 { EVERY_SUITE_13.to_vec() } else { EVERY_SUITE_12.to_vec() };
        Self {
            version,
            suites,
            groups: GROUPS.iter().map(|(number, _)| *number).collect(),
            shares: if version == Version::Tls13 { vec![29] } else { Vec::new() },
            schemes: SCHEMES.iter().map(|(number, _)| *number).collect(),
            compressions: vec![0],
            name: Some(name.as_bytes().to_vec()),
            alpn: Vec::new(),
            master_secret: true,
            more: Vec::new(),
        }
    }

    /// The handshake message.
    pub fn message(&self) -> Vec<u8> {
        let legacy = self.version.min(Version::Tls12).number();
        let mut body = legacy.to_be_bytes().to_vec();
        // No randomness is needed where nothing is kept secret.
        body.extend_from_slice(&[0x5a; 32]);
        body.extend_from_slice(&sized8(if self.version == Version::Tls13 { &[7; 32] } else { &[] }));
        body.extend_from_slice(&sized16(&numbers(&self.suites)));
        body.extend_from_slice(&sized8(&self.compressions));
        if self.version > Version::Ssl3 {
            body.extend_from_slice(&sized16(&self.extensions()));
        }
        let length = (body.len() as u32).to_be_bytes();
        [&[1][..], &length[1..], &body].concat()
    }

    /// The message in as few records as may be.
    pub fn bytes(&self) -> Vec<u8> {
        records(self.version, &self.message(), RECORD_BYTES_MAX)
    }

    fn extensions(&self) -> Vec<u8> {
        let mut all: Vec<(u16, Vec<u8>)> = Vec::new();
        if let Some(name) = &self.name {
            all.push((extension::SERVER_NAME, sized16(&[&[0][..], &sized16(name)].concat())));
        }
        if !self.groups.is_empty() {
            all.push((extension::GROUPS, sized16(&numbers(&self.groups))));
            all.push((extension::POINT_FORMATS, sized8(&[0])));
        }
        if self.version >= Version::Tls12 && !self.schemes.is_empty() {
            all.push((extension::SCHEMES, sized16(&numbers(&self.schemes))));
        }
        if !self.alpn.is_empty() {
            let protocols: Vec<u8> = self.alpn.iter().flat_map(|protocol| sized8(protocol.as_bytes())).collect();
            all.push((extension::ALPN, sized16(&protocols)));
        }
        if self.master_secret && self.version != Version::Tls13 {
            all.push((extension::MASTER_SECRET, Vec::new()));
        }
        if self.version == Version::Tls13 {
            all.push((extension::VERSIONS, sized8(&self.version.number().to_be_bytes())));
            all.push((extension::PSK_MODES, sized8(&[1])));
            let share = |group: &u16| [&group.to_be_bytes()[..], &sized16(&share(*group))].concat();
            all.push((extension::SHARES, sized16(&self.shares.iter().flat_map(share).collect::<Vec<u8>>())));
        }
        all.extend(self.more.iter().cloned());
        all.iter().flat_map(|(number, content)| [&number.to_be_bytes()[..], &sized16(content)].concat()).collect()
    }
}

/// A handshake message in records of so many bytes each.
pub fn records(version: Version, message: &[u8], bytes_max: usize) -> Vec<u8> {
    let version = version.min(Version::Tls10).number().to_be_bytes();
    message.chunks(bytes_max).flat_map(|part| [&[22][..], &version, &sized16(part)].concat()).collect()
}

/// A public key of a group: some valid one, of which nobody has the secret.
fn share(group: u16) -> Vec<u8> {
    // Generators are valid points.
    const P256: &str = "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c2964fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";
    const P384: &str = "04aa87ca22be8b05378eb1c71ef320ad746e1d3b628ba79b9859f741e082542a385502f25dbf55296c3a545e3872760ab73617de4a96262c6f5d9e98bf9292dc29f8f41dbd289a147ce9da3113b5f0b8c00a60b1ce1d7e819d7a431d7c90ea0e5f";
    // A vector of zeros is a key of ML-KEM-768 whose coefficients are in range.
    const ML_KEM_768_BYTES: usize = 1184;
    match group {
        23 => hex(P256),
        24 => hex(P384),
        4588 => [&vec![0; ML_KEM_768_BYTES][..], &[9; 32]].concat(),
        4587 => [&hex(P256)[..], &vec![0; ML_KEM_768_BYTES]].concat(),
        _ => vec![9; 32],
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |place: usize| u8::from_str_radix(&text[place..place + 2], 16).unwrap_or(0);
    (0..text.len()).step_by(2).map(digit).collect()
}

fn numbers(all: &[u16]) -> Vec<u8> {
    all.iter().flat_map(|number| number.to_be_bytes()).collect()
}

/// Content behind its length in one byte.
fn sized8(content: &[u8]) -> Vec<u8> {
    [&[content.len() as u8][..], content].concat()
}

/// The same in two.
fn sized16(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u16).to_be_bytes()[..], content].concat()
}
