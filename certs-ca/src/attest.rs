//! Who may have a leaf: by one-time join token (here), by Kubernetes service account ([`ServiceAccountVerifier`]), by the leaf it has.
//!
//! A token is bound to one workload (and, when wished, one instance), lives for [`LIFE_DEFAULT`] unless said otherwise, and works
//! once. The authority keeps only a hash of its secret, and a used token until it expires, so that a second use can be told from an
//! unknown token. A refused attempt does not use it up: the secret has 256 bits, there is nothing to guess.

mod attempts;
mod service_account;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proto::identity::Identity;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::csr::{Csr, is_name};
use crate::roots::sha256;

pub use attempts::{
    ADDRESS_BURST, ADDRESS_PER_MINUTE, Attempts, GATE_BURST, GATE_PER_MINUTE, INSTANCE_BURST, INSTANCE_PER_LIFE, INSTANCE_PER_MINUTE,
    Limited, REMEMBERED_MAX, WORKLOAD_BURST, WORKLOAD_PER_MINUTE,
};
pub use service_account::{AUDIENCE, Pod, ServiceAccount, ServiceAccountError, ServiceAccountVerifier, TOKEN_BYTES_MAX};

/// By what a caller proved who it is; as `ca audit` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attestation {
    /// A one-time join token.
    Token,
    /// The leaf it had.
    Certificate,
    /// A Kubernetes service-account token.
    ServiceAccount,
}

impl Attestation {
    /// As printed.
    pub fn text(self) -> &'static str {
        match self {
            Self::Token => "Token",
            Self::Certificate => "Certificate",
            Self::ServiceAccount => "ServiceAccount",
        }
    }
}

/// Life of a token unless asked otherwise: long enough to carry it to a machine by hand, too short to lie around.
pub const LIFE_DEFAULT: Duration = Duration::from_secs(15 * 60);
/// Longest life that may be asked for.
pub const LIFE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes of a secret.
pub const SECRET_BYTES: usize = 32;
/// A longer text is no token.
pub const TOKEN_CHARS_MAX: usize = 4096;
const PREFIX: &str = "mw1.";

/// A token in clear, as its bearer holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// `NS/NAME`.
    pub workload: String,
    /// Lower-case hex SHA-256 of the root, so that the bearer knows the server before it speaks.
    pub ca: String,
    /// base64url.
    pub secret: String,
    /// The identity it admits, so that the bearer asks for just that; absent in tokens of older authorities.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub identity: String,
}

impl Token {
    /// `mw1.` + base64url(JSON).
    pub fn encode(&self) -> String {
        // A struct of strings always serialises.
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default()))
    }

    /// Reads a token; surrounding white space is ignored.
    ///
    /// # Errors
    /// [`TokenError::Malformed`].
    pub fn decode(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TOKEN_CHARS_MAX {
            return Err(TokenError::Malformed("it is too long"));
        }
        let body = text.strip_prefix(PREFIX).ok_or(TokenError::Malformed("it does not start with `mw1.`"))?;
        let json = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Malformed("it is not base64url"))?;
        serde_json::from_slice(&json).map_err(|_| TokenError::Malformed("its content is not ours"))
    }

    /// Under which name the store keeps it. A hash: reading the store gives no token.
    pub fn key(&self) -> String {
        sha256(self.secret.as_bytes())
    }
}

/// What the store knows of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// `NS/NAME`.
    pub workload: String,
    /// The identity its bearer gets.
    pub identity: String,
    /// The only instance that may use it; `None`: any.
    pub instance: Option<String>,
    /// Seconds since 1970.
    pub expires: i64,
    /// Seconds since 1970, once used.
    pub used: Option<i64>,
}

/// Why a token opens nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token.
    #[error("this is not a join token ({0}); make one with `meshwright token create --workload NS/NAME`")]
    Malformed(&'static str),
    /// Not in the store.
    #[error(
        "this join token for {workload} is not known here: it expired, or another control plane made it; make a new one with `meshwright token create --workload {workload}`"
    )]
    Unknown {
        /// As the token says.
        workload: String,
    },
    /// A second use.
    #[error(
        "this join token for {workload} was used before, at {at}; a token works once: make a new one with `meshwright token create --workload {workload}`"
    )]
    Used {
        /// As granted.
        workload: String,
        /// RFC 3339.
        at: String,
    },
    /// Too late.
    #[error("this join token for {workload} expired at {at}; make a new one with `meshwright token create --workload {workload}`")]
    Expired {
        /// As granted.
        workload: String,
        /// RFC 3339.
        at: String,
    },
    /// The request asks for something else than was granted.
    #[error("this join token is for {granted}, the request is for {asked}")]
    Other {
        /// What the token grants.
        granted: String,
        /// What was asked for.
        asked: String,
    },
}

impl Grant {
    /// Whether this grant covers that request, now. Pure; taking it is the store's.
    ///
    /// # Errors
    /// [`TokenError::Used`], [`TokenError::Expired`] or [`TokenError::Other`].
    pub fn covers(&self, csr: &Csr, instance: &str, now: OffsetDateTime) -> Result<Identity, TokenError> {
        let workload = self.workload.clone();
        if let Some(used) = self.used {
            return Err(TokenError::Used { workload, at: moment(used) });
        }
        if now.unix_timestamp() >= self.expires {
            return Err(TokenError::Expired { workload, at: moment(self.expires) });
        }
        let other = |granted: &str, asked: String| Err(TokenError::Other { granted: granted.to_owned(), asked });
        if csr.identity.to_string() != self.identity {
            return other(&self.identity, csr.identity.to_string());
        }
        let asked = format!("{}/{}", csr.identity.namespace(), csr.workload);
        if asked != self.workload {
            return other(&self.workload, asked);
        }
        match &self.instance {
            Some(granted) if granted != instance => other(&format!("instance {granted}"), format!("instance `{instance}`")),
            _ => Ok(csr.identity.clone()),
        }
    }
}

/// Splits `NS/NAME`.
pub fn split_workload(text: &str) -> Option<(&str, &str)> {
    text.split_once('/').filter(|(namespace, name)| is_name(namespace) && is_name(name))
}

/// RFC 3339 of seconds since 1970; empty when out of range.
pub fn moment(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds).map(rfc3339).unwrap_or_default()
}

/// RFC 3339.
pub fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csr::tests::request;

    #[test]
    fn a_token_reads_back_and_noise_does_not() {
        // Aim: the published form round-trips; anything else is refused with the remedy.
        let token = Token { workload: "shop/catalog".into(), ca: "ab".into(), secret: "s".into(), identity: String::new() };
        assert!(token.encode().starts_with("mw1."));
        assert_eq!(Token::decode(&format!(" {}\n", token.encode())).unwrap(), token);
        for noise in ["", "mw1.", "mw1.####", "mw2.abcd", "mw1.e30", &"x".repeat(5000)] {
            assert!(matches!(Token::decode(noise), Err(TokenError::Malformed(_))), "{noise}");
        }
    }

    #[test]
    fn a_grant_covers_its_own_workload_once_and_in_time() {
        // Aim: each way to misuse a token has its own error.
        let now = OffsetDateTime::from_unix_timestamp(1000).unwrap();
        let grant = Grant {
            workload: "shop/catalog".into(),
            identity: "spiffe://cluster.local/ns/shop/sa/catalog".into(),
            instance: Some("catalog-0".into()),
            expires: 1001,
            used: None,
        };
        let csr = |sa: &str, workload: &str| Csr::parse(&request(&[&format!("spiffe://cluster.local/ns/shop/sa/{sa}")], workload)).unwrap();
        assert!(grant.covers(&csr("catalog", "catalog"), "catalog-0", now).is_ok());
        for (csr, instance, seconds, why) in [
            (csr("admin", "catalog"), "catalog-0", 0, "the request is for spiffe://cluster.local/ns/shop/sa/admin"),
            (csr("catalog", "admin"), "catalog-0", 0, "the request is for shop/admin"),
            (csr("catalog", "catalog"), "catalog-1", 0, "instance `catalog-1`"),
            (csr("catalog", "catalog"), "catalog-0", 1, "expired at 1970"),
        ] {
            let error = grant.covers(&csr, instance, now + Duration::from_secs(seconds)).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let used = Grant { used: Some(999), ..grant };
        assert!(used.covers(&csr("catalog", "catalog"), "catalog-0", now).unwrap_err().to_string().contains("used before"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,80}", body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            // Aim: no token makes it panic, whether it is text, base64 of bytes, or JSON of another shape.
            let _ = Token::decode(&text);
            let _ = Token::decode(&format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&body)));
            let _ = Token::decode(&format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(serde_json::json!({"workload": text, "ca": 1}).to_string())));
            if let Some((namespace, name)) = split_workload(&text) {
                proptest::prop_assert!(!namespace.is_empty() && !name.is_empty());
            }
        }
    }
}
