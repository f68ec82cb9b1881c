//! One token (JWS compact serialization, RFC 7515; claims of RFC 7519), judged by the rules of RFC 8725.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use jsonwebtoken::crypto;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::TokenFault;
use super::keys::KeySet;

/// Longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Keys that one token is tried with.
const TRIED_MAX: usize = 8;

/// A token taken apart; nothing of it is believed yet.
#[derive(Debug)]
pub(super) struct Token<'t> {
    algorithm: Algorithm,
    key: Option<String>,
    kind: Option<String>,
    pub(super) claims: Map<String, Value>,
    signed: &'t [u8],
    signature: &'t str,
}

/// What of the header is looked at. A key in it, or a place to get one from, is the bearer's own word and means nothing.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    #[serde(default, deserialize_with = "there")]
    crit: bool,
}

/// Whatever it is, `null` too.
fn there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// A value in whose objects no name comes twice: who reads the first one and who reads the last would see different bearers.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reading;
        impl<'de> Visitor<'de> for Reading {
            type Value = Unique;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("objects in which no name comes twice")
            }

            fn visit_unit<E>(self) -> Result<Unique, E> {
                Ok(Unique(Value::Null))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Unique, A::Error> {
                let mut list = Vec::new();
                while let Some(Unique(item)) = items.next_element()? {
                    list.push(item);
                }
                Ok(Unique(list.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Unique, A::Error> {
                let mut map = Map::new();
                while let Some((name, Unique(value))) = entries.next_entry::<String, Self::Value>()? {
                    if map.insert(name, value).is_some() {
                        return Err(serde::de::Error::custom("a name comes twice"));
                    }
                }
                Ok(Unique(map.into()))
            }
        }
        deserializer.deserialize_any(Reading)
    }
}

impl<'t> Token<'t> {
    /// Takes a token apart.
    pub(super) fn read(token: &'t [u8]) -> Result<Self, TokenFault> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenFault::TooLong);
        }
        let token = std::str::from_utf8(token).map_err(|_| TokenFault::Malformed)?;
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenFault::Malformed)?;
        let (header, claims) = signed.split_once('.').filter(|(_, claims)| !claims.contains('.')).ok_or(TokenFault::Malformed)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenFault::Malformed);
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| TokenFault::Malformed)?;
        if header.crit {
            return Err(TokenFault::Critical);
        }
        let algorithm = algorithm(&header.alg).ok_or(TokenFault::Algorithm)?;
        let Ok(Unique(Value::Object(claims))) = serde_json::from_slice(&decode(claims)?) else { return Err(TokenFault::Malformed) };
        Ok(Self { algorithm, key: header.kid, kind: header.typ, claims, signed: signed.as_bytes(), signature })
    }

    /// Who it says issued it.
    pub(super) fn issuer(&self) -> Option<&str> {
        self.claims.get("iss")?.as_str()
    }

    /// What type it says that it is of.
    pub(super) fn kind(&self) -> Option<&str> {
        self.kind.as_deref()
    }

    /// Whether one of the keys has signed it.
    pub(super) fn verify(&self, keys: &KeySet) -> Result<(), TokenFault> {
        let mut fitting = keys.fitting(self.algorithm, self.key.as_deref()).take(TRIED_MAX).peekable();
        if fitting.peek().is_none() {
            return Err(TokenFault::UnknownKey);
        }
        let signed =
            |key: &super::keys::SigningKey| matches!(crypto::verify(self.signature, self.signed, &key.key, self.algorithm), Ok(true));
        if fitting.any(signed) { Ok(()) } else { Err(TokenFault::Signature) }
    }

    /// Whether a key of just its own name is among these. Else newer ones may hold the key that has signed it.
    pub(super) fn is_known_to(&self, keys: &KeySet) -> bool {
        self.key.is_some() && keys.fitting(self.algorithm, self.key.as_deref()).any(|key| key.id == self.key)
    }

    /// Whether it holds at that time, and from which second on it does not: never where it does not say.
    pub(super) fn holds(&self, now_secs: u64, skew: Duration) -> Result<u64, TokenFault> {
        let (now, skew) = (now_secs as f64, skew.as_secs_f64());
        let (end, begin, issued) = (self.time("exp")?, self.time("nbf")?, self.time("iat")?);
        if end.is_some_and(|end| now >= end + skew) {
            return Err(TokenFault::Expired);
        }
        if [begin, issued].into_iter().flatten().any(|begin| now + skew < begin) {
            return Err(TokenFault::TooEarly);
        }
        Ok(end.map_or(u64::MAX, |end| (end + skew).ceil() as u64))
    }

    fn time(&self, claim: &str) -> Result<Option<f64>, TokenFault> {
        match self.claims.get(claim) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or(TokenFault::Malformed),
        }
    }

    /// Whether it is of one of these types (RFC 8725, section 3.11); of any where there are none.
    pub(super) fn is_of(&self, types: &[Box<str>]) -> Result<(), TokenFault> {
        let kind = self.kind.as_deref().map(plain_type).unwrap_or_default();
        if types.is_empty() || types.iter().any(|known| known.eq_ignore_ascii_case(kind)) { Ok(()) } else { Err(TokenFault::Type) }
    }

    /// Whether it is meant for one of these; for anybody where there are none.
    pub(super) fn is_for(&self, audiences: &[String]) -> Result<(), TokenFault> {
        let known = |value: &Value| value.as_str().is_some_and(|text| audiences.iter().any(|audience| audience == text));
        let meant = match self.claims.get("aud") {
            _ if audiences.is_empty() => true,
            Some(Value::Array(items)) => items.iter().any(known),
            Some(one) => known(one),
            None => false,
        };
        if meant { Ok(()) } else { Err(TokenFault::Audience) }
    }
}

/// A token's type without "application/" (RFC 7515, section 4.1.9).
pub(crate) fn plain_type(kind: &str) -> &str {
    match kind.split_at_checked(APPLICATION.len()) {
        Some((before, rest)) if before.eq_ignore_ascii_case(APPLICATION) => rest,
        _ => kind,
    }
}

const APPLICATION: &str = "application/";

/// Public-key signatures only: `none`, and those by a shared secret, for which somebody may have put in a public key, are unknown here.
fn algorithm(text: &str) -> Option<Algorithm> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    [RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA].into_iter().find(|known| format!("{known:?}") == text)
}
