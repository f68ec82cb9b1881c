//! From a table to a mesh: its objects as manifests, and who has which address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::table::{Backend, Port, Table};

/// Where objects live that do not say where.
pub const HOME: &str = "shop";

/// One process of the mesh.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its Workload, and only instance.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its address.
    pub ip: IpAddr,
    /// Whether it has a sidecar.
    pub meshed: bool,
    /// Ports that it serves.
    pub ports: Vec<u16>,
    /// It serves bytes.
    pub bytes: bool,
}

/// Everything that a table says there is.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Manifests by `kind/namespace/name`.
    pub objects: BTreeMap<String, Value>,
    /// Who serves.
    pub pods: Vec<Pod>,
    /// Who calls.
    pub clients: Vec<Pod>,
}

impl Stage {
    /// Sets a table up.
    ///
    /// # Errors
    /// An object has no kind or no name, or two are called the same.
    pub fn of(table: &Table) -> anyhow::Result<Self> {
        let mut stage = Self { objects: BTreeMap::new(), pods: Vec::new(), clients: Vec::new() };
        let mut hosts = 2_u8..;
        let mut ip = || -> IpAddr { Ipv4Addr::new(10, 9, 0, hosts.next().unwrap_or(u8::MAX)).into() };
        for (name, namespace) in &table.clients {
            let client = Pod { name: name.clone(), namespace: namespace.clone(), ip: ip(), meshed: true, ports: vec![8080], bytes: false };
            stage.add(workload(&client, name))?;
            stage.clients.push(client);
        }
        for name in &table.fronts {
            stage.add(service(name, HOME, &usual_ports()))?;
        }
        for (name, backend) in &table.backends {
            let ports = if backend.ports.is_empty() { usual_ports() } else { backend.ports.clone() };
            stage.add(service(name, &backend.namespace, &ports))?;
            for number in 0..backend.pods {
                let pod = pod(name, backend, number, &ports, ip());
                stage.add(workload(&pod, name))?;
                stage.pods.push(pod);
            }
        }
        for (name, hosts) in &table.certificates {
            stage.add(certificate(name, hosts)?)?;
        }
        for object in &table.objects {
            let object = completed(object)?;
            stage.add(object)?;
        }
        let namespaces: Vec<String> = stage.objects.values().map(namespace_of).collect();
        for namespace in namespaces.into_iter().filter(|namespace| namespace != "meshwright-system") {
            let mut labels = json!({"meshwright.dev/inject": "enabled"});
            for (name, value) in table.namespaces.get(&namespace).into_iter().flatten() {
                labels[name] = value.clone().into();
            }
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}});
            stage.objects.insert(key(&object)?, object);
        }
        for (name, seconds) in &table.created {
            let object = stage.objects.get_mut(&full(name)).with_context(|| format!("`created` names no object: {name}"))?;
            object["metadata"]["creationTimestamp"] =
                format!("2026-01-01T{:02}:{:02}:{:02}Z", seconds / 3600, seconds / 60 % 60, seconds % 60).into();
        }
        Ok(stage)
    }

    fn add(&mut self, object: Value) -> anyhow::Result<()> {
        let key = key(&object)?;
        ensure!(self.objects.insert(key.clone(), object).is_none(), "{key} is there twice");
        Ok(())
    }

    /// All of it as one file of manifests.
    pub fn manifests(&self) -> String {
        manifests(self.objects.values())
    }

    /// The pod of a name.
    pub fn pod(&self, name: &str) -> Option<&Pod> {
        self.pods.iter().chain(&self.clients).find(|pod| pod.name == name)
    }
}

fn usual_ports() -> Vec<Port> {
    vec![Port { port: 80, target: 8080, name: String::new(), app_protocol: String::new(), protocol: String::new() }]
}

fn pod(name: &str, backend: &Backend, number: u8, ports: &[Port], ip: IpAddr) -> Pod {
    let mut targets: Vec<u16> = ports.iter().map(|port| port.target).collect();
    targets.sort_unstable();
    targets.dedup();
    Pod {
        name: if backend.pods == 1 { name.to_owned() } else { format!("{name}-{number}") },
        namespace: backend.namespace.clone(),
        ip,
        meshed: backend.meshed,
        ports: if backend.listens { targets } else { Vec::new() },
        bytes: backend.bytes,
    }
}

/// The backend that a pod belongs to.
pub fn backend_of(pod: &str) -> &str {
    pod.rsplit_once('-').filter(|(_, number)| number.parse::<u8>().is_ok()).map_or(pod, |(name, _)| name)
}

fn workload(pod: &Pod, app: &str) -> Value {
    let inject = if pod.meshed { "enabled" } else { "disabled" };
    let ports: Vec<Value> = pod.ports.iter().map(|port| json!({"port": port, "name": format!("p{port}")})).collect();
    json!({"apiVersion": "meshwright.dev/v1alpha1", "kind": "Workload",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": {"app": app, "meshwright.dev/inject": inject}},
        "spec": {"addresses": [pod.ip], "ports": ports}})
}

fn service(name: &str, namespace: &str, ports: &[Port]) -> Value {
    let port = |port: &Port| {
        let mut entry = json!({"port": port.port, "targetPort": port.target, "name": port.name});
        if port.name.is_empty() {
            entry["name"] = format!("p{}", port.port).into();
        }
        if !port.protocol.is_empty() {
            entry["protocol"] = port.protocol.clone().into();
        }
        if !port.app_protocol.is_empty() {
            entry["appProtocol"] = port.app_protocol.clone().into();
        }
        entry
    };
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": ports.iter().map(port).collect::<Vec<_>>()}})
}

/// A Secret with a certificate that it has signed itself: nobody looks further than its names.
fn certificate(name: &str, hosts: &[String]) -> anyhow::Result<Value> {
    let own = rcgen::generate_simple_self_signed(hosts)?;
    Ok(json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": name, "namespace": HOME},
        "stringData": {"tls.crt": own.cert.pem(), "tls.key": own.signing_key.serialize_pem()}}))
}

/// A manifest with what tables leave out.
///
/// # Errors
/// It has no kind or no name.
pub fn completed(object: &Value) -> anyhow::Result<Value> {
    let mut object = object.clone();
    let version = match object["kind"].as_str().context("an object without a kind")? {
        "Service" | "Namespace" | "ConfigMap" | "Secret" => "v1",
        "EndpointSlice" => "discovery.k8s.io/v1",
        "TrafficPolicy" | "Workload" | "Mesh" | "PeerAuthentication" | "ClientPolicy" | "AuthorizationPolicy" => "meshwright.dev/v1alpha1",
        _ => "gateway.networking.k8s.io/v1",
    };
    if object["apiVersion"].is_null() {
        object["apiVersion"] = version.into();
    }
    if object["metadata"]["namespace"].is_null() && object["kind"] != "Namespace" {
        object["metadata"]["namespace"] = HOME.into();
    }
    key(&object)?;
    Ok(object)
}

fn namespace_of(object: &Value) -> String {
    object["metadata"]["namespace"].as_str().or(object["metadata"]["name"].as_str()).unwrap_or(HOME).to_owned()
}

/// `kind/namespace/name`.
///
/// # Errors
/// It has no kind or no name.
pub fn key(object: &Value) -> anyhow::Result<String> {
    let kind = object["kind"].as_str().context("an object without a kind")?.to_lowercase();
    let name = object["metadata"]["name"].as_str().context("an object without a name")?;
    Ok(if kind == "namespace" { format!("{kind}//{name}") } else { format!("{kind}/{}/{name}", namespace_of(object)) })
}

/// A key as people write it, in full.
pub fn full(key: &str) -> String {
    match key.split('/').collect::<Vec<_>>().as_slice() {
        [kind, name] => format!("{kind}/{HOME}/{name}"),
        _ => key.to_owned(),
    }
}

/// Objects as one file of manifests.
pub fn manifests<'a>(objects: impl IntoIterator<Item = &'a Value>) -> String {
    objects.into_iter().map(|object| format!("---\n{object}\n")).collect()
}

/// A place that is called: namespace, name and port of a Service, or a pod's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// It is a pod, called by its own address.
    pub pod: bool,
    /// It is a Gateway, called from outside.
    pub gateway: bool,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Port.
    pub port: u16,
}

/// Reads the `to` of a request.
///
/// # Errors
/// Its port is no number.
pub fn destination(to: &str) -> anyhow::Result<Destination> {
    let (gateway, rest) = to.strip_prefix("gateway/").map_or((false, to), |rest| (true, rest));
    let (pod, rest) = rest.strip_prefix("pod/").map_or((false, rest), |rest| (true, rest));
    let (place, port) = match rest.rsplit_once(':') {
        Some((place, port)) => (place, port.parse().with_context(|| format!("`{to}` has no port"))?),
        None => (rest, if pod { 8080 } else { 80 }),
    };
    let (name, namespace) = place.split_once('.').unwrap_or((place, HOME));
    Ok(Destination { pod, gateway, namespace: namespace.to_owned(), name: name.to_owned(), port })
}
