//! What translation looks up, built once per [`World`]: objects by what they are about, instances by Service, everything by
//! address. Ordered throughout, and lists of rivals have the oldest first, so that equal worlds translate to equal bytes.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use super::core::Service;
use super::instance::{Instance, former_names, instances, names as names_of, of_pod, zone};
use super::object::Object;
use super::own::Mesh;
use super::revocation::{Revocation, Revoked};
use super::security::authorization::Action;
use super::traffic::Place;
use super::{Kind, ObjectKey, Spec, World, gateway_name};

/// (namespace, name).
pub type Name = (String, String);

/// See the module.
#[derive(Debug, Default)]
pub struct Index {
    /// The mesh's switches.
    pub mesh: Mesh,
    /// Whether the objects are a cluster's.
    pub in_cluster: bool,
    /// Labels and annotations of every namespace that anything lives in.
    pub namespaces: BTreeMap<String, NamespaceView>,
    /// Services with what is behind them.
    pub services: BTreeMap<Name, ServiceView>,
    /// Instances by (namespace, instance).
    pub instances: BTreeMap<Name, Instance>,
    /// Instances of each Workload, by (namespace, workload).
    pub workloads: BTreeMap<Name, Vec<Name>>,
    /// Services in front of each instance.
    pub fronts: BTreeMap<Name, Vec<Name>>,
    /// Who has an address.
    pub addresses: BTreeMap<IpAddr, Address>,
    /// EndpointSlices by (namespace, Service).
    pub slices: BTreeMap<Name, Vec<Arc<Object>>>,
    /// Every route of whatever kind, the oldest first.
    pub routes: Vec<Arc<Object>>,
    /// Routes by the Service they name as a parent, the oldest first.
    pub service_routes: BTreeMap<Name, Vec<Arc<Object>>>,
    /// Service ports that a GRPCRoute leads to; translation, which knows what attaches, says so at its first use.
    pub(crate) grpc_ports: OnceLock<BTreeSet<(Name, u16)>>,
    /// Gateways of our classes.
    pub gateways: BTreeMap<Name, Arc<Object>>,
    /// Own addresses of our Gateways' proxies, IPv4 first.
    pub gateway_addresses: BTreeMap<Name, Vec<IpAddr>>,
    /// Gateways of other controllers' classes.
    pub foreign_gateways: BTreeSet<Name>,
    /// PeerAuthentications, the oldest first.
    pub peer_authentications: Vec<Arc<Object>>,
    /// RequestAuthentications, the oldest first.
    pub request_authentications: Vec<Arc<Object>>,
    /// Telemetries, the oldest first.
    pub telemetries: Vec<Arc<Object>>,
    /// Revocations, the oldest first.
    revocations: Vec<Arc<Object>>,
    /// What they come to.
    pub revoked: Revoked,
    /// TrafficPolicies by each place they are about, the oldest first.
    pub traffic: BTreeMap<Place, Vec<Arc<Object>>>,
    /// TrafficPolicies with a selector, the oldest first.
    pub traffic_selectors: Vec<Arc<Object>>,
    /// EgressPolicies, by namespace and name.
    pub egress: Vec<Arc<Object>>,
    /// AuthorizationPolicies for the inbound side, in the order in which they are asked: Deny, Allow, Audit, each by name.
    pub authorizations: Vec<Arc<Object>>,
    /// Policies that are left out, and at which workloads; translation says so at its first use.
    pub(crate) left_out: OnceLock<BTreeMap<ObjectKey, BTreeSet<Name>>>,
    /// ReferenceGrants by namespace.
    pub grants: BTreeMap<String, Vec<Arc<Object>>>,
    /// Instances that another Workload's instance of the same name hides: (namespace, instance, hidden Workload).
    pub hidden: Vec<(String, String, String)>,
}

/// A namespace's labels and annotations.
#[derive(Clone, Debug, Default)]
pub struct NamespaceView {
    /// Labels, with the one Kubernetes adds by itself.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// A Service and what is behind it.
#[derive(Clone, Debug)]
pub struct ServiceView {
    /// The Service.
    pub object: Arc<Object>,
    /// Its virtual addresses, IPv4 first; none for a headless one.
    pub addresses: Vec<IpAddr>,
    /// The instances that its selector picks.
    pub instances: Vec<Name>,
}

impl ServiceView {
    /// The Service's content.
    pub fn service(&self) -> Option<&Service> {
        if let Spec::Service(service) = &self.object.spec { Some(service) } else { None }
    }

    /// (namespace, name).
    pub fn name(&self) -> (&str, &str) {
        (&self.object.key.namespace, &self.object.key.name)
    }
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Service, as its virtual address.
    Service(Name),
    /// An instance.
    Instance(Name),
    /// A Gateway's proxy.
    Gateway(Name),
}

impl Index {
    pub(super) fn build(world: &World) -> Self {
        let mut index = Self { in_cluster: world.settings().in_cluster, ..Self::default() };
        let classes = our_classes(world);
        for (key, object) in world.live() {
            index.add_namespace(&key.namespace);
            index.add(key, object, &classes);
        }
        for (_, object) in world.live() {
            if let Spec::Workload(workload) = &object.spec {
                index.add_workload(world, object, workload);
            }
        }
        for (_, object) in world.live() {
            if let Spec::Workload(workload) = &object.spec {
                index.add_former(world, object, workload);
            }
        }
        index.add_pods(world);
        let labelled = index.labelled();
        for (_, object) in world.live() {
            if let Spec::Service(service) = &object.spec {
                index.add_service(world, object, service, &labelled);
            }
        }
        index.add_addresses(world);
        // Gateway API compares `namespace/name` as one text.
        let age = |object: &Arc<Object>| (world.created_ms(object), object.key.path(), object.key.kind);
        index.routes.sort_by_cached_key(age);
        index.peer_authentications.sort_by_cached_key(age);
        index.request_authentications.sort_by_cached_key(age);
        index.telemetries.sort_by_cached_key(age);
        index.revocations.sort_by_cached_key(age);
        index.revoked = Revoked::of(index.revocations.iter().filter_map(|object| revocation(object)));
        index.traffic_selectors.sort_by_cached_key(age);
        index.traffic.values_mut().for_each(|rivals| rivals.sort_by_cached_key(age));
        index.authorizations.sort_by_cached_key(|object| (asked(object), object.key.path()));
        index.add_routes();
        index
    }

    fn add_namespace(&mut self, name: &str) {
        if name.is_empty() || self.namespaces.contains_key(name) {
            return;
        }
        let labels = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())]);
        self.namespaces.insert(name.to_owned(), NamespaceView { labels, annotations: BTreeMap::new() });
    }

    fn add(&mut self, key: &ObjectKey, object: &Arc<Object>, classes: &[String]) {
        let name = (key.namespace.clone(), key.name.clone());
        match &object.spec {
            Spec::Namespace => {
                self.add_namespace(&key.name);
                if let Some(namespace) = self.namespaces.get_mut(&key.name) {
                    namespace.labels.extend(object.metadata.labels.clone());
                    namespace.annotations.clone_from(&object.metadata.annotations);
                }
            }
            Spec::Mesh(mesh) => self.mesh = mesh.clone(),
            Spec::EndpointSlice(slice) if !slice.service.is_empty() => {
                self.slices.entry((name.0, slice.service.clone())).or_default().push(Arc::clone(object));
            }
            Spec::PeerAuthentication(_) => self.peer_authentications.push(Arc::clone(object)),
            Spec::RequestAuthentication(_) => self.request_authentications.push(Arc::clone(object)),
            Spec::Telemetry(_) => self.telemetries.push(Arc::clone(object)),
            Spec::Revocation(_) => self.revocations.push(Arc::clone(object)),
            Spec::TrafficPolicy(policy) if policy.selector.is_some() => self.traffic_selectors.push(Arc::clone(object)),
            Spec::TrafficPolicy(policy) => {
                for place in policy.places(key) {
                    let at = self.traffic.entry(place).or_default();
                    // One that names a target twice counts once.
                    if at.last().is_none_or(|last| last.key != *key) {
                        at.push(Arc::clone(object));
                    }
                }
            }
            Spec::EgressPolicy(_) => self.egress.push(Arc::clone(object)),
            Spec::AuthorizationPolicy(policy) if policy.inbound() => self.authorizations.push(Arc::clone(object)),
            Spec::Route(_) => self.routes.push(Arc::clone(object)),
            Spec::ReferenceGrant(_) => self.grants.entry(name.0).or_default().push(Arc::clone(object)),
            Spec::Gateway(gateway) if classes.contains(&gateway.class) => {
                self.gateways.insert(name, Arc::clone(object));
            }
            Spec::Gateway(_) => {
                self.foreign_gateways.insert(name);
            }
            _ => {}
        }
    }

    fn add_workload(&mut self, world: &World, object: &Arc<Object>, workload: &super::workload::Workload) {
        let label = self.namespace_label(&object.key.namespace, proto::annotations::INJECT).map(str::to_owned);
        let mut names = Vec::new();
        for instance in instances(world, object, workload, label.as_deref(), names_of(&object.key.name, workload)) {
            let name = (instance.namespace.clone(), instance.name.clone());
            if self.instances.contains_key(&name) {
                self.hidden.push((name.0, name.1, instance.workload));
                continue;
            }
            names.push(name.clone());
            self.instances.insert(name, instance);
        }
        self.workloads.insert((object.key.namespace.clone(), object.key.name.clone()), names);
    }

    /// A change between one replica and several renames every instance. Those that run under their old names stay until the first
    /// new one is ready, so that there is always somebody to serve.
    fn add_former(&mut self, world: &World, object: &Arc<Object>, workload: &super::workload::Workload) {
        let key = (object.key.namespace.clone(), object.key.name.clone());
        let Some(names) = self.workloads.get_mut(&key) else { return };
        if names.iter().any(|name| self.instances.get(name).is_some_and(|instance| instance.ready)) {
            return;
        }
        let label = self.namespaces.get(&key.0).and_then(|namespace| namespace.labels.get(proto::annotations::INJECT));
        let former = former_names(world, &object.key, workload);
        for instance in instances(world, object, workload, label.map(String::as_str), former) {
            let name = (instance.namespace.clone(), instance.name.clone());
            // What another Workload declares is its own.
            if let Entry::Vacant(place) = self.instances.entry(name.clone()) {
                place.insert(instance);
                names.push(name);
            }
        }
    }

    fn add_pods(&mut self, world: &World) {
        let nodes = world.live().filter(|(key, _)| key.kind == Kind::Node);
        let zones = nodes.map(|(key, object)| (key.name.clone(), zone(object))).collect();
        for (key, object) in world.live() {
            let Spec::Pod(pod) = &object.spec else { continue };
            let Some(instance) = of_pod(world, object, pod, &zones) else { continue };
            let name = (key.namespace.clone(), key.name.clone());
            // What a Workload declares is its own.
            let Entry::Vacant(place) = self.instances.entry(name.clone()) else { continue };
            self.workloads.entry((name.0.clone(), instance.workload.clone())).or_default().push(name);
            place.insert(instance);
        }
    }

    /// Instances by namespace and one of their labels.
    fn labelled(&self) -> BTreeMap<(String, String, String), Vec<Name>> {
        let mut labelled: BTreeMap<_, Vec<Name>> = BTreeMap::new();
        for (name, instance) in &self.instances {
            for (label, value) in instance.labels() {
                labelled.entry((name.0.clone(), label.clone(), value.clone())).or_default().push(name.clone());
            }
        }
        labelled
    }

    fn add_service(
        &mut self,
        world: &World,
        object: &Arc<Object>,
        service: &Service,
        labelled: &BTreeMap<(String, String, String), Vec<Name>>,
    ) {
        let key = &object.key;
        let given = world.allocations().service(&world.settings().ranges, &format!("{}/{}", key.namespace, key.name));
        let addresses = service.addresses(world.settings(), given);
        // The rarest label of the selector leaves the fewest to look at.
        let label = |(label, value): (&String, &String)| labelled.get(&(key.namespace.clone(), label.clone(), value.clone()));
        let groups = service.selector.iter().map(|pair| label(pair).map_or(&[][..], Vec::as_slice));
        let fits = |name: &&Name| {
            let labels = self.instances.get(*name).map(Instance::labels);
            labels.is_some_and(|labels| service.selector.iter().all(|(label, value)| labels.get(label) == Some(value)))
        };
        let selected: Vec<Name> = groups.min_by_key(|group| group.len()).unwrap_or_default().iter().filter(fits).cloned().collect();
        for name in &selected {
            self.fronts.entry(name.clone()).or_default().push((key.namespace.clone(), key.name.clone()));
        }
        let view = ServiceView { object: Arc::clone(object), addresses, instances: selected };
        self.services.insert((key.namespace.clone(), key.name.clone()), view);
    }

    fn add_addresses(&mut self, world: &World) {
        let ranges = &world.settings().ranges;
        for name in self.gateways.keys() {
            let given: Vec<IpAddr> = world.allocations().instance(ranges, &gateway_name(&name.0, &name.1)).into_iter().flatten().collect();
            self.addresses.extend(given.iter().map(|address| (*address, Address::Gateway(name.clone()))));
            self.gateway_addresses.insert(name.clone(), given);
        }
        // Where two claim one address, the older has it; Services before instances.
        let mut claims = Vec::new();
        for (name, service) in &self.services {
            let age = (0, world.created_ms(&service.object), name);
            claims.extend(service.addresses.iter().map(|address| (age, *address, Address::Service(name.clone()))));
        }
        // What shares its node's network has no address of its own.
        let own = |instance: &&Instance| instance.pod().is_none_or(|pod| !pod.host_network);
        for (name, instance) in self.instances.iter().filter(|(_, instance)| own(instance)) {
            let age = (1, world.created_ms(&instance.object), name);
            claims.extend(instance.addresses.iter().map(|address| (age, *address, Address::Instance(name.clone()))));
        }
        claims.sort_by(|a, b| a.0.cmp(&b.0));
        for (_, address, owner) in claims {
            self.addresses.entry(address).or_insert(owner);
        }
    }

    /// Which routes name which Service as a parent.
    fn add_routes(&mut self) {
        for route in &self.routes {
            let Spec::Route(spec) = &route.spec else { continue };
            for parent in spec.parents.iter().filter(|parent| parent.is_service()) {
                let namespace = parent.namespace.clone().unwrap_or_else(|| route.key.namespace.clone());
                let attached = self.service_routes.entry((namespace, parent.name.clone())).or_default();
                // A route may name one Service several times, for several ports.
                if attached.last().is_none_or(|last| last.key != route.key) {
                    attached.push(Arc::clone(route));
                }
            }
        }
    }

    /// A label of a namespace.
    pub fn namespace_label(&self, namespace: &str, label: &str) -> Option<&str> {
        self.namespaces.get(namespace)?.labels.get(label).map(String::as_str)
    }

    /// Whether a grant in `to_namespace` lets objects of `from` (group, kind, namespace) refer to `to` (group, kind, name).
    pub fn granted(&self, from: (&str, &str, &str), to_namespace: &str, to: (&str, &str, &str)) -> bool {
        self.grants.get(to_namespace).into_iter().flatten().any(|object| {
            let Spec::ReferenceGrant(grant) = &object.spec else { return false };
            grant.from.iter().any(|(group, kind, namespace)| (group.as_str(), kind.as_str(), namespace.as_str()) == from)
                && grant.to.iter().any(|(group, kind, name)| {
                    (group.as_str(), kind.as_str()) == (to.0, to.1) && name.as_deref().is_none_or(|name| name == to.2)
                })
        })
    }
}

fn revocation(object: &Object) -> Option<(&ObjectKey, &Revocation)> {
    if let Spec::Revocation(spec) = &object.spec { Some((&object.key, spec)) } else { None }
}

/// Where an AuthorizationPolicy's action comes in the order of judging.
fn asked(object: &Object) -> u8 {
    match &object.spec {
        Spec::AuthorizationPolicy(policy) => match policy.action {
            Action::Deny => 0,
            Action::Allow => 1,
            Action::Audit => 2,
        },
        _ => 3,
    }
}

/// Names of the GatewayClasses that we serve: those with our controller (and no parameters, which we have none of), and ours by name where nobody wrote it down.
fn our_classes(world: &World) -> Vec<String> {
    let mut classes = Vec::new();
    for (key, object) in world.live() {
        if let Spec::GatewayClass(class) = &object.spec
            && class.controller == proto::annotations::CONTROLLER
            && !class.parameters
        {
            classes.push(key.name.clone());
        }
    }
    let own = proto::annotations::GATEWAY_CLASS;
    if world.get(&ObjectKey::new(Kind::GatewayClass, "", own)).is_none() {
        classes.push(own.to_owned());
    }
    classes
}
