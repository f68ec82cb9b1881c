//! Opaque tokens, which an authorization server knows (RFC 7662). What is asked and what an answer means is said here; the asking is the shell's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header, request};
use proto::mesh;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::denied::Denied;
use super::external::encoded;
use super::places::{self, ShownCredential};
use crate::authenticate::{KeysUri, TOKEN_BYTES_MAX, TokenPlace};
use crate::callout::{CalloutAnswer, CalloutAway, CalloutKind, CalloutLive, CalloutOutcome, CalloutTold, Callouts};
use crate::claims::Claims;
use crate::consumers::{Book, ConsumerChoice, Digest, digest};
use crate::matching::RequestHead;
use crate::raw::duration;
use crate::rejected::Wrong;

/// Most tokens that are remembered for one object.
pub const REMEMBERED_MAX: usize = 10_000;
/// Longest that the server's word counts.
const REMEMBERED_FOR_MAX: Duration = Duration::from_secs(3600);
/// Longest that the server is waited for.
const TIMEOUT_MAX: Duration = super::external::TIMEOUT_MAX;
/// Clocks may differ by so much.
const SKEW_SECS: u64 = 30;

/// How one object has opaque tokens judged.
#[derive(Debug)]
pub struct Introspection {
    /// `NAMESPACE/NAME` of the object.
    pub policy: Arc<str>,
    /// Of whom its tokens may be.
    pub(super) consumers: ConsumerChoice,
    at: Option<KeysUri>,
    issuer: Arc<str>,
    client: Option<(String, Box<str>)>,
    places: Vec<TokenPlace>,
    remembered: Duration,
    timeout: Duration,
    allow_without: bool,
    keep: bool,
    live: Arc<CalloutLive>,
    known: Mutex<KnownTokens>,
}

/// What the server said, by what a token is known by. When the younger is full it becomes the older, whose tokens are forgotten.
#[derive(Debug, Default)]
struct KnownTokens {
    young: HashMap<Digest, KnownToken>,
    old: HashMap<Digest, KnownToken>,
}

/// Until when it counts, and what was said: nothing of a token that is not active.
type KnownToken = (u64, Option<Active>);

/// A token that is active.
#[derive(Clone, Debug)]
pub(super) struct Active {
    pub(super) claims: Arc<Claims>,
    /// Unix time from which on it is not.
    pub(super) until_secs: u64,
}

/// What a request comes to.
pub(super) enum Introspected {
    /// It shows no such token.
    Nothing,
    /// It shows one that is active.
    Active(Active, Digest),
    /// The server has to be asked.
    Asks(IntrospectionAsk, Digest),
    /// The server does not answer, and that is to matter to nobody.
    Unchecked(Digest),
}

/// One question to an authorization server.
pub struct IntrospectionAsk {
    /// Who asks.
    pub by: Arc<Introspection>,
    /// Where.
    pub at: KeysUri,
    form: Zeroizing<String>,
    proof: Option<HeaderValue>,
}

impl std::fmt::Debug for IntrospectionAsk {
    /// The token is nobody's to see.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IntrospectionAsk").field("at", self.at.uri()).finish_non_exhaustive()
    }
}

impl IntrospectionAsk {
    /// How long the server is waited for, connecting included.
    pub fn timeout(&self) -> Duration {
        self.by.timeout
    }

    /// What is known of the server.
    pub fn live(&self) -> &Arc<CalloutLive> {
        &self.by.live
    }

    /// What is sent.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn request(&self) -> Result<Request<Bytes>, http::Error> {
        let target = self.at.uri().path_and_query().map_or("/", |target| target.as_str());
        let host = self.at.uri().authority().map_or("", |authority| authority.as_str());
        let body = Bytes::copy_from_slice(self.form.as_bytes());
        let mut request = Request::post(if target.is_empty() { "/" } else { target })
            .header(header::HOST, host)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "meshwright")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::CONTENT_LENGTH, body.len());
        if let Some(proof) = &self.proof {
            request = request.header(header::AUTHORIZATION, proof.clone());
        }
        request.body(body)
    }
}

impl Introspection {
    pub(crate) fn compile(raw: &mesh::Introspection, callouts: &Callouts) -> Result<Self, Wrong> {
        let mesh::Introspection { policy, url, client_id, secret, remembered, timeout, allow_without, from, keep, barred, consumers } = raw;
        let at = KeysUri::read(url).map_err(|why| Wrong::new("url", why))?;
        let timeout = duration(timeout.as_ref(), "timeout")?.filter(|timeout| !timeout.is_zero() && *timeout <= TIMEOUT_MAX);
        let timeout = timeout.ok_or_else(|| Wrong::new("timeout", format!("is not above 0s and up to {}s", TIMEOUT_MAX.as_secs())))?;
        let remembered = duration(remembered.as_ref(), "remembered")?.unwrap_or_default();
        if remembered > REMEMBERED_FOR_MAX {
            return Err(Wrong::new("remembered", format!("is longer than {}s", REMEMBERED_FOR_MAX.as_secs())));
        }
        let scheme = at.uri().scheme_str().unwrap_or("https");
        let authority = at.uri().authority().map_or("", |authority| authority.as_str());
        let consumers = consumers.as_ref().map(ConsumerChoice::compile).transpose().map_err(|wrong| wrong.within("consumers"))?;
        Ok(Self {
            policy: policy.as_str().into(),
            consumers: consumers.unwrap_or_default(),
            issuer: format!("{scheme}://{authority}").into(),
            client: (!client_id.is_empty()).then(|| (client_id.clone(), secret.as_str().into())),
            places: places::compile(from)?,
            remembered,
            timeout,
            allow_without: *allow_without,
            keep: *keep,
            live: callouts.adopt(CalloutKind::Introspection, policy),
            known: Mutex::default(),
            at: barred.is_empty().then_some(at),
        })
    }

    /// What a request's token comes to. `other`: what stands there is somebody else's to judge. `told`: what came of asking.
    ///
    /// # Errors
    /// It shows one that does not open this, or the server is away.
    pub(super) fn judge(
        self: &Arc<Self>,
        head: &RequestHead<'_>,
        (book, now_secs): (&Book, u64),
        told: Option<CalloutTold>,
        other: impl Fn(&[u8]) -> bool,
    ) -> Result<Introspected, Denied> {
        let token = match places::shown(&self.places, head, |credential| !other(credential)) {
            ShownCredential::Nothing => return Ok(Introspected::Nothing),
            ShownCredential::Several => return Err(Denied::Several),
            ShownCredential::One(token) => token,
        };
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Denied::TooLong);
        }
        let known_by = digest(&token);
        let said = match told {
            None => match self.known(&known_by, now_secs) {
                Some(said) => {
                    self.live.count(CalloutOutcome::Remembered);
                    said
                }
                None => return self.ask(&token, known_by, book),
            },
            Some(CalloutTold::Answer(answer)) => match self.read(&answer, now_secs) {
                Err(away) => return self.without(away, known_by),
                Ok(said) => {
                    self.live.count(if said.is_some() { CalloutOutcome::Allowed } else { CalloutOutcome::Denied });
                    self.keep(known_by, said.clone(), now_secs);
                    said
                }
            },
            Some(CalloutTold::Away(away)) => return self.without(away, known_by),
            Some(CalloutTold::TooLong) => return self.without(CalloutAway::Garbled, known_by),
        };
        match said {
            Some(active) if now_secs >= active.until_secs => Err(Denied::Expired),
            Some(active) => Ok(Introspected::Active(active, known_by)),
            None => Err(Denied::Inactive),
        }
    }

    /// Where its tokens stand.
    pub(super) fn places(&self) -> &[TokenPlace] {
        &self.places
    }

    /// Whether a request shows anything where tokens stand but what is `known` to be somebody else's, or judged.
    pub(super) fn shows(&self, head: &RequestHead<'_>, known: impl Fn(&[u8]) -> bool) -> bool {
        !matches!(places::shown(&self.places, head, |credential| !known(credential)), ShownCredential::Nothing)
    }

    /// Takes a token out of what is sent on, unless the backend is to see it.
    pub(super) fn strip(&self, request: &mut request::Parts, known_by: &Digest) {
        if !self.keep {
            places::strip(&self.places, request, |credential| digest(credential) == *known_by);
        }
    }

    /// In words.
    pub(super) fn story(&self) -> String {
        match &self.at {
            Some(at) => format!("{} asks {} about opaque tokens", self.policy, at.uri()),
            None => format!("{} may not ask its authorization server about opaque tokens: no EgressPolicy allows it", self.policy),
        }
    }

    fn ask(self: &Arc<Self>, token: &[u8], known_by: Digest, book: &Book) -> Result<Introspected, Denied> {
        let Some(at) = self.at.clone() else { return self.without(CalloutAway::Unreached, known_by) };
        let Ok(token) = std::str::from_utf8(token) else { return Err(Denied::Malformed) };
        let mut form = Zeroizing::new(format!("token={}&token_type_hint=access_token", encoded(token)));
        let mut proof = None;
        if let Some((client, secret)) = &self.client {
            if secret.is_empty() {
                // A public client says who it is, and proves nothing.
                form.push_str("&client_id=");
                form.push_str(&encoded(client));
            } else {
                let Some(secret) = book.secret(secret) else { return self.without(CalloutAway::Unreached, known_by) };
                // RFC 6749, section 2.3.1: both are form-encoded before they are joined.
                let pair = Zeroizing::new(format!("{}:{}", encoded(client), encoded(&String::from_utf8_lossy(secret))));
                let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair.as_bytes()))).ok();
                value.iter_mut().for_each(|value| value.set_sensitive(true));
                proof = value;
            }
        }
        Ok(Introspected::Asks(IntrospectionAsk { by: Arc::clone(self), at, form, proof }, known_by))
    }

    fn without(&self, away: CalloutAway, known_by: Digest) -> Result<Introspected, Denied> {
        self.live.count(away.into());
        if !self.allow_without {
            return Err(Denied::Away);
        }
        self.live.count(CalloutOutcome::Unchecked);
        Ok(Introspected::Unchecked(known_by))
    }

    /// What an answer means (RFC 7662, section 2.2); nothing for a token that is not active.
    fn read(&self, CalloutAnswer { status, body, .. }: &CalloutAnswer, now_secs: u64) -> Result<Option<Active>, CalloutAway> {
        if *status != StatusCode::OK {
            return Err(CalloutAway::Unreached);
        }
        let Ok(Value::Object(mut said)) = serde_json::from_slice::<Value>(body) else { return Err(CalloutAway::Garbled) };
        match said.remove("active") {
            Some(Value::Bool(true)) => {}
            Some(Value::Bool(false)) => return Ok(None),
            _ => return Err(CalloutAway::Garbled),
        }
        let until_secs = time(&said, "exp")?.map_or(u64::MAX, |end| end.saturating_add(SKEW_SECS));
        if time(&said, "nbf")?.is_some_and(|begin| now_secs.saturating_add(SKEW_SECS) < begin) {
            return Ok(None);
        }
        let issuer = match said.get("iss") {
            None => Arc::clone(&self.issuer),
            Some(Value::String(issuer)) => issuer.as_str().into(),
            Some(_) => return Err(CalloutAway::Garbled),
        };
        said.entry("iss").or_insert_with(|| Value::from(&*issuer));
        Ok(Some(Active { claims: Arc::new(Claims { issuer, content: said }), until_secs }))
    }

    fn known(&self, known_by: &Digest, now_secs: u64) -> Option<Option<Active>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((until, said)) = known.young.get(known_by) {
            return (now_secs < *until).then(|| said.clone());
        }
        let found = known.old.remove(known_by).filter(|(until, _)| now_secs < *until)?;
        let said = found.1.clone();
        known.put(*known_by, found);
        Some(said)
    }

    fn keep(&self, known_by: Digest, said: Option<Active>, now_secs: u64) {
        let own = said.as_ref().map_or(u64::MAX, |active| active.until_secs);
        let until = now_secs.saturating_add(self.remembered.as_secs()).min(own);
        if until > now_secs {
            self.known.lock().unwrap_or_else(PoisonError::into_inner).put(known_by, (until, said));
        }
    }
}

impl KnownTokens {
    fn put(&mut self, known_by: Digest, found: KnownToken) {
        if self.young.len() >= REMEMBERED_MAX / 2 && !self.young.contains_key(&known_by) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(known_by, found);
    }
}

/// A time that the server says; a fraction of a second is none.
fn time(said: &Map<String, Value>, name: &str) -> Result<Option<u64>, CalloutAway> {
    match said.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().filter(|secs| *secs >= 0.0).map(|secs| Some(secs as u64)).ok_or(CalloutAway::Garbled),
    }
}
