use super::*;
use crate::source::{FileChange, Folder};
use crate::world::{Allocations, WorldSettings};

/// Objects of another controller's, one of them such as our door refuses, and beside them a Gateway of ours.
const SHARED: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: theirs}
spec: {controllerName: example.net/controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: theirs, namespace: shop}
spec: {gatewayClassName: theirs, listeners: [{name: a, port: 80, protocol: HTTP}, {name: a, port: 81, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {name: theirs, namespace: shop}
spec: {parentRef: {name: theirs}, listeners: [{name: b, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: ours, namespace: shop}
spec: {gatewayClassName: meshwright, listeners: [{name: a, port: 8080, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {name: ours, namespace: shop}
spec: {parentRef: {name: ours}, listeners: [{name: b, port: 8081, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs:
  - {name: theirs}
  - {name: nobody}
  - {kind: ListenerSet, name: theirs}
  - {kind: ListenerSet, name: nobody}
  - {kind: ListenerSet, name: ours}
  - {name: ours}
";

/// Whom something is said of, and at which parents of the route.
fn told(in_cluster: bool) -> (Vec<String>, Vec<String>) {
    let mut world = World::new(WorldSettings { in_cluster, ..WorldSettings::default() }, Allocations::default());
    world.apply(Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(SHARED.to_owned())) }], 0));
    let key = ObjectKey::new(Kind::Gateway, "shop", "theirs");
    assert!(world.slots().get(&key).unwrap().refused().is_some(), "{:?}", world.problems());
    let statuses = statuses(&world);
    let route = &statuses[&ObjectKey::new(Kind::HTTPRoute, "shop", "web")];
    let parent = |parent: &ParentStatus| {
        let kind = parent.parent_ref["kind"].as_str().unwrap_or("Gateway");
        format!("{kind} {}: {}", parent.parent_ref["name"].as_str().unwrap(), parent.conditions[0].reason)
    };
    (statuses.keys().map(|key| format!("{} {}", key.kind, key.name)).collect(), route.parents.iter().map(parent).collect())
}

#[test]
fn of_other_controllers_objects_nothing_is_said() {
    // Aim: in a cluster another controller's GatewayClass, its Gateway that our door refuses, its ListenerSet, and their places among a
    // route's parents are left alone, as is a parent that is not there; what is ours is spoken of, and on a machine everything is.
    let (objects, parents) = told(true);
    assert_eq!(objects, ["Gateway ours", "ListenerSet ours", "HTTPRoute web"]);
    assert_eq!(parents, ["ListenerSet ours: NoMatchingParent", "Gateway ours: Accepted"]);
    let (objects, parents) = told(false);
    assert_eq!(objects, ["Gateway ours", "Gateway theirs", "ListenerSet ours", "ListenerSet theirs", "HTTPRoute web"]);
    assert_eq!(parents.len(), 6);
}
