//! What each policy says of a call, one by one, for `explain`: every rule is asked, whatever the index would leave out.

use std::sync::Arc;

use super::rule::{PolicyRule, Spent, Stance};
use super::{Authorization, Call, Class, Ruling};

/// What a policy does where it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PolicyAction {
    Allow,
    Deny,
    Audit,
}

/// The rules of one action, on trial or not, and the names of the policies that they are of.
pub(super) type Gathered = (PolicyAction, bool, Vec<PolicyRule>, Vec<Arc<str>>);

/// A policy, and which rules of its class are its own.
#[derive(Debug)]
pub(super) struct Outlined {
    pub(super) name: Arc<str>,
    pub(super) action: PolicyAction,
    pub(super) trial: bool,
    pub(super) rules: std::ops::Range<usize>,
}

impl PolicyAction {
    /// As AuthorizationPolicy spells it.
    const fn text(self) -> &'static str {
        match self {
            Self::Allow => "Allow",
            Self::Deny => "Deny",
            Self::Audit => "Audit",
        }
    }
}

/// A policy that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedPolicy<'a> {
    /// `NAMESPACE/NAME`.
    pub name: &'a str,
    /// As AuthorizationPolicy spells it.
    pub action: &'static str,
    /// It decides nothing.
    pub dry_run: bool,
    /// How many rules it has.
    pub rules: usize,
}

/// What a policy says of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToldVerdict {
    /// None of its rules holds, and that makes no difference.
    NoMatch,
    /// A rule of it allows.
    Allow,
    /// A rule of it denies; or it allows, and no rule of any such policy holds.
    Deny,
    /// The same, on trial.
    WouldDeny,
    /// A rule of it allows, on trial.
    WouldAllow,
    /// A rule of it holds, which is told.
    Audit,
}

impl ToldVerdict {
    /// As `explain` spells it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NoMatch => "NoMatch",
            Self::Allow => "Allow",
            Self::Deny => "Deny",
            Self::WouldDeny => "WouldDeny",
            Self::WouldAllow => "WouldAllow",
            Self::Audit => "Audit",
        }
    }
}

/// A policy's word on a call.
#[derive(Debug)]
pub struct Told<'a> {
    /// `NAMESPACE/NAME`.
    pub policy: &'a str,
    /// The rule that holds; `None`: none does.
    pub rule: Option<&'a Ruling>,
    /// What it comes to.
    pub verdict: ToldVerdict,
}

impl Authorization {
    pub(super) fn of(classes: Vec<Gathered>, policies: Vec<Outlined>) -> Self {
        let mut whole = Self {
            deny: Class::default(),
            allow: Class::default(),
            trial_deny: Class::default(),
            trial_allow: Class::default(),
            audit: Class::default(),
            policies,
            refused: false,
            of_hosts: classes.iter().any(|(_, _, rules, _)| rules.iter().any(PolicyRule::of_hosts)),
        };
        for (action, trial, rules, names) in classes {
            *whole.class_mut(action, trial) = Class::new(rules, &names, stance(action));
        }
        whole
    }

    pub(super) const fn class(&self, action: PolicyAction, trial: bool) -> &Class {
        match (action, trial) {
            (PolicyAction::Deny, false) => &self.deny,
            (PolicyAction::Deny, true) => &self.trial_deny,
            (PolicyAction::Allow, false) => &self.allow,
            (PolicyAction::Allow, true) => &self.trial_allow,
            (PolicyAction::Audit, _) => &self.audit,
        }
    }

    const fn class_mut(&mut self, action: PolicyAction, trial: bool) -> &mut Class {
        match (action, trial) {
            (PolicyAction::Deny, false) => &mut self.deny,
            (PolicyAction::Deny, true) => &mut self.trial_deny,
            (PolicyAction::Allow, false) => &mut self.allow,
            (PolicyAction::Allow, true) => &mut self.trial_allow,
            (PolicyAction::Audit, _) => &mut self.audit,
        }
    }

    /// What is loaded, in the order in which it came.
    pub fn loaded(&self) -> impl Iterator<Item = LoadedPolicy<'_>> {
        self.policies.iter().map(|policy| LoadedPolicy {
            name: &policy.name,
            action: policy.action.text(),
            dry_run: policy.trial,
            rules: policy.rules.len(),
        })
    }

    /// What each policy says of a call, in their order.
    pub fn told<'a>(&'a self, call: &Call<'_>) -> Vec<Told<'a>> {
        let found = |policy: &'a Outlined| {
            let rules = self.class(policy.action, policy.trial).rules().get(policy.rules.clone()).unwrap_or_default();
            rules.iter().find(|rule| rule.holds(call, stance(policy.action), &Spent::default())).map(|rule| &*rule.ruling)
        };
        let said: Vec<(&Outlined, Option<&Ruling>)> = self.policies.iter().map(|policy| (policy, found(policy))).collect();
        let allowed =
            |trial| said.iter().any(|(policy, rule)| (policy.action, policy.trial) == (PolicyAction::Allow, trial) && rule.is_some());
        let earnest = !self.allow.is_empty();
        let (allows, trial_allows) = (allowed(false), allowed(true));
        let verdict = |policy: &Outlined, holds: bool| match (policy.action, policy.trial, holds) {
            (PolicyAction::Deny, false, true) => ToldVerdict::Deny,
            (PolicyAction::Deny, true, true) => ToldVerdict::WouldDeny,
            (PolicyAction::Allow, false, true) => ToldVerdict::Allow,
            (PolicyAction::Allow, true, true) => ToldVerdict::WouldAllow,
            (PolicyAction::Audit, _, true) => ToldVerdict::Audit,
            (PolicyAction::Allow, false, false) if !allows => ToldVerdict::Deny,
            (PolicyAction::Allow, true, false) if !earnest && !trial_allows => ToldVerdict::WouldDeny,
            (_, _, false) => ToldVerdict::NoMatch,
        };
        let told = |(policy, rule): (&'a Outlined, Option<&'a Ruling>)| Told {
            policy: &policy.name,
            rule,
            verdict: verdict(policy, rule.is_some()),
        };
        said.into_iter().map(told).collect()
    }
}

const fn stance(action: PolicyAction) -> Stance {
    match action {
        PolicyAction::Deny => Stance::Denying,
        PolicyAction::Allow | PolicyAction::Audit => Stance::Allowing,
    }
}
