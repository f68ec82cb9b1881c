//! A consumer, its credentials, and how each is shown.

use http::HeaderValue;

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

/// Somebody who calls from outside.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Consumer {
    /// `NAMESPACE/NAME`.
    pub path: Box<str>,
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// Whose it is.
    pub team: Box<str>,
    /// Groups it is in.
    pub groups: Vec<Box<str>>,
    /// Further words of it.
    pub attributes: Vec<(Box<str>, Box<str>)>,
    /// Labels that choices ask for.
    pub(super) labels: Vec<(Box<str>, Box<str>)>,
    /// It may not call.
    pub disabled: bool,
    /// Unix time from which on it may not.
    pub expires_secs: Option<u64>,
    /// Its credentials.
    pub credentials: Vec<Credential>,
}

/// One credential, without what is secret of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Credential {
    /// Its name.
    pub name: Box<str>,
    /// What of the key may be told.
    pub prefix: Box<str>,
    /// How it is shown.
    pub method: AuthMethod,
    /// Unix time before which it does not hold.
    pub not_before_secs: u64,
    /// Unix time from which on it does not hold.
    pub expires_secs: Option<u64>,
    /// What it is good for.
    pub scopes: Vec<Box<str>>,
    /// What the mesh is told of who shows it.
    pub told: Option<HeaderValue>,
    /// The same of who has logged in.
    pub told_of_login: Option<HeaderValue>,
    /// SHA-256 of all that is known of it: a key or password in place of another one is another credential, whatever it is called.
    pub(super) mark: [u8; 32],
}

/// Why a credential that is known does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lapsed {
    /// Its consumer may not call.
    Disabled,
    /// Its time is over, or its consumer's.
    Expired,
    /// Its time has not come.
    TooEarly,
}

impl Consumer {
    /// Until when a credential of it holds.
    ///
    /// # Errors
    /// It does not hold now.
    pub fn holds(&self, credential: &Credential, now_secs: u64) -> Result<Option<u64>, Lapsed> {
        if self.disabled {
            return Err(Lapsed::Disabled);
        }
        if now_secs < credential.not_before_secs {
            return Err(Lapsed::TooEarly);
        }
        let until = [self.expires_secs, credential.expires_secs].into_iter().flatten().min();
        match until {
            Some(until) if now_secs >= until => Err(Lapsed::Expired),
            until => Ok(until),
        }
    }
}
