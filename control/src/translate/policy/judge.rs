//! A policy's standing with each thing it is about (Gateway API, policy attachment: `status.ancestors`).

use serde_json::json;

use super::{content, gateway, said};
use crate::translate::attach::WhyNot;
use crate::translate::{attach, mtls};
use crate::world::traffic::{PolicyTarget, TrafficPolicy};
use crate::world::{Kind, Object, ObjectKey, ServiceView, World};

/// One thing that a policy is about.
#[derive(Debug)]
pub(in crate::translate) struct Ancestor {
    /// As status names it.
    pub reference: serde_json::Value,
    /// Path of the field that names it, and its line; 0: the object's own.
    pub field: (String, u32),
    /// Whether it applies there, and if not wholly, why.
    pub verdict: Result<(), WhyNot>,
}

/// Judges a policy at each of its targets, or at its namespace or the mesh.
pub(in crate::translate) fn judge(world: &World, object: &Object, policy: &TrafficPolicy) -> Vec<Ancestor> {
    let key = &object.key;
    if policy.targets.is_empty() {
        let mesh = policy.selector.is_none() && key.namespace == proto::annotations::ROOT_NAMESPACE;
        let reference = if mesh {
            json!({"group": "meshwright.dev", "kind": "Mesh", "namespace": key.namespace, "name": "default"})
        } else {
            json!({"group": "", "kind": "Namespace", "name": key.namespace})
        };
        let field = if policy.selector.is_some() { "spec.selector" } else { "spec" };
        return vec![Ancestor { reference, field: (field.to_owned(), 0), verdict: conflict(world, object, policy, None) }];
    }
    let one = |(number, target): (usize, &PolicyTarget)| {
        let reference = reference(&key.namespace, target);
        let verdict = target_found(world, key, target).and_then(|()| conflict(world, object, policy, Some(target)));
        Ancestor { reference, field: (format!("spec.targetRefs[{number}]"), target.line), verdict }
    };
    policy.targets.iter().enumerate().map(one).collect()
}

/// A target as status names it.
pub(in crate::translate) fn reference(namespace: &str, target: &PolicyTarget) -> serde_json::Value {
    let mut reference = json!({
        "group": target.kind.group(), "kind": target.kind.text(), "namespace": namespace, "name": target.name,
    });
    if let (Some(section), Some(map)) = (&target.section, reference.as_object_mut()) {
        map.insert("sectionName".to_owned(), json!(section));
    }
    reference
}

/// Whether there is such a thing, and such a part of it.
pub(in crate::translate) fn target_found(world: &World, policy: &ObjectKey, target: &PolicyTarget) -> Result<(), WhyNot> {
    let index = world.index();
    let key = target.key(&policy.namespace);
    let name = (key.namespace.clone(), key.name.clone());
    let none = |message: String| Err(WhyNot::new("TargetNotFound", message));
    let (noun, parts): (&str, Vec<&str>) = match target.kind {
        Kind::Service => match index.services.get(&name).and_then(ServiceView::service) {
            Some(service) => ("port", service.ports.iter().map(|port| port.name.as_str()).collect()),
            None => return none(format!("there is no {key}")),
        },
        Kind::Gateway => match gateway(index, &name) {
            Some(gateway) => ("listener", gateway.listeners.iter().map(|listener| listener.name.as_str()).collect()),
            None if index.foreign_gateways.contains(&name) => return none(format!("{key} is another controller's")),
            None => return none(format!("there is no {key}")),
        },
        _ => match world.get(&key) {
            Some(route) => ("rule", rule_names(route)),
            None => return none(format!("there is no {key}")),
        },
    };
    match &target.section {
        Some(section) if !parts.contains(&section.as_str()) => none(format!("{key} has no {noun} named `{section}`")),
        _ => Ok(()),
    }
}

/// The names of a route's rules; rules may have none.
pub(super) fn rule_names(route: &Object) -> Vec<&str> {
    attach::content(route).into_iter().flat_map(|spec| &spec.rules).filter_map(|rule| rule.name.as_deref()).collect()
}

/// Fields that older policies of the same place say, too.
fn conflict(world: &World, object: &Object, policy: &TrafficPolicy, target: Option<&PolicyTarget>) -> Result<(), WhyNot> {
    let index = world.index();
    let older: Vec<(&Object, &TrafficPolicy)> = if policy.selector.is_some() {
        let rivals = index.traffic_selectors.iter().take_while(|rival| rival.key != object.key);
        let meets = |rival: &Object, other: &TrafficPolicy| {
            index.instances.values().any(|instance| {
                [(object, policy), (rival, other)]
                    .iter()
                    .all(|(object, policy)| mtls::applies(object, &policy.selector, &instance.namespace, instance.labels()))
            })
        };
        rivals.filter_map(|rival| Some((&**rival, content(rival)?))).filter(|(rival, other)| meets(rival, other)).collect()
    } else {
        let place = target.map(|target| target.place(&object.key.namespace));
        let place = place.or_else(|| policy.places(&object.key).pop());
        let rivals = place.iter().flat_map(|place| said(index, place));
        rivals.map(|(rival, other)| (&**rival, other)).take_while(|(rival, _)| rival.key != object.key).collect()
    };
    let mut lost: Vec<(&ObjectKey, Vec<&str>)> = Vec::new();
    let mut kept = false;
    for field in policy.settings.fields() {
        let winner = older.iter().find(|(_, other)| other.settings.fields().contains(&field));
        let Some((winner, _)) = winner else {
            kept = true;
            continue;
        };
        match lost.iter_mut().find(|(known, _)| *known == &winner.key) {
            Some((_, fields)) => fields.push(field.path),
            None => lost.push((&winner.key, vec![field.path])),
        }
    }
    if lost.is_empty() {
        return Ok(());
    }
    let parts: Vec<String> = lost.iter().map(|(winner, fields)| format!("{winner} is older and wins in {}", fields.join(", "))).collect();
    let rest = if kept { "; what else this one says holds" } else { "" };
    Err(WhyNot::new("Conflicted", format!("{}{rest}", parts.join("; "))))
}
