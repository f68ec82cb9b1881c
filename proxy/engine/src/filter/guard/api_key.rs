//! API keys: which of them open a route, and what becomes of them.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, request};
use memchr::memchr_iter;
use proto::mesh::{self, FilledHeader, filled_header::Value as RawValue};
use smallvec::SmallVec;

use super::denied::Denied;
use super::places::{self, ShownCredential};
use crate::authenticate::{TokenPlace, claim_header};
use crate::authorize::{Call, ValueOf};
use crate::consumers::{AuthMethod, Book, ConsumerChoice, Identified, KEY_BYTES_MAX, Lapsed, digest};
use crate::matching::RequestHead;
use crate::rejected::Wrong;

/// Most scopes, and headers that are filled.
const LISTED_MAX: usize = 16;

/// A key as a request shows it, until it has been taken out of that.
pub(super) type ShownKey = SmallVec<[u8; 64]>;

/// What a rule demands of API keys.
#[derive(Debug)]
pub struct ApiKeys {
    /// `NAMESPACE/NAME` of the object.
    pub policy: Arc<str>,
    /// Without any a request may go on.
    pub optional: bool,
    pub(super) places: Vec<TokenPlace>,
    consumers: ConsumerChoice,
    scopes: Vec<Box<str>>,
    keep: bool,
    pub(super) fills: Vec<Fill>,
}

/// A header that is filled.
#[derive(Debug)]
pub(super) struct Fill {
    pub(super) name: HeaderName,
    value: FillValue,
}

#[derive(Debug)]
enum FillValue {
    Literal(HeaderValue),
    Made(ValueOf),
}

impl Fill {
    pub(super) fn compile_all(raw: &[FilledHeader]) -> Result<Vec<Self>, Wrong> {
        if raw.len() > LISTED_MAX {
            return Err(Wrong::new("headers", format!("holds {}, which is more than {LISTED_MAX}", raw.len())));
        }
        let one = |(index, raw): (usize, &FilledHeader)| Self::compile(raw).map_err(|wrong| wrong.within(format!("headers[{index}]")));
        raw.iter().enumerate().map(one).collect()
    }

    fn compile(FilledHeader { name, value }: &FilledHeader) -> Result<Self, Wrong> {
        let name: HeaderName = name.parse().map_err(|_| Wrong::new("name", format!("`{}` is not a header name", name.escape_debug())))?;
        if !claim_header(name.as_str()) {
            return Err(Wrong::new("name", format!("`{name}` is not a policy's to fill")));
        }
        let value = match value {
            Some(RawValue::Literal(text)) => FillValue::Literal(text.parse().map_err(|_| Wrong::new("literal", "is no header's value"))?),
            Some(RawValue::Cel(text)) => FillValue::Made(ValueOf::compile(text).map_err(|why| Wrong::new("cel", why))?),
            None => return Err(Wrong::new("value", "is missing: literal or cel")),
        };
        Ok(Self { name, value })
    }

    /// What it says of a call.
    ///
    /// # Errors
    /// The expression comes to nothing that a header can say.
    pub(super) fn of(&self, call: &Call<'_>) -> Result<HeaderValue, Denied> {
        match &self.value {
            FillValue::Literal(value) => Ok(value.clone()),
            FillValue::Made(value) => {
                let text = value.of(call).ok_or(Denied::Value)?;
                HeaderValue::try_from(text).map_err(|_| Denied::Value)
            }
        }
    }
}

impl ApiKeys {
    pub(crate) fn compile(raw: &mesh::ApiKeys) -> Result<Self, Wrong> {
        let mesh::ApiKeys { policy, optional, from, consumers, scopes, keep, headers } = raw;
        if scopes.len() > LISTED_MAX {
            return Err(Wrong::new("scopes", format!("holds {}, which is more than {LISTED_MAX}", scopes.len())));
        }
        let choice = consumers.as_ref().map(ConsumerChoice::compile).transpose().map_err(|wrong| wrong.within("consumers"))?;
        Ok(Self {
            policy: policy.as_str().into(),
            optional: *optional,
            places: places::compile(from)?,
            consumers: choice.unwrap_or_default(),
            scopes: scopes.iter().map(|scope| scope.as_str().into()).collect(),
            keep: *keep,
            fills: Fill::compile_all(headers)?,
        })
    }

    /// Whose key a request shows, and the key; `None`: it shows none. `other`: what is somebody else's to judge.
    ///
    /// # Errors
    /// It shows one that does not open this.
    pub(super) fn judge(
        &self,
        head: &RequestHead<'_>,
        book: &Book,
        now_secs: u64,
        other: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<(Identified, ShownKey)>, Denied> {
        let key = match places::shown(&self.places, head, |credential| !other(credential)) {
            ShownCredential::Nothing => return Ok(None),
            ShownCredential::Several => return Err(Denied::Several),
            ShownCredential::One(key) => key,
        };
        if key.len() > KEY_BYTES_MAX {
            return Err(Denied::TooLong);
        }
        let (consumer, place) = book.by_key(&digest(&key)).ok_or(Denied::Unknown)?;
        let credential = consumer.credentials.get(place).ok_or(Denied::Unknown)?;
        let until_secs = consumer.holds(credential, now_secs).map_err(Denied::from)?;
        if !self.consumers.takes(&consumer) {
            return Err(Denied::Elsewhere);
        }
        let found = Identified {
            method: AuthMethod::ApiKey,
            consumer: Some(consumer),
            credential: Some(place),
            user: None,
            file: None,
            claims: None,
            until_secs,
        };
        if !self.scopes.iter().all(|scope| found.has_scope(scope)) {
            return Err(Denied::Scope);
        }
        Ok(Some((found, ShownKey::from_slice(&key))))
    }

    /// Takes a key out of what is sent on, unless the backend is to see it.
    pub(super) fn strip(&self, request: &mut request::Parts, key: &ShownKey) {
        if !self.keep {
            places::strip(&self.places, request, |credential| credential == key.as_slice());
        }
    }

    /// What is asked of who shows no key: a scheme where there is one, else a word of ours (RFC 9110, section 11.6.1).
    pub(super) fn challenge(&self) -> HeaderValue {
        let bearer = self.places.iter().any(|place| matches!(place, TokenPlace::Header(name, prefix) if *name == http::header::AUTHORIZATION && prefix.trim().eq_ignore_ascii_case("bearer")));
        HeaderValue::from_static(if bearer { "Bearer" } else { "ApiKey" })
    }

    /// In words.
    pub(super) fn story(&self) -> String {
        format!("{} asks for an API key{}", self.policy, if self.optional { ", and lets requests without one on" } else { "" })
    }
}

/// Whether it has a JWT's form (RFC 7515, section 3.1): three parts with dots between.
pub(super) fn is_token(credential: &[u8]) -> bool {
    credential.starts_with(b"ey") && memchr_iter(b'.', credential).take(3).count() == 2
}

impl From<Lapsed> for Denied {
    fn from(lapsed: Lapsed) -> Self {
        match lapsed {
            Lapsed::Disabled => Self::Disabled,
            Lapsed::Expired => Self::Expired,
            Lapsed::TooEarly => Self::TooEarly,
        }
    }
}
