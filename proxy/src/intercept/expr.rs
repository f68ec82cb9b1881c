//! The few nf_tables expressions we use, as values, and their netlink attributes. No I/O.
//!
//! Numbers are those of the kernel's `include/uapi/linux/netfilter/nf_tables.h`.

use std::net::IpAddr;

use netlink_bindings::utils::{align, finalize_nested_header, push_header, push_nested_header};

const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_BODY: u16 = 2;
const VALUE: u16 = 1;
const VERDICT: u16 = 2;
const REG_VERDICT: u32 = 0;
const REG_1: u32 = 1;
const REG_2: u32 = 2;
const NFPROTO_IPV4: u32 = 2;
const NFPROTO_IPV6: u32 = 10;

/// A fact of the packet, loaded into register 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Meta {
    /// Socket or packet mark.
    Mark = 3,
    /// Name of the input interface.
    InputName = 6,
    /// fsuid of the process that made the socket.
    SocketUid = 10,
    /// IPv4 or IPv6.
    Family = 15,
    /// TCP, UDP.
    Transport = 16,
}

/// Where a payload offset counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Base {
    /// IP header.
    Network = 1,
    /// TCP or UDP header.
    Transport = 2,
}

/// One expression. Loads go to register 1, comparisons look at register 1 and end the rule when they do not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Load a fact.
    Load(Meta),
    /// Load bytes of the packet.
    Payload {
        /// From which header.
        base: Base,
        /// Bytes from its start.
        offset: u32,
        /// How many.
        len: u32,
    },
    /// Keep the bits of the mask.
    Mask(Vec<u8>),
    /// Go on only if equal.
    Equal(Vec<u8>),
    /// Load a random number below the modulus.
    Random {
        /// Exclusive bound.
        modulus: u32,
    },
    /// Send the connection to a local port.
    Redirect(u16),
    /// Send the connection to another destination.
    Dnat(IpAddr, u16),
    /// Answer a TCP packet with a reset.
    ResetTcp,
    /// Rewrite the source to the outgoing interface's address.
    Masquerade,
    /// Leave the chain.
    Return,
}

impl Expr {
    /// The mark as the kernel compares it: host byte order.
    pub fn equal_host(value: u32) -> Self {
        Self::Equal(value.to_ne_bytes().to_vec())
    }

    /// A port as it stands in the packet.
    pub fn equal_port(port: u16) -> Self {
        Self::Equal(port.to_be_bytes().to_vec())
    }

    /// Appends the expression as list element(s) of `NFTA_RULE_EXPRESSIONS`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Load(key) => element(out, "meta", |out| {
                number(out, 1, REG_1);
                number(out, 2, *key as u32);
            }),
            Self::Payload { base, offset, len } => element(out, "payload", |out| {
                number(out, 1, REG_1);
                number(out, 2, *base as u32);
                number(out, 3, *offset);
                number(out, 4, *len);
            }),
            Self::Mask(mask) => element(out, "bitwise", |out| {
                number(out, 1, REG_1);
                number(out, 2, REG_1);
                number(out, 3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
                nested(out, 4, |out| bytes(out, VALUE, mask));
                nested(out, 5, |out| bytes(out, VALUE, &vec![0; mask.len()]));
            }),
            Self::Equal(value) => element(out, "cmp", |out| {
                number(out, 1, REG_1);
                number(out, 2, 0);
                nested(out, 3, |out| bytes(out, VALUE, value));
            }),
            Self::Random { modulus } => element(out, "numgen", |out| {
                number(out, 1, REG_1);
                number(out, 2, *modulus);
                number(out, 3, 1);
            }),
            Self::Redirect(port) => {
                immediate(out, REG_1, &port.to_be_bytes());
                element(out, "redir", |out| number(out, 1, REG_1));
            }
            Self::Dnat(address, port) => dnat(out, *address, *port),
            Self::ResetTcp => element(out, "reject", |out| number(out, 1, 1)),
            Self::Masquerade => element(out, "masq", |_| ()),
            Self::Return => element(out, "immediate", |out| {
                number(out, 1, REG_VERDICT);
                // NFT_RETURN is -5.
                nested(out, 2, |out| nested(out, VERDICT, |out| number(out, 1, (-5_i32).cast_unsigned())));
            }),
        }
    }
}

fn dnat(out: &mut Vec<u8>, address: IpAddr, port: u16) {
    let family = match address {
        IpAddr::V4(v4) => {
            immediate(out, REG_1, &v4.octets());
            NFPROTO_IPV4
        }
        IpAddr::V6(v6) => {
            immediate(out, REG_1, &v6.octets());
            NFPROTO_IPV6
        }
    };
    immediate(out, REG_2, &port.to_be_bytes());
    element(out, "nat", |out| {
        number(out, 1, 1);
        number(out, 2, family);
        number(out, 3, REG_1);
        number(out, 5, REG_2);
    });
}

fn immediate(out: &mut Vec<u8>, register: u32, value: &[u8]) {
    element(out, "immediate", |out| {
        number(out, 1, register);
        nested(out, 2, |out| bytes(out, VALUE, value));
    });
}

fn element(out: &mut Vec<u8>, name: &str, body: impl FnOnce(&mut Vec<u8>)) {
    nested(out, LIST_ELEM, |out| {
        text(out, EXPR_NAME, name);
        nested(out, EXPR_BODY, body);
    });
}

/// Appends a nested attribute.
pub fn nested(out: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let start = push_nested_header(out, kind);
    body(out);
    finalize_nested_header(out, start);
}

/// Appends a big-endian number, as nf_tables wants them.
pub fn number(out: &mut Vec<u8>, kind: u16, value: u32) {
    bytes(out, kind, &value.to_be_bytes());
}

/// Appends a NUL-terminated string.
pub fn text(out: &mut Vec<u8>, kind: u16, value: &str) {
    let mut terminated = value.as_bytes().to_vec();
    terminated.push(0);
    bytes(out, kind, &terminated);
}

/// Appends raw bytes, padded. Values are short (names, addresses): a length beyond the header's 16 bits cannot occur.
pub fn bytes(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    push_header(out, kind, u16::try_from(value.len()).unwrap_or(u16::MAX));
    out.extend_from_slice(value);
    align(out);
}

/// An attribute list read back: what we wrote must be contained in what the kernel tells, which may add defaults of its own.
pub fn contained(ours: &[u8], theirs: &[u8]) -> bool {
    let (ours, theirs) = (elements(ours), elements(theirs));
    ours.len() == theirs.len() && ours.iter().zip(&theirs).all(|(a, b)| subset(a, b))
}

/// The payloads of the list elements.
fn elements(list: &[u8]) -> Vec<&[u8]> {
    attributes(list).filter(|(kind, _)| *kind == LIST_ELEM).map(|(_, value)| value).collect()
}

/// Whether every attribute of `ours` is in `theirs` with the same value; nested ones are told by their content, which is itself a
/// well-formed list on both sides.
fn subset(ours: &[u8], theirs: &[u8]) -> bool {
    attributes(ours).all(|(kind, value)| {
        attributes(theirs)
            .any(|(other, found)| other == kind && (value == found || (well_formed(value) && well_formed(found) && subset(value, found))))
    })
}

fn well_formed(list: &[u8]) -> bool {
    let mut rest = list;
    let mut any = false;
    while rest.len() >= 4 {
        let len = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        if len < 4 || len > rest.len() {
            return false;
        }
        any = true;
        rest = &rest[len.next_multiple_of(4).min(rest.len())..];
    }
    any && rest.is_empty()
}

/// Walks (type without flags, value). Stops at the first malformed one.
pub fn attributes(list: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = list;
    std::iter::from_fn(move || {
        let header = rest.get(..4)?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = rest.get(4..len)?;
        rest = &rest[len.next_multiple_of(4).min(rest.len())..];
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(exprs: &[Expr]) -> Vec<u8> {
        let mut out = Vec::new();
        exprs.iter().for_each(|expr| expr.encode(&mut out));
        out
    }

    /// Aim: a value the kernel completes with defaults still counts as ours; a changed or a missing one does not.
    #[test]
    fn reads_back_what_it_wrote() {
        let ours = list(&[Expr::Load(Meta::Mark), Expr::equal_host(7), Expr::Redirect(15001)]);
        assert!(contained(&ours, &ours));
        assert!(!contained(&ours, &list(&[Expr::Load(Meta::Mark), Expr::equal_host(8), Expr::Redirect(15001)])));
        assert!(!contained(&ours, &list(&[Expr::Load(Meta::Mark), Expr::equal_host(7)])));
        let mut completed = Vec::new();
        element(&mut completed, "redir", |out| {
            number(out, 1, REG_1);
            number(out, 3, 2);
        });
        let mut bare = Vec::new();
        element(&mut bare, "redir", |out| number(out, 1, REG_1));
        assert!(contained(&bare, &completed));
        assert!(!contained(&completed, &bare));
    }

    /// Aim: broken attribute lists end the walk, they never panic or loop.
    #[test]
    fn walks_garbage() {
        for garbage in [&[][..], &[1], &[0, 0, 0, 0], &[3, 0, 1, 0], &[200, 0, 1, 0, 9], &[5, 0, 1, 0, 9]] {
            let _ = attributes(garbage).count();
            let _ = well_formed(garbage);
        }
    }

    proptest::proptest! {
        /// Aim: whatever the kernel tells, the walk ends and the comparison answers; a list is contained in itself.
        #[test]
        fn any_bytes_are_survived(
            noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            flips in proptest::collection::vec(proptest::prelude::any::<(u16, u8)>(), 0..4),
        ) {
            let ours = list(&[Expr::Load(Meta::Mark), Expr::equal_host(7), Expr::Redirect(15001)]);
            let mut theirs = ours.clone();
            for (at, bits) in flips {
                let at = usize::from(at) % theirs.len();
                theirs[at] ^= bits;
            }
            for list in [&noise, &theirs] {
                let _ = (attributes(list).count(), well_formed(list), contained(&ours, list), contained(list, &ours));
            }
            proptest::prop_assert!(contained(&ours, &ours));
        }
    }
}
