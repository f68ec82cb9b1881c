//! Whether a request may go on, asked of a service of somebody's own: Envoy's `ext_authz` over gRPC (`envoy.service.auth.v3`), or plain HTTP. What
//! is shown to it and what its answer means is said here; the asking is the shell's.

mod changes;
mod over_grpc;
mod over_http;
#[cfg(test)]
mod tests;
mod verdicts;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use proto::mesh::{self, external_auth::Protocol};
use proto::xds::auth::AttributeContext;

use super::denied::Denied;
use super::limits::key::Seen;
use super::unsaid::{UNCHECKED_HEADER, unchecked, unsay};
use super::{Passed, Question, unavailable};
use crate::authorize::TruthOf;
use crate::callout::{CalloutAway, CalloutKind, CalloutLive, CalloutOutcome, CalloutTold, Callouts};
use crate::failure::{LocalReply, Reason};
use crate::filter::Exchange;
use crate::raw::duration;
use crate::rejected::Wrong;

use changes::Changes;
pub(super) use changes::encoded;
pub use changes::external_header;
use over_http::HttpForm;
use verdicts::Verdicts;

/// Most services that one rule's policies ask: an object's, and its own filter's.
pub const EXTERNAL_MAX: usize = 2;
/// Most of a body that a service is shown.
pub const BODY_BYTES_MAX: u32 = 1 << 20;
/// Longest that a service is waited for.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Most headers that are named, in each list.
pub const HEADERS_MAX: usize = 64;
/// Most verdicts that are remembered for one object.
pub const ENTRIES_MAX: u32 = 100_000;
/// Says to the service whether it is shown all of the body, as Envoy does.
const PARTIAL_HEADER: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");

/// What one object, or one rule's filter, asks of a service.
#[derive(Debug)]
pub struct External {
    /// `NAMESPACE/NAME` of the object, or the rule.
    pub policy: Arc<str>,
    form: Form,
    body: Option<BodyWanted>,
    timeout: Duration,
    when: Option<TruthOf>,
    dry_run: bool,
    verdicts: Option<Verdicts>,
    allow_without: bool,
    live: Arc<CalloutLive>,
}

/// How the service is asked.
#[derive(Debug)]
enum Form {
    /// By `envoy.service.auth.v3`. Headers that it is shown; none: all.
    Grpc(Authority, Vec<HeaderName>),
    Http(HttpForm),
}

/// How much of a request's body a service is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyWanted {
    /// At most.
    pub bytes_max: usize,
    /// Of a longer body the beginning will do.
    pub partial: bool,
}

/// What a service says of a request.
#[derive(Clone, Debug)]
enum CheckVerdict {
    Allowed(Arc<Changes>),
    Denied(Arc<LocalReply>),
}

/// One question to a service.
#[derive(Debug)]
pub struct CheckAsk {
    /// Who asks.
    pub external: Arc<External>,
    /// Place of its service among those that the rule's policies ask.
    pub place: usize,
    shown: Box<CheckShown>,
}

#[allow(clippy::large_enum_variant, reason = "it is boxed where it is kept")]
#[derive(Debug)]
enum CheckShown {
    Grpc(AttributeContext),
    Http(http::request::Parts),
}

/// A service that is asked, as a guard of a rule.
#[derive(Clone, Debug)]
pub struct ExternalGuard {
    /// What is asked.
    pub external: Arc<External>,
    /// See [`CheckAsk::place`].
    pub place: usize,
}

impl External {
    pub(crate) fn compile(raw: &mesh::ExternalAuth, callouts: &Callouts) -> Result<Self, Wrong> {
        let mesh::ExternalAuth { policy, cluster: _, protocol, body_bytes_max, body_partial, timeout, when, dry_run, cache, allow_without } =
            raw;
        if *body_bytes_max > BODY_BYTES_MAX {
            return Err(Wrong::new("body_bytes_max", format!("{body_bytes_max} is more than {BODY_BYTES_MAX}")));
        }
        let wanted = BodyWanted { bytes_max: *body_bytes_max as usize, partial: *body_partial };
        let timeout = duration(timeout.as_ref(), "timeout")?.filter(|timeout| !timeout.is_zero() && *timeout <= TIMEOUT_MAX);
        let timeout = timeout.ok_or_else(|| Wrong::new("timeout", format!("is not above 0s and up to {}s", TIMEOUT_MAX.as_secs())))?;
        let form = match protocol {
            None => return Err(Wrong::new("protocol", "is missing: grpc or http")),
            Some(Protocol::Grpc(mesh::ExternalGrpc { authority, request_headers })) => {
                let authority = authority.parse().map_err(|_| Wrong::new("grpc.authority", "is no host"))?;
                Form::Grpc(authority, named(request_headers, "grpc.request_headers", |_| true)?)
            }
            Some(Protocol::Http(raw)) => Form::Http(HttpForm::compile(raw).map_err(|wrong| wrong.within("http"))?),
        };
        Ok(Self {
            policy: policy.as_str().into(),
            form,
            body: (wanted.bytes_max > 0).then_some(wanted),
            timeout,
            when: (!when.is_empty()).then(|| TruthOf::compile(when)).transpose().map_err(|why| Wrong::new("when", why))?,
            dry_run: *dry_run,
            verdicts: cache.as_ref().map(Verdicts::compile).transpose().map_err(|wrong| wrong.within("cache"))?,
            allow_without: *allow_without,
            live: callouts.adopt(CalloutKind::ExternalAuth, policy),
        })
    }

    /// What is known of the service.
    pub const fn live(&self) -> &Arc<CalloutLive> {
        &self.live
    }

    /// In words.
    pub(super) fn story(&self) -> String {
        let how = match &self.form {
            Form::Grpc(..) => "by gRPC",
            Form::Http(_) => "by HTTP",
        };
        let trial = if self.dry_run { ", on trial" } else { "" };
        let without = if self.allow_without { "requests go on where it is away" } else { "nobody goes on where it is away" };
        format!("{} asks a service {how}{trial}; {without}", self.policy)
    }

    /// Whether this request is one that it asks about. An expression that comes to nothing is no reason to let it pass unasked.
    fn is_meant(&self, exchange: &Exchange<'_>) -> bool {
        self.when.as_ref().is_none_or(|when| Seen::of(exchange).call(|call| when.holds_or(call, true)))
    }

    /// What callers say in headers that the service fills means nothing, whether or not it is asked. On trial nothing is changed.
    fn unsay(&self, headers: &mut HeaderMap) {
        if let Form::Http(form) = &self.form
            && !self.dry_run
        {
            form.unsay(headers);
        }
    }

    fn read(&self, told: &crate::callout::CalloutAnswer) -> Result<CheckVerdict, CalloutAway> {
        match &self.form {
            Form::Grpc(..) => over_grpc::read(told),
            Form::Http(form) => form.read(told),
        }
    }
}

impl ExternalGuard {
    /// Asks, or goes by what was answered.
    pub(super) fn on_request(&self, exchange: &mut Exchange<'_>) -> Passed {
        let external = &self.external;
        let Some(watch) = exchange.watch.as_mut() else { return Passed::Answered(Box::new(unavailable())) };
        let (told, marked) = (watch.found.take_callout(), watch.found.is_unchecked());
        let verdict = match told {
            None => {
                // What a caller says there means nothing; what a guard before this one has said stays.
                if self.place == 0 && !marked {
                    unsay(&mut exchange.request.headers, &[UNCHECKED_HEADER]);
                }
                if !external.is_meant(exchange) {
                    external.unsay(&mut exchange.request.headers);
                    return Passed::On;
                }
                match external.verdicts.as_ref().and_then(|verdicts| verdicts.find(exchange)) {
                    Some(verdict) => {
                        external.live.count(CalloutOutcome::Remembered);
                        verdict
                    }
                    None => return Passed::Asks(Box::new(Question::Check(self.ask(exchange)))),
                }
            }
            Some(CalloutTold::TooLong) if external.dry_run => return Passed::On,
            Some(CalloutTold::TooLong) => {
                let status = StatusCode::PAYLOAD_TOO_LARGE;
                return Passed::Answered(Box::new(LocalReply { status, ..LocalReply::of(Reason::TooLarge) }));
            }
            Some(CalloutTold::Away(away)) => return self.without(exchange, away),
            Some(CalloutTold::Answer(answer)) => match external.read(&answer) {
                Err(away) => return self.without(exchange, away),
                Ok(verdict) => {
                    if let Some(verdicts) = &external.verdicts {
                        verdicts.keep(exchange, &verdict);
                    }
                    external.live.count(match (&verdict, external.dry_run) {
                        (CheckVerdict::Allowed(_), _) => CalloutOutcome::Allowed,
                        (CheckVerdict::Denied(_), false) => CalloutOutcome::Denied,
                        (CheckVerdict::Denied(_), true) => CalloutOutcome::WouldDeny,
                    });
                    verdict
                }
            },
        };
        self.carry_out(exchange, &verdict)
    }

    fn ask(&self, exchange: &Exchange<'_>) -> CheckAsk {
        let shown = match &self.external.form {
            Form::Grpc(_, headers) => CheckShown::Grpc(over_grpc::attributes(exchange, headers)),
            Form::Http(form) => CheckShown::Http(form.head(exchange)),
        };
        CheckAsk { external: Arc::clone(&self.external), place: self.place, shown: Box::new(shown) }
    }

    fn carry_out(&self, exchange: &mut Exchange<'_>, verdict: &CheckVerdict) -> Passed {
        if self.external.dry_run {
            return Passed::On;
        }
        match verdict {
            CheckVerdict::Allowed(changes) => {
                changes.apply(exchange.request);
                if let Some(watch) = exchange.watch.as_mut() {
                    watch.counted.say(changes.answer());
                }
                Passed::On
            }
            CheckVerdict::Denied(reply) => {
                if let Some(watch) = exchange.watch.as_mut() {
                    watch.found.deny(Denied::External);
                }
                Passed::Answered(Box::new(LocalReply::clone(reply)))
            }
        }
    }

    /// There is no word of the service's.
    fn without(&self, exchange: &mut Exchange<'_>, away: CalloutAway) -> Passed {
        let external = &self.external;
        external.live.count(away.into());
        if external.dry_run {
            return Passed::On;
        }
        if !external.allow_without {
            if let Some(watch) = exchange.watch.as_mut() {
                watch.found.deny(Denied::Away);
            }
            return Passed::Answered(Box::new(away_reply()));
        }
        external.live.count(CalloutOutcome::Unchecked);
        external.unsay(&mut exchange.request.headers);
        unchecked(&mut exchange.request.headers, CalloutKind::ExternalAuth);
        Passed::On
    }
}

/// The answer where a service that has to be asked does not answer: it may in a moment.
fn away_reply() -> LocalReply {
    let mut reply = LocalReply::of(Reason::PolicyUnavailable);
    reply.headers.push((header::RETRY_AFTER, HeaderValue::from_static("1")));
    reply
}

impl CheckAsk {
    /// How much of the request's body the service is to be shown; `None`: nothing.
    pub fn body(&self) -> Option<BodyWanted> {
        self.external.body
    }

    /// How long it is waited for, connecting included.
    pub fn timeout(&self) -> Duration {
        self.external.timeout
    }

    /// Whether its word counts for nothing, and that it cannot be had neither.
    pub fn is_on_trial(&self) -> bool {
        self.external.dry_run
    }

    /// Whether it is asked over gRPC, and so over HTTP/2.
    pub fn is_grpc(&self) -> bool {
        matches!(self.external.form, Form::Grpc(..))
    }

    /// What is sent. `body`: as much of the request's as is shown, and whether there is more of it.
    ///
    /// # Errors
    /// It cannot be written down; that is nobody's fault but this proxy's.
    pub fn request(self, body: Bytes, more: bool) -> Result<Request<Bytes>, http::Error> {
        // Of a request without a body nothing is shown, as Envoy has it.
        let shows = self.external.body.is_some() && (more || !body.is_empty());
        match (*self.shown, &self.external.form) {
            (CheckShown::Grpc(attributes), Form::Grpc(authority, _)) => {
                let shown = shows.then_some((body, more));
                over_grpc::request(attributes, authority, shown, self.external.timeout)
            }
            (CheckShown::Http(mut head), _) => {
                if shows {
                    head.headers.insert(PARTIAL_HEADER, HeaderValue::from_static(if more { "true" } else { "false" }));
                }
                head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
                Ok(Request::from_parts(head, body))
            }
            (CheckShown::Grpc(_), Form::Http(_)) => Request::builder().body(Bytes::new()),
        }
    }
}

/// Headers by name.
fn named(raw: &[String], field: &str, may: impl Fn(&str) -> bool) -> Result<Vec<HeaderName>, Wrong> {
    if raw.len() > HEADERS_MAX {
        return Err(Wrong::new(field, format!("holds {}, which is more than {HEADERS_MAX}", raw.len())));
    }
    let one = |(index, text): (usize, &String)| {
        let at = format!("{field}[{index}]");
        let name: HeaderName =
            text.parse().map_err(|_| Wrong::new(at.clone(), format!("`{}` is not a header name", text.escape_debug())))?;
        if may(name.as_str()) { Ok(name) } else { Err(Wrong::new(at, format!("`{name}` is not a service's to say"))) }
    };
    raw.iter().enumerate().map(one).collect()
}
