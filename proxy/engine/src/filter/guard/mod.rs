//! What guards a route at an edge: who calls from outside, and whether they may (`edge-kinds.md`, "The fixed order", steps 5 to 9). Each guard
//! is a pure function of the request, what is known of consumers, and the time; what it finds out is kept for those behind it, the log and the
//! backend. One that has to wait for something hands back a [`Question`], and is asked again with the answer.

mod api_key;
mod basic;
mod denied;
mod external;
mod failures;
mod found;
mod grpc;
mod identify;
mod introspect;
mod limits;
mod login;
mod places;
#[cfg(test)]
mod tests;
mod unsaid;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Exchange;
use crate::authenticate::Remembered;
use crate::authorize::{AtEdge, Authorization, Call, Own};
use crate::consumers::{Book, ClientCertificate, Password, Verified};
use crate::failure::{LocalReply, Reason};
use crate::login::{LoginAsk, LogoutAsk, SessionAsk, strip_logins};
use crate::matching::RequestHead;

pub use api_key::ApiKeys;
pub use basic::{Basic, PAIR_BYTES_MAX};
pub use denied::Denied;
pub use external::{
    BODY_BYTES_MAX, BodyWanted, CheckAsk, ENTRIES_MAX as CHECK_ENTRIES_MAX, EXTERNAL_MAX, External, ExternalGuard, HEADERS_MAX,
    TIMEOUT_MAX as CALLOUT_TIMEOUT_MAX, external_header,
};
pub use failures::{FAILING_MAX, Failures};
pub use found::{Found, KeptHead};
pub use identify::{CertificateGuard, Identify, TokenGuard};
pub use introspect::{Introspection, IntrospectionAsk, REMEMBERED_MAX as INTROSPECTED_MAX};
pub use limits::{
    CONCURRENCY_MAX, Counted, DESCRIPTOR_BYTES_MAX, DESCRIPTOR_ENTRIES_MAX, DESCRIPTORS_MAX, Descriptor, KEY_PARTS_MAX, Limit, LimitAsk,
    LimitGuard, LimitOutlook, ObjectLimits, PlaceAsk, QUEUE_MAX, RateAsk, ServiceAnswer, ServiceLimits, read,
};
pub(crate) use limits::{object, redis};
pub use login::LoginPaths;
pub use unsaid::UNCHECKED_HEADER;

/// One guard of a route.
#[derive(Clone, Debug)]
pub enum Guard {
    /// An object that fails closed never was good: its name. Everything is answered 500.
    Unavailable(Arc<str>),
    /// Who calls.
    Identify(Arc<Identify>),
    /// The rule is the paths of logins.
    LoginPaths(Arc<LoginPaths>),
    /// Cookies of logins go no further.
    StripLogins,
    /// Whether a service lets them.
    External(ExternalGuard),
    /// Whether they may.
    Authorize(Arc<Authorization>),
    /// How much may come; before it is known who calls, or after.
    Limit(Arc<LimitGuard>, LimitStage),
}

/// Where limits stand in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitStage {
    /// They guard the guards.
    BeforeAuth,
    /// They know who calls.
    AfterAuth,
}

/// What guards go by beside the request, and where they note what they find.
#[derive(Debug)]
pub struct Watch<'e> {
    /// Who may call from outside.
    pub book: &'e Book,
    /// Tokens that were verified before.
    pub tokens: &'e mut Remembered,
    /// The TCP peer, whoever is behind it, and the client's port.
    pub peer: IpAddr,
    /// See above.
    pub port: u16,
    /// What the client has shown at its listener, where somebody vouches for it who is believed there.
    pub certificate: Option<&'e ClientCertificate>,
    /// Passwords that were verified before.
    pub verified: &'e mut Verified,
    /// Unix time.
    pub wall_secs: u64,
    /// Who calls, as far as it is known by now.
    pub found: &'e mut Found,
    /// What limits have to say on the answer.
    pub counted: &'e mut Counted,
}

/// What has to be waited for.
#[derive(Debug)]
pub enum Question {
    /// Whether there is some left of a limit that proxies share.
    Limit(LimitAsk),
    /// What a rate-limit service says of a request.
    Rate(RateAsk),
    /// Whether a password is the user's.
    Password(Arc<Password>),
    /// Whether a request may go on.
    Check(CheckAsk),
    /// What an opaque token is.
    Token(IntrospectionAsk),
    /// Whose turn it is.
    Place(PlaceAsk),
    /// Who has logged in.
    Login(Box<LoginAsk>),
    /// Whether a session goes on that a store keeps.
    Session(Box<SessionAsk>),
    /// Whose sessions a provider ends, by the request's body.
    Logout(LogoutAsk),
}

/// What becomes of a request at a guard.
#[must_use]
#[derive(Debug)]
pub enum Passed {
    /// It goes on.
    On,
    /// It is answered here.
    Answered(Box<LocalReply>),
    /// Something has to be found out first; then the guard is asked again.
    Asks(Box<Question>),
}

impl Guard {
    /// Sees the request before it is sent on.
    pub fn on_request(&self, exchange: &mut Exchange<'_>) -> Passed {
        match self {
            Self::Unavailable(_) => Passed::Answered(Box::new(unavailable())),
            Self::Identify(identify) => identify.on_request(exchange),
            Self::LoginPaths(paths) => paths.on_request(exchange),
            Self::StripLogins => {
                strip_logins(&mut exchange.request.headers);
                Passed::On
            }
            Self::Limit(limits, _) => limits.on_request(exchange),
            Self::External(external) => external.on_request(exchange),
            Self::Authorize(policies) => authorize(policies, exchange),
        }
    }

    /// Parameters of queries in which it looks for credentials.
    pub(crate) fn secret_parameters(&self) -> Vec<&str> {
        match self {
            Self::Identify(identify) => identify.secret_parameters(),
            Self::LoginPaths(_) => login::SECRET_PARAMETERS.to_vec(),
            _ => Vec::new(),
        }
    }

    /// The name that `explain` prints.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "policy",
            Self::Identify(identify) => identify.name(),
            Self::LoginPaths(_) | Self::StripLogins => "login",
            Self::Limit(_, LimitStage::BeforeAuth) => "limit_before_auth",
            Self::Limit(_, LimitStage::AfterAuth) => "limit",
            Self::External(_) => "external_auth",
            Self::Authorize(_) => "authorization",
        }
    }

    /// What it does, in words.
    pub fn story(&self) -> String {
        match self {
            Self::Unavailable(object) => format!("{object} was refused and no version of it was good before: nobody is let in"),
            Self::Identify(identify) => identify.story(),
            Self::LoginPaths(paths) => paths.story(),
            Self::StripLogins => "cookies of logins go no further".to_owned(),
            Self::Limit(limits, _) => limits.story(),
            Self::External(guard) => guard.external.story(),
            Self::Authorize(policies) => policies.story(),
        }
    }
}

fn authorize(policies: &Authorization, exchange: &mut Exchange<'_>) -> Passed {
    let Some(watch) = &mut exchange.watch else { return Passed::Answered(Box::new(unavailable())) };
    let head = RequestHead::new(&exchange.request.method, &exchange.request.uri, &exchange.request.headers);
    let auth = watch.found.identified();
    let call = Call {
        peer: exchange.caller,
        workload: "",
        source: SocketAddr::new(exchange.address, watch.port),
        port: exchange.called.port,
        head: Some(&head),
        claims: auth.and_then(|auth| auth.claims.as_deref()),
        auth,
        edge: Some(AtEdge { peer: watch.peer, book: watch.book }),
        own: Own::default(),
    };
    let judgement = policies.judge(&call);
    let (refusal, policy) = (judgement.refusal(), judgement.ruling().cloned());
    watch.found.note(policy);
    match refusal {
        None => Passed::On,
        Some(reason) => {
            watch.found.deny(Denied::Forbidden);
            Passed::Answered(Box::new(if reason == Reason::Denied { LocalReply::of(reason) } else { unavailable() }))
        }
    }
}

/// The answer where something that fails closed is not to be had.
pub(crate) fn unavailable() -> LocalReply {
    LocalReply { status: http::StatusCode::INTERNAL_SERVER_ERROR, ..LocalReply::of(Reason::PolicyUnavailable) }
}
