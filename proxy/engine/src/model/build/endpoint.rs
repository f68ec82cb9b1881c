//! Endpoints, from Envoy's `ClusterLoadAssignment`, and what outlives their sets.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use proto::identity::Identity;
use proto::names::fact;
use proto::xds::core::{Address, HealthStatus, Locality, SocketAddress, address, socket_address};
use proto::xds::endpoint::cluster_load_assignment::Policy;
use proto::xds::endpoint::lb_endpoint::HostIdentifier;
use proto::xds::endpoint::{ClusterLoadAssignment, Endpoint as RawEndpoint, LbEndpoint, LocalityLbEndpoints};

use super::{metadata, same_name};
use crate::model::{Endpoint, EndpointCell, EndpointLive, EndpointSet, Health};
use crate::rejected::{Wrong, refuse};

/// Most endpoints of one cluster.
const ENDPOINTS_MAX: usize = 100_000;
/// Fewest entries before the registry looks for dead ones.
const PRUNE_FLOOR: usize = 256;

/// An endpoint that has not met its live counters yet.
pub(super) struct EndpointDraft {
    address: SocketAddr,
    weight: u32,
    health: Health,
    identity: Option<Identity>,
    namespace: String,
    workload: String,
    instance: String,
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
        // Where an endpoint lives is a label; what would follow from it is refused.
        let _: &Option<Locality> = locality;
        refuse(load_balancing_weight.is_some(), &format!("endpoints[{index}].load_balancing_weight"))?;
        refuse(*priority != 0, &format!("endpoints[{index}].priority"))?;
        for (inner, endpoint) in lb_endpoints.iter().enumerate() {
            let at = |wrong: Wrong| wrong.within(format!("endpoints[{index}].lb_endpoints[{inner}]"));
            let draft = one(endpoint).map_err(at)?;
            if !seen.insert(draft.address) {
                return Err(at(Wrong::new("endpoint.address", format!("{} is listed twice", draft.address))));
            }
            drafts.push(draft);
        }
    }
    Ok(drafts)
}

fn one(raw: &LbEndpoint) -> Result<EndpointDraft, Wrong> {
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
    })
}

/// An IP address and TCP port.
pub(super) fn socket(raw: Option<&Address>) -> Result<SocketAddr, Wrong> {
    let Some(Address { address: Some(address::Address::SocketAddress(socket)) }) = raw else {
        return Err(Wrong::new("socket_address", "is missing"));
    };
    let SocketAddress { protocol, address, port_specifier } = socket;
    refuse(*protocol != 0, "socket_address.protocol")?;
    let ip: IpAddr = address.parse().map_err(|_| {
        let text = address.escape_debug();
        Wrong::new("socket_address.address", format!("`{text}` is not an IP address"))
    })?;
    let Some(socket_address::PortSpecifier::PortValue(port)) = port_specifier else {
        return Err(Wrong::new("socket_address.port_value", "is missing"));
    };
    let port = u16::try_from(*port).map_err(|_| Wrong::new("socket_address.port_value", format!("{port} is not a port")))?;
    Ok(SocketAddr::new(ip, port))
}

/// What is the same for an endpoint in every set and in every cluster: counters by address, numbers by workload.
#[derive(Debug, Default)]
pub(super) struct LiveEndpoints {
    live: HashMap<SocketAddr, Weak<EndpointLive>>,
    workloads: HashMap<(Arc<str>, Arc<str>), u32>,
    /// Size at which dead entries are looked for.
    prune_at: usize,
}

impl LiveEndpoints {
    /// The set of these endpoints; those that did not change stay the same `Arc`.
    pub(super) fn set(&mut self, drafts: Vec<EndpointDraft>, previous: &EndpointSet) -> EndpointSet {
        let known: HashMap<SocketAddr, &Arc<Endpoint>> =
            previous.ready.iter().chain(&previous.other).map(|endpoint| (endpoint.address, endpoint)).collect();
        let mut ready = Vec::with_capacity(drafts.len());
        let mut other = Vec::new();
        for draft in drafts {
            let endpoint = match known.get(&draft.address) {
                Some(known) if same(known, &draft) => Arc::clone(known),
                _ => Arc::new(self.endpoint(draft)),
            };
            if endpoint.health == Health::Healthy { ready.push(endpoint) } else { other.push(endpoint) }
        }
        EndpointSet::new(ready, other)
    }

    fn endpoint(&mut self, draft: EndpointDraft) -> Endpoint {
        let live = self.live.get(&draft.address).and_then(Weak::upgrade).unwrap_or_default();
        self.live.insert(draft.address, Arc::downgrade(&live));
        let key: (Arc<str>, Arc<str>) = (draft.namespace.into(), draft.workload.into());
        let (namespace, workload) = key.clone();
        let workload_id = *self.workloads.entry(key).or_insert_with(next_workload_id);
        Endpoint {
            address: draft.address,
            weight: draft.weight,
            health: draft.health,
            identity: draft.identity.map(Arc::new),
            namespace,
            workload,
            instance: draft.instance.into(),
            workload_id,
            live,
        }
    }

    /// Forgets addresses and workloads that no cell holds, now and then: the cost is spread over as many changes as entries.
    pub(super) fn prune<'c>(&mut self, cells: impl Iterator<Item = &'c Arc<EndpointCell>>) {
        if self.live.len() + self.workloads.len() < self.prune_at.max(PRUNE_FLOOR) {
            return;
        }
        let mut used = HashSet::new();
        for cell in cells {
            let set = cell.0.load();
            used.extend(set.ready.iter().chain(&set.other).map(|endpoint| endpoint.workload_id));
        }
        self.live.retain(|_, live| live.strong_count() > 0);
        self.workloads.retain(|_, id| used.contains(id));
        self.prune_at = 2 * (self.live.len() + self.workloads.len());
    }
}

fn same(known: &Endpoint, draft: &EndpointDraft) -> bool {
    known.weight == draft.weight
        && known.health == draft.health
        && known.identity.as_deref() == draft.identity.as_ref()
        && *known.namespace == *draft.namespace
        && *known.workload == *draft.workload
        && *known.instance == *draft.instance
}

/// Never given twice in this process, so a metric handle interned under it cannot be another workload's.
fn next_workload_id() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
