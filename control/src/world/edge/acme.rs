//! What a ClientPolicy says of certificates that are ordered (RFC 8555).

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Cursor, timeout};
use crate::world::content::ContentRef;
use crate::world::key::{Kind, ObjectKey};
use crate::world::route::Reference;

/// Longest address of a directory, and of a mailbox, in bytes.
const TEXT_BYTES_MAX: usize = 1024;
/// The entry of an account's Secret that holds its key, where none is named.
const ACCOUNT_KEY: &str = "account.key";
/// How long a webhook that writes DNS is waited for, where nothing else is said.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// Resolvers that are asked, at most.
const RESOLVERS_MAX: usize = 3;
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
    /// Who writes DNS, of the challenge Dns01 alone.
    pub dns: Option<AcmeDns>,
}

/// How records come into DNS that prove a name.
#[derive(Clone, Debug, PartialEq)]
pub struct AcmeDns {
    /// The object that says it, from which its reference leads.
    pub policy: ObjectKey,
    /// The Service that writes them.
    pub webhook: Reference,
    /// How long it is waited for.
    pub timeout: Duration,
    /// Who is asked whether they are there; none: the machine's own resolvers.
    pub resolvers: Vec<SocketAddr>,
}

/// How a name is proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// By a certificate in a handshake at the listener's own port (RFC 8737).
    TlsAlpn01,
    /// By an answer at the Gateway's HTTP port (RFC 8555, section 8.3).
    Http01,
    /// By a record in DNS (RFC 8555, section 8.4), the only one for a wildcard.
    Dns01,
}

impl AcmeChallenge {
    /// As people write it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::TlsAlpn01 => "TlsAlpn01",
            Self::Http01 => "Http01",
            Self::Dns01 => "Dns01",
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
        let challenges = [("TlsAlpn01", AcmeChallenge::TlsAlpn01), ("Http01", AcmeChallenge::Http01), ("Dns01", AcmeChallenge::Dns01)];
        let challenge = fields.get("challenge").map_or(Some(AcmeChallenge::TlsAlpn01), |at| at.word(&challenges));
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
        let said = fields.get("dns01");
        match (&said, challenge) {
            (None, Some(AcmeChallenge::Dns01)) => {
                fields.at().error("the challenge Dns01 needs somebody who writes DNS", "name that Service in dns01.webhook.backendRef");
                return None;
            }
            (Some(at), Some(AcmeChallenge::TlsAlpn01 | AcmeChallenge::Http01)) => {
                at.error("it is for the challenge Dns01, and another one is used", "write `challenge: Dns01`, or remove it");
                return None;
            }
            _ => {}
        }
        let dns = said.map(|at| AcmeDns::read(&at));
        fields.done();
        Some(Self {
            directory: directory?,
            email,
            challenge: challenge?,
            key_type: key_type?,
            renew_at_percent: renew_at_percent?,
            account,
            dns: dns.map_or(Some(None), |dns| dns.map(Some))?,
        })
    }
}

impl AcmeDns {
    fn read(at: &Cursor<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let webhook = fields.need("webhook").and_then(|at| {
            let mut fields = at.fields();
            let to = fields.need("backendRef").and_then(|at| {
                let mut reference = at.fields();
                let to = Reference::read(&mut reference);
                reference.done();
                to
            });
            let waited = fields.get("timeout").map_or(Some(WEBHOOK_TIMEOUT), |at| timeout(&at));
            fields.done();
            Some((to?, waited?))
        });
        let resolvers = fields.get("resolvers").map_or(Some(Vec::new()), |at| resolvers(&at));
        fields.done();
        let (webhook, timeout) = webhook?;
        Some(Self { policy: at.key().clone(), webhook, timeout, resolvers: resolvers? })
    }
}

/// Addresses of resolvers, with a port or without.
fn resolvers(at: &Cursor<'_>) -> Option<Vec<SocketAddr>> {
    const PORT: u16 = 53;
    let one = |at: &Cursor<'_>| {
        let text = at.text()?;
        let address = text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse().ok()?, PORT)));
        if address.is_none() {
            at.error(format!("`{}` is no address of a resolver", text.escape_debug()), "write it as 192.0.2.53 or 192.0.2.53:5353");
        }
        address
    };
    at.list(RESOLVERS_MAX).iter().map(one).collect()
}

/// `https:`, or `http:` to this machine, where somebody tries it out.
fn directory(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    let uri: Option<http::Uri> = text.parse().ok();
    let host = uri.as_ref().and_then(|uri| uri.host()).unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    let scheme = uri.as_ref().and_then(|uri| uri.scheme_str());
    let user = uri.as_ref().and_then(|uri| uri.authority()).is_some_and(|authority| authority.as_str().contains('@'));
    if host.is_empty() || user || text.len() > TEXT_BYTES_MAX || !(scheme == Some("https") || scheme == Some("http") && loopback) {
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
