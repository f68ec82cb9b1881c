//! AuthorizationPolicy on its way to proxies. Policies add up: a sidecar is told all that select its workload, those of its namespace and
//! those of the mesh, Deny before Allow before Audit, each by its name.

use std::collections::BTreeMap;

use proto::mesh::Authorization;
use serde_json::json;

use crate::translate::attach::WhyNot;
use crate::translate::mtls::{AppliesTo, applies, place};
use crate::world::security::authorization::AuthorizationPolicy;
use crate::world::traffic::PolicyTarget;
use crate::world::{Index, Instance, Object, Spec};

/// The content of an AuthorizationPolicy.
pub(in crate::translate) fn content(object: &Object) -> Option<&AuthorizationPolicy> {
    if let Spec::AuthorizationPolicy(policy) = &object.spec { Some(policy) } else { None }
}

/// All that is said about calls to a workload; `None`: nothing, and everybody may.
pub(in crate::translate) fn authorization(index: &Index, namespace: &str, labels: &BTreeMap<String, String>) -> Option<Authorization> {
    let about = |object| content(object).filter(|policy| applies(object, &policy.selector, namespace, labels));
    let policies = index.authorizations.iter().filter_map(|object| about(object).map(|policy| policy.sent(&object.key)));
    let policies: Vec<_> = policies.collect();
    (!policies.is_empty()).then_some(Authorization { policies, dry_run: index.mesh.authorization_dry_run })
}

/// The instances whose calls a policy judges.
pub(super) fn selected<'a>(index: &'a Index, object: &'a Object, policy: &'a AuthorizationPolicy) -> impl Iterator<Item = &'a Instance> {
    let chosen = |instance: &&Instance| applies(object, &policy.selector, &instance.namespace, instance.labels());
    index.instances.values().filter(move |instance| policy.inbound() && chosen(instance))
}

/// A policy's standing with each thing it is about: as status names it, and whether it is judged there, with a word on how many it is.
pub(in crate::translate) fn judge(
    index: &Index,
    object: &Object,
    policy: &AuthorizationPolicy,
) -> Vec<(serde_json::Value, Result<String, WhyNot>)> {
    if policy.inbound() {
        let reference = match place(object, &policy.selector) {
            AppliesTo::Mesh => json!({"group": "meshwright.dev", "kind": "Mesh", "namespace": object.key.namespace, "name": "default"}),
            AppliesTo::Workload | AppliesTo::Namespace => json!({"group": "", "kind": "Namespace", "name": object.key.namespace}),
        };
        return vec![(reference, Ok(counted(index, object, policy)))];
    }
    let one = |target: &PolicyTarget| {
        let (group, kind) = (target.kind.group(), target.kind.text());
        let mut reference = json!({"group": group, "kind": kind, "namespace": object.key.namespace, "name": target.name});
        if let (Some(section), Some(map)) = (&target.section, reference.as_object_mut()) {
            map.insert("sectionName".to_owned(), json!(section));
        }
        let message = "this version judges calls at servers only; at an edge the policy has no effect";
        (reference, Err(WhyNot::new("Unsupported", message.to_owned())))
    };
    policy.targets.iter().map(one).collect()
}

/// How many it is about, as status says it.
fn counted(index: &Index, object: &Object, policy: &AuthorizationPolicy) -> String {
    let (mut workloads, mut bare) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    for instance in selected(index, object, policy) {
        let name = (&instance.namespace, &instance.workload);
        if instance.meshed {
            workloads.insert(name)
        } else {
            bare.insert(name)
        };
    }
    let plural = |count: usize| if count == 1 { "1 workload".to_owned() } else { format!("{count} workloads") };
    let dry = if policy.dry_run || index.mesh.authorization_dry_run { "; it only logs and counts" } else { "" };
    match bare.len() {
        0 => format!("selects {}{dry}", plural(workloads.len())),
        bare => format!("selects {}, and {} without a sidecar, where nothing is enforced{dry}", plural(workloads.len()), plural(bare)),
    }
}
