//! Findings: what `analyze` says beyond what was wrong at the door. The same translator, and the same engine as the proxy's, look
//! at the same world; nothing is guessed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::annotations as word;
use proto::names::{self, Mode};

use super::advice::{self, Finding};
use super::attach::{self, Attachment, WhyNot};
use super::cluster::targets;
use super::edge_listeners::{self, Edge, Judged};
use super::engine_verdict::{refused_by_engine, runner};
use super::mtls::{applies, is_strict};
use super::rank::{self, RankedMatch};
use super::security::{authentication, egress};
use super::{access_log, audiences, canary, conflict, edge, edge_advice, security, trust};
use crate::source::{FileChange, Folder};
use crate::world::problem::{Problem, Severity};
use crate::world::route::{ParentRef, PathMatch, Reference, Route, Rule, Unsupported};
use crate::world::workload::Workload;
use crate::world::{Address, Allocations, Change, Index, Kind, Name, Object, ObjectKey, Origin, ServiceView, Spec, World, WorldSettings};

/// Judges manifests offline: everything that is wrong with them, whenever that is, sorted by file and line.
pub fn analyze(files: Vec<FileChange>) -> Vec<Problem> {
    analyze_at(files, 0)
}

/// The same at a moment, milliseconds since 1970: certificates end.
pub fn analyze_at(files: Vec<FileChange>, now_ms: i64) -> Vec<Problem> {
    let settings = WorldSettings { assume_ready: true, ..WorldSettings::default() };
    let mut world = World::new(settings, Allocations::default());
    // What has no age of its own is younger than what has one.
    let mut changes = Folder::default().update(files, i64::MAX);
    changes.extend([Change::Clock { now_ms }, Change::Synced(Origin::Folder)]);
    world.apply(changes);
    let mut problems = world.problems();
    problems.extend(audit(&world));
    problems.sort();
    problems.dedup();
    problems
}

/// Findings about a world, sorted: conflicts, what leads nowhere, what has no effect, what the proxy would refuse.
pub fn audit(world: &World) -> Vec<Problem> {
    let mut audit = Audit { world, index: world.index(), problems: Vec::new() };
    for (_, object) in world.live() {
        audit.object(object);
    }
    audit.hidden();
    audit.gateways();
    audit.addresses();
    audit.tables();
    audit.engine(None);
    audit.sorted()
}

/// What [`audit`] says of one object, and nothing of others: it looks only at what can lead to that, so that an answer at the door does not
/// wait for a whole cluster to be judged.
pub fn audit_of(world: &World, key: &ObjectKey) -> Vec<Problem> {
    let mut audit = Audit { world, index: world.index(), problems: Vec::new() };
    if let Some(object) = world.get(key) {
        audit.object(object);
        if let Spec::Route(route) = &object.spec {
            audit.tables_of(object, route);
        }
    }
    // These go through much and judge little.
    match key.kind {
        Kind::Workload => audit.hidden(),
        Kind::Gateway | Kind::GatewayClass | Kind::ListenerSet => audit.gateways(),
        _ => {}
    }
    if matches!(key.kind, Kind::Service | Kind::Workload | Kind::Pod) {
        audit.addresses();
    }
    if matches!(key.kind, Kind::Service | Kind::Workload | Kind::Gateway) {
        audit.engine(Some(key));
    }
    audit.problems.retain(|problem| problem.is_of(key));
    audit.sorted()
}

struct Audit<'a> {
    world: &'a World,
    index: &'a Index,
    problems: Vec<Problem>,
}

impl Audit<'_> {
    fn sorted(self) -> Vec<Problem> {
        let mut problems = self.problems;
        problems.sort();
        problems.dedup();
        problems
    }

    /// `line` 0: the object's own.
    fn say(
        &mut self,
        severity: Severity,
        key: &ObjectKey,
        (field, line): (&str, u32),
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let live = self.world.slots().get(key).and_then(|slot| slot.live());
        let (file, own) = live.map_or(("", 0), |live| (live.file.as_str(), live.line));
        let line = if line == 0 { own } else { line };
        self.problems.push(Problem::of_object(severity, (file, line), key, field, message, remedy));
    }

    fn found(&mut self, key: &ObjectKey, findings: Vec<Finding>) {
        for Finding { severity, field: (field, line), message, remedy } in findings {
            self.say(severity, key, (&field, line), message, remedy);
        }
    }

    fn object(&mut self, object: &Arc<Object>) {
        let key = &object.key;
        self.annotations(object);
        if let Some(WhyNot { message, .. }) = security::too_many(self.world, object) {
            let remedy = "make it smaller, join rules of it and of older ones, or select fewer workloads; the bounds are in docs/limits.md";
            self.say(Severity::Error, key, ("spec", 0), message, remedy);
        }
        if let Spec::Telemetry(spec) = &object.spec {
            self.found(key, access_log::findings(self.index, spec));
        }
        match &object.spec {
            Spec::Canary(_) => self.found(key, canary::findings(self.world, object)),
            Spec::Route(route) => self.route(object, route),
            Spec::Service(_) => self.service(key),
            Spec::Workload(workload) => self.workload(key, workload),
            Spec::TrafficPolicy(_) => self.found(key, advice::findings(self.world, object)),
            Spec::AuthorizationPolicy(policy) if !policy.inbound() => self.edge(object),
            Spec::AuthorizationPolicy(_) => self.found(key, security::findings(self.world, object)),
            Spec::ExternalBackend(_) | Spec::BackendTlsPolicy(_) => self.found(key, edge_advice::of_backend(self.world, object)),
            Spec::ListenerSet(_) => self.found(key, edge_advice::of_set(self.world, object).into_iter().collect()),
            Spec::Mesh(mesh) => self.found(key, trust::federation_findings(self.world, mesh)),
            Spec::Revocation(spec) => self.found(key, trust::revocation_findings(self.world, key, spec)),
            Spec::EgressPolicy(spec) => {
                self.policy(object, &spec.selector);
                for (severity, field, message, remedy) in egress::findings(self.world, object, spec) {
                    self.say(severity, key, (&field, 0), message, remedy);
                }
            }
            Spec::PeerAuthentication(spec) => self.policy(object, &spec.selector),
            Spec::Telemetry(spec) if !spec.targets.is_empty() => self.found(key, edge_advice::telemetry(self.world, object, spec)),
            Spec::Telemetry(spec) => self.policy(object, &spec.selector),
            Spec::ApiKeyAuth(_) | Spec::BasicAuth(_) | Spec::RateLimit(_) | Spec::ClientPolicy(_) => self.edge(object),
            Spec::ExternalAuth(_) | Spec::OidcLogin(_) => self.edge(object),
            Spec::Consumer(consumer) => {
                if let Some(WhyNot { message, .. }) = edge::consumers::refusal(self.world, object) {
                    self.say(Severity::Warning, key, ("spec.credentials", 0), message, "give each consumer credentials of its own");
                }
                if let Some(Err(why)) = edge::consumers::resolved(self.world, consumer) {
                    self.say(Severity::Warning, key, ("spec.credentials", 0), why, "the credential does not count; correct the Secret");
                }
            }
            Spec::RequestAuthentication(spec) => {
                if spec.attachment.targets.is_empty() {
                    self.policy(object, &spec.selector);
                } else {
                    self.edge(object);
                }
                for (severity, (field, line), message, remedy) in authentication::findings(self.index, object, spec) {
                    self.say(severity, key, (&field, line), message, remedy);
                }
            }
            Spec::EndpointSlice(slice)
                if !slice.service.is_empty() && !self.index.services.contains_key(&(key.namespace.clone(), slice.service.clone())) =>
            {
                self.say(Severity::Warning, key, ("metadata.labels", 0), format!("there is no Service {}", slice.service), "add it");
            }
            _ => {}
        }
    }

    /// What an annotation lists and is none is left out; say so.
    fn annotations(&mut self, object: &Object) {
        let ports = [word::EXCLUDE_OUTBOUND_PORTS, word::EXCLUDE_INBOUND_PORTS, word::OPAQUE_PORTS];
        for (name, value) in &object.metadata.annotations {
            let good = |part: &str| match name.as_str() {
                name if ports.contains(&name) => part.parse().is_ok_and(|port: u16| port > 0),
                word::EXCLUDE_OUTBOUND_CIDRS => part.parse::<ipnet::IpNet>().is_ok(),
                _ => true,
            };
            for part in value.split(',').map(str::trim).filter(|part| !part.is_empty() && !good(part)) {
                let message = format!("`{part}` is none of what belongs here; it is left out");
                let remedy = "list port numbers (or CIDRs), separated by commas";
                self.say(Severity::Warning, &object.key, (&format!("metadata.annotations.{name}"), 0), message, remedy);
            }
        }
        let known = [
            word::EXCLUDE_OUTBOUND_PORTS,
            word::EXCLUDE_INBOUND_PORTS,
            word::EXCLUDE_OUTBOUND_CIDRS,
            word::PROXY_CPU,
            word::PROXY_MEMORY,
            word::LOG_LEVEL,
            word::OPAQUE_PORTS,
        ];
        for name in object.metadata.annotations.keys().filter(|name| name.starts_with("meshwright.dev/") && !known.contains(&name.as_str()))
        {
            let near = crate::world::problem::nearest(name, known);
            let remedy = near.map_or_else(|| "remove it".to_owned(), |near| format!("did you mean `{near}`?"));
            self.say(Severity::Warning, &object.key, ("metadata.annotations", 0), format!("unknown annotation `{name}`"), remedy);
        }
    }

    fn route(&mut self, object: &Arc<Object>, route: &Route) {
        let key = &object.key;
        for rule in &route.rules {
            let fate =
                if rule.matches.is_empty() { "; the rule is dropped" } else { "; what the rule's other matches match is answered 500" };
            for fault in &rule.unmatchable {
                self.fault(key, fault, fate);
            }
        }
        for fault in route.rules.iter().flat_map(|rule| &rule.failing) {
            self.fault(key, fault, "; the rule's requests are answered 500");
        }
        for fault in route.rules.iter().flat_map(Rule::backends).flat_map(|backend| &backend.failing) {
            self.fault(key, fault, "; the backend's share of requests is answered 500");
        }
        if route.parents.is_empty() {
            self.say(Severity::Warning, key, ("spec.parentRefs", 0), "the route attaches to nothing", "name a Gateway or a Service");
        }
        let mut mesh = true;
        for (number, parent) in route.parents.iter().enumerate() {
            let at = format!("spec.parentRefs[{number}]");
            match attach::standing(self.index, object, parent) {
                Attachment::Refused(WhyNot { reason, message }) => {
                    let remedy = format!("it is not attached there ({reason})");
                    self.say(Severity::Warning, key, (&at, parent.line), message, remedy);
                }
                Attachment::Gateway(..) => mesh = false,
                Attachment::Service(service, ports, lost) => {
                    if !lost.is_empty() {
                        self.say(Severity::Warning, key, (&at, parent.line), attach::told(&lost), "name the port that is meant");
                    }
                    self.waits(object, route, &service, &ports);
                }
                Attachment::Foreign => {}
            }
            let twin =
                |other: &&ParentRef| (&other.name, &other.namespace, &other.section) == (&parent.name, &parent.namespace, &parent.section);
            if parent.is_service() && route.parents[..number].iter().filter(|other| other.is_service()).any(|other| twin(&other)) {
                let message = "the same Service again, with another port alone: a cluster with Gateway API's standard channel refuses it";
                self.say(Severity::Info, key, (&at, parent.line), message, "for a cluster, make two routes of it");
            }
            if parent.is_service() && !route.hostnames.is_empty() && key.kind != Kind::TLSRoute {
                let message = "hostnames mean nothing for a Service: its address is what is called";
                self.say(Severity::Info, key, ("spec.hostnames", 0), message, "remove them");
            }
        }
        for (number, rule) in route.rules.iter().enumerate() {
            self.rule(object, number, rule, mesh);
        }
    }

    /// Connections have no rules to be told apart by: the oldest route has them.
    fn waits(&mut self, object: &Arc<Object>, route: &Route, service: &Name, ports: &[u16]) {
        if object.key.kind.routes_http() {
            return;
        }
        for port in ports {
            let (routes, _) = attach::service_routes(self.index, service, *port, &object.key.namespace);
            let older = routes.into_iter().take_while(|other| other.key != object.key);
            let same = |other: &&Arc<Object>| {
                let theirs = attach::content(other).map_or(&[][..], |spec| &spec.hostnames);
                route.hostnames.is_empty() && theirs.is_empty() || route.hostnames.iter().any(|name| theirs.contains(name))
            };
            if let Some(older) = older.into_iter().find(same) {
                let what = if object.key.kind == Kind::TLSRoute { " for the same names" } else { "" };
                let message = format!("{} is older and has the connections to port {port}{what}", older.key);
                self.say(Severity::Warning, &object.key, ("spec.parentRefs", 0), message, "remove one of the two");
            }
        }
    }

    /// `mesh`: it is attached to no Gateway.
    fn rule(&mut self, object: &Arc<Object>, number: usize, rule: &Rule, mesh: bool) {
        let key = &object.key;
        let http = key.kind.routes_http();
        let at = format!("spec.rules[{number}].backendRefs");
        let fate = if http { "the rule's requests are answered 500" } else { "the rule's connections are refused" };
        let share = if http { "its share of requests is answered 500" } else { "its share of connections is refused" };
        let nowhere = rule.backends.is_some() || !mesh;
        if rule.backends().is_empty() && nowhere && rule.failing.is_empty() && rule.filters.redirect.is_none() {
            self.say(Severity::Warning, key, (&at, rule.line), format!("without backends {fate}"), "name a backend");
        } else if !rule.backends().is_empty() && rule.backends().iter().all(|backend| backend.weight == 0) {
            self.say(Severity::Warning, key, (&at, rule.line), format!("all weights are 0: {fate}"), "give a backend some weight");
        }
        for (place, backend) in rule.backends().iter().enumerate() {
            self.reference(object, &format!("{at}[{place}]"), &backend.to, mesh, share);
            for mirror in &backend.filters.mirrors {
                self.reference(object, &format!("{at}[{place}].filters"), &mirror.to, mesh, "no copy is sent");
            }
        }
        for mirror in &rule.filters.mirrors {
            self.reference(object, &format!("spec.rules[{number}].filters"), &mirror.to, mesh, "no copy is sent");
        }
    }

    fn reference(&mut self, object: &Arc<Object>, at: &str, to: &Reference, mesh: bool, fate: &str) {
        let Err(WhyNot { reason, message }) = attach::backend(self.index, object, to, mesh) else { return };
        let remedy = match reason {
            "RefNotPermitted" => format!("add the ReferenceGrant; until then {fate}"),
            "BackendNotFound" => format!("add it, or correct the name or port; until then {fate}"),
            _ => fate.to_owned(),
        };
        self.say(Severity::Warning, &object.key, (at, to.line), message, remedy);
    }

    fn fault(&mut self, key: &ObjectKey, fault: &Unsupported, what: &str) {
        self.say(
            Severity::Error,
            key,
            (&fault.field, fault.line),
            format!("{}{what}", fault.message),
            "remove it, or wait for a version that supports it",
        );
    }

    fn service(&mut self, key: &ObjectKey) {
        let Some(view) = self.index.services.get(&(key.namespace.clone(), key.name.clone())) else { return };
        let Some(service) = view.service().filter(|service| !service.external_name) else { return };
        let sliced = self.index.slices.contains_key(&(key.namespace.clone(), key.name.clone()));
        if view.instances.is_empty() && !sliced {
            let message =
                if service.selector.is_empty() { "it has no selector, and no EndpointSlice" } else { "its selector matches no workload" };
            self.say(Severity::Warning, key, ("spec.selector", 0), message, "calls are answered 503 until there is an endpoint");
            return;
        }
        for (number, port) in service.ports.iter().enumerate() {
            if targets(self.index, view, port).is_empty() && !view.instances.is_empty() {
                let message = format!("no workload behind it has the port {}", port.target);
                let remedy = "name the workload's port as targetPort does, or use its number";
                self.say(Severity::Warning, key, (&format!("spec.ports[{number}].targetPort"), 0), message, remedy);
            }
        }
    }

    fn workload(&mut self, key: &ObjectKey, workload: &Workload) {
        let account = &workload.service_account;
        let declared = account == "default" || self.world.get(&ObjectKey::new(Kind::ServiceAccount, &key.namespace, account)).is_some();
        if !declared {
            let message = format!("there is no ServiceAccount {}/{account}", key.namespace);
            self.say(Severity::Info, key, ("spec.serviceAccount", 0), message, "it works without; Kubernetes would want it");
        }
        for port in workload.udp_ports.iter().map(|port| port.port) {
            if is_strict(self.world, (&key.namespace, &key.name), port) == Some(true) {
                let message = format!("port {port} is for UDP, which passes outside mTLS although the workload is Strict");
                let remedy = "whoever reaches the address reaches it: keep others out by the network";
                self.say(Severity::Warning, key, ("spec.ports", 0), message, remedy);
            }
        }
    }

    /// Where an object of an edge kind does not hold, or not as it says.
    fn edge(&mut self, object: &Object) {
        for (severity, field, message, remedy) in edge::findings(self.index, object) {
            self.say(severity, &object.key, (&field, 0), message, remedy);
        }
        for other in edge::limits::met(self.index, object) {
            let message = format!("{other} has rateLimits for the same requests; both count");
            self.say(Severity::Info, &object.key, ("spec", 0), message, "keep one of the two: rateLimits is for calls between services");
        }
        self.found(&object.key, edge_advice::ending(self.index, object));
        for ancestor in edge::judge(self.world, object) {
            let (field, line) = &ancestor.field;
            for (message, remedy) in ancestor.loosened {
                self.say(Severity::Warning, &object.key, (field, *line), message, remedy);
            }
            let unresolved = ancestor.resolved.and_then(Result::err);
            let found = ancestor.accepted.err().into_iter().chain(unresolved).chain(ancestor.partly);
            for WhyNot { reason, message } in found {
                let remedy = edge_advice::remedy(reason, &object.key);
                self.say(Severity::Warning, &object.key, (field, *line), message, remedy);
            }
        }
    }

    fn policy(&mut self, object: &Arc<Object>, selector: &crate::world::own::Selector) {
        let key = &object.key;
        if let Some(conflict) = conflict::of(self.index, object) {
            let message = if conflict.whole {
                format!("{} is older and says the same fields for the same workloads; this one has no effect", conflict.winner)
            } else {
                format!("{} is older and wins where both say something", conflict.winner)
            };
            self.say(Severity::Warning, key, ("spec", 0), message, "merge the two");
        }
        let mut chosen =
            self.index.instances.values().filter(|instance| applies(object, selector, &instance.namespace, instance.labels())).peekable();
        if selector.is_some() && chosen.peek().is_none() {
            self.say(Severity::Warning, key, ("spec.selector", 0), "it selects no workload", "correct the labels");
        } else if matches!(key.kind, Kind::PeerAuthentication | Kind::EgressPolicy | Kind::RequestAuthentication)
            && chosen.peek().is_some()
            && chosen.all(|instance| !instance.meshed)
        {
            let remedy = format!("label the namespace {}: {}", word::INJECT, word::ENABLED);
            self.say(Severity::Warning, key, ("spec", 0), "none of the workloads it selects has a sidecar: nothing is enforced", remedy);
        }
    }

    fn hidden(&mut self) {
        for (namespace, instance, workload) in self.index.hidden.iter() {
            let key = ObjectKey::new(Kind::Workload, namespace, workload);
            let message = format!("another Workload has an instance named `{instance}` already; this one is not run");
            self.say(Severity::Error, &key, ("metadata.name", 0), message, "rename one of the Workloads");
        }
    }

    fn gateways(&mut self) {
        let mut ports: BTreeMap<(u16, bool), ObjectKey> = BTreeMap::new();
        for (key, object) in self.world.live() {
            if let Spec::GatewayClass(class) = &object.spec
                && class.controller == word::CONTROLLER
                && class.parameters
            {
                self.say(
                    Severity::Error,
                    key,
                    ("spec.parametersRef", 0),
                    "this controller has no parameters",
                    "remove it; its Gateways are not served",
                );
            }
            let Spec::Gateway(gateway) = &object.spec else { continue };
            let name = (key.namespace.clone(), key.name.clone());
            if !self.index.gateways.contains_key(&name) {
                if self.world.get(&ObjectKey::new(Kind::GatewayClass, "", &gateway.class)).is_none() {
                    let remedy = crate::world::problem::nearest(&gateway.class, [word::GATEWAY_CLASS]);
                    let remedy =
                        remedy.map_or_else(|| format!("ours is `{}`", word::GATEWAY_CLASS), |near| format!("did you mean `{near}`?"));
                    let message = format!("there is no GatewayClass `{}`: nobody serves this Gateway", gateway.class);
                    self.say(Severity::Warning, key, ("spec.gatewayClassName", 0), message, remedy);
                }
                continue;
            }
            if let Some(WhyNot { reason, message }) = edge_listeners::refused(self.index, gateway) {
                self.say(Severity::Error, key, ("spec", 0), message, format!("the Gateway is not served ({reason})"));
            }
            self.listeners(&name, &mut ports);
        }
    }

    /// The listeners of a Gateway and of its ListenerSets. `ports`: who has which of the machine's.
    fn listeners(&mut self, name: &Name, ports: &mut BTreeMap<(u16, bool), ObjectKey>) {
        let Some(edge) = Edge::of(self.index, name) else { return };
        for (key, finding) in edge_advice::findings(self.world, &edge) {
            self.found(&key, vec![finding]);
        }
        let gateway = ObjectKey::new(Kind::Gateway, &name.0, &name.1);
        for (number, judged) in edge.served() {
            let door = (judged.listener.port, judged.listener.protocol == "UDP");
            let Some(other) = ports.get(&door).filter(|other| **other != gateway) else {
                ports.insert(door, gateway.clone());
                continue;
            };
            let (key, at, line) = edge_advice::place(&edge, number);
            let message = format!("{other} has port {} too", door.0);
            self.say(Severity::Warning, &key, (&at, line), message, "on one machine one of them gets another port");
        }
    }

    /// Addresses that two claim.
    fn addresses(&mut self) {
        let services = self.index.services.values().map(|view| (view.object.key.clone(), view.addresses.clone()));
        let instances = self.index.instances.values().map(|instance| (instance.object.key.clone(), instance.addresses.clone()));
        for (key, addresses) in services.chain(instances) {
            for address in addresses {
                let owner = match self.index.addresses.get(&address) {
                    Some(Address::Service(name)) => ObjectKey::new(Kind::Service, &name.0, &name.1),
                    Some(Address::Instance(name)) => match self.index.instances.get(name) {
                        Some(instance) => instance.object.key.clone(),
                        None => continue,
                    },
                    Some(Address::Gateway(name)) => ObjectKey::new(Kind::Gateway, &name.0, &name.1),
                    None => continue,
                };
                // Workloads on one machine may share its address; then their ports tell them apart.
                if owner != key && !(owner.kind == Kind::Workload && key.kind == Kind::Workload) {
                    let message = format!("{owner} has the address {address} already, and keeps it");
                    self.say(Severity::Error, &key, ("spec", 0), message, "choose another, or leave it to the mesh");
                }
            }
        }
    }

    /// Rules that can never be reached because an earlier one matches the same.
    fn tables(&mut self) {
        let client_namespaces: BTreeSet<&str> = self.index.routes.iter().map(|route| route.key.namespace.as_str()).collect();
        for (name, service) in self.index.services.iter() {
            let ports = service.service().map_or(&[][..], |service| &service.ports);
            for (port, client) in ports.iter().flat_map(|port| client_namespaces.iter().map(move |client| (port.port, *client))) {
                self.table(name, port, client, |_| true);
            }
        }
        let gateways = self.index.gateways.iter().map(|(name, _)| name.clone()).collect();
        self.gateway_tables(gateways, |_| true);
    }

    /// The same for the rules of one route. Its own namespace sees it wherever it attaches: as a consumer's route, or as the producer's.
    fn tables_of(&mut self, object: &Arc<Object>, route: &Route) {
        let name = |parent: &ParentRef| (parent.namespace.clone().unwrap_or_else(|| object.key.namespace.clone()), parent.name.clone());
        let parents = |fits: fn(&ParentRef) -> bool| route.parents.iter().filter(move |parent| fits(parent)).map(name).collect();
        let services: BTreeSet<Name> = parents(ParentRef::is_service);
        let own = |entry: &RankedMatch<'_>| entry.route.key == object.key;
        for name in services {
            let Some(service) = self.index.services.get(&name).and_then(ServiceView::service) else { continue };
            for port in &service.ports {
                self.table(&name, port.port, &object.key.namespace, own);
            }
        }
        let gateways = route.parents.iter().filter_map(|parent| attach::leads_to_gateway(self.index, &object.key, parent)).collect();
        self.gateway_tables(gateways, own);
    }

    fn table(&mut self, service: &Name, port: u16, client: &str, fits: impl Fn(&RankedMatch<'_>) -> bool) {
        let (routes, _) = attach::service_routes(self.index, service, port, client);
        self.unreachable(routes.into_iter().map(|route| (route, "*".to_owned())), fits);
    }

    fn gateway_tables(&mut self, gateways: BTreeSet<Name>, fits: impl Fn(&RankedMatch<'_>) -> bool) {
        for name in gateways {
            let Some(edge) = Edge::of(self.index, &name) else { continue };
            let http = |judged: &Judged<'_>| matches!(judged.listener.protocol.as_str(), "HTTP" | "HTTPS");
            for (place, _) in edge.served().filter(|(_, judged)| http(judged)) {
                self.unreachable(edge.attached[place].iter().map(|(route, host)| (*route, host.clone())), &fits);
            }
        }
    }

    /// Of those entries that fit.
    fn unreachable<'r>(&mut self, routes: impl IntoIterator<Item = (&'r Arc<Object>, String)>, fits: impl Fn(&RankedMatch<'_>) -> bool) {
        let entries = rank::entries(self.world, routes);
        for (place, entry) in entries.iter().enumerate().filter(|(_, entry)| fits(entry)) {
            let same = |other: &&RankedMatch<'_>| {
                other.host == entry.host && other.matched == entry.matched && other.route.key.kind == entry.route.key.kind
            };
            let Some(winner) = entries[..place].iter().find(same) else { continue };
            let rule = |entry: &RankedMatch<'_>| entry.rule.name.clone().unwrap_or_else(|| entry.number.to_string());
            let what = match &entry.matched.path {
                PathMatch::Exact(path) => path.clone(),
                PathMatch::Prefix(path) => format!("{path}/*"),
                PathMatch::Regex(pattern) => format!("~{pattern}"),
                PathMatch::Service(service) => format!("/{service}/*"),
                PathMatch::Method(method) => format!("/*/{method}"),
            };
            let message =
                format!("a match on {what} is never reached: rule {} of {} is the same and comes first", rule(winner), winner.route.key);
            let field = format!("spec.rules[{}].matches", entry.number);
            self.say(Severity::Warning, &entry.route.key, (&field, entry.rule.line), message, "remove one, or make it more specific");
        }
    }

    /// Hands every audience's view to the proxy's own engine; those alone from which something may be said of `of`, where that is given.
    fn engine(&mut self, of: Option<&ObjectKey>) {
        let mut asked = BTreeSet::new();
        let mut refusals = BTreeSet::new();
        for audience in audiences(self.world) {
            // Sidecars of one namespace see the same outbound side.
            let first = audience.node.mode == Mode::Sidecar && asked.insert(audience.node.namespace.clone());
            if of.is_some_and(|key| key.kind != Kind::Service && runner(&audience) != *key) {
                continue;
            }
            let wants = if first { self.wants() } else { BTreeSet::new() };
            refusals.extend(refused_by_engine(self.world, &audience, &wants));
        }
        for (key, message) in refusals {
            self.say(Severity::Error, &key, ("spec", 0), message, "its last good version stays in force; please report this");
        }
    }

    /// Everything that a proxy may ask for.
    fn wants(&self) -> BTreeSet<String> {
        let services = self.index.services.values().filter_map(|view| Some((view, view.service()?)));
        let addresses = services.flat_map(|(view, service)| {
            let pairs = service.ports.iter().flat_map(|port| view.addresses.iter().map(move |address| (*address, port.port)));
            pairs.map(|(address, port)| names::outbound(std::net::SocketAddr::new(address, port))).collect::<Vec<_>>()
        });
        let instances = self.index.instances.values().flat_map(|instance| {
            let ports = instance.workload().map_or(&[][..], |workload| &workload.ports);
            let pairs = ports.iter().flat_map(|port| instance.addresses.iter().map(move |address| (*address, port.port)));
            pairs.map(|(address, port)| names::outbound(std::net::SocketAddr::new(address, port))).collect::<Vec<_>>()
        });
        let hosts = self.index.services.values().map(|view: &ServiceView| names::dns(&format!("{}.{}", view.name().1, view.name().0)));
        addresses.chain(instances).chain(hosts).collect()
    }
}
