//! A cluster's pods as instances of the mesh: identity, endpoints, names, and who is let in.

use std::collections::BTreeSet;

use control::source::{FileChange, Folder};
use control::translate::{audience, audiences, statuses, view};
use control::world::{Allocations, Change, Origin, World, WorldSettings};
use prost::Message as _;
use proto::mesh::DnsRecord;
use proto::names::{self, Mode, NodeId};
use proto::xds;
use proto::xds::core::HealthStatus;
use proto::xds::endpoint::ClusterLoadAssignment;
use proto::xds::endpoint::lb_endpoint::HostIdentifier;
use serde_json::{Value, json};

use crate::server::{Follower, Server, plural, settings};

fn node(name: &str, zone: &str) -> Value {
    let labels = json!({"topology.kubernetes.io/region": "r1", "topology.kubernetes.io/zone": zone, "kubernetes.io/hostname": name});
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "status": {"conditions": [{"type": "Ready"}]}})
}

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

/// A pod as a kubelet reports it, with our sidecar.
fn pod(name: &str, app: &str, ip: &str, owner: (&str, &str)) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "shop", "labels": {"app": app, "pod-template-hash": "7d9f"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": owner.0, "name": owner.1, "uid": "u", "controller": true}],
        },
        "spec": {
            "nodeName": "n1", "serviceAccountName": app,
            "initContainers": [{"name": "meshwright-proxy", "restartPolicy": "Always", "ports": [{"containerPort": 15020}]}],
            "containers": [{"name": "app", "image": "x", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}]},
    })
}

fn slice(service: &str, endpoints: Value) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{service}-x7"), "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]})
}

fn of(name: &str, ip: &str) -> Value {
    json!({"addresses": [ip], "conditions": {"ready": true, "serving": true, "terminating": false}, "nodeName": "n1", "targetRef": {"kind": "Pod", "namespace": "shop", "name": name, "uid": "u"}})
}

/// A shop: a Deployment in the mesh, a StatefulSet in the mesh, a pod outside it, and what is outside the cluster.
fn shop() -> Vec<Value> {
    let with = |mut object: Value, path: &[&str], value: Value| {
        let (last, above) = path.split_last().unwrap();
        above.iter().fold(&mut object, |at, name| &mut at[*name])[*last] = value;
        object
    };
    let store = |number: u8| {
        let pod = pod(&format!("store-{number}"), "store", &format!("172.16.1.{number}"), ("StatefulSet", "store"));
        with(with(pod, &["spec", "hostname"], format!("store-{number}").into()), &["spec", "subdomain"], "store".into())
    };
    let legacy = with(pod("legacy", "legacy", "172.16.2.1", ("Job", "legacy-29384756")), &["spec", "initContainers"], json!([]));
    let finished = with(pod("web-done", "web", "172.16.0.9", ("ReplicaSet", "web-7d9f")), &["status", "phase"], "Succeeded".into());
    let pending = with(pod("web-next", "web", "172.16.0.8", ("ReplicaSet", "web-7d9f")), &["status"], json!({"phase": "Pending"}));
    let shared = with(
        with(pod("agent", "agent", "192.0.2.1", ("DaemonSet", "agent")), &["spec", "hostNetwork"], true.into()),
        &["spec", "initContainers"],
        json!([]),
    );
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"meshwright.dev/inject": "enabled"}}}),
        node("n1", "a"),
        node("n2", "b"),
        service(
            "web",
            json!({"clusterIP": "172.30.0.1", "clusterIPs": ["172.30.0.1"], "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}),
        ),
        service(
            "store",
            json!({"clusterIP": "None", "clusterIPs": ["None"], "selector": {"app": "store"}, "ports": [{"name": "http", "port": 8080}]}),
        ),
        service(
            "legacy",
            json!({"clusterIP": "172.30.0.3", "clusterIPs": ["172.30.0.3"], "selector": {"app": "legacy"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}),
        ),
        service("outside", json!({"clusterIP": "172.30.0.4", "clusterIPs": ["172.30.0.4"], "ports": [{"name": "http", "port": 80}]})),
        service(
            "agent",
            json!({"clusterIP": "172.30.0.5", "clusterIPs": ["172.30.0.5"], "selector": {"app": "agent"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}),
        ),
        pod("web-7d9f-x", "web", "172.16.0.1", ("ReplicaSet", "web-7d9f")),
        with(pod("web-7d9f-y", "web", "172.16.0.2", ("ReplicaSet", "web-7d9f")), &["spec", "nodeName"], "n2".into()),
        store(1),
        store(2),
        legacy,
        finished,
        pending,
        shared,
        slice("web", json!([of("web-7d9f-x", "172.16.0.1"), of("web-7d9f-y", "172.16.0.2"), of("web-gone", "172.16.0.7")])),
        slice("outside", json!([{"addresses": ["198.51.100.7"]}, of("legacy", "172.16.2.1"), of("never", "172.16.9.9")])),
    ]
}

async fn cluster(objects: Vec<Value>) -> (Server, Follower) {
    let server = Server::new();
    for object in objects {
        server.put(&plural(&object), object);
    }
    let mut follower = Follower::start(&server, settings());
    follower.until(World::synced).await;
    (server, follower)
}

fn sidecar(instance: &str) -> NodeId {
    NodeId { mode: Mode::Sidecar, namespace: "shop".to_owned(), instance: instance.to_owned() }
}

/// What one sidecar is told: the endpoints of a destination that it calls, as `ADDRESS WORKLOAD ACCOUNT HEALTH ZONE`.
fn endpoints(world: &World, wanted: &str) -> Vec<String> {
    let audience = audience(world, &sidecar("web-7d9f-x")).unwrap();
    let view = view(world, &audience, &BTreeSet::from([names::outbound(wanted.parse().unwrap())]));
    let mut found = Vec::new();
    for ((type_url, _), resource) in &view.resources {
        if *type_url != xds::ENDPOINT {
            continue;
        }
        let assignment = ClusterLoadAssignment::decode(resource.any.value.as_slice()).unwrap();
        for group in &assignment.endpoints {
            let zone = group.locality.as_ref().map_or("", |locality| &locality.zone);
            for endpoint in &group.lb_endpoints {
                let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else { panic!("an address") };
                let address = format!("{:?}", host.address);
                let ip = address.split('"').find(|part| part.parse::<std::net::IpAddr>().is_ok()).unwrap();
                let facts = &endpoint.metadata.as_ref().unwrap().filter_metadata["meshwright.dev"].fields;
                let fact = |name: &str| match facts.get(name).and_then(|value| value.kind.as_ref()) {
                    Some(prost_types::value::Kind::StringValue(text)) => text.clone(),
                    _ => "-".to_owned(),
                };
                let health = HealthStatus::try_from(endpoint.health_status).unwrap().as_str_name();
                found.push(format!(
                    "{ip} {} {} {health} {zone}",
                    fact("workload"),
                    fact("identity").replace("spiffe://cluster.local/ns/shop/sa/", "")
                ));
            }
        }
    }
    found
}

fn name(world: &World, host: &str) -> Vec<String> {
    let audience = audience(world, &sidecar("web-7d9f-x")).unwrap();
    let view = view(world, &audience, &BTreeSet::from([names::dns(host)]));
    let key = view.resources.keys().find(|(_, name)| *name == names::dns(host)).cloned();
    let record = key.map(|key| DnsRecord::decode(view.resources[&key].any.value.as_slice()).unwrap());
    record.map(|record| record.addresses).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn pods_are_instances() {
    // Aim: who carries our sidecar is a mesh peer with its account's identity and its owner's name, at the pod's own address and in its
    // node's zone; who does not is met in plaintext; who has ended is nobody, who has no address yet is known and no endpoint, and who shares
    // its node's address does not own it.
    let (_server, follower) = cluster(shop()).await;
    let world = &follower.world;
    let known: Vec<_> = world.index().instances.values().map(|one| format!("{} {} {}", one.name, one.workload, one.meshed)).collect();
    assert_eq!(
        known,
        [
            "agent agent false",
            "legacy legacy false",
            "store-1 store true",
            "store-2 store true",
            "web-7d9f-x web true",
            "web-7d9f-y web true",
            "web-next web true"
        ]
    );
    assert_eq!(endpoints(world, "172.30.0.1:80"), ["172.16.0.1 web web HEALTHY a", "172.16.0.2 web web HEALTHY b"]);
    assert_eq!(endpoints(world, "172.30.0.3:80"), ["172.16.2.1 legacy - HEALTHY a"]);
    assert_eq!(
        endpoints(world, "172.30.0.4:80"),
        ["198.51.100.7 outside - HEALTHY ", "172.16.2.1 legacy - HEALTHY a"],
        "no pod that nobody knows"
    );
    assert_eq!(endpoints(world, "172.30.0.5:80"), ["192.0.2.1 agent - HEALTHY a"]);
    assert_eq!(endpoints(world, "172.16.1.2:8080"), ["172.16.1.2 store store HEALTHY a"], "a pod by its own address");
    assert_eq!(endpoints(world, "192.0.2.1:8080"), Vec::<String>::new(), "a node's address is nobody's in the mesh");
    let web = audience(world, &sidecar("web-7d9f-x")).unwrap();
    assert_eq!((web.workload.as_str(), web.service_account.as_str(), web.addresses.len()), ("web", "web", 1));
    assert!(audience(world, &sidecar("legacy")).is_none() && audience(world, &sidecar("web-done")).is_none());
    assert!(audience(world, &sidecar("web-next")).unwrap().addresses.is_empty());
    assert_eq!(audiences(world).len(), 5);
    assert!(world.problems().is_empty(), "{:?}", world.problems());
    assert_eq!(
        serde_json::to_value(world.allocations()).unwrap(),
        serde_json::to_value(Allocations::default()).unwrap(),
        "no address is ours to give"
    );
}

#[tokio::test(start_paused = true)]
async fn names_are_those_of_kubernetes() {
    // Aim: a Service is its cluster IP, a headless one its pods, a StatefulSet's pod has its own name below it, and no other pod has one.
    let (_server, follower) = cluster(shop()).await;
    for (host, addresses) in [
        ("web", vec!["172.30.0.1"]),
        ("web.shop.svc.cluster.local", vec!["172.30.0.1"]),
        ("store.shop", vec!["172.16.1.1", "172.16.1.2"]),
        ("store-2.store.shop.svc.cluster.local", vec!["172.16.1.2"]),
        ("web-7d9f-x.web.shop", vec![]),
        ("172-16-1-1.store.shop.svc.cluster.local", vec![]),
    ] {
        assert_eq!(name(&follower.world, host), addresses, "{host}");
    }
}

#[tokio::test(start_paused = true)]
async fn pods_come_and_go() {
    // Aim: not ready is unhealthy, about to end is draining, ended and gone are no endpoints whatever the slices still say, and a pod that
    // comes back under its name with another address is itself; none of it is an epoch.
    let (server, mut follower) = cluster(shop()).await;
    let mut web = shop().into_iter().find(|object| object["metadata"]["name"] == "web-7d9f-y").unwrap();
    let steps = follower.applied.len();
    for (change, wanted) in [
        (("/status/conditions/0/status", json!("False")), "172.16.0.2 web web UNHEALTHY b"),
        (("/status/conditions/0/status", json!("True")), "172.16.0.2 web web HEALTHY b"),
        (("/metadata/labels/app", json!("other")), ""),
        (("/metadata/labels/app", json!("web")), "172.16.0.2 web web HEALTHY b"),
        (("/status/phase", json!("Failed")), ""),
        (("/status/phase", json!("Running")), "172.16.0.2 web web HEALTHY b"),
    ] {
        *web.pointer_mut(change.0).unwrap() = change.1.clone();
        server.put("pods", web.clone());
        let fits = |world: &World| endpoints(world, "172.30.0.1:80").get(1).map_or("", String::as_str) == wanted;
        // The slice still names a pod that has left its Service by its label.
        let sliced = change.1 == json!("other");
        follower.until(|world| sliced || fits(world)).await;
    }
    web["metadata"]["deletionTimestamp"] = "2026-06-01T00:01:00Z".into();
    server.put("pods", web.clone());
    follower.until(|world| endpoints(world, "172.30.0.1:80").get(1).is_some_and(|one| one.contains("DRAINING"))).await;
    server.delete("pods", "shop", "web-7d9f-y");
    follower.until(|world| endpoints(world, "172.30.0.1:80").len() == 1).await;
    web["metadata"].as_object_mut().unwrap().remove("deletionTimestamp");
    web["status"]["podIP"] = "172.16.0.3".into();
    web["status"]["podIPs"] = json!([{"ip": "172.16.0.3"}]);
    server.put("pods", web);
    follower.until(|world| endpoints(world, "172.30.0.1:80").get(1).is_some_and(|one| one.starts_with("172.16.0.3 web web HEALTHY"))).await;
    assert!(follower.applied[steps..].iter().all(|applied| applied.changed.is_empty() && applied.runtime && !applied.book));
    server.put("nodes", node("n2", "c"));
    follower.until(|world| endpoints(world, "172.30.0.1:80")[1].ends_with(" c")).await;
}

#[tokio::test(start_paused = true)]
async fn pods_from_a_folder_are_the_same() {
    // Aim: what `kubectl get -o yaml` wrote of pods, nodes and slices gives the same mesh as the cluster they come from.
    let mut objects = shop();
    for object in &mut objects {
        object["metadata"]["creationTimestamp"] = "2026-06-01T00:00:00Z".into();
    }
    let text: String = objects.iter().map(|object| format!("---\n{object}\n")).collect();
    let settings = WorldSettings { origins: [Origin::Folder].into(), ..settings() };
    let mut by_folder = World::new(settings, Allocations::default());
    let mut changes = Folder::default().update(vec![FileChange { file: "all.yaml".to_owned(), text: Some(Ok(text)) }], 0);
    changes.push(Change::Synced(Origin::Folder));
    by_folder.apply(changes);
    let (_server, follower) = cluster(objects).await;
    for wanted in ["172.30.0.1:80", "172.30.0.3:80", "172.30.0.4:80", "172.30.0.5:80", "172.16.1.2:8080"] {
        assert_eq!(endpoints(&by_folder, wanted), endpoints(&follower.world, wanted), "{wanted}");
    }
    let all = |world: &World| audiences(world).iter().map(|audience| view(world, audience, &BTreeSet::new()).resources).collect::<Vec<_>>();
    assert_eq!(all(&by_folder), all(&follower.world));
    assert_eq!(statuses(&by_folder), statuses(&follower.world));
}
