//! What a condition may look at.

use std::borrow::Cow;

use cel::common::types::{CelBool, CelDouble, CelInt, CelList, CelString, CelUInt};
use cel::common::value::{CowVal, Val};
use http::HeaderName;
use http::header::{COOKIE, HOST};
use regex::Regex;
use serde_json::Value;

use super::CLAIM_ITEMS_MAX;
use crate::authorize::Call;
use crate::matching::plain_host;

/// One of them, found when the condition was read.
#[derive(Debug)]
pub(super) enum Attribute {
    Method,
    Path,
    Query,
    Host,
    Header(HeaderName),
    HasHeader(HeaderName),
    Principal,
    TrustDomain,
    Namespace,
    ServiceAccount,
    Workload,
    Address,
    SourcePort,
    Port,
    OwnNamespace,
    OwnWorkload,
    Issuer,
    Claim(Box<str>),
    HasClaim(Box<str>),
    AuthMethod,
    AuthSubject,
    AuthScopes,
    ConsumerName,
    ConsumerNamespace,
    ConsumerTeam,
    ConsumerGroups,
    OfConsumer(Box<str>),
    HasOfConsumer(Box<str>),
    /// Whether the text of another one matches.
    Matches(Box<Self>, Regex),
}

/// A name, and what it stands for.
type Named = (&'static str, fn() -> Attribute);

/// The names of those that are texts or numbers.
const NAMED: [Named; 23] = [
    ("request.method", || Attribute::Method),
    ("request.path", || Attribute::Path),
    ("request.query", || Attribute::Query),
    ("request.host", || Attribute::Host),
    ("source.principal", || Attribute::Principal),
    ("source.trust_domain", || Attribute::TrustDomain),
    ("source.namespace", || Attribute::Namespace),
    ("source.service_account", || Attribute::ServiceAccount),
    ("source.workload", || Attribute::Workload),
    ("source.address", || Attribute::Address),
    ("source.port", || Attribute::SourcePort),
    ("destination.port", || Attribute::Port),
    ("destination.namespace", || Attribute::OwnNamespace),
    ("destination.workload", || Attribute::OwnWorkload),
    ("token.issuer", || Attribute::Issuer),
    ("auth.issuer", || Attribute::Issuer),
    ("auth.method", || Attribute::AuthMethod),
    ("auth.subject", || Attribute::AuthSubject),
    ("auth.scopes", || Attribute::AuthScopes),
    ("consumer.name", || Attribute::ConsumerName),
    ("consumer.namespace", || Attribute::ConsumerNamespace),
    ("consumer.team", || Attribute::ConsumerTeam),
    ("consumer.groups", || Attribute::ConsumerGroups),
];

impl Attribute {
    /// The one of that name.
    ///
    /// # Errors
    /// There is none; says which there are.
    pub(super) fn named(name: &str) -> Result<Self, String> {
        if let Some((_, make)) = NAMED.iter().find(|(known, _)| *known == name) {
            return Ok(make());
        }
        let known = NAMED.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ");
        Err(format!(
            "`{name}` is no attribute; there are {known}, request.headers[\"NAME\"], token.claims.NAME and consumer.attributes.NAME"
        ))
    }

    /// A header by name, whatever its letters' case. The host is none: HTTP/2 says it elsewhere.
    pub(super) fn header(name: &str) -> Result<HeaderName, String> {
        match name.parse() {
            Ok(HOST) => Err("`host` stands elsewhere in HTTP/2; ask for request.host".to_owned()),
            parsed => parsed.map_err(|_| format!("`{}` is not a header name", name.escape_debug())),
        }
    }

    pub(super) fn of_requests(&self) -> bool {
        match self {
            Self::Method | Self::Path | Self::Query | Self::Host | Self::Header(_) | Self::HasHeader(_) => true,
            Self::Issuer | Self::Claim(_) | Self::HasClaim(_) => true,
            Self::AuthMethod | Self::AuthSubject | Self::AuthScopes => true,
            Self::ConsumerName | Self::ConsumerNamespace | Self::ConsumerTeam | Self::ConsumerGroups => true,
            Self::OfConsumer(_) | Self::HasOfConsumer(_) => true,
            Self::Matches(inner, _) => inner.of_requests(),
            Self::Principal | Self::TrustDomain | Self::Namespace | Self::ServiceAccount | Self::Workload => false,
            Self::Address | Self::SourcePort | Self::Port | Self::OwnNamespace | Self::OwnWorkload => false,
        }
    }

    /// Whether its value is true or false.
    pub(super) const fn is_truth(&self) -> bool {
        matches!(self, Self::HasHeader(_) | Self::HasClaim(_) | Self::HasOfConsumer(_) | Self::Matches(..) | Self::Claim(_))
    }

    /// Its value; `None`: it is not there.
    pub(super) fn value<'c>(&self, call: &'c Call<'_>) -> Option<CowVal<'c, 'c>> {
        let int = |number: u16| CowVal::owned(CelInt::from(i64::from(number)));
        Some(match self {
            Self::SourcePort => int(call.source.port()),
            Self::Port => int(call.port),
            Self::HasHeader(name) => truth(call.head?.headers.contains_key(name)),
            Self::Claim(path) => json(call.claims?.value(path)?)?,
            Self::HasClaim(path) => truth(call.claims.is_some_and(|claims| claims.value(path).is_some())),
            Self::HasOfConsumer(name) => truth(attribute_of(call, name).is_some()),
            Self::ConsumerGroups => texts(call.auth?.consumer.as_ref()?.groups.iter().map(|group| &**group)),
            Self::AuthScopes => match (call.auth?.credential(), call.claims) {
                (Some(credential), _) if !credential.scopes.is_empty() => texts(credential.scopes.iter().map(|scope| &**scope)),
                (_, Some(claims)) => {
                    let scopes: Vec<Cow<'_, str>> = claims.texts("scope").take(CLAIM_ITEMS_MAX).collect();
                    texts(scopes.iter().map(|scope| &**scope))
                }
                _ => texts(std::iter::empty()),
            },
            Self::Matches(inner, regex) => truth(regex.is_match(&inner.text(call)?)),
            _ => CowVal::owned(CelString::from(self.text(call)?)),
        })
    }

    fn text<'c>(&self, call: &'c Call<'_>) -> Option<Cow<'c, str>> {
        Some(match self {
            Self::Method => call.head?.method.as_str().into(),
            Self::Path => call.head?.path.into(),
            Self::Query => call.head?.query.unwrap_or_default().into(),
            Self::Host => plain_host(call.head?.host, |host| host.to_owned()).into(),
            Self::Header(name) => header(call, name)?,
            Self::Principal => call.peer?.as_str().into(),
            Self::TrustDomain => call.peer?.trust_domain().into(),
            Self::Namespace => call.own_peer()?.namespace().into(),
            Self::ServiceAccount => call.own_peer()?.service_account().into(),
            // A certificate of another domain says whatever its authority likes.
            Self::Workload => Some(call.workload).filter(|name| call.own_peer().is_some() && !name.is_empty())?.into(),
            Self::Address => call.source.ip().to_canonical().to_string().into(),
            Self::OwnNamespace => call.own.namespace.into(),
            Self::OwnWorkload => call.own.workload.into(),
            Self::Issuer => (&*call.claims?.issuer).into(),
            Self::Claim(path) => call.claims?.value(path)?.as_str()?.into(),
            Self::AuthMethod => call.auth?.method.text().into(),
            Self::AuthSubject => call.auth?.subject()?.into_owned().into(),
            Self::ConsumerName => (&*call.auth?.consumer.as_ref()?.name).into(),
            Self::ConsumerNamespace => (&*call.auth?.consumer.as_ref()?.namespace).into(),
            Self::ConsumerTeam => (&*call.auth?.consumer.as_ref()?.team).into(),
            Self::OfConsumer(name) => attribute_of(call, name)?.into(),
            Self::SourcePort | Self::Port | Self::HasHeader(_) | Self::HasClaim(_) | Self::Matches(..) => return None,
            Self::AuthScopes | Self::ConsumerGroups | Self::HasOfConsumer(_) => return None,
        })
    }
}

/// An attribute of the consumer that calls.
fn attribute_of<'c>(call: &'c Call<'_>, name: &str) -> Option<&'c str> {
    let attributes = &call.auth?.consumer.as_ref()?.attributes;
    attributes.iter().find(|(own, _)| **own == *name).map(|(_, value)| &**value)
}

fn texts<'v, 't>(texts: impl Iterator<Item = &'t str>) -> CowVal<'v, 'v> {
    let items: Vec<Box<dyn Val + 'v>> = texts.map(|text| Box::new(CelString::from(text.to_owned())) as Box<dyn Val + 'v>).collect();
    CowVal::Owned(Box::new(CelList::from(items)))
}

fn truth<'v>(truth: bool) -> CowVal<'v, 'v> {
    CowVal::owned(CelBool::from(truth))
}

/// A header that comes more than once has no one value: applications read the first, the last, or all of them. The pieces of a cookie
/// are one (RFC 9113, section 8.2.3).
fn header<'c>(call: &'c Call<'_>, name: &HeaderName) -> Option<Cow<'c, str>> {
    let mut values = call.head?.headers.get_all(name).iter().map(|value| std::str::from_utf8(value.as_bytes()).ok());
    let mut whole: Cow<'_, str> = values.next()??.into();
    for value in values {
        if *name != COOKIE {
            return None;
        }
        let whole = whole.to_mut();
        whole.push_str("; ");
        whole.push_str(value?);
    }
    Some(whole)
}

/// A claim as it was signed. Objects are not compared; their members are.
fn json(value: &Value) -> Option<CowVal<'_, '_>> {
    Some(CowVal::Owned(match value {
        Value::Array(items) if items.len() <= CLAIM_ITEMS_MAX => {
            Box::new(CelList::from(items.iter().map(scalar).collect::<Option<Vec<_>>>()?))
        }
        other => scalar(other)?,
    }))
}

fn scalar(value: &Value) -> Option<Box<dyn Val + '_>> {
    Some(match value {
        Value::String(text) => Box::new(CelString::from(text.as_str())),
        Value::Bool(truth) => Box::new(CelBool::from(*truth)),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Box::new(CelInt::from(number)),
            (None, Some(number)) => Box::new(CelUInt::from(number)),
            (None, None) => Box::new(CelDouble::from(number.as_f64()?)),
        },
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    })
}
