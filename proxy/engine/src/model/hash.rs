//! What a request is hashed by, for clusters that send equal hashes to equal endpoints.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use proto::mesh::hash_key::Kind;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{Policy, cookie};
use crate::filter::Exchange;
use crate::matching::parameter;
use crate::raw::duration;
use crate::rejected::{Wrong, refuse};

/// Most keys of one policy.
pub const HASH_KEYS_MAX: usize = 16;

/// One thing that a request may be hashed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// All values of a header.
    Header(HeaderName),
    /// The value of a cookie.
    Cookie(HashCookie),
    /// The client's address, without its port.
    SourceAddress,
    /// The first value of a query parameter.
    Query(String),
}

/// A cookie that a client is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashCookie {
    name: String,
    /// With it, a client that has none is given one.
    ttl: Option<Duration>,
    path: String,
}

impl HashKey {
    pub(crate) fn compile_all(raw: &[proto::mesh::HashKey]) -> Result<Vec<Self>, Wrong> {
        if raw.len() > HASH_KEYS_MAX {
            return Err(Wrong::new("hash", format!("holds more than {HASH_KEYS_MAX} keys")));
        }
        let one = |(index, raw)| Self::compile(raw).map_err(|wrong: Wrong| wrong.within(format!("hash[{index}]")));
        raw.iter().enumerate().map(one).collect()
    }

    fn compile(proto::mesh::HashKey { kind }: &proto::mesh::HashKey) -> Result<Self, Wrong> {
        Ok(match kind {
            None => return Err(Wrong::new("kind", "is missing: header, cookie, source_address or query")),
            Some(Kind::Header(name)) => {
                Self::Header(name.parse().map_err(|_| Wrong::new("header", format!("`{}` is not a header name", name.escape_debug())))?)
            }
            Some(Kind::Cookie(proto::mesh::HashCookie { name, ttl, path })) => {
                let at = |wrong: Wrong| wrong.within("cookie");
                let ttl = duration(ttl.as_ref(), "ttl").map_err(at)?;
                let cookie = HashCookie { name: cookie::name(name).map_err(at)?, ttl, path: cookie::path(path).map_err(at)? };
                // Only a cookie that is made has a path.
                refuse(ttl.is_none() && !path.is_empty(), "path").map_err(at)?;
                Self::Cookie(cookie)
            }
            Some(Kind::SourceAddress(true)) => Self::SourceAddress,
            Some(Kind::SourceAddress(false)) => return Err(Wrong::new("source_address", "is false")),
            Some(Kind::Query(name)) if name.is_empty() => return Err(Wrong::new("query", "is empty")),
            Some(Kind::Query(name)) => Self::Query(name.clone()),
        })
    }

    /// What a request yields. The same in every proxy, today and tomorrow: rings agree.
    fn hash(&self, exchange: &Exchange<'_>) -> Option<u64> {
        let headers = &exchange.request.headers;
        match self {
            Self::Header(name) => {
                let mut values = headers.get_all(name).iter();
                let mut hash = Xxh3::new();
                hash.update(values.next()?.as_bytes());
                for more in values {
                    hash.update(b",");
                    hash.update(more.as_bytes());
                }
                Some(hash.digest())
            }
            Self::Cookie(cookie) => match cookie::find(headers, &cookie.name) {
                Some(value) => Some(xxh3_64(value)),
                None => cookie.ttl.map(|_| xxh3_64(&made(exchange.draw))),
            },
            Self::SourceAddress => Some(match exchange.address.to_canonical() {
                std::net::IpAddr::V4(address) => xxh3_64(&address.octets()),
                std::net::IpAddr::V6(address) => xxh3_64(&address.octets()),
            }),
            Self::Query(name) => parameter(exchange.request.uri.query(), name).map(|value| xxh3_64(&value)),
        }
    }
}

impl std::fmt::Display for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header {name}"),
            Self::Cookie(cookie) => write!(f, "cookie {}", cookie.name),
            Self::SourceAddress => f.write_str("source address"),
            Self::Query(name) => write!(f, "query parameter {name}"),
        }
    }
}

impl Policy {
    /// The hash that a request is balanced by: of the first key that yields one.
    pub fn hash(&self, exchange: &Exchange<'_>) -> Option<u64> {
        self.hash.iter().find_map(|key| key.hash(exchange))
    }

    /// The same, where it does not depend on a draw.
    pub(crate) fn sure_hash(&self, exchange: &Exchange<'_>) -> Option<u64> {
        self.hash(exchange).filter(|_| self.made_cookie(exchange).is_none())
    }

    /// The cookie that goes out with the answer, where the request was hashed by one that it did not have.
    pub(crate) fn made_cookie(&self, exchange: &Exchange<'_>) -> Option<HeaderValue> {
        let key = self.hash.iter().find(|key| key.hash(exchange).is_some())?;
        let HashKey::Cookie(HashCookie { name, ttl, path }) = key else { return None };
        if cookie::find(&exchange.request.headers, name).is_some() {
            return None;
        }
        let value = made(exchange.draw);
        let value = std::str::from_utf8(&value).ok()?;
        HeaderValue::try_from(cookie::written((name, value), path, ttl.filter(|ttl| !ttl.is_zero()), exchange.called.tls)).ok()
    }
}

/// The value of a made cookie: a draw, in hexadecimal digits.
fn made(draw: u64) -> [u8; 16] {
    let draw = xxh3_64(&draw.to_be_bytes());
    std::array::from_fn(|place| {
        let digit = (draw >> (60 - 4 * place) & 0xf) as u8;
        if digit < 10 { b'0' + digit } else { b'a' + digit - 10 }
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Request, header};

    use super::*;
    use crate::filter::tests::exchange;

    fn policy(kinds: Vec<Kind>) -> Policy {
        let raw: Vec<_> = kinds.into_iter().map(|kind| proto::mesh::HashKey { kind: Some(kind) }).collect();
        Policy { hash: HashKey::compile_all(&raw).unwrap(), ..Policy::default() }
    }

    fn cookie(name: &str, ttl: Option<i64>) -> Kind {
        let ttl = ttl.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
        Kind::Cookie(proto::mesh::HashCookie { name: name.into(), ttl, path: String::new() })
    }

    #[test]
    fn the_first_key_that_yields_counts() {
        // Aim: header, cookie, query and address in their order; equal values give equal hashes, absent ones none.
        let policy =
            policy(vec![Kind::Header("x-user".into()), cookie("sid", None), Kind::Query("user".into()), Kind::SourceAddress(true)]);
        let hash = |uri: &str, headers: &[(&'static str, &str)]| {
            let mut request = Request::get(uri);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let mut parts = request.body(()).unwrap().into_parts().0;
            policy.hash(&exchange(&mut parts)).unwrap()
        };
        let address = hash("/", &[]);
        assert_eq!(hash("/?user=ann", &[("x-user", "bob")]), hash("/", &[("x-user", "bob"), ("cookie", "sid=x")]));
        assert_eq!(hash("/?user=ann", &[]), hash("/else?a=b&user=ann", &[]));
        assert_eq!(hash("/", &[("cookie", "sid=ann")]), hash("/?user=ann", &[]));
        assert_ne!(hash("/", &[("x-user", "ann")]), hash("/", &[("x-user", "bob")]));
        assert_ne!(address, hash("/?user=ann", &[]));
        assert_eq!(address, hash("/x", &[("cookie", "other=1")]));
    }

    #[test]
    fn who_has_no_cookie_is_given_one_with_the_same_hash() {
        // Aim: the next request, with the cookie, goes where the first one went.
        let policy = policy(vec![cookie("sid", Some(3600))]);
        let mut parts = Request::get("/").body(()).unwrap().into_parts().0;
        let first = policy.hash(&exchange(&mut parts)).unwrap();
        let told = policy.made_cookie(&exchange(&mut parts)).unwrap();
        let told = told.to_str().unwrap();
        assert!(told.starts_with("sid=") && told.ends_with("; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax"), "{told}");
        parts.headers = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(told.split(';').next().unwrap()).unwrap())]);
        assert_eq!(policy.hash(&exchange(&mut parts)), Some(first));
        assert_eq!(policy.made_cookie(&exchange(&mut parts)), None);
    }

    #[test]
    fn keys_that_say_nothing_are_refused() {
        // Aim: by name, before anything runs.
        let key = |kind| proto::mesh::HashKey { kind };
        let bad = [
            None,
            Some(Kind::Header("a b".into())),
            Some(cookie("", None)),
            Some(Kind::SourceAddress(false)),
            Some(Kind::Query(String::new())),
        ];
        for kind in bad {
            assert!(HashKey::compile_all(&[key(kind.clone())]).is_err(), "{kind:?}");
        }
        let many = vec![key(Some(Kind::SourceAddress(true))); HASH_KEYS_MAX + 1];
        assert!(HashKey::compile_all(&many).is_err() && HashKey::compile_all(&many[1..]).is_ok());
    }
}
