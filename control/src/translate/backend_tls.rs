//! BackendTLSPolicies: how edges speak TLS to a Service's own endpoints (`gateway-api.md` 1.7, 4.3.21). Whatever is wrong with one closes:
//! nobody is met in plaintext, or unverified, for want of a good policy.

use std::collections::BTreeSet;
use std::sync::Arc;

use proto::xds::core::{DataSource, data_source::Specifier};
use proto::xds::matcher::{StringMatcher, string_matcher::MatchPattern};
use proto::xds::tls::certificate_validation_context::SystemRootCerts;
use proto::xds::tls::common_tls_context::ValidationContextType;
use proto::xds::tls::subject_alt_name_matcher::SanType;
use proto::xds::tls::{self, CertificateValidationContext, SubjectAltNameMatcher};

use super::attach::{self, Attachment, Backend, WhyNot};
use super::endpoint::{port_of, targets};
use super::tls_policy::{content, of_port, targets_of};
use super::{authorities, wire};
use crate::world::backend_tls::{BackendTlsPolicy, ServerName, TlsTarget};
use crate::world::route::Rule;
use crate::world::{Index, Kind, Name, Object, ServiceView};

/// Most Gateways that are told of: what the schema of a policy's status takes.
const ANCESTORS_MAX: usize = 16;

/// Whom a policy believes.
enum Trust {
    System,
    Cas(Vec<u8>),
}

/// Whom a policy believes, or why it can believe nobody.
fn trust(index: &Index, object: &Object, policy: &BackendTlsPolicy) -> Result<Trust, WhyNot> {
    match policy.well_known.as_deref() {
        Some("System") => return Ok(Trust::System),
        Some(word) => return Err(WhyNot::new("Invalid", format!("unknown value `{word}` of wellKnownCACertificates"))),
        None => {}
    }
    let (pem, _) = authorities::cas(index, &object.key, &policy.cas, CA_REASONS);
    if pem.is_empty() {
        return Err(WhyNot::new("NoValidCACertificate", "none of its CAs can be read"));
    }
    Ok(Trust::Cas(pem))
}

const CA_REASONS: (&str, &str) = ("InvalidCACertificateRef", "InvalidKind");

/// The first reference to CAs that is wrong.
pub(super) fn unresolved(index: &Index, object: &Object, policy: &BackendTlsPolicy) -> Option<WhyNot> {
    authorities::cas(index, &object.key, &policy.cas, CA_REASONS).1
}

/// Whether some endpoint of a Service port is a peer of the mesh, whose proxy meets it by mesh TLS.
fn meshed(index: &Index, backend: &Backend) -> bool {
    let view = index.services.get(&backend.service);
    let port = view.and_then(|view| port_of(view, backend.port));
    view.zip(port).is_some_and(|(view, port)| targets(index, view, port).iter().any(|target| target.identity.is_some()))
}

/// How an edge meets the endpoints of a Service port that are none of the mesh.
pub(super) enum Upstream {
    /// No policy says anything.
    Plain,
    /// By TLS.
    Tls(Box<tls::UpstreamTlsContext>),
    /// Not at all.
    Broken,
}

/// See [`Upstream`]. `shows`: the Secret with which the edge proves who it is, if asked.
pub(super) fn upstream(index: &Index, backend: &Backend, shows: Option<&str>) -> Upstream {
    let Some(object) = of_port(index, &backend.service, backend.port) else { return Upstream::Plain };
    let Some(policy) = content(object) else { return Upstream::Plain };
    let Ok(trust) = trust(index, object, policy) else { return Upstream::Broken };
    if meshed(index, backend) {
        return Upstream::Broken;
    }
    let mut context = CertificateValidationContext { match_typed_subject_alt_names: names(policy), ..Default::default() };
    match trust {
        Trust::System => context.system_root_certs = Some(SystemRootCerts {}),
        Trust::Cas(pem) => context.trusted_ca = Some(DataSource { specifier: Some(Specifier::InlineBytes(pem.into())) }),
    }
    let sds = |name: &str| tls::SdsSecretConfig { name: name.to_owned(), sds_config: Some(wire::ads()) };
    Upstream::Tls(Box::new(tls::UpstreamTlsContext {
        common_tls_context: Some(tls::CommonTlsContext {
            tls_certificate_sds_secret_configs: shows.map(sds).into_iter().collect(),
            validation_context_type: Some(ValidationContextType::ValidationContext(context)),
            ..tls::CommonTlsContext::default()
        }),
        sni: policy.hostname.clone(),
    }))
}

/// Whether requests of an edge to a Service port are refused, because its policy cannot be carried out.
pub(super) fn broken(index: &Index, backend: &Backend) -> bool {
    !index.backend_tls.is_empty() && matches!(upstream(index, backend, None), Upstream::Broken)
}

/// What the server's certificate must have one of: names that are given replace the hostname.
fn names(policy: &BackendTlsPolicy) -> Vec<SubjectAltNameMatcher> {
    let exact = |kind: SanType, name: &str| SubjectAltNameMatcher {
        san_type: kind.into(),
        matcher: Some(StringMatcher { match_pattern: Some(MatchPattern::Exact(name.to_owned())), ignore_case: false }),
    };
    let named = |name: &ServerName| match name {
        ServerName::Dns(name) => exact(SanType::Dns, name),
        ServerName::Uri(uri) => exact(SanType::Uri, uri),
    };
    if policy.names.is_empty() { vec![exact(SanType::Dns, &policy.hostname)] } else { policy.names.iter().map(named).collect() }
}

/// How a policy stands as a whole, whichever Gateway goes by it.
pub(super) fn judge(index: &Index, object: &Object, policy: &BackendTlsPolicy) -> Result<(), WhyNot> {
    if let Some(target) = policy.targets.iter().find(|target| !target.is_service()) {
        return Err(WhyNot::new("Invalid", format!("its targets are Services, not a {} of group \"{}\"", target.kind, target.group)));
    }
    let (mut there, mut winner, mut kept) = (false, None, false);
    for target in &policy.targets {
        let service = (object.key.namespace.clone(), target.name.clone());
        let Some(view) = index.services.get(&service) else { continue };
        let ports = view.service().map_or(&[][..], |service| &service.ports);
        if target.section.as_ref().is_some_and(|section| !ports.iter().any(|port| port.name == *section)) {
            continue;
        }
        there = true;
        match older(index, object, &service, target) {
            Some(rival) => _ = winner.get_or_insert(rival),
            None => kept = true,
        }
    }
    if !there {
        return Err(WhyNot::new("TargetNotFound", "there is no such Service, or it has no such port"));
    }
    if let Some(rival) = winner.filter(|_| !kept) {
        return Err(WhyNot::new("Conflicted", format!("{} is older and about the same", rival.key)));
    }
    trust(index, object, policy)?;
    let behind = |view: &ServiceView, target: &TlsTarget| {
        let ports = view.service().map_or(&[][..], |service| &service.ports);
        let meant = ports.iter().filter(|port| target.section.as_ref().is_none_or(|section| *section == port.name));
        let backend = |port: u16| Backend { service: (object.key.namespace.clone(), target.name.clone()), port };
        meant
            .map(|port| backend(port.port))
            .any(|port| meshed(index, &port) && of_port(index, &port.service, port.port).is_some_and(|policy| policy.key == object.key))
    };
    for target in &policy.targets {
        let service = (object.key.namespace.clone(), target.name.clone());
        if index.services.get(&service).is_some_and(|view| behind(view, target)) {
            let message = format!(
                "endpoints of Service {}/{} are of the mesh, which speaks mesh TLS to them: TLS of their own inside it is not supported, and their requests are refused",
                service.0, service.1
            );
            return Err(WhyNot::new("Invalid", message));
        }
    }
    Ok(())
}

/// An older policy with the very same target.
fn older<'a>(index: &'a Index, object: &Object, service: &Name, target: &TlsTarget) -> Option<&'a Arc<Object>> {
    let rivals = index.backend_tls.get(service)?.iter().take_while(|rival| rival.key != object.key);
    let mut rivals = rivals.filter(|rival| targets_of(rival, &service.1).any(|other| other.section == target.section));
    rivals.next()
}

/// The Gateways of ours that lead to a Service which the policy is about, by name.
pub(super) fn ancestors(index: &Index, object: &Object, policy: &BackendTlsPolicy) -> BTreeSet<Name> {
    let services: BTreeSet<&str> = policy.targets.iter().filter(|to| to.is_service()).map(|target| target.name.as_str()).collect();
    let mut ancestors = BTreeSet::new();
    for route in index.routes.iter().filter(|route| route.key.kind != Kind::UDPRoute) {
        let Some(spec) = attach::content(route) else { continue };
        let of_policy = |namespace: &Option<String>| namespace.as_ref().unwrap_or(&route.key.namespace) == &object.key.namespace;
        let mut led = spec.rules.iter().flat_map(Rule::references);
        if !led.any(|to| of_policy(&to.namespace) && services.contains(to.name.as_str())) {
            continue;
        }
        for parent in &spec.parents {
            if let Attachment::Gateway(name, _) = attach::standing(index, route, parent) {
                ancestors.insert(name);
            }
        }
    }
    ancestors.into_iter().take(ANCESTORS_MAX).collect()
}

/// Services whose policies refer to an object.
pub(super) fn referrers(index: &Index, object: &crate::world::ObjectKey) -> BTreeSet<Name> {
    let refers = |policy: &Arc<Object>| crate::world::references(policy).contains(object);
    let mut found = BTreeSet::new();
    for (service, policies) in index.backend_tls.iter() {
        if policies.iter().any(refers) {
            found.insert(service.clone());
        }
    }
    found
}
