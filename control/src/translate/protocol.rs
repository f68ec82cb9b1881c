//! What a port speaks, as far as declarations and routes say.

pub(super) use proto::words::Protocol;

use super::declared::declared;
use super::{attach, policy};
use crate::world::core::{PortRef, Service, ServicePort};
use crate::world::traffic::UpstreamProtocol;
use crate::world::{Index, Instance, ServiceView};

/// The number of a Service port on one instance.
pub(super) fn target(port: &ServicePort, instance: &Instance) -> Option<u16> {
    match &port.target {
        PortRef::Number(number) => Some(*number),
        PortRef::Name(name) => instance.workload()?.ports.iter().find(|port| port.name == *name).map(|port| port.port),
    }
}

/// What a Service port speaks for callers of one namespace: what the kind of the routes says that they have there (one that only leads
/// there, an edge's or another Service's, says how its own requests travel, and nothing of what others send); bytes where anybody
/// concerned says that it is opaque (a TrafficPolicy too); else as declared.
pub(super) fn of_service(index: &Index, view: &ServiceView, port: &ServicePort, client: &str) -> Protocol {
    let declared = declared(port.app_protocol.as_deref(), &port.name);
    let (namespace, name) = view.name();
    let service = (namespace.to_owned(), name.to_owned());
    match attach::kind_at(index, &service, port.port, client) {
        Some(kind) if kind.routes_http() => return if declared.is_http() { declared } else { Protocol::Http },
        Some(_) => return Protocol::Tcp,
        None => {}
    }
    if policy::upstream_protocol(index, &attach::Backend { service, port: port.port }) == Some(UpstreamProtocol::Tcp) {
        return Protocol::Tcp;
    }
    let opaque = proto::annotations::OPAQUE_PORTS;
    let listed = |ports: &[u16], number| ports.contains(&number);
    let mut own = view.object.annotated_ports(opaque);
    own.extend(namespace_ports(index, view.name().0));
    let by_target = |instance: &Instance| {
        target(port, instance).is_some_and(|number| listed(&own, number) || listed(&instance.object.annotated_ports(opaque), number))
    };
    if listed(&own, port.port) || view.instances.iter().filter_map(|name| index.instances.get(name)).any(by_target) {
        return Protocol::Tcp;
    }
    declared
}

fn namespace_ports(index: &Index, namespace: &str) -> Vec<u16> {
    let value = index.namespaces.get(namespace).and_then(|view| view.annotations.get(proto::annotations::OPAQUE_PORTS));
    value.into_iter().flat_map(|value| value.split(',')).filter_map(|part| part.trim().parse().ok()).collect()
}

/// What a server's port takes. A consumer's route says what its own callers send: where it is HTTP, a port of bytes finds out by the
/// first ones, so that they and all others are served.
pub(super) fn of_server(index: &Index, instance: &Instance, port: u16) -> Protocol {
    let consumed = |(view, front): (&ServiceView, &ServicePort)| {
        let (namespace, name) = view.name();
        attach::consumed_as_http(index, &(namespace.to_owned(), name.to_owned()), front.port)
    };
    match of_instance(index, instance, port) {
        Protocol::Tcp if in_front(index, instance, port).any(consumed) => Protocol::Auto,
        protocol => protocol,
    }
}

/// What an instance's own port speaks: by its own declaration, else by that of a Service in front of it and its producer's routes.
pub(super) fn of_instance(index: &Index, instance: &Instance, port: u16) -> Protocol {
    let opaque = instance.object.annotated_ports(proto::annotations::OPAQUE_PORTS);
    if opaque.contains(&port) || namespace_ports(index, &instance.namespace).contains(&port) {
        return Protocol::Tcp;
    }
    let own = instance.workload().and_then(|workload| workload.ports.iter().find(|known| known.port == port));
    let own = own.map_or(Protocol::Auto, |own| declared(own.app_protocol.as_deref(), &own.name));
    if own != Protocol::Auto {
        return own;
    }
    let of = |(view, port): (&ServiceView, &ServicePort)| of_service(index, view, port, view.name().0);
    in_front(index, instance, port).map(of).find(|protocol| *protocol != Protocol::Auto).unwrap_or(Protocol::Auto)
}

/// The Service ports that lead to an instance's port.
pub(super) fn in_front<'a>(
    index: &'a Index,
    instance: &'a Instance,
    port: u16,
) -> impl Iterator<Item = (&'a ServiceView, &'a ServicePort)> {
    let ports = |view: &'a ServiceView| view.service().map_or(&[][..], |service: &Service| &service.ports);
    let pairs = selecting(index, instance).flat_map(move |view| ports(view).iter().map(move |known| (view, known)));
    pairs.filter(move |(_, known)| target(known, instance) == Some(port))
}

/// The Services that pick an instance.
pub(super) fn selecting<'a>(index: &'a Index, instance: &'a Instance) -> impl Iterator<Item = &'a ServiceView> {
    let names = index.fronts.get(&(instance.namespace.clone(), instance.name.clone()));
    names.into_iter().flatten().filter_map(|name| index.services.get(name))
}
