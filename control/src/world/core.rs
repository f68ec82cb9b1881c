//! Kubernetes' own kinds: Service, EndpointSlice, Secret, ConfigMap.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::WorldSettings;
use super::door::{Cursor, Fields};
use super::families::Families;
use super::tree::{Node, Value};

/// Most ports, addresses or endpoints of one object; Kubernetes' own bound on an EndpointSlice is 1,000.
const ITEMS_MAX: usize = 1_000;

/// A stable name and address in front of workloads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Service {
    /// Labels of the workloads behind it; empty: its endpoints come from EndpointSlices only.
    pub selector: BTreeMap<String, String>,
    /// `clusterIP: None`: its name leads to the endpoints themselves.
    pub headless: bool,
    /// Addresses its author chose; those outside the mesh's ranges lead nowhere, and are replaced.
    pub cluster_ips: Vec<IpAddr>,
    /// The families it has addresses of.
    pub families: Families,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `type: ExternalName`, which this version cannot serve.
    pub external_name: bool,
    /// Its ports for TCP, which sidecars serve.
    pub ports: Vec<ServicePort>,
    /// Its ports for UDP, which Gateways alone lead to.
    pub datagram_ports: Vec<ServicePort>,
    /// Where it is reached from outside the cluster: what a load balancer gave it, else `externalIPs`.
    pub outside: Vec<Ingress>,
}

/// An address, or a name that has some.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ingress {
    /// An address.
    Address(IpAddr),
    /// A DNS name.
    Name(String),
}

/// One port of a [`Service`].
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    /// Its name; empty where there is only one.
    pub name: String,
    /// The port callers use.
    pub port: u16,
    /// The port of the workload.
    pub target: PortRef,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
}

/// A port by number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRef {
    /// This number.
    Number(u16),
    /// Whatever number the workload gives that name.
    Name(String),
}

impl std::fmt::Display for PortRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl PortRef {
    pub(super) fn read(at: &Cursor<'_>) -> Option<Self> {
        if at.is_text() { at.text().map(Self::Name) } else { at.port().map(Self::Number) }
    }
}

impl Service {
    pub(super) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let single = fields.get("clusterIP");
        let mut listed: Vec<_> = fields.get("clusterIPs").map(|ips| ips.list(2)).unwrap_or_default();
        if listed.is_empty() {
            listed.extend(single);
        }
        let word = |ip: &Cursor<'_>, word: &str| ip.is_text() && ip.text().as_deref() == Some(word);
        let headless = listed.iter().any(|ip| word(ip, "None"));
        let cluster_ips: Vec<IpAddr> = listed.iter().filter(|ip| !word(ip, "None") && !word(ip, "")).filter_map(address).collect();
        let words = [("ClusterIP", false), ("NodePort", false), ("LoadBalancer", false), ("ExternalName", true)];
        let (ports, datagram_ports) = read_ports(&mut fields);
        let service = Self {
            selector: fields.get("selector").map(|selector| selector.text_map()).unwrap_or_default(),
            headless,
            families: Families::read(&mut fields, &cluster_ips),
            cluster_ips,
            publish_not_ready: fields.get("publishNotReadyAddresses").and_then(|flag| flag.flag()).unwrap_or(false),
            external_name: fields.get("type").and_then(|kind| kind.word(&words)).unwrap_or(false),
            ports,
            datagram_ports,
            outside: fields.get("externalIPs").map(|ips| ips.texts(ITEMS_MAX)).into_iter().flatten().map(|ip| Ingress::read(&ip)).collect(),
        };
        if let Some(affinity) = fields.get("sessionAffinity")
            && affinity.text().is_some_and(|affinity| affinity != "None")
        {
            affinity.warn("session affinity is not supported by this version; it has no effect", "remove it");
        }
        if service.external_name {
            fields
                .at()
                .warn("type ExternalName is not supported by this version; the Service has no effect", "call the external name itself");
        }
        fields.ignore(&[
            "sessionAffinityConfig",
            "externalName",
            "externalTrafficPolicy",
            "internalTrafficPolicy",
            "loadBalancerIP",
            "loadBalancerClass",
            "loadBalancerSourceRanges",
            "allocateLoadBalancerNodePorts",
            "healthCheckNodePort",
            "trafficDistribution",
        ]);
        fields.done();
        Some(service)
    }
}

impl Ingress {
    fn read(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Address)
    }
}

impl Service {
    /// Takes over what a load balancer told, in the whole document's status; that goes before what its author wrote.
    pub(super) fn balanced(&mut self, document: &Node) {
        let ingress = ["status", "loadBalancer", "ingress"].iter().try_fold(document, |part, name| part.get(name));
        let Some(Value::List(ingress)) = ingress.map(|ingress| &ingress.value) else { return };
        let told = |one: &Node| ["ip", "hostname"].iter().find_map(|name| one.get(name)?.text()).map(Ingress::read);
        let told: Vec<Ingress> = ingress.iter().take(ITEMS_MAX).filter_map(told).collect();
        if !told.is_empty() {
            self.outside = told;
        }
    }

    /// Chosen addresses that the mesh cannot serve, because nothing leads there from an instance.
    pub(super) fn unserved<'a>(&'a self, settings: &'a WorldSettings) -> impl Iterator<Item = &'a IpAddr> {
        self.cluster_ips.iter().filter(|address| !settings.serve(address))
    }

    /// Whether it needs an address of our own beside what its author chose.
    pub(super) fn wants_address(&self, settings: &WorldSettings) -> bool {
        let served = |v4: bool| self.cluster_ips.iter().any(|address| address.is_ipv4() == v4 && settings.serve(address));
        let wants = |v4: bool| self.families != if v4 { Families::V6 } else { Families::V4 };
        !self.headless && !self.external_name && [true, false].into_iter().any(|v4| wants(v4) && !served(v4))
    }

    /// Its addresses, IPv4 first, given what was allocated for it.
    pub(super) fn addresses(&self, settings: &WorldSettings, given: Option<[IpAddr; 2]>) -> Vec<IpAddr> {
        if self.headless || self.external_name {
            return Vec::new();
        }
        let mut addresses: Vec<IpAddr> = self.cluster_ips.iter().copied().filter(|address| settings.serve(address)).collect();
        for own in given.into_iter().flatten().filter(|own| self.families.has(own)) {
            if !addresses.iter().any(|address| address.is_ipv4() == own.is_ipv4()) {
                addresses.push(own);
            }
        }
        addresses.sort_by_key(IpAddr::is_ipv6);
        addresses
    }
}

/// Ports for TCP, and those for UDP. One number may be both.
fn read_ports(fields: &mut Fields<'_>) -> (Vec<ServicePort>, Vec<ServicePort>) {
    let (mut ports, mut datagrams): (Vec<ServicePort>, Vec<ServicePort>) = Default::default();
    let Some(list) = fields.get("ports") else { return (ports, datagrams) };
    for at in list.list(ITEMS_MAX) {
        let mut port = at.fields();
        let name = port.get("name").and_then(|name| name.text()).unwrap_or_default();
        let number = port.need("port").and_then(|number| number.port());
        let target = port.get("targetPort").and_then(|target| PortRef::read(&target));
        let app_protocol = port.get("appProtocol").and_then(|protocol| protocol.text());
        let protocol = port.get("protocol");
        port.ignore(&["nodePort"]);
        port.done();
        let into = match protocol.as_ref().and_then(Cursor::text).as_deref() {
            None | Some("TCP") => &mut ports,
            Some("UDP") => &mut datagrams,
            Some("SCTP") => {
                at.warn("SCTP is not proxied; this port is left alone", "");
                continue;
            }
            Some(other) => {
                at.unknown(format!("unknown protocol `{other}`"), "one of TCP, UDP, SCTP");
                continue;
            }
        };
        let Some(number) = number else { continue };
        if into.iter().any(|known| known.port == number) {
            at.error(format!("port {number} stands twice"), "give each port its own number");
            continue;
        }
        into.push(ServicePort { name, port: number, target: target.unwrap_or(PortRef::Number(number)), app_protocol });
    }
    (ports, datagrams)
}

fn address(at: &Cursor<'_>) -> Option<IpAddr> {
    let text = at.text()?;
    let parsed = text.parse().ok();
    if parsed.is_none() {
        at.unknown(format!("`{text}` is no IP address"), "");
    }
    parsed
}

/// Endpoints written by hand, or by Kubernetes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointSlice {
    /// The Service they belong to (label `kubernetes.io/service-name`); empty: none.
    pub service: String,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
    /// Port numbers by Service port name.
    pub ports: BTreeMap<String, u16>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceEndpoint {
    /// Its address: all addresses of one endpoint are the same thing, so the first counts.
    pub address: IpAddr,
    /// `conditions.ready`; absent means yes.
    pub ready: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// Name below the Service's, if any.
    pub hostname: Option<String>,
    /// What is behind it, if the slice says so.
    pub target: Option<String>,
    /// Whether that is a Pod.
    pub of_pod: bool,
}

/// The label that ties a slice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl EndpointSlice {
    pub(super) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let mut slice = Self { service: fields.label(SERVICE_NAME).unwrap_or_default(), ..Self::default() };
        if slice.service.is_empty() {
            fields.at().warn(format!("the slice belongs to no Service: it has no label `{SERVICE_NAME}`"), "add the label");
        }
        fields.get("addressType").and_then(|kind| kind.word(&[("IPv4", ()), ("IPv6", ())]));
        for at in fields.get("endpoints").map(|list| list.list(ITEMS_MAX)).unwrap_or_default() {
            slice.endpoints.extend(SliceEndpoint::read(&at));
        }
        for at in fields.get("ports").map(|list| list.list(100)).unwrap_or_default() {
            let mut port = at.fields();
            let name = port.get("name").and_then(|name| name.text()).unwrap_or_default();
            if let Some(number) = port.get("port").and_then(|number| number.port()) {
                slice.ports.insert(name, number);
            }
            port.ignore(&["protocol", "appProtocol"]);
            port.done();
        }
        Some(slice)
    }
}

impl SliceEndpoint {
    fn read(at: &Cursor<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let address = fields.need("addresses").and_then(|list| list.list(100).first().and_then(address));
        let (mut ready, mut terminating) = (true, false);
        if let Some(conditions) = fields.get("conditions") {
            let mut conditions = conditions.fields();
            ready = conditions.get("ready").and_then(|flag| flag.flag()).unwrap_or(true);
            terminating = conditions.get("terminating").and_then(|flag| flag.flag()).unwrap_or(false);
            conditions.ignore(&["serving"]);
            conditions.done();
        }
        let hostname = fields.get("hostname").and_then(|name| name.text());
        let mut of_pod = false;
        let target = fields.get("targetRef").and_then(|target| {
            let mut target = target.fields();
            of_pod = target.get("kind").and_then(|kind| kind.text()).as_deref() == Some("Pod");
            target.ignore(&["namespace", "uid", "apiVersion", "resourceVersion", "fieldPath"]);
            let name = target.get("name").and_then(|name| name.text());
            target.done();
            name
        });
        fields.ignore(&["nodeName", "zone", "hints", "deprecatedTopology"]);
        fields.done();
        Some(Self { address: address?, ready, terminating, hostname, target, of_pod })
    }
}
