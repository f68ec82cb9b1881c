//! What is behind a Service port.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use proto::annotations::EXCLUDE_INBOUND_PORTS;
use proto::ports;
use proto::words::MtlsMode;
use proto::xds::core::HealthStatus;

use super::mtls::Modes;
use super::protocol;
use crate::world::core::{ServicePort, SliceEndpoint};
use crate::world::{Address, Index, Instance, ServiceView, Spec};

/// A port of a Service by number.
pub(super) fn port_of(view: &ServiceView, number: u16) -> Option<&ServicePort> {
    view.service()?.ports.iter().find(|port| port.port == number)
}

/// One endpoint before it is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClusterEndpoint {
    pub address: SocketAddr,
    pub namespace: String,
    pub workload: String,
    pub instance: String,
    pub identity: Option<String>,
    pub health: HealthStatus,
    pub weight: u32,
    pub locality: (String, String),
    /// Its name below a headless Service.
    pub hostname: Option<String>,
}

impl ClusterEndpoint {
    pub(super) fn of(index: &Index, instance: &Instance, address: SocketAddr) -> Self {
        let workload = instance.workload();
        let account = workload.map_or("default", |workload| workload.service_account.as_str());
        // A server that takes plaintext only is spoken to in plaintext: mesh TLS would be bytes like any other to it.
        let plaintext = || Modes::new(index, &instance.namespace, instance.labels()).of(address.port()) == MtlsMode::Disabled;
        let identity = || format!("spiffe://{}/ns/{}/sa/{account}", index.mesh.trust_domain, instance.namespace);
        let health = match (instance.draining, instance.ready) {
            (true, _) => HealthStatus::Draining,
            (false, true) => HealthStatus::Healthy,
            (false, false) => HealthStatus::Unhealthy,
        };
        Self {
            address,
            namespace: instance.namespace.clone(),
            workload: instance.workload.clone(),
            instance: instance.name.clone(),
            identity: (instance.meshed && !plaintext() && !arrives_untouched(instance, address.port())).then(identity),
            health,
            weight: workload.map_or(1, |workload| workload.weight),
            locality: instance.locality.clone(),
            hostname: None,
        }
    }
}

/// Whether a connection to that port goes past the sidecar's inbound side: to the sidecar's own pages, or to a port that its annotation
/// excludes. Nobody takes mesh TLS there.
pub(crate) fn arrives_untouched(instance: &Instance, port: u16) -> bool {
    ports::PAGES.contains(&port) || instance.object.annotated_ports(EXCLUDE_INBOUND_PORTS).contains(&port)
}

/// Everything behind a Service port: the instances it selects, and what EndpointSlices say. Sorted by address, each once.
pub(super) fn targets(index: &Index, view: &ServiceView, port: &ServicePort) -> Vec<ClusterEndpoint> {
    let mut targets = BTreeMap::new();
    let lenient = view.service().is_some_and(|service| service.publish_not_ready);
    let families = view.service().map(|service| service.families).unwrap_or_default();
    let mut add = |mut target: ClusterEndpoint| {
        if lenient && target.health == HealthStatus::Unhealthy {
            target.health = HealthStatus::Healthy;
        }
        targets.entry(target.address).or_insert(target);
    };
    let (namespace, service) = view.name();
    for instance in view.instances.iter().filter_map(|name| index.instances.get(name)) {
        let Some(number) = protocol::target(port, instance) else { continue };
        for address in instance.endpoint_addresses(families) {
            let target = ClusterEndpoint::of(index, instance, SocketAddr::new(address, number));
            add(ClusterEndpoint { hostname: instance.hostname_below(service).map(str::to_owned), ..target });
        }
    }
    for slice in index.slices.get(&(namespace.to_owned(), service.to_owned())).into_iter().flatten() {
        let Spec::EndpointSlice(content) = &slice.spec else { continue };
        let Some(number) = content.ports.get(&port.name) else { continue };
        for endpoint in &content.endpoints {
            let address = SocketAddr::new(endpoint.address, *number);
            let known = known(index, namespace, endpoint);
            // A pod that is not known (yet, or any more) may be of the mesh; what has its address by now is another matter.
            if known.is_none() && endpoint.of_pod && index.in_cluster {
                continue;
            }
            let mut target = known.map_or_else(
                || stranger(namespace, service, endpoint.target.as_deref(), address),
                |known| ClusterEndpoint::of(index, known, address),
            );
            target.hostname.clone_from(&endpoint.hostname);
            if endpoint.terminating {
                target.health = HealthStatus::Draining;
            } else if !endpoint.ready {
                target.health = HealthStatus::Unhealthy;
            }
            add(target);
        }
    }
    targets.into_values().collect()
}

/// The instance behind an endpoint: the pod that it names, else whoever has the address.
pub(super) fn known<'a>(index: &'a Index, namespace: &str, endpoint: &SliceEndpoint) -> Option<&'a Instance> {
    if index.in_cluster && endpoint.of_pod {
        let name = (namespace.to_owned(), endpoint.target.clone()?);
        return index.instances.get(&name).filter(|instance| instance.addresses.contains(&endpoint.address));
    }
    match index.addresses.get(&endpoint.address)? {
        Address::Instance(name) => index.instances.get(name),
        _ => None,
    }
}

/// An address that no Workload declares: plaintext, named after its pod, else its Service.
pub(super) fn stranger(namespace: &str, service: &str, pod: Option<&str>, address: SocketAddr) -> ClusterEndpoint {
    let name = pod.unwrap_or(service).to_owned();
    ClusterEndpoint {
        address,
        namespace: namespace.to_owned(),
        workload: name.clone(),
        instance: name,
        identity: None,
        health: HealthStatus::Healthy,
        weight: 1,
        locality: Default::default(),
        hostname: None,
    }
}
