//! What a canary makes of the rules that lead to its Service: the share of a backend that is the Service goes to its versions, and proxies count
//! what each of them answers. And what is said of the object.

use std::collections::BTreeSet;

use proto::mesh::{self, BackendPolicy, CanaryVersion};
use proto::names::BAD_BACKEND;
use proto::xds::core::HealthStatus;
use proto::xds::route::HeaderMatcher;
use proto::xds::route::weighted_cluster::ClusterWeight;

use super::advice::Finding;
use super::attach::{self, Backend};
use super::endpoint;
use super::frontend::Frontend;
use super::protocol::{self, Protocol};
use super::refusal::WhyNot;
use super::subject::Subject;
use super::wire::attach_policy;
use crate::world::canary::{Canary, CanaryLack, CanaryOverlay, CanaryShare, content};
use crate::world::problem::Severity;
use crate::world::route::BackendRef;
use crate::world::{Index, Name, Object, World};

/// Weights are multiplied by this where one of them is split, so that all stay whole numbers.
const PARTS: u32 = 100;

/// A backend of a rule on its way to the wire.
pub(super) struct Weighed {
    /// With everything but its policy.
    pub cluster: ClusterWeight,
    /// Where it leads, if it is good.
    pub backend: Option<Backend>,
    /// Its policy.
    pub policy: BackendPolicy,
}

/// What is made of calls to a backend.
fn overlay<'a>(index: &'a Index, backend: &Backend) -> Option<&'a CanaryOverlay> {
    // Most meshes have none.
    if index.canaried.overlays.is_empty() {
        return None;
    }
    index.canaried.overlays.get(&(backend.service.clone(), backend.port))
}

/// Backends of a rule, with the share of those that have a canary split. `matched`: which backend's canary goes by headers that the request has.
pub(super) fn split(
    front: &Frontend<'_>,
    listed: Vec<Weighed>,
    matched: Option<&Backend>,
    backends: &mut BTreeSet<Backend>,
) -> Vec<ClusterWeight> {
    let overlaid = |weighed: &Weighed| weighed.backend.as_ref().and_then(|backend| overlay(front.index, backend));
    let any = listed.iter().any(|weighed| overlaid(weighed).is_some());
    let mut clusters = Vec::with_capacity(listed.len());
    for mut weighed in listed {
        let Some(overlay) = overlaid(&weighed) else {
            backends.extend(weighed.backend.take());
            if any {
                weighed.cluster.weight = weighed.cluster.weight.map(|weight| weight.saturating_mul(PARTS));
            }
            attach_policy(&mut weighed.cluster.typed_per_filter_config, &weighed.policy);
            clusters.push(weighed.cluster);
            continue;
        };
        let own = matched.is_some() && weighed.backend.as_ref() == matched;
        for part in overlay.parts(own) {
            let mut policy = weighed.policy.clone();
            policy.canary = version(overlay, part.candidate);
            if !part.candidate
                && let Some(per_million) = overlay.mirrored()
                && let Some(candidate) = served(front, &overlay.candidate, overlay.port)
            {
                let copies = mesh::Mirror { cluster: candidate.cluster(), per_million, canary: version(overlay, true) };
                policy.filters.get_or_insert_default().mirrors.push(copies);
                backends.insert(candidate);
            }
            let to = served(front, part.service, overlay.port);
            let mut cluster = weighed.cluster.clone();
            cluster.name = to.as_ref().map_or_else(|| BAD_BACKEND.to_owned(), Backend::cluster);
            cluster.weight = cluster.weight.map(|weight| weight.saturating_mul(part.weight));
            attach_policy(&mut cluster.typed_per_filter_config, &policy);
            backends.extend(to);
            clusters.push(cluster);
        }
    }
    clusters
}

/// Who counts; nobody before a run has begun.
fn version(overlay: &CanaryOverlay, candidate: bool) -> Option<CanaryVersion> {
    let name = || CanaryVersion { canary: overlay.key.path(), run: overlay.run.clone(), candidate };
    (!overlay.run.is_empty()).then(name)
}

/// A version as a backend, unless an edge would have to meet it otherwise than it can.
fn served(front: &Frontend<'_>, service: &Name, port: u16) -> Option<Backend> {
    let backend = Backend { service: service.clone(), port };
    (!front.refuses(&backend)).then_some(backend)
}

/// The headers by which requests to a backend go to its candidate now.
pub(super) fn headers<'a>(index: &'a Index, backend: &Backend) -> Option<&'a [HeaderMatcher]> {
    overlay(index, backend)?.headers()
}

/// The versions that calls to a Service go to.
pub(super) fn subjects<'a>(index: &'a Index, called: &'a Name) -> impl Iterator<Item = Subject> + 'a {
    let overlays = index.canaried.overlays.range((called.clone(), 0)..=(called.clone(), u16::MAX));
    overlays.flat_map(|(_, overlay)| [Subject::service(&overlay.stable), Subject::service(&overlay.candidate)])
}

/// Services to which calls go otherwise in two worlds, because of their canaries.
pub(super) fn changed<'a>(was: &'a Index, is: &'a Index) -> impl Iterator<Item = &'a Name> {
    let (was, is) = (&was.canaried.overlays, &is.canaried.overlays);
    let gone = was.iter().filter(|(called, overlay)| is.get(called) != Some(overlay));
    let come = is.iter().filter(|(called, _)| !was.contains_key(called));
    gone.chain(come).map(|((service, _), _)| service)
}

/// Why nothing is decided about a canary: it is refused.
pub(super) fn refusal(world: &World, object: &Object) -> Option<WhyNot> {
    let (index, spec) = (world.index(), content(object)?);
    match index.canaried.lacks.get(&object.key) {
        Some(CanaryLack::TooMany) => {
            let max = crate::world::canary::CANARIES_MAX;
            return Some(WhyNot::new("TooMany", format!("{max} older canaries are in force, which is as many as may be")));
        }
        Some(CanaryLack::Rival(older)) => {
            return Some(WhyNot::new("Conflicted", format!("{older} is older and is about the same port")));
        }
        Some(CanaryLack::Called(why)) => return Some(WhyNot::new("TargetNotFound", why.clone())),
        Some(CanaryLack::Version(_)) | None => {}
    }
    let called = spec.called(&object.key);
    (speaks(index, &called, spec.port) == Some(Protocol::Tcp)).then(|| {
        let message = format!("port {} of Service {}/{} carries bytes, and a canary is about HTTP requests", spec.port, called.0, called.1);
        WhyNot::new("UnsupportedProtocol", message)
    })
}

/// Which of its versions is missing.
pub(super) fn unresolved(index: &Index, object: &Object) -> Option<WhyNot> {
    match index.canaried.lacks.get(&object.key)? {
        CanaryLack::Version(why) => Some(WhyNot::new("BackendNotFound", why.clone())),
        _ => None,
    }
}

/// Why nothing is decided about a canary just now: it is refused, or a version is missing.
pub fn canary_trouble(world: &World, object: &Object) -> Option<String> {
    refusal(world, object).or_else(|| unresolved(world.index(), object)).map(|why| why.message)
}

/// Why a run cannot begin yet: nobody of the candidate is ready, and whoever met it would meet a failure.
pub fn canary_unready(world: &World, object: &Object) -> Option<String> {
    let (index, spec) = (world.index(), content(object)?);
    let name = (object.key.namespace.clone(), spec.candidate.clone());
    let view = index.services.get(&name)?;
    let targets = endpoint::targets(index, view, endpoint::port_of(view, spec.port)?);
    let ready = targets.iter().any(|target| target.health == HealthStatus::Healthy);
    (!ready).then(|| format!("Service {}/{} has no ready endpoint yet", name.0, name.1))
}

fn speaks(index: &Index, service: &Name, port: u16) -> Option<Protocol> {
    let view = index.services.get(service)?;
    let port = view.service()?.ports.iter().find(|known| known.port == port)?;
    Some(protocol::of_service(index, view, port, &service.0))
}

/// Lines for `analyze`.
pub(super) fn findings(world: &World, object: &Object) -> Vec<Finding> {
    let (index, Some(spec)) = (world.index(), content(object)) else { return Vec::new() };
    let mut findings = Vec::new();
    let mut say = |severity, field: &str, message: String, remedy: &str| {
        findings.push(Finding { severity, field: (field.to_owned(), 0), message, remedy: remedy.to_owned() });
    };
    if let Some(WhyNot { reason, message }) = refusal(world, object) {
        let remedy = match reason {
            "Conflicted" => "remove one of the two",
            "TooMany" => "remove canaries that are over",
            "UnsupportedProtocol" => "name a port of HTTP or gRPC",
            _ => "add it, or correct the name or port",
        };
        say(Severity::Error, "spec.serviceRef", message, remedy);
        return findings;
    }
    if let Some(WhyNot { message, .. }) = unresolved(index, object) {
        say(Severity::Error, "spec", message, "add it, or correct the name; until then nothing is decided");
    }
    let called = spec.called(&object.key);
    if index.services.get(&called).is_some_and(|view| view.service().is_some_and(|service| service.headless)) {
        let message =
            format!("Service {}/{} is headless: who calls its instances by their own addresses goes past the canary", called.0, called.1);
        say(Severity::Warning, "spec.serviceRef", message, "give it a virtual address");
    }
    let version = |name: &String| (object.key.namespace.clone(), name.clone());
    let spoken = [&spec.stable, &spec.candidate].map(|name| speaks(index, &version(name), spec.port));
    if let [Some(stable), Some(candidate)] = spoken
        && stable != candidate
    {
        let message = format!("stable speaks {} at this port, and candidate {}", stable.text(), candidate.text());
        say(Severity::Warning, "spec.candidate", message, "give both ports the same appProtocol");
    }
    for (number, step) in spec.steps.iter().enumerate() {
        if matches!(step.share, CanaryShare::Mirror(_) | CanaryShare::Match(_)) && step.hold.is_none() && !step.approve {
            let message = "it lasts until its few requests are evidence enough, which may be long".to_owned();
            say(Severity::Info, &format!("spec.steps[{number}]"), message, "say how long with hold");
        }
    }
    for route in elsewhere(index, spec, &called) {
        let message = format!("{} sends requests for this port elsewhere: none of those meets the candidate", route.key);
        say(Severity::Warning, "spec.serviceRef", message, "leave its backendRefs out, or name the Service itself there");
    }
    findings
}

/// Routes of the called port of which no rule leads to it.
fn elsewhere<'a>(index: &'a Index, spec: &Canary, called: &Name) -> impl Iterator<Item = &'a Object> {
    let (routes, _) = attach::service_routes(index, called, spec.port, &called.0);
    let (called, port) = (called.clone(), spec.port);
    routes.into_iter().map(|route| &**route).filter(move |route: &&Object| {
        let backend = Backend { service: called.clone(), port };
        let leads = |reference: &BackendRef| attach::good(index, route, reference, true).as_ref() == Some(&backend);
        attach::content(route)
            .is_some_and(|spec| !spec.rules.iter().any(|rule| rule.backends.as_ref().is_none_or(|backends| backends.iter().any(leads))))
    })
}

#[cfg(test)]
#[path = "canary_tests.rs"]
mod tests;
