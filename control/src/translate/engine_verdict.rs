//! What the proxy's own engine says of a view.

use std::collections::BTreeSet;

use engine::model::build::Parts;
use proto::names::Mode;

use super::{AUTHORIZATION, Audience, security, view};
use crate::world::{Kind, ObjectKey, World};

/// What the proxy's engine would refuse of a view, and whose it is: by our own doing, so always an error.
pub(super) fn refused_by_engine(world: &World, audience: &Audience, wants: &BTreeSet<String>) -> Vec<(ObjectKey, String)> {
    let mut parts = Parts::default();
    let mut refusals = Vec::new();
    for ((type_url, name), resource) in &view(world, audience, wants).resources {
        // Too many AuthorizationPolicies are sent to be refused, and told by their names.
        if *type_url == AUTHORIZATION && security::is_crowded(world, (&audience.node.namespace, &audience.workload)) {
            continue;
        }
        if let Err(rejected) = parts.put(type_url, name, &resource.version, &resource.any) {
            let message = format!("the proxy {} would refuse what this leads to: {rejected}", audience.node);
            refusals.push((owner(audience, name), message));
        }
    }
    refusals
}

/// The object that a resource stands for: of what has a Service's name the Service, else whoever runs the proxy.
fn owner(audience: &Audience, resource: &str) -> ObjectKey {
    let path = resource.split_once(':').and_then(|(path, _)| path.split_once('/'));
    match path.filter(|(namespace, name)| !matches!(*namespace, "out" | "dns") && !name.contains('/')) {
        Some((namespace, name)) => ObjectKey::new(Kind::Service, namespace, name),
        None => runner(audience),
    }
}

/// The object that runs a proxy.
pub(super) fn runner(audience: &Audience) -> ObjectKey {
    match audience.node.mode {
        Mode::Edge => ObjectKey::new(Kind::Gateway, &audience.node.namespace, &audience.node.instance),
        Mode::Sidecar => ObjectKey::new(Kind::Workload, &audience.node.namespace, &audience.workload),
    }
}
