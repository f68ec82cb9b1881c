//! What the node agent (`meshwright up`) starts: instances, Gateways, relays, and what instances outside the mesh see of Services.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use prost::Message;
use proto::annotations as word;
use proto::mesh::{
    EnvVar, ExecProbe, GatewayOrder, HttpProbe, InstanceOrder, NamedAddress, NodeOrder, Probe, VirtualPort, VirtualService, probe,
};
use proto::xds::core::HealthStatus;

use super::cluster::targets;
use super::edge::client;
use super::edge_listeners::{self, Family};
use super::{attach, collectors, dns};
use crate::world::core::ServicePort;
use crate::world::workload::{ProbeKind, Workload};
use crate::world::{Index, Instance, Name, ServiceView, World};

/// What the node agent should run now; the epoch's number is the caller's to fill in.
pub fn node_order(world: &World) -> NodeOrder {
    let index = world.index();
    let started = index.instances.values().filter(|instance| instance.workload().is_some_and(|workload| !workload.command.is_empty()));
    NodeOrder {
        instances: started.filter_map(|instance| instance_order(world, instance)).collect(),
        gateways: gateways(world),
        relays: collectors::relays(world),
        services: index.services.values().filter_map(|view| virtual_service(index, view)).collect(),
        epoch: 0,
        synced: world.synced(),
    }
}

/// What stands for an instance's order in the node agent's report; `None`: it cannot be started, because no address is left.
pub fn instance_fingerprint(world: &World, instance: &Instance) -> Option<String> {
    instance_order(world, instance).map(|order| order.fingerprint)
}

/// The ports that a Gateway of ours serves; whether for datagrams, which HTTP/3 comes in.
pub fn gateway_ports(world: &World, name: &Name) -> BTreeSet<(u16, bool)> {
    let listened = edge_listeners::ports(world.index(), name).into_iter().map(|(port, family)| (port, family == Family::Udp));
    listened.chain(client::http3_ports(world.index(), name).into_iter().map(|port| (port, true))).collect()
}

fn gateways(world: &World) -> Vec<GatewayOrder> {
    let index = world.index();
    let mut orders = Vec::new();
    for (name, object) in index.gateways.iter() {
        let ports = gateway_ports(world, name);
        let scheme = |family: &Family| match family {
            Family::Http => "http",
            Family::Tls => "https",
            Family::Tcp | Family::Udp => "tcp",
        };
        let streams = edge_listeners::ports(index, name).into_iter().filter(|(_, family)| *family != Family::Udp);
        let of = |udp: bool| ports.iter().filter(|(_, datagrams)| *datagrams == udp).map(|(port, _)| u32::from(*port)).collect();
        let addresses = index.gateway_addresses.get(name).map_or(&[][..], Vec::as_slice);
        let bind = attach::gateway(object).into_iter().flat_map(|gateway| &gateway.addresses).map(|(_, value)| value.clone());
        let mut order = GatewayOrder {
            namespace: name.0.clone(),
            name: name.1.clone(),
            ports: of(false),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            fingerprint: String::new(),
            udp_ports: of(true),
            bind: bind.collect(),
            schemes: streams.map(|(_, family)| scheme(&family).to_owned()).collect(),
            ending: None,
        };
        if ports.is_empty() || order.addresses.is_empty() {
            continue;
        }
        order.fingerprint = proto::epoch::version(&order.encode_to_vec());
        // It is followed while the proxy runs.
        order.ending = client::ending(index, name).and_then(|ending| prost_types::Duration::try_from(ending).ok());
        orders.push(order);
    }
    orders
}

fn instance_order(world: &World, instance: &Instance) -> Option<InstanceOrder> {
    let workload = instance.workload()?;
    let object = &instance.object;
    if instance.addresses.is_empty() {
        // A range is full: without an address there is nothing to start. `World::problems` says so.
        return None;
    }
    let folder = &world.settings().folder;
    let working_dir = workload.working_dir.as_ref().map_or_else(|| folder.clone(), |dir| folder.join(dir));
    let ports = |name| object.annotated_ports(name).into_iter().map(u32::from).collect();
    let cidrs = object.annotation(word::EXCLUDE_OUTBOUND_CIDRS).into_iter().flat_map(|value| value.split(','));
    let cidrs = cidrs.map(str::trim).filter(|cidr| cidr.parse::<ipnet::IpNet>().is_ok());
    let mut order = InstanceOrder {
        namespace: instance.namespace.clone(),
        workload: instance.workload.clone(),
        instance: instance.name.clone(),
        meshed: instance.meshed,
        service_account: workload.service_account.clone(),
        command: workload.command.clone(),
        env: workload.env.iter().map(|(name, value)| EnvVar { name: name.clone(), value: value.clone() }).collect(),
        working_dir: working_dir.to_string_lossy().into_owned(),
        ports: workload.ports.iter().map(|port| u32::from(port.port)).collect(),
        readiness: Some(readiness(workload)),
        addresses: instance.addresses.iter().map(ToString::to_string).collect(),
        exclude_outbound_ports: ports(word::EXCLUDE_OUTBOUND_PORTS),
        exclude_inbound_ports: ports(word::EXCLUDE_INBOUND_PORTS),
        exclude_outbound_cidrs: cidrs.map(str::to_owned).collect(),
        log_level: object.annotation(word::LOG_LEVEL).unwrap_or_default().to_owned(),
        fingerprint: String::new(),
        labels: object.metadata.labels.clone(),
    };
    // As with a pod's template: any change of what was ordered is a restart.
    order.fingerprint = proto::epoch::version(&order.encode_to_vec());
    Some(order)
}

fn readiness(workload: &Workload) -> Probe {
    let Some(told) = &workload.readiness else {
        // The default asks often: it is what `up` waits for.
        return Probe { kind: None, period_secs: 1, timeout_secs: 1, failure_threshold: 3, initial_delay_secs: 0 };
    };
    let kind = match &told.kind {
        ProbeKind::Default => None,
        ProbeKind::Http { path, port } => Some(probe::Kind::Http(HttpProbe { path: path.clone(), port: (*port).into() })),
        ProbeKind::Tcp(port) => Some(probe::Kind::TcpPort((*port).into())),
        ProbeKind::Exec(command) => Some(probe::Kind::Exec(ExecProbe { command: command.clone() })),
    };
    Probe {
        kind,
        period_secs: told.period_secs,
        timeout_secs: told.timeout_secs,
        failure_threshold: told.failure_threshold,
        initial_delay_secs: told.initial_delay_secs,
    }
}

fn virtual_service(index: &Index, view: &ServiceView) -> Option<VirtualService> {
    let content = view.service()?;
    let service = dns::service(index, view)?;
    let ready = |port: &ServicePort| {
        let mut endpoints = Vec::new();
        for target in targets(index, view, port).into_iter().filter(|target| target.health == HealthStatus::Healthy) {
            let number = target.address.port();
            endpoints.extend(dns::both_families(index, &target).into_iter().map(|address| SocketAddr::new(address, number).to_string()));
        }
        endpoints
    };
    let port = |port: &ServicePort| VirtualPort { port: port.port.into(), endpoints: ready(port), name: port.name.clone() };
    let endpoint = |endpoint: engine::dns::NamedEndpoint| NamedAddress {
        hostname: endpoint.hostname.unwrap_or_default(),
        address: endpoint.address.to_string(),
    };
    Some(VirtualService {
        ports: content.ports.iter().map(port).collect(),
        addresses: service.addresses.iter().map(ToString::to_string).collect(),
        endpoints: service.endpoints.into_iter().map(endpoint).collect(),
        namespace: service.namespace,
        name: service.name,
    })
}
