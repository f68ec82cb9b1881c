//! Logins of people by their browsers at an OpenID provider: authorization code with PKCE (RFC 7636), nonce, and the check of who answers
//! (RFC 9207). All that a login needs between two requests is in the browser's hands, sealed: a login under way in `state`, a session in
//! cookies. Nothing here waits: what the provider has to be asked is a [`LoginAsk`] that the shell carries out.

mod asked;
mod cookies;
mod exchange;
mod flow;
mod form;
mod live;
mod provider;
mod seal;
mod session;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use proto::mesh::{EdgeLogin, LoginEndpoints, edge_login};

pub use asked::{LoginWhen, RETURN_BYTES_MAX};
pub use cookies::{COOKIE_BYTES_MAX, LOGINS_IN_VAIN_MAX, SESSION_COOKIES_MAX, SameSite, strip_logins};
pub use exchange::{ClientProof, check_private_key};
pub use live::{LoginLive, REFRESH_PAUSE_SECS, REFRESHES_MAX, SESSIONS_KNOWN_MAX};
pub use provider::{DISCOVERY_BYTES_MAX, Endpoints, Provider, ProviderCell, issuer_address, trusted};
pub use seal::{SEAL_KEY_BYTES_MIN, SEAL_KEYS_MAX, SEALED_BYTES_MAX, check_seal_keys};
pub use session::LoginSession;

use crate::authenticate::{IdTokenFault, IdTokenTerms, KeysUri, claim_header, claim_value, id_token};
use crate::callout::{CalloutAnswer, CalloutLive, CalloutOutcome, CalloutTold};
use crate::consumers::{Book, ConsumerChoice, Digest, digest};
use crate::raw::duration;
use crate::rejected::Wrong;
use asked::{is_of_others, way_back};
use cookies::{BrowserBinding, LoginCookies};
use exchange::{LoginClient, NoTokens, TokenAnswer, question};
use flow::LoginFlow;
use form::{encoded, one};
use live::{RefreshOutcome, SessionTurn};
use seal::{SealKeys, drawn};
use session::{KeptSession, SessionLives};

/// How long a login under way holds.
pub const LOGIN_SECS: u64 = 600;
/// How long a provider is waited for, connecting included.
pub const LOGIN_ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// A refresh of which nothing is heard is given up, and begun by the next request.
const REFRESH_PATIENCE_SECS: u64 = 30;
/// Longest that a session lives: of two keys that open, each is the newest for as long.
pub const SESSION_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long an access token is fresh where the provider does not say.
const FRESH_SECS: u64 = 300;
/// Longest ID token that is shown to the provider at the end; beyond it the client alone says whose it is.
const HINT_BYTES_MAX: usize = 6 << 10;
/// Most scopes, and headers that are filled.
const LISTED_MAX: usize = 64;
/// Longest of what names something.
const TEXT_BYTES_MAX: usize = 2_048;

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

/// Where a browser is sent.
#[derive(Debug)]
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
    Asks(LoginAsk),
}

/// What becomes of one that logs out.
#[derive(Debug)]
pub enum Leaving {
    /// It is out, and goes on.
    Out(Onwards),
    /// Another site has caused it: its user is asked.
    Confirm,
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

    /// What came of a refresh; requests of the session see it from here on.
    pub fn settle(&self, told: &CalloutTold, now_secs: u64) {
        let Some(session) = &self.refreshes else { return };
        let came = self.login.refreshed(session, told, now_secs);
        self.login.live.turned(&session.kept.id, came);
    }
}

impl Login {
    /// `provider`, `live`: what outlives the object.
    pub(crate) fn compile(raw: &EdgeLogin, provider: Arc<ProviderCell>, live: Arc<LoginLive>) -> Result<Self, Wrong> {
        let time = |told: Option<&prost_types::Duration>, field: &str| {
            let time = duration(told, field)?.filter(|time| time.as_secs() > 0 && *time <= SESSION_MAX);
            time.ok_or_else(|| Wrong::new(field, format!("is not from 1s up to {}s", SESSION_MAX.as_secs())))
        };
        let own = owner(raw);
        let lives = SessionLives {
            idle: time(raw.idle.as_ref(), "idle")?,
            max: time(raw.max.as_ref(), "max")?,
            refresh_at_percent: raw.refresh_at_percent,
        };
        if !(1..=100).contains(&lives.refresh_at_percent) {
            return Err(Wrong::new("refresh_at_percent", "is not from 1 to 100"));
        }
        for (field, path) in [("redirect_path", &raw.redirect_path), ("logout_path", &raw.logout_path)] {
            if !path.starts_with('/') || path.len() > TEXT_BYTES_MAX || path.contains(['?', '#']) {
                return Err(Wrong::new(field, "is no path"));
            }
        }
        if raw.client_id.is_empty() || raw.scopes.len() > LISTED_MAX || raw.claims_to_headers.len() > LISTED_MAX {
            return Err(Wrong::new("client_id", format!("is empty, or more than {LISTED_MAX} scopes or headers are named")));
        }
        let header = |name: &str, field: &str| {
            let read = name.parse().ok().filter(|_| claim_header(name));
            read.ok_or_else(|| Wrong::new(field, format!("`{}` is not a login's to fill", name.escape_debug())))
        };
        let fills = raw.claims_to_headers.iter().map(|fill| Ok((fill.claim.clone(), header(&fill.header, "claims_to_headers")?)));
        let proof = match raw.proof() {
            _ if raw.secret.is_empty() => ClientProof::None,
            edge_login::Proof::Basic => ClientProof::Basic,
            edge_login::Proof::Post => ClientProof::Post,
            edge_login::Proof::PrivateKeyJwt => ClientProof::PrivateKeyJwt,
        };
        let when = match raw.when() {
            edge_login::When::Navigation => LoginWhen::Navigation,
            edge_login::When::Always => LoginWhen::Always,
            edge_login::When::Never => LoginWhen::Never,
        };
        let same_site = match raw.same_site() {
            edge_login::SameSite::Lax => SameSite::Lax,
            edge_login::SameSite::Strict => SameSite::Strict,
            edge_login::SameSite::None => SameSite::None,
        };
        let tag: String = own.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let consumers = raw.consumers.as_ref().map(ConsumerChoice::compile).transpose().map_err(|wrong| wrong.within("consumers"))?;
        Ok(Self {
            policy: raw.policy.as_str().into(),
            optional: raw.optional,
            redirect_path: raw.redirect_path.clone(),
            logout_path: raw.logout_path.clone(),
            when,
            consumers: consumers.unwrap_or_default(),
            issuer: raw.issuer.as_str().into(),
            client_id: raw.client_id.clone(),
            proof,
            secret: raw.secret.as_str().into(),
            key_id: raw.key_id.clone(),
            scopes: raw.scopes.join(" "),
            after_logout: if raw.post_logout_redirect.is_empty() { "/".to_owned() } else { raw.post_logout_redirect.clone() },
            cookies: LoginCookies::new(&tag, &raw.cookie_domain, same_site),
            lives,
            keys: raw.keys.as_str().into(),
            owner: own,
            access_token: if raw.access_token_header.is_empty() {
                None
            } else {
                Some(header(&raw.access_token_header, "access_token_header")?)
            },
            fills: fills.collect::<Result<_, Wrong>>()?,
            provider,
            barred: !raw.barred.is_empty(),
            live,
        })
    }

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
        let (Some(name), Some(token)) = (&self.access_token, &session.kept.access_token) else { return };
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
        format!("{} asks for a login at {}{found}{rest}", self.policy, self.issuer)
    }

    /// The session that a request shows, if that goes on. Nothing is waited for: what is due is refreshed beside the road.
    pub fn seen(self: &Arc<Self>, headers: &HeaderMap, means: LoginMeans<'_>) -> Option<SeenSession> {
        let (mut session, keys) = self.shown(headers, means)?;
        let now_secs = means.now_secs;
        let (mut renewed, mut refresh) = (session.is_worn(now_secs, &self.lives), None);
        if session.is_due(now_secs) {
            match self.live.turn(&session, now_secs, REFRESH_PATIENCE_SECS) {
                SessionTurn::Over => return None,
                SessionTurn::AsItIs => {}
                SessionTurn::By(newer) => (session, renewed) = (newer, true),
                SessionTurn::Refresh(newer) => {
                    if let Some(newer) = newer {
                        (session, renewed) = (newer, true);
                    }
                    refresh = self.refresh(&session, means);
                }
            }
        }
        let mut cookies = Vec::new();
        if renewed && let Some(sealed) = session.seal(&keys, now_secs) {
            let life = session.life_secs(now_secs, &self.lives);
            cookies = self.cookies.keep(&sealed, life, &self.cookies.there(headers)).unwrap_or_default();
        }
        if let Some(binding) = self.cookies.binding(headers).filter(|binding| binding.in_vain > 0) {
            cookies.extend(self.cookies.bind(&BrowserBinding { in_vain: 0, ..binding }));
        }
        Some(SeenSession { session, cookies, refresh })
    }

    fn shown(&self, headers: &HeaderMap, means: LoginMeans<'_>) -> Option<(Arc<LoginSession>, SealKeys)> {
        let sealed = self.cookies.session(headers)?;
        let secret = means.book.secret(&self.keys)?;
        let keys = SealKeys::read(secret, &self.owner).ok()?;
        // With the keys, so that what none of them opens any more is not known either.
        let known_by = digest(&[&secret[..], &[0], sealed.as_bytes()].concat());
        let session = match self.live.known(&known_by) {
            Some(session) => session,
            None => {
                let session = Arc::new(LoginSession::open(&keys, &sealed, &self.issuer)?);
                self.live.know(known_by, Arc::clone(&session));
                session
            }
        };
        session.lives(means.now_secs, &self.lives).then_some((session, keys))
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
        let flow = self.flow(head, means).filter(|flow| flow.holds(means.now_secs) && *head.method == Method::GET).ok_or(LoginFault::Strange)?;
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
            let form = [
                ("grant_type", "authorization_code"),
                ("code", &code),
                ("redirect_uri", &redirect),
                ("code_verifier", &flow.verifier),
            ];
            return self.ask(&provider, &form, None, means).map(Returned::Asks).ok_or(LoginFault::Away);
        };
        let tokens = self.tokens(&told, means.now_secs)?;
        let session = self.session(&provider, tokens, &flow.nonce, means.now_secs)?;
        let keys = self.sealing(means).ok_or(LoginFault::Away)?;
        let sealed = session.seal(&keys, means.now_secs).ok_or(LoginFault::TooLarge)?;
        let life = session.life_secs(means.now_secs, &self.lives);
        let mut cookies = self.cookies.keep(&sealed, life, &self.cookies.there(head.headers)).ok_or(LoginFault::TooLarge)?;
        // Until a request shows the session nobody knows whether the browser keeps it.
        cookies.extend(self.cookies.bind(&BrowserBinding { in_vain: binding.in_vain.saturating_add(1), ..binding }));
        let location = HeaderValue::from_str(&flow.back).map_err(|_| LoginFault::Strange)?;
        Ok(Returned::In(Onwards { location, cookies }))
    }

    /// Ends a session here, and at the provider where that takes part (OpenID Connect RP-Initiated Logout 1.0). Where another site has caused it
    /// its user is asked first.
    pub fn leave(&self, head: LoginHead<'_>, means: LoginMeans<'_>) -> Leaving {
        if is_of_others(head.headers) {
            return Leaving::Confirm;
        }
        let after = match self.after_logout.strip_prefix('/') {
            Some(_) => self.own_address(head, &self.after_logout),
            None => Some(self.after_logout.clone()),
        };
        let ends = self.provider.current().and_then(|provider| provider.endpoints.end_session.clone());
        let shown = self.shown(head.headers, means).map(|(session, _)| self.live.newest(&session.kept.id).unwrap_or(session));
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

    fn client<'c>(&'c self, secret: &'c [u8]) -> LoginClient<'c> {
        LoginClient { id: &self.client_id, proof: self.proof, secret, key_id: &self.key_id }
    }

    fn ask(
        self: &Arc<Self>,
        provider: &Provider,
        form: &[(&str, &str)],
        refreshes: Option<Arc<LoginSession>>,
        means: LoginMeans<'_>,
    ) -> Option<LoginAsk> {
        let secret: &[u8] = if self.secret.is_empty() { &[] } else { means.book.secret(&self.secret)? };
        let at = provider.endpoints.token.clone();
        let request = question(&at, &self.client(secret), form, means.now_secs).ok()?;
        Some(LoginAsk { login: Arc::clone(self), at, request, refreshes })
    }

    /// What refreshes a session; where nobody can be asked it waits a little.
    fn refresh(self: &Arc<Self>, session: &Arc<LoginSession>, means: LoginMeans<'_>) -> Option<LoginAsk> {
        let provider = self.provider.current().filter(|_| !self.barred);
        let ask = provider.and_then(|provider| {
            let form = [("grant_type", "refresh_token"), ("refresh_token", session.kept.refresh_token.as_deref()?)];
            self.ask(&provider, &form, Some(Arc::clone(session)), means)
        });
        if ask.is_none() {
            self.live.turned(&session.kept.id, RefreshOutcome::Unanswered(means.now_secs));
        }
        ask
    }

    /// What the token endpoint said to a code.
    fn tokens(&self, told: &CalloutTold, now_secs: u64) -> Result<TokenAnswer, LoginFault> {
        match self.read(told, now_secs) {
            Ok(tokens) => Ok(tokens),
            Err(NoTokens::Refused) => Err(LoginFault::Strange),
            Err(NoTokens::Wrong) => Err(LoginFault::Away),
        }
    }

    /// Reads and counts an answer.
    fn read(&self, told: &CalloutTold, now_secs: u64) -> Result<TokenAnswer, NoTokens> {
        let nothing = CalloutAnswer::default();
        let (read, outcome) = match told {
            CalloutTold::Answer(answer) => match TokenAnswer::read(answer) {
                Ok(tokens) => (Ok(tokens), CalloutOutcome::Allowed),
                Err(NoTokens::Refused) => (Err(NoTokens::Refused), CalloutOutcome::Denied),
                Err(NoTokens::Wrong) => (Err(NoTokens::Wrong), CalloutOutcome::Garbled),
            },
            CalloutTold::Away(away) => (Err(NoTokens::Wrong), (*away).into()),
            CalloutTold::TooLong => (TokenAnswer::read(&nothing), CalloutOutcome::Garbled),
        };
        self.live.callouts.count(outcome);
        if read == Err(NoTokens::Wrong) {
            // Whether it is there at all is found out at once, so that nobody is sent to it in vain.
            self.provider.miss(now_secs);
        }
        read
    }

    /// A new session out of what the provider says.
    fn session(&self, provider: &Provider, tokens: TokenAnswer, nonce: &str, now_secs: u64) -> Result<LoginSession, LoginFault> {
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
        now_secs + (fresh * u64::from(self.lives.refresh_at_percent) / 100).max(1)
    }

    /// What a session is after its refresh.
    fn refreshed(&self, session: &LoginSession, told: &CalloutTold, now_secs: u64) -> RefreshOutcome {
        let tokens = match self.read(told, now_secs) {
            Ok(tokens) => tokens,
            Err(NoTokens::Refused) => return RefreshOutcome::Refused,
            Err(NoTokens::Wrong) => return RefreshOutcome::Unanswered(now_secs),
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
                Err(_) => return RefreshOutcome::Refused,
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

/// What tells logins apart that do not share their sessions.
pub(crate) fn owner(raw: &EdgeLogin) -> Digest {
    digest(format!("{}\0{}\0{}", raw.issuer, raw.client_id, raw.cookie_domain).as_bytes())
}

/// The endpoints that are given by hand. Where proxies ask themselves may be plain: the control plane bars what is not the mesh's own name.
pub(crate) fn given(raw: &LoginEndpoints, issuer: &KeysUri) -> Result<Endpoints, Wrong> {
    let read = |text: &str, field: &str| trusted(text, issuer).map_err(|why| Wrong::new(format!("endpoints.{field}"), why));
    let asked = |text: &str, field: &str| KeysUri::read(text).map_err(|why| Wrong::new(format!("endpoints.{field}"), why));
    Ok(Endpoints {
        authorization: read(&raw.authorization, "authorization")?,
        token: asked(&raw.token, "token")?,
        jwks: asked(&raw.jwks, "jwks")?,
        end_session: if raw.end_session.is_empty() { None } else { Some(read(&raw.end_session, "end_session")?) },
        says_issuer: false,
    })
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
