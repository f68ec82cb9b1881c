//! What stands in the cluster: namespaces, nodes, Services with their EndpointSlices, and pods with a sidecar, as large as pods are. Pure.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use crate::plane::stream::Proxy;

/// Namespaces that everything is spread over.
pub(super) const NAMESPACES: u32 = 10;
/// Nodes, in three zones.
pub(super) const NODES: u32 = 50;
/// The port of each Service.
const PORT: u16 = 80;
/// Letters of which names are made.
const LETTERS: &[u8; 20] = b"bcdfghjklmnpqrstvwxz";

/// How much there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) services: u32,
    pub(super) pods: u32,
}

/// A pod: the `made`-th one at its place behind a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) service: u32,
    pub(super) place: u32,
    pub(super) made: u32,
}

/// The namespace of a Service and its pods.
pub(super) fn namespace(service: u32) -> String {
    format!("n{}", service % NAMESPACES)
}

fn service_ip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 16, 0)) + service)
}

impl Size {
    /// The first pods of all Services.
    pub(super) fn pods(self) -> impl Iterator<Item = Pod> {
        (0..self.pods).map(move |number| Pod { service: number % self.services, place: number / self.services, made: 0 })
    }

    /// Addresses never come again.
    fn address(self, pod: Pod) -> Ipv4Addr {
        let number = pod.made * self.pods + pod.place * self.services + pod.service;
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 1)) + number)
    }

    /// The proxy of a pod, which calls that many Services.
    pub(super) fn proxy(self, number: usize, pod: Pod, destinations: u32) -> Proxy {
        let called = (0..destinations).map(|at| (pod.service + 1 + at * (self.services / destinations).max(1)) % self.services);
        let wants = called.map(|service| SocketAddr::new(service_ip(service).into(), PORT)).collect();
        Proxy { number, namespace: namespace(pod.service), workload: format!("s{}", pod.service), instance: pod.name(), wants }
    }

    /// The endpoints of a Service; a pod that is not ready is told as such.
    pub(super) fn endpoints(self, pods: &[(Pod, bool)]) -> Value {
        let endpoint = |(pod, ready): &(Pod, bool)| {
            json!({
                "addresses": [self.address(*pod)],
                "conditions": {"ready": ready, "serving": ready, "terminating": false},
                "nodeName": pod.node(),
                "targetRef": {"kind": "Pod", "name": pod.name(), "namespace": namespace(pod.service)},
            })
        };
        pods.iter().map(endpoint).collect()
    }

    /// What the kubelet says of a pod.
    pub(super) fn status(self, pod: Pod, ready: bool) -> Value {
        let address = self.address(pod);
        let word = if ready { "True" } else { "False" };
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "lastTransitionTime": "2026-11-30T00:00:00Z"});
        let container = |name: &str| {
            json!({
                "name": name, "image": format!("registry.example.com/team/{name}:1.0.0"), "ready": ready, "started": ready, "restartCount": 0,
                "imageID": format!("registry.example.com/team/{name}@sha256:{:064x}", pod.service),
                "containerID": format!("containerd://{:064x}", pod.place), "state": {"running": {"startedAt": "2026-11-30T00:00:00Z"}},
            })
        };
        json!({"status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": "192.0.2.1", "startTime": "2026-11-30T00:00:00Z",
            "conditions": [condition("PodScheduled", "True"), condition("Initialized", "True"), condition("ContainersReady", word), condition("Ready", word)],
            "containerStatuses": [container("app")],
            "initContainerStatuses": [container("meshwright-proxy")],
        }})
    }
}

impl Pod {
    /// As a ReplicaSet names it: that of the Service, a hash, and letters of its own.
    pub(super) fn name(self) -> String {
        let mut left = self.place + self.made * 100;
        let mut letters = String::new();
        for _ in 0..5 {
            letters.push(char::from(LETTERS[left as usize % LETTERS.len()]));
            left /= 20;
        }
        format!("s{}-6d4cf56db6-{letters}", self.service)
    }

    /// The one that comes after it.
    pub(super) fn next(self) -> Self {
        Self { made: self.made + 1, ..self }
    }

    fn node(self) -> String {
        format!("node-{}", (self.service + self.place) % NODES)
    }

    /// As an injected pod of a Deployment stands in the cluster.
    pub(super) fn object(self) -> Value {
        let (service, namespace) = (format!("s{}", self.service), namespace(self.service));
        let variable = |number: u32| json!({"name": format!("SETTING_{number}"), "value": format!("value-of-setting-{number}")});
        let mounts = json!([{"name": "settings", "mountPath": "/etc/app", "readOnly": true}]);
        let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10, "timeoutSeconds": 1, "failureThreshold": 3});
        let resources = json!({"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}});
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": self.name(), "namespace": namespace, "generateName": format!("{service}-6d4cf56db6-"),
                "labels": {"app": service, "version": "v1", "pod-template-hash": "6d4cf56db6"},
                "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9090", "checksum/settings": format!("{:064x}", self.service)},
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{service}-6d4cf56db6"), "controller": true,
                    "uid": format!("00000000-0000-4000-8000-{:012x}", self.service),
                }],
            },
            "spec": {
                "nodeName": self.node(), "serviceAccountName": "default",
                "initContainers": [{
                    "name": "meshwright-proxy", "image": "registry.example.com/team/meshwright:1.0.0", "restartPolicy": "Always",
                    "env": [{"name": "MESHWRIGHT_WORKLOAD", "value": format!("{namespace}/{service}")}], "resources": resources,
                }],
                "containers": [{
                    "name": "app", "image": "registry.example.com/team/app:1.0.0", "env": (0..8).map(variable).collect::<Value>(),
                    "ports": [{"name": "http", "containerPort": 8080}], "readinessProbe": probe, "livenessProbe": probe, "resources": resources,
                    "volumeMounts": mounts,
                }],
                "volumes": [{"name": "settings", "configMap": {"name": "settings"}}],
            },
        })
    }
}

/// A namespace whose pods are in the mesh.
pub(super) fn namespace_object(number: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("n{number}"), "labels": {"meshwright.dev/inject": "enabled"}}})
}

/// A node in one of three zones.
pub(super) fn node_object(number: u32) -> Value {
    let labels = json!({"topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": format!("z{}", number % 3)});
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node-{number}"), "labels": labels}})
}

/// A Service in front of its pods.
pub(super) fn service_object(service: u32) -> Value {
    let name = format!("s{service}");
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace(service), "labels": {"app": name}},
        "spec": {
            "clusterIP": service_ip(service), "selector": {"app": name},
            "ports": [{"name": "http", "port": PORT, "targetPort": 8080, "appProtocol": "http"}],
        },
    })
}

/// The slice of a Service, with these endpoints.
pub(super) fn slice_object(service: u32, endpoints: &Value) -> Value {
    let name = format!("s{service}");
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": slice_name(service), "namespace": namespace(service), "labels": {"kubernetes.io/service-name": name, "app": name}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
    })
}

/// The name of a Service's slice.
pub(super) fn slice_name(service: u32) -> String {
    format!("s{service}-x7k2p")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nothing_comes_twice() {
        // Aim: neither a name nor an address is used again, whatever pod is replaced however often, and a proxy calls as many Services as asked.
        let size = Size { services: 7, pods: 20 };
        let pods: Vec<Pod> = size.pods().flat_map(|pod| [pod, pod.next(), pod.next().next()]).collect();
        let names: BTreeSet<String> = pods.iter().map(|pod| pod.name()).collect();
        let addresses: BTreeSet<Ipv4Addr> = pods.iter().map(|pod| size.address(*pod)).collect();
        assert_eq!((pods.len(), names.len(), addresses.len()), (60, 60, 60));
        let wants: BTreeSet<SocketAddr> = size.proxy(0, pods[0], 5).wants.into_iter().collect();
        assert_eq!(wants.len(), 5);
    }
}
