//! Which routes attach to what, and which backends they may lead to: the one place that decides, for what proxies run and for what
//! status says alike. Gateway API's rules, see `gateway-api.md` 1.3 to 1.8 and 4.3.5 to 4.3.7, 4.3.16, 4.3.17.

use std::collections::BTreeSet;
use std::sync::Arc;

use proto::names;
use proto::words::Protocol;

use super::declared::{declared, encrypted, routable};
use super::external_backend;
use super::judged::{self, Judged};
pub(super) use super::refusal::{WhyNot, content, gateway};
use super::tls_policy;
use crate::world::external_backend::ExternalBackend;
use crate::world::key::CORE;
use crate::world::route::{BackendRef, ParentRef, Reference, Rule};
use crate::world::{Index, Kind, Name, Object, ObjectKey, ServiceView};

/// What became of one parent reference.
#[derive(Clone, Debug)]
pub(super) enum Attachment {
    /// Another controller's.
    Foreign,
    /// Not attached.
    Refused(WhyNot),
    /// Attached to these listeners of a Gateway (by their places in [`judged::listeners`]), with these hosts (`*`: any).
    Gateway(Name, Vec<(usize, Vec<String>)>),
    /// Attached to these ports of a Service; other ports are those of routes of a kind that goes first.
    Service(Name, Vec<u16>, Vec<(u16, ObjectKey)>),
}

/// The Gateway that a route's parent leads to, where it is a Gateway or a ListenerSet.
pub(super) fn leads_to_gateway(index: &Index, route: &ObjectKey, parent: &ParentRef) -> Option<Name> {
    let name = (parent.namespace.clone().unwrap_or_else(|| route.namespace.clone()), parent.name.clone());
    if parent.is_gateway() {
        return Some(name);
    }
    let set = index.listener_sets.get(&name).filter(|_| parent.is_listener_set())?;
    judged::set(set)?.parent(&name.0)
}

/// Whether a route names a Gateway as a parent, or a ListenerSet of it, attached or not.
pub(super) fn names_gateway(index: &Index, route: &Object, gateway: &Name) -> bool {
    let mut parents = content(route).into_iter().flat_map(|spec| &spec.parents);
    parents.any(|parent| leads_to_gateway(index, &route.key, parent).as_ref() == Some(gateway))
}

/// Judges one parent reference of a route.
pub(super) fn standing(index: &Index, route: &Object, parent: &ParentRef) -> Attachment {
    standing_at(index, route, parent, None)
}

/// The same, where the listeners of a Gateway have been judged already.
pub(super) fn standing_at(index: &Index, route: &Object, parent: &ParentRef, known: Option<(&Name, &[Judged<'_>])>) -> Attachment {
    let namespace = parent.namespace.clone().unwrap_or_else(|| route.key.namespace.clone());
    let name = (namespace, parent.name.clone());
    if parent.is_gateway() || parent.is_listener_set() {
        return to_gateway(index, route, parent, name, known);
    }
    if parent.is_service() {
        return to_service(index, route, parent, name);
    }
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    let message = if kind == "Service" {
        format!("a parent of kind Service is of group \"\"; of group {} there is none", parent.group())
    } else {
        format!("parents of kind {kind} are not supported by this version")
    };
    Attachment::Refused(WhyNot::new("NoMatchingParent", message))
}

/// The Gateway that a parent stands for, and what has the listeners that it means.
fn parent_of(index: &Index, parent: &ParentRef, name: &Name) -> Result<(Name, ObjectKey), Attachment> {
    let missing =
        |kind: Kind, name: &Name| Attachment::Refused(WhyNot::new("NoMatchingParent", format!("there is no {kind} {}/{}", name.0, name.1)));
    let mut found = (name.clone(), ObjectKey::new(Kind::Gateway, &name.0, &name.1));
    if parent.is_listener_set() {
        let Some(set) = index.listener_sets.get(name) else { return Err(missing(Kind::ListenerSet, name)) };
        let Some(gateway) = judged::set(set).and_then(|set| set.parent(&name.0)) else { return Err(Attachment::Foreign) };
        found = (gateway, set.key.clone());
    }
    let Some(gateway) = index.gateways.get(&found.0) else {
        return Err(if index.foreign_gateways.contains(&found.0) { Attachment::Foreign } else { missing(Kind::Gateway, &found.0) });
    };
    if let Some(set) = index.listener_sets.get(name).filter(|set| set.key == found.1)
        && let Some(refusal) = judged::set_refused(index, gateway, set)
    {
        let message = format!("{} is not attached: {}", set.key, refusal.message);
        return Err(Attachment::Refused(WhyNot::new("NoMatchingParent", message)));
    }
    Ok(found)
}

fn to_gateway(index: &Index, route: &Object, parent: &ParentRef, name: Name, known: Option<(&Name, &[Judged<'_>])>) -> Attachment {
    let (gateway, owner) = match parent_of(index, parent, &name) {
        Ok(found) => found,
        Err(attachment) => return attachment,
    };
    let Some(spec) = content(route) else { return Attachment::Foreign };
    let judged = if known.is_none_or(|(name, _)| *name != gateway) { judged::listeners(index, &gateway) } else { Vec::new() };
    let judged = known.filter(|(name, _)| **name == gateway).map_or(judged.as_slice(), |(_, listeners)| listeners);
    let wanted = |judged: &Judged<'_>| {
        judged.owner.key == owner
            && parent.section.as_ref().is_none_or(|section| *section == judged.listener.name)
            && parent.port.is_none_or(|port| port == judged.listener.port)
    };
    let mut chosen: Vec<_> = judged.iter().enumerate().filter(|(_, judged)| wanted(judged)).collect();
    if chosen.is_empty() {
        let message = format!("{owner} has no such listener");
        return Attachment::Refused(WhyNot::new("NoMatchingParent", message));
    }
    chosen.retain(|(_, judged)| {
        let admitted = || judged::admits(index, &owner.namespace, &judged.listener.from, &route.key.namespace);
        judged.kinds.contains(&route.key.kind) && judged.refused.is_none() && admitted()
    });
    if chosen.is_empty() {
        return Attachment::Refused(WhyNot::new("NotAllowedByListeners", "no listener takes routes of this kind from this namespace"));
    }
    let attached: Vec<_> = chosen
        .into_iter()
        .map(|(place, judged)| (place, hosts(&spec.hostnames, judged.listener.hostname.as_deref())))
        .filter(|(_, hosts)| !hosts.is_empty())
        .collect();
    if attached.is_empty() {
        return Attachment::Refused(WhyNot::new("NoMatchingListenerHostname", "none of its hostnames is one of a listener's"));
    }
    Attachment::Gateway(gateway, attached)
}

fn to_service(index: &Index, route: &Object, parent: &ParentRef, name: Name) -> Attachment {
    let ports = match service_ports(index, route.key.kind, parent, &name) {
        Ok(ports) => ports,
        Err(refusal) => return Attachment::Refused(refusal),
    };
    let (mut own, mut lost) = (Vec::new(), Vec::new());
    for port in ports {
        match stronger(index, route, &name, port) {
            Some(winner) => lost.push((port, winner.clone())),
            None => own.push(port),
        }
    }
    match lost.first() {
        Some((port, winner)) if own.is_empty() => {
            let message = format!("{winner} has port {port} of Service {}/{}: {}s go first", name.0, name.1, winner.kind);
            Attachment::Refused(WhyNot::new("Conflicted", message))
        }
        _ => Attachment::Service(name, own, lost),
    }
}

/// Which ports routes of stronger kinds have.
pub(super) fn told(lost: &[(u16, ObjectKey)]) -> String {
    lost.iter().map(|(port, winner)| format!("{winner} has port {port}, and goes first there")).collect::<Vec<_>>().join("; ")
}

/// The ports of a Service that a parent reference means, and that a route of that kind can treat.
fn service_ports(index: &Index, kind: Kind, parent: &ParentRef, name: &Name) -> Result<Vec<u16>, WhyNot> {
    let Some(service) = index.services.get(name).and_then(ServiceView::service) else {
        return Err(WhyNot::new("NoMatchingParent", format!("there is no Service {}/{}", name.0, name.1)));
    };
    if kind == Kind::UDPRoute {
        return Err(WhyNot::new("UnsupportedValue", "datagrams to a Service are not led: a UDPRoute has a Gateway as its parent"));
    }
    if service.headless || service.external_name {
        let message = "a Service without an address of its own carries no routes";
        return Err(WhyNot::new("UnsupportedValue", message));
    }
    let wanted = service.ports.iter().filter(|port| {
        parent.section.as_ref().is_none_or(|section| *section == port.name) && parent.port.is_none_or(|number| number == port.port)
    });
    let wanted: Vec<_> = wanted.collect();
    if wanted.is_empty() {
        return Err(WhyNot::new("NoMatchingParent", format!("Service {}/{} has no such port", name.0, name.1)));
    }
    let ports: Vec<u16> = wanted.iter().filter(|port| leads(kind, port.app_protocol.as_deref())).map(|port| port.port).collect();
    if ports.is_empty() {
        return Err(WhyNot::new("UnsupportedValue", format!("the port's appProtocol is none that {} {kind} can carry", article(kind))));
    }
    Ok(ports)
}

fn article(kind: Kind) -> &'static str {
    if kind == Kind::HTTPRoute { "an" } else { "a" }
}

/// Whether a route of that kind can lead to a port that declares this `appProtocol`. Bytes are bytes, whatever they say.
fn leads(kind: Kind, app_protocol: Option<&str>) -> bool {
    let old = || declared(app_protocol, "") == Protocol::Http1;
    !kind.routes_http() || routable(app_protocol) && !(kind == Kind::GRPCRoute && old())
}

/// Where several kinds of routes meet at a Service port, the first of these has it (`gateway-api.md` 1.8).
const STRENGTH: [Kind; 4] = [Kind::GRPCRoute, Kind::HTTPRoute, Kind::TLSRoute, Kind::TCPRoute];

fn weakness(kind: Kind) -> usize {
    STRENGTH.iter().position(|known| *known == kind).unwrap_or(STRENGTH.len())
}

/// Whether anything is left of a route that could serve a request.
fn serves(route: &Object) -> bool {
    content(route).is_some_and(|spec| spec.rules.iter().any(|rule| rule.unmatchable.is_empty() || !rule.matches.is_empty()))
}

/// Whether a route asks for a port of a Service, and could have it.
fn asks_for(index: &Index, route: &Object, service: &Name, port: u16) -> bool {
    let means = |parent: &&ParentRef| {
        parent.is_service() && parent.name == service.1 && *parent.namespace.as_ref().unwrap_or(&route.key.namespace) == service.0
    };
    let mut parents = content(route).into_iter().flat_map(|spec| &spec.parents).filter(means);
    serves(route) && parents.any(|parent| service_ports(index, route.key.kind, parent, service).is_ok_and(|ports| ports.contains(&port)))
}

/// The route that has a Service port because its kind goes before that of `route`. Producers and consumers are no rivals.
fn stronger<'a>(index: &'a Index, route: &Object, service: &Name, port: u16) -> Option<&'a ObjectKey> {
    let own = weakness(route.key.kind);
    let rivals = index.service_routes.get(service).into_iter().flatten();
    rivals
        .filter(|rival| {
            rival.key.namespace == route.key.namespace && weakness(rival.key.kind) < own && asks_for(index, rival, service, port)
        })
        .map(|rival| &rival.key)
        .min_by_key(|rival| weakness(rival.kind))
}

/// What kind of routes a Service port has for callers of one namespace.
pub(super) fn kind_at(index: &Index, service: &Name, port: u16, client: &str) -> Option<Kind> {
    let (routes, _) = service_routes(index, service, port, client);
    routes.first().map(|route| route.key.kind)
}

/// Whether callers of some namespace send HTTP to a Service port by routes of their own.
pub(super) fn consumed_as_http(index: &Index, service: &Name, port: u16) -> bool {
    let routes = index.service_routes.get(service).into_iter().flatten();
    let mut strangers = routes.filter(|route| route.key.namespace != service.0 && route.key.kind.routes_http());
    strangers.any(|route| asks_for(index, route, service, port))
}

/// Whether a GRPCRoute leads to a Service port: one that is attached, by a reference that its Service's namespace let it have. So who
/// may not lead there says nothing about it either.
pub(super) fn takes_grpc(index: &Index, service: &Name, port: u16) -> bool {
    all_grpc_ports(index).contains(&(service.clone(), port))
}

/// Every Service port that a GRPCRoute leads to.
pub(super) fn all_grpc_ports(index: &Index) -> &BTreeSet<(Name, u16)> {
    index.grpc_ports.get_or_init(|| grpc_ports(index))
}

fn grpc_ports(index: &Index) -> BTreeSet<(Name, u16)> {
    let mut found = BTreeSet::new();
    for route in index.routes.iter().filter(|route| route.key.kind == Kind::GRPCRoute) {
        let Some(spec) = content(route) else { continue };
        let mut attached = false;
        for parent in &spec.parents {
            match standing(index, route, parent) {
                Attachment::Foreign | Attachment::Refused(_) => {}
                Attachment::Gateway(..) => attached = true,
                Attachment::Service(service, ports, _) => {
                    attached = true;
                    let own = service.0 == route.key.namespace && spec.rules.iter().any(|rule| rule.backends.is_none());
                    found.extend(ports.into_iter().filter(|_| own).map(|port| (service.clone(), port)));
                }
            }
        }
        let led = spec.rules.iter().flat_map(Rule::references).filter(|_| attached);
        found.extend(led.filter_map(|to| backend(index, route, to, false).ok()).map(|backend| (backend.service, backend.port)));
    }
    found
}

/// Hosts of a route on a listener: pairwise intersection, an empty side inherits the other; `*` where both are empty.
pub(super) fn hosts(route: &[String], listener: Option<&str>) -> Vec<String> {
    if route.is_empty() {
        return vec![listener.unwrap_or("*").to_owned()];
    }
    let mut hosts: Vec<String> = route.iter().filter_map(|host| narrower(host, listener.unwrap_or("*"))).map(str::to_owned).collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

fn narrower<'a>(one: &'a str, other: &'a str) -> Option<&'a str> {
    if covers(other, one) {
        Some(one)
    } else if covers(one, other) {
        Some(other)
    } else {
        None
    }
}

/// Whether every host of `narrow` is one of `wide`. `*.example.com` covers `a.b.example.com`, not `example.com`.
pub(super) fn covers(wide: &str, narrow: &str) -> bool {
    if wide == "*" || wide == narrow {
        return true;
    }
    let Some(suffix) = wide.strip_prefix('*') else { return false };
    narrow != "*" && narrow.trim_start_matches('*').ends_with(suffix) && narrow.len() > suffix.len()
}

/// How narrow a host is: exact before wildcard, longer before shorter, `*` last. Greater is narrower.
pub(super) fn narrowness(host: &str) -> (bool, usize) {
    if host == "*" { (false, 0) } else { (!host.starts_with('*'), host.len()) }
}

/// A backend that a rule may use.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// Its Service; of an XBackend a name that no Service has.
    pub service: Name,
    /// Its port: of a UDPRoute's one for UDP, of all others' one for TCP.
    pub port: u16,
}

impl Backend {
    /// The host outside the mesh that it is.
    pub(super) fn outside<'a>(&self, index: &'a Index) -> Option<(&'a Arc<Object>, &'a ExternalBackend)> {
        external_backend::of(index, &self.service)
    }

    /// Its cluster.
    pub(super) fn cluster(&self) -> String {
        names::service_port(&self.service.0, &self.service.1, self.port)
    }
}

/// Where a rule's first good backend leads: of those with a weight, else of all.
pub(super) fn first(index: &Index, route: &Object, rule: &Rule, granted: bool) -> Option<Backend> {
    let weighty = rule.backends().iter().filter(|reference| reference.weight > 0);
    weighty.chain(rule.backends()).find_map(|reference| good(index, route, reference, granted))
}

/// Where a backend leads, unless its reference or something that it asks for is bad.
pub(super) fn good(index: &Index, route: &Object, reference: &BackendRef, granted: bool) -> Option<Backend> {
    backend(index, route, &reference.to, granted).ok().filter(|_| reference.failing.is_empty())
}

/// Resolves a backend reference. A mesh route (`granted`: its parent is a Service) needs no grant.
pub(super) fn backend(index: &Index, route: &Object, reference: &Reference, granted: bool) -> Result<Backend, WhyNot> {
    if external_backend::is_meant(reference) {
        let (service, port) = external_backend::resolve(index, route, reference, granted)?;
        return Ok(Backend { service, port });
    }
    if !(matches!(reference.group.as_str(), CORE | "core") && reference.kind == "Service") {
        let message = format!("backends of kind {} are not supported", reference.kind);
        return Err(WhyNot::new("InvalidKind", message));
    }
    let namespace = reference.namespace.clone().unwrap_or_else(|| route.key.namespace.clone());
    let from = (route.key.kind.group(), route.key.kind.text(), route.key.namespace.as_str());
    // Before existence, so that a stranger cannot ask what exists.
    if !granted && namespace != route.key.namespace && !index.granted(from, &namespace, (CORE, "Service", &reference.name)) {
        let message = format!("no ReferenceGrant in {namespace} lets {} of {} refer to Service {}", from.1, from.2, reference.name);
        return Err(WhyNot::new("RefNotPermitted", message));
    }
    let service = (namespace, reference.name.clone());
    let found = index.services.get(&service).and_then(ServiceView::service).filter(|found| !found.external_name);
    let Some(found) = found else {
        return Err(WhyNot::new("BackendNotFound", format!("there is no Service {}/{}", service.0, service.1)));
    };
    let (ports, of) = if route.key.kind == Kind::UDPRoute { (&found.datagram_ports, " for UDP") } else { (&found.ports, "") };
    let port = ports.iter().find(|port| Some(port.port) == reference.port);
    let Some(port) = port else {
        let wanted = reference.port.map_or_else(|| "without number".to_owned(), |port| format!("{port}{of}"));
        return Err(WhyNot::new("BackendNotFound", format!("Service {}/{} has no port {wanted}", service.0, service.1)));
    };
    // A Gateway meets a port inside TLS as the policy says; sidecars know none.
    let opened = || !granted && encrypted(port.app_protocol.as_deref()) && tls_policy::of_port(index, &service, port.port).is_some();
    if !leads(route.key.kind, port.app_protocol.as_deref()) && !opened() {
        let protocol = port.app_protocol.as_deref().unwrap_or_default();
        let (number, kind) = (port.port, route.key.kind);
        let message = format!("port {number} of Service {}/{} speaks {protocol}, which no {kind} can lead to", service.0, service.1);
        return Err(WhyNot::new("UnsupportedProtocol", message));
    }
    Ok(Backend { service, port: port.port })
}

/// The routes that attach to one port of a Service, all of one kind, for callers of one namespace: its consumer routes, else the
/// producer's. The flag says whether they are consumer routes.
pub(super) fn service_routes<'a>(index: &'a Index, service: &Name, port: u16, client: &str) -> (Vec<&'a Arc<Object>>, bool) {
    let of = |namespace: &str| -> Vec<&'a Arc<Object>> {
        let routes = index.service_routes.get(service).into_iter().flatten();
        let mut asking: Vec<_> = routes.filter(|route| route.key.namespace == namespace && asks_for(index, route, service, port)).collect();
        let strongest = asking.iter().map(|route| weakness(route.key.kind)).min();
        asking.retain(|route| Some(weakness(route.key.kind)) == strongest);
        asking
    };
    if client != service.0 {
        let consumer = of(client);
        if !consumer.is_empty() {
            return (consumer, true);
        }
    }
    (of(&service.0), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_intersect_as_the_standard_says() {
        // Aim: exact and wildcard hosts on both sides, in every combination.
        for (route, listener, wanted) in [
            (vec![], None, vec!["*"]),
            (vec![], Some("a.example.com"), vec!["a.example.com"]),
            (vec!["a.example.com"], None, vec!["a.example.com"]),
            (vec!["a.example.com", "example.com"], Some("*.example.com"), vec!["a.example.com"]),
            (vec!["*.example.com"], Some("a.b.example.com"), vec!["a.b.example.com"]),
            (vec!["*.b.example.com"], Some("*.example.com"), vec!["*.b.example.com"]),
            (vec!["*.example.com"], Some("*.b.example.com"), vec!["*.b.example.com"]),
            (vec!["*.example.com"], Some("example.com"), vec![]),
            (vec!["badexample.com"], Some("*.example.com"), vec![]),
            (vec!["a.example.org"], Some("a.example.com"), vec![]),
        ] {
            let route: Vec<String> = route.into_iter().map(str::to_owned).collect();
            assert_eq!(hosts(&route, listener), wanted, "{route:?} on {listener:?}");
        }
    }
}
