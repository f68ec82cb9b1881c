//! BackendTLSPolicies, which this version does not carry out: which Gateways would have to go by one, so that its status can say so there.

use std::collections::BTreeSet;

use serde_json::Value;

use super::attach::{self, Attachment};
use crate::world::key::CORE;
use crate::world::route::Rule;
use crate::world::{Index, Name, ObjectKey};

/// Most Gateways that are told of: what the schema of a policy's status takes.
const ANCESTORS_MAX: usize = 16;

/// The Gateways of ours that lead to a Service which the policy is about, by name.
pub(super) fn ancestors(index: &Index, policy: &ObjectKey, document: &Value) -> BTreeSet<Name> {
    let targets = document.pointer("/spec/targetRefs").and_then(Value::as_array).into_iter().flatten();
    let services = targets.filter(|target| target["group"].as_str() == Some(CORE) && target["kind"] == "Service");
    let services: BTreeSet<&str> = services.filter_map(|target| target["name"].as_str()).collect();
    let mut ancestors = BTreeSet::new();
    for route in index.routes.iter() {
        let Some(spec) = attach::content(route) else { continue };
        let of_policy = |namespace: &Option<String>| namespace.as_ref().unwrap_or(&route.key.namespace) == &policy.namespace;
        let mut led = spec.rules.iter().flat_map(Rule::references);
        if !led.any(|to| of_policy(&to.namespace) && services.contains(to.name.as_str())) {
            continue;
        }
        for parent in &spec.parents {
            if let Attachment::Gateway(name, _) = attach::standing(index, route, parent) {
                ancestors.insert(name);
            }
        }
    }
    ancestors.into_iter().take(ANCESTORS_MAX).collect()
}
