//! Objects at several places, and what comes of them for a rule.

use std::collections::BTreeSet;

use super::ladder::{Spot, places};
use crate::source::parse;
use crate::translate::{audit, statuses};
use crate::world::{Allocations, Change, Kind, ObjectKey, Origin, World, WorldSettings};

const ROUTES: &str = "\
kind: Gateway
apiVersion: gateway.networking.k8s.io/v1
metadata: {name: edge, namespace: shop}
spec:
  gatewayClassName: meshwright
  listeners: [{name: web, port: 8080, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}, {name: other, port: 8081, protocol: HTTP}]
---
kind: HTTPRoute
apiVersion: gateway.networking.k8s.io/v1
metadata: {name: r, namespace: team}
spec:
  parentRefs: [{name: edge, namespace: shop, sectionName: web}]
  rules: [{name: one, backendRefs: [{name: s, port: 80}]}, {name: two, matches: [{path: {value: /two}}], backendRefs: [{name: s, port: 80}]}]
---
kind: Service
apiVersion: v1
metadata: {name: s, namespace: team}
spec: {selector: {app: s}, ports: [{port: 80}]}
";

pub(super) fn world(objects: &[&str]) -> World {
    let mut world = World::new(WorldSettings::default(), Allocations::default());
    let own = |text: &&str| {
        if text.starts_with("apiVersion") { format!("{text}\n") } else { format!("apiVersion: meshwright.dev/v1alpha1\n{text}\n") }
    };
    let texts = std::iter::once(ROUTES.to_owned()).chain(objects.iter().map(own));
    for (age, text) in texts.enumerate() {
        let candidates = parse("f.yaml", &text).candidates.into_iter();
        let put = |candidate| Change::Put { origin: Origin::Folder, candidate, now_ms: i64::try_from(age).unwrap() };
        world.apply(candidates.map(put).collect());
    }
    world
}

/// What holds for a rule of the route.
fn told(world: &World, rule: &str) -> proto::mesh::EdgePolicy {
    let route = world.get(&ObjectKey::new(Kind::HTTPRoute, "team", "r")).unwrap();
    let gateway = ("shop".to_owned(), "edge".to_owned());
    let owner = ObjectKey::new(Kind::Gateway, "shop", "edge");
    let spot = Spot { gateway: &gateway, owner: &owner, listener: "web", route: Some((route, Some(rule))) };
    assert_eq!(places(&spot).len(), 6);
    super::policy(world.index(), &spot, (None, false), &mut BTreeSet::new()).unwrap_or_default()
}

fn keys(name: &str, namespace: &str, spec: &str) -> String {
    format!("kind: ApiKeyAuth\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}")
}

const RULE: &str = "targetRefs: [{kind: HTTPRoute, name: r, sectionName: two}]";
const ROUTE: &str = "targetRefs: [{kind: HTTPRoute, name: r}]";
const LISTENER: &str = "targetRefs: [{kind: Gateway, name: edge, sectionName: web}]";
const GATEWAY: &str = "targetRefs: [{kind: Gateway, name: edge}]";

#[test]
fn the_narrowest_says_each_field_and_what_is_locked_stays() {
    // Aim: rule > route > the route's namespace > listener > Gateway > mesh, per field; a list is replaced whole; of two at one place the
    // older counts; a locked field is the widest owner's.
    let objects = [
        keys("mesh", "meshwright-system", "{mode: Optional, scopes: [mesh]}"),
        keys("gateway", "shop", &format!("{{{GATEWAY}, scopes: [gateway], forward: {{credential: Keep}}}}")),
        keys("listener", "shop", &format!("{{{LISTENER}, from: [{{query: listener}}]}}")),
        keys("namespace", "team", "{scopes: [namespace]}"),
        keys("route", "team", &format!("{{{ROUTE}, mode: Required, from: [{{query: route}}, {{query: more}}]}}")),
        keys("late", "team", &format!("{{{ROUTE}, mode: Optional}}")),
        keys("rule", "team", &format!("{{{RULE}, scopes: []}}")),
    ];
    let texts: Vec<&str> = objects.iter().map(String::as_str).collect();
    let world = world(&texts);
    let of = |rule: &str| {
        let keys = told(&world, rule).api_keys.unwrap();
        (keys.policy, keys.optional, keys.scopes.join(","), keys.from.len(), keys.keep)
    };
    assert_eq!(of("two"), ("team/rule".to_owned(), false, String::new(), 2, true));
    assert_eq!(of("one"), ("team/route".to_owned(), false, "namespace".to_owned(), 2, true));
    let locked = objects[1].replace("{targetRefs", "{locked: true, targetRefs");
    let mut texts = texts.clone();
    texts[1] = &locked;
    let world = super::tests::world(&texts);
    let of = told(&world, "two").api_keys.unwrap();
    assert_eq!((of.scopes.join(","), of.optional, of.from.len()), ("gateway".to_owned(), false, 2));
    let standing = |name: &str, namespace: &str| {
        let status = statuses(&world)[&ObjectKey::new(Kind::ApiKeyAuth, namespace, name)].clone();
        let told = |one: &crate::translate::Condition| format!("{}={} {} {}", one.kind, one.status, one.reason, one.message);
        let told: Vec<String> = status.ancestors.iter().flat_map(|ancestor| ancestor.conditions.iter().map(told)).collect();
        assert!(status.ancestors.iter().all(|ancestor| ancestor.ancestor_ref["kind"] == "Gateway"), "{status:?}");
        told.join("; ")
    };
    assert_eq!(standing("rule", "team"), "Accepted=True Accepted ; PartiallyInvalid=True Locked ApiKeyAuth shop/gateway locks scopes");
    assert_eq!(standing("late", "team"), "Accepted=False Conflicted ApiKeyAuth team/route is older and wins in mode");
    assert_eq!(standing("gateway", "shop"), "Accepted=True Accepted ");
}

#[test]
fn what_never_was_good_closes_what_it_is_about_and_nothing_else() {
    // Aim: a refused object without a good version answers for its targets only, the last good version of another stays, and a target that
    // does not exist is told.
    let good = keys("keys", "team", &format!("{{{RULE}, scopes: [a]}}"));
    let bad = keys("broken", "team", &format!("{{{RULE}, mod: Optional}}"));
    let mut world = world(&[&bad]);
    assert_eq!(told(&world, "two").unavailable, "ApiKeyAuth team/broken");
    assert_eq!(told(&world, "one"), proto::mesh::EdgePolicy::default());
    let mut put = |text: &str| {
        let text = format!("apiVersion: meshwright.dev/v1alpha1\n{text}\n");
        let candidates = parse("f.yaml", &text).candidates.into_iter();
        world.apply(candidates.map(|candidate| Change::Put { origin: Origin::Folder, candidate, now_ms: 9 }).collect());
        told(&world, "two")
    };
    let after = put(&bad.replace("mod:", "mode:"));
    assert!(after.unavailable.is_empty() && after.api_keys.as_ref().unwrap().optional, "{after:?}");
    assert_eq!(put(&bad), after, "the last good version");
    put(&good);
    put(&keys("nobody", "team", "{targetRefs: [{kind: HTTPRoute, name: none}]}"));
    let status = &statuses(&world)[&ObjectKey::new(Kind::ApiKeyAuth, "team", "nobody")];
    assert_eq!(status.ancestors[0].conditions[0].reason, "TargetNotFound");
    let problems: Vec<String> = audit(&world).iter().map(ToString::to_string).collect();
    assert!(problems.iter().any(|line| line.contains("there is no HTTPRoute team/none")), "{problems:?}");
}
