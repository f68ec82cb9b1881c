//! Endpoints, from Envoy's `ClusterLoadAssignment`, and what is the same in all their sets.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proto::identity::Identity;
use proto::names::fact;
use proto::xds::core::socket_address::Protocol as Transport;
use proto::xds::core::{Address, HealthStatus, Locality as RawLocality, SocketAddress, address, socket_address};
use proto::xds::endpoint::cluster_load_assignment::Policy;
use proto::xds::endpoint::lb_endpoint::HostIdentifier;
use proto::xds::endpoint::{ClusterLoadAssignment, Endpoint as RawEndpoint, LbEndpoint, LocalityLbEndpoints};

use super::{metadata, same_name};
use crate::model::{EndpointFacts, Health, Locality, OutsideName, next_workload_id};
use crate::raw::is_name;
use crate::rejected::{Wrong, refuse};

/// Most endpoints of one cluster.
const ENDPOINTS_MAX: usize = 100_000;
/// Fewest entries before the registry looks for dead ones.
const PRUNE_FLOOR: usize = 256;

/// An endpoint of an assignment.
pub(super) struct EndpointDraft {
    address: SocketAddr,
    weight: u32,
    health: Health,
    identity: Option<Identity>,
    namespace: String,
    workload: String,
    instance: String,
    locality: Locality,
}

pub(super) fn compile(name: &str, raw: &ClusterLoadAssignment) -> Result<Vec<EndpointDraft>, Wrong> {
    let ClusterLoadAssignment { cluster_name, endpoints: groups, policy } = raw;
    same_name(name, cluster_name, "cluster_name")?;
    if let Some(Policy { overprovisioning_factor }) = policy {
        refuse(overprovisioning_factor.is_some(), "policy.overprovisioning_factor")?;
    }
    if groups.iter().map(|group| group.lb_endpoints.len()).sum::<usize>() > ENDPOINTS_MAX {
        return Err(Wrong::new("endpoints", format!("holds more than {ENDPOINTS_MAX} endpoints")));
    }
    let mut drafts = Vec::new();
    let mut seen = HashSet::new();
    for (index, group) in groups.iter().enumerate() {
        let LocalityLbEndpoints { locality, lb_endpoints, load_balancing_weight, priority } = group;
        // What would follow from a locality by itself is refused; who prefers which is said by the cluster.
        let locality = locality.as_ref().map(whereabouts).unwrap_or_default();
        refuse(load_balancing_weight.is_some(), &format!("endpoints[{index}].load_balancing_weight"))?;
        refuse(*priority != 0, &format!("endpoints[{index}].priority"))?;
        for (inner, endpoint) in lb_endpoints.iter().enumerate() {
            let at = |wrong: Wrong| wrong.within(format!("endpoints[{index}].lb_endpoints[{inner}]"));
            let draft = one(endpoint, &locality).map_err(at)?;
            if !seen.insert(draft.address) {
                return Err(at(Wrong::new("endpoint.address", format!("{} is listed twice", draft.address))));
            }
            drafts.push(draft);
        }
    }
    Ok(drafts)
}

/// Sub-zones are a label.
fn whereabouts(RawLocality { region, zone, sub_zone: _ }: &RawLocality) -> Locality {
    Locality { region: region.as_str().into(), zone: zone.as_str().into() }
}

fn one(raw: &LbEndpoint, locality: &Locality) -> Result<EndpointDraft, Wrong> {
    let LbEndpoint { host_identifier, health_status, metadata: facts, load_balancing_weight } = raw;
    let Some(HostIdentifier::Endpoint(RawEndpoint { address, hostname })) = host_identifier else {
        return Err(Wrong::new("endpoint", "is missing"));
    };
    refuse(!hostname.is_empty(), "endpoint.hostname")?;
    let address = socket(address.as_ref()).map_err(|wrong| wrong.within("endpoint.address"))?;
    if address.port() == 0 {
        return Err(Wrong::new("endpoint.address", "port 0"));
    }
    let health = match HealthStatus::try_from(*health_status) {
        Ok(HealthStatus::Healthy | HealthStatus::Unknown) => Health::Healthy,
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) => Health::Unhealthy,
        Ok(HealthStatus::Draining) => Health::Draining,
        Ok(HealthStatus::Degraded) => return Err(Wrong::unsupported("health_status DEGRADED")),
        Err(_) => return Err(Wrong::new("health_status", format!("unknown value {health_status}"))),
    };
    let weight = load_balancing_weight.unwrap_or(1);
    if weight == 0 {
        return Err(Wrong::new("load_balancing_weight", "must be at least 1"));
    }
    let facts = facts.as_ref();
    let mesh = metadata::only_of_endpoint(facts, &[fact::NAMESPACE, fact::WORKLOAD, fact::INSTANCE, fact::IDENTITY])?;
    let identity = metadata::text(facts, fact::IDENTITY)?.filter(|text| !text.is_empty());
    let identity = identity.map(str::parse).transpose();
    let identity = identity.map_err(|error: proto::identity::NotAnIdentity| Wrong::new("metadata.identity", error.to_string()))?;
    if mesh && identity.is_none() {
        return Err(Wrong::new("metadata.identity", "is missing for an endpoint that is to be met by mesh TLS"));
    }
    Ok(EndpointDraft {
        address,
        weight,
        health,
        identity,
        namespace: metadata::text_or_empty(facts, fact::NAMESPACE)?.to_owned(),
        workload: metadata::text_or_empty(facts, fact::WORKLOAD)?.to_owned(),
        instance: metadata::text_or_empty(facts, fact::INSTANCE)?.to_owned(),
        locality: locality.clone(),
    })
}

/// The one host that an assignment names, in place of addresses.
pub(super) fn outside(name: &str, raw: &ClusterLoadAssignment) -> Result<OutsideName, Wrong> {
    let ClusterLoadAssignment { cluster_name, endpoints: groups, policy } = raw;
    same_name(name, cluster_name, "cluster_name")?;
    refuse(policy.is_some(), "policy")?;
    let [LocalityLbEndpoints { locality, lb_endpoints, load_balancing_weight, priority }] = groups.as_slice() else {
        return Err(Wrong::new("endpoints", format!("holds {} groups, not one", groups.len())));
    };
    refuse(locality.is_some(), "endpoints[0].locality")?;
    refuse(load_balancing_weight.is_some(), "endpoints[0].load_balancing_weight")?;
    refuse(*priority != 0, "endpoints[0].priority")?;
    let [LbEndpoint { host_identifier, health_status, metadata, load_balancing_weight }] = lb_endpoints.as_slice() else {
        return Err(Wrong::new("endpoints[0].lb_endpoints", format!("holds {} hosts, not one", lb_endpoints.len())));
    };
    let at = |wrong: Wrong| wrong.within("endpoints[0].lb_endpoints[0]");
    refuse(*health_status != 0, "health_status").map_err(at)?;
    refuse(metadata.is_some(), "metadata").map_err(at)?;
    refuse(load_balancing_weight.is_some(), "load_balancing_weight").map_err(at)?;
    let Some(HostIdentifier::Endpoint(RawEndpoint { address, hostname })) = host_identifier else {
        return Err(at(Wrong::new("endpoint", "is missing")));
    };
    refuse(!hostname.is_empty(), "endpoint.hostname").map_err(at)?;
    let (host, port) = host_port(address.as_ref(), Transport::Tcp).map_err(|wrong| at(wrong.within("endpoint.address")))?;
    if !is_name(host) || port == 0 {
        let why = format!("`{}:{port}` is no name with a port", host.escape_debug());
        return Err(at(Wrong::new("endpoint.address.socket_address.address", why)));
    }
    Ok(OutsideName { host: host.to_ascii_lowercase().into(), port })
}

/// An IP address and TCP port.
pub(super) fn socket(raw: Option<&Address>) -> Result<SocketAddr, Wrong> {
    socket_of(raw, Transport::Tcp)
}

/// The port of an address that is every address of the machine, of datagrams.
pub(super) fn datagram_port(raw: Option<&Address>) -> Result<u16, Wrong> {
    let address = socket_of(raw, Transport::Udp)?;
    if !address.ip().is_unspecified() {
        return Err(Wrong::new("socket_address.address", format!("{} is not every address", address.ip())));
    }
    Ok(address.port())
}

fn socket_of(raw: Option<&Address>, transport: Transport) -> Result<SocketAddr, Wrong> {
    let (address, port) = host_port(raw, transport)?;
    let ip: IpAddr = address.parse().map_err(|_| {
        let text = address.escape_debug();
        Wrong::new("socket_address.address", format!("`{text}` is not an IP address"))
    })?;
    Ok(SocketAddr::new(ip, port))
}

fn host_port(raw: Option<&Address>, transport: Transport) -> Result<(&str, u16), Wrong> {
    let Some(Address { address: Some(address::Address::SocketAddress(socket)) }) = raw else {
        return Err(Wrong::new("socket_address", "is missing"));
    };
    let SocketAddress { protocol, address, port_specifier } = socket;
    if Transport::try_from(*protocol) != Ok(transport) {
        return Err(Wrong::new("socket_address.protocol", format!("must be {}", transport.as_str_name())));
    }
    let Some(socket_address::PortSpecifier::PortValue(port)) = port_specifier else {
        return Err(Wrong::new("socket_address.port_value", "is missing"));
    };
    let port = u16::try_from(*port).map_err(|_| Wrong::new("socket_address.port_value", format!("{port} is not a port")))?;
    Ok((address, port))
}

/// What is the same for an endpoint in every cluster: names, of which there is one copy, and numbers by workload.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    numbers: HashMap<(Arc<str>, Arc<str>), u32>,
    /// Size at which dead entries are looked for.
    prune_at: usize,
}

impl Workloads {
    /// Endpoints as every cluster that wants them lists them.
    pub(super) fn facts(&mut self, drafts: Vec<EndpointDraft>) -> Arc<[EndpointFacts]> {
        drafts.into_iter().map(|draft| self.one(draft)).collect()
    }

    fn one(&mut self, draft: EndpointDraft) -> EndpointFacts {
        let EndpointDraft { address, weight, health, identity, namespace, workload, instance, locality } = draft;
        let key: (Arc<str>, Arc<str>) = (namespace.into(), workload.into());
        let (namespace, workload, workload_id) = match self.numbers.get_key_value(&key) {
            Some(((namespace, workload), number)) => (namespace.clone(), workload.clone(), *number),
            None => {
                let number = next_workload_id();
                self.numbers.insert(key.clone(), number);
                (key.0, key.1, number)
            }
        };
        let (identity, instance) = (identity.map(Arc::new), instance.into());
        EndpointFacts { address, weight, health, identity, namespace, workload, instance, workload_id, locality }
    }

    /// Forgets workloads that no list holds, now and then: the cost is spread over as many changes as entries.
    pub(super) fn prune<'l>(&mut self, lists: impl Iterator<Item = &'l Arc<[EndpointFacts]>>) {
        if self.numbers.len() < self.prune_at.max(PRUNE_FLOOR) {
            return;
        }
        let used: HashSet<u32> = lists.flat_map(|list| list.iter()).map(|facts| facts.workload_id).collect();
        self.numbers.retain(|_, number| used.contains(number));
        self.prune_at = 2 * self.numbers.len();
    }
}
