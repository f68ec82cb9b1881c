//! The keys that sign JWT-SVIDs, and the tokens themselves; pure: keys, time and identities come in as values.
//!
//! A key is published [`PUBLISHED_AHEAD`] before it signs, so that whoever verifies has it by then, and stays until the last token that
//! it signed has ended.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use proto::identity::Identity;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::authority::{SignError, hex};

/// Life of a token: as long as a caller may be believed whose identity was taken from it meanwhile.
pub const TOKEN_LIFE: Duration = Duration::from_secs(5 * 60);
/// How long a key signs.
pub const KEY_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long a key is published before it signs.
pub const PUBLISHED_AHEAD: Duration = Duration::from_secs(3600);
/// Clocks that differ by so much still agree on a token.
const SKEW: Duration = Duration::from_secs(60);
/// Audiences of one token.
pub const AUDIENCES_MAX: usize = 16;
/// Longest audience.
pub const AUDIENCE_BYTES_MAX: usize = 512;
/// Bytes of a public key: uncompressed point of P-256.
const POINT_BYTES: usize = 65;

/// One ES256 key.
pub struct TokenKey {
    /// Its name in tokens and bundles.
    pub kid: String,
    /// PKCS#8 DER; wiped when dropped.
    pub pkcs8: Zeroizing<Vec<u8>>,
    /// It signs from here on, in seconds since 1970.
    pub signs_from: i64,
    x: String,
    y: String,
}

impl TokenKey {
    /// A fresh key.
    ///
    /// # Errors
    /// [`SignError::Library`].
    pub fn generate(signs_from: i64) -> Result<Self, SignError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Self::of(&key, signs_from)
    }

    /// A key that was kept.
    ///
    /// # Errors
    /// [`SignError::Library`]: it is no P-256 key.
    pub fn read(pkcs8: &[u8], signs_from: i64) -> Result<Self, SignError> {
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8.into(), &PKCS_ECDSA_P256_SHA256)?;
        Self::of(&key, signs_from)
    }

    fn of(key: &KeyPair, signs_from: i64) -> Result<Self, SignError> {
        let point = key.der_bytes();
        let [4, coordinates @ ..] = point else { return Err(SignError::Library("a public key is compressed".to_owned())) };
        if point.len() != POINT_BYTES {
            return Err(SignError::Library("a public key is not of P-256".to_owned()));
        }
        let (x, y) = coordinates.split_at(POINT_BYTES / 2);
        Ok(Self {
            kid: hex(&digest(&SHA256, point).as_ref()[..16]),
            pkcs8: Zeroizing::new(key.serialize_der()),
            signs_from,
            x: URL_SAFE_NO_PAD.encode(x),
            y: URL_SAFE_NO_PAD.encode(y),
        })
    }

    /// The public half as SPIFFE wants it (SPIFFE Trust Domain and Bundle, section 4.2).
    fn jwk(&self) -> Value {
        json!({"kty": "EC", "kid": self.kid, "use": "jwt-svid", "alg": "ES256", "crv": "P-256", "x": self.x, "y": self.y})
    }
}

/// The keys of one mesh, in the order in which they sign.
#[derive(Default)]
pub struct Keyring {
    keys: Vec<TokenKey>,
}

impl Keyring {
    /// Adds a key.
    pub fn add(&mut self, key: TokenKey) {
        self.keys.push(key);
        self.keys.sort_by_key(|key| key.signs_from);
    }

    /// When a key that is to be made now would begin to sign; `None` while none is due.
    pub fn due(&self, now: i64) -> Option<i64> {
        match self.keys.last() {
            None => Some(now),
            Some(newest) if newest.signs_from.saturating_add(secs(KEY_LIFE - PUBLISHED_AHEAD)) <= now => Some(now + secs(PUBLISHED_AHEAD)),
            Some(_) => None,
        }
    }

    /// The key that signs now: the newest that has been published long enough. Where a clock went back before all of them, the oldest.
    pub fn signing(&self, now: i64) -> Option<&TokenKey> {
        self.keys.iter().rev().find(|key| key.signs_from <= now).or(self.keys.first())
    }

    /// Takes out the keys whose last token has ended; returns their names.
    pub fn retire(&mut self, now: i64) -> Vec<String> {
        let kept = secs(TOKEN_LIFE + SKEW);
        // Each is kept until its successor has signed for longer than a token lives.
        let ended = self.keys.windows(2).take_while(|pair| pair[1].signs_from.saturating_add(kept) <= now).count();
        self.keys.drain(..ended).map(|key| key.kid).collect()
    }

    /// The public halves, as a JWKS document: also those that do not sign yet, or no more.
    pub fn jwks(&self) -> String {
        json!({"keys": self.keys.iter().map(TokenKey::jwk).collect::<Vec<_>>()}).to_string()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// Claims of a JWT-SVID (SPIFFE JWT-SVID, section 3).
#[derive(Serialize)]
struct Claims<'a> {
    sub: String,
    aud: &'a [String],
    iat: i64,
    exp: i64,
}

/// A signed token.
#[derive(Clone, Debug)]
pub struct Minted {
    /// JWS, compact.
    pub token: String,
    /// Its begin.
    pub issued: OffsetDateTime,
    /// Its end.
    pub expires: OffsetDateTime,
}

/// What is wrong with the audiences of a token to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AudienceError {
    /// None.
    #[error("a token needs an audience: the name of who is to accept it")]
    None,
    /// Too many.
    #[error("{0} audiences, at most {AUDIENCES_MAX} go into one token")]
    TooMany(usize),
    /// One is empty, long, or not text for eyes.
    #[error("`{0}` is no audience: 1 to {AUDIENCE_BYTES_MAX} bytes without control characters")]
    Malformed(String),
}

/// Checks audiences.
///
/// # Errors
/// See [`AudienceError`].
pub fn check_audiences(audiences: &[String]) -> Result<(), AudienceError> {
    match audiences.len() {
        0 => return Err(AudienceError::None),
        many if many > AUDIENCES_MAX => return Err(AudienceError::TooMany(many)),
        _ => {}
    }
    let wrong = |text: &&String| text.is_empty() || text.len() > AUDIENCE_BYTES_MAX || text.chars().any(char::is_control);
    match audiences.iter().find(wrong) {
        Some(text) => Err(AudienceError::Malformed(text.chars().filter(|c| !c.is_control()).take(100).collect())),
        None => Ok(()),
    }
}

/// Signs a token for an identity that the caller has proved, never beyond `not_after`, the end of that proof.
///
/// # Errors
/// [`SignError::Library`].
pub fn mint(
    key: &TokenKey,
    identity: &Identity,
    audiences: &[String],
    now: OffsetDateTime,
    not_after: OffsetDateTime,
) -> Result<Minted, SignError> {
    let expires = (now + TOKEN_LIFE).min(not_after);
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(key.kid.clone());
    let claims = Claims { sub: identity.to_string(), aud: audiences, iat: now.unix_timestamp(), exp: expires.unix_timestamp() };
    let token = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ec_der(&key.pkcs8));
    let token = token.map_err(|error| SignError::Library(error.to_string()))?;
    Ok(Minted { token, issued: now, expires })
}

fn secs(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: i64 = 1_800_000_000;

    /// One look at the ring, as the authority takes it.
    fn advance(ring: &mut Keyring, now: i64) -> String {
        ring.retire(now);
        if let Some(signs_from) = ring.due(now) {
            ring.add(TokenKey::generate(signs_from).unwrap());
        }
        ring.signing(now).unwrap().kid.clone()
    }

    #[test]
    fn a_month_of_keys() {
        // Aim: whichever key signs was published an hour before, stays until its last token ended, and there are never more than three.
        let mut ring = Keyring::default();
        let mut published: std::collections::BTreeMap<String, i64> = std::collections::BTreeMap::new();
        let mut last_signed: std::collections::BTreeMap<String, i64> = std::collections::BTreeMap::new();
        for now in (START..START + 30 * 24 * 3600).step_by(97) {
            let kid = advance(&mut ring, now);
            for key in &ring.keys {
                published.entry(key.kid.clone()).or_insert(now);
            }
            assert!(published[&kid] == START || published[&kid] + 3600 <= now, "it signs before it is known");
            last_signed.insert(kid, now);
            for (kid, at) in &last_signed {
                let there = ring.keys.iter().any(|key| key.kid == *kid);
                assert!(there || at + 300 < now, "it went before its tokens");
            }
            assert!(ring.len() <= 3);
        }
        assert!((29..=33).contains(&last_signed.len()), "{}", last_signed.len());
        assert!(ring.len() <= 2 || published.len() > 3);
    }

    #[test]
    fn clocks_may_jump() {
        // Aim: after a jump forward the known key signs until the next is known; after one back some key still signs, and none is made in a loop.
        let mut ring = Keyring::default();
        let first = advance(&mut ring, START);
        assert_eq!(advance(&mut ring, START + 100 * 24 * 3600), first);
        assert_eq!(ring.len(), 2);
        assert_ne!(advance(&mut ring, START + 100 * 24 * 3600 + 3600), first);
        for back in 0..100 {
            advance(&mut ring, START - back);
        }
        assert_eq!(ring.len(), 2);
    }

    #[test]
    fn audiences_are_checked() {
        // Aim: none, too many, empty, huge and unprintable ones are refused in words.
        let many = |n: usize| vec!["a".to_owned(); n];
        assert!(check_audiences(&many(AUDIENCES_MAX)).is_ok());
        for (audiences, why) in [
            (Vec::new(), "needs an audience"),
            (many(AUDIENCES_MAX + 1), "at most 16"),
            (vec![String::new()], "no audience"),
            (vec!["x".repeat(AUDIENCE_BYTES_MAX + 1)], "no audience"),
            (vec!["a\nb".to_owned()], "`ab` is no audience"),
        ] {
            assert!(check_audiences(&audiences).unwrap_err().to_string().contains(why), "{why}");
        }
    }

    #[test]
    fn a_kept_key_is_the_same() {
        // Aim: name and public half come back from what is at rest; a key of another kind does not.
        let key = TokenKey::generate(START).unwrap();
        let back = TokenKey::read(&key.pkcs8, START).unwrap();
        assert_eq!((back.kid, back.x, back.y), (key.kid, key.x, key.y));
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_der();
        assert!(TokenKey::read(&other, START).is_err());
    }
}
