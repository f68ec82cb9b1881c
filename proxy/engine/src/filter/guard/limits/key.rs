//! Whose share of a limit a request takes.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderName, HeaderValue};
use proto::mesh::edge_key::Kind;
use proto::mesh::{ClientAddressKey, EdgeKey};

use crate::authorize::{AtEdge, Call, Own, ValueOf};
use crate::consumers::Identified;
use crate::filter::Exchange;
use crate::matching::RequestHead;
use crate::rejected::Wrong;

/// Most parts of one key.
pub const KEY_PARTS_MAX: usize = 8;
/// Bytes of a key for which nothing is allocated.
const KEY_BYTES: usize = 256;

/// One part; all together are the key.
#[derive(Debug)]
pub(in crate::filter::guard) enum Part {
    /// The consumer, else `ISSUER|SUBJECT` of a token that none claims.
    Consumer,
    /// The client's address; of IPv6 so many bits.
    Address(u8),
    /// All values of a header.
    Header(HeaderName),
    /// A claim's values.
    Claim(Box<str>),
    Path,
    Method,
    Made(ValueOf),
}

/// A digest of all parts, and of whose key it is: nobody can make two alike.
pub(in crate::filter::guard) type Key = u128;

fn made(text: &[u8]) -> Key {
    let whole = digest(&SHA256, text);
    u128::from_be_bytes(whole.as_ref().first_chunk::<16>().copied().unwrap_or_default())
}

/// A part of the key is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::filter::guard) struct Missing;

pub(in crate::filter::guard) fn compile(raw: &[EdgeKey]) -> Result<Vec<Part>, Wrong> {
    if raw.len() > KEY_PARTS_MAX {
        return Err(Wrong::new("key", format!("holds {} parts, which is more than {KEY_PARTS_MAX}", raw.len())));
    }
    let one = |(index, raw): (usize, &EdgeKey)| Part::compile(raw).map_err(|wrong| wrong.within(format!("key[{index}]")));
    raw.iter().enumerate().map(one).collect()
}

impl Part {
    pub(super) fn compile(EdgeKey { kind }: &EdgeKey) -> Result<Self, Wrong> {
        let told = |said: bool, part: Self, field: &str| if said { Ok(part) } else { Err(Wrong::new(field, "is false")) };
        match kind {
            None => Err(Wrong::new("kind", "is missing: consumer, client_address, header, claim, path, method or cel")),
            Some(Kind::Consumer(said)) => told(*said, Self::Consumer, "consumer"),
            Some(Kind::Path(said)) => told(*said, Self::Path, "path"),
            Some(Kind::Method(said)) => told(*said, Self::Method, "method"),
            Some(Kind::ClientAddress(ClientAddressKey { ipv6_prefix })) => {
                let bits = u8::try_from(*ipv6_prefix).ok().filter(|bits| (1..=128).contains(bits));
                bits.map(Self::Address).ok_or_else(|| Wrong::new("client_address", format!("{ipv6_prefix} is not from 1 to 128")))
            }
            Some(Kind::Header(name)) => {
                let name = name.parse().map_err(|_| Wrong::new("header", format!("`{}` is not a header name", name.escape_debug())))?;
                Ok(Self::Header(name))
            }
            Some(Kind::Claim(name)) if name.is_empty() => Err(Wrong::new("claim", "is empty")),
            Some(Kind::Claim(name)) => Ok(Self::Claim(name.as_str().into())),
            Some(Kind::Cel(text)) => Ok(Self::Made(ValueOf::compile(text).map_err(|why| Wrong::new("cel", why))?)),
        }
    }

    /// In words.
    pub(in crate::filter::guard) fn story(&self) -> String {
        match self {
            Self::Consumer => "consumer".to_owned(),
            Self::Address(_) => "client address".to_owned(),
            Self::Header(name) => format!("header {name}"),
            Self::Claim(name) => format!("claim {name}"),
            Self::Path => "path".to_owned(),
            Self::Method => "method".to_owned(),
            Self::Made(_) => "expression".to_owned(),
        }
    }
}

/// What limits see of a request.
pub(in crate::filter::guard) struct Seen<'s, 'e> {
    exchange: &'s Exchange<'e>,
    auth: Option<&'s Identified>,
}

impl<'s, 'e> Seen<'s, 'e> {
    pub(in crate::filter::guard) fn of(exchange: &'s Exchange<'e>) -> Self {
        let auth = exchange.watch.as_ref().and_then(|watch| watch.found.identified());
        Self { exchange, auth }
    }

    /// Asks an expression.
    pub(in crate::filter::guard) fn call<T>(&self, ask: impl FnOnce(&Call<'_>) -> T) -> T {
        let request = &self.exchange.request;
        let watch = self.exchange.watch.as_ref();
        let head = RequestHead::new(&request.method, &request.uri, &request.headers);
        ask(&Call {
            peer: None,
            workload: "",
            source: SocketAddr::new(self.exchange.address, watch.map_or(0, |watch| watch.port)),
            port: self.exchange.called.port,
            head: Some(&head),
            claims: self.auth.and_then(|auth| auth.claims.as_deref()),
            auth: self.auth,
            edge: watch.map(|watch| AtEdge { peer: watch.peer, book: watch.book }),
            own: Own::default(),
        })
    }

    /// The key of `limit`; with `together` an absent part is one value more.
    pub(in crate::filter::guard) fn key(&self, limit: &str, parts: &[Part], together: bool) -> Result<Key, Missing> {
        let mut text = KeyText::default();
        add(&mut text, limit.as_bytes());
        for part in parts {
            let there = self.add(&mut text, part);
            if !there && !together {
                return Err(Missing);
            }
            text.push(u8::from(there));
        }
        Ok(match &self.exchange.watch {
            Some(watch) => watch.tokens.made.key(text.bytes(), made),
            None => made(text.bytes()),
        })
    }

    /// Adds a part's bytes; false: it is not there.
    fn add(&self, text: &mut KeyText, part: &Part) -> bool {
        let request = &self.exchange.request;
        match part {
            Part::Consumer => self.caller(text),
            Part::Address(bits) => {
                match self.exchange.address.to_canonical() {
                    IpAddr::V4(address) => add(text, &address.octets()),
                    IpAddr::V6(address) => {
                        let kept = u128::from(address) & prefix(*bits);
                        add(text, &kept.to_be_bytes());
                    }
                }
                true
            }
            Part::Header(name) => {
                let mut values = request.headers.get_all(name).iter().map(HeaderValue::as_bytes).peekable();
                let there = values.peek().is_some();
                values.for_each(|value| add(text, value));
                there
            }
            Part::Claim(path) => {
                let claims = self.auth.and_then(|auth| auth.claims.as_deref());
                let mut values = claims.into_iter().flat_map(|claims| claims.texts(path)).peekable();
                let there = values.peek().is_some();
                values.for_each(|value| add(text, value.as_bytes()));
                there
            }
            Part::Path => {
                add(text, request.uri.path().as_bytes());
                true
            }
            Part::Method => {
                add(text, request.method.as_str().as_bytes());
                true
            }
            Part::Made(value) => match self.call(|call| value.of(call)) {
                Some(made) => {
                    add(text, made.as_bytes());
                    true
                }
                None => false,
            },
        }
    }

    /// A part in words, for whoever counts by those; `None`: it is not there. What is no text is told as far as it is.
    pub(super) fn text(&self, part: &Part) -> Option<String> {
        let request = &self.exchange.request;
        let joined = |values: Vec<String>| (!values.is_empty()).then(|| values.join(","));
        match part {
            Part::Consumer => {
                let auth = self.auth?;
                match &auth.consumer {
                    Some(consumer) => Some(consumer.path.to_string()),
                    None => Some(format!("{}|{}", auth.claims.as_ref().map_or("", |claims| &claims.issuer), auth.subject()?)),
                }
            }
            Part::Address(bits) => Some(match self.exchange.address.to_canonical() {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & prefix(*bits)).to_string(),
            }),
            Part::Header(name) => {
                let values = request.headers.get_all(name).iter();
                joined(values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect())
            }
            Part::Claim(path) => {
                let claims = self.auth.and_then(|auth| auth.claims.as_deref())?;
                joined(claims.texts(path).map(|text| text.to_string()).collect())
            }
            Part::Path => Some(request.uri.path().to_owned()),
            Part::Method => Some(request.method.as_str().to_owned()),
            Part::Made(value) => self.call(|call| value.of(call)).map(|made| made.to_string()),
        }
    }

    fn caller(&self, text: &mut KeyText) -> bool {
        let Some(auth) = self.auth else { return false };
        if let Some(consumer) = &auth.consumer {
            add(text, consumer.path.as_bytes());
            return true;
        }
        let (issuer, subject) = (auth.claims.as_ref().map_or("", |claims| &claims.issuer), auth.subject());
        let Some(subject) = subject else { return false };
        add(text, issuer.as_bytes());
        add(text, subject.as_bytes());
        true
    }
}

/// The first bits of an IPv6 address.
fn prefix(bits: u8) -> u128 {
    u128::MAX << (128 - u32::from(bits.clamp(1, 128)))
}

/// Adds bytes with their length before them, so that no two lists read alike.
fn add(text: &mut KeyText, bytes: &[u8]) {
    text.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    text.extend_from_slice(bytes);
}

/// Bytes one behind the other; the first of them are in place.
struct KeyText {
    first: [u8; KEY_BYTES],
    length: usize,
    /// All of them, where they are more.
    long: Vec<u8>,
}

impl Default for KeyText {
    fn default() -> Self {
        Self { first: [0; KEY_BYTES], length: 0, long: Vec::new() }
    }
}

impl KeyText {
    fn extend_from_slice(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        if self.long.is_empty()
            && let Some(room) = self.first.get_mut(self.length..end)
        {
            room.copy_from_slice(bytes);
            self.length = end;
            return;
        }
        if self.long.is_empty() {
            self.long.extend_from_slice(self.first.get(..self.length).unwrap_or_default());
        }
        self.long.extend_from_slice(bytes);
    }

    fn push(&mut self, byte: u8) {
        self.extend_from_slice(&[byte]);
    }

    fn bytes(&self) -> &[u8] {
        if self.long.is_empty() { self.first.get(..self.length).unwrap_or_default() } else { &self.long }
    }
}
