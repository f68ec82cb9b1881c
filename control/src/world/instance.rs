//! What runs: the instances of Workloads, and a cluster's pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use proto::mesh;

use super::key::{Kind, ObjectKey};
use super::object::{Object, Spec};
use super::pod::Pod;
use super::workload::Workload;
use super::{Change, Families, World};

/// What the node agent says of one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstanceState {
    /// Its command has been started.
    pub started: bool,
    /// It is ready for traffic.
    pub ready: bool,
    /// What it waits for, or why it failed.
    pub message: String,
    /// Process of the command; 0: none.
    pub pid: u32,
    /// Process of its sidecar; 0: none.
    pub proxy_pid: u32,
    /// How often it was restarted.
    pub restarts: u32,
    /// The order that it runs.
    pub fingerprint: String,
}

/// What the node agent says of one Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayState {
    /// Its proxy serves.
    pub ready: bool,
    /// What it waits for, or why it failed.
    pub message: String,
    /// Process of its proxy; 0: none.
    pub proxy_pid: u32,
    /// Host port by listener port, and whether that is one for datagrams.
    pub bound: BTreeMap<(u16, bool), u16>,
}

/// One instance of a Workload, declared, whether or not it runs yet; or a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Namespace.
    pub namespace: String,
    /// Its own name.
    pub name: String,
    /// Name of its Workload, or of what owns the pod.
    pub workload: String,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Whether it has a sidecar.
    pub meshed: bool,
    /// Whether it may get traffic.
    pub ready: bool,
    /// Whether it is leaving, or its proxy says so.
    pub draining: bool,
    /// Where it is: region and zone, as far as known.
    pub locality: (String, String),
    /// The Workload, or the Pod.
    pub object: Arc<Object>,
}

impl Instance {
    /// The Workload's content, or the pod's in the same words.
    pub fn workload(&self) -> Option<&Workload> {
        match &self.object.spec {
            Spec::Workload(workload) => Some(workload),
            Spec::Pod(pod) => Some(&pod.workload),
            _ => None,
        }
    }

    /// The pod's content.
    pub fn pod(&self) -> Option<&Pod> {
        if let Spec::Pod(pod) = &self.object.spec { Some(pod) } else { None }
    }

    /// Whether a node agent is to start it, with a sidecar.
    pub(super) fn is_started(&self) -> bool {
        self.meshed && self.workload().is_some_and(|workload| !workload.command.is_empty())
    }

    /// Its name below a headless Service: an instance's own; a pod has one only where its author says so.
    pub fn hostname_below(&self, service: &str) -> Option<&str> {
        self.pod().map_or(Some(&self.name), |pod| pod.hostname_below(service))
    }

    /// Labels of the Workload, or of the pod.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.object.metadata.labels
    }

    /// Where callers connect to: each address of one family, which is IPv4 unless they want IPv6 alone or there is no IPv4. Both
    /// families of one instance are one endpoint, not two.
    pub fn endpoint_addresses(&self, families: Families) -> impl Iterator<Item = IpAddr> + '_ {
        let has = |v4: bool| self.addresses.iter().any(|address| address.is_ipv4() == v4);
        let v4 = has(true) && !(families == Families::V6 && has(false));
        self.addresses.iter().copied().filter(move |address| address.is_ipv4() == v4)
    }
}

/// Names of a Workload's instances: its own name for one replica, else numbered (`kinds.md`).
pub(super) fn names(name: &str, workload: &Workload) -> impl Iterator<Item = String> {
    let replicas = if workload.command.is_empty() { 1 } else { workload.replicas };
    (0..replicas).map(move |number| if replicas == 1 { name.to_owned() } else { format!("{name}-{number}") })
}

/// What all names have in common that may meet as names of instances: the name without the numbers at its end. A Workload `web` and one
/// named `web-1` may both mean an instance `web-1`; no Workload of another family does.
pub(super) fn family(name: &str) -> &str {
    let mut rest = name;
    while let Some((head, number)) = rest.rsplit_once('-')
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
    {
        rest = head;
    }
    rest
}

/// Names that instances of a Workload had under another number of replicas, and that the node agent still reports as ready.
pub(super) fn former_names(world: &World, key: &ObjectKey, workload: &Workload) -> Vec<String> {
    if workload.command.is_empty() || !workload.addresses.is_empty() {
        return Vec::new();
    }
    let numbered = |rest: &str| rest.strip_prefix('-').is_some_and(|number| number.parse::<u32>().is_ok_and(|n| n.to_string() == number));
    let first = (key.namespace.clone(), key.name.clone());
    let states = world.instance_states().range(first..).take_while(|((namespace, name), _)| {
        // Names with the prefix stand together.
        *namespace == key.namespace && name.starts_with(&key.name)
    });
    let ready = states.filter(|((_, name), state)| {
        let rest = &name[key.name.len()..];
        state.ready && (rest.is_empty() || numbered(rest))
    });
    ready.map(|((_, name), _)| name.clone()).collect()
}

/// Instances of one Workload by the names given, as they are now.
pub(super) fn instances(
    world: &World,
    object: &Arc<Object>,
    workload: &Workload,
    namespace_label: Option<&str>,
    names: impl IntoIterator<Item = String>,
) -> Vec<Instance> {
    let namespace = &object.key.namespace;
    let meshed = proto::annotations::meshed(object.label(proto::annotations::INJECT), namespace_label);
    let instance = |name: String| {
        let key = (namespace.clone(), name.clone());
        let given = world.allocations().instance(&world.settings().ranges, &format!("{namespace}/{name}"));
        let mut addresses = workload.addresses.clone();
        if addresses.is_empty() {
            addresses.extend(given.into_iter().flatten());
        }
        addresses.sort_by_key(IpAddr::is_ipv6);
        let reported = world.instance_states().get(&key).is_some_and(|state| state.ready);
        Instance {
            namespace: namespace.clone(),
            workload: object.key.name.clone(),
            addresses,
            meshed,
            ready: reported || workload.command.is_empty() || world.settings().assume_ready,
            // Without a proxy nobody would take the word back that the one before it had said.
            draining: meshed && world.draining.contains_key(&key),
            locality: workload.locality.clone(),
            object: Arc::clone(object),
            name,
        }
    };
    names.into_iter().map(instance).collect()
}

/// A pod as an instance; `None` once it has ended. One that has no address yet draws no traffic, and may have its certificate already: its
/// sidecar starts before the kubelet tells its address.
pub(super) fn of_pod(world: &World, object: &Arc<Object>, pod: &Pod) -> Option<Instance> {
    if pod.finished {
        return None;
    }
    let key = (object.key.namespace.clone(), object.key.name.clone());
    let node = world.get(&ObjectKey::new(Kind::Node, "", &pod.node));
    let draining = pod.leaving || (pod.injected && world.draining.contains_key(&key));
    Some(Instance {
        namespace: key.0,
        name: key.1,
        workload: pod.owner.clone(),
        addresses: pod.workload.addresses.clone(),
        meshed: pod.injected,
        ready: pod.ready,
        draining,
        locality: zone(node.unwrap_or(object)),
        object: Arc::clone(object),
    })
}

/// Region and zone that the labels of a node say; newer clusters copy them to its pods.
pub(super) fn zone(object: &Object) -> (String, String) {
    let label = |name| object.label(name).unwrap_or_default().to_owned();
    (label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

/// A node agent's report as a [`Change`].
pub fn reported(report: &mesh::NodeReport) -> Change {
    let instance = |state: &mesh::InstanceState| {
        let value = InstanceState {
            started: state.started,
            ready: state.ready,
            message: state.message.clone(),
            pid: state.pid,
            proxy_pid: state.proxy_pid,
            restarts: state.restarts,
            fingerprint: state.fingerprint.clone(),
        };
        ((state.namespace.clone(), state.instance.clone()), value)
    };
    let gateway = |state: &mesh::GatewayState| {
        let port = |port| u16::try_from(port).ok();
        let bound =
            state.bound.iter().filter_map(|bound| Some(((port(bound.listener_port)?, bound.udp), port(bound.host_port)?))).collect();
        let value = GatewayState { ready: state.ready, message: state.message.clone(), proxy_pid: state.proxy_pid, bound };
        ((state.namespace.clone(), state.name.clone()), value)
    };
    Change::Node { instances: report.instances.iter().map(instance).collect(), gateways: report.gateways.iter().map(gateway).collect() }
}
