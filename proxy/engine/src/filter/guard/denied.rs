//! Why a caller from outside is not let on.

use crate::failure::Reason;

/// Why a caller is not let on. Who is told learns less than the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "`text` says what each is")]
pub enum Denied {
    Nothing,
    Several,
    TooLong,
    Malformed,
    Unknown,
    Elsewhere,
    Disabled,
    Expired,
    TooEarly,
    Scope,
    Value,
    Token,
    NoKeys,
    TooMany,
    Overflow,
    Forbidden,
    Inactive,
    Away,
    External,
    LogIn,
    LoginState,
    LoginRefused,
    LoginToken,
    LoginTooLarge,
    LoginLoop,
    LogoutToken,
}

impl Denied {
    /// Every one, in order; `denied as usize` is its place.
    pub const ALL: [Self; 26] = [
        Self::Nothing,
        Self::Several,
        Self::TooLong,
        Self::Malformed,
        Self::Unknown,
        Self::Elsewhere,
        Self::Disabled,
        Self::Expired,
        Self::TooEarly,
        Self::Scope,
        Self::Value,
        Self::Token,
        Self::NoKeys,
        Self::TooMany,
        Self::Overflow,
        Self::Forbidden,
        Self::Inactive,
        Self::Away,
        Self::External,
        Self::LogIn,
        Self::LoginState,
        Self::LoginRefused,
        Self::LoginToken,
        Self::LoginTooLarge,
        Self::LoginLoop,
        Self::LogoutToken,
    ];

    /// In words, for logs and explanations.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Nothing => "no credential is shown",
            Self::Several => "different credentials are shown at one place",
            Self::TooLong => "the credential is too long",
            Self::Malformed => "the credential is malformed",
            Self::Unknown => "nobody has that credential",
            Self::Elsewhere => "the consumer is none that counts here",
            Self::Disabled => "the consumer is disabled",
            Self::Expired => "the credential, or its consumer, has expired",
            Self::TooEarly => "the credential does not hold yet",
            Self::Scope => "the credential is not good for this: a scope is missing",
            Self::Value => "an expression for a header came to nothing",
            Self::Token => "the token is not accepted",
            Self::NoKeys => "the keys of the token's issuer are not at hand",
            Self::TooMany => "too many attempts failed within a minute",
            Self::Overflow => "too many passwords wait to be verified",
            Self::Forbidden => "a policy forbids it",
            Self::Inactive => "the authorization server says that the token is not active",
            Self::Away => "a service that has to be asked does not answer",
            Self::External => "the service that is asked says no",
            Self::LogIn => "nobody is logged in, and the browser is sent to the provider",
            Self::LoginState => "the login did not begin here with this browser, is too old, or has ended already",
            Self::LoginRefused => "the provider refused the login",
            Self::LoginToken => "the provider's ID token is not accepted",
            Self::LoginTooLarge => "the session is larger than cookies may be",
            Self::LoginLoop => "three logins in a row left no session: the browser does not keep it",
            Self::LogoutToken => "a logout that no provider of logins here has told of",
        }
    }

    /// As the metric spells it.
    pub const fn verdict(self) -> &'static str {
        match self {
            Self::Nothing => "missing",
            Self::Several => "several",
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Elsewhere => "elsewhere",
            Self::Disabled => "disabled",
            Self::Expired => "expired",
            Self::TooEarly => "too_early",
            Self::Scope => "scope",
            Self::Value => "value",
            Self::Token => "token",
            Self::NoKeys => "no_keys",
            Self::TooMany => "too_many",
            Self::Overflow => "overflow",
            Self::Forbidden => "forbidden",
            Self::Inactive => "inactive",
            Self::Away => "away",
            Self::External => "external",
            Self::LogIn => "redirected",
            Self::LoginState => "state",
            Self::LoginRefused => "refused",
            Self::LoginToken => "id_token",
            Self::LoginTooLarge => "too_large",
            Self::LoginLoop => "loop",
            Self::LogoutToken => "logout_token",
        }
    }

    /// The reason code.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Scope | Self::Forbidden | Self::External | Self::LoginRefused | Self::LoginToken => Reason::Denied,
            Self::TooMany => Reason::RateLimited,
            Self::Overflow => Reason::Overflow,
            Self::NoKeys | Self::Value | Self::Away | Self::LoginTooLarge => Reason::PolicyUnavailable,
            Self::LoginState | Self::LoginLoop | Self::LogoutToken => Reason::BadRequest,
            _ => Reason::Unauthenticated,
        }
    }
}
