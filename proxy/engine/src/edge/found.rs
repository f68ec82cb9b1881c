//! Who calls from outside, as far as guards have found out.

use std::sync::Arc;

use http::HeaderName;

use super::book::{Consumer, Credential};
use super::identify::Denied;
use crate::claims::Claims;

/// Tells the mesh who called at its edge: `NAMESPACE/NAME;groups=A,B;method=M`.
pub const CONSUMER_HEADER: HeaderName = HeaderName::from_static("x-meshwright-consumer");

/// How a caller proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is what its name says")]
pub enum AuthMethod {
    Cert,
    Jwt,
    ApiKey,
    Basic,
    Login,
}

impl AuthMethod {
    /// Every method.
    pub const ALL: [Self; 5] = [Self::Cert, Self::Jwt, Self::ApiKey, Self::Basic, Self::Login];

    /// As policies, headers and logs spell it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Cert => "Cert",
            Self::Jwt => "Jwt",
            Self::ApiKey => "ApiKey",
            Self::Basic => "Basic",
            Self::Login => "Login",
        }
    }

    /// The method that [`AuthMethod::text`] spells so.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.text() == text)
    }
}

/// Who calls, and why not; nothing for most requests.
#[derive(Clone, Debug, Default)]
pub struct Found {
    who: Option<Box<Identified>>,
    denied: Option<Denied>,
}

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
    /// What its token says.
    pub claims: Option<Arc<Claims>>,
    /// Unix time from which on the proof does not hold any more.
    pub until_secs: Option<u64>,
}

impl Found {
    /// Somebody.
    pub fn of(identified: Identified) -> Self {
        Self { who: Some(Box::new(identified)), denied: None }
    }

    /// Who, if anybody.
    pub fn identified(&self) -> Option<&Identified> {
        self.who.as_deref()
    }

    /// Why nobody is let on.
    pub const fn denied(&self) -> Option<Denied> {
        self.denied
    }

    pub(super) fn deny(&mut self, why: Denied) {
        self.denied = Some(why);
    }
}

impl Identified {
    /// The credential that was shown, where a consumer has it.
    pub fn credential(&self) -> Option<&Credential> {
        self.consumer.as_ref()?.credentials.get(self.credential?)
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
    pub fn subject(&self) -> Option<std::borrow::Cow<'_, str>> {
        let of_token = || self.claims.as_ref().and_then(|claims| claims.texts("sub").next());
        let of_user = || self.user.as_deref().map(Into::into);
        let of_consumer = || self.consumer.as_ref().map(|consumer| (&*consumer.path).into());
        of_token().or_else(of_user).or_else(of_consumer)
    }
}
