//! Which routes attach to what, and which backends they may lead to: the one place that decides, for what proxies run and for what
//! status says alike. Gateway API's rules, see `gateway-api.md` 1.3 to 1.8 and 4.3.5 to 4.3.7, 4.3.16, 4.3.17.

use std::collections::BTreeSet;
use std::sync::Arc;

use proto::ports;

use super::protocol::routable;
use crate::world::gateway::{From, Gateway, Listener};
use crate::world::key::{CORE, GATEWAY_API};
use crate::world::route::{BackendRef, HttpRoute, ParentRef};
use crate::world::{Index, Name, Object, ServiceView, Spec};

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
    /// Whether an HTTPRoute may attach.
    pub http_routes: bool,
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
pub(super) fn listeners(gateway: &Gateway) -> Vec<Judged<'_>> {
    let mut taken: BTreeSet<(u16, Option<&str>)> = BTreeSet::new();
    let judge = |listener| {
        let mut judged = Judged { listener, refused: unserved(listener), http_routes: true, invalid_kinds: Vec::new() };
        if let Some(kinds) = &listener.kinds {
            judged.http_routes = kinds.iter().any(|(group, kind)| group == GATEWAY_API && kind == "HTTPRoute");
            let other = kinds.iter().filter(|(group, kind)| !(group == GATEWAY_API && kind == "HTTPRoute"));
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
    /// Attached to these ports of a Service.
    Service(Name, Vec<u16>),
}

/// The content of an HTTPRoute.
pub(super) fn content(route: &Object) -> Option<&HttpRoute> {
    if let Spec::HttpRoute(spec) = &route.spec { Some(spec) } else { None }
}

/// Judges one parent reference of a route.
pub(super) fn standing(index: &Index, route: &Object, parent: &ParentRef) -> Attachment {
    let namespace = parent.namespace.clone().unwrap_or_else(|| route.key.namespace.clone());
    let name = (namespace, parent.name.clone());
    if parent.is_gateway() {
        return to_gateway(index, route, parent, name);
    }
    if parent.is_service() {
        return to_service(index, parent, name);
    }
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    Attachment::Refused(WhyNot::new("NoMatchingParent", format!("parents of kind {kind} are not supported by this version")))
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
        judged.http_routes && judged.refused.is_none() && admits(index, &name.0, judged.listener, &route.key.namespace)
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

fn to_service(index: &Index, parent: &ParentRef, name: Name) -> Attachment {
    let Some(service) = index.services.get(&name).and_then(ServiceView::service) else {
        return Attachment::Refused(WhyNot::new("NoMatchingParent", format!("there is no Service {}/{}", name.0, name.1)));
    };
    if service.headless || service.external_name {
        let message = "a Service without an address of its own carries no routes";
        return Attachment::Refused(WhyNot::new("UnsupportedValue", message));
    }
    let wanted = service.ports.iter().filter(|port| {
        parent.section.as_ref().is_none_or(|section| *section == port.name) && parent.port.is_none_or(|number| number == port.port)
    });
    let wanted: Vec<_> = wanted.collect();
    if wanted.is_empty() {
        return Attachment::Refused(WhyNot::new("NoMatchingParent", format!("Service {}/{} has no such port", name.0, name.1)));
    }
    let ports: Vec<u16> = wanted.iter().filter(|port| routable(port.app_protocol.as_deref())).map(|port| port.port).collect();
    if ports.is_empty() {
        let message = "the port's appProtocol is none that an HTTPRoute can carry";
        return Attachment::Refused(WhyNot::new("UnsupportedValue", message));
    }
    Attachment::Service(name, ports)
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Backend {
    /// Its Service.
    pub service: Name,
    /// Its port.
    pub port: u16,
}

/// Resolves a backend reference. A mesh route (`granted`: its parent is a Service) needs no grant.
pub(super) fn backend(index: &Index, route: &Object, reference: &BackendRef, granted: bool) -> Result<Backend, WhyNot> {
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
    if !routable(port.app_protocol.as_deref()) {
        let protocol = port.app_protocol.as_deref().unwrap_or_default();
        let message =
            format!("port {} of Service {}/{} speaks {protocol}, which no HTTPRoute can lead to", port.port, service.0, service.1);
        return Err(WhyNot::new("UnsupportedProtocol", message));
    }
    Ok(Backend { service, port: port.port })
}

/// The routes that attach to one port of a Service, for callers of one namespace: its consumer routes, else the producer's.
/// The flag says whether they are consumer routes.
pub(super) fn service_routes<'a>(index: &'a Index, service: &Name, port: u16, client: &str) -> (Vec<&'a Arc<Object>>, bool) {
    let attached = |route: &&Arc<Object>| {
        let parents = content(route).map_or(&[][..], |spec| &spec.parents);
        parents.iter().any(|parent| match standing(index, route, parent) {
            Attachment::Service(name, ports) => name == *service && ports.contains(&port),
            _ => false,
        }) && content(route).is_some_and(|spec| spec.rules.iter().any(|rule| rule.unmatchable.is_empty()))
    };
    let of = |namespace: &str| -> Vec<&'a Arc<Object>> {
        let routes = index.service_routes.get(service).into_iter().flatten();
        routes.filter(|route| route.key.namespace == namespace).filter(attached).collect()
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
