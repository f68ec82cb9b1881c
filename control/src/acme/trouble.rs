//! Why there is no certificate, and what authorities say of that.

use std::time::Duration;

use instant_acme::Error;

/// How long an authority has to look at a proof, and to sign.
pub(super) const VALIDATION_MAX: Duration = Duration::from_secs(120);

/// Why there is no certificate.
pub(super) enum Trouble {
    /// In the authority's words.
    Refused(Error),
    /// In ours.
    Failed(String),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// What an authority says wrong, as people read it.
pub(super) fn told(error: &Error) -> String {
    match error {
        Error::Timeout(_) => format!("the authority came to no end within {} s", VALIDATION_MAX.as_secs()),
        Error::Api(problem) => problem.to_string().replacen("API error", "the authority refuses", 1),
        other => other.to_string(),
    }
}

/// Whether an authority says that: one of the words of RFC 8555, section 6.7, or RFC 9773.
pub(super) fn says(error: &Error, word: &str) -> bool {
    let kind = if let Error::Api(problem) = error { problem.r#type.as_deref() } else { None };
    kind.is_some_and(|kind| kind.strip_prefix("urn:ietf:params:acme:error:") == Some(word))
}
