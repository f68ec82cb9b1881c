//! TLS of a Gateway's listeners: which certificates each shows, whose clients it lets in, and what is wrong with that. Grants come before
//! existence, so that a stranger cannot ask what exists (`gateway-api.md` 4.3.16, 4.3.20).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::names::{self, TICKET_HOURS};
use proto::xds::core::DataSource;
use proto::xds::tls::certificate_validation_context::TrustChainVerification;
use proto::xds::tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
use proto::xds::tls::downstream_tls_context::SessionTicketKeysType;
use proto::xds::tls::tls_parameters::TlsProtocol;
use proto::xds::tls::{self, CertificateValidationContext, Secret, TlsCertificate, TlsSessionTicketKeys, secret};

use super::attach::{WhyNot, covers};
use super::authorities::{cas, secret_of};
use super::edge::acme;
use super::edge_listeners::{Edge, Judged};
use super::wire::{self, inline};
use super::{backend_tls, external_backend};
use crate::world::certificate::{Certificate, CertificateFault, Validity};
use crate::world::edge::ClientPolicy;
use crate::world::external_backend::ExternalBackend;
use crate::world::gateway::{ClientDemand, Gateway};
use crate::world::listener::ObjectRef;
use crate::world::{Index, Kind, Name, Object, ObjectKey, Severity, World};

/// How a listener's certificates and demands stand.
#[derive(Clone, Debug, Default)]
pub(super) struct TlsStanding {
    /// Certificates in force, by their Secrets.
    pub certificates: Vec<(ObjectKey, Arc<Certificate>)>,
    /// Why some reference does not lead to what it should.
    pub unresolved: Option<WhyNot>,
    /// Why the listener cannot be accepted.
    pub refused: Option<WhyNot>,
    /// What is worth a word although it is served.
    pub remark: Option<String>,
    /// A certificate is ordered and has not come; how grave that is, and why.
    pub pending: Option<(Severity, String)>,
}

impl TlsStanding {
    /// Of a listener that names no certificate.
    fn order(&mut self, world: &World, gateway: &Name, judged: &Judged<'_>) {
        let Some(ordered) = acme::at_listener(world.index(), gateway, judged) else {
            self.unresolved = Some(WhyNot::new("InvalidCertificateRef", "it names no certificate (tls.certificateRefs)"));
            return;
        };
        match world.credential(&ordered.secret) {
            Ok((good, fault)) => {
                self.remark = match fault {
                    Some(fault) => Some(format!("{}: {fault}; the certificate that it held stays in force for a day", ordered.secret)),
                    None => dated(world, &ordered.secret, good),
                };
                self.certificates.push((ordered.secret, Arc::clone(good)));
            }
            Err(_) if acme::wildcard(&ordered).is_some() => {
                self.unresolved = acme::wildcard(&ordered).map(|why| WhyNot::new("InvalidCertificateRef", why));
            }
            Err(_) => self.pending = Some(acme::pending(world, gateway, &ordered)),
        }
    }

    /// Whether it lets anybody in.
    pub(super) fn serves(&self, judged: &Judged<'_>) -> bool {
        self.refused.is_none() && (!judged.terminates() || !self.certificates.is_empty())
    }
}

/// What is wrong with a Secret of which there is a certificate in force, if anything.
type Found<'a> = (ObjectKey, &'a Arc<Certificate>, Option<&'a CertificateFault>);

/// The certificate that a reference leads to.
fn certificate<'a>(world: &'a World, from: &ObjectKey, to: &ObjectRef, reason: &'static str) -> Result<Found<'a>, WhyNot> {
    let object = secret_of(world.index(), from, to, reason)?;
    match world.credential(&object) {
        Ok((good, fault)) => Ok((object, good, fault)),
        Err(CertificateFault::NoSecret) => {
            let crowded = world.crowded().map(|told| format!("; {told}")).unwrap_or_default();
            Err(WhyNot::new(reason, format!("{object}: {}{crowded}", CertificateFault::NoSecret)))
        }
        Err(fault) => Err(WhyNot::new(reason, format!("{object}: {fault}"))),
    }
}

/// Names of the Secrets that a listener may show, there or not.
fn permitted(index: &Index, gateway: &Name, judged: &Judged<'_>) -> Vec<ObjectKey> {
    if let Some(ordered) = acme::at_listener(index, gateway, judged) {
        return vec![ordered.secret];
    }
    let refs = judged.listener.tls.iter().flat_map(|tls| &tls.certificates);
    refs.filter_map(|to| secret_of(index, &judged.owner.key, to, "").ok()).collect()
}

/// How a listener's certificates and demands stand.
pub(super) fn standing(world: &World, gateway: (&Name, &Gateway), judged: &Judged<'_>) -> TlsStanding {
    let mut standing = TlsStanding::default();
    if !judged.terminates() {
        return standing;
    }
    let refs = judged.listener.tls.as_ref().map_or(&[][..], |tls| &tls.certificates);
    if refs.is_empty() {
        standing.order(world, gateway.0, judged);
    }
    for to in refs {
        match certificate(world, &judged.owner.key, to, "InvalidCertificateRef") {
            Ok((object, good, fault)) => {
                if let Some(fault) = fault {
                    let message = format!("{object}: {fault}; the certificate that it held stays in force for a day");
                    standing.unresolved.get_or_insert(WhyNot::new("InvalidCertificateRef", message));
                }
                let unstapled = || good.staple_refused().map(|why| format!("{object}: {why}"));
                if let Some(remark) = dated(world, &object, good).or_else(unstapled) {
                    standing.remark.get_or_insert(remark);
                }
                standing.certificates.push((object, Arc::clone(good)));
            }
            Err(refusal) => _ = standing.unresolved.get_or_insert(refusal),
        }
    }
    let demand = gateway.1.clients.on(judged.listener.port).filter(|_| judged.listener.protocol == "HTTPS");
    if let Some((_, demand)) = demand {
        let (cas, fault) = client_cas(world, gateway.0, demand);
        if let Some(word) = &demand.unknown {
            let message = format!("unknown value `{word}` of tls.frontend's validation.mode");
            standing.refused = Some(WhyNot::new("UnsupportedValue", message));
        } else if cas.is_empty() {
            let message = "no CA of its clients' certificates can be read (tls.frontend)";
            standing.refused = Some(WhyNot::new("NoValidCACertificate", message));
        }
        standing.unresolved = standing.unresolved.or(fault);
    }
    standing
}

/// What a certificate's dates are worth a word for.
fn dated(world: &World, object: &ObjectKey, good: &Certificate) -> Option<String> {
    if world.now_ms() == 0 {
        return None;
    }
    let moment = |ms: i64| {
        let at = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok();
        at.and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok()).unwrap_or_default()
    };
    match good.validity(world.now_ms()) {
        Validity::Ended => Some(format!("{object}: its certificate ended at {}; it is shown all the same", moment(good.ends_ms))),
        Validity::Early => Some(format!("{object}: its certificate begins at {}; it is shown all the same", moment(good.begins_ms))),
        Validity::Ending | Validity::Good => None,
    }
}

/// The CAs of a demand, all together, and why some reference does not lead to any.
fn client_cas(world: &World, gateway: &Name, demand: &ClientDemand) -> (Vec<u8>, Option<WhyNot>) {
    let from = ObjectKey::new(Kind::Gateway, &gateway.0, &gateway.1);
    cas(world.index(), &from, &demand.cas, ("InvalidCACertificateRef", "InvalidCACertificateKind"))
}

/// The certificate that a Gateway shows its backends.
pub(super) fn client_certificate<'a>(world: &'a World, name: &Name, gateway: &Gateway) -> Option<Result<Found<'a>, WhyNot>> {
    let from = ObjectKey::new(Kind::Gateway, &name.0, &name.1);
    gateway.client_certificate.as_ref().map(|to| certificate(world, &from, to, "InvalidClientCertificateRef"))
}

/// The name of the Secret that clusters of a Gateway show; `None`: none that it may.
pub(super) fn shown(index: &Index, name: &Name, gateway: &Gateway) -> Option<String> {
    let from = ObjectKey::new(Kind::Gateway, &name.0, &name.1);
    let object = secret_of(index, &from, gateway.client_certificate.as_ref()?, "").ok()?;
    Some(names::certificate(&object.namespace, &object.name))
}

/// What an XBackend is shown; `None`: it says nothing of that.
fn certificate_outside<'a>(world: &'a World, object: &Object, spec: &ExternalBackend) -> Option<Result<Found<'a>, WhyNot>> {
    Some(certificate(world, &object.key, spec.certificate.as_ref()?, "InvalidClientCertificateRef"))
}

/// What is wrong with what an XBackend is shown.
pub(super) fn unshown(world: &World, object: &Object, spec: &ExternalBackend) -> Option<WhyNot> {
    match certificate_outside(world, object, spec)? {
        Err(refusal) => Some(refusal),
        Ok((secret, _, Some(fault))) => {
            let message = format!("{secret}: {fault}; the certificate that it held stays in force for a day");
            Some(WhyNot::new("InvalidClientCertificateRef", message))
        }
        Ok(_) => None,
    }
}

/// What the XBackends to which a Gateway's routes lead are shown.
fn outside<'a>(world: &'a World, gateway: &'a Name) -> impl Iterator<Item = (ObjectKey, &'a Arc<Certificate>)> {
    let index = world.index();
    index.externals.values().filter_map(|object| {
        let spec = external_backend::content(object)?;
        let found = certificate_outside(world, object, spec)?.ok()?;
        backend_tls::let_outside(index, object).contains(gateway).then_some((found.0, found.1))
    })
}

/// How a listener meets its clients, of which `policy` holds.
pub(super) fn downstream(
    index: &Index,
    (name, gateway): (&Name, &Gateway),
    judged: &Judged<'_>,
    policy: &ClientPolicy,
) -> tls::DownstreamTlsContext {
    let https = judged.listener.protocol == "HTTPS";
    let sds = |name: String| tls::SdsSecretConfig { name, sds_config: Some(wire::ads()) };
    let mut shown: Vec<String> = permitted(index, name, judged).iter().map(|key| names::certificate(&key.namespace, &key.name)).collect();
    if shown.is_empty() {
        shown.push(names::NO_CERTIFICATE.to_owned());
    }
    let demand = gateway.clients.on(judged.listener.port).filter(|_| https);
    let validation = |(port, demand): (u16, &ClientDemand)| {
        let verification = if demand.insecure { TrustChainVerification::AcceptUntrusted } else { TrustChainVerification::VerifyTrustChain };
        ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
            default_validation_context: Some(CertificateValidationContext {
                trust_chain_verification: verification.into(),
                ..CertificateValidationContext::default()
            }),
            validation_context_sds_secret_config: Some(sds(names::client_cas(&name.0, &name.1, port))),
        })
    };
    tls::DownstreamTlsContext {
        common_tls_context: Some(tls::CommonTlsContext {
            tls_certificate_sds_secret_configs: shown.into_iter().map(sds).collect(),
            validation_context_type: demand.map(validation),
            alpn_protocols: if https { alpn(policy) } else { Vec::new() },
            tls_params: (policy.tls12 == Some(false))
                .then(|| tls::TlsParameters { tls_minimum_protocol_version: TlsProtocol::TlSv13.into(), ..tls::TlsParameters::default() }),
        }),
        require_client_certificate: demand.map(|(_, demand)| !demand.insecure),
        session_ticket_keys_type: Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(sds(names::tickets(
            &name.0,
            &name.1,
            policy.ticket_hours.unwrap_or(TICKET_HOURS),
        )))),
    }
}

/// The versions of HTTP that are spoken, the dearest first.
fn alpn(policy: &ClientPolicy) -> Vec<String> {
    let all = [("h2", policy.http2), ("http/1.1", policy.http1)];
    all.into_iter().filter(|(_, enabled)| *enabled != Some(false)).map(|(name, _)| name.to_owned()).collect()
}

/// Everything that an edge keeps secret: its certificates, its clients' CAs and its tickets' keys, each by name. `hours`: after how many a listener
/// turns the last.
pub(super) fn secrets(world: &World, edge: &Edge<'_>, hours: impl Fn(&Judged<'_>) -> u32) -> BTreeMap<String, Secret> {
    let mut secrets = BTreeMap::new();
    let mut add = |name: String, kind: Option<secret::Type>| _ = secrets.insert(name.clone(), Secret { name, r#type: kind });
    let shown = |found: &Certificate| {
        secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: inline(&found.chain),
            private_key: inline(&found.key),
            ocsp_staple: found.stapled().and_then(|staple| inline(staple)),
        })
    };
    for proof in acme::proofs(world, edge.name) {
        add(proof.name.clone(), proof.r#type);
    }
    let mut turned = BTreeSet::new();
    for (_, judged) in edge.served().filter(|(_, judged)| judged.terminates()) {
        turned.insert(hours(judged));
        for (object, found) in standing(world, (edge.name, edge.gateway), judged).certificates {
            add(names::certificate(&object.namespace, &object.name), Some(shown(&found)));
        }
    }
    if let Some(Ok((object, found, _))) = client_certificate(world, edge.name, edge.gateway) {
        add(names::certificate(&object.namespace, &object.name), Some(shown(found)));
    }
    for (object, found) in outside(world, edge.name) {
        add(names::certificate(&object.namespace, &object.name), Some(shown(found)));
    }
    if turned.is_empty() {
        return secrets;
    }
    for (port, demand) in edge.gateway.clients.all().filter(|(_, demand)| demand.unknown.is_none()) {
        let (pem, _) = client_cas(world, edge.name, demand);
        if !pem.is_empty() {
            let context = CertificateValidationContext { trusted_ca: inline(&pem), ..CertificateValidationContext::default() };
            add(names::client_cas(&edge.name.0, &edge.name.1, port), Some(secret::Type::ValidationContext(context)));
        }
    }
    for hours in turned {
        let keys: Vec<DataSource> = world.tickets().keys(edge.name, hours).iter().filter_map(|key| inline(key)).collect();
        if !keys.is_empty() {
            add(names::tickets(&edge.name.0, &edge.name.1, hours), Some(secret::Type::SessionTicketKeys(TlsSessionTicketKeys { keys })));
        }
    }
    secrets
}

/// A certificate that the proxy of a Gateway shows its clients, or backends.
pub struct EdgeCertificate<'a> {
    /// The Gateway.
    pub gateway: &'a Name,
    /// Where it comes from.
    pub secret: ObjectKey,
    /// The certificate.
    pub certificate: Arc<Certificate>,
    /// What is wrong with the Secret now, where the certificate is kept from before.
    pub fault: Option<CertificateFault>,
}

/// Every certificate that edges show, by Gateway and Secret.
pub fn edge_certificates(world: &World) -> Vec<EdgeCertificate<'_>> {
    let mut all = Vec::new();
    for gateway in world.index().gateways.keys() {
        let Some(edge) = Edge::of(world.index(), gateway) else { continue };
        let standings = edge.served().map(|(_, judged)| standing(world, (gateway, edge.gateway), judged));
        let mut shown: BTreeMap<ObjectKey, Arc<Certificate>> = standings.flat_map(|standing| standing.certificates).collect();
        if let Some(Ok((object, found, _))) = client_certificate(world, gateway, edge.gateway) {
            shown.insert(object, Arc::clone(found));
        }
        shown.extend(outside(world, gateway).map(|(object, found)| (object, Arc::clone(found))));
        all.extend(shown.into_iter().map(|(secret, certificate)| {
            let fault = world.credential(&secret).ok().and_then(|(_, fault)| fault.cloned());
            EdgeCertificate { gateway, secret, certificate, fault }
        }));
    }
    all
}

/// Of listeners for TLS, whose clients may take a connection to one for one to another: the reason, and with which.
pub(super) fn overlaps(listeners: &[Judged<'_>], standings: &[TlsStanding]) -> BTreeMap<usize, (&'static str, String)> {
    let mut found: BTreeMap<usize, (&'static str, String)> = BTreeMap::new();
    let mut ports: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
    for (place, judged) in listeners.iter().enumerate() {
        if judged.refused.is_none() && matches!(judged.listener.protocol.as_str(), "HTTPS" | "TLS") {
            ports.entry(judged.listener.port).or_default().push(place);
        }
    }
    for places in ports.values() {
        for (number, one) in places.iter().enumerate() {
            for other in &places[number + 1..] {
                let (a, b) = (listeners[*one].host(), listeners[*other].host());
                let hosts = covers(a, b) || covers(b, a);
                let theirs = &standings[*other].certificates;
                let certificates = standings[*one].certificates.iter().any(|(_, a)| theirs.iter().any(|(_, b)| a.meets(b)));
                let reason = match (certificates, hosts) {
                    (true, _) => "OverlappingCertificates",
                    (false, true) => "OverlappingHostnames",
                    (false, false) => continue,
                };
                for (own, with) in [(*one, *other), (*other, *one)] {
                    let told = (reason, format!("listener {} has some of the same names", listeners[with].name()));
                    let known = found.entry(own).or_insert_with(|| told.clone());
                    // What is said of certificates goes before what is said of hosts.
                    if known.0 == "OverlappingHostnames" {
                        *known = told;
                    }
                }
            }
        }
    }
    found
}

/// Gateways of ours that refer to an object, by themselves or by a ListenerSet.
pub(super) fn referrers(index: &Index, object: &ObjectKey) -> Vec<Name> {
    let refers = |referrer: &Object| crate::world::references(referrer).contains(object);
    let sets = |name: &Name| index.gateway_sets.get(name).into_iter().flatten().any(|set| refers(set));
    let gateways = index.gateways.iter().filter(|(name, gateway)| refers(gateway) || sets(name));
    let shown =
        |backend: &&Arc<Object>| external_backend::content(backend).is_some_and(|spec| spec.certificate.is_some()) && refers(backend);
    let outside = index.externals.values().filter(shown).flat_map(|backend| backend_tls::let_outside(index, backend));
    gateways.map(|(name, _)| name.clone()).chain(outside).collect()
}

/// How each listener of an edge stands.
pub(super) fn standings(world: &World, name: &Name, gateway: &Gateway, listeners: &[Judged<'_>]) -> Vec<TlsStanding> {
    listeners.iter().map(|judged| standing(world, (name, gateway), judged)).collect()
}
