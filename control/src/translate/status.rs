//! What status says of each object (Gateway API's shapes; `gateway-api.md`, section 1). `Live` is added by whoever knows which
//! proxies have acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::annotations::CONTROLLER;
use serde_json::json;

use super::attach::{self, Attachment, WhyNot};
use super::security::egress;
pub use super::status_words::{AncestorStatus, CanaryStatus, Condition, ListenerStatus, ParentStatus, Status};
use super::status_words::{Conditions, invalid_parts, wholly_invalid};
use super::{access_log, canary, conflict, edge, edge_listeners, policy, security, status_edge, trust};
use crate::world::canary::{Canary, CanaryPhase};
use crate::world::edge::Consumer;
use crate::world::key::{CORE, GATEWAY_API};
use crate::world::own::{Mesh, Selector};
use crate::world::route::{ParentRef, Route, Rule};
use crate::world::security::authorization::AuthorizationPolicy;
use crate::world::telemetry::Telemetry;
use crate::world::traffic::{PolicyTarget, TrafficPolicy};
use crate::world::{Candidate, Kind, Name, Object, ObjectKey, Spec, Versions, World};

/// What the status of every object says; objects without anything to say are left out.
pub fn statuses(world: &World) -> BTreeMap<ObjectKey, Status> {
    let mut statuses = BTreeMap::new();
    for (key, slot) in world.slots().iter() {
        let by = Conditions { generation: slot.generation() };
        if newest(slot).is_some_and(|newest| of_others(world, newest)) {
            continue;
        }
        let status = match (slot.live().and_then(|live| live.object.as_ref()), slot.refused()) {
            (Some(object), _) => match slot.refused_newer() {
                Some(refused) => Some(of_outdated(of_object(world, object, &by), refused, &by)),
                None => of_object(world, object, &by),
            },
            (None, Some(refused)) => Some(of_refused_at(world, refused, of_refused(refused, &by))),
            (None, None) => None,
        };
        statuses.extend(status.map(|status| (key.clone(), status)));
    }
    statuses
}

/// The newest version of an object, good or refused.
fn newest(slot: &Versions) -> Option<&Arc<Candidate>> {
    slot.refused().or_else(|| slot.live())
}

/// Whether another controller speaks of an object, as its document says whose it is. Ingress a cluster there is none.
fn of_others(world: &World, newest: &Candidate) -> bool {
    let key = &newest.key;
    if !world.settings().in_cluster || !matches!(key.kind, Kind::GatewayClass | Kind::Gateway | Kind::ListenerSet) {
        return false;
    }
    let document = newest.document();
    let text = |place: &str| document.pointer(place).and_then(serde_json::Value::as_str);
    match key.kind {
        Kind::GatewayClass => text("/spec/controllerName") != Some(CONTROLLER),
        Kind::Gateway => !text("/spec/gatewayClassName").is_some_and(|class| world.index().serves(class)),
        _ => {
            let namespace = text("/spec/parentRef/namespace").unwrap_or(&key.namespace);
            let name = (namespace.to_owned(), text("/spec/parentRef/name").unwrap_or_default().to_owned());
            text("/spec/parentRef/kind").is_some_and(|kind| kind != "Gateway") || !world.index().gateways.contains_key(&name)
        }
    }
}

/// Whether a route's parent in Gateway API is none of which we speak: another controller's, or, in a cluster, one that nobody knows.
fn is_elsewhere(world: &World, route: &ObjectKey, parent: &ParentRef) -> bool {
    if !world.settings().in_cluster || parent.group() != GATEWAY_API {
        return false;
    }
    let kind = parent.kind.as_deref().unwrap_or(Kind::Gateway.text());
    // A parent of kind Service in this group is a mistake of which its author is told.
    let Some(found) = Kind::find(GATEWAY_API, kind) else { return kind != Kind::Service.text() };
    let key = ObjectKey::new(found, parent.namespace.as_ref().unwrap_or(&route.namespace), &parent.name);
    world.slots().get(&key).and_then(newest).is_none_or(|newest| of_others(world, newest))
}

/// The status of a version in force whose newer one is refused: wherever it speaks of its acceptance, it says so, of the newer one.
fn of_outdated(status: Option<Status>, refused: &Candidate, by: &Conditions) -> Status {
    let told = refused.document().pointer("/metadata/generation").and_then(serde_json::Value::as_i64);
    let mut newer = of_refused(refused, &Conditions { generation: told.unwrap_or(by.generation + 1) });
    let Some(mut status) = status else { return newer };
    let Some(mut refusal) = newer.conditions.pop() else { return status };
    refusal.message.push_str("; the last good version stays in force");
    let parents = status.parents.iter_mut().map(|parent| &mut parent.conditions);
    let ancestors = status.ancestors.iter_mut().map(|ancestor| &mut ancestor.conditions);
    let mut places: Vec<&mut Vec<Condition>> = parents.chain(ancestors).collect();
    if places.is_empty() || !status.conditions.is_empty() {
        places.push(&mut status.conditions);
    }
    for conditions in places {
        match conditions.iter_mut().find(|condition| condition.kind == refusal.kind) {
            Some(accepted) => *accepted = refusal.clone(),
            None => conditions.insert(0, refusal.clone()),
        }
    }
    status
}

fn of_refused(refused: &Candidate, by: &Conditions) -> Status {
    let first = refused.problems.iter().find(|problem| problem.severity == crate::world::Severity::Error);
    let message = first.map(|problem| match problem.field.as_str() {
        "" => problem.message.clone(),
        field => format!("{field}: {}", problem.message),
    });
    let message = message.unwrap_or_default();
    Status { conditions: vec![by.say("Accepted", "False", "Invalid", message)], ..Status::default() }
}

/// A refused route says so at each parent that is ours: its own status has no conditions in the API. Where it names none, whoever wrote the
/// file is told all the same.
fn of_refused_at(world: &World, refused: &Candidate, status: Status) -> Status {
    if !refused.key.kind.text().ends_with("Route") {
        return status;
    }
    let raw: serde_json::Value = serde_json::from_str(&refused.raw).unwrap_or_default();
    let ours = |parent: &&serde_json::Value| {
        let text = |name: &str, default: &str| parent[name].as_str().unwrap_or(default).to_owned();
        let name = (text("namespace", &refused.key.namespace), text("name", ""));
        match (text("group", GATEWAY_API).as_str(), text("kind", "Gateway").as_str()) {
            (CORE, "Service") => true,
            (GATEWAY_API, "Gateway") => world.index().gateways.contains_key(&name),
            (GATEWAY_API, "ListenerSet") => {
                let set = world.index().listener_sets.get(&name).and_then(|set| edge_listeners::set(set));
                set.and_then(|set| set.parent(&name.0)).is_some_and(|gateway| world.index().gateways.contains_key(&gateway))
            }
            _ => false,
        }
    };
    let parents = raw.pointer("/spec/parentRefs").and_then(serde_json::Value::as_array).into_iter().flatten().filter(ours);
    let entry = |parent: &serde_json::Value| ParentStatus {
        parent_ref: parent.clone(),
        controller_name: CONTROLLER,
        conditions: status.conditions.clone(),
    };
    let parents: Vec<ParentStatus> = parents.map(entry).collect();
    if parents.is_empty() && !world.settings().in_cluster { status } else { Status { parents, ..Status::default() } }
}

fn of_object(world: &World, object: &Object, by: &Conditions) -> Option<Status> {
    let index = world.index();
    let name: Name = (object.key.namespace.clone(), object.key.name.clone());
    match &object.spec {
        Spec::GatewayClass(class) => {
            let refusal = class.parameters.then(|| WhyNot::new("InvalidParameters", "this controller has no parameters"));
            let condition = refusal.map_or_else(|| by.holds("Accepted"), |refusal| by.fails("Accepted", &refusal));
            (class.controller == CONTROLLER).then(|| Status { conditions: vec![condition], ..Status::default() })
        }
        Spec::Gateway(gateway) => status_edge::of_gateway(world, object, &name, gateway, by),
        Spec::ListenerSet(set) => status_edge::of_set(world, object, set, by),
        Spec::ExternalBackend(spec) => Some(status_edge::of_external(world, object, spec, by)),
        Spec::BackendTlsPolicy(policy) => Some(status_edge::of_backend_tls(world, object, policy, by)),
        Spec::Route(route) => Some(of_route(world, object, route, by)),
        Spec::TrafficPolicy(policy) => Some(of_traffic(world, object, policy, by)),
        Spec::EgressPolicy(spec) => {
            let mut status = of_policy(world, object, &spec.selector, by);
            let refers = spec.allow.iter().filter_map(|rule| rule.originate.as_ref()).any(|originate| !originate.roots.is_empty());
            let missing = egress::unresolved(world, spec).into_iter().next();
            let resolved = match missing {
                Some((_, why)) => by.say("ResolvedRefs", "False", "InvalidCACertificateRef", why),
                None => by.holds("ResolvedRefs"),
            };
            status.ancestors.iter_mut().filter(|_| refers).for_each(|ancestor| ancestor.conditions.push(resolved.clone()));
            Some(status)
        }
        Spec::AuthorizationPolicy(policy) if !policy.inbound() => Some(of_edge(world, object, by)),
        Spec::AuthorizationPolicy(policy) => Some(of_authorization(world, object, policy, by)),
        Spec::PeerAuthentication(spec) => Some(of_policy(world, object, &spec.selector, by)),
        Spec::RequestAuthentication(spec) if !spec.attachment.targets.is_empty() => Some(of_edge(world, object, by)),
        Spec::RequestAuthentication(spec) => Some(of_policy(world, object, &spec.selector, by)),
        Spec::ApiKeyAuth(_)
        | Spec::BasicAuth(_)
        | Spec::RateLimit(_)
        | Spec::ExternalAuth(_)
        | Spec::OidcLogin(_)
        | Spec::ClientPolicy(_) => Some(of_edge(world, object, by)),
        Spec::Consumer(consumer) => Some(of_consumer(world, object, consumer, by)),
        Spec::Telemetry(spec) if !spec.targets.is_empty() => Some(with_sinks(world, spec, by, of_named_telemetry(world, object, spec, by))),
        Spec::Telemetry(spec) => Some(with_sinks(world, spec, by, of_policy(world, object, &spec.selector, by))),
        Spec::Mesh(mesh) => Some(of_mesh(world, mesh, by)),
        Spec::Canary(spec) => Some(of_canary(world, object, spec, by)),
        Spec::Revocation(_) => {
            let excess = index.revoked.excess.contains(&object.key);
            let refusal = excess.then(|| WhyNot::new("TooMany", "older Revocations revoke as much as may be; this one is not in force"));
            let condition = refusal.map_or_else(|| by.holds("Accepted"), |refusal| by.fails("Accepted", &refusal));
            Some(Status { conditions: vec![condition], ..Status::default() })
        }
        Spec::Workload(_) => {
            let instances: Vec<_> = index.workloads.get(&name)?.iter().filter_map(|name| index.instances.get(name)).collect();
            let ready = instances.iter().filter(|instance| instance.ready).count();
            let message = format!("{ready} of {} instances are ready", instances.len());
            if index.hidden.iter().any(|(namespace, _, workload)| (namespace, workload) == (&name.0, &name.1)) {
                let hidden = by.say("Accepted", "False", "Conflicted", "another Workload has an instance of that name already");
                return Some(Status { conditions: vec![hidden], ..Status::default() });
            }
            let all = ready == instances.len();
            let condition = by.say("Ready", if all { "True" } else { "False" }, if all { "Ready" } else { "NotReady" }, message);
            Some(Status { conditions: vec![by.holds("Accepted"), condition], ..Status::default() })
        }
        _ => None,
    }
}

fn of_canary(world: &World, object: &Object, spec: &Canary, by: &Conditions) -> Status {
    let refused = canary::refusal(world, object);
    let accepted = refused.as_ref().map_or_else(|| by.holds("Accepted"), |why| by.fails("Accepted", why));
    let resolved = canary::unresolved(world.index(), object).map_or_else(|| by.holds("ResolvedRefs"), |why| by.fails("ResolvedRefs", &why));
    let mut status = Status { conditions: vec![accepted, resolved], ..Status::default() };
    if let (None, Some(standing)) = (refused, world.canaries().standings.get(&object.key)) {
        let progresses = if standing.phase == CanaryPhase::Progressing { "True" } else { "False" };
        status.conditions.push(by.say("Progressing", progresses, standing.phase.text(), standing.why.clone()));
        let steps = spec.steps.len();
        let (phase, step) = (standing.phase.text(), (standing.step + 1).min(steps));
        status.canary = Some(CanaryStatus { phase, step, steps, weight: standing.route(spec).weight() });
    }
    status
}

fn of_mesh(world: &World, mesh: &Mesh, by: &Conditions) -> Status {
    let refs = (!mesh.federation.is_empty()).then(|| match trust::unresolved(world) {
        Some((reason, message)) => by.say("ResolvedRefs", "False", reason, message),
        None => by.holds("ResolvedRefs"),
    });
    Status { conditions: [by.holds("Accepted")].into_iter().chain(refs).collect(), ..Status::default() }
}

fn of_route(world: &World, object: &Object, route: &Route, by: &Conditions) -> Status {
    let mut parents = Vec::new();
    for parent in &route.parents {
        let standing = attach::standing(world.index(), object, parent);
        // Of other groups' kinds their own controllers speak.
        let others = !matches!(parent.group(), CORE | GATEWAY_API) || is_elsewhere(world, &object.key, parent);
        if others || matches!(standing, Attachment::Foreign) {
            continue;
        }
        let accepted = match (&standing, wholly_invalid(route)) {
            (Attachment::Refused(refusal), _) => by.fails("Accepted", refusal),
            (_, Some(refusal)) => by.fails("Accepted", &refusal),
            (Attachment::Service(_, _, lost), _) if !lost.is_empty() => by.say("Accepted", "True", "Accepted", attach::told(lost)),
            _ => by.holds("Accepted"),
        };
        let mesh = matches!(standing, Attachment::Service(..)) || parent.is_service();
        let unresolved =
            route.rules.iter().flat_map(Rule::references).find_map(|to| attach::backend(world.index(), object, to, mesh).err());
        let resolved = unresolved.map_or_else(|| by.holds("ResolvedRefs"), |refusal| by.fails("ResolvedRefs", &refusal));
        let parts = invalid_parts(route);
        let partly =
            (accepted.status == "True" && !parts.is_empty()).then(|| by.say("PartiallyInvalid", "True", "UnsupportedValue", parts));
        parents.push(ParentStatus {
            parent_ref: echo(parent),
            controller_name: CONTROLLER,
            conditions: [accepted, resolved].into_iter().chain(partly).collect(),
        });
    }
    Status { parents, ..Status::default() }
}

/// A parent reference as its author wrote it.
fn echo(parent: &ParentRef) -> serde_json::Value {
    let mut echo = serde_json::Map::new();
    let texts = [("group", &parent.group), ("kind", &parent.kind), ("namespace", &parent.namespace), ("sectionName", &parent.section)];
    for (name, text) in texts {
        if let Some(text) = text {
            echo.insert(name.to_owned(), json!(text));
        }
    }
    echo.insert("name".to_owned(), json!(parent.name));
    if let Some(port) = parent.port {
        echo.insert("port".to_owned(), json!(port));
    }
    serde_json::Value::Object(echo)
}

fn of_traffic(world: &World, object: &Object, policy: &TrafficPolicy, by: &Conditions) -> Status {
    let one = |ancestor: policy::Ancestor| AncestorStatus {
        ancestor_ref: ancestor.reference,
        controller_name: CONTROLLER,
        conditions: vec![ancestor.verdict.map_or_else(|refusal| by.fails("Accepted", &refusal), |()| by.holds("Accepted"))],
    };
    let ancestors = policy::judge(world, object, policy).into_iter().map(one).collect();
    Status { ancestors, ..Status::default() }
}

/// Of somebody who calls from outside: it stands by itself, whichever Gateways know it.
fn of_consumer(world: &World, object: &Object, consumer: &Consumer, by: &Conditions) -> Status {
    let mut conditions = vec![match edge::consumers::refusal(world, object) {
        Some(refusal) => by.fails("Accepted", &refusal),
        None => by.holds("Accepted"),
    }];
    conditions.extend(edge::consumers::resolved(world, consumer).map(|resolved| match resolved {
        Ok(()) => by.holds("ResolvedRefs"),
        Err(why) => by.say("ResolvedRefs", "False", "InvalidRef", why),
    }));
    Status { conditions, ..Status::default() }
}

/// Of an edge kind: one entry per Gateway.
fn of_edge(world: &World, object: &Object, by: &Conditions) -> Status {
    let one = |ancestor: edge::EdgeAncestor| {
        let edge::EdgeAncestor { reference, field: _, accepted, partly, resolved, own, loosened: _ } = ancestor;
        let accepted = match accepted {
            Ok(told) => by.say("Accepted", "True", "Accepted", told),
            Err(refusal) => by.fails("Accepted", &refusal),
        };
        let resolved = resolved.map(|resolved| match resolved {
            Ok(()) => by.holds("ResolvedRefs"),
            Err(refusal) => by.fails("ResolvedRefs", &refusal),
        });
        let partly = partly.map(|why| by.say("PartiallyInvalid", "True", why.reason, why.message));
        let own = own.into_iter().map(|own| by.say(own.kind, if own.holds { "True" } else { "False" }, own.reason, own.message));
        let conditions = [Some(accepted), resolved, partly].into_iter().flatten().chain(own).collect();
        AncestorStatus { ancestor_ref: reference, controller_name: CONTROLLER, conditions }
    };
    Status { ancestors: edge::judge(world, object).into_iter().map(one).collect(), ..Status::default() }
}

fn of_authorization(world: &World, object: &Object, policy: &AuthorizationPolicy, by: &Conditions) -> Status {
    let one = |(ancestor_ref, verdict): (serde_json::Value, Result<String, WhyNot>)| AncestorStatus {
        ancestor_ref,
        controller_name: CONTROLLER,
        conditions: vec![match verdict {
            Ok(told) => by.say("Accepted", "True", "Accepted", told),
            Err(refusal) => by.fails("Accepted", &refusal),
        }],
    };
    let refused = security::too_many(world, object);
    let judged = security::judge(world.index(), object, policy).into_iter();
    let judged = judged.map(|(ancestor, verdict)| (ancestor, refused.clone().map_or(verdict, Err)));
    let ancestors = judged.map(one).collect();
    Status { ancestors, ..Status::default() }
}

/// Whether an older one says the same.
fn undisputed(world: &World, object: &Object, by: &Conditions) -> Condition {
    match conflict::of(world.index(), object) {
        Some(found) if found.whole => by.say("Accepted", "False", "Conflicted", format!("{} is older and wins", found.winner)),
        Some(found) => by.say("Accepted", "True", "Accepted", format!("{} is older and wins where both say something", found.winner)),
        None => by.holds("Accepted"),
    }
}

/// A Telemetry that says by name what it is about.
fn of_named_telemetry(world: &World, object: &Object, spec: &Telemetry, by: &Conditions) -> Status {
    let ancestor = |target: &PolicyTarget| {
        let accepted = match policy::target_found(world, &object.key, target) {
            Ok(()) => undisputed(world, object, by),
            Err(refusal) => by.fails("Accepted", &refusal),
        };
        let ancestor_ref = policy::reference(&object.key.namespace, target);
        AncestorStatus { ancestor_ref, controller_name: CONTROLLER, conditions: vec![accepted] }
    };
    Status { ancestors: spec.targets.iter().map(ancestor).collect(), ..Status::default() }
}

/// The same with what became of the Services that its access log goes to, where it goes to some.
fn with_sinks(world: &World, spec: &Telemetry, by: &Conditions, mut status: Status) -> Status {
    if !access_log::refers(spec) {
        return status;
    }
    let absent = access_log::findings(world.index(), spec).into_iter().next();
    for ancestor in &mut status.ancestors {
        ancestor.conditions.push(match &absent {
            Some(finding) => by.say("ResolvedRefs", "False", "BackendNotFound", finding.message.clone()),
            None => by.holds("ResolvedRefs"),
        });
    }
    status
}

fn of_policy(world: &World, object: &Object, selector: &Selector, by: &Conditions) -> Status {
    let ancestor = match super::mtls::place(object, selector) {
        super::mtls::AppliesTo::Mesh => {
            json!({"group": "meshwright.dev", "kind": "Mesh", "namespace": object.key.namespace, "name": "default"})
        }
        _ => json!({"group": "", "kind": "Namespace", "name": object.key.namespace}),
    };
    let accepted = match security::too_many(world, object) {
        Some(refusal) => by.fails("Accepted", &refusal),
        None => undisputed(world, object, by),
    };
    let ancestors = vec![AncestorStatus { ancestor_ref: ancestor, controller_name: CONTROLLER, conditions: vec![accepted] }];
    Status { ancestors, ..Status::default() }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
