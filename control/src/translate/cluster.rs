//! Clusters and their endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use proto::names::{self, Mode, SOCKET_MATCH, TLS_MODE_MESH, fact};
use proto::xds::cluster::Cluster;
use proto::xds::cluster::cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy, TransportSocketMatch};
use proto::xds::core::{Address, HealthStatus, Locality, Metadata, SocketAddress, address, socket_address::PortSpecifier};
use proto::xds::endpoint::lb_endpoint::HostIdentifier;
use proto::xds::endpoint::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
use proto::xds::{pack, tls};

use super::attach::{self, Backend};
use super::backend_tls::{self, Upstream};
use super::edge_listeners::{self, Family};
use super::endpoint::stranger;
pub(super) use super::endpoint::{ClusterEndpoint, port_of, targets};
use super::external_backend;
use super::policy::{self, ClusterTraits};
use super::protocol::{self, Protocol};
use super::wire;
use crate::world::external_backend::ExternalBackend;
use crate::world::{Families, Index, Kind, Name};

/// What a cluster stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// The endpoints of a Service port.
    Service(Backend),
    /// The endpoints of a Service port for datagrams.
    Datagrams(Backend),
    /// One instance by its own address: (namespace, instance) and port.
    Instance(Name, u16),
    /// A Gateway's proxy by its own address: (namespace, name) and port.
    Gateway(Name, u16),
}

impl Destination {
    /// Name of the cluster and of its assignment.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Service(backend) => backend.cluster(),
            Self::Datagrams(Backend { service, port }) => names::service_datagrams(&service.0, &service.1, *port),
            Self::Instance(name, port) => names::instance_port(&name.0, &name.1, *port),
            Self::Gateway(name, port) => names::instance_port(&name.0, &format!("gateway/{}", name.1), *port),
        }
    }

    /// What it speaks for callers of one namespace. Where they have a TCPRoute or TLSRoute of their own, its listener knows that bytes
    /// come; whatever else of theirs leads there, an HTTPRoute or an edge, finds what its owners say.
    pub(super) fn protocol(&self, index: &Index, client: &str) -> Protocol {
        match self {
            Self::Service(backend) => {
                if let Some((_, spec)) = backend.outside(index) {
                    return external_backend::protocol(spec);
                }
                let kind = attach::kind_at(index, &backend.service, backend.port, client);
                let client = if kind.is_none_or(Kind::routes_http) { client } else { backend.service.0.as_str() };
                let view = index.services.get(&backend.service);
                let port = view.and_then(|view| port_of(view, backend.port));
                view.zip(port).map_or(Protocol::Auto, |(view, port)| protocol::of_service(index, view, port, client))
            }
            Self::Instance(name, port) => {
                index.instances.get(name).map_or(Protocol::Auto, |instance| protocol::of_instance(index, instance, *port))
            }
            Self::Datagrams(_) => Protocol::Tcp,
            // Whatever else its listeners speak goes by the name that TLS asks for, or is bytes.
            Self::Gateway(name, port) => {
                if edge_listeners::ports(index, name).contains(&(*port, Family::Http)) {
                    Protocol::Http
                } else {
                    Protocol::Tcp
                }
            }
        }
    }

    /// Whether a GRPCRoute leads there: then its application speaks HTTP/2, unless it declares that it does not.
    fn takes_grpc(&self, index: &Index) -> bool {
        matches!(self, Self::Service(backend) if attach::takes_grpc(index, &backend.service, backend.port))
    }

    /// The labels of metrics: namespace and Service (or Workload).
    pub(super) fn labels<'a>(&'a self, index: &'a Index) -> (&'a str, &'a str) {
        match self {
            Self::Service(backend) | Self::Datagrams(backend) => (&backend.service.0, &backend.service.1),
            Self::Instance(name, _) => (&name.0, index.instances.get(name).map_or(name.1.as_str(), |instance| &instance.workload)),
            Self::Gateway(name, _) => (&name.0, &name.1),
        }
    }
}

/// Who calls a cluster, as far as it makes a difference.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Calling {
    /// From which namespace.
    pub namespace: String,
    /// Sidecars, or edges.
    pub mode: Mode,
    /// Whether sessions name its endpoints.
    pub sessions: bool,
    /// The Secret with which an edge proves who it is, if asked.
    pub shows: Option<String>,
}

/// The cluster itself, for whoever calls. It does not depend on the endpoints, which travel at once.
pub(super) fn cluster(index: &Index, destination: &Destination, calling: &Calling) -> Cluster {
    let name = destination.name();
    let service = if let Destination::Service(backend) = destination { Some(backend) } else { None };
    let ClusterTraits { policy, connect, protocol: told } = policy::of_cluster(index, service, calling.sessions);
    // Bytes stay bytes, whatever version of HTTP the other ports of a Service speak.
    let declared = destination.protocol(index, &calling.namespace);
    let protocol = match (told.filter(|_| declared != Protocol::Tcp).unwrap_or(declared), calling.mode) {
        (Protocol::Http2, _) => Protocol::Http2,
        (protocol, Mode::Edge) if protocol != Protocol::Http1 && destination.takes_grpc(index) => Protocol::Http2,
        // From outside the mesh the caller's HTTP version says nothing about the application's (GEP-1911); bytes are no matter of it.
        (_, Mode::Edge) => Protocol::Http1,
        (Protocol::Auto, Mode::Sidecar) => Protocol::Http,
        (declared, Mode::Sidecar) => declared,
    };
    let (namespace, label) = destination.labels(index);
    let matches = sockets(index, destination, calling);
    let outside = service.and_then(|backend| backend.outside(index)).map(|(_, spec)| named(&name, spec));
    let eds = || EdsClusterConfig { eds_config: Some(wire::ads()), service_name: String::new() };
    let discovery = if outside.is_some() { DiscoveryType::StrictDns } else { DiscoveryType::Eds };
    Cluster {
        name: name.clone(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(discovery.into())),
        eds_cluster_config: outside.is_none().then(eds),
        respect_dns_ttl: outside.is_some(),
        load_assignment: outside,
        connect_timeout: prost_types::Duration::try_from(connect).ok(),
        lb_policy: LbPolicy::LeastRequest.into(),
        transport_socket_matches: matches,
        typed_extension_protocol_options: BTreeMap::from([(names::POLICY.to_owned(), pack(&policy))]),
        metadata: Some(wire::facts(&[(fact::NAMESPACE, namespace), (fact::PROTOCOL, protocol.text()), (fact::SERVICE, label)])),
        ..Cluster::default()
    }
}

/// The host outside the mesh whose addresses its proxy finds out.
fn named(cluster: &str, spec: &ExternalBackend) -> ClusterLoadAssignment {
    let address = SocketAddress {
        address: spec.hostname.clone(),
        port_specifier: Some(PortSpecifier::PortValue(spec.port.into())),
        ..SocketAddress::default()
    };
    let address = Some(Address { address: Some(address::Address::SocketAddress(address)) });
    let host = HostIdentifier::Endpoint(Endpoint { address, hostname: String::new() });
    let lb_endpoints = vec![LbEndpoint { host_identifier: Some(host), ..LbEndpoint::default() }];
    let endpoints = vec![LocalityLbEndpoints { lb_endpoints, ..LocalityLbEndpoints::default() }];
    ClusterLoadAssignment { cluster_name: cluster.to_owned(), endpoints, policy: None }
}

/// How endpoints are met: peers of the mesh by mesh TLS, all others in plaintext. As an edge's BackendTLSPolicy wants it applications are
/// spoken to by TLS, inside mesh TLS where they have a sidecar.
fn sockets(index: &Index, destination: &Destination, calling: &Calling) -> Vec<TransportSocketMatch> {
    let mesh = || tls::UpstreamTlsContext {
        common_tls_context: Some(wire::mesh_tls(&index.mesh.trust_domain, wire::mesh_names())),
        sni: String::new(),
    };
    let tls = |context: &tls::UpstreamTlsContext| wire::transport("envoy.transport_sockets.tls", context);
    let upstream = match destination {
        Destination::Service(backend) if calling.mode == Mode::Edge => backend_tls::upstream(index, backend, calling.shows.as_deref()),
        _ => Upstream::Plain,
    };
    let (name, socket) = match &upstream {
        Upstream::Tls(context) => ("tls", tls(context)),
        // No rule leads to one whose policy is broken.
        Upstream::Plain | Upstream::Broken => ("plaintext", wire::plaintext()),
    };
    let peers = TransportSocketMatch {
        name: "mesh".to_owned(),
        r#match: Some(wire::texts(&[TLS_MODE_MESH])),
        transport_socket: Some(tls(&mesh())),
    };
    let others =
        TransportSocketMatch { name: name.to_owned(), r#match: Some(prost_types::Struct::default()), transport_socket: Some(socket) };
    let takes = !matches!(destination, Destination::Datagrams(_));
    takes.then_some(peers).into_iter().chain([others]).collect()
}

/// The endpoints of a destination, grouped by locality. A destination without any is an empty assignment, never a missing one.
pub(super) fn assignment(index: &Index, destination: &Destination) -> ClusterLoadAssignment {
    let targets = match destination {
        Destination::Service(backend) => {
            let view = index.services.get(&backend.service);
            let port = view.and_then(|view| port_of(view, backend.port));
            view.zip(port).map(|(view, port)| targets(index, view, port)).unwrap_or_default()
        }
        Destination::Datagrams(backend) => {
            let view = index.services.get(&backend.service);
            let port = view.and_then(|view| view.service()?.datagram_ports.iter().find(|port| port.port == backend.port));
            let targets = view.zip(port).map(|(view, port)| targets(index, view, port)).unwrap_or_default();
            // A sidecar takes no datagrams: they go to the application as they are.
            targets.into_iter().map(|target| ClusterEndpoint { identity: None, ..target }).collect()
        }
        Destination::Instance(name, port) => {
            let instance = index.instances.get(name);
            let addresses = instance
                .into_iter()
                .flat_map(|instance| instance.endpoint_addresses(Families::Both).map(move |address| (instance, address)));
            // Whoever calls an instance by its address wants that one, ready or not.
            let target = |(instance, address)| ClusterEndpoint {
                health: HealthStatus::Healthy,
                ..ClusterEndpoint::of(index, instance, SocketAddr::new(address, *port))
            };
            addresses.map(target).collect()
        }
        Destination::Gateway(name, port) => {
            let address = index.gateway_addresses.get(name).and_then(|addresses| addresses.first());
            address.map(|address| stranger(&name.0, &name.1, None, SocketAddr::new(*address, *port))).into_iter().collect()
        }
    };
    let mut groups: BTreeMap<(String, String), Vec<LbEndpoint>> = BTreeMap::new();
    for target in targets {
        groups.entry(target.locality.clone()).or_default().push(endpoint(target));
    }
    let group = |((region, zone), lb_endpoints)| LocalityLbEndpoints {
        locality: Some(Locality { region, zone, sub_zone: String::new() }),
        lb_endpoints,
        ..LocalityLbEndpoints::default()
    };
    ClusterLoadAssignment { cluster_name: destination.name(), endpoints: groups.into_iter().map(group).collect(), policy: None }
}

fn endpoint(target: ClusterEndpoint) -> LbEndpoint {
    let mut facts =
        vec![(fact::INSTANCE, target.instance.as_str()), (fact::NAMESPACE, &target.namespace), (fact::WORKLOAD, &target.workload)];
    facts.extend(target.identity.as_deref().map(|identity| (fact::IDENTITY, identity)));
    let Metadata { mut filter_metadata } = wire::facts(&facts);
    if target.identity.is_some() {
        filter_metadata.insert(SOCKET_MATCH.to_owned(), wire::texts(&[TLS_MODE_MESH]));
    }
    let host = Endpoint { address: Some(wire::socket(target.address.ip(), target.address.port())), hostname: String::new() };
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(host)),
        health_status: target.health.into(),
        metadata: Some(Metadata { filter_metadata }),
        load_balancing_weight: Some(target.weight),
    }
}

/// The backends of a set as destinations.
pub(super) fn destinations(backends: BTreeSet<Backend>) -> impl Iterator<Item = Destination> {
    backends.into_iter().map(Destination::Service)
}

#[cfg(test)]
mod tests {
    use super::super::endpoint::known;
    use super::*;
    use crate::source::{FileChange, Folder};
    use crate::world::Address;
    use crate::world::core::SliceEndpoint;
    use crate::world::{Allocations, World, WorldSettings};

    #[test]
    fn mesh_tls_goes_only_where_a_sidecar_takes_it() {
        // Aim: a meshed peer's metrics and health ports, and ports that arrive there untouched, are called in plaintext, by the instance's
        // own address and by a Service alike; all others by mesh TLS.
        let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: a, port: 80, targetPort: 8080}, {name: b, port: 81, targetPort: 15020}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: shop, labels: {app: web}, annotations: {meshwright.dev/exclude-inbound-ports: '22, 9100'}}
spec: {addresses: [10.1.0.1], ports: [{name: a, port: 8080}]}
";
        let change = FileChange { file: "f".to_owned(), text: Some(Ok(text.to_owned())) };
        let mut world = World::new(WorldSettings::default(), Allocations::default());
        world.apply(Folder::default().update(vec![change], 0));
        let name = ("shop".to_owned(), "web".to_owned());
        let instance = |port| Destination::Instance(name.clone(), port);
        let service = |port| Destination::Service(Backend { service: name.clone(), port });
        for (destination, meshed) in [
            (instance(8080), true),
            (instance(15006), true),
            (instance(15020), false),
            (instance(15021), false),
            (instance(22), false),
            (instance(9100), false),
            (service(80), true),
            (service(81), false),
        ] {
            let assignment = assignment(world.index(), &destination);
            let endpoint = &assignment.endpoints[0].lb_endpoints[0];
            let facts = &endpoint.metadata.as_ref().unwrap().filter_metadata;
            assert_eq!(facts[names::METADATA].fields.contains_key("identity"), meshed, "{destination:?}");
            assert_eq!(facts.contains_key("envoy.transport_socket_match"), meshed, "{destination:?}");
        }
    }

    #[test]
    fn nobody_declares_away_a_pods_address() {
        // Aim: whoever may write a Workload in one namespace gets no calls to another's pod: the cluster's word about the address counts, whoever
        // came first and whichever is older; the address is free for the Workload once the pod is gone.
        let workload = "\
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: thief, namespace: a, creationTimestamp: '2020-01-01T00:00:00Z'}
spec: {addresses: [10.1.0.1, 10.9.9.9], ports: [{name: a, port: 8080}]}
";
        let pod = "\
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: b, creationTimestamp: '2026-01-01T00:00:00Z'}
spec: {serviceAccountName: db, containers: [{name: x}]}
status: {podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}], phase: Running}
";
        let file = |name: &str, text: Option<&str>| FileChange { file: name.to_owned(), text: text.map(|text| Ok(text.to_owned())) };
        let (thief, owner) = (("a".to_owned(), "thief".to_owned()), ("b".to_owned(), "db-0".to_owned()));
        let address = "10.1.0.1".parse().unwrap();
        for order in [[("w", workload), ("p", pod)], [("p", pod), ("w", workload)]] {
            let mut world = World::new(WorldSettings { in_cluster: true, ..WorldSettings::default() }, Allocations::default());
            let mut folder = Folder::default();
            for (name, text) in order {
                world.apply(folder.update(vec![file(name, Some(text))], 0));
            }
            let index = world.index();
            assert_eq!(index.addresses.get(&address), Some(&Address::Instance(owner.clone())), "{}", order[0].0);
            let endpoint = SliceEndpoint { address, ready: true, terminating: false, hostname: None, target: None, of_pod: false };
            assert_eq!(known(index, "b", &endpoint).map(|instance| &*instance.name), Some("db-0"));
            let assigned = assignment(index, &Destination::Instance(owner.clone(), 8080));
            assert_eq!(assigned.endpoints.iter().flat_map(|group| &group.lb_endpoints).count(), 1);
            world.apply(folder.update(vec![file("p", None)], 0));
            assert_eq!(world.index().addresses.get(&address), Some(&Address::Instance(thief.clone())));
        }
    }

    #[test]
    fn a_consumers_bytes_are_its_listeners_affair() {
        // Aim: a consumer's TCPRoute leaves its namespace's HTTP callers and edges what the owner declares; the owner's makes bytes of it.
        let speaks = |namespace: &str, client: &str| {
            let text = format!(
                "\
apiVersion: v1
kind: Service
metadata: {{name: api, namespace: a}}
spec: {{selector: {{app: api}}, ports: [{{name: h2c, port: 80}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {{name: own, namespace: {namespace}}}
spec: {{parentRefs: [{{group: '', kind: Service, name: api, namespace: a}}], rules: [{{}}]}}
"
            );
            let change = FileChange { file: "f".to_owned(), text: Some(Ok(text)) };
            let mut world = World::new(WorldSettings::default(), Allocations::default());
            world.apply(Folder::default().update(vec![change], 0));
            let destination = Destination::Service(Backend { service: ("a".to_owned(), "api".to_owned()), port: 80 });
            [Mode::Sidecar, Mode::Edge].map(|mode| {
                let calling = Calling { namespace: client.to_owned(), mode, sessions: false, shows: None };
                let facts = cluster(world.index(), &destination, &calling).metadata.unwrap().filter_metadata;
                format!("{:?}", facts[names::METADATA].fields[fact::PROTOCOL].kind)
            })
        };
        let said = |word: &str| format!("{:?}", Some(prost_types::value::Kind::StringValue(word.to_owned())));
        let h2 = [said(Protocol::Http2.text()), said(Protocol::Http2.text())];
        assert_eq!((speaks("b", "b"), speaks("b", "a"), speaks("b", "c")), (h2.clone(), h2.clone(), h2));
        assert_eq!(speaks("a", "b")[0], said(Protocol::Tcp.text()));
    }
}
