//! What a status is made of.

use std::collections::BTreeMap;

use serde::Serialize;

use super::refusal::WhyNot;
use crate::world::route::{Route, Rule};

/// One condition, as Kubernetes writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// The word for programs.
    pub reason: String,
    /// The sentence for people.
    pub message: String,
    /// The generation it speaks of.
    pub observed_generation: i64,
}

/// The status of one object; empty parts are left out of its JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Conditions of the object itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Of a route: one entry per parent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<ParentStatus>,
    /// Of a Gateway or ListenerSet: one entry per listener.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<ListenerStatus>,
    /// Of a Gateway: where it is reached.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<BTreeMap<&'static str, String>>,
    /// Of a Gateway: how many ListenerSets are attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attached_listener_sets: Option<usize>,
    /// Of policies: one entry per thing they apply to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<AncestorStatus>,
    /// Of a Canary.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryStatus>,
}

/// Where a Canary is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CanaryStatus {
    /// Progressing, Paused, Promoted or RolledBack.
    pub phase: &'static str,
    /// At which step, from 1.
    pub step: usize,
    /// Of how many.
    pub steps: usize,
    /// The candidate's share of all requests, per cent.
    pub weight: u8,
}

/// A route's standing with one parent.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// The reference, as written.
    pub parent_ref: serde_json::Value,
    /// Who says so.
    pub controller_name: &'static str,
    /// The standing.
    pub conditions: Vec<Condition>,
}

/// One listener of a Gateway.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// Kinds of routes that may attach: group and kind.
    pub supported_kinds: Vec<BTreeMap<&'static str, String>>,
    /// How many routes are attached.
    pub attached_routes: usize,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

/// An object's standing with one thing it applies to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AncestorStatus {
    /// The thing.
    pub ancestor_ref: serde_json::Value,
    /// Who says so.
    pub controller_name: &'static str,
    /// The standing.
    pub conditions: Vec<Condition>,
}

/// Makes conditions that speak of one generation.
pub(super) struct Conditions {
    pub(super) generation: i64,
}

impl Conditions {
    pub(super) fn say(&self, kind: &str, status: &'static str, reason: &str, message: impl Into<String>) -> Condition {
        Condition {
            kind: kind.to_owned(),
            status,
            reason: reason.to_owned(),
            message: message.into(),
            observed_generation: self.generation,
        }
    }

    /// True with the kind's own name as the reason, as in Gateway API.
    pub(super) fn holds(&self, kind: &str) -> Condition {
        self.say(kind, "True", kind, "")
    }

    pub(super) fn fails(&self, kind: &str, refusal: &WhyNot) -> Condition {
        self.say(kind, "False", refusal.reason, refusal.message.clone())
    }
}

/// Why no rule of the route can be served as written.
pub(super) fn wholly_invalid(route: &Route) -> Option<WhyNot> {
    route.rules.iter().all(Rule::fails).then(|| WhyNot::new("UnsupportedValue", invalid_parts(route)))
}

/// What is wrong with which rule, in Gateway API's words.
pub(super) fn invalid_parts(route: &Route) -> String {
    let mut parts = Vec::new();
    for (number, rule) in route.rules.iter().enumerate() {
        let fate = if rule.matches.is_empty() { "" } else { "; what its other matches match is answered 500" };
        let dropped = rule.unmatchable.iter().map(|fault| format!("Dropped Rule {number}: {}{fate}", fault.message));
        parts.extend(dropped);
        if rule.unmatchable.is_empty() {
            parts.extend(
                rule.failing.iter().map(|fault| format!("Dropped Rule {number}: {}; its requests are answered 500", fault.message)),
            );
        }
        let backends = rule.backends().iter().flat_map(|backend| backend.failing.iter().map(move |fault| (&backend.to.name, fault)));
        parts.extend(
            backends.map(|(name, fault)| format!("Dropped Rule {number}: {}; the share of backend {name} is answered 500", fault.message)),
        );
    }
    parts.join(". ")
}
