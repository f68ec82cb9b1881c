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
        Some(kind) if kind.routes_http() => {
            if declared.is_http() {
                declared
            } else {
                Protocol::Http
            }
        }
        Some(_) => Protocol::Tcp,
        None if opaque(index, view, port) => Protocol::Tcp,
        None => declared,
    }
}

/// The ports of a Service that somebody says outright are opaque.
pub(super) fn opaque_ports(index: &Index, view: &ServiceView) -> Vec<u16> {
    let ports = view.service().into_iter().flat_map(|service| &service.ports);
    ports.filter(|port| opaque(index, view, port)).map(|port| port.port).collect()
}

/// Whether a policy or an annotation says outright that a Service port is opaque.
fn opaque(index: &Index, view: &ServiceView, port: &ServicePort) -> bool {
    let (namespace, name) = view.name();
    let backend = attach::Backend { service: (namespace.to_owned(), name.to_owned()), port: port.port };
    if policy::upstream_protocol(index, &backend) == Some(UpstreamProtocol::Tcp) {
        return true;
    }
    let mut own = view.object.annotated_ports(proto::annotations::OPAQUE_PORTS);
    own.extend(namespace_ports(index, namespace));
    let by_target = |instance: &Instance| {
        target(port, instance).is_some_and(|number| own.contains(&number) || instance_opaque(index, instance, number))
    };
    own.contains(&port.port) || view.instances.iter().filter_map(|name| index.instances.get(name)).any(by_target)
}

/// Whether an annotation of an instance or its namespace says that its port is opaque.
fn instance_opaque(index: &Index, instance: &Instance, port: u16) -> bool {
    let opaque = instance.object.annotated_ports(proto::annotations::OPAQUE_PORTS);
    opaque.contains(&port) || namespace_ports(index, &instance.namespace).contains(&port)
}

fn namespace_ports(index: &Index, namespace: &str) -> Vec<u16> {
    let value = index.namespaces.get(namespace).and_then(|view| view.annotations.get(proto::annotations::OPAQUE_PORTS));
    value.into_iter().flat_map(|value| value.split(',')).filter_map(|part| part.trim().parse().ok()).collect()
}

/// What a server's port takes. A consumer's route says what its own callers send: where it is HTTP, a port of bytes finds out by the
/// first ones, so that they and all others are served. A port whose owner says outright that it is opaque stays so: no stranger has its
/// bytes looked at.
pub(super) fn of_server(index: &Index, instance: &Instance, port: u16) -> Protocol {
    let consumed = |(view, front): (&ServiceView, &ServicePort)| {
        let (namespace, name) = view.name();
        attach::consumed_as_http(index, &(namespace.to_owned(), name.to_owned()), front.port)
    };
    let said = || instance_opaque(index, instance, port) || in_front(index, instance, port).any(|(view, front)| opaque(index, view, front));
    match of_instance(index, instance, port) {
        Protocol::Tcp if in_front(index, instance, port).any(consumed) && !said() => Protocol::Auto,
        protocol => protocol,
    }
}

/// What an instance's own port speaks: by its own declaration, else by that of a Service in front of it and its producer's routes.
pub(super) fn of_instance(index: &Index, instance: &Instance, port: u16) -> Protocol {
    if instance_opaque(index, instance, port) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{FileChange, Folder};
    use crate::world::{Allocations, World, WorldSettings};

    /// What the server's port takes while a consumer's HTTPRoute is attached; each text goes where its manifest has a place for it.
    fn takes(namespace: &str, service: &str, workload: &str, more: &str) -> Protocol {
        let text = format!(
            "\
apiVersion: v1
kind: Namespace
metadata: {{name: a, annotations: {{{namespace}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: db, namespace: a, annotations: {{{service}}}}}
spec: {{selector: {{app: db}}, ports: [{{name: tcp, port: 5, targetPort: 50}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: db, namespace: a, labels: {{app: db}}, annotations: {{{workload}}}}}
spec: {{addresses: [10.1.0.1], ports: [{{port: 50}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: x, namespace: b}}
spec: {{parentRefs: [{{group: '', kind: Service, name: db, namespace: a, port: 5}}], rules: [{{}}]}}
---
{more}"
        );
        let change = FileChange { file: "f".to_owned(), text: Some(Ok(text)) };
        let mut world = World::new(WorldSettings::default(), Allocations::default());
        world.apply(Folder::default().update(vec![change], 0));
        let instance = &world.index().instances[&("a".to_owned(), "db".to_owned())];
        of_server(world.index(), instance, 50)
    }

    #[test]
    fn a_consumers_route_opens_no_port_that_is_said_to_be_opaque() {
        // Aim: what a declaration or the producer's TCPRoute makes bytes is found out; what an annotation or a policy calls opaque is not.
        let tcp_route = "apiVersion: gateway.networking.k8s.io/v1\nkind: TCPRoute\nmetadata: {name: own, namespace: a}\n\
                         spec: {parentRefs: [{group: '', kind: Service, name: db}], rules: [{}]}";
        let policy = "apiVersion: meshwright.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: own, namespace: a}\n\
                      spec: {targetRefs: [{group: '', kind: Service, name: db}], upstreamProtocol: Tcp}";
        let opaque = |port: u16| format!("meshwright.dev/opaque-ports: '{port}'");
        assert_eq!(takes("", "", "", ""), Protocol::Auto);
        assert_eq!(takes("", "", "", tcp_route), Protocol::Auto);
        assert_eq!(takes(&opaque(50), "", "", ""), Protocol::Tcp);
        assert_eq!(takes("", &opaque(5), "", ""), Protocol::Tcp);
        assert_eq!(takes("", &opaque(50), "", ""), Protocol::Tcp);
        assert_eq!(takes("", "", &opaque(50), ""), Protocol::Tcp);
        assert_eq!(takes("", "", "", policy), Protocol::Tcp);
    }
}
