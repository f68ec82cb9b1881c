//! BackendTLSPolicies: how edges speak TLS to a Service's own endpoints (`gateway-api.md` 1.7, 4.3.21). Whatever is wrong with one closes:
//! nobody is met in plaintext, or unverified, for want of a good policy. Where an endpoint is of the mesh its TLS goes inside mesh TLS, so that
//! both hold: the sidecar proves its identity and takes its caller's, and the application proves the name that the policy asks for.

use std::collections::BTreeSet;
use std::sync::Arc;

use proto::xds::core::{DataSource, data_source::Specifier};
use proto::xds::matcher::{StringMatcher, string_matcher::MatchPattern};
use proto::xds::tls::certificate_validation_context::SystemRootCerts;
use proto::xds::tls::common_tls_context::ValidationContextType;
use proto::xds::tls::subject_alt_name_matcher::SanType;
use proto::xds::tls::{self, CertificateValidationContext, SubjectAltNameMatcher};

use super::attach::{self, Attachment, Backend, WhyNot};
use super::endpoint::{ClusterEndpoint, targets};
use super::tls_policy::{content, of_port, targets_of};
use super::{authorities, external_backend, protocol, wire};
use crate::world::backend_tls::{BackendTlsPolicy, ServerName, TlsTarget};
use crate::world::external_backend::ExternalBackend;
use crate::world::route::{Reference, Rule};
use crate::world::{Index, Instance, Kind, Name, Object};

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

/// An instance behind a port that the policy is about whose sidecar takes HTTP there: what comes to it is to be HTTP, and no TLS.
pub(super) fn unopened<'a>(index: &'a Index, object: &Object, policy: &BackendTlsPolicy) -> Option<(&'a Instance, u16)> {
    let services =
        policy.targets.iter().filter(|target| target.is_service()).map(|target| (object.key.namespace.clone(), target.name.clone()));
    for service in services {
        let Some(view) = index.services.get(&service) else { continue };
        for port in view.service().map_or(&[][..], |service| &service.ports) {
            if of_port(index, &service, port.port).is_none_or(|policy| policy.key != object.key) {
                continue;
            }
            let meshed = targets(index, view, port).into_iter().filter(|target| target.identity.is_some());
            let instance = |target: ClusterEndpoint| {
                let instance = index.instances.get(&(target.namespace, target.instance))?;
                protocol::of_server(index, instance, target.address.port()).is_http().then_some((instance, target.address.port()))
            };
            if let Some(found) = meshed.filter_map(instance).next() {
                return Some(found);
            }
        }
    }
    None
}

/// How an edge meets the endpoints of a Service port.
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
    let said = match backend.outside(index) {
        Some((object, spec)) => spec.tls.as_ref().map(|policy| (object, policy)),
        None => of_port(index, &backend.service, backend.port).and_then(|object| Some((object, content(object)?))),
    };
    let Some((object, policy)) = said else { return Upstream::Plain };
    let Ok(trust) = trust(index, object, policy) else { return Upstream::Broken };
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

/// How the control plane itself meets a Service port by TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalledTls {
    /// The name that is asked for, and that its certificate has to be for.
    pub name: String,
    /// Whom to believe, PEM; `None`: whom the machine believes.
    pub roots: Option<Vec<u8>>,
}

/// See [`CalledTls`]; `None`: no policy says anything.
///
/// # Errors
/// The policy cannot be carried out, or not by the control plane.
pub(super) fn called(index: &Index, backend: &Backend) -> Result<Option<CalledTls>, WhyNot> {
    let Some(object) = of_port(index, &backend.service, backend.port) else { return Ok(None) };
    let Some(policy) = content(object) else { return Ok(None) };
    if !policy.names.is_empty() {
        let message =
            format!("{}: subjectAltNames are for proxies alone; of a service that the control plane calls say its hostname", object.key);
        return Err(WhyNot::new("Invalid", message));
    }
    let roots = match trust(index, object, policy)? {
        Trust::System => None,
        Trust::Cas(pem) => Some(pem),
    };
    Ok(Some(CalledTls { name: policy.hostname.clone(), roots }))
}

/// Whether requests of an edge to a Service port are refused, because its policy cannot be carried out.
pub(super) fn broken(index: &Index, backend: &Backend) -> bool {
    let said = !index.backend_tls.is_empty() || !index.externals.is_empty();
    said && matches!(upstream(index, backend, None), Upstream::Broken)
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
    trust(index, object, policy).map(|_| ())
}

/// How an XBackend stands, whichever Gateway leads there.
pub(super) fn judge_outside(index: &Index, object: &Object, spec: &ExternalBackend) -> Result<(), WhyNot> {
    if let Some(policy) = &spec.tls {
        trust(index, object, policy)?;
    }
    match external_backend::barred(index, &object.key.namespace, (&spec.hostname, spec.port)) {
        Some(why) => Err(WhyNot::new("NotAllowed", why)),
        None => Ok(()),
    }
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
    leading(index, &object.key.namespace, |to| services.contains(to.name.as_str()))
}

/// The Gateways of ours that lead to an XBackend, by name.
pub(super) fn ancestors_outside(index: &Index, object: &Object) -> BTreeSet<Name> {
    leading(index, &object.key.namespace, |to| external_backend::is_meant(to) && to.name == object.key.name)
}

/// Gateways whose routes lead to something of a namespace.
fn leading(index: &Index, there: &str, meant: impl Fn(&Reference) -> bool) -> BTreeSet<Name> {
    let mut ancestors = BTreeSet::new();
    for route in index.routes.iter().filter(|route| route.key.kind != Kind::UDPRoute) {
        let Some(spec) = attach::content(route) else { continue };
        let of_there = |namespace: &Option<String>| namespace.as_ref().unwrap_or(&route.key.namespace) == there;
        let mut led = spec.rules.iter().flat_map(Rule::references);
        if !led.any(|to| of_there(&to.namespace) && meant(to)) {
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

/// Services whose policies refer to an object, and XBackends that do.
pub(super) fn referrers(index: &Index, object: &crate::world::ObjectKey) -> BTreeSet<Name> {
    let refers = |policy: &Arc<Object>| crate::world::references(policy).contains(object);
    let mut found = BTreeSet::new();
    for (service, policies) in index.backend_tls.iter() {
        if policies.iter().any(refers) {
            found.insert(service.clone());
        }
    }
    let outside = index.externals.values().filter(|backend| refers(backend));
    found.extend(outside.map(|backend| external_backend::known_as((&backend.key.namespace, &backend.key.name))));
    found
}
