//! What happens to the requests of a rule on their way, whichever backend they go to. Nothing here links to anything, so equal
//! policies of many rules are one.

use std::time::Duration;

use super::{HashKey, Hedge, Priority, RuleTelemetry, Session};
use crate::filter::{Filter, Stage};
use crate::retry;

/// A rule's policy. `Parts` interns it by content: rules that say the same share it.
#[derive(Debug, Default)]
pub struct Policy {
    /// What a request passes, whichever backend was chosen.
    pub steps: Steps,
    /// Bounds the whole exchange, retries included; `None`: none.
    pub request_timeout: Option<Duration>,
    /// Bounds one attempt, to the head of its answer; `None`: none.
    pub attempt_timeout: Option<Duration>,
    /// Silence that ends a stream or an opaque connection; `None`: none.
    pub idle_timeout: Option<Duration>,
    /// Longest life of a stream or tunnel after the head of its answer; `None`: none.
    pub stream_timeout: Option<Duration>,
    /// What may be tried again.
    pub retry: retry::Policy,
    /// Second attempts before the first has failed.
    pub hedge: Option<Hedge>,
    /// Keeps a client at its endpoint.
    pub session: Option<Session>,
    /// Who goes first where a cluster is full.
    pub priority: Option<Priority>,
    /// Most bytes of a request's body; 0: any number.
    pub body_bytes_max: u64,
    /// For clusters balanced by hash: the first that yields something counts.
    pub hash: Vec<HashKey>,
    /// What is told of its requests, where it is not what the proxy tells of others.
    pub telemetry: Option<RuleTelemetry>,
}

/// Steps on the way, in their order, which is fixed when they are built.
#[derive(Debug, Default)]
pub struct Steps {
    /// May answer, cut or delay a request: cors, rate limits, faults (delays, then aborts), redirect.
    pub gates: Vec<Stage>,
    /// Alter its head, or its answer's: rewrite, request headers, response headers.
    pub changes: Vec<Filter>,
}

impl Steps {
    /// Whether there are none.
    pub(crate) const fn is_empty(&self) -> bool {
        self.gates.is_empty() && self.changes.is_empty()
    }

    /// Whether one of them answers preflights.
    pub(crate) fn answers_preflights(&self) -> bool {
        self.gates.iter().any(|stage| matches!(stage, Stage::Local(Filter::Cors(_))))
    }
}
