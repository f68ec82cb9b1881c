//! Which routes attach to what, and which backends they may lead to: the one place that decides, for what proxies run and for what
//! status says alike. Gateway API's rules, see `gateway-api.md` 1.3 to 1.8 and 4.3.5 to 4.3.7, 4.3.16, 4.3.17.

use std::collections::BTreeSet;
use std::sync::Arc;

use proto::words::Protocol;
use proto::{names, ports};

use super::declared::{declared, routable};
use crate::world::gateway::{From, Gateway, Listener};
use crate::world::key::{CORE, GATEWAY_API};
use crate::world::route::{BackendRef, ParentRef, Reference, Route, Rule};
use crate::world::{Index, Kind, Name, Object, ObjectKey, ServiceView, Spec};

/// Ports that an edge proxy needs for itself (contract, section 3).
const RESERVED: [u16; 6] = [15000, 15001, 15006, ports::METRICS, ports::HEALTH, 15053];

/// A word and a sentence: why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WhyNot {
    /// Reason of the condition.
    pub reason: &'static str,
    /// Message of the condition.
    pub message: String,
}

impl WhyNot {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// A listener and what became of it.
#[derive(Debug)]
pub(super) struct Judged<'a> {
    /// The listener.
    pub listener: &'a Listener,
    /// Why it is not served.
    pub refused: Option<WhyNot>,
    /// Kinds of routes that may attach.
    pub kinds: Vec<Kind>,
    /// Kinds it names that nothing here can carry.
    pub invalid_kinds: Vec<String>,
}

impl Judged<'_> {
    /// Refused because another listener of the same Gateway has its place.
    pub(super) fn conflicted(&self) -> bool {
        self.refused.as_ref().is_some_and(|refusal| refusal.reason == "HostnameConflict")
    }
}

/// Why a Gateway as a whole is not served.
pub(super) fn refused(gateway: &Gateway) -> Option<WhyNot> {
    if gateway.addresses {
        return Some(WhyNot::new("UnsupportedAddress", "this version cannot give a Gateway addresses of its own choice"));
    }
    gateway.parameters.then(|| WhyNot::new("InvalidParameters", "this controller has no parameters"))
}

/// Judges every listener of a Gateway, in order.
pub(super) fn listeners<'a>(gateway: &'a Gateway) -> Vec<Judged<'a>> {
    let mut taken: BTreeSet<(u16, Option<&str>)> = BTreeSet::new();
    let judge = |listener: &'a Listener| {
        let carried = carried(&listener.protocol);
        let mut judged = Judged { listener, refused: unserved(listener), kinds: carried.to_vec(), invalid_kinds: Vec::new() };
        if let Some(kinds) = &listener.kinds {
            let named = |wanted: &Kind, group: &str, kind: &str| group == GATEWAY_API && kind == wanted.text();
            judged.kinds.retain(|known| kinds.iter().any(|(group, kind)| named(known, group, kind)));
            let other = kinds.iter().filter(|(group, kind)| !carried.iter().any(|known| named(known, group, kind)));
            judged.invalid_kinds = other.map(|(_, kind)| kind.clone()).collect();
        }
        if judged.refused.is_none() && !taken.insert((listener.port, listener.hostname.as_deref())) {
            let message = "a listener before it has the same port, protocol and hostname";
            judged.refused = Some(WhyNot::new("HostnameConflict", message));
        }
        judged
    };
    gateway.listeners.iter().map(judge).collect()
}

/// The kinds of routes that a listener of that protocol can carry.
fn carried(protocol: &str) -> &'static [Kind] {
    match protocol {
        "HTTP" | "HTTPS" => &[Kind::HTTPRoute, Kind::GRPCRoute],
        "TLS" => &[Kind::TLSRoute],
        "TCP" => &[Kind::TCPRoute],
        _ => &[],
    }
}

/// The ports that a Gateway's proxy serves.
pub(super) fn ports(gateway: &Gateway) -> BTreeSet<u16> {
    if refused(gateway).is_some() {
        return BTreeSet::new();
    }
    listeners(gateway).iter().filter(|judged| judged.refused.is_none()).map(|judged| judged.listener.port).collect()
}

fn unserved(listener: &Listener) -> Option<WhyNot> {
    if listener.protocol != "HTTP" {
        let message = format!("the protocol {} is not supported by this version", listener.protocol);
        return Some(WhyNot::new("UnsupportedProtocol", message));
    }
    if RESERVED.contains(&listener.port) {
        return Some(WhyNot::new("PortUnavailable", format!("the proxy needs port {} for itself", listener.port)));
    }
    let From::Unknown(word) = &listener.from else { return None };
    Some(WhyNot::new("UnsupportedValue", format!("unknown value `{word}` of allowedRoutes.namespaces.from")))
}

/// What became of one parent reference.
#[derive(Clone, Debug)]
pub(super) enum Attachment {
    /// Another controller's.
    Foreign,
    /// Not attached.
    Refused(WhyNot),
    /// Attached to these listeners (by index), with these hosts (`*`: any).
    Gateway(Name, Vec<(usize, Vec<String>)>),
    /// Attached to these ports of a Service; other ports are those of routes of a kind that goes first.
    Service(Name, Vec<u16>, Vec<(u16, ObjectKey)>),
}

/// The content of a route.
pub(super) fn content(route: &Object) -> Option<&Route> {
    if let Spec::Route(spec) = &route.spec { Some(spec) } else { None }
}

/// The content of a Gateway.
pub(super) fn gateway(object: &Object) -> Option<&Gateway> {
    if let Spec::Gateway(gateway) = &object.spec { Some(gateway) } else { None }
}

/// Whether a route names a Gateway as a parent, attached or not.
pub(super) fn names_gateway(route: &Object, gateway: &Name) -> bool {
    let of = |parent: &ParentRef| (parent.namespace.as_ref().unwrap_or(&route.key.namespace), &parent.name) == (&gateway.0, &gateway.1);
    content(route).into_iter().flat_map(|spec| &spec.parents).any(|parent| parent.is_gateway() && of(parent))
}

/// Judges one parent reference of a route.
pub(super) fn standing(index: &Index, route: &Object, parent: &ParentRef) -> Attachment {
    let namespace = parent.namespace.clone().unwrap_or_else(|| route.key.namespace.clone());
    let name = (namespace, parent.name.clone());
    if parent.is_gateway() {
        return to_gateway(index, route, parent, name);
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

fn to_gateway(index: &Index, route: &Object, parent: &ParentRef, name: Name) -> Attachment {
    let Some(object) = index.gateways.get(&name) else {
        if index.foreign_gateways.contains(&name) {
            return Attachment::Foreign;
        }
        return Attachment::Refused(WhyNot::new("NoMatchingParent", format!("there is no Gateway {}/{}", name.0, name.1)));
    };
    let (Spec::Gateway(gateway), Some(spec)) = (&object.spec, content(route)) else { return Attachment::Foreign };
    let judged = listeners(gateway);
    let wanted = |judged: &Judged<'_>| {
        parent.section.as_ref().is_none_or(|section| *section == judged.listener.name)
            && parent.port.is_none_or(|port| port == judged.listener.port)
    };
    let mut chosen: Vec<_> = judged.iter().enumerate().filter(|(_, judged)| wanted(judged)).collect();
    if chosen.is_empty() {
        let message = format!("Gateway {}/{} has no such listener", name.0, name.1);
        return Attachment::Refused(WhyNot::new("NoMatchingParent", message));
    }
    chosen.retain(|(_, judged)| {
        judged.kinds.contains(&route.key.kind) && judged.refused.is_none() && admits(index, &name.0, judged.listener, &route.key.namespace)
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
    Attachment::Gateway(name, attached)
}

fn admits(index: &Index, own: &str, listener: &Listener, namespace: &str) -> bool {
    match &listener.from {
        From::All => true,
        From::Same => own == namespace,
        From::Selector(selector) => index.namespaces.get(namespace).is_some_and(|view| selector.matches(&view.labels)),
        From::Unknown(_) => false,
    }
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
    /// Its Service.
    pub service: Name,
    /// Its port.
    pub port: u16,
}

impl Backend {
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
    if !(matches!(reference.group.as_str(), CORE | "core") && reference.kind == "Service") {
        let message = format!("backends of kind {} are not supported", reference.kind);
        return Err(WhyNot::new("InvalidKind", message));
    }
    let namespace = reference.namespace.clone().unwrap_or_else(|| route.key.namespace.clone());
    let from = (GATEWAY_API, route.key.kind.text(), route.key.namespace.as_str());
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
    let port = found.ports.iter().find(|port| Some(port.port) == reference.port);
    let Some(port) = port else {
        let wanted = reference.port.map_or_else(|| "without number".to_owned(), |port| port.to_string());
        return Err(WhyNot::new("BackendNotFound", format!("Service {}/{} has no port {wanted}", service.0, service.1)));
    };
    if !leads(route.key.kind, port.app_protocol.as_deref()) {
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
