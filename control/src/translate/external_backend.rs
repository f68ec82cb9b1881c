//! Backends outside the mesh (XBackend): which a reference leads to, what they speak, and whether EgressPolicies let Gateways call there.
//! A backend of this kind is a Service's in all else: by a name that no Service has.

use std::net::IpAddr;
use std::sync::Arc;

use proto::annotations::ROOT_NAMESPACE;
use proto::words::Protocol;

use super::refusal::WhyNot;
use crate::world::external_backend::{BackendProtocol, ExternalBackend};
use crate::world::route::Reference;
use crate::world::security::egress::{EgressPolicy, EgressRule};
use crate::world::{Index, Kind, Name, Object, Spec};

/// What names of such backends begin with.
const PREFIX: &str = "external/";

/// The content of an XBackend.
pub(super) fn content(object: &Object) -> Option<&ExternalBackend> {
    if let Spec::ExternalBackend(spec) = &object.spec { Some(spec) } else { None }
}

/// As which Service an XBackend is known, whether or not it is there.
pub(super) fn known_as((namespace, name): (&str, &str)) -> Name {
    (namespace.to_owned(), format!("{PREFIX}{name}"))
}

/// The XBackend that is known as that Service.
pub(super) fn of<'a>(index: &'a Index, service: &Name) -> Option<(&'a Arc<Object>, &'a ExternalBackend)> {
    let name = service.1.strip_prefix(PREFIX)?;
    let object = index.externals.get(&(service.0.clone(), name.to_owned()))?;
    Some((object, content(object)?))
}

/// Whether a reference means one.
pub(super) fn is_meant(reference: &Reference) -> bool {
    Kind::find(&reference.group, &reference.kind) == Some(Kind::XBackend)
}

/// Where a Gateway's route leads by a reference; `granted`: it is a Service's route, whose calls outside are EgressPolicies' to say.
///
/// # Errors
/// Nowhere.
pub(super) fn resolve(index: &Index, route: &Object, reference: &Reference, granted: bool) -> Result<(Name, u16), WhyNot> {
    let kind = route.key.kind;
    if granted || !matches!(kind, Kind::HTTPRoute | Kind::GRPCRoute | Kind::TLSRoute | Kind::TCPRoute) {
        let message = format!("an XBackend is for routes of Gateways, by HTTP, TLS and TCP; this {kind} leads to none");
        return Err(WhyNot::new("InvalidKind", message));
    }
    let namespace = reference.namespace.as_deref().unwrap_or(&route.key.namespace);
    let from = (kind.group(), kind.text(), route.key.namespace.as_str());
    let to = (Kind::XBackend.group(), Kind::XBackend.text(), reference.name.as_str());
    // Before existence, so that a stranger cannot ask what exists.
    if namespace != route.key.namespace && !index.granted(from, namespace, to) {
        let message = format!("no ReferenceGrant in {namespace} lets {kind} of {} refer to XBackend {}", from.2, reference.name);
        return Err(WhyNot::new("RefNotPermitted", message));
    }
    let service = known_as((namespace, &reference.name));
    let Some((_, spec)) = of(index, &service) else {
        return Err(WhyNot::new("BackendNotFound", format!("there is no XBackend {namespace}/{}", reference.name)));
    };
    if let Some(port) = reference.port.filter(|port| *port != spec.port) {
        return Err(WhyNot::new("BackendNotFound", format!("XBackend {namespace}/{} has no port {port}", reference.name)));
    }
    let fits = match (kind, spec.protocol) {
        (_, None) => true,
        (Kind::HTTPRoute, Some(protocol)) => protocol != BackendProtocol::Tcp,
        (Kind::GRPCRoute, Some(protocol)) => matches!(protocol, BackendProtocol::Http | BackendProtocol::Http2),
        // Bytes are bytes, whatever they say.
        _ => true,
    };
    if !fits {
        let message = format!("XBackend {namespace}/{} speaks what no {kind} can lead to", reference.name);
        return Err(WhyNot::new("UnsupportedProtocol", message));
    }
    if let Some(why) = barred(index, namespace, (&spec.hostname, spec.port)) {
        return Err(WhyNot::new("RefNotPermitted", why));
    }
    Ok((service, spec.port))
}

/// What it speaks.
pub(super) fn protocol(spec: &ExternalBackend) -> Protocol {
    match spec.protocol {
        Some(BackendProtocol::Tcp) => Protocol::Tcp,
        Some(BackendProtocol::Http1) => Protocol::Http1,
        Some(BackendProtocol::Http2) => Protocol::Http2,
        Some(BackendProtocol::Http) | None => Protocol::Auto,
    }
}

/// Why a host outside the mesh may not be called for an object of a namespace: it is for EgressPolicies to allow, those for all of the
/// namespace and of the mesh.
pub(super) fn barred(index: &Index, namespace: &str, (host, port): (&str, u16)) -> Option<String> {
    let meant = |policy: &&EgressPolicy| policy.selector.is_none() && !policy.audit;
    let there = index.egress.iter().filter(|other| other.key.namespace == *namespace || other.key.namespace == ROOT_NAMESPACE);
    let mut policies = there.filter_map(|object| egress(object)).filter(meant).peekable();
    if policies.peek().is_none() {
        return index.mesh.outside_denied.then(|| format!("Mesh outsideMesh is Deny, and no EgressPolicy of {namespace} allows {host}"));
    }
    let allows = policies.any(|policy| policy.allow.iter().any(|rule| rule_allows(rule, (host, port))));
    (!allows).then(|| format!("no EgressPolicy of {namespace} allows {host}:{port}"))
}

fn egress(object: &Object) -> Option<&EgressPolicy> {
    if let Spec::EgressPolicy(policy) = &object.spec { Some(policy) } else { None }
}

fn rule_allows(rule: &EgressRule, (host, port): (&str, u16)) -> bool {
    let named = |known: &String| match known.strip_prefix('*') {
        Some("") => true,
        Some(suffix) => host.ends_with(suffix) && host.len() > suffix.len(),
        None => known == host,
    };
    let address = || host.parse::<IpAddr>().ok();
    let hosts = rule.hosts.is_empty() || rule.hosts.iter().any(named);
    let cidrs = rule.cidrs.is_empty() || address().is_some_and(|address| rule.cidrs.iter().any(|range| range.contains(&address)));
    // TLS that the proxy would begin by itself is for calls of applications.
    hosts && cidrs && (rule.ports.is_empty() || rule.ports.contains(&port)) && rule.originate.is_none()
}
