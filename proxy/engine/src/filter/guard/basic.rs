//! Usernames and passwords (RFC 7617). A password is verified elsewhere, since that takes long; what was verified is remembered for a while, by
//! a keyed hash and never itself.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use proto::mesh;
use zeroize::Zeroizing;

use super::api_key::Fill;
use super::denied::Denied;
use super::failures::{Failing, Failures};
use crate::consumers::{AuthMethod, Book, ConsumerChoice, Digest, Identified, Owner, Password, Verified};
use crate::matching::RequestHead;
use crate::raw::duration;
use crate::rejected::Wrong;

/// Longest pair of username and password, in bytes.
pub const PAIR_BYTES_MAX: usize = 1_024;
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
                return Ok(Judged::Asks(match hash {
                    Some(_) => Password::new(secret, hash, key),
                    None => Password::of_nobody(secret, book.typical(self.users.as_deref()).cloned(), key),
                }));
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

    /// Takes the password out of what is sent on, unless the backend is to see it. What else stands in that header is somebody else's.
    pub(super) fn strip(&self, request: &mut http::request::Parts) {
        if self.keep {
            return;
        }
        let is_other = |value: &&HeaderValue| of_scheme(value.as_bytes()).is_none();
        let others: Vec<HeaderValue> = request.headers.get_all(AUTHORIZATION).iter().filter(is_other).cloned().collect();
        request.headers.remove(AUTHORIZATION);
        others.into_iter().for_each(|value| _ = request.headers.append(AUTHORIZATION, value));
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
    fn key(&self, address: IpAddr, user: &str) -> Failing {
        Failing::of(address, self.address, self.user.then_some(user))
    }
}

/// What stands behind `Basic` in the one header that may hold it; decoded.
fn shown(head: &RequestHead<'_>) -> Result<Option<Zeroizing<Vec<u8>>>, Denied> {
    let mut found: Option<&[u8]> = None;
    for value in head.headers.get_all(AUTHORIZATION) {
        let Some(rest) = of_scheme(value.as_bytes()) else { continue };
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

/// What stands behind `Basic`; `None`: it is of another scheme.
fn of_scheme(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(5)?;
    let is_basic = scheme.eq_ignore_ascii_case(b"basic") && rest.first().is_none_or(u8::is_ascii_whitespace);
    is_basic.then(|| rest.trim_ascii())
}

/// Username and password: the first colon parts them.
fn pair(shown: &[u8]) -> Result<(&str, &[u8]), Denied> {
    let at = shown.iter().position(|byte| *byte == b':').ok_or(Denied::Malformed)?;
    let user = std::str::from_utf8(&shown[..at]).map_err(|_| Denied::Malformed)?;
    Ok((user, &shown[at + 1..]))
}
