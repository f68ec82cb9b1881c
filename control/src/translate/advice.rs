//! Settings of TrafficPolicies that are in force and do nothing, or not what their author wants: lines for `analyze`. A finding is told of a policy that
//! says one of the settings itself; the others may come from wider places.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use engine::filter::LIMITS_MAX;

use super::attach;
use super::cluster::targets;
use super::mtls::applies;
use super::policy::{content, defaults, ejects, hashes, judge, settings, uncounted, wide};
use super::protocol::{self, Protocol};
use crate::world::core::ServicePort;
use crate::world::route::Rule;
use crate::world::traffic::{Place, Prefer, Reach, SettingField, TrafficPolicy, TrafficSettings, UpstreamProtocol};
use crate::world::{Index, Instance, Kind, Object, ServiceView, Severity, World};

/// One line for `analyze`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Path of the field, and its line; 0: the object's own.
    pub field: (String, u32),
    /// What is the matter.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// Everything that is to be said of a policy, each once.
pub(super) fn findings(world: &World, object: &Object) -> Vec<Finding> {
    let Some(policy) = content(object) else { return Vec::new() };
    let mut findings = BTreeSet::new();
    for ancestor in judge(world, object, policy) {
        let Err(refusal) = ancestor.verdict else { continue };
        let remedy = if refusal.reason == "Conflicted" { "merge the two" } else { "it has no effect there; correct the name, or add it" };
        let (field, message) = (ancestor.field, refusal.message);
        findings.insert(Finding { severity: Severity::Warning, field, message, remedy: remedy.to_owned() });
    }
    let index = world.index();
    if policy.selector.is_some() {
        let chosen = |instance: &&Instance| applies(object, &policy.selector, &instance.namespace, instance.labels());
        let mut meshed = index.instances.values().filter(chosen).map(|instance| instance.meshed).peekable();
        if meshed.peek().is_none() {
            findings.insert(warn("selector", "it selects no workload", "correct the labels"));
        } else if !meshed.any(|meshed| meshed) {
            let message = "none of the workloads it selects has a sidecar: nothing is limited";
            findings.insert(warn("selector", message, "label the namespace meshwright.dev/inject: enabled"));
        }
        return findings.into_iter().collect();
    }
    for place in policy.places(&object.key) {
        let around = around(index, &place);
        let mut said = settings(index, &around, place.of_callers());
        said.fill(&defaults());
        let own = Own { policy, said: &said };
        own.balancing(&mut findings);
        own.attempts(retried(index, &place), &mut findings);
        own.limits(&mut findings);
        own.health(&mut findings);
        if let Place::Object(key) | Place::Section(key, _) = &place
            && key.kind == Kind::Service
            && let Some(view) = index.services.get(&(key.namespace.clone(), key.name.clone()))
        {
            let section = if let Place::Section(_, name) = &place { Some(name.as_str()) } else { None };
            own.service(index, (view, section), &mut findings);
        }
    }
    findings.extend(uncounted_limits(index, object, policy));
    findings.into_iter().collect()
}

/// A place and what is wider.
fn around(index: &Index, place: &Place) -> Vec<Place> {
    let mut all = vec![place.clone()];
    match place {
        Place::Section(key, _) => all.push(Place::Object(key.clone())),
        Place::Object(_) | Place::Namespace(_) | Place::Mesh => {}
    }
    match place {
        Place::Section(key, _) | Place::Object(key) => all.extend(wide(&key.namespace)),
        Place::Namespace(_) => all.push(Place::Mesh),
        Place::Mesh => {}
    }
    all.retain(|place| index.traffic.contains_key(place));
    all
}

fn warn(path: &str, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
    let field = (format!("spec.{path}"), 0);
    Finding { severity: Severity::Warning, field, message: message.into(), remedy: remedy.into() }
}

/// What a policy says, and what holds where it says it.
struct Own<'a> {
    policy: &'a TrafficPolicy,
    said: &'a TrafficSettings,
}

impl Own<'_> {
    fn balancing(&self, findings: &mut BTreeSet<Finding>) {
        let (own, said) = (&self.policy.settings, self.said);
        let to_service = self.policy.targets.iter().all(|target| target.kind == Kind::Service);
        if own.hash.is_some() && !hashes(said) && to_service {
            let message = "only RingHash and Maglev hash; with this algorithm it has no effect";
            findings.insert(warn("loadBalancer.hash", message, "set algorithm to RingHash or Maglev, or remove it"));
        }
        if own.algorithm.is_some() && hashes(said) && said.hash.as_ref().is_none_or(Vec::is_empty) {
            let message = "without `hash` there is nothing to choose by: each request goes to any endpoint";
            findings.insert(warn("loadBalancer.algorithm", message, "add hash, such as [{sourceAddress: {}}]"));
        }
        if own.slow_start.is_some_and(|time| !time.is_zero()) && hashes(said) {
            let message = "an endpoint's place on a hash does not grow: it has no effect with RingHash and Maglev";
            findings.insert(warn("loadBalancer.slowStart", message, "remove it, or use another algorithm"));
        }
        if own.failover_percent.is_some() && said.prefer.unwrap_or_default() == Prefer::None {
            let message = "where no locality is preferred there is nothing to fail over from";
            findings.insert(warn("loadBalancer.locality.failoverBelowHealthyPercent", message, "set prefer to Zone or Region"));
        }
    }

    /// `retried`: a route that may go by this policy has a retry of its own.
    fn attempts(&self, retried: bool, findings: &mut BTreeSet<Finding>) {
        let (own, said) = (&self.policy.settings, self.said);
        let request = said.request.filter(|time| !time.is_zero());
        let longer = |one: Option<Duration>| one.zip(request).is_some_and(|(one, whole)| one > whole);
        for (path, mine, attempt) in [
            ("retry.perTryTimeout", own.per_try.is_some(), said.per_try),
            ("timeouts.backendRequest", own.backend_request.is_some(), said.backend_request),
        ] {
            if (mine || own.request.is_some()) && longer(attempt) {
                let message = format!("{path} is longer than timeouts.request, which ends everything before");
                findings.insert(warn(if mine { path } else { "timeouts.request" }, message, "make it shorter than timeouts.request"));
            }
        }
        // A route's own retry asks for attempts, and leaves open how long they may take, how long to wait and what to keep.
        let waiting = [
            ("on", own.causes.is_some(), false),
            ("statusCodes", own.status_codes.is_some(), false),
            ("grpcStatuses", own.grpc_statuses.is_some(), false),
            ("perTryTimeout", own.per_try.is_some(), true),
            ("backoff", own.backoff_base.is_some() || own.backoff_max.is_some(), true),
            ("bodyBufferBytes", own.body_buffer_bytes.is_some(), true),
        ];
        let waiting = waiting.iter().filter(|(_, mine, shared)| *mine && !(*shared && retried));
        let waiting: Vec<&str> = waiting.map(|(name, ..)| *name).collect();
        if !waiting.is_empty() && said.attempts == Some(0) {
            let message = format!("no effect without `attempts`: {}", waiting.join(", "));
            findings.insert(warn("retry", message, "add attempts, such as 2"));
        }
        let asked = said.attempts.is_some_and(|attempts| attempts > 0);
        if own.causes.as_ref().is_some_and(Vec::is_empty) && asked && said.per_try.is_none() {
            findings.insert(warn("retry.on", "it lists no reason: nothing is tried again", "list reasons, or leave it out for all"));
        }
        if own.attempts.is_some_and(|attempts| attempts > 0) && said.budget_percent == Some(0.0) && said.budget_per_second == Some(0) {
            findings.insert(warn("retry.attempts", "the budget allows no retry at all", "raise retry.budget"));
        }
        if own.hedge.as_ref().is_some_and(|hedge| hedge.max_percent == 0.0 || hedge.methods.is_empty()) {
            let message = "without methods, or with maxPercent 0, nothing is hedged";
            findings.insert(warn("retry.hedge", message, "list methods, such as GET and HEAD, and allow some per cent"));
        }
    }

    fn limits(&self, findings: &mut BTreeSet<Finding>) {
        let (own, said) = (&self.policy.settings, self.said);
        let to_service = self.policy.targets.iter().all(|target| target.kind == Kind::Service);
        if own.priority.is_some() && said.requests == Some(0) && to_service {
            let message = "without limits.requests nothing is ever shed";
            findings.insert(warn("priority", message, "add limits.requests"));
        }
        let waits = own.pending.is_some_and(|pending| pending > 0) || own.pending_timeout.is_some();
        if waits && said.connections == Some(0) && said.requests == Some(0) {
            let message = "without limits.connections or limits.requests nothing ever waits";
            findings.insert(warn("limits.pending", message, "add one of them"));
        }
    }

    fn health(&self, findings: &mut BTreeSet<Finding>) {
        let (own, said) = (&self.policy.settings, self.said);
        let tuned = own.outlier_interval.is_some() || own.eject_for.is_some() || own.max_ejected_percent.is_some_and(|share| share > 0.0);
        if tuned && !ejects(said) {
            let message = "every cause is 0: nothing is ever ejected";
            findings.insert(warn("health.outlier", message, "set consecutiveErrors or another cause"));
        }
        let probe = own.active.as_ref();
        let span = |raw: Option<&prost_types::Duration>| raw.and_then(|raw| Duration::try_from(*raw).ok()).unwrap_or_default();
        if probe.is_some_and(|probe| span(probe.timeout.as_ref()) > span(probe.interval.as_ref())) {
            let message = "its timeout is longer than its interval";
            findings.insert(warn("health.active", message, "make the timeout shorter: a probe waits for the one before"));
        }
    }

    /// `section`: one port of it by name.
    fn service(&self, index: &Index, (view, section): (&ServiceView, Option<&str>), findings: &mut BTreeSet<Finding>) {
        let own = &self.policy.settings;
        let Some(service) = view.service() else { return };
        let speaks = |port: &ServicePort| protocol::of_service(index, view, port, view.name().0);
        let meant: Vec<&ServicePort> = service.ports.iter().filter(|port| section.is_none_or(|name| name == port.name)).collect();
        let tuned = own.fields().iter().any(|field| field.path.starts_with("health.outlier"));
        let endpoints = service.ports.iter().map(|port| targets(index, view, port).len()).max().unwrap_or(0);
        if tuned && ejects(self.said) && endpoints == 1 {
            findings.insert(Finding {
                severity: Severity::Info,
                field: ("spec.health.outlier".to_owned(), 0),
                message: format!("{} has one endpoint, and the last one is never ejected", view.object.key),
                remedy: "it has an effect from two endpoints on".to_owned(),
            });
        }
        let calls = own.fields().iter().any(|field| field.path != "rateLimits");
        if calls && service.headless {
            let message =
                format!("{} has no address of its own: calls go to its instances, past everything but rateLimits", view.object.key);
            findings.insert(warn("targetRefs", message, "give it an address (remove `clusterIP: None`)"));
        }
        if own.upstream_protocol == Some(UpstreamProtocol::Tcp) {
            for port in meant.iter().filter(|port| speaks(port) != Protocol::Tcp) {
                let message = format!("port {} has routes, which make it HTTP; `Tcp` has no effect there", port.port);
                findings.insert(warn("upstreamProtocol", message, "remove it, or detach the routes"));
            }
        }
        if !meant.is_empty() && meant.iter().all(|port| speaks(port) == Protocol::Tcp) {
            self.bytes(view, findings);
        }
        self.led(index, view, findings);
    }

    /// Whatever is about requests, of a Service that carries bytes.
    fn bytes(&self, view: &ServiceView, findings: &mut BTreeSet<Finding>) {
        const REQUESTS: [&str; 4] = ["limits.requests", "limits.pending", "limits.requestsPerConnection", "retry.budget"];
        let own = &self.policy.settings;
        let versions = [UpstreamProtocol::Http1, UpstreamProtocol::Http2];
        let idle = |field: &SettingField| match field.path {
            "upstreamProtocol" => own.upstream_protocol.is_some_and(|protocol| versions.contains(&protocol)),
            path => field.reach == Reach::Call || REQUESTS.iter().any(|about| path.starts_with(about)),
        };
        let idle: Vec<&str> = own.fields().iter().filter(|field| idle(field)).map(|field| field.path).collect();
        if let Some(first) = idle.first() {
            let message = format!("{} carries bytes there, and these are about requests: {}", view.object.key, idle.join(", "));
            findings.insert(warn(first, message, "remove it, or declare the port as HTTP by its name or appProtocol"));
        }
    }

    /// What one call does goes by the Service that was called, not by the one that its route leads to.
    fn led(&self, index: &Index, view: &ServiceView, findings: &mut BTreeSet<Finding>) {
        let (namespace, name) = view.name();
        let fields = self.policy.settings.fields();
        // Servers keep the limits, whatever way requests came.
        let calls: Vec<&str> =
            fields.iter().filter(|field| field.reach == Reach::Call && field.path != "rateLimits").map(|field| field.path).collect();
        let Some(first) = calls.first() else { return };
        let meant = |given: Option<&String>, route: &Object, of: &str| {
            given.map_or(route.key.namespace.as_str(), String::as_str) == namespace && of == name
        };
        for route in index.routes.iter() {
            let Some(spec) = attach::content(route) else { continue };
            let leads = spec.rules.iter().flat_map(Rule::backends).any(|one| meant(one.to.namespace.as_ref(), route, &one.to.name));
            let called = spec.parents.iter().filter(|parent| parent.is_service());
            let called: Vec<_> = called.filter(|parent| !meant(parent.namespace.as_ref(), route, &parent.name)).collect();
            if let (true, Some(parent)) = (leads && route.key.kind.routes_http(), called.first()) {
                let message = format!(
                    "requests that {} leads to {} go by policies for Service {}, and not by these fields: {}",
                    route.key,
                    view.object.key,
                    parent.name,
                    calls.join(", ")
                );
                let field = (format!("spec.{first}"), 0);
                let remedy = format!("for those, say it of Service {}, or of the route", parent.name);
                findings.insert(Finding { severity: Severity::Info, field, message, remedy });
                return;
            }
        }
    }
}

/// Whether a route that may go by policies of a place says itself what is tried again.
fn retried(index: &Index, place: &Place) -> bool {
    let retries = |route: &&Arc<Object>| attach::content(route).is_some_and(|spec| spec.rules.iter().any(|rule| rule.retry.is_some()));
    index.routes.iter().filter(retries).any(|route| {
        let Some(spec) = attach::content(route) else { return false };
        let namespace = |given: &Option<String>| given.clone().unwrap_or_else(|| route.key.namespace.clone());
        let parents = spec.parents.iter().map(|parent| (namespace(&parent.namespace), &parent.name));
        let leads = spec.rules.iter().flat_map(Rule::references).map(|to| (namespace(&to.namespace), &to.name));
        let mut near = parents.chain(leads);
        match place {
            Place::Mesh => true,
            Place::Namespace(name) => near.any(|(namespace, _)| namespace == *name),
            Place::Object(key) | Place::Section(key, _) => {
                *key == route.key || near.any(|(namespace, name)| (namespace.as_str(), name.as_str()) == (&key.namespace, &key.name))
            }
        }
    })
}

/// Rate limits that a server does not keep: more of them meet at one of its ports than a proxy takes.
fn uncounted_limits(index: &Index, object: &Object, policy: &TrafficPolicy) -> Option<Finding> {
    policy.settings.rate_limits.as_ref()?;
    let whose = object.key.path();
    let ports = |instance: &Instance| {
        let services = protocol::selecting(index, instance).filter_map(ServiceView::service).flat_map(|service| &service.ports);
        services.filter_map(|port| protocol::target(port, instance)).collect::<BTreeSet<u16>>()
    };
    index.instances.values().find_map(|instance| {
        let many = |port: &u16| uncounted(index, instance, protocol::in_front(index, instance, *port), &whose) > 0;
        let port = ports(instance).into_iter().find(many)?;
        let message = format!(
            "port {port} of workload {}/{} has the limits of all Services in front of it, and they are more than {LIMITS_MAX}: some of \
             these are not counted",
            instance.namespace, instance.workload
        );
        Some(warn("rateLimits", message, "make fewer of them, or say them of the workload with a selector"))
    })
}
