//! Heads with more fields than hyper reads at once. Between sidecars, the fields beyond travel in one.
//!
//! hyper reads a hundred fields in room that costs nothing and takes an allocation of kilobytes per head for one more, so the first hop's bound
//! is its bound everywhere. What the mesh adds, and the rare head that is full already, get room this way. Only mesh peers are believed.

use bytes::{BufMut, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

/// `NAME:LENGTH:VALUE`, one after the other.
pub(super) const X_MESHWRIGHT_FIELDS: HeaderName = HeaderName::from_static("x-meshwright-fields");
/// Fields that go as they are: framing may add two more.
const LOOSE_MAX: usize = 96;
/// Fields left loose by packing: route filters of the next hop find room, too.
const LOOSE: usize = 64;
/// Fields that are read before anybody unpacks, by hyper or by the mesh.
const NEVER: [HeaderName; 11] = [
    CONNECTION,
    CONTENT_LENGTH,
    EXPECT,
    HOST,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("b3"),
];
/// The same, of every name that begins so.
const NEVER_BEGINS: [&str; 3] = ["x-forwarded-", "x-meshwright-", "x-b3-"];

fn may_be_packed(name: &HeaderName) -> bool {
    !NEVER.contains(name) && !NEVER_BEGINS.iter().any(|begin| name.as_str().starts_with(begin))
}

/// Packs what is more than a head may have loose. Whether there was any.
#[inline]
pub fn pack(headers: &mut HeaderMap) -> bool {
    let packs = headers.len() > LOOSE_MAX;
    if packs {
        pack_beyond(headers);
    }
    packs
}

#[cold]
fn pack_beyond(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| may_be_packed(name)).cloned().collect();
    let mut text = BytesMut::new();
    for name in names.into_iter().rev() {
        if headers.len() <= LOOSE {
            break;
        }
        for value in headers.get_all(&name) {
            text.put_slice(format!("{name}:{}:", value.len()).as_bytes());
            text.put_slice(value.as_bytes());
        }
        headers.remove(name);
    }
    if let Ok(value) = HeaderValue::from_maybe_shared(text.freeze()) {
        headers.insert(X_MESHWRIGHT_FIELDS, value);
    }
}

/// Puts packed fields back. `None`: they are not packed as [`pack`] does.
#[cold]
pub fn unpack(headers: &mut HeaderMap) -> Option<()> {
    let packed = headers.remove(X_MESHWRIGHT_FIELDS)?;
    let mut rest = packed.as_bytes();
    while !rest.is_empty() {
        let (name, after) = rest.split_at_checked(rest.iter().position(|byte| *byte == b':')?)?;
        let after = &after[1..];
        let (length, after) = after.split_at_checked(after.iter().position(|byte| *byte == b':')?)?;
        let length: usize = std::str::from_utf8(length).ok()?.parse().ok()?;
        let (value, after) = after[1..].split_at_checked(length)?;
        let name = HeaderName::from_bytes(name).ok().filter(may_be_packed)?;
        headers.try_append(name, HeaderValue::from_bytes(value).ok()?).ok()?;
        rest = after;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(count: usize) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("a"));
        for number in 0..count {
            headers.append(HeaderName::try_from(format!("x-{}", number / 2)).unwrap(), format!("{number}: \"ä\",").parse().unwrap());
        }
        headers
    }

    #[test]
    fn what_is_packed_comes_out_again() {
        // Aim: values of any form, repeated names in order; few fields go as they are, and what the mesh reads first is never packed.
        for (count, packs) in [(10, false), (95, false), (96, true), (116, true)] {
            let (mut headers, before) = (head(count), head(count));
            pack(&mut headers);
            assert_eq!(headers.contains_key(X_MESHWRIGHT_FIELDS), packs, "{count}");
            assert!(headers.len() <= LOOSE_MAX && headers.contains_key(HOST));
            if packs {
                unpack(&mut headers).unwrap();
            }
            assert_eq!(headers, before);
        }
    }

    #[test]
    fn nothing_is_smuggled() {
        // Aim: framing, names of the mesh's own, and what is not packed like this are refused.
        for value in [
            "x",
            "x:",
            "x:1",
            "x:1:",
            "x:-1:a",
            "x:99999999999999999999:a",
            ":1:a",
            "x y:1:a",
            "content-length:1:5",
            "Transfer-Encoding:7:chunked",
            "host:1:b",
            "x-forwarded-client-cert:1:a",
            "x-meshwright-reason:1:a",
            "x-meshwright-fields:5:x:1:a",
        ] {
            let mut headers = HeaderMap::from_iter([(X_MESHWRIGHT_FIELDS, value.parse().unwrap())]);
            assert_eq!(unpack(&mut headers), None, "{value}");
        }
    }
}
