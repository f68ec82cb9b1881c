//! Usernames and passwords (RFC 7617). A password is verified elsewhere, since that takes long; what was verified is remembered for a while, by
//! a keyed hash and never itself.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use proto::mesh;
use xxhash_rust::xxh3::Xxh3;
use zeroize::Zeroizing;

use super::api_key::Fill;
use super::denied::Denied;
use crate::consumers::{AuthMethod, Book, ConsumerChoice, Digest, Identified, Owner, Password, Verified};
use crate::matching::RequestHead;
use crate::raw::duration;
use crate::rejected::Wrong;

/// Longest pair of username and password, in bytes.
pub const PAIR_BYTES_MAX: usize = 1_024;
/// Most callers whose failures are counted at a time, of one object; what comes beyond is counted together.
pub const FAILING_MAX: usize = 10_000;
/// How long failures count.
const FAILURES_PER: Duration = Duration::from_secs(60);
/// Most scopes.
const LISTED_MAX: usize = 16;
/// Longest name of a realm.
const REALM_BYTES_MAX: usize = 256;

/// What a rule demands of passwords.
#[derive(Debug)]
pub struct Basic {
    /// `NAMESPACE/NAME` of the object.
    pub policy: Arc<str>,
    /// Without any a request may go on.
    pub optional: bool,
    consumers: ConsumerChoice,
    /// The file of further users, if there is one.
    users: Option<Arc<str>>,
    challenge: HeaderValue,
    remembered: Duration,
    failures: Option<FailureLimit>,
    scopes: Vec<Box<str>>,
    keep: bool,
    pub(super) fills: Vec<Fill>,
}

/// How often somebody may fail.
#[derive(Debug)]
struct FailureLimit {
    per_minute: u32,
    /// Length of the prefix that stands for an IPv6 client.
    address: Option<u8>,
    user: bool,
    counts: Arc<Failures>,
}

/// Who failed lately, and how often. It outlives pushes by the object's name.
#[derive(Debug, Default)]
pub struct Failures(Mutex<HashMap<u128, (u64, u32)>>);

impl Failures {
    /// Whether so many failures are too many now.
    fn is_beyond(&self, key: u128, most: u32, now_secs: u64) -> bool {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.get(&key).or_else(|| counts.get(&OTHERS).filter(|_| counts.len() >= FAILING_MAX));
        own.is_some_and(|(since, count)| *count >= most && now_secs < since + FAILURES_PER.as_secs())
    }

    fn count(&self, key: u128, now_secs: u64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= FAILING_MAX && !counts.contains_key(&key) {
            counts.retain(|_, (since, _)| now_secs < *since + FAILURES_PER.as_secs());
        }
        let key = if counts.len() >= FAILING_MAX && !counts.contains_key(&key) { OTHERS } else { key };
        let own = counts.entry(key).or_insert((now_secs, 0));
        if now_secs >= own.0 + FAILURES_PER.as_secs() || now_secs < own.0 {
            *own = (now_secs, 0);
        }
        own.1 = own.1.saturating_add(1);
    }
}

/// Whoever there is no room for.
const OTHERS: u128 = 0;

/// What a request comes to.
pub(super) enum Judged {
    /// It shows no password.
    Nothing,
    /// Of this user.
    Somebody(Identified),
    /// The password has to be verified first.
    Asks(Password),
}

/// What is judged, and by what.
pub(super) struct AskedPassword<'a> {
    pub(super) book: &'a Book,
    pub(super) verified: &'a mut Verified,
    /// What came of a question before.
    pub(super) answer: Option<(Digest, bool)>,
    pub(super) address: IpAddr,
    pub(super) now_secs: u64,
}

impl Basic {
    pub(crate) fn compile(raw: &mesh::BasicAuth, failures: Arc<Failures>) -> Result<Self, Wrong> {
        let mesh::BasicAuth { policy, optional, consumers, users, realm, remembered, failures: limit, scopes, keep, headers } = raw;
        if scopes.len() > LISTED_MAX {
            return Err(Wrong::new("scopes", format!("holds {}, which is more than {LISTED_MAX}", scopes.len())));
        }
        if realm.len() > REALM_BYTES_MAX {
            return Err(Wrong::new("realm", format!("is longer than {REALM_BYTES_MAX} bytes")));
        }
        let quoted = realm.replace('\\', "\\\\").replace('"', "\\\"");
        let challenge = HeaderValue::try_from(format!("Basic realm=\"{quoted}\", charset=\"UTF-8\""))
            .map_err(|_| Wrong::new("realm", "is no header's value"))?;
        let choice = consumers.as_ref().map(ConsumerChoice::compile).transpose().map_err(|wrong| wrong.within("consumers"))?;
        let limit = limit.as_ref().map(|limit| {
            let mesh::FailureLimit { per_minute, client_address, ipv6_prefix, username } = limit;
            let prefix = u8::try_from(*ipv6_prefix).ok().filter(|prefix| (1..=128).contains(prefix)).unwrap_or(64);
            FailureLimit { per_minute: *per_minute, address: client_address.then_some(prefix), user: *username, counts: failures }
        });
        Ok(Self {
            policy: policy.as_str().into(),
            optional: *optional,
            consumers: choice.unwrap_or_default(),
            users: (!users.is_empty()).then(|| users.as_str().into()),
            challenge,
            remembered: duration(remembered.as_ref(), "remembered")?.unwrap_or_default(),
            failures: limit.filter(|limit| limit.per_minute > 0),
            scopes: scopes.iter().map(|scope| scope.as_str().into()).collect(),
            keep: *keep,
            fills: Fill::compile_all(headers)?,
        })
    }

    /// Whose password a request shows.
    ///
    /// # Errors
    /// It shows one that does not open this.
    pub(super) fn judge(&self, head: &RequestHead<'_>, asked: AskedPassword<'_>) -> Result<Judged, Denied> {
        let Some(shown) = shown(head)? else { return Ok(Judged::Nothing) };
        let (user, secret) = pair(&shown)?;
        let AskedPassword { book, verified, answer, address, now_secs } = asked;
        let (owner, hash) = self.whose(book, user);
        let file = self.users.clone().zip(hash.clone()).filter(|_| owner.is_none());
        let key = verified.known_by(user, secret, hash.as_deref().unwrap_or_default());
        let failing = self.failures.as_ref().map(|limit| (limit, limit.key(address, user)));
        let good = match answer.filter(|(of, _)| *of == key) {
            Some((_, good)) => good,
            None if hash.is_some() && verified.holds(&key, now_secs) => true,
            None => {
                if failing.is_some_and(|(limit, key)| limit.counts.is_beyond(key, limit.per_minute, now_secs)) {
                    return Err(Denied::TooMany);
                }
                return Ok(Judged::Asks(Password::new(secret, hash, key)));
            }
        };
        if !good {
            if let Some((limit, key)) = failing {
                limit.counts.count(key, now_secs);
            }
            return Err(Denied::Unknown);
        }
        if answer.is_some() && !self.remembered.is_zero() {
            verified.keep(key, now_secs.saturating_add(self.remembered.as_secs().max(1)));
        }
        let mut found = Identified {
            method: AuthMethod::Basic,
            consumer: None,
            credential: None,
            user: Some(user.into()),
            file,
            claims: None,
            until_secs: None,
        };
        if let Some((consumer, place)) = owner {
            let credential = consumer.credentials.get(place).ok_or(Denied::Unknown)?;
            found.until_secs = consumer.holds(credential, now_secs).map_err(Denied::from)?;
            (found.consumer, found.credential) = (Some(consumer), Some(place));
        }
        if !self.scopes.iter().all(|scope| found.has_scope(scope)) {
            return Err(Denied::Scope);
        }
        Ok(Judged::Somebody(found))
    }

    /// Who is called so: a user of the file, else a consumer that counts; and the hash of the password.
    fn whose(&self, book: &Book, user: &str) -> (Option<Owner>, Option<Arc<str>>) {
        if let Some(hash) = self.users.as_ref().and_then(|file| book.in_file(file, user)) {
            return (None, Some(Arc::clone(hash)));
        }
        let found = book.by_user(user).find(|((consumer, _), _)| self.consumers.takes(consumer));
        found.map_or((None, None), |(owner, hash)| (Some(owner), Some(Arc::clone(hash))))
    }

    /// Takes the password out of what is sent on, unless the backend is to see it.
    pub(super) fn strip(&self, request: &mut http::request::Parts) {
        if !self.keep {
            request.headers.remove(AUTHORIZATION);
        }
    }

    pub(super) fn challenge(&self) -> HeaderValue {
        self.challenge.clone()
    }

    /// In words.
    pub(super) fn story(&self) -> String {
        format!("{} asks for a password{}", self.policy, if self.optional { ", and lets requests without one on" } else { "" })
    }
}

impl FailureLimit {
    fn key(&self, address: IpAddr, user: &str) -> u128 {
        let mut hash = Xxh3::new();
        if let Some(prefix) = self.address {
            match address.to_canonical() {
                IpAddr::V4(v4) => hash.update(&v4.octets()),
                IpAddr::V6(v6) => hash.update(&(masked(v6, prefix)).to_be_bytes()),
            }
        }
        if self.user {
            hash.update(b"\0");
            hash.update(user.as_bytes());
        }
        // Nobody's is that of the others.
        hash.digest128().max(1)
    }
}

fn masked(address: Ipv6Addr, prefix: u8) -> u128 {
    let bits = u128::from(address);
    bits.checked_shr(128 - u32::from(prefix)).map_or(0, |high| high << (128 - u32::from(prefix)))
}

/// What stands behind `Basic` in the one header that may hold it; decoded.
fn shown(head: &RequestHead<'_>) -> Result<Option<Zeroizing<Vec<u8>>>, Denied> {
    let mut found: Option<&[u8]> = None;
    for value in head.headers.get_all(AUTHORIZATION) {
        let value = value.as_bytes();
        let Some((scheme, rest)) = value.split_at_checked(5) else { continue };
        if !scheme.eq_ignore_ascii_case(b"basic") || !rest.first().is_none_or(u8::is_ascii_whitespace) {
            continue;
        }
        let rest = rest.trim_ascii();
        if found.is_some_and(|other| other != rest) {
            return Err(Denied::Several);
        }
        found = Some(rest);
    }
    let Some(encoded) = found else { return Ok(None) };
    if encoded.len() > PAIR_BYTES_MAX * 4 / 3 + 4 {
        return Err(Denied::TooLong);
    }
    STANDARD.decode(encoded).map(Zeroizing::new).map(Some).map_err(|_| Denied::Malformed)
}

/// Username and password: the first colon parts them.
fn pair(shown: &[u8]) -> Result<(&str, &[u8]), Denied> {
    let at = shown.iter().position(|byte| *byte == b':').ok_or(Denied::Malformed)?;
    let user = std::str::from_utf8(&shown[..at]).map_err(|_| Denied::Malformed)?;
    Ok((user, &shown[at + 1..]))
}
