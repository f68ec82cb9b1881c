//! Logins of people by their browsers at an OpenID provider: authorization code with PKCE (RFC 7636), nonce, and the check of who answers
//! (RFC 9207). All that a login needs between two requests is in the browser's hands, sealed: a login under way in `state`, a session in
//! cookies. Nothing here waits: what the provider has to be asked is a [`LoginAsk`] that the shell carries out.

mod asked;
mod compile;
mod cookies;
mod exchange;
mod flow;
mod form;
mod kept;
mod live;
mod logout;
mod provider;
mod seal;
mod session;
#[cfg(test)]
mod tests;
mod told;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};

pub use asked::{LoginWhen, RETURN_BYTES_MAX};
pub(crate) use compile::{given, owner};
pub use cookies::{COOKIE_BYTES_MAX, LOGINS_IN_VAIN_MAX, SESSION_COOKIES_MAX, SameSite, strip_logins};
pub use exchange::{ClientProof, check_private_key};
pub use kept::{PutOnly, SESSION_FRESH_SECS, SessionAsk, SessionTold, StoreAsk, StoreCommand, StoreTold};
pub use live::{LoginLive, REFRESH_PAUSE_SECS, REFRESH_PAUSE_SECS_MAX, REFRESHES_MAX, SESSIONS_KNOWN_MAX, STORED_KNOWN_MAX};
pub use logout::{LOGOUT_BYTES_MAX, LogoutAsk};
pub use provider::{DISCOVERY_BYTES_MAX, Endpoints, Provider, ProviderCell, issuer_address, trusted};
pub use seal::{SEAL_KEY_BYTES_MIN, SEAL_KEYS_MAX, SEALED_BYTES_MAX, check_seal_keys};
pub use session::LoginSession;

use crate::authenticate::{IdTokenFault, KeysUri, claim_value};
use crate::callout::{CalloutLive, CalloutTold};
use crate::consumers::{Book, ConsumerChoice, Digest, digest};
use crate::limit::RemoteStore;
use asked::{is_of_others, way_back};
use cookies::{BrowserBinding, LoginCookies};
use flow::LoginFlow;
use form::{encoded, one};
use kept::{SharedTurn, TurnTold};
use live::{ELSEWHERE_SECS, RefreshOutcome, SessionTurn};
use seal::{SealKeys, SealPurpose, drawn};
use session::SessionLives;

/// How long a login under way holds.
pub const LOGIN_SECS: u64 = 600;
/// How long a provider is waited for, connecting included.
pub const LOGIN_ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// A refresh of which nothing is heard is given up, and begun by the next request.
const REFRESH_PATIENCE_SECS: u64 = 30;
/// Longest that a session lives: of two keys that open, each is the newest for as long.
pub const SESSION_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Longest ID token that is shown to the provider at the end; beyond it the client alone says whose it is.
const HINT_BYTES_MAX: usize = 6 << 10;

/// How people log in, by one object.
#[derive(Debug)]
pub struct Login {
    /// `NAMESPACE/NAME` of the object.
    pub policy: Arc<str>,
    /// A request without a session goes on.
    pub optional: bool,
    /// Where the provider sends browsers back to.
    pub redirect_path: String,
    /// Where sessions are ended.
    pub logout_path: String,
    /// Where the provider itself says that sessions have ended; `None`: nowhere.
    pub back_channel_path: Option<String>,
    /// Whose requests are sent to the provider.
    pub when: LoginWhen,
    /// Of whom sessions may be.
    pub consumers: ConsumerChoice,
    issuer: Arc<str>,
    client_id: String,
    proof: ClientProof,
    secret: Box<str>,
    key_id: String,
    scopes: String,
    after_logout: String,
    cookies: LoginCookies,
    lives: SessionLives,
    keys: Box<str>,
    /// Issuer, client and domain: whoever has the same shares sessions.
    owner: Digest,
    access_token: Option<HeaderName>,
    fills: Vec<(String, HeaderName)>,
    provider: Arc<ProviderCell>,
    barred: bool,
    live: Arc<LoginLive>,
    /// Who keeps sessions; `None`: browsers.
    store: Option<Arc<RemoteStore>>,
}

/// What a login goes by beside the request.
#[derive(Clone, Copy, Debug)]
pub struct LoginMeans<'b> {
    /// Has the secrets.
    pub book: &'b Book,
    /// Unix time.
    pub now_secs: u64,
}

/// A request, as far as logins look at it.
#[derive(Clone, Copy, Debug)]
pub struct LoginHead<'r> {
    /// Its method.
    pub method: &'r Method,
    /// Path and query.
    pub target: &'r str,
    /// Its headers.
    pub headers: &'r HeaderMap,
    /// The host that was asked, with its port as the client says it.
    pub host: &'r str,
    /// The client came by TLS.
    pub secure: bool,
}

/// A session that a request shows.
#[derive(Debug)]
pub struct SeenSession {
    /// It.
    pub session: Arc<LoginSession>,
    /// Cookies that the browser is to have with the answer.
    pub cookies: Vec<HeaderValue>,
    /// Refreshes it beside the road.
    pub refresh: Option<LoginAsk>,
}

/// What a request shows of a session.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly every one that is made is the large one, on the stack")]
pub enum SessionSeen {
    /// None, or one that is over.
    Nobody,
    /// That one.
    Somebody(SeenSession),
    /// Whoever keeps it has to be asked first.
    Asks(Box<SessionAsk>),
    /// Whoever keeps it does not answer.
    Away,
}

/// Where a browser is sent.
#[derive(Clone, Debug)]
pub struct Onwards {
    /// There.
    pub location: HeaderValue,
    /// With these cookies.
    pub cookies: Vec<HeaderValue>,
}

/// What becomes of a browser that comes back from the provider.
#[derive(Debug)]
pub enum Returned {
    /// It is logged in.
    In(Onwards),
    /// The provider has to be asked first.
    Asks(Box<LoginAsk>),
    /// The session has to be kept first.
    Keeps(Box<SessionAsk>),
}

/// What becomes of one that logs out.
#[derive(Debug)]
pub enum Leaving {
    /// It is out, and goes on.
    Out(Onwards),
    /// Another site has caused it: its user is asked.
    Confirm,
    /// Whoever keeps the session has to be asked first.
    Asks(Box<SessionAsk>),
}

/// Why nobody is logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginFault {
    /// It did not begin here, with this browser, or not lately; or it has ended already.
    Strange,
    /// Another one answers than was asked.
    Issuer,
    /// The provider says no.
    Refused,
    /// What the provider says of who it is does not hold.
    Token(IdTokenFault),
    /// The provider is away, or its keys, or ours.
    Away,
    /// Whoever keeps sessions is away.
    StoreAway,
    /// The session is larger than cookies may be.
    TooLarge,
    /// The browser came back so often without a session.
    InVain,
}

/// One question to a provider. The tokens in it are nobody's to see.
pub struct LoginAsk {
    login: Arc<Login>,
    at: KeysUri,
    request: Request<Bytes>,
    refreshes: Option<Arc<LoginSession>>,
    /// Of a session that a store keeps: one replica refreshes it.
    turn: Option<SharedTurn>,
}

impl std::fmt::Debug for LoginAsk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginAsk").field("at", self.at.uri()).finish_non_exhaustive()
    }
}

impl LoginAsk {
    /// Where the provider is asked.
    pub const fn at(&self) -> &KeysUri {
        &self.at
    }

    /// What is sent.
    pub fn request(&self) -> Request<Bytes> {
        self.request.clone()
    }

    /// How the provider answers.
    pub fn live(&self) -> &Arc<CalloutLive> {
        &self.login.live.callouts
    }

    /// Whose turn it is has to be asked first, of the store that keeps the session; `None`: it is ours.
    pub fn turn(&self) -> Option<StoreAsk> {
        Some(self.turn.as_ref()?.take(self.refreshes.as_ref()?))
    }

    /// What the store says to that, `None`: nothing. Whether the provider is to be asked, and else what the store is told.
    pub fn has_turn(&self, answers: Option<&[StoreTold]>, now_secs: u64) -> Result<(), Option<StoreAsk>> {
        let (Some(turn), Some(session)) = (&self.turn, &self.refreshes) else { return Ok(()) };
        let (id, live) = (&session.kept.id, &self.login.live);
        let (came, told) = match turn.taken(session, answers) {
            TurnTold::Ours => return Ok(()),
            TurnTold::Theirs => (RefreshOutcome::Waits(now_secs + ELSEWHERE_SECS), None),
            TurnTold::Done(newer) => {
                live.keep(&newer, now_secs);
                (RefreshOutcome::Done(newer), Some(turn.give_back(id)))
            }
            TurnTold::Over => (RefreshOutcome::Refused(session.kept.due_secs), Some(turn.give_back(id))),
            // Two that refresh at once would take each other for thieves at the provider.
            TurnTold::Away => (RefreshOutcome::Waits(now_secs + REFRESH_PAUSE_SECS), None),
        };
        live.turned(id, came);
        Err(told)
    }

    /// What came of a refresh; requests of the session see it from here on. What the store that keeps the session is told.
    pub fn settle(&self, told: &CalloutTold, now_secs: u64) -> Option<StoreAsk> {
        let session = self.refreshes.as_ref()?;
        let came = self.login.refreshed(session, told, now_secs);
        let kept = self.turn.as_ref().and_then(|turn| match &came {
            RefreshOutcome::Done(newer) => {
                self.login.live.keep(newer, now_secs);
                turn.put(newer, (now_secs, &self.login.lives))
            }
            RefreshOutcome::Refused(_) => Some(turn.end(&session.kept.id)),
            RefreshOutcome::Waits(_) => Some(turn.give_back(&session.kept.id)),
        });
        self.login.live.turned(&session.kept.id, came);
        kept
    }
}

impl Login {
    /// Headers that it fills: whatever a caller says there goes. The caller's own `authorization` may be another's to judge.
    pub(crate) fn filled(&self) -> impl Iterator<Item = &HeaderName> {
        let token = self.access_token.iter().filter(|name| **name != http::header::AUTHORIZATION);
        self.fills.iter().map(|(_, header)| header).chain(token)
    }

    /// Tells the backend who has logged in.
    pub(crate) fn fill(&self, session: &LoginSession, headers: &mut HeaderMap) {
        for (claim, header) in &self.fills {
            if let Some(value) = claim_value(&session.claims, claim) {
                headers.insert(header.clone(), value);
            }
        }
        let Some(name) = &self.access_token else { return };
        // A session from before it was to be passed on has none: what a caller says there is no stand-in.
        headers.remove(name);
        let Some(token) = &session.kept.access_token else { return };
        let bearer = *name == http::header::AUTHORIZATION;
        let value = if bearer { HeaderValue::try_from(format!("Bearer {token}")) } else { HeaderValue::try_from(token.as_str()) };
        if let Ok(mut value) = value {
            value.set_sensitive(true);
            headers.insert(name.clone(), value);
        }
    }

    /// Unix time of a session's end, whatever it does.
    pub(crate) fn ends_secs(&self, session: &LoginSession) -> u64 {
        session.ends_secs(&self.lives)
    }

    /// Whether the browser keeps a session from requests that other sites cause: what follows a login is one.
    pub fn is_strict(&self) -> bool {
        self.cookies.same_site == SameSite::Strict
    }

    /// In words.
    pub fn story(&self) -> String {
        let found = if self.provider.is_away() { ", which is not found yet" } else { "" };
        let rest = if self.optional { ", and lets requests without a session on" } else { "" };
        let kept = self.store.as_ref().map(|store| format!(", and sessions are kept by {}", store.place.name())).unwrap_or_default();
        format!("{} asks for a login at {}{found}{rest}{kept}", self.policy, self.issuer)
    }

    /// The session that a request shows, if that goes on. The provider is not waited for: what is due is refreshed beside the road. `told`: what
    /// came of asking whoever keeps it.
    pub fn seen(self: &Arc<Self>, headers: &HeaderMap, means: LoginMeans<'_>, told: Option<SessionTold>) -> SessionSeen {
        if let Some(store) = &self.store {
            return self.seen_stored(store, headers, means, told);
        }
        self.seen_whole(headers, means).map_or(SessionSeen::Nobody, SessionSeen::Somebody)
    }

    fn seen_whole(self: &Arc<Self>, headers: &HeaderMap, means: LoginMeans<'_>) -> Option<SeenSession> {
        let session = self.shown(headers, means)?;
        let now_secs = means.now_secs;
        let worn = session.is_worn(now_secs, &self.lives);
        let (session, newer, refresh) = self.in_turn(session, means)?;
        let mut cookies = Vec::new();
        if (worn || newer)
            && let Some(sealed) = self.sealing(means).and_then(|keys| session.seal(&keys, now_secs))
        {
            let life = session.life_secs(now_secs, &self.lives);
            cookies = self.cookies.keep(&sealed, life, &self.cookies.there(headers)).unwrap_or_default();
        }
        cookies.extend(self.is_kept(headers));
        Some(SeenSession { session, cookies, refresh })
    }

    /// A session that may be due: what it is by now, whether that is newer, and what refreshes it. `None`: it is over.
    fn in_turn(self: &Arc<Self>, session: Arc<LoginSession>, means: LoginMeans<'_>) -> Option<(Arc<LoginSession>, bool, Option<LoginAsk>)> {
        if !session.is_due(means.now_secs) {
            return Some((session, false, None));
        }
        match self.live.turn(&session, means.now_secs, REFRESH_PATIENCE_SECS) {
            SessionTurn::Over => None,
            SessionTurn::AsItIs => Some((session, false, None)),
            SessionTurn::By(newer) => Some((newer, true, None)),
            SessionTurn::Refresh(newer) => {
                let (session, newer) = newer.map_or((session, false), |newer| (newer, true));
                let refresh = self.refresh(&session, means);
                Some((session, newer, refresh))
            }
        }
    }

    /// The browser has kept its session: it may log in in vain anew.
    fn is_kept(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let binding = self.cookies.binding(headers).filter(|binding| binding.in_vain > 0)?;
        self.cookies.bind(&BrowserBinding { in_vain: 0, ..binding })
    }

    fn shown(&self, headers: &HeaderMap, means: LoginMeans<'_>) -> Option<Arc<LoginSession>> {
        let sealed = self.cookies.session(headers)?;
        let secret = means.book.secret(&self.keys)?;
        // With the keys, so that what none of them opens any more is not known either.
        let known_by = digest(&[&secret[..], &[0], sealed.as_bytes()].concat());
        let session = match self.live.known(&known_by) {
            Some(session) => session,
            None => {
                let session = Arc::new(LoginSession::open(&self.sealing(means)?, &sealed, &self.issuer)?);
                self.live.know(known_by, Arc::clone(&session));
                session
            }
        };
        session.lives(means.now_secs, &self.lives).then_some(session)
    }

    /// Whether a request shows a session that goes on. Nothing is begun with it.
    pub fn is_shown(&self, headers: &HeaderMap, means: LoginMeans<'_>) -> bool {
        if self.store.is_some() { self.ticket(headers, means).is_some() } else { self.shown(headers, means).is_some() }
    }

    fn sealing(&self, means: LoginMeans<'_>) -> Option<SealKeys> {
        SealKeys::read(means.book.secret(&self.keys)?, &self.owner).ok()
    }

    /// Sends a browser to the provider.
    ///
    /// # Errors
    /// It cannot log in.
    pub fn begin(&self, head: LoginHead<'_>, means: LoginMeans<'_>) -> Result<Onwards, LoginFault> {
        let bound = self.cookies.binding(head.headers);
        if bound.as_ref().is_some_and(|binding| binding.in_vain >= LOGINS_IN_VAIN_MAX) {
            return Err(LoginFault::InVain);
        }
        let provider = self.provider.current().filter(|_| !self.barred && !self.provider.is_away()).ok_or(LoginFault::Away)?;
        let keys = self.sealing(means).ok_or(LoginFault::Away)?;
        let binding = match bound {
            Some(binding) => binding,
            None => BrowserBinding { secret: drawn::<16>().ok_or(LoginFault::Away)?, in_vain: 0 },
        };
        let own = [self.redirect_path.as_str(), self.logout_path.as_str()];
        let back = way_back(head.method, head.target, &own);
        let flow = LoginFlow::new(back, &binding.secret, means.now_secs).ok_or(LoginFault::Away)?;
        let state = flow.seal(&keys).ok_or(LoginFault::Away)?;
        let redirect = self.own_address(head, &self.redirect_path).ok_or(LoginFault::Strange)?;
        let question = [
            ("response_type", "code"),
            ("client_id", &self.client_id),
            ("redirect_uri", &redirect),
            ("scope", &self.scopes),
            ("state", &state),
            ("nonce", &flow.nonce),
            ("code_challenge", &flow.challenge()),
            ("code_challenge_method", "S256"),
        ];
        let location = with_query(&provider.endpoints.authorization, &question).ok_or(LoginFault::Away)?;
        let cookies = self.cookies.bind(&binding).into_iter().chain(self.cookies.forget(&self.cookies.there(head.headers))).collect();
        Ok(Onwards { location, cookies })
    }

    /// Lets a browser try again that came back so often in vain.
    pub(crate) fn unbound(&self, head: LoginHead<'_>) -> Vec<HeaderValue> {
        let binding = self.cookies.binding(head.headers);
        binding.and_then(|binding| self.cookies.bind(&BrowserBinding { in_vain: 0, ..binding })).into_iter().collect()
    }

    /// Whether a browser that comes back began with this login.
    pub(crate) fn began(&self, head: LoginHead<'_>, means: LoginMeans<'_>) -> bool {
        self.flow(head, means).is_some()
    }

    fn flow(&self, head: LoginHead<'_>, means: LoginMeans<'_>) -> Option<LoginFlow> {
        let state = one(query(head.target), "state")?;
        LoginFlow::open(&self.sealing(means)?, &state)
    }

    /// A browser comes back from the provider. `told`: what came of asking.
    ///
    /// # Errors
    /// Nobody is logged in.
    pub fn returned(
        self: &Arc<Self>,
        head: LoginHead<'_>,
        means: LoginMeans<'_>,
        told: Option<CalloutTold>,
    ) -> Result<Returned, LoginFault> {
        let query = query(head.target);
        let flow =
            self.flow(head, means).filter(|flow| flow.holds(means.now_secs) && *head.method == Method::GET).ok_or(LoginFault::Strange)?;
        let binding = self.cookies.binding(head.headers).filter(|binding| flow.is_of(&binding.secret)).ok_or(LoginFault::Strange)?;
        let provider = self.provider.current().filter(|_| !self.barred).ok_or(LoginFault::Away)?;
        match one(query, "iss") {
            Some(issuer) if *issuer == *self.issuer => {}
            None if !provider.endpoints.says_issuer => {}
            _ => return Err(LoginFault::Issuer),
        }
        if let Some(error) = one(query, "error") {
            let passing = matches!(&*error, "server_error" | "temporarily_unavailable");
            return Err(if passing { LoginFault::Away } else { LoginFault::Refused });
        }
        let Some(told) = told else {
            let code = one(query, "code").filter(|code| !code.is_empty()).ok_or(LoginFault::Strange)?;
            let redirect = self.own_address(head, &self.redirect_path).ok_or(LoginFault::Strange)?;
            let form =
                [("grant_type", "authorization_code"), ("code", &code), ("redirect_uri", &redirect), ("code_verifier", &flow.verifier)];
            return self.ask(&provider, &form, None, means).map(|ask| Returned::Asks(Box::new(ask))).ok_or(LoginFault::Away);
        };
        let tokens = self.tokens(&told, means.now_secs)?;
        let session = self.session(&provider, tokens, &flow.nonce, means.now_secs)?;
        let keys = self.sealing(means).ok_or(LoginFault::Away)?;
        let (sealed, life) = match &self.store {
            None => (session.seal(&keys, means.now_secs), session.life_secs(means.now_secs, &self.lives)),
            Some(_) => {
                let ticket = serde_json::to_vec(&self.ticket_of(&session)).map_err(|_| LoginFault::TooLarge)?;
                // How long it rests is the store's to know.
                (keys.seal(SealPurpose::Ticket, &ticket), self.lives.max.as_secs())
            }
        };
        let sealed = sealed.ok_or(LoginFault::TooLarge)?;
        let mut cookies = self.cookies.keep(&sealed, life, &self.cookies.there(head.headers)).ok_or(LoginFault::TooLarge)?;
        // Until a request shows the session nobody knows whether the browser keeps it.
        cookies.extend(self.cookies.bind(&BrowserBinding { in_vain: binding.in_vain.saturating_add(1), ..binding }));
        let location = HeaderValue::from_str(&flow.back).map_err(|_| LoginFault::Strange)?;
        let onwards = Onwards { location, cookies };
        let Some(store) = &self.store else { return Ok(Returned::In(onwards)) };
        let stored = session.seal_stored(&keys, means.now_secs).ok_or(LoginFault::TooLarge)?;
        let former = self.ticket(head.headers, means);
        Ok(Returned::Keeps(Box::new(self.keep(store, (&session, stored), former.as_deref(), (onwards, means.now_secs)))))
    }

    /// Ends a session here, and at the provider where that takes part (OpenID Connect RP-Initiated Logout 1.0). Where another site has caused it
    /// its user is asked first. `told`: what came of ending it where it is kept; the browser leaves even if nothing did.
    pub fn leave(self: &Arc<Self>, head: LoginHead<'_>, means: LoginMeans<'_>, told: Option<SessionTold>) -> Leaving {
        if is_of_others(head.headers) {
            return Leaving::Confirm;
        }
        let shown = match (&self.store, told) {
            (None, _) => self.shown(head.headers, means).map(|session| self.live.newest(&session.kept.id).unwrap_or(session)),
            (Some(_), Some(SessionTold::Ended(session))) => session,
            (Some(_), Some(_)) => None,
            (Some(store), None) => match self.ticket(head.headers, means) {
                Some(ticket) => return Leaving::Asks(Box::new(self.end(store, ticket))),
                None => None,
            },
        };
        let after = match self.after_logout.strip_prefix('/') {
            Some(_) => self.own_address(head, &self.after_logout),
            None => Some(self.after_logout.clone()),
        };
        let ends = self.provider.current().and_then(|provider| provider.endpoints.end_session.clone());
        let location = match (ends, shown) {
            (Some(ends), Some(session)) => {
                let hint = &session.kept.id_token;
                let mut question = vec![("client_id", self.client_id.as_str())];
                if hint.len() <= HINT_BYTES_MAX {
                    question.push(("id_token_hint", hint));
                }
                question.extend(after.as_deref().map(|after| ("post_logout_redirect_uri", after)));
                with_query(&ends, &question)
            }
            // Nobody is logged in, or the provider ends nothing.
            _ => HeaderValue::from_str(&self.after_logout).ok(),
        };
        let location = location.unwrap_or_else(|| HeaderValue::from_static("/"));
        Leaving::Out(Onwards { location, cookies: self.cookies.forget(&self.cookies.there(head.headers)) })
    }

    /// An address of this very host.
    fn own_address(&self, head: LoginHead<'_>, path: &str) -> Option<String> {
        let host = head.host.rsplit_once('@').map_or(head.host, |(_, host)| host);
        let good = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte));
        good.then(|| format!("{}://{host}{path}", if head.secure { "https" } else { "http" }))
    }
}

fn query(target: &str) -> &str {
    target.split_once('?').map_or("", |(_, query)| query)
}

/// An address with a question behind what it has already.
fn with_query(at: &KeysUri, question: &[(&str, &str)]) -> Option<HeaderValue> {
    let mut text = at.uri().to_string();
    for (place, (name, value)) in question.iter().enumerate() {
        text.push(if place == 0 && at.uri().query().is_none() { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        text.push_str(&encoded(value));
    }
    HeaderValue::try_from(text).ok()
}
