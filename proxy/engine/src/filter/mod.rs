//! Per-route policy as data: a closed enum of pure filters, run as stages of the road (house style, section 3) by
//! [`crate::model::Forward`].
//!
//! Adding a filter: one file (typed configuration, its way in from the proto, hooks, tests), one variant, the arms the compiler asks
//! for, and its place in the order (`model::build`).

pub(crate) mod chance;
pub(crate) mod cors;
mod fault;
pub mod guard;
mod headers;
mod path;
mod rate_limit;
mod redirect;
mod request_headers;
mod response_headers;
mod rewrite;
#[cfg(test)]
pub(crate) mod tests;

use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, request};
use proto::identity::Identity;

pub use cors::{CORS_LIST_MAX, Cors};
pub(crate) use fault::FaultSteps;
pub use fault::{Abort, DELAY_MAX, Delay, FAULTS_MAX, Outlook};
pub use guard::{Guard, Question, Watch};
pub use headers::{HEADER_OPS_MAX, HEADER_VALUE_BYTES_MAX, HeaderOp, HeaderOps};
pub use rate_limit::{Buckets, KEY_PARTS_MAX, LIMIT_KEYS_MAX, LIMITS_MAX, PER_MAX, REQUESTS_MAX, RateLimit};
pub use redirect::Redirect;
pub use request_headers::RequestHeaders;
pub use response_headers::ResponseHeaders;
pub use rewrite::Rewrite;

use crate::Moment;
use crate::failure::LocalReply;

/// One gate of a route's policy. The type says where a request may rest.
#[derive(Clone, Debug)]
pub enum Stage {
    /// Runs in place.
    Local(Filter),
    /// May have to wait.
    Remote(Remote),
    /// Guards the rule at an edge; may ask for something, which the shell waits for.
    Guard(Guard),
}

/// A stage that waits for something: the shell does the waiting.
#[derive(Clone, Debug)]
pub enum Remote {
    /// For time to pass.
    Delay(Delay),
}

/// One variant per file.
#[derive(Clone, Debug)]
pub enum Filter {
    /// Answers preflights, and says who may see answers.
    Cors(Cors),
    /// Answers what comes too fast.
    RateLimit(RateLimit),
    /// Answers instead of the upstream, or cuts the exchange.
    Abort(Abort),
    /// Answers with another place to ask.
    Redirect(Redirect),
    /// Changes host and path before the request is sent on.
    Rewrite(Rewrite),
    /// Changes the request's headers before it is sent on.
    RequestHeaders(RequestHeaders),
    /// Changes the headers of the upstream's answer.
    ResponseHeaders(ResponseHeaders),
}

/// What a stage sees of a request, and may change.
#[derive(Debug)]
pub struct Exchange<'e> {
    /// The request's head, as it was judged and decided by.
    pub request: &'e mut request::Parts,
    /// Who called, as proved by mTLS.
    pub caller: Option<&'e Identity>,
    /// The client's address.
    pub address: IpAddr,
    /// What was called.
    pub called: Called,
    /// What guards go by, at an edge.
    pub watch: Option<Watch<'e>>,
    /// When the request came.
    pub now: Moment,
    /// Uniform over all of `u64`: each stage derives its own chance from it, so that stages are independent and a replay is exact.
    pub draw: u64,
}

/// The listener that a request came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Called {
    /// The port that the client called, not the one behind it.
    pub port: u16,
    /// The client came by TLS.
    pub tls: bool,
}

/// What becomes of a request after a filter.
#[must_use]
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It goes on to the next stage.
    Go,
    /// It is answered here: no later stage sees it, and no upstream.
    Answer(Box<LocalReply>),
    /// It is cut off without an answer.
    Reset,
}

/// What becomes of a request after its stages.
#[must_use]
#[derive(Debug)]
pub enum Passage<'f> {
    /// It goes to where it was decided to go.
    Through,
    /// It is answered.
    Answered(Box<LocalReply>),
    /// It is answered as a fault asks for.
    Aborted {
        /// The answer.
        reply: Box<LocalReply>,
        /// The object that asks for it.
        policy: &'f str,
    },
    /// It is cut off without an answer, reason `fault`.
    Cut {
        /// The object that asks for it.
        policy: &'f str,
    },
    /// It rests, and then goes on from where it was.
    Wait {
        /// How long.
        delay: Duration,
        /// The object that asks for it.
        policy: &'f str,
        /// Where it goes on.
        next: Resume,
    },
    /// It rests until something has been found out; then the same stage is asked again.
    Ask {
        /// What.
        question: Box<Question>,
        /// Where it goes on.
        next: Resume,
    },
}

/// A place among the stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume(pub(crate) usize);

impl Resume {
    /// Before the first.
    pub const START: Self = Self(0);
}

/// What an answer needs to know of its request, which is gone by then. Nothing for most.
#[derive(Clone, Debug, Default)]
pub struct Answered(Option<Box<Kept>>);

#[derive(Clone, Debug, Default)]
struct Kept {
    origin: Option<HeaderValue>,
    cookie: Option<HeaderValue>,
    preflight: bool,
}

impl Answered {
    pub(crate) fn of(origin: Option<HeaderValue>, cookie: Option<HeaderValue>, preflight: bool) -> Self {
        Self((origin.is_some() || cookie.is_some()).then(|| Box::new(Kept { origin, cookie, preflight })))
    }

    /// Where a cross-origin request came from.
    fn origin(&self) -> Option<&HeaderValue> {
        self.0.as_ref().and_then(|kept| kept.origin.as_ref())
    }

    /// The request only asks what another may do.
    pub(crate) fn is_preflight(&self) -> bool {
        self.0.as_ref().is_some_and(|kept| kept.preflight)
    }

    /// A cookie that the client is to have.
    pub(crate) fn cookie(&self) -> Option<&HeaderValue> {
        self.0.as_ref().and_then(|kept| kept.cookie.as_ref())
    }
}

impl Filter {
    /// Sees the request before it is sent on.
    pub fn on_request(&self, exchange: &mut Exchange<'_>) -> Verdict {
        match self {
            Self::Cors(filter) => filter.on_request(exchange),
            Self::RateLimit(filter) => filter.on_request(exchange),
            Self::Abort(filter) => filter.on_request(exchange),
            Self::Redirect(filter) => filter.on_request(exchange),
            Self::Rewrite(filter) => filter.on_request(exchange),
            Self::RequestHeaders(filter) => filter.on_request(exchange),
            Self::ResponseHeaders(_) => Verdict::Go,
        }
    }

    /// Sees the answer before it goes back.
    pub fn on_response(&self, answered: &Answered, headers: &mut HeaderMap) {
        match self {
            Self::RateLimit(_) | Self::Abort(_) | Self::Redirect(_) | Self::Rewrite(_) | Self::RequestHeaders(_) => {}
            Self::Cors(filter) => filter.on_response(answered.origin(), headers),
            Self::ResponseHeaders(filter) => filter.on_response(headers),
        }
    }

    /// The name that `explain` prints.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Cors(_) => "cors",
            Self::RateLimit(_) => "rate_limit",
            Self::Abort(_) => "fault",
            Self::Redirect(_) => "redirect",
            Self::Rewrite(_) => "rewrite",
            Self::RequestHeaders(_) => "request_headers",
            Self::ResponseHeaders(_) => "response_headers",
        }
    }

    /// What it does, in words.
    pub fn story(&self) -> String {
        match self {
            Self::Cors(filter) => filter.story(),
            Self::RateLimit(filter) => filter.story(),
            Self::Abort(filter) => filter.story(),
            Self::Redirect(filter) => filter.story(),
            Self::Rewrite(filter) => filter.story(),
            Self::RequestHeaders(filter) => filter.ops().story(),
            Self::ResponseHeaders(filter) => filter.ops().story(),
        }
    }
}

impl Stage {
    /// The name that `explain` prints.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Local(filter) => filter.name(),
            Self::Remote(Remote::Delay(_)) => "fault",
            Self::Guard(guard) => guard.name(),
        }
    }

    /// What it does, in words.
    pub fn story(&self) -> String {
        match self {
            Self::Local(filter) => filter.story(),
            Self::Remote(Remote::Delay(delay)) => delay.story(),
            Self::Guard(guard) => guard.story(),
        }
    }
}
