//! What is wrong with a store.

use std::time::Duration;

use crate::callout::Away;

/// Letters of a server's own words that are told.
const WORDS_MAX: usize = 200;

/// Why a store does not count.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreFault {
    /// There is no connection.
    #[error(transparent)]
    Unreached(#[from] Away),
    /// It wants to know who we are, and we do not know.
    #[error("its password, {0}, is not there: check the Secret that authRef names")]
    NoPassword(String),
    /// It says no.
    #[error("it refuses: {0}")]
    Refused(String),
    /// It says nothing.
    #[error("there is no answer within {} ms", .0.as_millis())]
    Silent(Duration),
    /// It says what nobody understands.
    #[error("what it says is no answer of a Redis server: {0}")]
    Unreadable(String),
    /// Nobody says which server is written to.
    #[error("{0}")]
    Unknown(String),
    /// Another server is written to by now.
    #[error("sentinels name another server, {0}")]
    Moved(String),
    /// It went away.
    #[error("it has closed the connection")]
    Gone,
}

impl StoreFault {
    /// In a server's own words, of which not too many are told.
    pub(super) fn refused(words: &str) -> Self {
        Self::Refused(told(words))
    }

    /// See [`StoreFault::Unknown`].
    pub(super) fn unknown(words: &str) -> Self {
        Self::Unknown(told(words))
    }

    /// See [`StoreFault::Unreadable`].
    pub(super) fn unreadable(words: &str) -> Self {
        Self::Unreadable(told(words))
    }
}

/// The words of a server's refusal.
pub(super) fn refused(error: &redis::ServerError) -> StoreFault {
    StoreFault::refused(&format!("{} {}", error.code(), error.details().unwrap_or_default()))
}

fn told(words: &str) -> String {
    words.chars().take(WORDS_MAX).collect::<String>().escape_debug().to_string()
}
