//! What a port speaks, as far as its declaration says.

pub(super) use proto::words::Protocol;

use crate::world::core::{PortRef, Service, ServicePort};
use crate::world::{Index, Instance, ServiceView, Spec};

/// Words of `appProtocol` (GEP-1911, Kubernetes' own and Istio's) and of port names up to their first `-`.
const WORDS: [(&str, Protocol); 29] = [
    ("http", Protocol::Http),
    ("http1", Protocol::Http1),
    ("http/1.1", Protocol::Http1),
    ("ws", Protocol::Http1),
    ("kubernetes.io/ws", Protocol::Http1),
    ("http2", Protocol::Http2),
    ("h2c", Protocol::Http2),
    ("kubernetes.io/h2c", Protocol::Http2),
    ("grpc", Protocol::Http2),
    ("grpc-web", Protocol::Http),
    ("tcp", Protocol::Tcp),
    ("tls", Protocol::Tcp),
    ("https", Protocol::Tcp),
    ("wss", Protocol::Tcp),
    ("kubernetes.io/wss", Protocol::Tcp),
    ("mysql", Protocol::Tcp),
    ("postgres", Protocol::Tcp),
    ("postgresql", Protocol::Tcp),
    ("redis", Protocol::Tcp),
    ("mongo", Protocol::Tcp),
    ("mongodb", Protocol::Tcp),
    ("mssql", Protocol::Tcp),
    ("kafka", Protocol::Tcp),
    ("amqp", Protocol::Tcp),
    ("nats", Protocol::Tcp),
    ("memcached", Protocol::Tcp),
    ("smtp", Protocol::Tcp),
    ("ldap", Protocol::Tcp),
    ("ssh", Protocol::Tcp),
];

fn word(text: &str) -> Option<Protocol> {
    WORDS.iter().find(|(word, _)| *word == text).map(|(_, protocol)| *protocol)
}

/// `appProtocol` where it is a word we know, else the port's name, else undeclared.
pub(super) fn declared(app_protocol: Option<&str>, name: &str) -> Protocol {
    let by_name = || word(name).or_else(|| word(name.split('-').next().unwrap_or_default()));
    app_protocol.and_then(|text| word(&text.to_lowercase())).or_else(by_name).unwrap_or(Protocol::Auto)
}

/// Whether an HTTPRoute may lead to a port with this `appProtocol`: none, or one that is HTTP without TLS.
pub(super) fn routable(app_protocol: Option<&str>) -> bool {
    app_protocol.is_none_or(|text| word(&text.to_lowercase()).is_some_and(Protocol::is_http))
}

/// The number of a Service port on one instance.
pub(super) fn target(port: &ServicePort, instance: &Instance) -> Option<u16> {
    match &port.target {
        PortRef::Number(number) => Some(*number),
        PortRef::Name(name) => instance.workload()?.ports.iter().find(|port| port.name == *name).map(|port| port.port),
    }
}

/// Whether an HTTPRoute is attached to a Service port: then it carries HTTP, whatever else says what. A route that only leads there
/// (an edge's, another Service's) says how its own requests travel, and nothing of what others send.
fn routed(index: &Index, view: &ServiceView, port: &ServicePort) -> bool {
    if !routable(port.app_protocol.as_deref()) {
        return false;
    }
    let (namespace, name) = view.name();
    let port = port.port;
    let routes = index.service_routes.get(&(namespace.to_owned(), name.to_owned()));
    let mut parents = routes.into_iter().flatten().flat_map(|route| match &route.spec {
        Spec::HttpRoute(spec) => spec.parents.as_slice(),
        _ => &[],
    });
    parents.any(|parent| parent.is_service() && parent.name == name && parent.port.is_none_or(|known| known == port))
}

/// What a Service port speaks: HTTP where it is routed, bytes where anybody concerned says that it is opaque, else as declared.
pub(super) fn of_service(index: &Index, view: &ServiceView, port: &ServicePort) -> Protocol {
    let declared = declared(port.app_protocol.as_deref(), &port.name);
    if routed(index, view, port) {
        return if declared.is_http() { declared } else { Protocol::Http };
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

/// What an instance's own port speaks: by its own declaration, else by that of a Service in front of it.
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
    let of = |(view, port): (&ServiceView, &ServicePort)| of_service(index, view, port);
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

    #[test]
    fn declarations_are_understood() {
        // Aim: appProtocol first, then the port's name by prefix; what is unknown is watched, not guessed.
        for (app_protocol, name, wanted) in [
            (None, "http", Protocol::Http),
            (None, "http-web", Protocol::Http),
            (None, "https", Protocol::Tcp),
            (None, "grpc-api", Protocol::Http2),
            (None, "grpc-web", Protocol::Http),
            (None, "httpd", Protocol::Auto),
            (None, "", Protocol::Auto),
            (None, "mysql", Protocol::Tcp),
            (Some("kubernetes.io/h2c"), "http", Protocol::Http2),
            (Some("kubernetes.io/ws"), "", Protocol::Http1),
            (Some("HTTP"), "tcp", Protocol::Http),
            (Some("acme.io/quark"), "", Protocol::Auto),
        ] {
            assert_eq!(declared(app_protocol, name), wanted, "{app_protocol:?} {name}");
        }
        assert!(routable(None) && routable(Some("h2c")));
        assert!(!routable(Some("kubernetes.io/wss")) && !routable(Some("acme.io/quark")));
    }
}
