//! Who calls: any of what is attached. All credentials that are there are judged, whichever says who it is: one that is bad is 401 at once and tried
//! nowhere else; none at all is 401, unless everything that is attached is optional.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, request};
use smallvec::{SmallVec, smallvec};

use super::api_key::{ApiKeys, Fill, ShownKey, is_token};
use super::basic::{AskedPassword, Basic, Judged};
use super::denied::Denied;
use super::introspect::{Active, Introspected, Introspection};
use super::login::{begun, head as login_head, kept};
use super::unsaid::{UNCHECKED_HEADER, unchecked, unsay};
use super::{Passed, Question, Watch, unavailable};
use crate::authenticate::{Accepted, Authentication, KeyCell, TokenFault, TokenPlace, TokenVerdict};
use crate::authorize::{Call, Own};
use crate::callout::CalloutKind;
use crate::claims::Claims;
use crate::consumers::{AuthMethod, CONSUMER_HEADER, ConsumerChoice, Digest, Identified, digest};
use crate::failure::{LocalReply, Reason};
use crate::filter::Exchange;
use crate::login::{Login, LoginMeans, LoginSession, SeenSession, SessionAsk, SessionSeen};
use crate::matching::RequestHead;

/// gRPC's code (<https://grpc.io/docs/guides/status-codes>).
const GRPC_UNAUTHENTICATED: u8 = 16;

/// Tokens (JWT) as one of the ways to say who calls.
#[derive(Debug)]
pub struct TokenGuard {
    pub(crate) rules: Authentication,
    pub(crate) optional: bool,
    /// By place of the rule: the claim that its consumers are found by.
    pub(crate) claims: Vec<Option<Box<str>>>,
    /// Of whom tokens that a rule claims may be.
    pub(crate) consumers: ConsumerChoice,
    /// The object.
    pub(crate) policy: Arc<str>,
    /// Who knows tokens that no rule claims.
    pub(crate) introspection: Option<Arc<Introspection>>,
}

/// Client certificates as one of the ways to say who calls: one that nobody claims says nothing.
#[derive(Debug)]
pub struct CertificateGuard {
    pub(crate) consumers: ConsumerChoice,
}

/// All that says who calls a rule, and what is asked of whom.
#[derive(Debug)]
pub struct Identify {
    tokens: Option<TokenGuard>,
    keys: Option<ApiKeys>,
    basic: Option<Basic>,
    certificates: Option<CertificateGuard>,
    login: Option<Arc<Login>>,
    /// A request without any credential goes on.
    optional: bool,
    /// Headers that are filled: whatever a caller says there goes.
    filled: Vec<HeaderName>,
    /// What is asked for, of who shows nothing good.
    challenges: Vec<HeaderValue>,
}

/// How a credential was shown, for what becomes of it.
enum Way {
    Token(Arc<Accepted>),
    Opaque(Digest),
    Key(ShownKey),
    Password,
    Session(Arc<LoginSession>),
    Certificate,
}

/// How credentials were shown, all of them good; whom the first makes a caller is who calls.
type Ways = SmallVec<[Way; 1]>;

/// What the search for a caller comes to.
enum Sought {
    Nobody,
    Somebody(Identified, Ways),
    Asks(Question),
}

impl Sought {
    /// Another good credential.
    fn add(&mut self, found: Identified, way: Way) {
        if let Self::Somebody(_, ways) = self {
            ways.push(way);
        } else {
            *self = Self::Somebody(found, smallvec![way]);
        }
    }
}

impl Identify {
    /// `None`: nobody asks who calls.
    pub(crate) fn new(
        tokens: Option<TokenGuard>,
        keys: Option<ApiKeys>,
        basic: Option<Basic>,
        (certificates, login): (Option<CertificateGuard>, Option<Arc<Login>>),
    ) -> Option<Self> {
        if tokens.is_none() && keys.is_none() && basic.is_none() && certificates.is_none() && login.is_none() {
            return None;
        }
        let optional = tokens.iter().all(|tokens| tokens.optional)
            && keys.iter().all(|keys| keys.optional)
            && basic.iter().all(|basic| basic.optional)
            && login.iter().all(|login| login.optional);
        let fills = keys.iter().flat_map(|keys| &keys.fills).chain(basic.iter().flat_map(|basic| &basic.fills));
        let mut filled: Vec<HeaderName> = vec![CONSUMER_HEADER, UNCHECKED_HEADER];
        for name in fills.map(|fill| &fill.name).chain(login.iter().flat_map(|login| login.filled())) {
            if !filled.contains(name) {
                filled.push(name.clone());
            }
        }
        let mut challenges: Vec<HeaderValue> = Vec::new();
        let bearer = tokens.iter().map(|_| HeaderValue::from_static("Bearer"));
        for challenge in bearer.chain(keys.iter().map(ApiKeys::challenge)).chain(basic.iter().map(Basic::challenge)) {
            if !challenges.contains(&challenge) {
                challenges.push(challenge);
            }
        }
        if login.is_some() {
            challenges.push(HeaderValue::from_static("Login"));
        }
        Some(Self { tokens, keys, basic, certificates, login, optional, filled, challenges })
    }

    /// Where keys of tokens are fetched from.
    pub fn cells(&self) -> impl Iterator<Item = &Arc<KeyCell>> {
        self.tokens.iter().flat_map(|tokens| tokens.rules.cells())
    }

    /// Parameters of queries in which it looks for credentials.
    pub(super) fn secret_parameters(&self) -> Vec<&str> {
        let opaque = self.tokens.iter().filter_map(|tokens| tokens.introspection.as_ref()).flat_map(|opaque| opaque.places());
        let keys = self.keys.iter().flat_map(|keys| &keys.places);
        let tokens = self.tokens.iter().flat_map(|tokens| tokens.rules.places());
        tokens
            .chain(opaque)
            .chain(keys)
            .filter_map(|place| if let TokenPlace::Query(name) = place { Some(name.as_str()) } else { None })
            .collect()
    }

    pub(super) fn on_request(&self, exchange: &mut Exchange<'_>) -> Passed {
        unsay(&mut exchange.request.headers, &self.filled);
        let Some(watch) = &mut exchange.watch else { return Passed::Answered(Box::new(unavailable())) };
        let head = RequestHead::nameless(&exchange.request.method, &exchange.request.uri, &exchange.request.headers);
        let sought = self.seek(&head, watch, exchange.address);
        let (identified, ways) = match sought {
            Ok(Sought::Somebody(identified, ways)) => (identified, ways),
            Ok(Sought::Asks(question)) => return Passed::Asks(Box::new(question)),
            Ok(Sought::Nobody) => {
                if let Some(tokens) = &self.tokens {
                    tokens.rules.unsay(&mut exchange.request.headers);
                }
                if let Some(token) = watch.found.unchecked() {
                    self.go_on_unchecked(exchange.request, &token);
                    return Passed::On;
                }
                return match &self.login {
                    _ if self.optional => Passed::On,
                    Some(login) if login.when.redirects(&exchange.request.method, &exchange.request.headers) => {
                        begun(login, login_head(exchange.request, exchange.called), watch)
                    }
                    _ => self.denied(watch, (None, Denied::Nothing)),
                };
            }
            Err(denied) => return self.denied(watch, denied),
        };
        // Somebody by another credential than the one that nobody could be asked about.
        if let Some(token) = watch.found.unchecked() {
            self.go_on_unchecked(exchange.request, &token);
        }
        watch.found.identify(identified);
        match self.carry_out(exchange, &ways) {
            Ok(()) => Passed::On,
            Err(denied) => {
                if let Some(watch) = &mut exchange.watch {
                    watch.found.deny(denied);
                }
                Passed::Answered(Box::new(unavailable()))
            }
        }
    }

    /// Nobody could be asked about a token: the backend hears that, and sees as much of it as of one that is good.
    fn go_on_unchecked(&self, request: &mut request::Parts, token: &Digest) {
        let introspection = self.tokens.iter().filter_map(|tokens| tokens.introspection.as_ref());
        introspection.for_each(|introspection| introspection.strip(request, token));
        unchecked(&mut request.headers, CalloutKind::Introspection);
    }

    /// Asks one after the other, in the fixed order, also those behind one that says who it is.
    fn seek(&self, head: &RequestHead<'_>, watch: &mut Watch<'_>, address: IpAddr) -> Result<Sought, (Option<AuthMethod>, Denied)> {
        let by = |method: AuthMethod| move |denied: Denied| (Some(method), denied);
        // Where keys may stand at the same places, what has not a token's form is a key.
        let shared = self.tokens.is_some() && self.keys.is_some();
        let mut sought = Sought::Nobody;
        // What an opaque token is known by, which is no key; and a question about it, which waits for whatever needs none.
        let (mut opaque, mut asks) = (None, None);
        if let Some(tokens) = &self.tokens {
            if let Some((bearer, accepted)) = tokens.by_rules(head, watch, shared)? {
                tokens.alone(head, watch, self.keys.is_some(), &accepted).map_err(by(AuthMethod::Jwt))?;
                sought.add(bearer, Way::Token(accepted));
            } else {
                match tokens.introspect(head, watch, self.keys.is_some()).map_err(by(AuthMethod::Jwt))? {
                    Introspected::Nothing => {}
                    Introspected::Active(active, known_by) => {
                        sought.add(tokens.opaque_bearer(&active, watch).map_err(by(AuthMethod::Jwt))?, Way::Opaque(known_by));
                        opaque = Some(known_by);
                    }
                    Introspected::Asks(ask, known_by) => (opaque, asks) = (Some(known_by), Some(ask)),
                    Introspected::Unchecked(known_by) => {
                        watch.found.go_on_unchecked(known_by);
                        opaque = Some(known_by);
                    }
                }
            }
        }
        let other = |credential: &[u8]| shared && is_token(credential) || opaque.is_some_and(|known_by| known_by == digest(credential));
        if let Some(keys) = &self.keys
            && let Some((found, key)) = keys.judge(head, watch.book, watch.wall_secs, other).map_err(by(AuthMethod::ApiKey))?
        {
            sought.add(found, Way::Key(key));
        }
        if let Some(basic) = &self.basic {
            let Watch { book, verified, found, wall_secs, .. } = watch;
            let asked = AskedPassword { book, verified, answer: found.answer(), address, now_secs: *wall_secs };
            match basic.judge(head, asked).map_err(by(AuthMethod::Basic))? {
                Judged::Nothing => {}
                Judged::Somebody(found) => sought.add(found, Way::Password),
                Judged::Asks(password) => return Ok(Sought::Asks(Question::Password(Arc::new(password)))),
            }
        }
        if let Some(ask) = asks {
            return Ok(Sought::Asks(Question::Token(ask)));
        }
        if matches!(sought, Sought::Nobody)
            && opaque.is_none()
            && let Some(login) = &self.login
        {
            match by_session(login, head, watch).map_err(by(AuthMethod::Login))? {
                BySession::Nobody => {}
                BySession::Somebody(found, session) => sought.add(found, Way::Session(session)),
                BySession::Asks(ask) => return Ok(Sought::Asks(Question::Session(ask))),
            }
        }
        if matches!(sought, Sought::Nobody)
            && opaque.is_none()
            && let Some(found) = self.by_certificate(watch).map_err(by(AuthMethod::Cert))?
        {
            sought.add(found, Way::Certificate);
        }
        Ok(sought)
    }

    /// Who has shown the connection's certificate. What a request shows by itself says more, and goes before it.
    fn by_certificate(&self, watch: &Watch<'_>) -> Result<Option<Identified>, Denied> {
        let (Some(guard), Some(certificate)) = (&self.certificates, watch.certificate) else { return Ok(None) };
        let owner = watch.book.by_certificate(certificate, |consumer| guard.consumers.takes(consumer));
        let Some((consumer, place)) = owner else { return Ok(None) };
        let credential = consumer.credentials.get(place).ok_or(Denied::Unknown)?;
        let until_secs = consumer.holds(credential, watch.wall_secs).map_err(Denied::from)?;
        Ok(Some(Identified {
            method: AuthMethod::Cert,
            consumer: Some(consumer),
            credential: Some(place),
            user: None,
            file: None,
            claims: None,
            until_secs,
        }))
    }

    /// Takes out what the backend is not to see, and says what it is to know.
    fn carry_out(&self, exchange: &mut Exchange<'_>, ways: &[Way]) -> Result<(), Denied> {
        let fills: &[Fill] = match ways.first() {
            Some(Way::Key(_)) => self.keys.as_ref().map_or(&[], |keys| &keys.fills),
            Some(Way::Password) => self.basic.as_ref().map_or(&[], |basic| &basic.fills),
            Some(Way::Token(_) | Way::Opaque(_) | Way::Session(_) | Way::Certificate) | None => &[],
        };
        let mut values = Vec::new();
        if !fills.is_empty() {
            let found = exchange.watch.as_ref().and_then(|watch| watch.found.identified());
            let head = RequestHead::new(&exchange.request.method, &exchange.request.uri, &exchange.request.headers);
            let call = Call {
                peer: None,
                workload: "",
                source: SocketAddr::new(exchange.address, 0),
                port: exchange.called.port,
                head: Some(&head),
                claims: found.and_then(|found| found.claims.as_deref()),
                auth: found,
                edge: None,
                own: Own::default(),
            };
            for fill in fills {
                values.push((fill.name.clone(), fill.of(&call)?));
            }
        }
        if let Some(tokens) = &self.tokens {
            let accepted = ways.iter().find_map(|way| if let Way::Token(accepted) = way { Some(Arc::clone(accepted)) } else { None });
            tokens.rules.carry_out(&accepted.map_or(TokenVerdict::Without, TokenVerdict::Accepted), exchange.request);
        }
        for way in ways {
            match (way, &self.keys, &self.basic) {
                (Way::Key(key), Some(keys), _) => keys.strip(exchange.request, key),
                (Way::Password, _, Some(basic)) => basic.strip(exchange.request),
                (Way::Session(session), ..) => {
                    if let Some(login) = &self.login {
                        login.fill(session, &mut exchange.request.headers);
                    }
                }
                (Way::Opaque(digest), ..) => {
                    let introspection = self.tokens.iter().filter_map(|tokens| tokens.introspection.as_ref());
                    introspection.for_each(|introspection| introspection.strip(exchange.request, digest));
                }
                _ => {}
            }
        }
        let headers = &mut exchange.request.headers;
        values.into_iter().for_each(|(name, value)| _ = headers.insert(name, value));
        let found = exchange.watch.as_ref().and_then(|watch| watch.found.identified());
        if let Some(told) = found.and_then(Identified::told_to_mesh) {
            headers.insert(CONSUMER_HEADER, told.clone());
        }
        Ok(())
    }

    fn denied(&self, watch: &mut Watch<'_>, (shown, why): (Option<AuthMethod>, Denied)) -> Passed {
        watch.found.refuse(shown, why);
        let reason = why.reason();
        let mut reply = LocalReply::of(reason);
        match reason {
            Reason::Unauthenticated => {
                reply.grpc_status = Some(GRPC_UNAUTHENTICATED);
                reply.headers = self.challenges.iter().map(|challenge| (WWW_AUTHENTICATE, challenge.clone())).collect();
            }
            Reason::RateLimited => reply.headers.push((RETRY_AFTER, HeaderValue::from_static("60"))),
            Reason::PolicyUnavailable => reply.headers.push((RETRY_AFTER, HeaderValue::from_static("1"))),
            _ => {}
        }
        Passed::Answered(Box::new(reply))
    }

    /// The name that `explain` prints.
    pub(super) fn name(&self) -> &'static str {
        match (&self.tokens, &self.keys, &self.basic) {
            (None, None, None) if self.login.is_some() => "login",
            _ if self.login.is_some() => "authentication",
            (None, None, None) => "cert",
            (Some(tokens), None, None) if tokens.rules.rules().is_empty() => "introspection",
            (Some(_), None, None) => "jwt",
            (None, Some(_), None) => "api_key",
            (None, None, Some(_)) => "basic",
            _ => "authentication",
        }
    }

    /// What it does, in words.
    pub(super) fn story(&self) -> String {
        let tokens = self.tokens.iter().map(|tokens| {
            format!("{} asks for a token{}", tokens.policy, if tokens.optional { ", and lets requests without one on" } else { "" })
        });
        let opaque = self.tokens.iter().filter_map(|tokens| tokens.introspection.as_ref()).map(|opaque| opaque.story());
        let rest = self.keys.iter().map(ApiKeys::story).chain(self.basic.iter().map(Basic::story));
        let certificates = self.certificates.iter().map(|_| "a consumer's client certificate says who calls".to_owned());
        let login = self.login.iter().map(|login| login.story());
        tokens.chain(opaque).chain(rest).chain(login).chain(certificates).collect::<Vec<_>>().join("; ")
    }
}

/// Whom a token makes its bearer, and what was accepted of it.
type Bearer = (Identified, Arc<Accepted>);

impl TokenGuard {
    /// Whom a token makes its bearer that a rule claims; `None`: there is none. `shared`: what has not a token's form is somebody else's to judge.
    fn by_rules(
        &self,
        head: &RequestHead<'_>,
        watch: &mut Watch<'_>,
        shared: bool,
    ) -> Result<Option<Bearer>, (Option<AuthMethod>, Denied)> {
        let by = |denied: Denied| (Some(AuthMethod::Jwt), denied);
        let opaque = self.introspection.is_some();
        let only = |token: &[u8]| !(shared || opaque) || is_token(token);
        match self.rules.judge_only(head, watch.tokens, watch.wall_secs, &only) {
            TokenVerdict::Without => Ok(None),
            TokenVerdict::Accepted(accepted) => {
                let claim = self.claims.get(accepted.rule_number()).and_then(Option::as_deref);
                let found = bearer((&accepted.claims, accepted.until_secs()), claim, &self.consumers, watch).map_err(by)?;
                Ok(Some((found, accepted)))
            }
            // No rule claims it.
            TokenVerdict::Refused(TokenFault::Issuer | TokenFault::Malformed) if opaque => Ok(None),
            TokenVerdict::Refused(fault) => Err(by(of_token(fault))),
        }
    }

    /// Beside a token that holds no opaque one may stand: two tokens are nobody's word, and what nobody has judged is not sent on
    /// (edge-kinds.md, Identity). `keys`: what is one of the mesh's own keys is no token.
    fn alone(&self, head: &RequestHead<'_>, watch: &Watch<'_>, keys: bool, accepted: &Accepted) -> Result<(), Denied> {
        let Some(introspection) = &self.introspection else { return Ok(()) };
        let known = |credential: &[u8]| accepted.is(credential) || keys && watch.book.by_key(&digest(credential)).is_some();
        if introspection.shows(head, known) { Err(Denied::Several) } else { Ok(()) }
    }

    /// What an opaque token comes to. `keys`: what is one of the mesh's own keys is no token.
    fn introspect(&self, head: &RequestHead<'_>, watch: &mut Watch<'_>, keys: bool) -> Result<Introspected, Denied> {
        let Some(introspection) = &self.introspection else { return Ok(Introspected::Nothing) };
        let told = watch.found.take_callout();
        let book = watch.book;
        let key = |credential: &[u8]| keys && book.by_key(&digest(credential)).is_some();
        introspection.judge(head, (book, watch.wall_secs), told, key)
    }

    /// Whom an opaque token makes its bearer.
    fn opaque_bearer(&self, Active { claims, until_secs }: &Active, watch: &Watch<'_>) -> Result<Identified, Denied> {
        let nobody = ConsumerChoice::default();
        let consumers = self.introspection.as_ref().map_or(&nobody, |introspection| &introspection.consumers);
        bearer((claims, *until_secs), None, consumers, watch)
    }
}

/// Whom claims make the bearer of a token, of consumers that count.
fn bearer(
    (claims, until_secs): (&Arc<Claims>, u64),
    claim: Option<&str>,
    consumers: &ConsumerChoice,
    watch: &Watch<'_>,
) -> Result<Identified, Denied> {
    let mut found = Identified {
        method: AuthMethod::Jwt,
        consumer: None,
        credential: None,
        user: None,
        file: None,
        claims: Some(Arc::clone(claims)),
        until_secs: Some(until_secs),
    };
    if let Some((consumer, place)) = watch.book.by_token(claims, claim, |consumer| consumers.takes(consumer)) {
        let credential = consumer.credentials.get(place).ok_or(Denied::Unknown)?;
        let until = consumer.holds(credential, watch.wall_secs).map_err(Denied::from)?;
        found.until_secs = found.until_secs.into_iter().chain(until).min();
        (found.consumer, found.credential) = (Some(consumer), Some(place));
    }
    Ok(found)
}

/// Who has logged in.
enum BySession {
    Nobody,
    Somebody(Identified, Arc<LoginSession>),
    Asks(Box<SessionAsk>),
}

/// A session that is none, or over, says nothing: its browser logs in again. Where it cannot be known whether it goes on nobody is let in, and
/// nobody logged out.
fn by_session(login: &Arc<Login>, head: &RequestHead<'_>, watch: &mut Watch<'_>) -> Result<BySession, Denied> {
    let means = LoginMeans { book: watch.book, now_secs: watch.wall_secs };
    let SeenSession { session, cookies, refresh } = match login.seen(head.headers, means, watch.found.take_session()) {
        SessionSeen::Nobody => return Ok(BySession::Nobody),
        SessionSeen::Somebody(seen) => seen,
        SessionSeen::Asks(ask) => return Ok(BySession::Asks(ask)),
        SessionSeen::Away => return Err(Denied::Away),
    };
    watch.counted.say(&kept(cookies));
    if let Some(ask) = refresh {
        watch.found.refreshes(ask);
    }
    let found = bearer((&session.claims, login.ends_secs(&session)), None, &login.consumers, watch)?;
    Ok(BySession::Somebody(Identified { method: AuthMethod::Login, ..found }, session))
}

/// At an edge two tokens of one place are no fault of form, but nobody's word (edge-kinds.md, Identity).
const fn of_token(fault: TokenFault) -> Denied {
    match fault {
        TokenFault::Several => Denied::Several,
        TokenFault::TooLong => Denied::TooLong,
        TokenFault::Malformed => Denied::Malformed,
        TokenFault::Expired => Denied::Expired,
        TokenFault::TooEarly => Denied::TooEarly,
        TokenFault::KeysPending | TokenFault::Unconfigured => Denied::NoKeys,
        _ => Denied::Token,
    }
}
