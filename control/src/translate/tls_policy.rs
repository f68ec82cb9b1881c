//! Which BackendTLSPolicy a Service port goes by.

use std::sync::Arc;

use crate::world::backend_tls::{BackendTlsPolicy, TlsTarget};
use crate::world::{Index, Name, Object, ServiceView, Spec};

/// The content of a BackendTLSPolicy.
pub(super) fn content(object: &Object) -> Option<&BackendTlsPolicy> {
    if let Spec::BackendTlsPolicy(policy) = &object.spec { Some(policy) } else { None }
}

/// The targets of a policy that are a Service of its namespace, all of it or a port.
pub(super) fn targets_of<'a>(policy: &'a Object, service: &'a str) -> impl Iterator<Item = &'a TlsTarget> {
    let targets = content(policy).into_iter().flat_map(|policy| &policy.targets);
    targets.filter(move |target| target.is_service() && target.name == service)
}

/// The policy that a Service port goes by: one that names the port before one for all of it, and of those the oldest.
pub(super) fn of_port<'a>(index: &'a Index, service: &Name, number: u16) -> Option<&'a Arc<Object>> {
    let policies = index.backend_tls.get(service)?;
    let ports = &index.services.get(service).and_then(ServiceView::service)?.ports;
    let port = ports.iter().find(|port| port.port == number)?;
    let says = |section: Option<&str>| {
        policies.iter().find(|policy| targets_of(policy, &service.1).any(|target| target.section.as_deref() == section))
    };
    says(Some(&port.name)).or_else(|| says(None))
}
