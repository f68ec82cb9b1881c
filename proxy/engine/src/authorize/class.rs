//! The rules of all policies that do the same: deny, allow or audit, in earnest or on trial.

use std::sync::Arc;

use smallvec::SmallVec;

use super::index::Sieve;
use super::rule::{PolicyRule, Spent, Stance};
use super::{AUDITS_TOLD_MAX, Call, Ruling};

/// Policies that are named where none of their rules allows.
const NAMES_TOLD_MAX: usize = 4;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Class {
    rules: Vec<PolicyRule>,
    index: Sieve,
    /// For opaque bytes, where a denying rule holds whatever it asks of a request.
    opaque: Option<Sieve>,
    stance: Stance,
    /// There are policies, with or without rules.
    otherwise: Option<Arc<Ruling>>,
}

impl Class {
    /// Of rules in their order, of policies of these names.
    pub(super) fn new(rules: Vec<PolicyRule>, policies: &[Arc<str>], stance: Stance) -> Self {
        let index = Sieve::new(&rules);
        let opaque = (stance == Stance::Denying).then(|| Sieve::of_peers(&rules));
        let mut named = policies.iter().take(NAMES_TOLD_MAX).map(|name| &**name).collect::<Vec<_>>().join(",");
        if policies.len() > NAMES_TOLD_MAX {
            named.push_str(",…");
        }
        let otherwise = (!policies.is_empty()).then(|| Ruling::new(&named.into(), ""));
        Self { rules, index, opaque, stance, otherwise }
    }

    /// Whether there is no such policy.
    pub(super) const fn is_empty(&self) -> bool {
        self.otherwise.is_none()
    }

    /// What is told where none of its rules holds. There is a policy.
    pub(super) fn otherwise(&self) -> &Arc<Ruling> {
        self.otherwise.as_ref().expect("it is asked only where there is a policy")
    }

    /// The first rule that holds.
    pub(super) fn first(&self, call: &Call<'_>, spent: &Spent) -> Option<&Arc<Ruling>> {
        if self.rules.is_empty() {
            return None;
        }
        let index = self.opaque.as_ref().filter(|_| call.head.is_none()).unwrap_or(&self.index);
        let place = index.first(call, |place| self.rules.get(place).is_some_and(|rule| rule.holds(call, self.stance, spent)))?;
        self.rules.get(place).map(|rule| &rule.ruling)
    }

    /// The rules that hold, one of each policy.
    pub(super) fn each<'a>(&'a self, call: &Call<'_>, spent: &Spent, found: &mut SmallVec<[&'a Arc<Ruling>; AUDITS_TOLD_MAX]>) {
        self.index.each(call, |place| {
            let Some(rule) = self.rules.get(place) else { return };
            let known = found.iter().any(|other| Arc::ptr_eq(&other.policy, &rule.ruling.policy));
            if !known && found.len() < AUDITS_TOLD_MAX && rule.holds(call, self.stance, spent) {
                found.push(&rule.ruling);
            }
        });
    }

    pub(super) fn rules(&self) -> &[PolicyRule] {
        &self.rules
    }

    /// How many rules a call is asked of.
    #[cfg(test)]
    pub(super) fn count(&self, call: &Call<'_>, asked: &mut usize) {
        self.index.each(call, |_| *asked += 1);
    }
}
