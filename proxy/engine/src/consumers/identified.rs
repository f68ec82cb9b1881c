//! A caller from outside that proved who it is.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use super::consumer::{AuthMethod, Consumer, Credential};
use crate::claims::Claims;

/// Tells the mesh who called at its edge: `NAMESPACE/NAME;groups=A,B;method=M`.
pub const CONSUMER_HEADER: HeaderName = HeaderName::from_static("x-meshwright-consumer");

/// A caller that proved who it is.
#[derive(Clone, Debug)]
pub struct Identified {
    /// How.
    pub method: AuthMethod,
    /// Whom that makes it; `None`: nobody claims the credential.
    pub consumer: Option<Arc<Consumer>>,
    /// Which of its credentials, by place.
    pub credential: Option<usize>,
    /// The user's name, where a password was shown.
    pub user: Option<Arc<str>>,
    /// The file of users that it stands in, and the hash of its password there.
    pub file: Option<(Arc<str>, Arc<str>)>,
    /// What its token says.
    pub claims: Option<Arc<Claims>>,
    /// Unix time from which on the proof does not hold any more.
    pub until_secs: Option<u64>,
}

impl Identified {
    /// What a Gateway says of who called at it ([`CONSUMER_HEADER`]); `None`: it is not to be understood.
    pub fn told(value: &HeaderValue) -> Option<Self> {
        let mut parts = value.to_str().ok()?.split(';');
        let path = parts.next()?;
        let (namespace, name) = path.split_once('/')?;
        let (mut groups, mut method) = (Vec::new(), None);
        for part in parts {
            match part.split_once('=')? {
                ("groups", listed) => groups = listed.split(',').filter(|group| !group.is_empty()).map(Into::into).collect(),
                ("method", text) => method = AuthMethod::parse(text),
                _ => {}
            }
        }
        let consumer = Consumer { path: path.into(), namespace: namespace.into(), name: name.into(), groups, ..Consumer::default() };
        let consumer = Some(Arc::new(consumer));
        Some(Self { method: method?, consumer, credential: None, user: None, file: None, claims: None, until_secs: None })
    }

    /// The credential that was shown, where a consumer has it.
    pub fn credential(&self) -> Option<&Credential> {
        self.consumer.as_ref()?.credentials.get(self.credential?)
    }

    /// What the mesh is told of it, where a consumer has the credential.
    pub fn told_to_mesh(&self) -> Option<&HeaderValue> {
        let credential = self.credential()?;
        if self.method == AuthMethod::Login { credential.told_of_login.as_ref() } else { credential.told.as_ref() }
    }

    /// What is said of the credential in logs: its public beginning, else its name.
    pub fn credential_name(&self) -> &str {
        let credential = self.credential();
        credential.map_or("", |credential| if credential.prefix.is_empty() { &credential.name } else { &credential.prefix })
    }

    /// What it is good for: the credential's scopes, or its token's.
    pub fn has_scope(&self, wanted: &str) -> bool {
        let of_key = self.credential().is_some_and(|credential| credential.scopes.iter().any(|scope| **scope == *wanted));
        let of_token = || self.claims.as_ref().is_some_and(|claims| claims.texts("scope").any(|scope| scope == wanted));
        of_key || of_token()
    }

    /// Whom it is about: the token's subject, the user, else the consumer.
    pub fn subject(&self) -> Option<Cow<'_, str>> {
        let of_token = || self.claims.as_ref().and_then(|claims| claims.texts("sub").next());
        let of_user = || self.user.as_deref().map(Into::into);
        let of_consumer = || self.consumer.as_ref().map(|consumer| (&*consumer.path).into());
        of_token().or_else(of_user).or_else(of_consumer)
    }
}
