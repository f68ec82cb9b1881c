//! Who calls: any of what is attached. A credential that is there and bad is 401 at once and tried nowhere else; none at all is 401, unless
//! everything that is attached is optional.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue};

use super::api_key::{ApiKeys, Fill, is_token};
use super::basic::{AskedPassword, Basic, Judged};
use super::denied::Denied;
use super::found::Found;
use super::introspect::{Active, Introspected, Introspection};
use super::unsaid::{UNCHECKED_HEADER, unchecked, unsay};
use super::{Passed, Question, Watch, unavailable};
use crate::authenticate::{Accepted, Authentication, KeyCell, TokenFault, TokenVerdict};
use crate::authorize::{Call, Own};
use crate::callout::CalloutKind;
use crate::claims::Claims;
use crate::consumers::{AuthMethod, CONSUMER_HEADER, ConsumerChoice, Digest, Identified, digest};
use crate::failure::{LocalReply, Reason};
use crate::filter::Exchange;
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
    Key(Digest),
    Password,
    Certificate,
}

/// What the search for a caller comes to.
enum Sought {
    Nobody,
    Somebody(Identified, Way),
    Asks(Question),
    /// Somebody, whom nobody could be asked about.
    Unchecked,
}

impl Identify {
    /// `None`: nobody asks who calls.
    pub(crate) fn new(
        tokens: Option<TokenGuard>,
        keys: Option<ApiKeys>,
        basic: Option<Basic>,
        certificates: Option<CertificateGuard>,
    ) -> Option<Self> {
        if tokens.is_none() && keys.is_none() && basic.is_none() && certificates.is_none() {
            return None;
        }
        let optional = tokens.iter().all(|tokens| tokens.optional)
            && keys.iter().all(|keys| keys.optional)
            && basic.iter().all(|basic| basic.optional);
        let fills = keys.iter().flat_map(|keys| &keys.fills).chain(basic.iter().flat_map(|basic| &basic.fills));
        let mut filled: Vec<HeaderName> = vec![CONSUMER_HEADER, UNCHECKED_HEADER];
        for fill in fills {
            if !filled.contains(&fill.name) {
                filled.push(fill.name.clone());
            }
        }
        let mut challenges: Vec<HeaderValue> = Vec::new();
        let bearer = tokens.iter().map(|_| HeaderValue::from_static("Bearer"));
        for challenge in bearer.chain(keys.iter().map(ApiKeys::challenge)).chain(basic.iter().map(Basic::challenge)) {
            if !challenges.contains(&challenge) {
                challenges.push(challenge);
            }
        }
        Some(Self { tokens, keys, basic, certificates, optional, filled, challenges })
    }

    /// Where keys of tokens are fetched from.
    pub fn cells(&self) -> impl Iterator<Item = &Arc<KeyCell>> {
        self.tokens.iter().flat_map(|tokens| tokens.rules.cells())
    }

    pub(super) fn on_request(&self, exchange: &mut Exchange<'_>) -> Passed {
        unsay(&mut exchange.request.headers, &self.filled);
        let Some(watch) = &mut exchange.watch else { return Passed::Answered(Box::new(unavailable())) };
        let head = RequestHead::nameless(&exchange.request.method, &exchange.request.uri, &exchange.request.headers);
        let sought = self.seek(&head, watch, exchange.address);
        let (identified, way) = match sought {
            Ok(Sought::Somebody(identified, way)) => (identified, way),
            Ok(Sought::Asks(question)) => return Passed::Asks(Box::new(question)),
            Ok(Sought::Unchecked) => {
                watch.found.go_on_unchecked();
                if let Some(tokens) = &self.tokens {
                    tokens.rules.unsay(&mut exchange.request.headers);
                }
                unchecked(&mut exchange.request.headers, CalloutKind::Introspection);
                return Passed::On;
            }
            Ok(Sought::Nobody) => {
                if let Some(tokens) = &self.tokens {
                    tokens.rules.unsay(&mut exchange.request.headers);
                }
                return if self.optional { Passed::On } else { self.denied(watch, (None, Denied::Nothing)) };
            }
            Err(denied) => return self.denied(watch, denied),
        };
        *watch.found = Found::of(identified);
        match self.carry_out(exchange, &way) {
            Ok(()) => Passed::On,
            Err(denied) => {
                if let Some(watch) = &mut exchange.watch {
                    watch.found.deny(denied);
                }
                Passed::Answered(Box::new(unavailable()))
            }
        }
    }

    /// Asks one after the other, in the fixed order.
    fn seek(&self, head: &RequestHead<'_>, watch: &mut Watch<'_>, address: IpAddr) -> Result<Sought, (Option<AuthMethod>, Denied)> {
        let by = |method: AuthMethod| move |denied: Denied| (Some(method), denied);
        // Where keys may stand at the same places, what has not a token's form is a key.
        let shared = self.tokens.is_some() && self.keys.is_some();
        if let Some(tokens) = &self.tokens {
            let opaque = tokens.introspection.is_some();
            let only = |token: &[u8]| !(shared || opaque) || is_token(token);
            match tokens.rules.judge_only(head, watch.tokens, watch.wall_secs, &only) {
                TokenVerdict::Without => {}
                TokenVerdict::Accepted(accepted) => {
                    let bearer = tokens.bearer(&accepted, watch).map_err(by(AuthMethod::Jwt))?;
                    return Ok(Sought::Somebody(bearer, Way::Token(accepted)));
                }
                // No rule claims it.
                TokenVerdict::Refused(TokenFault::Issuer | TokenFault::Malformed) if opaque => {}
                TokenVerdict::Refused(fault) => return Err((Some(AuthMethod::Jwt), of_token(fault))),
            }
            if let Some(sought) = tokens.introspect(head, watch, self.keys.is_some()).map_err(by(AuthMethod::Jwt))? {
                return Ok(sought);
            }
        }
        if let Some(keys) = &self.keys
            && let Some((found, digest)) = keys.judge(head, watch.book, watch.wall_secs, shared).map_err(by(AuthMethod::ApiKey))?
        {
            return Ok(Sought::Somebody(found, Way::Key(digest)));
        }
        let Some(basic) = &self.basic else { return self.by_certificate(watch).map_err(by(AuthMethod::Cert)) };
        let Watch { book, verified, found, wall_secs, .. } = watch;
        let asked = AskedPassword { book, verified, answer: found.answer(), address, now_secs: *wall_secs };
        Ok(match basic.judge(head, asked).map_err(by(AuthMethod::Basic))? {
            Judged::Nothing => self.by_certificate(watch).map_err(by(AuthMethod::Cert))?,
            Judged::Somebody(found) => Sought::Somebody(found, Way::Password),
            Judged::Asks(password) => Sought::Asks(Question::Password(Arc::new(password))),
        })
    }

    /// Who has shown the connection's certificate. What a request shows by itself says more, and goes before it.
    fn by_certificate(&self, watch: &Watch<'_>) -> Result<Sought, Denied> {
        let (Some(guard), Some(certificate)) = (&self.certificates, watch.certificate) else { return Ok(Sought::Nobody) };
        let owner = watch.book.by_certificate(certificate).filter(|(consumer, _)| guard.consumers.takes(consumer));
        let Some((consumer, place)) = owner else { return Ok(Sought::Nobody) };
        let credential = consumer.credentials.get(place).ok_or(Denied::Unknown)?;
        let until_secs = consumer.holds(credential, watch.wall_secs).map_err(Denied::from)?;
        let found = Identified {
            method: AuthMethod::Cert,
            consumer: Some(consumer),
            credential: Some(place),
            user: None,
            claims: None,
            until_secs,
        };
        Ok(Sought::Somebody(found, Way::Certificate))
    }

    /// Takes out what the backend is not to see, and says what it is to know.
    fn carry_out(&self, exchange: &mut Exchange<'_>, way: &Way) -> Result<(), Denied> {
        let fills: &[Fill] = match way {
            Way::Key(_) => self.keys.as_ref().map_or(&[], |keys| &keys.fills),
            Way::Password => self.basic.as_ref().map_or(&[], |basic| &basic.fills),
            Way::Token(_) | Way::Opaque(_) | Way::Certificate => &[],
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
            let verdict = if let Way::Token(accepted) = way { TokenVerdict::Accepted(Arc::clone(accepted)) } else { TokenVerdict::Without };
            tokens.rules.carry_out(&verdict, exchange.request);
        }
        if let (Way::Opaque(digest), Some(tokens)) = (way, &self.tokens) {
            tokens.introspection.iter().for_each(|introspection| introspection.strip(exchange.request, digest));
        }
        match (way, &self.keys, &self.basic) {
            (Way::Key(digest), Some(keys), _) => keys.strip(exchange.request, digest),
            (Way::Password, _, Some(basic)) => basic.strip(exchange.request),
            _ => {}
        }
        let headers = &mut exchange.request.headers;
        values.into_iter().for_each(|(name, value)| _ = headers.insert(name, value));
        let found = exchange.watch.as_ref().and_then(|watch| watch.found.identified());
        if let Some(told) = found.and_then(Identified::credential).and_then(|credential| credential.told.as_ref()) {
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
        tokens.chain(opaque).chain(rest).chain(certificates).collect::<Vec<_>>().join("; ")
    }
}

impl TokenGuard {
    /// Whom a token makes its bearer.
    fn bearer(&self, accepted: &Accepted, watch: &Watch<'_>) -> Result<Identified, Denied> {
        let claim = self.claims.get(accepted.rule_number()).and_then(Option::as_deref);
        bearer((&accepted.claims, accepted.until_secs()), claim, watch)
    }

    /// What an opaque token comes to; `None`: there is none. `keys`: what is one of the mesh's own keys is no token.
    fn introspect(&self, head: &RequestHead<'_>, watch: &mut Watch<'_>, keys: bool) -> Result<Option<Sought>, Denied> {
        let Some(introspection) = &self.introspection else { return Ok(None) };
        let told = watch.found.take_callout();
        let book = watch.book;
        let key = |credential: &[u8]| keys && book.by_key(&digest(credential)).is_some();
        Ok(match introspection.judge(head, (book, watch.wall_secs), told, key)? {
            Introspected::Nothing => None,
            Introspected::Unchecked => Some(Sought::Unchecked),
            Introspected::Asks(ask) => Some(Sought::Asks(Question::Token(ask))),
            Introspected::Active(Active { claims, until_secs }, digest) => {
                Some(Sought::Somebody(bearer((&claims, until_secs), None, watch)?, Way::Opaque(digest)))
            }
        })
    }
}

/// Whom claims make the bearer of a token.
fn bearer((claims, until_secs): (&Arc<Claims>, u64), claim: Option<&str>, watch: &Watch<'_>) -> Result<Identified, Denied> {
    let mut found = Identified {
        method: AuthMethod::Jwt,
        consumer: None,
        credential: None,
        user: None,
        claims: Some(Arc::clone(claims)),
        until_secs: Some(until_secs),
    };
    if let Some((consumer, place)) = watch.book.by_token(claims, claim) {
        let credential = consumer.credentials.get(place).ok_or(Denied::Unknown)?;
        let until = consumer.holds(credential, watch.wall_secs).map_err(Denied::from)?;
        found.until_secs = found.until_secs.into_iter().chain(until).min();
        (found.consumer, found.credential) = (Some(consumer), Some(place));
    }
    Ok(found)
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
