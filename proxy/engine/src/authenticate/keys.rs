//! Sets of public keys (JWKS, RFC 7517) that tokens are signed with.

use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

/// Most keys of one set; further ones are left out and told.
pub const KEYS_MAX: usize = 64;
/// Largest set, in bytes.
pub const KEY_SET_BYTES_MAX: usize = 256 << 10;
/// Shortest RSA modulus, in bits (RFC 7518, section 3.3).
const RSA_BITS_MIN: usize = 2048;
/// Longest: a check of one costs its square.
const RSA_BITS_MAX: usize = 8192;
/// Longest RSA exponent, in bytes.
const EXPONENT_BYTES_MAX: usize = 8;

/// The keys of one issuer.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<SigningKey>,
    skipped: Vec<String>,
    text: String,
}

/// One key, and what it may have signed.
#[derive(Debug)]
pub(super) struct SigningKey {
    pub(super) id: Option<String>,
    pub(super) key: DecodingKey,
    algorithms: Vec<Algorithm>,
}

/// A key as RFC 7517 and RFC 7518, section 6, write it. What it says beside this (certificates, places to get it from) is not asked.
#[derive(Deserialize)]
struct RawKey {
    #[serde(default)]
    kty: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct RawSet {
    keys: Vec<serde_json::Value>,
}

const RSA: [Algorithm; 6] = [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];

impl KeySet {
    /// Reads a set. Keys that cannot be used are left out: of other kinds, for encryption, too short, broken, or with their private part.
    ///
    /// # Errors
    /// It is no set, or holds no key that can be used; says why.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let set = Self::read_any(text)?;
        if set.is_empty() { Err(set.why_unusable()) } else { Ok(set) }
    }

    /// Reads a set that may hold no key that can be used.
    ///
    /// # Errors
    /// It is no set; says why.
    pub(super) fn read_any(text: &[u8]) -> Result<Self, String> {
        if text.len() > KEY_SET_BYTES_MAX {
            return Err(format!("it has {} bytes, more than {KEY_SET_BYTES_MAX}", text.len()));
        }
        let raw: RawSet = serde_json::from_slice(text).map_err(|error| format!("it is no JSON object with a list `keys` ({error})"))?;
        let mut set = Self { text: String::from_utf8_lossy(text).into_owned(), ..Self::default() };
        for (place, raw) in raw.keys.into_iter().enumerate() {
            let name = raw.get("kid").and_then(|id| id.as_str()).map(|id| format!("{id:.64}"));
            let read = match set.keys.len() {
                KEYS_MAX.. => Err(format!("there are {KEYS_MAX} others already")),
                _ => serde_json::from_value(raw).map_err(|error| error.to_string()).and_then(SigningKey::read),
            };
            match read {
                Ok(key) => set.keys.push(key),
                Err(why) if set.skipped.len() < KEYS_MAX => {
                    set.skipped.push(format!("key {}: {why}", name.unwrap_or_else(|| format!("number {}", place + 1))));
                }
                Err(_) => {}
            }
        }
        Ok(set)
    }

    /// What is said of a set without any key that can be used.
    pub fn why_unusable(&self) -> String {
        let why = if self.skipped.is_empty() { "it is empty".to_owned() } else { self.skipped.join("; ") };
        format!("it holds no key that can be used: {why}")
    }

    /// The keys that are left out, each with the reason.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// How many keys can be used.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key can be used.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether it was read from just this text.
    pub(super) fn is_of(&self, text: &[u8]) -> bool {
        self.text.as_bytes() == text
    }

    /// Keys that may have signed what says that it was signed so. A key with an identifier answers to that one only; a token without one may
    /// be of any.
    pub(super) fn fitting(&self, algorithm: Algorithm, id: Option<&str>) -> impl Iterator<Item = &SigningKey> {
        let meant = move |key: &&SigningKey| match (id, &key.id) {
            (Some(wanted), Some(id)) => wanted == id,
            _ => true,
        };
        self.keys.iter().filter(meant).filter(move |key| key.algorithms.contains(&algorithm))
    }
}

impl SigningKey {
    fn read(raw: RawKey) -> Result<Self, String> {
        if raw.d.is_some() {
            return Err("it holds its private part, so anybody who has seen the set may sign".to_owned());
        }
        if raw.purpose.as_deref().is_some_and(|purpose| purpose != "sig") {
            return Err("it is not for signatures".to_owned());
        }
        if raw.key_ops.as_ref().is_some_and(|operations| !operations.iter().any(|operation| operation == "verify")) {
            return Err("it is not for verifying".to_owned());
        }
        let (key, mut algorithms) = match raw.kty.as_str() {
            "RSA" => (rsa(&raw)?, RSA.to_vec()),
            "EC" => elliptic(&raw)?,
            "OKP" => edwards(&raw)?,
            "oct" => return Err("it is a shared secret, with which everybody who verifies could sign".to_owned()),
            other => return Err(format!("keys of kind `{}` are not supported", other.escape_debug())),
        };
        if let Some(only) = &raw.alg {
            algorithms.retain(|algorithm| format!("{algorithm:?}") == *only);
            if algorithms.is_empty() {
                return Err(format!("the algorithm `{}` is not one of its kind", only.escape_debug()));
            }
        }
        Ok(Self { id: raw.kid, key, algorithms })
    }
}

fn part(text: Option<&String>, name: &str) -> Result<Vec<u8>, String> {
    use base64::Engine as _;
    let text = text.ok_or_else(|| format!("it has no `{name}`"))?;
    base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(text.trim_end_matches('='))
        .map_err(|error| format!("`{name}` is no base64url ({error})"))
}

fn rsa(raw: &RawKey) -> Result<DecodingKey, String> {
    let (modulus, exponent) = (part(raw.n.as_ref(), "n")?, part(raw.e.as_ref(), "e")?);
    let leading = modulus.iter().take_while(|byte| **byte == 0).count();
    let modulus = &modulus[leading..];
    let bits = modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize);
    if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
        return Err(format!("its modulus has {bits} bits, not {RSA_BITS_MIN} to {RSA_BITS_MAX}"));
    }
    if exponent.is_empty() || exponent.len() > EXPONENT_BYTES_MAX || exponent.last().is_none_or(|last| last % 2 == 0) {
        return Err("its exponent is none".to_owned());
    }
    Ok(DecodingKey::from_rsa_raw_components(modulus, &exponent))
}

fn elliptic(raw: &RawKey) -> Result<(DecodingKey, Vec<Algorithm>), String> {
    let (bytes, algorithm) = match raw.crv.as_deref() {
        Some("P-256") => (32, Algorithm::ES256),
        Some("P-384") => (48, Algorithm::ES384),
        other => return Err(format!("the curve `{}` is not supported", other.unwrap_or_default().escape_debug())),
    };
    let (x, y) = (part(raw.x.as_ref(), "x")?, part(raw.y.as_ref(), "y")?);
    if (x.len(), y.len()) != (bytes, bytes) {
        return Err(format!("its coordinates do not have {bytes} bytes"));
    }
    Ok((DecodingKey::from_ec_der(&[&[4][..], &x, &y].concat()), vec![algorithm]))
}

fn edwards(raw: &RawKey) -> Result<(DecodingKey, Vec<Algorithm>), String> {
    if raw.crv.as_deref() != Some("Ed25519") {
        return Err(format!("the curve `{}` is not supported", raw.crv.as_deref().unwrap_or_default().escape_debug()));
    }
    let x = part(raw.x.as_ref(), "x")?;
    if x.len() != 32 {
        return Err("its key does not have 32 bytes".to_owned());
    }
    Ok((DecodingKey::from_ed_der(&x), vec![Algorithm::EdDSA]))
}
