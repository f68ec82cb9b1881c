//! Judging JWT-SVIDs (SPIFFE JWT-SVID, sections 2 to 4); pure.

use std::time::Duration;

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use proto::identity::Identity;
use serde_json::{Map, Value};

/// Longest token that is judged.
const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Clocks that differ by so much still agree on a token.
const SKEW_SECS: i64 = 60;

/// Why a token is not believed; or why none can be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Disbelief {
    #[error("the keys of trust domain `{0}` cannot be read: {1}")]
    Keys(String, String),
    #[error("the token has {0} bytes; at most {TOKEN_BYTES_MAX} are read")]
    TooLarge(usize),
    #[error("this is no JWT-SVID: {0}")]
    Malformed(String),
    #[error("the token is signed with {0:?}; this trust domain signs with ES256")]
    Algorithm(Algorithm),
    #[error("the token names no key (`kid`), or one that trust domain `{0}` does not have")]
    UnknownKey(String),
    #[error("the token's signature does not hold")]
    Signature,
    #[error("the token lacks the claim `{0}`")]
    Claim(&'static str),
    #[error("the token is for other audiences, not for `{0}`")]
    Audience(String),
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    TooEarly,
    #[error("the token's subject `{subject}` is no identity of trust domain `{trust_domain}`")]
    Subject { subject: String, trust_domain: String },
}

/// The token keys of one trust domain.
pub(super) struct TokenKeys {
    trust_domain: String,
    keys: Vec<(String, DecodingKey)>,
}

impl TokenKeys {
    /// Reads a JWKS document; keys of other kinds are passed over, as the specification wants it.
    pub(super) fn read(trust_domain: &str, jwks: &str) -> Result<Self, Disbelief> {
        let unreadable = |error: String| Disbelief::Keys(trust_domain.to_owned(), error);
        let set: JwkSet = serde_json::from_str(jwks).map_err(|error| unreadable(error.to_string()))?;
        let key = |jwk: &jsonwebtoken::jwk::Jwk| Some((jwk.common.key_id.clone()?, DecodingKey::from_jwk(jwk).ok()?));
        let keys: Vec<_> = set.keys.iter().filter_map(key).collect();
        if keys.is_empty() {
            return Err(unreadable("it holds no key".to_owned()));
        }
        Ok(Self { trust_domain: trust_domain.to_owned(), keys })
    }

    /// Whose token this is, if it is good for that audience at `now` (seconds since 1970), and all that it claims.
    pub(super) fn judge(&self, token: &str, audience: &str, now: Duration) -> Result<(Identity, Map<String, Value>), Disbelief> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Disbelief::TooLarge(token.len()));
        }
        let header = decode_header(token).map_err(|error| Disbelief::Malformed(error.to_string()))?;
        if header.alg != Algorithm::ES256 {
            return Err(Disbelief::Algorithm(header.alg));
        }
        if let Some(kind) = header.typ.as_deref().filter(|kind| !matches!(*kind, "JWT" | "JOSE")) {
            return Err(Disbelief::Malformed(format!("its type is `{kind}`")));
        }
        let named = header.kid.as_deref().and_then(|kid| self.keys.iter().find(|(known, _)| known == kid));
        let (_, key) = named.ok_or_else(|| Disbelief::UnknownKey(self.trust_domain.clone()))?;
        // Times and names are judged below: by our own clock, and in words.
        let mut signature = Validation::new(Algorithm::ES256);
        signature.validate_exp = false;
        signature.validate_aud = false;
        signature.required_spec_claims.clear();
        let claims = decode::<Map<String, Value>>(token, key, &signature).map_err(|_| Disbelief::Signature)?.claims;
        let identity = self.names(&claims, audience)?;
        times(&claims, i64::try_from(now.as_secs()).unwrap_or(i64::MAX))?;
        Ok((identity, claims))
    }

    fn names(&self, claims: &Map<String, Value>, audience: &str) -> Result<Identity, Disbelief> {
        let subject = claims.get("sub").and_then(Value::as_str).ok_or(Disbelief::Claim("sub"))?;
        let identity = subject.parse::<Identity>().ok().filter(|identity| identity.trust_domain() == self.trust_domain);
        let strange = || Disbelief::Subject { subject: subject.chars().take(300).collect(), trust_domain: self.trust_domain.clone() };
        let identity = identity.ok_or_else(strange)?;
        let meant = match claims.get("aud").ok_or(Disbelief::Claim("aud"))? {
            Value::String(one) => one == audience,
            Value::Array(many) => many.iter().any(|one| one.as_str() == Some(audience)),
            _ => false,
        };
        if meant { Ok(identity) } else { Err(Disbelief::Audience(audience.chars().take(300).collect())) }
    }
}

fn times(claims: &Map<String, Value>, now: i64) -> Result<(), Disbelief> {
    let seconds = |claim: &str| claims.get(claim).and_then(|value| value.as_i64().or_else(|| value.as_f64().map(|at| at as i64)));
    let end = seconds("exp").ok_or(Disbelief::Claim("exp"))?;
    if now >= end.saturating_add(SKEW_SECS) {
        return Err(Disbelief::Expired);
    }
    if seconds("nbf").is_some_and(|begin| now.saturating_add(SKEW_SECS) < begin) {
        return Err(Disbelief::TooEarly);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use rcgen::{KeyPair, PublicKeyData as _};
    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    struct Signer(KeyPair);

    impl Signer {
        fn new() -> Self {
            Self(KeyPair::generate().unwrap())
        }

        fn jwks(&self, kid: &str) -> String {
            let [x, y] = [1..33, 33..65].map(|part| BASE64_URL_SAFE_NO_PAD.encode(&self.0.der_bytes()[part]));
            json!({"keys": [{"kty": "EC", "use": "jwt-svid", "kid": kid, "crv": "P-256", "x": x, "y": y}, {"kty": "oct", "k": "AA"}]})
                .to_string()
        }

        fn sign(&self, kid: Option<&str>, claims: &Value) -> String {
            let header = Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::ES256) };
            encode(&header, claims, &EncodingKey::from_ec_der(&self.0.serialize_der())).unwrap()
        }
    }

    fn claims() -> Value {
        json!({"sub": "spiffe://cluster.local/ns/shop/sa/catalog", "aud": ["a", "b"], "exp": NOW + 300, "iat": NOW, "more": {"x": 1}})
    }

    fn with(change: impl FnOnce(&mut Value)) -> Value {
        let mut claims = claims();
        change(&mut claims);
        claims
    }

    /// Aim: a good token is believed with all that it claims; each way to be bad is told in words.
    #[test]
    fn tokens_are_judged() {
        let (signer, other) = (Signer::new(), Signer::new());
        let keys = TokenKeys::read("cluster.local", &signer.jwks("k")).unwrap();
        let judge = |token: &str, audience: &str| keys.judge(token, audience, Duration::from_secs(NOW.unsigned_abs()));
        let (identity, all) = judge(&signer.sign(Some("k"), &claims()), "b").unwrap();
        assert_eq!((identity.service_account(), &all["more"]["x"]), ("catalog", &json!(1)));
        let good = signer.sign(Some("k"), &claims());
        let none = format!("{}.{}.", BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), good.split('.').nth(1).unwrap());
        let symmetric = encode(&Header::default(), &claims(), &EncodingKey::from_secret(b"k")).unwrap();
        let mut forged = good.clone().into_bytes();
        let middle = good.find('.').unwrap() + 10;
        forged[middle] = if forged[middle] == b'A' { b'B' } else { b'A' };
        for (token, audience, why) in [
            (good.clone(), "c", "not for `c`"),
            (signer.sign(Some("other"), &claims()), "a", "names no key"),
            (signer.sign(None, &claims()), "a", "names no key"),
            (other.sign(Some("k"), &claims()), "a", "signature"),
            (String::from_utf8(forged).unwrap(), "a", "signature"),
            (none, "a", "no JWT-SVID"),
            (symmetric, "a", "ES256"),
            (signer.sign(Some("k"), &with(|c| c["exp"] = json!(NOW - 61))), "a", "expired"),
            (signer.sign(Some("k"), &with(|c| c["nbf"] = json!(NOW + 61))), "a", "not valid yet"),
            (signer.sign(Some("k"), &with(|c| c["sub"] = json!("spiffe://elsewhere/ns/shop/sa/catalog"))), "a", "no identity of"),
            (signer.sign(Some("k"), &with(|c| c["sub"] = json!("catalog"))), "a", "no identity of"),
            (signer.sign(Some("k"), &with(|c| drop(c.as_object_mut().unwrap().remove("exp")))), "a", "`exp`"),
            (signer.sign(Some("k"), &with(|c| drop(c.as_object_mut().unwrap().remove("aud")))), "a", "`aud`"),
            (signer.sign(Some("k"), &with(|c| drop(c.as_object_mut().unwrap().remove("sub")))), "a", "`sub`"),
            ("x".repeat(TOKEN_BYTES_MAX + 1), "a", "at most"),
            (String::new(), "a", "no JWT-SVID"),
        ] {
            let error = judge(&token, audience).unwrap_err().to_string();
            assert!(error.contains(why), "wanted `{why}` in `{error}`");
        }
        assert!(judge(&signer.sign(Some("k"), &with(|c| c["exp"] = json!(NOW - 59))), "a").is_ok(), "clocks differ a little");
        for bad in ["", "{}", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"AA"}]}"#] {
            assert!(TokenKeys::read("cluster.local", bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        /// Aim: no text makes it panic.
        #[test]
        fn any_text_is_survived(text in "\\PC{0,80}", body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let keys = TokenKeys::read("cluster.local", &Signer::new().jwks("k")).unwrap();
            let noise = BASE64_URL_SAFE_NO_PAD.encode(body);
            for token in [text.clone(), format!("{noise}.{noise}.{noise}"), format!("{noise}.{text}")] {
                proptest::prop_assert!(keys.judge(&token, &text, Duration::ZERO).is_err());
            }
        }
    }
}
