//! What becomes of a connection, and which rule and which backend a request meets. Pure functions of snapshot, facts, request and draw:
//! what the road carries out, what `explain` prints and what the tests judge are one and the same value. Nothing here allocates on the
//! way to a backend.

mod connection;
mod host;
pub(crate) mod matching;
mod request;

use std::sync::Arc;

use http::{HeaderMap, Method};

use crate::failure::{LocalReply, Reason};
use crate::filter::{self, Exchange, Verdict};
use crate::model::{Action, Backend, Cluster, Forward, RouteTable, Rule, Target};

pub use connection::{Course, Door, First, Known, Learn, Proved, Step, Version, connection};
pub use host::without_port;
pub use request::{Facts, Fault, Terms, TurnedAway, admit, request};

static NO_ROUTE: LocalReply = LocalReply::of(Reason::NoRoute);
static BAD_BACKEND: LocalReply = LocalReply::of(Reason::BadBackend);

/// What a decision may depend on; borrowed from the request.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'r> {
    /// Method.
    pub method: &'r Method,
    /// Path as received, without query.
    pub path: &'r str,
    /// Query as received, without the question mark.
    pub query: Option<&'r str>,
    /// Host as the client named it; a port is ignored.
    pub host: &'r str,
    /// Headers.
    pub headers: &'r HeaderMap,
}

impl<'r> RequestHead<'r> {
    /// The head of a request: the host is the URI's authority, else the `host` header (RFC 9112, section 3.2.2), else empty.
    pub fn of<B>(request: &'r http::Request<B>) -> Self {
        Self::new(request.method(), request.uri(), request.headers())
    }

    /// See [`RequestHead::of`].
    pub fn new(method: &'r Method, uri: &'r http::Uri, headers: &'r HeaderMap) -> Self {
        let named = || headers.get(http::header::HOST).and_then(|value| value.to_str().ok()).unwrap_or("");
        let host = uri.authority().map_or_else(named, http::uri::Authority::as_str);
        Self { method, path: uri.path(), query: uri.query(), host, headers }
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
pub enum Decision<'s> {
    /// It goes to a cluster.
    Forward(Plan<'s>),
    /// The mesh answers by itself.
    Reply {
        /// The answer.
        reply: &'s LocalReply,
        /// The rule that matched; `None`: no rule did.
        rule: Option<&'s Arc<Rule>>,
    },
}

/// Where a request goes and what happens on the way.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'s> {
    /// The rule that matched.
    pub rule: &'s Arc<Rule>,
    /// Its timeouts and stages.
    pub forward: &'s Arc<Forward>,
    /// The backend that the draw chose, with its own stages.
    pub backend: &'s Backend,
    /// Its place in [`Forward::backends`].
    pub place: usize,
    /// The cluster behind it.
    pub cluster: &'s Arc<Cluster>,
}

impl Plan<'_> {
    /// Runs the request side of all stages: the backend's, then the rule's, as Envoy does.
    pub fn forth(&self, exchange: &mut Exchange<'_>) -> Verdict {
        filter::forth(self.forward.stages(self.backend), exchange)
    }
}

/// Decides about one request. `draw` is uniform over all of `u64` and chooses between weighted backends.
///
/// The virtual host is the exact one, else the one with the longest matching wildcard suffix, else `*`; its first matching rule
/// wins, and without one the answer is 404 `no_route`.
pub fn decide<'s>(table: &'s RouteTable, head: &RequestHead<'_>, draw: u64) -> Decision<'s> {
    match rule(table, head) {
        Some(rule) => act(rule, draw),
        None => Decision::Reply { reply: &NO_ROUTE, rule: None },
    }
}

/// The first rule that matches.
fn rule<'s>(table: &'s RouteTable, head: &RequestHead<'_>) -> Option<&'s Arc<Rule>> {
    let rules = rules(table, head.host)?;
    rules.get(first(rules, head)?)
}

/// The rules of the virtual host for a host.
pub(crate) fn rules<'s>(table: &'s RouteTable, host: &str) -> Option<&'s [Arc<Rule>]> {
    let index = host::choose(table, host)?;
    table.hosts.get(index).map(Vec::as_slice)
}

/// The place of the first rule that matches.
pub(crate) fn first(rules: &[Arc<Rule>], head: &RequestHead<'_>) -> Option<usize> {
    rules.iter().position(|rule| matching::matches(&rule.matches, head))
}

/// What a rule does for this draw.
fn act(rule: &Arc<Rule>, draw: u64) -> Decision<'_> {
    let forward = match &rule.action {
        Action::Forward(forward) => forward,
        Action::Reply(reply) => return Decision::Reply { reply, rule: Some(rule) },
    };
    let Some((place, backend)) = drawn(forward, draw) else {
        return Decision::Reply { reply: &BAD_BACKEND, rule: Some(rule) };
    };
    match &backend.target {
        Target::Cluster(cluster) => Decision::Forward(Plan { rule, forward, backend, place, cluster }),
        Target::Reply(reply) => Decision::Reply { reply, rule: Some(rule) },
    }
}

/// The backend that a draw falls on, each in proportion to its weight; `None` without any. For opaque connections, too.
pub fn choose(forward: &Forward, draw: u64) -> Option<&Backend> {
    drawn(forward, draw).map(|(_, backend)| backend)
}

/// The same, with its place.
fn drawn(forward: &Forward, draw: u64) -> Option<(usize, &Backend)> {
    if let [only] = forward.backends.as_slice() {
        return Some((0, only));
    }
    let mut point = ((u128::from(draw) * u128::from(forward.weight_total)) >> 64) as u64;
    for (place, backend) in forward.backends.iter().enumerate() {
        if point < backend.weight {
            return Some((place, backend));
        }
        point -= backend.weight;
    }
    forward.backends.iter().enumerate().last()
}

#[cfg(test)]
mod tests;
