//! BasicAuth: whose passwords open a route.

use std::time::Duration;

use super::api_key::{ConsumerChoice, Forward, mode};
use super::consumer::entry;
use super::value::name;
use super::{Cursor, EdgeAttachment};
use crate::world::content::ContentRef;
use crate::world::door::Fields;

/// Most scopes.
const LISTED_MAX: usize = 16;
/// Longest name of a realm.
const REALM_BYTES_MAX: usize = 256;
/// A verified pair is remembered so long at most.
const REMEMBERED_MAX: Duration = Duration::from_secs(3600);
/// Most pairs that are remembered, of one object as of all.
const ENTRIES_MAX: i64 = engine::consumers::VERIFIED_MAX as i64;

/// Who shows a password. Fields that are absent are said by the next wider object, else by the defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BasicAuth {
    /// Where it holds.
    pub attachment: EdgeAttachment,
    /// Whether a request without a password is let through.
    pub optional: Option<bool>,
    /// Whose passwords count.
    pub consumers: Option<ConsumerChoice>,
    /// A file of further users (htpasswd).
    pub users: Option<ContentRef>,
    /// What clients show to their users.
    pub realm: Option<String>,
    /// How long a verified pair is remembered.
    pub remembered: Option<Duration>,
    /// How often somebody may fail; `Some(None)`: as often as they like.
    pub failures: Option<Option<FailureLimit>>,
    /// What the credential must be good for.
    pub scopes: Option<Vec<String>>,
    /// What the backend sees.
    pub forward: Forward,
}

/// How often somebody may fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureLimit {
    /// So often within a minute.
    pub per_minute: u32,
    /// By client address: length of the prefix that stands for one of IPv6.
    pub address: Option<u8>,
    /// By username.
    pub user: bool,
}

impl Default for FailureLimit {
    fn default() -> Self {
        Self { per_minute: 10, address: Some(IPV6_PREFIX), user: true }
    }
}

/// What stands for one IPv6 client.
const IPV6_PREFIX: u8 = 64;

impl BasicAuth {
    pub(in crate::world) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let mut read = Self { attachment: EdgeAttachment::read(&mut fields), optional: mode(&mut fields), ..Self::default() };
        read.consumers = fields.get("consumers").map(|at| ConsumerChoice::read(&at));
        if let Some(at) = fields.get("users") {
            let mut users = at.fields();
            read.users = users.need("secretRef").and_then(|at| entry(&at));
            users.done();
        }
        read.realm = fields.get("realm").and_then(|at| {
            let text = name(&at)?;
            if text.len() > REALM_BYTES_MAX || text.chars().any(char::is_control) {
                at.error("it is no realm", format!("use up to {REALM_BYTES_MAX} bytes without control characters"));
            }
            Some(text)
        });
        if let Some(at) = fields.get("verifyCache") {
            let mut cache = at.fields();
            read.remembered = cache.get("ttl").and_then(|at| {
                let ttl = at.duration()?;
                if ttl > REMEMBERED_MAX {
                    at.error("it is longer than an hour", "use at most 1h: a password that was changed elsewhere is believed so long");
                }
                Some(ttl)
            });
            cache.get("entries").and_then(|at| at.int(ENTRIES_MAX..=ENTRIES_MAX));
            cache.done();
        }
        read.failures = fields.get("failures").map(|at| failures(&at));
        read.scopes = fields.get("scopes").map(|at| at.list(LISTED_MAX).iter().filter_map(name).collect());
        read.forward = fields.get("forward").map(|at| Forward::read(&at)).unwrap_or_default();
        fields.done();
        Some(read)
    }
}

fn failures(at: &Cursor<'_>) -> Option<FailureLimit> {
    let mut fields = at.fields();
    let per_minute = fields.get("perMinute").and_then(|at| at.int(0..=1_000_000)).and_then(|most| u32::try_from(most).ok());
    let mut limit = FailureLimit { per_minute: per_minute.unwrap_or(10), ..FailureLimit::default() };
    if let Some(at) = fields.get("key") {
        (limit.address, limit.user) = (None, false);
        for item in at.list(2) {
            let mut part = item.fields();
            let (address, user) = (part.get("clientAddress"), part.get("username"));
            part.done();
            match (address, user) {
                (Some(at), None) => {
                    let mut address = at.fields();
                    let prefix = address.get("ipv6Prefix").and_then(|at| at.int(1..=128)).and_then(|prefix| u8::try_from(prefix).ok());
                    address.done();
                    limit.address = Some(prefix.unwrap_or(IPV6_PREFIX));
                }
                (None, Some(at)) => {
                    at.fields().done();
                    limit.user = true;
                }
                _ => item.error("a part of the key is one of clientAddress and username", "write for example `{clientAddress: {}}`"),
            }
        }
    }
    fields.done();
    (limit.per_minute > 0).then_some(limit)
}
