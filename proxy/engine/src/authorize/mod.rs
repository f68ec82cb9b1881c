//! Who may call: AuthorizationPolicy, compiled and judged.
//!
//! Denying rules come first. Where a policy allows, what no allowing rule holds for is denied. Policies that audit, and those on trial
//! (`dryRun`), decide nothing: what they say is told. No rule is asked that a call's own peer, host, method and path rule out (`index`),
//! and no condition in CEL where anything cheaper does not hold. A judgement without one allocates nothing.
//!
//! Opaque bytes have no request: an allowing rule that asks for one holds for none of them, a denying rule holds as if the request were the
//! worst (contract, section 4).

mod class;
mod compile;
mod condition;
mod hash;
mod index;
mod path;
mod rule;
mod sum;
#[cfg(test)]
mod tests;
mod text;
mod told;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proto::identity::Identity;
use smallvec::SmallVec;

use crate::claims::Claims;
use crate::consumers::{Book, Identified};
use crate::failure::Reason;
use crate::matching::RequestHead;
use class::Class;
use rule::Spent;

pub use compile::ITEMS_MAX;
pub(crate) use compile::compile;
pub use condition::{CLAIM_ITEMS_MAX, CONDITION_BYTES_MAX, CONDITION_DEPTH_MAX, CONDITION_PARTS_MAX, TruthOf, ValueOf, check, check_value};
pub(crate) use condition::{parsed, truth};
pub use rule::CONDITIONS_ASKED_MAX;
pub use sum::{CONDITIONS_MAX, ITEMS_OF_ALL_MAX, POLICIES_MAX, PolicySum, RULES_MAX};
pub use told::{LoadedPolicy, Told, ToldVerdict};

/// Most auditing policies that are told of one call.
pub const AUDITS_TOLD_MAX: usize = 4;

/// One call, as far as it is judged: a request, or the connection of opaque bytes.
#[derive(Clone, Copy, Debug)]
pub struct Call<'c> {
    /// What the caller proved; `None`: it came in plaintext.
    pub peer: Option<&'c Identity>,
    /// The caller's workload by its own signed word; empty: it says none.
    pub workload: &'c str,
    /// The caller's address.
    pub source: SocketAddr,
    /// The application's port.
    pub port: u16,
    /// The request; `None`: opaque bytes. Its path is what is sent on.
    pub head: Option<&'c RequestHead<'c>>,
    /// What the request's token says, where one was verified.
    pub claims: Option<&'c Claims>,
    /// Who calls from outside the mesh, where an edge has found out.
    pub auth: Option<&'c Identified>,
    /// What else is known there of the connection.
    pub edge: Option<AtEdge<'c>>,
    /// Who is called.
    pub own: Own<'c>,
}

/// What an edge knows of a connection.
#[derive(Clone, Copy, Debug)]
pub struct AtEdge<'c> {
    /// The TCP peer, whoever is behind it.
    pub peer: IpAddr,
    /// Holds the lists of addresses.
    pub book: &'c Book,
}

/// The workload that is called.
#[derive(Clone, Copy, Debug, Default)]
pub struct Own<'c> {
    /// Its trust domain: namespaces in policies are those of this one.
    pub trust_domain: &'c str,
    /// Its namespace.
    pub namespace: &'c str,
    /// Its name.
    pub workload: &'c str,
}

impl Call<'_> {
    /// The peer, if it is of our own trust domain.
    pub(crate) fn own_peer(&self) -> Option<&Identity> {
        self.peer.filter(|peer| peer.trust_domain() == self.own.trust_domain)
    }
}

/// The name of a rule, for whoever is told of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Ruling {
    /// `NAMESPACE/NAME` of the policy; where no rule of several policies allows, their names.
    pub policy: Arc<str>,
    /// Name of the rule, else its place; empty where no rule allows.
    pub rule: Arc<str>,
    /// Both, parted by a slash.
    pub label: Arc<str>,
}

impl Ruling {
    fn new(policy: &Arc<str>, rule: &str) -> Arc<Self> {
        let label = if rule.is_empty() { Arc::clone(policy) } else { format!("{policy}/{rule}").into() };
        Arc::new(Self { policy: Arc::clone(policy), rule: rule.into(), label })
    }
}

/// All that says who may call one workload.
#[derive(Debug)]
pub struct Authorization {
    deny: Class,
    allow: Class,
    /// The same on trial.
    trial_deny: Class,
    trial_allow: Class,
    audit: Class,
    /// In the order in which they came, for whoever is told.
    policies: Vec<told::Outlined>,
    /// They could not be read and there were none before: nobody is let in.
    refused: bool,
    of_hosts: bool,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug)]
pub enum CallVerdict<'a> {
    /// It may go on.
    Allowed,
    /// It may not, by this rule, or because none of those that allow holds.
    Denied(&'a Arc<Ruling>),
    /// The policies of this workload are not to be had, so nobody is let in.
    Unavailable,
}

/// A verdict, and what was said that decides nothing.
#[derive(Debug)]
pub struct Judgement<'a> {
    /// What becomes of the call.
    pub verdict: CallVerdict<'a>,
    /// What would have denied it, were it not on trial.
    pub would_deny: Option<&'a Arc<Ruling>>,
    /// The rules that audit it, the first of each policy; [`AUDITS_TOLD_MAX`] at most.
    pub audited: SmallVec<[&'a Arc<Ruling>; AUDITS_TOLD_MAX]>,
    /// Conditions that could not be evaluated: they held for what denies and for nothing else.
    pub unanswered: u32,
}

impl Judgement<'_> {
    /// Nobody is let in: what would say who may is not to be had.
    pub fn unavailable() -> Self {
        Self { verdict: CallVerdict::Unavailable, would_deny: None, audited: SmallVec::new(), unanswered: 0 }
    }

    /// Whether it may go on.
    pub const fn allows(&self) -> bool {
        matches!(self.verdict, CallVerdict::Allowed)
    }

    /// Why it may not.
    pub const fn refusal(&self) -> Option<Reason> {
        match self.verdict {
            CallVerdict::Allowed => None,
            CallVerdict::Denied(_) => Some(Reason::Denied),
            CallVerdict::Unavailable => Some(Reason::PolicyUnavailable),
        }
    }

    /// The rule that denies it, or would if it were not on trial.
    pub const fn ruling(&self) -> Option<&Arc<Ruling>> {
        match self.verdict {
            CallVerdict::Denied(ruling) => Some(ruling),
            CallVerdict::Allowed | CallVerdict::Unavailable => self.would_deny,
        }
    }

    /// Whether there is nothing to tell.
    pub fn is_silent(&self) -> bool {
        self.allows() && self.would_deny.is_none() && self.audited.is_empty() && self.unanswered == 0
    }
}

impl Authorization {
    /// Policies that could not be read, where none were in force before.
    pub fn refused() -> Self {
        Self { refused: true, ..Self::of(Vec::new(), Vec::new()) }
    }

    /// Whether what was sent could not be read, so that nobody is let in.
    pub const fn is_refused(&self) -> bool {
        self.refused
    }

    /// Whether a rule looks at the host, which costs a request something to find.
    pub const fn of_hosts(&self) -> bool {
        self.of_hosts
    }

    /// Which policies there are, in words.
    pub(crate) fn story(&self) -> String {
        let named = self.policies.iter().take(AUDITS_TOLD_MAX).map(|policy| &*policy.name).collect::<Vec<_>>().join(", ");
        format!("{} policies judge it: {named}", self.policies.len())
    }

    /// Judges a call.
    pub fn judge(&self, call: &Call<'_>) -> Judgement<'_> {
        if self.refused {
            return Judgement::unavailable();
        }
        let mut judgement = Judgement { verdict: CallVerdict::Allowed, would_deny: None, audited: SmallVec::new(), unanswered: 0 };
        let spent = Spent::default();
        judgement.verdict = match self.deny.first(call, &spent) {
            Some(ruling) => CallVerdict::Denied(ruling),
            None if self.allow.is_empty() || self.allow.first(call, &spent).is_some() => CallVerdict::Allowed,
            None => CallVerdict::Denied(self.allow.otherwise()),
        };
        judgement.unanswered = spent.unanswered();
        // What only tells spends nothing of what decides.
        if judgement.allows() && !(self.trial_deny.is_empty() && self.trial_allow.is_empty()) {
            let spent = Spent::default();
            judgement.would_deny = self.would_deny(call, &spent);
            judgement.unanswered += spent.unanswered();
        }
        if !self.audit.is_empty() {
            let spent = Spent::default();
            self.audit.each(call, &spent, &mut judgement.audited);
            judgement.unanswered += spent.unanswered();
        }
        judgement
    }

    /// What denies a call that is allowed, if what is on trial were in force.
    fn would_deny(&self, call: &Call<'_>, spent: &Spent) -> Option<&Arc<Ruling>> {
        let denied = self.trial_deny.first(call, spent);
        // Where a policy allows in earnest, a rule of it holds: this call is allowed.
        let allowed = || self.trial_allow.is_empty() || !self.allow.is_empty() || self.trial_allow.first(call, spent).is_some();
        denied.or_else(|| (!allowed()).then(|| self.trial_allow.otherwise()))
    }
}
