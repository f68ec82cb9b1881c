//! AuthorizationPolicy on its way to proxies. Policies add up: a sidecar is told all that select its workload, those of its namespace and
//! those of the mesh, Deny before Allow before Audit, each by its name.
//!
//! Where they are too many: in place of an Allow that is left out stands one without rules, so nobody else is let in. Nothing can stand for a
//! Deny but one for everybody, so all are sent as they are: a proxy refuses them and keeps those that it has, and one that has none lets
//! nobody in. What only tells is left out first.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::authorize::PolicySum;
use proto::mesh::Authorization;
use serde_json::json;

use super::sums::{Meant, Portion, beyond};
use crate::translate::attach::WhyNot;
use crate::translate::mtls::{AppliesTo, applies, place};
use crate::world::security::authorization::{Action, AuthorizationPolicy};
use crate::world::{Index, Instance, Object, Spec, World};

/// Of a policy without rules.
pub(super) const STAND_IN: PolicySum = PolicySum { policies: 1, rules: 0, items: 0, conditions: 0 };

/// The content of an AuthorizationPolicy.
pub(in crate::translate) fn content(object: &Object) -> Option<&AuthorizationPolicy> {
    if let Spec::AuthorizationPolicy(policy) = &object.spec { Some(policy) } else { None }
}

/// Whether it decides: neither does it audit, nor is it on trial.
fn decides(index: &Index, policy: &AuthorizationPolicy) -> bool {
    policy.action != Action::Audit && !policy.dry_run && !index.mesh.authorization_dry_run
}

/// The policies that are meant, in the order in which they are asked.
pub(super) fn portions<'a>(index: &'a Index, meant: Meant<'_>) -> Vec<Portion<'a, AuthorizationPolicy, PolicySum>> {
    let portion = |object: &'a Arc<Object>| {
        let content = content(object).filter(|policy| meant(object, &policy.selector))?;
        Some(Portion { object, content, sum: content.sum(), tells: !decides(index, content) })
    };
    index.authorizations.iter().filter_map(portion).collect()
}

/// All that is said about calls to a workload; `None`: nothing, and everybody may.
pub(in crate::translate) fn authorization(world: &World, namespace: &str, labels: &BTreeMap<String, String>) -> Option<Authorization> {
    let index = world.index();
    let about = portions(index, &|object, selector| applies(object, selector, namespace, labels));
    let left_out = beyond(world, &about, STAND_IN);
    let is_out = |portion: &Portion<'_, AuthorizationPolicy, _>| left_out.contains(&portion.object.key);
    let opens = about.iter().any(|portion| is_out(portion) && !portion.tells && portion.content.action == Action::Deny);
    let mut stands = false;
    let mut policies = Vec::with_capacity(about.len());
    for portion in &about {
        if opens || !is_out(portion) {
            policies.push(portion.content.sent(&portion.object.key));
        } else if !portion.tells && !stands {
            stands = true;
            let bare = AuthorizationPolicy { rules: Vec::new(), ..portion.content.clone() };
            policies.push(bare.sent(&portion.object.key));
        }
    }
    (!policies.is_empty()).then_some(Authorization { policies, dry_run: index.mesh.authorization_dry_run })
}

/// What becomes of a policy that is left out.
pub(super) fn fate(index: &Index, policy: &AuthorizationPolicy) -> &'static str {
    match policy.action {
        _ if !decides(index, policy) => "it tells nothing there",
        Action::Deny => "sidecars there keep the policies that they have, and one that has none lets nobody in",
        Action::Allow | Action::Audit => "it allows nothing there",
    }
}

/// The instances whose calls a policy judges.
pub(super) fn selected<'a>(index: &'a Index, object: &'a Object, policy: &'a AuthorizationPolicy) -> impl Iterator<Item = &'a Instance> {
    let chosen = |instance: &&Instance| applies(object, &policy.selector, &instance.namespace, instance.labels());
    index.instances.values().filter(move |instance| policy.inbound() && chosen(instance))
}

/// The standing of a policy for servers with what it is about: as status names it, and whether it is judged there, with a word on how many it
/// is.
pub(in crate::translate) fn judge(
    index: &Index,
    object: &Object,
    policy: &AuthorizationPolicy,
) -> Vec<(serde_json::Value, Result<String, WhyNot>)> {
    let reference = match place(object, &policy.selector) {
        AppliesTo::Mesh => json!({"group": "meshwright.dev", "kind": "Mesh", "namespace": object.key.namespace, "name": "default"}),
        AppliesTo::Workload | AppliesTo::Namespace => json!({"group": "", "kind": "Namespace", "name": object.key.namespace}),
    };
    vec![(reference, Ok(counted(index, object, policy)))]
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
