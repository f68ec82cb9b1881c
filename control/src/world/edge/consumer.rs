//! Consumer: who calls from outside, and what they show.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use super::Cursor;
use super::value::name;
use crate::world::content::ContentRef;
use crate::world::door::Fields;
use crate::world::{Kind, ObjectKey};

/// Most credentials of one consumer.
pub const CREDENTIALS_MAX: usize = 32;
/// Most groups.
const GROUPS_MAX: usize = 64;
/// Most attributes, scopes and claims, of each.
const LISTED_MAX: usize = 32;
/// Longest group, team and credential's name: they stand in headers and logs.
const WORD_BYTES_MAX: usize = 63;
/// Longest beginning of a key that may be told.
const PREFIX_BYTES_MAX: usize = 16;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Consumer {
    /// Whose it is; `None`: its namespace's.
    pub team: Option<String>,
    /// For people.
    pub display_name: Option<String>,
    /// What policies speak of it by.
    pub groups: Vec<String>,
    /// Further words, for expressions and keys of limits.
    pub attributes: BTreeMap<String, String>,
    /// It may not call.
    pub disabled: bool,
    /// From then on it may not; milliseconds since 1970.
    pub expires_ms: Option<i64>,
    /// What it shows.
    pub credentials: Vec<Credential>,
}

/// One credential.
#[derive(Clone, Debug, PartialEq)]
pub struct Credential {
    /// Its name.
    pub name: String,
    /// Before, it does not hold; milliseconds since 1970.
    pub not_before_ms: Option<i64>,
    /// From then on it does not hold.
    pub expires_ms: Option<i64>,
    /// What it is good for.
    pub scopes: Vec<String>,
    /// What is shown.
    pub kind: CredentialKind,
    /// Line in the file.
    pub line: u32,
}

/// What is shown.
#[derive(Clone, Debug, PartialEq)]
pub enum CredentialKind {
    /// An API key, known by its SHA-256.
    Key {
        /// The hash.
        sha256: [u8; 32],
        /// What of the key may be told.
        prefix: String,
    },
    /// An API key that stands in a Secret.
    KeyIn(ContentRef),
    /// A username, and the hash of its password, which stands in a Secret.
    Basic {
        /// The username.
        username: String,
        /// Where the hash stands.
        hash: ContentRef,
    },
    /// Tokens of an issuer with such claims.
    Jwt {
        /// `iss`.
        issuer: String,
        /// Each must be so.
        claims: BTreeMap<String, String>,
    },
    /// A client certificate of that URI.
    CertificateUri(String),
    /// A client certificate of that DNS name.
    CertificateDns(String),
    /// A client certificate of that SHA-256.
    CertificateHash([u8; 32]),
}

/// How many pages Consumers stand on, on their way to proxies: a change of one sends one page.
pub const CONSUMER_PAGES: u8 = 128;

/// The page that a Consumer stands on.
pub fn consumer_page(key: &ObjectKey) -> u8 {
    page_of(&key.path())
}

/// The page for a name.
pub fn page_of(name: &str) -> u8 {
    (xxh3_64(name.as_bytes()) % u64::from(CONSUMER_PAGES)) as u8
}

/// Who claims what somebody older has, or what is more than there is room for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Consumer, to names of its credentials that do not count and who has them; nobody: there is no room.
    pub lost: BTreeMap<ObjectKey, Vec<(String, Option<ObjectKey>)>>,
    /// Files with more users than there is room for, and how many of each count.
    pub short: BTreeMap<ContentRef, usize>,
}

impl Claims {
    /// The credentials of a Consumer that do not count.
    pub fn lost_of(&self, key: &ObjectKey) -> &[(String, Option<ObjectKey>)] {
        self.lost.get(key).map_or(&[], Vec::as_slice)
    }

    /// How many users of a file may count.
    pub fn room_of(&self, file: &ContentRef) -> usize {
        self.short.get(file).copied().unwrap_or(usize::MAX)
    }
}

impl Consumer {
    pub(in crate::world) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let mut read = Self {
            team: fields.get("team").and_then(|at| word(&at)),
            display_name: fields.get("displayName").and_then(|at| name(&at)),
            groups: fields.get("groups").map(|at| each_once(&at, GROUPS_MAX, word)).unwrap_or_default(),
            disabled: fields.get("disabled").is_some_and(|at| at.flag() == Some(true)),
            expires_ms: fields.get("expiresAt").and_then(|at| at.timestamp()),
            ..Self::default()
        };
        if let Some(at) = fields.get("attributes") {
            let entries = at.entries();
            if entries.len() > LISTED_MAX {
                at.error(format!("{} attributes", entries.len()), format!("use at most {LISTED_MAX}"));
            }
            read.attributes = entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), name(&value)?))).collect();
        }
        if let Some(at) = fields.get("credentials") {
            for item in at.list(CREDENTIALS_MAX) {
                let Some(credential) = Credential::read(&item) else { continue };
                if read.credentials.iter().any(|known| known.name == credential.name) {
                    item.error(format!("a credential `{}` stands twice", credential.name), "give each its own name");
                }
                read.credentials.push(credential);
            }
        }
        fields.done();
        Some(read)
    }

    /// Every entry of a Secret that it names.
    pub fn refers(&self) -> impl Iterator<Item = &ContentRef> {
        self.credentials.iter().filter_map(|credential| match &credential.kind {
            CredentialKind::KeyIn(at) | CredentialKind::Basic { hash: at, .. } => Some(at),
            _ => None,
        })
    }
}

impl Credential {
    fn read(at: &Cursor<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let name = fields.need("name").and_then(|at| word(&at));
        let (not_before_ms, expires_ms) = (
            fields.get("notBefore").and_then(|at| at.timestamp()),
            fields.get("expiresAt").and_then(|at| at.timestamp().map(|time| (time, at))),
        );
        if let (Some(from), Some((until, at))) = (not_before_ms, &expires_ms)
            && from >= *until
        {
            at.error("it ends before it begins", "expiresAt comes after notBefore");
        }
        let scopes = fields.get("scopes").map(|at| each_once(&at, LISTED_MAX, super::value::name)).unwrap_or_default();
        let kinds = [fields.get("apiKey"), fields.get("basic"), fields.get("jwt"), fields.get("certificate")];
        fields.done();
        let kind = match kinds {
            [Some(at), None, None, None] => api_key(&at),
            [None, Some(at), None, None] => basic(&at),
            [None, None, Some(at), None] => jwt(&at),
            [None, None, None, Some(at)] => certificate(&at),
            _ => {
                at.error("a credential is exactly one of apiKey, basic, jwt and certificate", "write one of them");
                None
            }
        };
        Some(Self { name: name?, not_before_ms, expires_ms: expires_ms.map(|(until, _)| until), scopes, kind: kind?, line: at.line() })
    }
}

fn api_key(at: &Cursor<'_>) -> Option<CredentialKind> {
    let mut fields = at.fields();
    let (hash, prefix, secret) = (fields.get("sha256"), fields.get("prefix"), fields.get("secretRef"));
    fields.done();
    match (hash, secret) {
        (Some(at), None) => {
            let prefix = match prefix {
                Some(at) => {
                    let text = at.text()?;
                    let fits =
                        text.len() <= PREFIX_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
                    if !fits {
                        at.error(
                            format!("`{}` is no beginning of a key", text.escape_debug()),
                            format!("use at most {PREFIX_BYTES_MAX} letters, digits, `_` and `-`"),
                        );
                    }
                    text
                }
                None => String::new(),
            };
            Some(CredentialKind::Key { sha256: digest(&at)?, prefix })
        }
        (None, Some(at)) => {
            if let Some(prefix) = prefix {
                prefix.error("a key in a Secret has no prefix of its own", "remove it");
            }
            entry(&at).map(CredentialKind::KeyIn)
        }
        _ => {
            at.error("it says not which key", "write either sha256 (`meshwright key create` makes one) or secretRef");
            None
        }
    }
}

fn basic(at: &Cursor<'_>) -> Option<CredentialKind> {
    let mut fields = at.fields();
    let username = fields.need("username").and_then(|at| {
        let text = name(&at)?;
        // RFC 7617, section 2.
        if text.contains(':') || text.chars().any(char::is_control) {
            at.error("a username holds neither `:` nor control characters", "choose another");
            return None;
        }
        Some(text)
    });
    let hash = fields.need("secretRef").and_then(|at| entry(&at));
    fields.done();
    Some(CredentialKind::Basic { username: username?, hash: hash? })
}

fn jwt(at: &Cursor<'_>) -> Option<CredentialKind> {
    let mut fields = at.fields();
    let issuer = fields.need("issuer").and_then(|at| name(&at));
    let claims = fields.need("claims").map(|at| (at.entries(), at));
    fields.done();
    let (entries, at) = claims?;
    if entries.is_empty() || entries.len() > LISTED_MAX {
        at.error(
            format!("{} claims", entries.len()),
            format!("name 1 to {LISTED_MAX}: without any, every token of the issuer would be this consumer's"),
        );
    }
    let claims = entries.into_iter().filter_map(|(claim, value)| Some((claim.to_owned(), name(&value)?))).collect();
    Some(CredentialKind::Jwt { issuer: issuer?, claims })
}

fn certificate(at: &Cursor<'_>) -> Option<CredentialKind> {
    let mut fields = at.fields();
    let kinds = [fields.get("uri"), fields.get("dns"), fields.get("sha256")];
    fields.done();
    match kinds {
        [Some(at), None, None] => name(&at).map(CredentialKind::CertificateUri),
        [None, Some(at), None] => name(&at).map(|dns| CredentialKind::CertificateDns(dns.to_lowercase())),
        [None, None, Some(at)] => digest(&at).map(CredentialKind::CertificateHash),
        _ => {
            at.error("a certificate is known by exactly one of uri, dns and sha256", "write one of them");
            None
        }
    }
}

/// A SHA-256 in hex.
fn digest(at: &Cursor<'_>) -> Option<[u8; 32]> {
    let text = at.text()?;
    let nibble = |byte: u8| (byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes: Option<Vec<u8>> = text
        .as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
            _ => None,
        })
        .collect();
    let read = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    if read.is_none() {
        at.error("it is no SHA-256", "write 64 hexadecimal digits");
    }
    read
}

/// `{name, key}` of a Secret in the object's namespace.
pub(in crate::world) fn entry(at: &Cursor<'_>) -> Option<ContentRef> {
    let mut fields = at.fields();
    let (name, key) = (fields.need("name").and_then(|at| at.text()), fields.need("key").and_then(|at| at.text()));
    fields.done();
    Some(ContentRef { object: ObjectKey::new(Kind::Secret, &at.key().namespace, name?), key: key? })
}

/// A name that may stand in headers and logs.
fn word(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    let fits =
        (1..=WORD_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !fits {
        at.error(
            format!("`{}` is no such name", text.chars().take(WORD_BYTES_MAX).collect::<String>().escape_debug()),
            "use 1 to 63 letters, digits, `-`, `_` and `.`",
        );
        return None;
    }
    Some(text)
}

fn each_once(at: &Cursor<'_>, max: usize, read: fn(&Cursor<'_>) -> Option<String>) -> Vec<String> {
    let mut once: Vec<String> = Vec::new();
    for item in at.list(max) {
        let Some(text) = read(&item) else { continue };
        if once.contains(&text) {
            item.error(format!("`{text}` stands twice"), "remove one of them");
        }
        once.push(text);
    }
    once
}
