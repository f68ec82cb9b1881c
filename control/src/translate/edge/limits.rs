//! RateLimit as proxies are told: all objects of all places, the narrowest first.

use proto::mesh::limit_store::Kind;
use proto::mesh::{EdgeLimits, LeaseStore, LimitStore};

use crate::world::edge::EdgeRateLimit;
use crate::world::traffic::Place;
use crate::world::{Index, Object, ObjectKey, Spec};

pub(super) fn sent(index: &Index, places: &[Place]) -> Vec<EdgeLimits> {
    let route = places.iter().find_map(|place| match place {
        Place::Object(key) if key.kind.routes_http() => Some(key),
        _ => None,
    });
    let objects = places.iter().flat_map(|place| index.edge.get(place).into_iter().flatten());
    let mut told: Vec<EdgeLimits> = Vec::new();
    for object in objects {
        let Spec::RateLimit(spec) = &object.spec else { continue };
        // One object may be about several of these places, and counts once.
        if !told.iter().any(|other| other.policy == object.key.path()) {
            told.push(one(object, spec, route));
        }
    }
    told
}

/// TrafficPolicies that limit what callers ask at one of the places where an object holds, too.
pub(in crate::translate) fn met<'a>(index: &'a Index, object: &Object) -> Vec<&'a ObjectKey> {
    let Spec::RateLimit(spec) = &object.spec else { return Vec::new() };
    let mut found = Vec::new();
    for place in spec.attachment.places(&object.key) {
        for other in index.traffic.get(&place).into_iter().flatten() {
            if let Spec::TrafficPolicy(policy) = &other.spec
                && policy.settings.rate_limits.is_some()
                && !found.contains(&&other.key)
            {
                found.push(&other.key);
            }
        }
    }
    found
}

fn one(object: &Object, spec: &EdgeRateLimit, route: Option<&ObjectKey>) -> EdgeLimits {
    let EdgeRateLimit {
        attachment: _,
        before_auth,
        limits,
        per_target,
        concurrency,
        bandwidth,
        ahead_percent,
        without_store,
        draft,
        legacy,
    } = spec;
    let policy = object.key.path();
    let memory = match route.filter(|_| *per_target) {
        Some(route) => format!("{policy}@{route}"),
        None => policy.clone(),
    };
    EdgeLimits {
        policy,
        memory,
        before_auth: *before_auth,
        limits: limits.clone(),
        concurrency: concurrency.clone(),
        bandwidth: bandwidth.clone(),
        store: Some(LimitStore { kind: Some(Kind::Leases(LeaseStore { ahead_percent: *ahead_percent })) }),
        without_store: (*without_store).into(),
        draft_headers: *draft,
        legacy_headers: *legacy,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::translate::edge::ladder::Spot;
    use crate::translate::edge::policy;
    use crate::translate::edge::tests::world;
    use crate::translate::{audit, statuses};
    use crate::world::{Kind, ObjectKey, World};

    fn limit(name: &str, namespace: &str, spec: &str) -> String {
        format!(
            "kind: RateLimit\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}, limits: [{{name: all, requests: 1, per: 1s}}]}}"
        )
    }

    fn told(world: &World, rule: &str) -> Vec<(String, String, u32)> {
        let route = world.get(&ObjectKey::new(Kind::HTTPRoute, "team", "r")).unwrap();
        let gateway = ("shop".to_owned(), "edge".to_owned());
        let owner = ObjectKey::new(Kind::Gateway, "shop", "edge");
        let spot = Spot { gateway: &gateway, owner: &owner, listener: "web", route: Some((route, Some(rule))) };
        let limits = policy(world.index(), &spot, (None, false), &mut BTreeSet::new()).unwrap_or_default().limits;
        limits.into_iter().map(|object| (object.policy, object.memory, u32::try_from(object.limits.len()).unwrap())).collect()
    }

    #[test]
    fn limits_of_all_places_add_up() {
        // Aim: every object of rule, route, namespace, listener, Gateway and mesh holds, the narrowest first; one per route counts apart.
        let objects = [
            limit("mesh", "meshwright-system", "headers: None"),
            limit("gateway", "shop", "perTarget: true, targetRefs: [{kind: Gateway, name: edge}]"),
            limit("listener", "shop", "targetRefs: [{kind: Gateway, name: edge, sectionName: web}, {kind: Gateway, name: edge}]"),
            limit("namespace", "team", "headers: None"),
            limit("rule", "team", "targetRefs: [{kind: HTTPRoute, name: r, sectionName: two}]"),
        ];
        let texts: Vec<&str> = objects.iter().map(String::as_str).collect();
        let world = world(&texts);
        let names: Vec<String> =
            told(&world, "two").into_iter().map(|(policy, memory, _)| if policy == memory { policy } else { memory }).collect();
        assert_eq!(names, ["team/rule", "team/namespace", "shop/listener", "shop/gateway@HTTPRoute team/r", "meshwright-system/mesh"]);
        assert_eq!(told(&world, "one").len(), 4);
        let statuses = statuses(&world);
        for (namespace, name) in [("shop", "gateway"), ("team", "rule"), ("meshwright-system", "mesh")] {
            let status = &statuses[&ObjectKey::new(Kind::RateLimit, namespace, name)];
            let text = serde_json::to_string(status).unwrap();
            assert!(text.contains("\"Accepted\"") && !text.contains("\"False\""), "{name}: {text}");
        }
    }

    #[test]
    fn two_kinds_of_limits_on_one_route_are_told() {
        // Aim: a TrafficPolicy's rateLimits and a RateLimit on the same route both count, and `analyze` says so.
        let traffic = "kind: TrafficPolicy\nmetadata: {name: t, namespace: team}\nspec: {targetRefs: [{kind: HTTPRoute, name: r}], rateLimits: [{requests: 1, per: 1s}]}";
        let edge = limit("route", "team", "targetRefs: [{kind: HTTPRoute, name: r}]");
        let found = audit(&world(&[traffic, &edge]));
        let met = |text: &str| found.iter().any(|problem| problem.to_string().contains(text));
        assert!(met("both count"), "{found:?}");
        assert!(!audit(&world(&[&edge])).iter().any(|problem| problem.to_string().contains("both count")));
    }
}
