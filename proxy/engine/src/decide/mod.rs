//! What becomes of a connection, and which rule and which backend a request meets. Pure functions of snapshot, facts, request and draw:
//! what the road carries out, what `explain` prints and what the tests judge are one and the same value. Nothing here allocates on the
//! way to a backend.

mod connection;
mod host;
mod judge;
pub mod outside;
mod request;

use std::sync::Arc;

use http::Method;

use crate::failure::{LocalReply, Reason};
use crate::filter::cors;
use crate::matching;
use crate::model::{Action, Backend, Cluster, Forward, RouteTable, Rule, Target, VirtualHost};

pub use crate::matching::{RequestHead, without_port};
pub use connection::{Course, Door, EndedTls, First, Known, Learn, Proved, Step, Version, carried, carried_at_edge, chain, connection};
pub use judge::{Caller, at_rule, call, carried_by, door, judge};
pub use request::{EdgeDoor, Facts, Fault, Terms, TurnedAway, admit, request};

static NO_ROUTE: LocalReply = LocalReply::of(Reason::NoRoute);
static BAD_BACKEND: LocalReply = LocalReply::of(Reason::BadBackend);

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
pub enum Decision<'s> {
    /// It goes on.
    Forward(Plan<'s>),
    /// The mesh answers by itself, without more ado.
    Reply {
        /// The answer.
        reply: &'s LocalReply,
        /// The rule that matched; `None`: no rule did.
        rule: Option<&'s Arc<Rule>>,
    },
}

/// Where a request goes. Its gates ([`Forward::forth`]) run before a bad target is answered.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'s> {
    /// The rule that matched.
    pub rule: &'s Arc<Rule>,
    /// Its policy and backends.
    pub forward: &'s Arc<Forward>,
    /// The place in [`Forward::backends`] that the draw fell on; `None`: there is none with a weight.
    pub place: Option<usize>,
    /// The cluster there, or the answer in place of one.
    pub target: Result<&'s Arc<Cluster>, &'s LocalReply>,
}

impl<'s> Plan<'s> {
    fn of(rule: &'s Arc<Rule>, forward: &'s Arc<Forward>, place: Option<usize>) -> Self {
        let target = match place.and_then(|place| forward.backends.get(place)).map(|backend| &backend.target) {
            Some(Target::Cluster(cluster)) => Ok(cluster),
            Some(Target::Reply(reply)) => Err(reply),
            None => Err(&BAD_BACKEND),
        };
        Self { rule, forward, place, target }
    }

    /// The same rule's plan for another of its backends, as for a session's.
    #[must_use]
    pub fn at(self, place: usize) -> Self {
        Self::of(self.rule, self.forward, Some(place))
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
    let host = host(table, head.host)?;
    host.rules.get(first(host, head)?)
}

/// The virtual host for a host.
pub(crate) fn host<'s>(table: &'s RouteTable, host: &str) -> Option<&'s VirtualHost> {
    table.hosts.get(host::choose(&table.domains, host)?)
}

/// The place of the first rule that matches. A preflight is also for the rules that would answer the request it asks for.
pub(crate) fn first(host: &VirtualHost, head: &RequestHead<'_>) -> Option<usize> {
    let holds = |head: &RequestHead<'_>, place: usize| host.rules.get(place).is_some_and(|rule| matching::matches(&rule.matches, head));
    let found = host.index().first(head, |place| holds(head, place));
    let Some(method) = asked_for(head) else { return found };
    let asked = RequestHead { method: &method, ..*head };
    let crossed =
        |place: usize| host.rules.get(place).is_some_and(|rule| matches!(&rule.action, Action::Forward(to) if to.is_cross_origin()));
    let other = host.index().first(&asked, |place| crossed(place) && holds(&asked, place));
    found.into_iter().chain(other).min()
}

/// The method that a preflight asks for. Custom ones that are too long to be kept in place are made here, and only for preflights.
fn asked_for(head: &RequestHead<'_>) -> Option<Method> {
    let asked = cors::preflight(head.method, head.headers)?;
    Method::from_bytes(asked.as_bytes()).ok()
}

/// What a rule does for this draw.
fn act(rule: &Arc<Rule>, draw: u64) -> Decision<'_> {
    match &rule.action {
        Action::Forward(forward) => Decision::Forward(Plan::of(rule, forward, drawn(forward, draw).map(|(place, _)| place))),
        Action::Reply(reply) => Decision::Reply { reply, rule: Some(rule) },
    }
}

/// The backend that a draw falls on, each in proportion to its weight; `None` without any. For opaque connections, too.
pub fn choose(forward: &Forward, draw: u64) -> Option<&Backend> {
    drawn(forward, draw).map(|(_, backend)| backend)
}

/// The same, with its place.
fn drawn(forward: &Forward, draw: u64) -> Option<(usize, &Backend)> {
    if let [only] = forward.backends.as_slice() {
        return (only.weight > 0).then_some((0, only));
    }
    let mut point = ((u128::from(draw) * u128::from(forward.weight_total)) >> 64) as u64;
    for (place, backend) in forward.backends.iter().enumerate() {
        if point < backend.weight {
            return Some((place, backend));
        }
        point -= backend.weight;
    }
    None
}

#[cfg(test)]
mod tests;
