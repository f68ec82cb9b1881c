//! What the provider is asked for tokens, and what its answers make of a session.

use std::sync::Arc;

use http::header::RETRY_AFTER;

use super::exchange::{LoginClient, NoTokens, TokenAnswer, question};
use super::kept::SharedTurn;
use super::live::{REFRESH_PAUSE_SECS, REFRESH_PAUSE_SECS_MAX, RefreshOutcome};
use super::provider::Provider;
use super::seal::drawn;
use super::session::{KeptSession, LoginSession};
use super::{Login, LoginAsk, LoginFault, LoginMeans, SESSION_MAX};
use crate::authenticate::{IdTokenFault, IdTokenTerms, id_token};
use crate::callout::{CalloutOutcome, CalloutTold};

/// How long an access token is fresh where the provider does not say.
const FRESH_SECS: u64 = 300;

impl Login {
    fn client<'c>(&'c self, secret: &'c [u8]) -> LoginClient<'c> {
        LoginClient { id: &self.client_id, proof: self.proof, secret, key_id: &self.key_id }
    }

    pub(super) fn ask(
        self: &Arc<Self>,
        provider: &Provider,
        form: &[(&str, &str)],
        refreshes: Option<Arc<LoginSession>>,
        means: LoginMeans<'_>,
    ) -> Option<LoginAsk> {
        let secret: &[u8] = if self.secret.is_empty() { &[] } else { means.book.secret(&self.secret)? };
        let at = provider.endpoints.token.clone();
        let request = question(&at, &self.client(secret), form, means.now_secs).ok()?;
        let turn = match (&self.store, &refreshes) {
            (Some(store), Some(_)) => Some(SharedTurn { store: Arc::clone(store), keys: self.sealing(means)? }),
            _ => None,
        };
        Some(LoginAsk { login: Arc::clone(self), at, request, refreshes, turn })
    }

    /// What refreshes a session; where nobody can be asked it waits a little.
    pub(super) fn refresh(self: &Arc<Self>, session: &Arc<LoginSession>, means: LoginMeans<'_>) -> Option<LoginAsk> {
        let provider = self.provider.current().filter(|_| !self.barred);
        let ask = provider.and_then(|provider| {
            let form = [("grant_type", "refresh_token"), ("refresh_token", session.kept.refresh_token.as_deref()?)];
            self.ask(&provider, &form, Some(Arc::clone(session)), means)
        });
        if ask.is_none() {
            self.live.turned(&session.kept.id, RefreshOutcome::Waits(means.now_secs + REFRESH_PAUSE_SECS));
        }
        ask
    }

    /// What the token endpoint said to a code.
    pub(super) fn tokens(&self, told: &CalloutTold, now_secs: u64) -> Result<TokenAnswer, LoginFault> {
        match self.read(told, now_secs) {
            Ok(tokens) => Ok(tokens),
            Err(NoTokens::Refused) => Err(LoginFault::Strange),
            Err(NoTokens::Wrong) => Err(LoginFault::Away),
        }
    }

    /// Reads and counts an answer.
    fn read(&self, told: &CalloutTold, now_secs: u64) -> Result<TokenAnswer, NoTokens> {
        let (read, outcome) = match told {
            CalloutTold::Answer(answer) => match TokenAnswer::read(answer) {
                Ok(tokens) => (Ok(tokens), CalloutOutcome::Allowed),
                Err(NoTokens::Refused) => (Err(NoTokens::Refused), CalloutOutcome::Denied),
                Err(NoTokens::Wrong) => (Err(NoTokens::Wrong), CalloutOutcome::Garbled),
            },
            CalloutTold::Away(away) => (Err(NoTokens::Wrong), (*away).into()),
            CalloutTold::TooLong => (Err(NoTokens::Wrong), CalloutOutcome::Garbled),
        };
        self.live.callouts.count(outcome);
        if read == Err(NoTokens::Wrong) {
            // Whether it is there at all is found out at once, so that nobody is sent to it in vain.
            self.provider.miss(now_secs);
        }
        read
    }

    /// A new session out of what the provider says.
    pub(super) fn session(&self, provider: &Provider, tokens: TokenAnswer, nonce: &str, now_secs: u64) -> Result<LoginSession, LoginFault> {
        let TokenAnswer { access_token, id_token: token, refresh_token, expires_secs } = tokens;
        let token = token.ok_or(LoginFault::Away)?;
        let terms = IdTokenTerms { issuer: &self.issuer, client: &self.client_id, nonce: Some(nonce), subject: None, now_secs };
        let content = id_token(&token, &provider.keys, terms).map_err(|fault| self.doubted(fault, now_secs))?;
        let kept = KeptSession {
            id: drawn::<16>().ok_or(LoginFault::Away)?,
            id_token: token,
            access_token: self.access_token.is_some().then_some(access_token),
            due_secs: refresh_token.is_some().then(|| self.due_secs(expires_secs, now_secs)),
            refresh_token,
            began_secs: now_secs,
            used_secs: now_secs,
            // Every ID token says it; one that does not is as old as its session.
            issued_secs: content.get("iat").and_then(serde_json::Value::as_f64).map_or(now_secs, |issued| issued as u64),
        };
        Ok(LoginSession::new(kept, &self.issuer, content))
    }

    fn doubted(&self, fault: IdTokenFault, now_secs: u64) -> LoginFault {
        if fault == IdTokenFault::NewKey {
            self.provider.miss(now_secs);
            return LoginFault::Away;
        }
        LoginFault::Token(fault)
    }

    fn due_secs(&self, expires_secs: Option<u64>, now_secs: u64) -> u64 {
        let fresh = expires_secs.unwrap_or(FRESH_SECS).min(SESSION_MAX.as_secs());
        now_secs + (fresh * u64::from(self.lives.refresh_at_percent) / 100).max(REFRESH_PAUSE_SECS)
    }

    /// What a session is after its refresh.
    pub(super) fn refreshed(&self, session: &LoginSession, told: &CalloutTold, now_secs: u64) -> RefreshOutcome {
        let tokens = match self.read(told, now_secs) {
            Ok(tokens) => tokens,
            Err(NoTokens::Refused) => return RefreshOutcome::Refused(session.kept.due_secs),
            Err(NoTokens::Wrong) => return RefreshOutcome::Waits(now_secs + pause_secs(told)),
        };
        let mut newer = session.clone();
        if let (Some(token), Some(provider)) = (tokens.id_token, self.provider.current()) {
            let subject = session.subject();
            let terms = IdTokenTerms { issuer: &self.issuer, client: &self.client_id, nonce: None, subject, now_secs };
            match id_token(&token, &provider.keys, terms) {
                Ok(content) => {
                    newer = LoginSession::new(KeptSession { id_token: token, ..session.kept.clone() }, &self.issuer, content);
                }
                // What was said before stays true until its key is at hand.
                Err(IdTokenFault::NewKey) => self.provider.miss(now_secs),
                Err(_) => return RefreshOutcome::Refused(session.kept.due_secs),
            }
        }
        if self.access_token.is_some() {
            newer.kept.access_token = Some(tokens.access_token);
        }
        newer.kept.refresh_token = tokens.refresh_token.or(newer.kept.refresh_token);
        newer.kept.due_secs = Some(self.due_secs(tokens.expires_secs, now_secs));
        newer.kept.used_secs = now_secs;
        RefreshOutcome::Done(Arc::new(newer))
    }
}

/// How long a session waits for its next refresh: as long as the provider says, within bounds.
fn pause_secs(told: &CalloutTold) -> u64 {
    let CalloutTold::Answer(answer) = told else { return REFRESH_PAUSE_SECS };
    let said = answer.headers.get(RETRY_AFTER).and_then(|secs| secs.to_str().ok()?.parse().ok());
    said.map_or(REFRESH_PAUSE_SECS, |secs: u64| secs.clamp(REFRESH_PAUSE_SECS, REFRESH_PAUSE_SECS_MAX))
}
