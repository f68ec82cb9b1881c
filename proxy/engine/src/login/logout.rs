//! Logouts that the provider itself tells of (OpenID Connect Back-Channel Logout 1.0), with no browser in between.

use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method};

use super::form::one;
use super::{Login, LoginHead, SessionAsk, SessionTold};
use crate::authenticate::{LogoutFault, TOKEN_BYTES_MAX, logout_token};

/// Largest body that is read of a provider's word: a token, and as much beside it.
pub const LOGOUT_BYTES_MAX: usize = TOKEN_BYTES_MAX + (1 << 10);
/// What such a word comes as.
const FORM: &str = "application/x-www-form-urlencoded";

/// What a provider says: to be read first.
#[derive(Clone, Debug)]
pub struct LogoutAsk {
    /// Whose path it is; each token is for one of them.
    logins: Vec<Arc<Login>>,
}

impl LogoutAsk {
    /// Of a request that may be a provider's.
    ///
    /// # Errors
    /// It is none; why.
    pub(crate) fn of(logins: Vec<Arc<Login>>, head: LoginHead<'_>) -> Result<Self, &'static str> {
        if *head.method != Method::POST {
            return Err("a provider posts");
        }
        if is_form(head.headers) { Ok(Self { logins }) } else { Err("it is no form") }
    }

    /// Reads it; nothing is ended yet.
    ///
    /// # Errors
    /// What becomes of it instead.
    pub fn read(&self, body: &[u8], now_secs: u64) -> Result<SessionAsk, SessionTold> {
        let form = std::str::from_utf8(body).map_err(|_| SessionTold::NotMeant("the form is no text"))?;
        let token = one(form, "logout_token").ok_or(SessionTold::NotMeant("there is not one logout_token"))?;
        let mut last = SessionTold::NotMeant("nobody logs in here");
        for login in &self.logins {
            match login.ends(&token, now_secs) {
                Ok(ask) => return Ok(ask),
                // Where several are asked the one whose token it is says most.
                Err(SessionTold::Away) => return Err(SessionTold::Away),
                Err(why) => last = why,
            }
        }
        Err(last)
    }
}

impl Login {
    fn ends(self: &Arc<Self>, token: &str, now_secs: u64) -> Result<SessionAsk, SessionTold> {
        let (Some(store), Some(provider)) = (&self.store, self.provider.current().filter(|_| !self.barred)) else {
            return Err(SessionTold::Away);
        };
        match logout_token(token, &provider.keys, (&self.issuer, &self.client_id), now_secs) {
            Ok(said) => Ok(self.bar(store, &said)),
            Err(LogoutFault::NotMeant(why)) => Err(SessionTold::NotMeant(why)),
            Err(LogoutFault::NewKey) => {
                self.provider.miss(now_secs);
                Err(SessionTold::Away)
            }
        }
    }
}

fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.split(';').next().unwrap_or_default().trim_ascii().eq_ignore_ascii_case(FORM))
}
