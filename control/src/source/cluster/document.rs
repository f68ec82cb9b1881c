//! From an object as the API server sends it to a [`Candidate`], by the same door as a file's. Pure.
//!
//! First it is pruned to what is read of it: who wrote which field when, what controllers say of it, and what changes without meaning
//! anything to a mesh (a node's heartbeat, the time of an endpoint's last change) is gone before it is compared with the version before.

use kube::core::ObjectMeta;
use proto::annotations::GATEWAY_NAME;
use proto::pods::{PROXY_CONTAINER, WORKLOAD_VARIABLE};
use serde_json::{Map, Value, json};

use crate::world::key::{GATEWAY_API, OWN};
use crate::world::object::{Candidate, read_judged};
use crate::world::problem::{Problem, Severity};
use crate::world::tree::{Node, Part};
use crate::world::{Judge, Kind, ObjectKey};

/// What kubectl writes beside an object that it applied: the same once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Prefix of our own labels and annotations.
const OURS: &str = "meshwright.dev/";
/// Labels of a node that say where it is.
const ZONES: &str = "topology.kubernetes.io/";

/// The key of an object; `None`: it has no name.
pub(super) fn key(kind: Kind, metadata: &ObjectMeta) -> Option<ObjectKey> {
    let namespace = if kind.cluster_scoped() { String::new() } else { metadata.namespace.clone().unwrap_or_default() };
    Some(ObjectKey::new(kind, namespace, metadata.name.clone()?))
}

/// Reads an object. `rest`: its fields beside `metadata`.
///
/// # Errors
/// It names nothing that we could keep.
pub(super) fn candidate(kind: Kind, version: &str, metadata: ObjectMeta, rest: Value) -> Result<Candidate, Box<Problem>> {
    let key = key(kind, &metadata);
    let document = pruned(kind, version, metadata, rest);
    let node = Node::of_json(document).map_err(|why| {
        let remedy = "make it smaller";
        Box::new(match &key {
            Some(key) => Problem::of_object(Severity::Error, ("", 0), key, "", why, remedy),
            None => Problem::of_file(Severity::Error, "", 0, why, remedy),
        })
    })?;
    read_judged("", &Part { node, place: String::new() }, Judge::ApiServer)
}

/// The document that is read of an object.
fn pruned(kind: Kind, version: &str, metadata: ObjectMeta, mut rest: Value) -> Value {
    let mut document = Map::new();
    let api_version = if kind.group().is_empty() { version.to_owned() } else { format!("{}/{version}", kind.group()) };
    document.insert("apiVersion".to_owned(), api_version.into());
    document.insert("kind".to_owned(), kind.text().into());
    document.insert("metadata".to_owned(), named(kind, metadata));
    match kind {
        Kind::Node | Kind::Namespace | Kind::ServiceAccount => {}
        Kind::Pod => {
            document.insert("spec".to_owned(), pod_spec(taken(&mut rest, "spec")));
            document.insert("status".to_owned(), pod_status(taken(&mut rest, "status")));
        }
        Kind::EndpointSlice => {
            for name in ["addressType", "ports"] {
                keep(&mut document, &mut rest, name);
            }
            document.insert("endpoints".to_owned(), items(taken(&mut rest, "endpoints")).map(endpoint).collect());
        }
        _ => {
            let Value::Object(fields) = rest else { return document.into() };
            let told = |name: &str| !matches!(name, "apiVersion" | "kind" | "metadata" | "status");
            // Of a Service in front of a Gateway also what a load balancer told: the Gateway's status says it again.
            if kind == Kind::Service && fronts_gateway(&document) {
                let ingress = fields.get("status").map_or(&Value::Null, |status| &status["loadBalancer"]["ingress"]);
                if ingress.as_array().is_some_and(|list| !list.is_empty()) {
                    document.insert("status".to_owned(), json!({"loadBalancer": {"ingress": ingress}}));
                }
            }
            document.extend(fields.into_iter().filter(|(name, _)| told(name)));
        }
    }
    document.into()
}

/// Whether a Service's address is a Gateway's.
fn fronts_gateway(document: &Map<String, Value>) -> bool {
    document.get("metadata").is_some_and(|metadata| !metadata["labels"][GATEWAY_NAME].is_null())
}

fn named(kind: Kind, mut metadata: ObjectMeta) -> Value {
    metadata.managed_fields = None;
    if let Some(annotations) = &mut metadata.annotations {
        let ours = |name: &str| name.starts_with(OURS);
        annotations.retain(|name, _| if kind.runs() { ours(name) } else { name != LAST_APPLIED });
    }
    if let (Kind::Node, Some(labels)) = (kind, &mut metadata.labels) {
        labels.retain(|name, _| name.starts_with(ZONES));
    }
    // None left is none at all.
    metadata.annotations = metadata.annotations.filter(|annotations| !annotations.is_empty());
    metadata.labels = metadata.labels.filter(|labels| !labels.is_empty());
    let Ok(mut all) = serde_json::to_value(metadata) else { return Value::Null };
    let mut named = Map::new();
    for name in ["name", "namespace", "labels", "annotations", "creationTimestamp"] {
        keep(&mut named, &mut all, name);
    }
    if kind == Kind::Pod {
        keep(&mut named, &mut all, "uid");
        keep(&mut named, &mut all, "deletionTimestamp");
        let controller = items(taken(&mut all, "ownerReferences")).find(|owner| owner["controller"] == true);
        let controller = controller.map(|owner| json!({"kind": owner["kind"], "name": owner["name"], "controller": true}));
        named.insert("ownerReferences".to_owned(), controller.into_iter().collect());
    } else if !kind.runs() {
        keep(&mut named, &mut all, "generation");
        if matches!(kind.group(), GATEWAY_API | OWN) {
            // One that was made anew has no status yet, though nothing else of it may be new.
            keep(&mut named, &mut all, "uid");
        }
    }
    named.into()
}

/// Moves a field over, if it is there.
fn keep(to: &mut Map<String, Value>, from: &mut Value, name: &str) {
    if let Some(value) = from.get_mut(name).filter(|value| !value.is_null()) {
        to.insert(name.to_owned(), value.take());
    }
}

/// Takes a field away.
fn taken(from: &mut Value, name: &str) -> Value {
    from.get_mut(name).map(Value::take).unwrap_or_default()
}

/// The items of a list; of anything else none.
fn items(list: Value) -> impl Iterator<Item = Value> {
    if let Value::Array(items) = list { items.into_iter() } else { Vec::new().into_iter() }
}

fn pod_spec(mut all: Value) -> Value {
    let mut spec = Map::new();
    for name in ["nodeName", "serviceAccountName", "hostNetwork", "hostname", "subdomain"] {
        keep(&mut spec, &mut all, name);
    }
    let containers = items(taken(&mut all, "containers")).map(container);
    spec.insert("containers".to_owned(), containers.collect());
    // Of those that run before the application only ours is of interest.
    let ours = items(taken(&mut all, "initContainers")).filter(|container| container["name"] == PROXY_CONTAINER);
    spec.insert("initContainers".to_owned(), ours.map(container).collect());
    spec.into()
}

fn container(mut all: Value) -> Value {
    let port = |port: Value| json!({"name": port["name"], "containerPort": port["containerPort"], "protocol": port["protocol"]});
    let ports: Value = items(taken(&mut all, "ports")).map(port).collect();
    let env: Value = items(taken(&mut all, "env")).filter(|variable| variable["name"] == WORKLOAD_VARIABLE).collect();
    match all["name"] == PROXY_CONTAINER {
        true => json!({"name": PROXY_CONTAINER, "env": env}),
        false => json!({"name": all["name"], "ports": ports}),
    }
}

fn pod_status(mut all: Value) -> Value {
    let mut status = Map::new();
    for name in ["phase", "podIP", "podIPs"] {
        keep(&mut status, &mut all, name);
    }
    let ready = items(taken(&mut all, "conditions")).filter(|condition| condition["type"] == "Ready");
    let ready = ready.map(|condition| json!({"type": "Ready", "status": condition["status"]}));
    status.insert("conditions".to_owned(), ready.collect());
    status.into()
}

fn endpoint(mut all: Value) -> Value {
    let mut endpoint = Map::new();
    for name in ["addresses", "conditions", "hostname"] {
        keep(&mut endpoint, &mut all, name);
    }
    if let Some(target) = all.get("targetRef").filter(|target| target.is_object()) {
        endpoint.insert("targetRef".to_owned(), json!({"kind": target["kind"], "name": target["name"]}));
    }
    endpoint.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Spec;

    fn read(kind: Kind, object: Value) -> Candidate {
        let metadata = serde_json::from_value(object["metadata"].clone()).unwrap();
        candidate(kind, kind.versions()[0], metadata, object).unwrap()
    }

    fn pod() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "p", "namespace": "a", "uid": "u", "resourceVersion": "7", "generation": 3, "creationTimestamp": "2026-06-01T00:00:00Z",
                "labels": {"app": "web"}, "annotations": {"cni/attachment": "eth0", "meshwright.dev/opaque-ports": "3306"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}, {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "u", "controller": true}],
                "managedFields": [{"manager": "kubelet"}],
            },
            "spec": {"nodeName": "n1", "volumes": [{"name": "v"}], "tolerations": [{}], "containers": [{"name": "c", "image": "i", "env": [{"name": "PASSWORD", "value": "x"}], "ports": [{"containerPort": 80}]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null}, {"type": "PodScheduled", "status": "True"}], "containerStatuses": [{"restartCount": 3}]},
        })
    }

    #[test]
    fn only_what_is_read_is_kept() {
        // Aim: a pod is a few hundred bytes, without anybody's environment or others' annotations; what is left says all that is read.
        let candidate = read(Kind::Pod, pod());
        assert!(candidate.problems.is_empty() && candidate.raw.len() < 700, "{:?} {}", candidate.problems, candidate.raw);
        assert!(!candidate.raw.contains("PASSWORD") && !candidate.raw.contains("cni") && !candidate.raw.contains("resourceVersion"));
        let Spec::Pod(pod) = &candidate.object.as_ref().unwrap().spec else { panic!("a pod") };
        assert_eq!((pod.owner.as_str(), pod.node.as_str(), pod.ready, pod.workload.ports.len()), ("web", "n1", true, 1));
        assert_eq!(candidate.object.as_ref().unwrap().annotated_ports("meshwright.dev/opaque-ports"), [3306]);
    }

    #[test]
    fn what_means_nothing_changes_nothing() {
        // Aim: a version that differs only in what is not read has the digest of the one before; one that differs in what is has another.
        let same = |kind: Kind, one: &Value, change: &str, value: Value| {
            let mut other = one.clone();
            let (above, last) = change.rsplit_once('/').unwrap();
            other.pointer_mut(above).unwrap()[last] = value;
            read(kind, one.clone()).digest == read(kind, other).digest
        };
        let slice = json!({"metadata": {"name": "s", "namespace": "a", "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "t"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n1", "zone": "z", "targetRef": {"kind": "Pod", "name": "p", "uid": "u"}}]});
        let node = json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "a", "load": "1"}}});
        let balanced = |labels: Value| json!({"metadata": {"name": "s", "namespace": "a", "labels": labels}, "spec": {"ports": [{"port": 80}]}, "status": {}});
        let ingress = json!({"ingress": [{"ip": "192.0.2.7"}]});
        let route = json!({"metadata": {"name": "r", "namespace": "a", "generation": 1}, "spec": {"rules": []}, "status": {"parents": []}});
        for (kind, object, change, value, wanted) in [
            (Kind::Pod, &pod(), "/metadata/resourceVersion", json!("8"), true),
            (Kind::Pod, &pod(), "/status/containerStatuses", json!([]), true),
            (Kind::Pod, &pod(), "/metadata/generation", json!(4), true),
            (Kind::Pod, &pod(), "/status/podIP", json!("10.0.0.2"), false),
            (Kind::Pod, &pod(), "/metadata/deletionTimestamp", json!("2026-06-01T00:00:00Z"), false),
            (Kind::EndpointSlice, &slice, "/metadata/annotations", json!({}), true),
            (Kind::EndpointSlice, &slice, "/endpoints", json!([]), false),
            (Kind::Node, &node, "/metadata/labels", json!({"topology.kubernetes.io/zone": "a", "load": "2"}), true),
            (Kind::Node, &node, "/metadata/labels", json!({"topology.kubernetes.io/zone": "b"}), false),
            (Kind::Service, &balanced(json!({})), "/status/loadBalancer", ingress.clone(), true),
            (Kind::Service, &balanced(json!({GATEWAY_NAME: "g"})), "/status/loadBalancer", ingress, false),
            (Kind::HTTPRoute, &route, "/status", json!({"parents": [{}]}), true),
            (Kind::HTTPRoute, &route, "/metadata/generation", json!(2), false),
            (Kind::HTTPRoute, &route, "/metadata/uid", json!("another"), false),
            (Kind::HTTPRoute, &route, "/spec", json!({"rules": [], "more": 1}), false),
        ] {
            assert_eq!(same(kind, object, change, value), wanted, "{kind} {change}");
        }
    }

    #[test]
    fn any_shape_is_survived() {
        // Aim: no object makes it panic, whatever stands where a list or a mapping should.
        for kind in Kind::ALL {
            for rest in [
                Value::Null,
                json!(7),
                json!([1]),
                json!({"spec": [1], "status": "x", "endpoints": 7}),
                json!({"spec": {"containers": [7, {"ports": 1}]}}),
            ] {
                let metadata = ObjectMeta { name: Some("x".to_owned()), namespace: Some("a".to_owned()), ..ObjectMeta::default() };
                let _ = candidate(kind, kind.versions()[0], metadata, rest);
            }
            assert!(candidate(kind, "v1", ObjectMeta::default(), Value::Null).is_err());
        }
    }
}
