//! What the status of an object is to be, given what we say of it and what is there. Pure.
//!
//! Others speak in the same status. Of a list of conditions ours are the types that we know; of `parents` and `ancestors`, which are
//! atomic lists, the entries under our controller's name: everybody else's stay as they are, where they are. Time goes on only where a
//! condition's status changes. Equal is equal: then there is nothing to write.

use proto::annotations::CONTROLLER;
use serde_json::{Map, Value, json};

use crate::translate::{Condition, Status};
use crate::world::Kind;
use crate::world::key::GATEWAY_API;

/// Most entries of `parents` that Gateway API's schemas take.
pub(super) const PARENTS_MAX: usize = 32;
/// Most entries of `ancestors`.
pub(super) const ANCESTORS_MAX: usize = 16;
/// Longest message of a condition that they take, in characters.
pub(super) const MESSAGE_CHARS_MAX: usize = 32_768;

/// Types of conditions that this controller sets on an object, a listener, or in an entry of its own. Those that do not apply are taken
/// away: `OverlappingTLSConfig` must be absent where nothing overlaps.
const OURS: [&str; 12] = [
    "Accepted",
    "Programmed",
    "ResolvedRefs",
    "Conflicted",
    "PartiallyInvalid",
    "OverlappingTLSConfig",
    "SupportedVersion",
    "InsecureFrontendValidationMode",
    "Live",
    "Ready",
    "Degraded",
    "Progressing",
];

/// What we say of one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spoken {
    /// Conditions, entries, listeners, addresses.
    pub status: Status,
    /// Of a GatewayClass: the names of what is supported, sorted.
    pub features: Vec<&'static str>,
    /// Nothing has touched it since a former holder of the lease told of it: what is live already stays so, whoever has yet to come back.
    pub resumed: bool,
    /// Of which object by that name: one that was made anew has heard nothing yet.
    pub uid: String,
}

/// The parts of `status` to be written, each whole, over what `present` says; `None`: it says so already.
///
/// Each list is written as a whole, so it must be written over the very version that `present` was read from.
pub fn merged(kind: Kind, spoken: &Spoken, present: &Value, now: &str) -> Option<Value> {
    let Spoken { status, features, resumed: _, uid: _ } = spoken;
    let mut wanted = Map::new();
    let mut want = |name: &str, value: Value| {
        let before = present.get(name);
        // An absent list says as much as an empty one.
        let empty = value.as_array().is_some_and(Vec::is_empty);
        if before != Some(&value) && !(empty && before.is_none_or(Value::is_null)) {
            wanted.insert(name.to_owned(), value);
        }
    };
    // Gateway API calls them parents there, too.
    let routes = kind.text().ends_with("Route") || kind == Kind::XBackend;
    if routes {
        let ours = status.parents.iter().map(|parent| ("parentRef", &parent.parent_ref, &parent.conditions));
        want("parents", entries(ours.collect(), &present["parents"], PARENTS_MAX, now));
        return finish(wanted);
    }
    let policy = kind.group() == GATEWAY_API && !matches!(kind, Kind::Gateway | Kind::GatewayClass | Kind::ListenerSet);
    if !policy {
        // Schemas of Gateway API's policies have none at the top: they would be pruned, and be missing for ever.
        want("conditions", conditions(&status.conditions, &present["conditions"], now));
    }
    if kind == Kind::Gateway {
        want("addresses", json!(status.addresses));
        if let Some(sets) = status.attached_listener_sets {
            want("attachedListenerSets", json!(sets));
        }
    }
    if matches!(kind, Kind::Gateway | Kind::ListenerSet) {
        want("listeners", listeners(status, &present["listeners"], now));
    }
    if kind == Kind::GatewayClass {
        want("supportedFeatures", features.iter().map(|name| json!({"name": name})).collect());
    }
    if !matches!(kind, Kind::Gateway | Kind::GatewayClass | Kind::ListenerSet) {
        let ours = status.ancestors.iter().map(|ancestor| ("ancestorRef", &ancestor.ancestor_ref, &ancestor.conditions));
        want("ancestors", entries(ours.collect(), &present["ancestors"], ANCESTORS_MAX, now));
    }
    if kind == Kind::Canary {
        let shown = status.canary.map(|canary| json!(canary)).unwrap_or_default();
        for name in ["phase", "step", "steps", "weight"] {
            // What does not apply any more is taken away.
            if present[name] != shown[name] {
                wanted.insert(name.to_owned(), shown[name].clone());
            }
        }
    }
    finish(wanted)
}

fn finish(wanted: Map<String, Value>) -> Option<Value> {
    (!wanted.is_empty()).then_some(Value::Object(wanted))
}

/// Ours in place of ours, each at its place as far as it was there; others' where they are. Beyond `max` our last ones are left out.
fn entries(ours: Vec<(&'static str, &Value, &Vec<Condition>)>, present: &Value, max: usize, now: &str) -> Value {
    let present = list(present);
    let is_ours = |entry: &Value| entry["controllerName"] == CONTROLLER;
    let others = present.iter().filter(|entry| !is_ours(entry)).count();
    let ours = &ours[..ours.len().min(max.saturating_sub(others))];
    let made: Vec<Value> = ours
        .iter()
        .map(|(name, reference, said)| {
            let before = present.iter().find(|entry| is_ours(entry) && entry[*name] == **reference);
            let before = before.map_or(&Value::Null, |entry| &entry["conditions"]);
            json!({*name: reference, "controllerName": CONTROLLER, "conditions": conditions(said, before, now)})
        })
        .collect();
    let same = |one: &Value, other: &Value| ["parentRef", "ancestorRef"].iter().all(|name| one[*name] == other[*name]);
    let mut left = made.clone();
    let mut result = Vec::with_capacity(present.len().max(made.len()));
    for entry in present {
        if !is_ours(entry) {
            result.push(entry.clone());
        } else if let Some(place) = left.iter().position(|made| same(made, entry)) {
            result.push(left.remove(place));
        }
    }
    result.extend(left);
    Value::Array(result)
}

fn listeners(status: &Status, present: &Value, now: &str) -> Value {
    let present = list(present);
    let made = status.listeners.iter().map(|listener| {
        let before = present.iter().find(|entry| entry["name"] == listener.name.as_str());
        let mut entry = json!({
            "name": listener.name,
            "supportedKinds": listener.supported_kinds,
            "attachedRoutes": listener.attached_routes,
        });
        entry["conditions"] = conditions(&listener.conditions, before.map_or(&Value::Null, |entry| &entry["conditions"]), now);
        entry
    });
    made.collect()
}

/// Ours as we say them, others' as they are. A list keyed by type: the order of what was there stays.
fn conditions(said: &[Condition], present: &Value, now: &str) -> Value {
    let mut left: Vec<&Condition> = said.iter().collect();
    let mut result = Vec::with_capacity(said.len());
    for before in list(present) {
        let kind = before["type"].as_str().unwrap_or_default();
        if let Some(place) = left.iter().position(|condition| condition.kind == kind) {
            result.push(condition(left.remove(place), Some(before), now));
        } else if !OURS.contains(&kind) {
            result.push(before.clone());
        }
    }
    result.extend(left.into_iter().map(|said| condition(said, None, now)));
    Value::Array(result)
}

fn condition(said: &Condition, before: Option<&Value>, now: &str) -> Value {
    let since = before.filter(|before| before["status"] == said.status).and_then(|before| before["lastTransitionTime"].as_str());
    let message: String = said.message.chars().take(MESSAGE_CHARS_MAX).collect();
    json!({
        "type": said.kind,
        "status": said.status,
        "reason": said.reason,
        "message": message,
        "observedGeneration": said.observed_generation,
        "lastTransitionTime": since.unwrap_or(now),
    })
}

/// Leaves what is there where it is the proxies' word that is missing: a new lease holder has heard of nobody yet. Of another generation
/// nothing is left.
pub(super) fn wait_patiently(status: &mut Status, present: &Value) {
    let entry = |name: &str, fits: &dyn Fn(&Value) -> bool| {
        list(&present[name]).iter().find(|entry| fits(entry)).map_or(&Value::Null, |entry| &entry["conditions"])
    };
    let ours = |entry: &Value| entry["controllerName"] == CONTROLLER;
    leave_true(&mut status.conditions, &present["conditions"]);
    for listener in &mut status.listeners {
        leave_true(&mut listener.conditions, entry("listeners", &|entry| entry["name"] == listener.name.as_str()));
    }
    for parent in &mut status.parents {
        leave_true(&mut parent.conditions, entry("parents", &|entry| ours(entry) && entry["parentRef"] == parent.parent_ref));
    }
    for ancestor in &mut status.ancestors {
        leave_true(&mut ancestor.conditions, entry("ancestors", &|entry| ours(entry) && entry["ancestorRef"] == ancestor.ancestor_ref));
    }
}

fn leave_true(said: &mut [Condition], present: &Value) {
    for said in said.iter_mut().filter(|said| matches!(said.reason.as_str(), "Pending" | "Refused")) {
        let same = |before: &&Value| before["type"] == said.kind.as_str() && before["observedGeneration"] == said.observed_generation;
        let before = list(present).iter().find(same).filter(|before| before["status"] == "True");
        let Some(before) = before else { continue };
        said.status = "True";
        for (text, name) in [(&mut said.reason, "reason"), (&mut said.message, "message")] {
            before[name].as_str().unwrap_or_default().clone_into(text);
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
