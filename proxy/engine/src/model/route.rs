//! Route tables: from a request to an action.

use std::sync::Arc;

use super::{Cluster, Domains, Policy, RuleTelemetry, Steps, VersionCounts};
use crate::failure::LocalReply;
use crate::filter::Stage;
use crate::filter::chance::Chance;
use crate::matching::{Index, Match};

/// Virtual hosts and their rules, in Gateway API's order of precedence: the first rule that matches wins.
#[derive(Debug)]
pub struct RouteTable {
    /// Resource name.
    pub name: Arc<str>,
    /// Which hosts lead to which of `hosts`.
    pub domains: Arc<Domains>,
    /// Rules by virtual host.
    pub hosts: Vec<VirtualHost>,
    /// Stamp of the resource content behind it, unique in this process.
    pub content: u64,
}

impl RouteTable {
    /// A table whose rules are for every host.
    pub fn everywhere(name: &str, rules: Vec<Arc<Rule>>, content: u64) -> Self {
        Self { name: name.into(), domains: Arc::new(Domains::everywhere()), hosts: vec![VirtualHost::new(rules)], content }
    }
}

/// The rules of the hosts that are served alike.
#[derive(Debug)]
pub struct VirtualHost {
    /// In order of precedence.
    pub rules: Vec<Arc<Rule>>,
    index: Arc<Index>,
}

impl VirtualHost {
    /// With these rules, the first that matches wins.
    pub fn new(rules: Vec<Arc<Rule>>) -> Self {
        let index = Arc::new(Index::new(rules.iter().map(|rule| &*rule.matches)));
        Self { rules, index }
    }

    /// The same; `index` is of the matches of just these rules.
    pub(crate) const fn indexed(rules: Vec<Arc<Rule>>, index: Arc<Index>) -> Self {
        Self { rules, index }
    }

    /// Finds them.
    pub(crate) fn index(&self) -> &Index {
        &self.index
    }
}

/// One match of one rule, and what it leads to: a [`Target`], or while it is staged the name of one.
#[derive(Debug)]
pub struct Rule<T = Target> {
    /// Unique in this process; a key for interned metric handles. Kept while the rule's content is unchanged.
    pub id: u32,
    /// Which object wrote it.
    pub source: RuleSource,
    /// When it applies.
    pub matches: Arc<Match>,
    /// What then happens.
    pub action: Action<T>,
}

impl Rule {
    /// What it says of what is told of its requests.
    pub fn telemetry(&self) -> Option<&RuleTelemetry> {
        match &self.action {
            Action::Forward(forward) => forward.policy.telemetry.as_ref(),
            Action::Reply(_) => None,
        }
    }
}

/// The object behind a rule, for logs, metrics and `explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSource {
    /// `HTTPRoute`, or `Service` for a Service's own default.
    pub kind: Arc<str>,
    /// Namespace of the object.
    pub namespace: Arc<str>,
    /// Name of the object.
    pub name: Arc<str>,
    /// Rule name, else its index.
    pub rule: Arc<str>,
    /// `NAMESPACE/NAME` for the `route` label; empty for a Service's default.
    pub label: Arc<str>,
}

/// What a rule leads to.
#[derive(Debug)]
pub enum Action<T = Target> {
    /// To a backend.
    Forward(Arc<Forward<T>>),
    /// An answer of the mesh's own (bad reference: 500, fixed answer).
    Reply(LocalReply),
}

/// Weighted backends and what happens on the way.
#[derive(Debug)]
pub struct Forward<T = Target> {
    /// What happens on the way to each of them.
    pub policy: Arc<Policy>,
    /// All backends, also those with weight 0, which sessions may still lead to.
    pub backends: Vec<Backend<T>>,
    /// Who gets copies of the requests.
    pub mirrors: Vec<Mirror<T>>,
    /// Where the services are that its policies ask, in their order.
    pub asked: Vec<T>,
    /// Sum of weights; 0 means 500 `bad_backend`.
    pub weight_total: u64,
    /// Somewhere on the way preflights are answered.
    cross_origin: bool,
    /// See [`Forward::is_bare`].
    bare: bool,
    /// Some backend is a version of a canary.
    counted: bool,
}

impl<T> Forward<T> {
    /// Backends with a policy; at most 2^32 of weight in sum.
    pub fn new(policy: Arc<Policy>, backends: Vec<Backend<T>>, mirrors: Vec<Mirror<T>>) -> Self {
        let weight_total = backends.iter().map(|backend| backend.weight).sum();
        let cross_origin = policy.steps.answers_preflights() || backends.iter().any(|backend| backend.steps.answers_preflights());
        let plain = |backend: &Backend<T>| backend.steps.is_empty() && backend.mirrors.is_empty();
        let bare = policy.steps.is_empty() && policy.hash.is_empty() && mirrors.is_empty() && backends.iter().all(plain);
        let counted = backends.iter().any(|backend| backend.counts.is_some());
        Self { policy, backends, mirrors, asked: Vec::new(), weight_total, cross_origin, bare, counted }
    }

    /// The same, whose policies ask services that are there.
    #[must_use]
    pub fn asking(self, asked: Vec<T>) -> Self {
        Self { asked, ..self }
    }

    /// Everything to one target.
    pub fn to(policy: Arc<Policy>, target: T) -> Self {
        Self::new(policy, vec![Backend { weight: 1, target, steps: Arc::default(), mirrors: Vec::new(), counts: None }], Vec::new())
    }

    /// The same, leading to what `link` makes of each target.
    pub(crate) fn linked<U>(&self, link: impl Fn(&T) -> U) -> Forward<U> {
        let mirrors = |mirrors: &[Mirror<T>]| -> Vec<Mirror<U>> {
            let mirror = |mirror: &Mirror<T>| Mirror {
                target: link(&mirror.target),
                per_million: mirror.per_million,
                counts: mirror.counts.clone(),
            };
            mirrors.iter().map(mirror).collect()
        };
        let backend = |staged: &Backend<T>| Backend {
            weight: staged.weight,
            target: link(&staged.target),
            steps: Arc::clone(&staged.steps),
            mirrors: mirrors(&staged.mirrors),
            counts: staged.counts.clone(),
        };
        Forward {
            policy: Arc::clone(&self.policy),
            backends: self.backends.iter().map(backend).collect(),
            mirrors: mirrors(&self.mirrors),
            asked: self.asked.iter().map(&link).collect(),
            weight_total: self.weight_total,
            cross_origin: self.cross_origin,
            bare: self.bare,
            counted: self.counted,
        }
    }

    /// Whether preflights are answered on the way to any of its backends, and what they allow is said on answers.
    pub const fn is_cross_origin(&self) -> bool {
        self.cross_origin
    }

    /// Whether somebody is asked who calls, or whether they may, on the way.
    pub fn is_guarded(&self) -> bool {
        self.policy.steps.gates.iter().any(|stage| matches!(stage, Stage::Guard(_)))
    }

    /// Whether nothing is done to a request on the way to any of its backends, nor to the answer: no stages, copies or hashes. Most are, and what
    /// stages would see of their requests need not be made.
    #[inline]
    pub const fn is_bare(&self) -> bool {
        self.bare
    }

    /// All that it leads to, in a fixed order: backends, its mirrors, theirs, services that are asked.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &T> {
        let mirrors = self.mirrors.iter().chain(self.backends.iter().flat_map(|backend| &backend.mirrors));
        self.backends.iter().map(|backend| &backend.target).chain(mirrors.map(|mirror| &mirror.target)).chain(&self.asked)
    }
}

/// Sets the chances of mirrors apart from those of stages.
const MIRROR_SALT: u64 = 1 << 40;

impl Forward {
    /// Whether copies of requests to this place may go elsewhere.
    pub fn is_mirrored(&self, place: Option<usize>) -> bool {
        !self.mirrors.is_empty() || place.and_then(|place| self.backends.get(place)).is_some_and(|backend| !backend.mirrors.is_empty())
    }

    /// Who gets a copy of a request that goes to this place, and who counts what becomes of it: the rule's mirrors and the backend's, each by a
    /// chance of its own.
    pub fn mirrors_for(&self, place: Option<usize>, draw: u64) -> impl Iterator<Item = (&Arc<Cluster>, Option<&Arc<VersionCounts>>)> {
        let own = place.and_then(|place| self.backends.get(place)).map_or(&[][..], |backend| &backend.mirrors);
        let all = self.mirrors.iter().chain(own).zip(MIRROR_SALT..);
        all.filter(move |(mirror, salt)| Chance::new(mirror.per_million, *salt).falls(draw)).filter_map(|(mirror, _)| {
            match &mirror.target {
                Target::Cluster(cluster) => Some((cluster, mirror.counts.as_ref())),
                Target::Reply(_) => None,
            }
        })
    }

    /// Who counts the requests to this place, where it is a version of a canary.
    #[inline]
    pub fn counts_at(&self, place: Option<usize>) -> Option<&Arc<VersionCounts>> {
        if !self.counted {
            return None;
        }
        self.backends.get(place?)?.counts.as_ref()
    }
}

/// One weighted target.
#[derive(Debug)]
pub struct Backend<T = Target> {
    /// Its weight; 0: no draw falls on it.
    pub weight: u64,
    /// Where it leads: a cluster, or the answer for a bad reference (so that its share of requests fails, no more).
    pub target: T,
    /// What only its requests pass.
    pub steps: Arc<Steps>,
    /// Who gets copies of its requests.
    pub mirrors: Vec<Mirror<T>>,
    /// Who counts its requests, where it is a version of a canary.
    pub counts: Option<Arc<VersionCounts>>,
}

/// Where copies of requests go. Nobody waits for what comes of them.
#[derive(Debug)]
pub struct Mirror<T = Target> {
    /// Where; an answer in place of a cluster means that there is nobody to send them to.
    pub target: T,
    /// Of 1,000,000 requests.
    pub per_million: u32,
    /// Who counts what becomes of them, where it is a version of a canary.
    pub counts: Option<Arc<VersionCounts>>,
}

/// See [`Backend::target`].
#[derive(Debug)]
pub enum Target {
    /// A cluster.
    Cluster(Arc<Cluster>),
    /// A fixed answer.
    Reply(LocalReply),
}
