//! What `analyze` says of an edge: listeners that are not served, or not as their author wants, certificates, and how backends are met.

use super::advice::Finding;
use super::attach::WhyNot;
use super::backend_tls;
use super::edge_listeners::{Edge, Judged};
use super::edge_tls::{self, TlsStanding};
use crate::world::backend_tls::BackendTlsPolicy;
use crate::world::certificate::Validity;
use crate::world::{Kind, Name, Object, ObjectKey, Severity, World};

/// Where a listener stands: its object, the path of its field, its line.
pub(super) fn place(edge: &Edge<'_>, place: usize) -> (ObjectKey, String, u32) {
    let judged = &edge.listeners[place];
    let before = edge.listeners[..place].iter().filter(|other| other.owner.key == judged.owner.key).count();
    (judged.owner.key.clone(), format!("spec.listeners[{before}]"), judged.listener.line)
}

/// Everything that is to be said of the listeners of a Gateway and of its ListenerSets, by object.
pub(super) fn findings(world: &World, edge: &Edge<'_>) -> Vec<(ObjectKey, Finding)> {
    let mut findings = Vec::new();
    let gateway = ObjectKey::new(Kind::Gateway, &edge.name.0, &edge.name.1);
    for (number, judged) in edge.listeners.iter().enumerate() {
        let (key, at, line) = place(edge, number);
        let mut say = |severity, field: String, message: String, remedy: &str| {
            findings.push((key.clone(), Finding { severity, field: (field, line), message, remedy: remedy.to_owned() }));
        };
        if !judged.invalid_kinds.is_empty() {
            let message = format!("routes of kind {} are not supported", judged.invalid_kinds.join(", "));
            say(Severity::Warning, format!("{at}.allowedRoutes.kinds"), message, "remove them");
        }
        if let Some(WhyNot { reason, message }) = &judged.refused {
            say(Severity::Error, at, message.clone(), &format!("the listener is not served ({reason})"));
            continue;
        }
        let standing = edge_tls::standing(world, (edge.name, edge.gateway), judged);
        certificates(world, judged, &standing, |severity, message, remedy| say(severity, format!("{at}.tls"), message, remedy));
        if let Some(route) = edge.attached[number].get(1).map(|(route, _)| route)
            && matches!(judged.listener.protocol.as_str(), "TCP" | "UDP")
            && let Some(oldest) = edge.oldest(number).filter(|oldest| oldest.key != route.key)
        {
            let message = format!("{} is older than its other routes, and serves alone", oldest.key);
            say(Severity::Warning, at, message, "attach one route, with all backends and their weights");
        }
    }
    match edge_tls::client_certificate(world, edge.name, edge.gateway) {
        Some(Err(refusal)) => findings.push((gateway, unresolved("spec.tls.backend.clientCertificateRef", &refusal))),
        Some(Ok((object, _, Some(fault)))) => {
            let refusal = WhyNot::new("InvalidClientCertificateRef", format!("{object}: {fault}; the one before stays in force for a day"));
            findings.push((gateway, unresolved("spec.tls.backend.clientCertificateRef", &refusal)));
        }
        _ => {}
    }
    findings
}

fn unresolved(field: &str, refusal: &WhyNot) -> Finding {
    let remedy = if refusal.reason == "RefNotPermitted" { "add the ReferenceGrant" } else { "correct the Secret, or the reference" };
    Finding {
        severity: Severity::Error,
        field: (field.to_owned(), 0),
        message: refusal.message.clone(),
        remedy: format!("{remedy} ({})", refusal.reason),
    }
}

fn certificates(world: &World, judged: &Judged<'_>, standing: &TlsStanding, mut say: impl FnMut(Severity, String, &str)) {
    if let Some(refusal) = &standing.refused {
        say(Severity::Error, refusal.message.clone(), &format!("the listener is not served ({})", refusal.reason));
    }
    if let Some(refusal) = &standing.unresolved {
        let Finding { message, remedy, .. } = unresolved("", refusal);
        let served = standing.serves(judged);
        let fate = if served { remedy } else { format!("{remedy}; until then no client gets in") };
        say(if served { Severity::Warning } else { Severity::Error }, message, &fate);
    }
    if let Some((severity, why)) = &standing.pending {
        say(*severity, why.clone(), "until then no client gets in by that name, and everything else is served");
    }
    if let Some(host) = judged.listener.hostname.as_deref().filter(|_| !standing.certificates.is_empty())
        && !standing.certificates.iter().any(|(_, certificate)| certificate.covers(host))
    {
        let names: Vec<&str> = standing.certificates.iter().flat_map(|(_, found)| &found.names).map(String::as_str).take(5).collect();
        let message = format!("none of its certificates is for {host}; they are for {}", names.join(", "));
        say(Severity::Warning, message, "clients will refuse it: name a certificate for that host");
    }
    for (object, found) in &standing.certificates {
        match found.validity(world.now_ms()) {
            _ if world.now_ms() == 0 => {}
            Validity::Ended => say(Severity::Error, format!("the certificate of {object} has ended"), "clients refuse it: renew it"),
            Validity::Early => {
                say(Severity::Warning, format!("the certificate of {object} is not good yet"), "clients refuse it until then")
            }
            Validity::Ending => say(Severity::Warning, format!("the certificate of {object} ends within 30 days"), "renew it"),
            Validity::Good => {}
        }
        if let Some(why) = found.staple_refused() {
            say(
                Severity::Warning,
                format!("{object}: {why}"),
                "put a fresh response of the certificate's authority there, or take the entry away",
            );
        }
    }
}

/// Everything that is to be said of a BackendTLSPolicy.
pub(super) fn of_backend_tls(world: &World, object: &Object, policy: &BackendTlsPolicy) -> Vec<Finding> {
    let index = world.index();
    let mut findings = Vec::new();
    let mut say = |severity, field: &str, line: u32, message: String, remedy: &str| {
        findings.push(Finding { severity, field: (field.to_owned(), line), message, remedy: remedy.to_owned() });
    };
    let resolved = backend_tls::unresolved(index, object, policy);
    match backend_tls::judge(index, object, policy) {
        Err(WhyNot { reason: "TargetNotFound", message }) => say(Severity::Warning, "spec.targetRefs", 0, message, "correct the names"),
        Err(WhyNot { reason: "Conflicted", message }) => say(Severity::Warning, "spec.targetRefs", 0, message, "remove one of the two"),
        Err(WhyNot { reason, message }) => {
            say(Severity::Error, "spec", policy.line, message, &format!("requests of Gateways to its targets are answered 500 ({reason})"));
        }
        Ok(()) if backend_tls::ancestors(index, object, policy).is_empty() => {
            let message = "no route of a Gateway leads to its targets: it has no effect";
            say(Severity::Info, "spec.targetRefs", 0, message.to_owned(), "sidecars speak mesh TLS, whatever it says");
        }
        Ok(()) => {}
    }
    if let Some(WhyNot { reason, message }) = resolved {
        say(Severity::Warning, "spec.validation.caCertificateRefs", policy.line, message, &format!("correct it ({reason})"));
    }
    findings
}

/// Why a ListenerSet is attached to no Gateway.
pub(super) fn of_set(world: &World, object: &Object) -> Option<Finding> {
    let index = world.index();
    let set = super::edge_listeners::set(object)?;
    let say = |message: String, remedy: &str| {
        Some(Finding { severity: Severity::Warning, field: ("spec.parentRef".to_owned(), 0), message, remedy: remedy.to_owned() })
    };
    let Some(name): Option<Name> = set.parent(&object.key.namespace) else {
        return say("its parent is no Gateway".to_owned(), "name a Gateway");
    };
    if index.foreign_gateways.contains(&name) {
        return None;
    }
    let Some(gateway) = index.gateways.get(&name) else {
        return say(format!("there is no Gateway {}/{}", name.0, name.1), "add it, or correct the name");
    };
    let refusal = super::edge_listeners::set_refused(index, gateway, object)?;
    say(refusal.message, "let the Gateway's `allowedListeners` take it")
}
