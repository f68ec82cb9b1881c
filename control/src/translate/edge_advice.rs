//! What `analyze` says of an edge: listeners that are not served, or not as their author wants, certificates, and how backends are met.

use super::advice::Finding;
use super::attach::WhyNot;
use super::edge::client;
use super::edge_listeners::{Edge, Judged};
use super::edge_tls::{self, TlsStanding};
use super::{backend_tls, conflict, policy};
use crate::world::backend_tls::BackendTlsPolicy;
use crate::world::certificate::Validity;
use crate::world::external_backend::ExternalBackend;
use crate::world::telemetry::Telemetry;
use crate::world::traffic::PolicyTarget;
use crate::world::{Index, Kind, Name, Object, ObjectKey, Severity, Spec, World};

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

/// The same of a Telemetry that says by name what it is about.
pub(super) fn telemetry(world: &World, object: &Object, spec: &Telemetry) -> Vec<Finding> {
    let warn = |(field, line): (&str, u32), message: String, remedy: &str| Finding {
        severity: Severity::Warning,
        field: (field.to_owned(), line),
        message,
        remedy: remedy.to_owned(),
    };
    let lost = conflict::of(world.index(), object).map(|found| {
        let message = format!("{} is older and wins where both say something", found.winner);
        warn(("spec", 0), message, "merge the two")
    });
    let absent = spec.targets.iter().filter_map(|target| {
        let WhyNot { message, .. } = policy::target_found(world, &object.key, target).err()?;
        Some(warn(("spec.targetRefs", target.line), message, "correct the name"))
    });
    lost.into_iter().chain(absent).collect()
}

/// What to do about an object of an edge kind that does not hold somewhere.
pub(super) fn remedy(reason: &str, key: &ObjectKey) -> &'static str {
    match reason {
        "Locked" => "remove the field, or ask whoever owns the Gateway",
        "Conflicted" => "merge the two",
        "UnsupportedValue" if key.kind == Kind::ClientPolicy => "say it of the Gateway, or give the listener a port of its own",
        "UnsupportedValue" => "name the listeners or routes that it is meant for",
        _ => "correct the reference",
    }
}

/// How long a Gateway's proxies take to end, where a ClientPolicy says that: their pods need as much.
pub(super) fn ending(index: &Index, object: &Object) -> Vec<Finding> {
    let Spec::ClientPolicy(policy) = &object.spec else { return Vec::new() };
    if policy.readiness_grace.is_none() && policy.go_away_grace.is_none() {
        return Vec::new();
    }
    let gateways = policy.attachment.targets.iter().filter(|target| target.kind == Kind::Gateway);
    let one = |target: &PolicyTarget| {
        let ending = client::ending(index, &(object.key.namespace.clone(), target.name.clone()))?;
        Some(Finding {
            severity: Severity::Info,
            field: ("spec.connections".to_owned(), 0),
            message: format!("a proxy of the Gateway {} takes up to {} s to end", target.name, ending.as_secs_f64()),
            remedy: format!("give its pods terminationGracePeriodSeconds of {} or more", ending.as_secs() + 5),
        })
    };
    gateways.filter_map(one).collect()
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

/// Everything that is to be said of what says how backends are met.
pub(super) fn of_backend(world: &World, object: &Object) -> Vec<Finding> {
    match &object.spec {
        Spec::ExternalBackend(spec) => of_external(world, object, spec),
        Spec::BackendTlsPolicy(policy) => of_backend_tls(world, object, policy),
        _ => Vec::new(),
    }
}

fn of_external(world: &World, object: &Object, spec: &ExternalBackend) -> Vec<Finding> {
    let index = world.index();
    let mut findings = Vec::new();
    let mut say = |severity, field: &str, message: String, remedy: &str| {
        findings.push(Finding { severity, field: (field.to_owned(), spec.line), message, remedy: remedy.to_owned() });
    };
    if let Err(WhyNot { reason, message }) = backend_tls::judge_outside(index, object, spec) {
        say(Severity::Error, "spec", message, &format!("requests of Gateways to it are answered 500 ({reason})"));
    }
    if let Some(WhyNot { reason, message }) = spec.tls.as_ref().and_then(|policy| backend_tls::unresolved(index, object, policy)) {
        say(Severity::Warning, "spec.tls.validation.caCertificateRefs", message, &format!("correct it ({reason})"));
    }
    if let Some(WhyNot { reason, message }) = edge_tls::unshown(world, object, spec) {
        say(Severity::Warning, "spec.tls.clientCertificateRef", message, &format!("correct the Secret, or the reference ({reason})"));
    }
    if spec.tls.is_none() {
        say(Severity::Warning, "spec.tls", "it is met in plaintext, outside the mesh".to_owned(), "write `tls: {mode: ServerOnly}`");
    }
    if backend_tls::ancestors_outside(index, object).is_empty() {
        say(Severity::Info, "spec", "no route of a Gateway leads to it: it has no effect".to_owned(), "name it as a backendRef");
    }
    findings
}

fn of_backend_tls(world: &World, object: &Object, policy: &BackendTlsPolicy) -> Vec<Finding> {
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
    if let Some((instance, port)) = backend_tls::unopened(index, object, policy) {
        let message = format!(
            "the sidecar of {}/{} takes HTTP at port {port}: TLS that the policy has Gateways speak there is refused, and their requests are 503",
            instance.namespace, instance.name
        );
        say(
            Severity::Warning,
            "spec.targetRefs",
            0,
            message,
            "declare the port as one of TLS (`appProtocol: https`), or remove the policy",
        );
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
