//! RateLimit as proxies are told: all objects of all places, the narrowest first.

use std::collections::BTreeSet;

use engine::authenticate::KeysUri;
use engine::limit::RedisMode;
use proto::mesh::limit_store::Kind as StoreKind;
use proto::mesh::{self, EdgeLimits, LeaseStore, LimitStore, RateLimitService, RedisStore};
use proto::names::BAD_BACKEND;

use super::basic::file_name;
use super::{external, tokens};
use crate::translate::attach::{Backend, WhyNot};
use crate::world::edge::{CountedAt, EdgeRateLimit, RateService, RedisServer};
use crate::world::traffic::Place;
use crate::world::{Index, Object, ObjectKey, Spec};

/// The rate-limit service that an object names.
fn service(object: &Object) -> Option<&RateService> {
    if let Spec::RateLimit(spec) = &object.spec { spec.store.rls.as_ref() } else { None }
}

/// The same, whether or not it is there.
pub(in crate::translate) fn service_of(object: &Object) -> Option<(String, String)> {
    let to = &service(object)?.to;
    Some((to.namespace.clone().unwrap_or_else(|| object.key.namespace.clone()), to.name.clone()))
}

/// Why proxies do not go where a server is said to be.
pub(super) fn near(index: &Index, redis: &RedisServer) -> Option<String> {
    let loopback = |address: &&String| KeysUri::of_store(address, redis.tls).is_ok_and(|at| at.is_loopback());
    redis.addresses.iter().find(loopback).and_then(|address| tokens::near(index, address))
}

/// Where it is; `None`: it names none.
pub(super) fn resolve(index: &Index, object: &Object) -> Option<Result<Backend, WhyNot>> {
    Some(external::resolve(index, object, &service(object)?.to))
}

/// What holds at places, the narrowest first; adds the services that are asked.
pub(super) fn sent(index: &Index, places: &[Place], backends: &mut BTreeSet<Backend>) -> Vec<EdgeLimits> {
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
            let service = resolve(index, object).and_then(Result::ok);
            told.push(one((object, service.as_ref()), spec, route));
            backends.extend(service);
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

fn one((object, service): (&Object, Option<&Backend>), spec: &EdgeRateLimit, route: Option<&ObjectKey>) -> EdgeLimits {
    let EdgeRateLimit { attachment: _, before_auth, limits, per_target, concurrency, bandwidth, store, without_store, draft, legacy } =
        spec;
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
        store: Some(LimitStore { kind: Some(counted_at(store, object, service)) }),
        without_store: (*without_store).into(),
        draft_headers: *draft,
        legacy_headers: *legacy,
    }
}

fn counted_at(CountedAt { ahead_percent, redis: server, rls }: &CountedAt, object: &Object, service: Option<&Backend>) -> StoreKind {
    if let Some(rls) = rls {
        return StoreKind::Service(RateLimitService {
            address: rls.address(&object.key.namespace),
            // Where it may not be asked it is always away.
            cluster: service.map_or_else(|| BAD_BACKEND.to_owned(), Backend::cluster),
            domain: rls.domain.clone(),
            descriptors: rls.descriptors.clone(),
            timeout: prost_types::Duration::try_from(rls.timeout).ok(),
        });
    }
    let Some(server) = server else { return StoreKind::Leases(LeaseStore { ahead_percent: *ahead_percent }) };
    StoreKind::Redis(RedisStore { ahead_percent: *ahead_percent, ..redis(server) })
}

/// A server of the Redis protocol, of which nothing is taken ahead.
pub(super) fn redis(server: &RedisServer) -> RedisStore {
    RedisStore {
        addresses: server.addresses.clone(),
        mode: match server.mode {
            RedisMode::Single => mesh::RedisMode::Single,
            RedisMode::Sentinel(_) => mesh::RedisMode::Sentinel,
            RedisMode::Cluster => mesh::RedisMode::Cluster,
        }
        .into(),
        master: if let RedisMode::Sentinel(master) = &server.mode { master.to_string() } else { String::new() },
        tls: server.tls,
        username: server.username.clone(),
        password: server.password.as_ref().map(file_name).unwrap_or_default(),
        key_prefix: server.key_prefix.clone(),
        timeout: prost_types::Duration::try_from(server.timeout).ok(),
        ahead_percent: 0,
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
    fn a_stores_password_goes_to_its_gateway_and_to_nobody_else() {
        // Aim: what is told of the store names the Secret; the Secret's text is on a page of that Gateway only, and what is not there is told.
        let spec = |key: &str| {
            format!(
                "targetRefs: [{{kind: Gateway, name: edge}}], store: {{redis: {{addresses: ['redis:6379'], authRef: {{name: redis, key: {key}}}}}}}"
            )
        };
        let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: redis, namespace: shop}\nstringData: {password: \" s3cret\\n\"}";
        let there = world(&[&format!("{}\n---\n{secret}", limit("l", "shop", &spec("password")))]);
        let usable = crate::translate::edge::consumers::usable(there.index(), &("shop".to_owned(), "edge".to_owned()));
        let told: Vec<_> = (0..=u8::MAX).filter_map(|page| crate::translate::edge::consumers::page(&there, &usable, page)).collect();
        let [page] = told.as_slice() else { panic!("{} pages", told.len()) };
        assert_eq!((page.secrets[0].name.as_str(), &*page.secrets[0].value), ("shop/redis/password", &b"s3cret"[..]));
        assert!(!format!("{:?}", policy_text(&there)).contains("s3cret"));
        let other = crate::translate::edge::consumers::usable(there.index(), &("team".to_owned(), "other".to_owned()));
        assert!(other.secrets.is_empty());
        let without = world(&[&format!("{}\n---\n{secret}", limit("l", "shop", &spec("gone")))]);
        let status = &statuses(&without)[&ObjectKey::new(Kind::RateLimit, "shop", "l")];
        let text = serde_json::to_string(status).unwrap();
        assert!(text.contains("InvalidRef") && text.contains("no entry `gone`"), "{text}");
    }

    /// What a rule's proxy is told of limits.
    fn policy_text(world: &World) -> Vec<proto::mesh::EdgeLimits> {
        let route = world.get(&ObjectKey::new(Kind::HTTPRoute, "team", "r")).unwrap();
        let gateway = ("shop".to_owned(), "edge".to_owned());
        let owner = ObjectKey::new(Kind::Gateway, "shop", "edge");
        let spot = Spot { gateway: &gateway, owner: &owner, listener: "web", route: Some((route, Some("one"))) };
        policy(world.index(), &spot, (None, false), &mut BTreeSet::new()).unwrap().limits
    }

    #[test]
    fn a_service_of_another_namespace_needs_a_grant() {
        // Aim: without one the service is nowhere, and status says so; with one proxies are told where it is, and have its cluster; one that is not
        // there is told, and one that is not there is no answer to who may not ask.
        let spec = "targetRefs: [{kind: Gateway, name: edge}], onError: Deny, store: {rls: {backendRef: {name: limits, namespace: data, port: 8081}, domain: edge, descriptors: [{entries: [{key: a, value: b}]}]}}";
        let object = format!("kind: RateLimit\nmetadata: {{name: l, namespace: shop}}\nspec: {{{spec}}}");
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: limits, namespace: data}\nspec: {ports: [{port: 8081}]}";
        let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: data}\nspec: {from: [{group: meshwright.dev, kind: RateLimit, namespace: shop}], to: [{group: '', kind: Service}]}";
        for (texts, cluster, reason) in [
            (vec![object.as_str(), service], "bad_backend", "RefNotPermitted"),
            (vec![object.as_str()], "bad_backend", "RefNotPermitted"),
            (vec![object.as_str(), service, grant], "data/limits:8081", "\"ResolvedRefs\""),
            (vec![object.as_str(), grant], "bad_backend", "BackendNotFound"),
        ] {
            let world = world(&[&texts.join("\n---\n")]);
            let store = policy_text(&world).remove(0).store.unwrap().kind;
            let Some(super::StoreKind::Service(told)) = store else { panic!("{store:?}") };
            let status = serde_json::to_string(&statuses(&world)[&ObjectKey::new(Kind::RateLimit, "shop", "l")]).unwrap();
            assert_eq!((told.address.as_str(), told.cluster.as_str()), ("limits.data:8081", cluster));
            assert!(status.contains(reason), "{reason}: {status}");
        }
    }

    #[test]
    fn stores_of_one_namespace_stop_nobody() {
        // Aim: however many stores somebody names, what a Gateway serves goes on being taken by its proxies.
        let store = |number: usize| {
            let spec = format!("targetRefs: [{{kind: HTTPRoute, name: r}}], store: {{redis: {{addresses: ['redis{number}:6379']}}}}");
            limit(&format!("l{number}"), "team", &spec)
        };
        let objects: Vec<String> = (0..20).map(store).collect();
        let texts: Vec<&str> = objects.iter().map(String::as_str).collect();
        let found = audit(&world(&texts));
        assert!(!found.iter().any(|problem| problem.to_string().contains("would refuse")), "{found:?}");
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
