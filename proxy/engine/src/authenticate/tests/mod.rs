//! Tokens made by hand, and whether they are believed.

mod places;
mod table;

use std::sync::OnceLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaPair, KeySize};
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaEncoding};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::request::Parts;
use proto::mesh::{Authentication as Raw, TokenHeader, TokenRule as RawRule};
use serde_json::{Value, json};

use super::*;
use crate::model::Snapshot;
use crate::model::build;

pub(super) const ISSUER: &str = "https://id.example";
/// The present, wherever a test stands.
pub(super) const NOW: u64 = 1_780_272_000;

/// One private key of each kind.
pub(super) struct Signers {
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
    rsa: RsaPair,
}

pub(super) fn signers() -> &'static Signers {
    static SIGNERS: OnceLock<Signers> = OnceLock::new();
    SIGNERS.get_or_init(|| Signers {
        p256: EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
        p384: EcdsaKeyPair::generate(&signature::ECDSA_P384_SHA384_FIXED_SIGNING).unwrap(),
        ed25519: Ed25519KeyPair::generate().unwrap(),
        rsa: RsaPair::generate(KeySize::Rsa2048).unwrap(),
    })
}

pub(super) fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signers {
    /// Signs by an algorithm, whatever the token says.
    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        let rsa = |padding: &'static dyn RsaEncoding| {
            let mut signature = vec![0; self.rsa.public_modulus_len()];
            self.rsa.sign(padding, &random, message, &mut signature).unwrap();
            signature
        };
        match algorithm {
            "ES256" => self.p256.sign(&random, message).unwrap().as_ref().to_vec(),
            "ES384" => self.p384.sign(&random, message).unwrap().as_ref().to_vec(),
            "EdDSA" => self.ed25519.sign(message).as_ref().to_vec(),
            "RS256" => rsa(&signature::RSA_PKCS1_SHA256),
            "RS384" => rsa(&signature::RSA_PKCS1_SHA384),
            "RS512" => rsa(&signature::RSA_PKCS1_SHA512),
            "PS256" => rsa(&signature::RSA_PSS_SHA256),
            "PS384" => rsa(&signature::RSA_PSS_SHA384),
            "PS512" => rsa(&signature::RSA_PSS_SHA512),
            _ => Vec::new(),
        }
    }

    /// The public half of a key, as a JWKS has it.
    pub(super) fn public(&self, kind: &str, id: &str) -> Value {
        match kind {
            "P-256" | "P-384" => {
                let point = if kind == "P-256" { self.p256.public_key().as_ref() } else { self.p384.public_key().as_ref() };
                let (x, y) = point[1..].split_at(point.len() / 2);
                json!({"kty": "EC", "crv": kind, "kid": id, "x": b64(x), "y": b64(y)})
            }
            "Ed25519" => json!({"kty": "OKP", "crv": kind, "kid": id, "x": b64(self.ed25519.public_key().as_ref())}),
            _ => {
                // RSAPublicKey (RFC 8017, A.1.1) of 2,048 bits: two headers and a zero, then the modulus; the exponent ends it.
                let der = self.rsa.public_key().as_ref();
                json!({"kty": "RSA", "kid": id, "n": b64(&der[9..265]), "e": b64(&der[der.len() - 3..])})
            }
        }
    }

    /// All of them.
    pub(super) fn jwks(&self) -> Value {
        let keys = [("P-256", "es256"), ("P-384", "es384"), ("Ed25519", "ed"), ("RSA", "rsa")];
        json!({"keys": keys.map(|(kind, id)| self.public(kind, id))})
    }
}

/// A token: header and claims as given, signed by an algorithm.
pub(super) fn signed(header: &str, claims: &str, algorithm: &str) -> String {
    let message = format!("{}.{}", b64(header), b64(claims));
    let signature = signers().sign(algorithm, message.as_bytes());
    format!("{message}.{}", b64(signature))
}

/// Good claims, with changes; `null` takes one out.
pub(super) fn claims(changes: Value) -> Value {
    let mut claims = json!({"iss": ISSUER, "sub": "ada", "aud": "store", "exp": NOW + 600, "iat": NOW});
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

/// A token of ES256 with these changes of its claims.
pub(crate) fn token(changes: Value) -> String {
    signed(r#"{"alg":"ES256","kid":"es256","typ":"JWT"}"#, &claims(changes).to_string(), "ES256")
}

pub(super) fn bearer() -> Vec<TokenHeader> {
    vec![TokenHeader { name: "authorization".into(), prefix: "Bearer ".into() }]
}

/// A rule as it is sent: audience `store`, all keys given, header only.
pub(crate) fn rule() -> RawRule {
    RawRule {
        policy: "shop/tokens".into(),
        issuer: ISSUER.into(),
        audiences: vec!["store".into()],
        jwks: signers().jwks().to_string(),
        from_headers: bearer(),
        clock_skew: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        ..RawRule::default()
    }
}

/// Rules by way of the door.
pub(super) fn rules(rules: Vec<RawRule>) -> Arc<Authentication> {
    let mut parts = build::Parts::default();
    put(&mut parts, rules).unwrap();
    parts.assemble(1, &Snapshot::default()).authentication.unwrap()
}

pub(super) fn put(parts: &mut build::Parts, rules: Vec<RawRule>) -> Result<(), build::Rejected> {
    put_raw(parts, &Raw { rules, withheld: None })
}

pub(super) fn put_raw(parts: &mut build::Parts, raw: &Raw) -> Result<(), build::Rejected> {
    use prost::{Message as _, Name as _};
    let any = proto::xds::pack(raw);
    let version = proto::epoch::version(&any.encode_to_vec());
    parts.put(&Raw::type_url(), "inbound", &version, &any)
}

pub(super) fn request(target: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = http::Request::get(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

pub(super) fn with_bearer(token: &str) -> Parts {
    request("/", &[("authorization", &format!("Bearer {token}"))])
}

pub(super) fn judge_at(rules: &Authentication, request: &Parts, remembered: &mut Remembered, now_secs: u64) -> TokenVerdict {
    rules.judge(&RequestHead::new(&request.method, &request.uri, &request.headers), remembered, now_secs)
}

pub(super) fn judge(rules: &Authentication, request: &Parts) -> Result<Option<Arc<Accepted>>, TokenFault> {
    match judge_at(rules, request, &mut Remembered::new(1), NOW) {
        TokenVerdict::Without => Ok(None),
        TokenVerdict::Accepted(accepted) => Ok(Some(accepted)),
        TokenVerdict::Refused(fault) => Err(fault),
    }
}
