//! One rule: who calls, what for, and under which condition.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::sync::Arc;

use http::Method;
use ipnet::IpNet;
use smallvec::SmallVec;

use super::condition::Condition;
use super::path::PathPattern;
use super::text::Texts;
use super::{Call, Ruling};
use crate::consumers::AuthMethod;
pub(super) use crate::matching::plain_host;
use crate::matching::{Match, header_of_policy};

/// Most conditions in CEL that are evaluated to decide on one call; further ones count as failed. What audits, and what is on trial, has as
/// many of its own.
pub const CONDITIONS_ASKED_MAX: u32 = 64;
/// Answers that are remembered without memory of their own.
const ANSWERS_INLINE: usize = 8;

/// What is taken for true where it cannot be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stance {
    /// Nothing is: the rule allows, or is only told.
    #[default]
    Allowing,
    /// The worst is: the rule denies.
    Denying,
}

/// What conditions have cost one call.
#[derive(Debug, Default)]
pub(super) struct Spent {
    /// The conditions that were asked, by their places in memory, and what they came to: a rule may be found under several of its
    /// alternatives. [`CONDITIONS_ASKED_MAX`] at most.
    asked: RefCell<SmallVec<[(*const Condition, bool); ANSWERS_INLINE]>>,
    unanswered: Cell<u32>,
}

impl Spent {
    pub(super) const fn unanswered(&self) -> u32 {
        self.unanswered.get()
    }
}

/// See the module. Empty lists hold for all; of a list that is there one item must hold.
#[derive(Debug)]
pub(super) struct PolicyRule {
    pub(super) ruling: Arc<Ruling>,
    pub(super) from: Vec<SourceMatch>,
    pub(super) to: Vec<TargetMatch>,
    /// None of them may hold.
    pub(super) not_from: Vec<SourceMatch>,
    pub(super) not_to: Vec<TargetMatch>,
    pub(super) when: Option<Condition>,
}

/// Who calls.
#[derive(Debug, Default)]
pub(super) struct SourceMatch {
    pub(super) principals: Texts,
    pub(super) namespaces: Texts,
    pub(super) blocks: Vec<IpNet>,
    /// Of who calls from outside the mesh: one of each list that is there, of scopes all.
    pub(super) consumers: Texts,
    pub(super) groups: Vec<Box<str>>,
    pub(super) scopes: Vec<Box<str>>,
    pub(super) methods: Vec<AuthMethod>,
    /// Lists that hold the client's address.
    pub(super) lists: Vec<Box<str>>,
    /// Ranges that hold the TCP peer's.
    pub(super) peer_blocks: Vec<IpNet>,
    pub(super) token: Option<TokenMatch>,
}

/// What a verified token must say.
#[derive(Debug)]
pub(super) struct TokenMatch {
    /// `None`: any that is trusted.
    pub(super) issuer: Option<Box<str>>,
    pub(super) claims: Vec<(Box<str>, Vec<Box<str>>)>,
}

/// What for.
#[derive(Debug, Default)]
pub(super) struct TargetMatch {
    pub(super) ports: Vec<u16>,
    pub(super) hosts: Texts,
    pub(super) methods: Vec<Method>,
    pub(super) paths: Vec<PathPattern>,
    /// Headers only.
    pub(super) headers: Match,
}

impl PolicyRule {
    /// Whether it holds for a call. The cheap is asked first, a condition last.
    pub(super) fn holds(&self, call: &Call<'_>, stance: Stance, spent: &Spent) -> bool {
        let unknown = stance == Stance::Denying;
        let any = |sources: &[SourceMatch], unknown| sources.iter().any(|source| source.holds(call, unknown));
        let one = |targets: &[TargetMatch], unknown| targets.iter().any(|target| target.holds(call, unknown));
        (self.from.is_empty() || any(&self.from, unknown))
            && (self.to.is_empty() || one(&self.to, unknown))
            && !any(&self.not_from, !unknown)
            && !one(&self.not_to, !unknown)
            && self.when.as_ref().is_none_or(|when| asked(when, call, unknown, spent))
    }

    pub(super) fn of_hosts(&self) -> bool {
        let targets = self.to.iter().chain(&self.not_to);
        self.when.is_some() || targets.into_iter().any(|target| !target.hosts.is_empty())
    }
}

#[cold]
fn asked(when: &Condition, call: &Call<'_>, unknown: bool, spent: &Spent) -> bool {
    if when.of_requests && call.head.is_none() {
        return unknown;
    }
    let place = std::ptr::from_ref(when);
    let mut asked = spent.asked.borrow_mut();
    if let Some((_, known)) = asked.iter().find(|(other, _)| *other == place) {
        return *known;
    }
    let room = asked.len() < CONDITIONS_ASKED_MAX as usize;
    let answer = if room { when.holds(call).ok() } else { None };
    if answer.is_none() {
        spent.unanswered.set(spent.unanswered.get() + 1);
    }
    let holds = answer.unwrap_or(unknown);
    if room {
        asked.push((place, holds));
    }
    holds
}

impl SourceMatch {
    /// `unknown`: what a token that opaque bytes cannot have is taken to say, and a list that is not at hand.
    fn holds(&self, call: &Call<'_>, unknown: bool) -> bool {
        let principals = || call.peer.is_some_and(|peer| self.principals.hold(peer.as_str()));
        let namespaces = || call.own_peer().is_some_and(|peer| self.namespaces.hold(peer.namespace()));
        (self.principals.is_empty() || principals())
            && (self.namespaces.is_empty() || namespaces())
            && (self.blocks.is_empty() || within(&self.blocks, call.source.ip()))
            && (self.peer_blocks.is_empty() || within(&self.peer_blocks, call.edge.map_or(call.source.ip(), |edge| edge.peer)))
            && (self.lists.is_empty() || self.listed(call, unknown))
            && self.token.as_ref().is_none_or(|token| if call.head.is_some() { token.holds(call) } else { unknown })
            && (!self.is_of_consumers() || if call.head.is_some() { self.identified(call) } else { unknown })
    }

    /// Whether it asks who calls from outside.
    fn is_of_consumers(&self) -> bool {
        !(self.consumers.is_empty() && self.groups.is_empty() && self.scopes.is_empty() && self.methods.is_empty())
    }

    fn identified(&self, call: &Call<'_>) -> bool {
        let Some(auth) = call.auth else {
            // A token that was verified without more ado has scopes, too.
            let scopes = |wanted: &str| call.claims.is_some_and(|claims| claims.texts("scope").any(|scope| scope == wanted));
            let alone = self.consumers.is_empty() && self.groups.is_empty();
            let token = self.methods.is_empty() || (call.claims.is_some() && self.methods.contains(&AuthMethod::Jwt));
            return alone && token && self.scopes.iter().all(|scope| scopes(scope));
        };
        let consumer = auth.consumer.as_deref();
        (self.consumers.is_empty() || consumer.is_some_and(|consumer| self.consumers.hold(&consumer.path)))
            && (self.groups.is_empty() || consumer.is_some_and(|consumer| consumer.groups.iter().any(|group| self.groups.contains(group))))
            && (self.methods.is_empty() || self.methods.contains(&auth.method))
            && self.scopes.iter().all(|scope| auth.has_scope(scope))
    }

    fn listed(&self, call: &Call<'_>, unknown: bool) -> bool {
        let Some(edge) = call.edge else { return unknown };
        self.lists.iter().any(|list| edge.book.lists(list, call.source.ip()).unwrap_or(unknown))
    }
}

/// Whether one of them holds an address. An IPv4 caller at an IPv6 socket is one of IPv4.
fn within(blocks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    blocks.iter().any(|block| block.contains(&address))
}

impl TokenMatch {
    fn holds(&self, call: &Call<'_>) -> bool {
        let Some(claims) = call.claims else { return false };
        let says = |(path, values): &(Box<str>, Vec<Box<str>>)| claims.texts(path).any(|text| values.iter().any(|value| **value == *text));
        self.issuer.as_ref().is_none_or(|issuer| **issuer == *claims.issuer) && self.claims.iter().all(says)
    }
}

impl TargetMatch {
    /// `unknown`: what is taken of a request that opaque bytes do not make, and of a header that may be read in several ways; where it is
    /// nothing, holding lets in, and paths that an application may resolve to others meet no pattern.
    fn holds(&self, call: &Call<'_>, unknown: bool) -> bool {
        if !self.ports.is_empty() && !self.ports.contains(&call.port) {
            return false;
        }
        let Some(head) = call.head else {
            return unknown || self.is_of_any_bytes();
        };
        (self.methods.is_empty() || self.methods.contains(head.method))
            && (self.paths.is_empty() || self.paths.iter().any(|path| path.holds(head.path, !unknown)))
            && (self.hosts.is_empty() || plain_host(head.host, |host| self.hosts.hold(host)))
            && self.headers.headers.iter().all(|(name, wanted)| header_of_policy(wanted, head.headers, name, unknown))
    }

    /// Whether nothing is asked of a request.
    fn is_of_any_bytes(&self) -> bool {
        self.hosts.is_empty() && self.methods.is_empty() && self.paths.is_empty() && self.headers.headers.is_empty()
    }
}
