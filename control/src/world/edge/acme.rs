//! What a ClientPolicy says of certificates that are ordered (RFC 8555).

use std::fmt;

use super::Cursor;
use crate::world::content::ContentRef;
use crate::world::key::{Kind, ObjectKey};

/// Longest address of a directory, and of a mailbox, in bytes.
const TEXT_BYTES_MAX: usize = 1024;
/// The entry of an account's Secret that holds its key, where none is named.
const ACCOUNT_KEY: &str = "account.key";
/// When a certificate is renewed where its authority says nothing: after so much of its life.
const RENEW_AT_PERCENT: f64 = 66.0;

/// From whom certificates are ordered, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct AcmeTerms {
    /// Where the authority's directory is.
    pub directory: String,
    /// Whom it tells what concerns the account.
    pub email: Option<String>,
    /// How names are proved.
    pub challenge: AcmeChallenge,
    /// Of which kind keys of certificates are.
    pub key_type: AcmeKeyType,
    /// After so much of its life a certificate is renewed, unless its authority names a time.
    pub renew_at_percent: f64,
    /// The account's key in a Secret, beside what else that may hold: the directory's CA and an external account.
    pub account: Option<ContentRef>,
}

/// How a name is proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// By a certificate in a handshake at the listener's own port (RFC 8737).
    TlsAlpn01,
    /// By an answer at the Gateway's HTTP port (RFC 8555, section 8.3).
    Http01,
}

impl AcmeChallenge {
    /// As people write it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::TlsAlpn01 => "TlsAlpn01",
            Self::Http01 => "Http01",
        }
    }
}

/// A kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcmeKeyType {
    /// ECDSA with P-256.
    P256,
    /// ECDSA with P-384.
    P384,
    /// RSA with 2048 bits.
    Rsa2048,
}

impl fmt::Display for AcmeChallenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl AcmeTerms {
    pub(super) fn read(at: &Cursor<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let directory = fields.need("directory").and_then(|at| directory(&at));
        let email = fields.get("email").and_then(|at| email(&at));
        let challenges =
            [("TlsAlpn01", Some(AcmeChallenge::TlsAlpn01)), ("Http01", Some(AcmeChallenge::Http01)), ("Dns01", None::<AcmeChallenge>)];
        let challenge = match fields.get("challenge") {
            None => Some(AcmeChallenge::TlsAlpn01),
            Some(at) => {
                let word = at.word(&challenges);
                if word == Some(None) {
                    at.error(
                        "the challenge Dns01 is not supported by this version",
                        "use TlsAlpn01 or Http01; for wildcards name a Secret in certificateRefs",
                    );
                }
                word.flatten()
            }
        };
        let kinds = [("P256", AcmeKeyType::P256), ("P384", AcmeKeyType::P384), ("Rsa2048", AcmeKeyType::Rsa2048)];
        let key_type = fields.get("keyType").map_or(Some(AcmeKeyType::P256), |at| at.word(&kinds));
        let renew_at_percent = fields.get("renewAtPercent").map_or(Some(RENEW_AT_PERCENT), |at| {
            let percent = at.percent()?;
            if !(10.0..=95.0).contains(&percent) {
                at.error("a certificate is renewed neither at once nor at its end", "use 10 to 95");
                return None;
            }
            Some(percent)
        });
        let account = fields.get("accountSecretRef").and_then(|at| account(&at));
        fields.unsupported(&["dns01"]);
        fields.done();
        Some(Self {
            directory: directory?,
            email,
            challenge: challenge?,
            key_type: key_type?,
            renew_at_percent: renew_at_percent?,
            account,
        })
    }
}

/// `https:`, or `http:` to this machine, where somebody tries it out.
fn directory(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    let uri: Option<http::Uri> = text.parse().ok();
    let host = uri.as_ref().and_then(|uri| uri.host()).unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    let scheme = uri.as_ref().and_then(|uri| uri.scheme_str());
    if host.is_empty() || text.len() > TEXT_BYTES_MAX || !(scheme == Some("https") || scheme == Some("http") && loopback) {
        at.error(
            format!("`{}` is no address of a directory", text.chars().take(64).collect::<String>().escape_debug()),
            "write it as https://HOST/PATH",
        );
        return None;
    }
    Some(text)
}

fn email(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    let fits = text.len() <= TEXT_BYTES_MAX
        && text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty() && !host.contains('@'))
        && !text.contains(|one: char| one.is_whitespace() || one.is_control() || ",?<>".contains(one));
    if !fits {
        at.error("it is no address of a mailbox", "write it as ops@shop.example");
        return None;
    }
    Some(text)
}

/// `{name, key}` of a Secret in the object's namespace; without a key `account.key`.
fn account(at: &Cursor<'_>) -> Option<ContentRef> {
    let mut fields = at.fields();
    let name = fields.need("name").and_then(|at| at.text());
    let key = fields.get("key").map_or(Some(ACCOUNT_KEY.to_owned()), |at| at.text());
    fields.done();
    Some(ContentRef { object: ObjectKey::new(Kind::Secret, &at.key().namespace, name?), key: key? })
}
