//! Pods: what a cluster runs, read as an instance of a Workload. Only what identity and endpoints need is read, and nothing of it is
//! judged: whoever wrote it, the API server has, and a field that this version does not know concerns others.

use std::net::IpAddr;

use proto::pods::{self, Owner, PROXY_CONTAINER, WORKLOAD_VARIABLE};

use super::tree::{Node, Value};
use super::workload::{Workload, WorkloadPort};

/// A pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// What runs in it, in the words of a Workload: its account, its declared ports, its addresses (those of the node, for a pod with
    /// `hostNetwork`).
    pub workload: Workload,
    /// Name of the workload that it is an instance of.
    pub owner: String,
    /// Tells it from a later one of the same name.
    pub uid: String,
    /// The node it runs on; empty: none yet.
    pub node: String,
    /// Its condition `Ready`.
    pub ready: bool,
    /// It is about to end.
    pub leaving: bool,
    /// It has ended, well or not: its addresses may be others' by now.
    pub finished: bool,
    /// It carries our sidecar.
    pub injected: bool,
    /// It shares its node's network.
    pub host_network: bool,
    /// Its name below the headless Service `subdomain`.
    pub hostname: Option<(String, String)>,
}

impl Pod {
    /// Reads the whole document.
    pub(super) fn read(node: &Node) -> Self {
        let (metadata, spec, status) = (node.get("metadata"), node.get("spec"), node.get("status"));
        let of = |part: Option<&Node>, name: &str| part.and_then(|part| part.get(name)).and_then(Node::text).map(str::to_owned);
        let containers: Vec<&Node> = ["initContainers", "containers"].into_iter().flat_map(|name| items(spec, name)).collect();
        let proxy = containers.iter().find(|container| is_proxy(container));
        let host_network = spec.and_then(|spec| spec.get("hostNetwork")).is_some_and(|flag| flag.value == Value::Bool(true));
        let own = items(spec, "containers").filter(|container| !is_proxy(container)).collect::<Vec<_>>();
        let name = of(metadata, "name").unwrap_or_default();
        Self {
            owner: proxy.and_then(|proxy| told(proxy)).unwrap_or_else(|| owner(&name, metadata).to_owned()),
            uid: of(metadata, "uid").unwrap_or_default(),
            node: of(spec, "nodeName").unwrap_or_default(),
            ready: items(status, "conditions").any(|condition| {
                of(Some(condition), "type").as_deref() == Some("Ready") && of(Some(condition), "status").as_deref() == Some("True")
            }),
            leaving: of(metadata, "deletionTimestamp").is_some(),
            finished: matches!(of(status, "phase").as_deref(), Some("Succeeded" | "Failed")),
            injected: proxy.is_some() && !host_network,
            host_network,
            hostname: of(spec, "hostname").zip(of(spec, "subdomain")),
            workload: Workload {
                service_account: of(spec, "serviceAccountName").unwrap_or_else(|| "default".to_owned()),
                replicas: 1,
                command: Vec::new(),
                addresses: addresses(status),
                working_dir: None,
                env: Vec::new(),
                // The kubelet asks; what the sidecar may be asked instead, the injector tells it.
                readiness: None,
                ports: ports(&own),
                udp_ports: Vec::new(),
                locality: Default::default(),
                weight: 1,
            },
        }
    }

    /// Its name below a headless Service of its namespace, if it has one there.
    pub fn hostname_below(&self, service: &str) -> Option<&str> {
        self.hostname.as_ref().filter(|(_, subdomain)| subdomain == service).map(|(hostname, _)| hostname.as_str())
    }
}

fn items<'a>(part: Option<&'a Node>, name: &str) -> impl Iterator<Item = &'a Node> + use<'a> {
    let list = part.and_then(|part| part.get(name)).map(|list| &list.value);
    let list = if let Some(Value::List(items)) = list { items.as_slice() } else { &[] };
    list.iter()
}

fn text<'a>(node: &'a Node, name: &str) -> Option<&'a str> {
    node.get(name).and_then(Node::text)
}

fn number(node: Option<&Node>) -> Option<u16> {
    let Some(Value::Int(number)) = node.map(|node| &node.value) else { return None };
    u16::try_from(*number).ok().filter(|port| *port > 0)
}

fn is_proxy(container: &Node) -> bool {
    text(container, "name") == Some(PROXY_CONTAINER)
}

/// What the sidecar itself will say it is an instance of.
fn told(proxy: &Node) -> Option<String> {
    let variable = items(Some(proxy), "env").find(|variable| text(variable, "name") == Some(WORKLOAD_VARIABLE))?;
    let name = text(variable, "value")?.rsplit('/').next()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// The object that somebody wrote, as the injector finds it too.
fn owner<'a>(name: &'a str, metadata: Option<&'a Node>) -> &'a str {
    let controls = |owner: &&Node| owner.get("controller").is_some_and(|flag| flag.value == Value::Bool(true));
    let owner = items(metadata, "ownerReferences").find(controls);
    let owner = owner.and_then(|owner| Some(Owner { kind: text(owner, "kind")?, name: text(owner, "name")? }));
    let labels = metadata.and_then(|metadata| metadata.get("labels"));
    pods::workload(name, owner, labels.and_then(|labels| text(labels, pods::TEMPLATE_HASH)))
}

fn addresses(status: Option<&Node>) -> Vec<IpAddr> {
    let listed = items(status, "podIPs").filter_map(|one| text(one, "ip"));
    let single = status.and_then(|status| text(status, "podIP"));
    let mut addresses: Vec<IpAddr> = listed.chain(single).filter_map(|text| text.parse().ok()).collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses.dedup();
    addresses
}

/// Ports that its own containers declare; of two with one number or name the first.
fn ports(containers: &[&Node]) -> Vec<WorkloadPort> {
    let mut ports: Vec<WorkloadPort> = Vec::new();
    for port in containers.iter().flat_map(|container| items(Some(container), "ports")) {
        let Some(number) = number(port.get("containerPort")) else { continue };
        let name = text(port, "name").unwrap_or_default();
        let tcp = text(port, "protocol").is_none_or(|protocol| protocol == "TCP");
        if tcp && !ports.iter().any(|known| known.port == number || (!name.is_empty() && known.name == name)) {
            ports.push(WorkloadPort { name: name.to_owned(), port: number, app_protocol: None });
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::tree::documents;

    fn pod(metadata: &str, spec: &str, status: &str) -> Pod {
        let text = format!("metadata: {{name: p, namespace: a, {metadata}}}\nspec: {{{spec}}}\nstatus: {{{status}}}\n");
        Pod::read(&documents(&text).remove(0).unwrap())
    }

    #[test]
    fn the_owner_is_what_somebody_wrote() {
        // Aim: the name is that of the Deployment or CronJob above, of any other controller itself, of a pod alone its own; where the pod
        // carries our sidecar, what that will say.
        let owned = |kind: &str, name: &str| format!("ownerReferences: [{{kind: {kind}, name: {name}, controller: true}}]");
        let sidecar = "initContainers: [{name: meshwright-proxy, env: [{name: MESHWRIGHT_WORKLOAD, value: $(POD_NAMESPACE)/told}]}]";
        for (metadata, spec, owner) in [
            ("labels: {}".to_owned(), "", "p"),
            (format!("labels: {{pod-template-hash: 7d9f}}, {}", owned("ReplicaSet", "web-7d9f")), "", "web"),
            (format!("labels: {{pod-template-hash: '1'}}, {}", owned("ReplicaSet", "web-7d9f")), "", "web-7d9f"),
            (owned("ReplicaSet", "web"), "", "web"),
            (owned("StatefulSet", "db"), "", "db"),
            (owned("Job", "report-29384756"), "", "report"),
            (owned("Job", "import-1"), "", "import-1"),
            ("ownerReferences: [{kind: Node, name: n1}]".to_owned(), "", "p"),
            (owned("StatefulSet", "db"), sidecar, "told"),
        ] {
            assert_eq!(pod(&metadata, spec, "").owner, owner, "{metadata} {spec}");
        }
    }

    #[test]
    fn only_what_is_known_is_read() {
        // Aim: nothing that may be absent, empty or of another shape is missed or in the way.
        let empty = Pod::read(&documents("metadata: 7\nspec: [1]\nstatus: x\n").remove(0).unwrap());
        assert!(empty.owner.is_empty() && empty.workload.addresses.is_empty() && !empty.ready && !empty.injected && !empty.finished);
        assert_eq!(empty.workload.service_account, "default");
        let both = pod("uid: u1", "hostname: p, subdomain: db", "podIP: 10.0.0.1, podIPs: [{ip: 'fd00::1'}, {ip: 10.0.0.1}, {ip: x}]");
        assert_eq!(both.workload.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.1", "fd00::1"]);
        assert_eq!((both.hostname_below("db"), both.hostname_below("other"), both.uid.as_str()), (Some("p"), None, "u1"));
        let ports = pod(
            "",
            "containers: [{name: a, ports: [{name: http, containerPort: 80}, {containerPort: 53, protocol: UDP}, {containerPort: 99999}]}, \
             {name: meshwright-proxy, ports: [{containerPort: 15020}]}, {name: b, ports: [{name: http, containerPort: 81}, {containerPort: 80}, {containerPort: 82}]}]",
            "",
        );
        assert_eq!(ports.workload.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [80, 82]);
        assert!(ports.injected, "an ordinary container on older clusters");
        assert!(!pod("", "hostNetwork: true, initContainers: [{name: meshwright-proxy}]", "").injected);
        for (status, ready) in
            [("conditions: [{type: Ready, status: 'True'}]", true), ("conditions: [{type: Ready, status: Unknown}]", false)]
        {
            assert_eq!(pod("", "", status).ready, ready);
        }
    }
}
