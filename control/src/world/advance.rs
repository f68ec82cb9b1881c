//! From the index of one world to that of the next. What was added, replaced and taken away since is put into place; everything else is
//! shared. An index from nothing is the same, with everything added: so both come about by the same code, and a property test holds them
//! against one another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use super::index::{Address, Claim, Index, Name, NamespaceView, Objects, ServiceView};
use super::instance::{Instance, family, former_names, instances, names as names_of};
use super::object::Object;
use super::revocation::{Revocation, Revoked};
use super::security::authorization::Action;
use super::sorted::Sorted;
use super::{Kind, ObjectKey, Spec, World, gateway_name};

/// So many Services at once are worth a table of labels.
const TABLE_MIN: usize = 8;

/// Instances by namespace and one of their labels.
type Labelled<'a> = BTreeMap<(&'a str, &'a str, &'a str), Vec<&'a Name>>;

/// What sets two worlds apart.
#[derive(Default)]
struct Difference<'a> {
    /// Objects that are in force no more, former versions included.
    gone: Vec<&'a Arc<Object>>,
    /// Objects that are in force now, and were not.
    come: Vec<&'a Arc<Object>>,
    /// Services whose allocated address is another one.
    services: BTreeSet<Name>,
    /// Gateways likewise.
    gateways: BTreeSet<Name>,
    /// Namespaces and [`family`] of instances of which something runs otherwise.
    families: BTreeSet<Name>,
}

impl Index {
    /// From nothing.
    pub(super) fn build(world: &World) -> Self {
        let mut index = Self { classes: Arc::new(our_classes(world)), ..Self::default() };
        let mut difference = Difference::default();
        let mut namespaces = BTreeMap::new();
        for (key, object) in world.live() {
            name_space(&mut namespaces, &key.namespace);
            match &object.spec {
                Spec::Namespace => {
                    name_space(&mut namespaces, &key.name);
                    if let Some(namespace) = namespaces.get_mut(&key.name) {
                        namespace.labels.extend(object.metadata.labels.clone());
                        namespace.annotations.clone_from(&object.metadata.annotations);
                    }
                }
                Spec::Mesh(mesh) => index.mesh = Arc::new(mesh.clone()),
                _ => {}
            }
            difference.come.push(object);
        }
        index.namespaces = Arc::new(namespaces);
        index.take_in(world, world, &difference);
        index
    }

    /// From the index of a world that was before this one.
    pub(super) fn advanced(former: &World, world: &World) -> Self {
        let difference = Difference::between(former, world);
        let objects = || difference.gone.iter().chain(&difference.come);
        // What all the others go by changes rarely.
        if objects().any(|object| matches!(object.key.kind, Kind::Namespace | Kind::GatewayClass | Kind::Mesh)) {
            return Self::build(world);
        }
        let before = former.index();
        let mut index = before.clone();
        index.left_out = OnceLock::new();
        let leads = |object: &Object| {
            matches!(object.spec, Spec::Route(_) | Spec::Service(_) | Spec::Gateway(_)) || object.key.kind == Kind::ReferenceGrant
        };
        if objects().any(|object| leads(object)) {
            index.grpc_ports = Arc::default();
        }
        index.take_in(former, world, &difference);
        let appeared = index.population.changes(&before.population).iter().any(|(_, is, was)| is.is_none() || was.is_none());
        if appeared { Self::build(world) } else { index }
    }

    fn take_in(&mut self, former: &World, world: &World, difference: &Difference<'_>) {
        let Difference { gone, come, .. } = difference;
        for (objects, count) in [(gone, -1), (come, 1)] {
            for object in objects.iter().filter(|object| !object.key.namespace.is_empty()) {
                self.population.edit(&object.key.namespace, |lives: &mut usize| *lives = lives.saturating_add_signed(count));
            }
        }
        self.list_all(world, gone, come);
        let mut gateways = difference.gateways.clone();
        for object in gone.iter().filter(|object| object.key.kind == Kind::Gateway) {
            let name = name_of(&object.key);
            self.gateways.remove(&name);
            Arc::make_mut(&mut self.foreign_gateways).remove(&name);
            gateways.insert(name);
        }
        for object in come {
            let Spec::Gateway(gateway) = &object.spec else { continue };
            let name = name_of(&object.key);
            if self.classes.contains(&gateway.class) {
                self.gateways.insert(name.clone(), Arc::clone(object));
                gateways.insert(name);
            } else {
                Arc::make_mut(&mut self.foreign_gateways).insert(name);
            }
        }
        let mut families = difference.families.clone();
        let carriers = gone.iter().chain(come).filter(|object| object.key.kind == Kind::Workload);
        families.extend(carriers.map(|object| (object.key.namespace.clone(), family(&object.key.name).to_owned())));
        let instances: Vec<_> = families.iter().flat_map(|family| self.settle(world, family)).collect();
        let mut services = difference.services.clone();
        services.extend(gone.iter().chain(come).filter(|object| object.key.kind == Kind::Service).map(|object| name_of(&object.key)));
        let services = self.serve(world, services, &instances);
        self.address((former, world), &gateways, &services, &instances);
    }

    /// Lists of objects, whole and by what they are about.
    fn list_all(&mut self, world: &World, gone: &[&Arc<Object>], come: &[&Arc<Object>]) {
        // Gateway API compares `namespace/name` as one text.
        let age = |object: &Arc<Object>| (world.created_ms(object), object.key.path(), object.key.kind);
        let by_key = |object: &Arc<Object>| object.key.clone();
        let of = |kind: Kind| move |object: &Object| object.key.kind == kind;
        list(&mut self.routes, (gone, come), |object| matches!(object.spec, Spec::Route(_)), age);
        list(&mut self.peer_authentications, (gone, come), of(Kind::PeerAuthentication), age);
        list(&mut self.request_authentications, (gone, come), of(Kind::RequestAuthentication), age);
        list(&mut self.telemetries, (gone, come), of(Kind::Telemetry), age);
        if list(&mut self.revocations, (gone, come), of(Kind::Revocation), age) {
            self.revoked = Arc::new(Revoked::of(self.revocations.iter().filter_map(|object| revocation(object))));
        }
        let selects = |object: &Object| matches!(&object.spec, Spec::TrafficPolicy(policy) if policy.selector.is_some());
        list(&mut self.traffic_selectors, (gone, come), selects, age);
        list(&mut self.egress, (gone, come), of(Kind::EgressPolicy), by_key);
        let inbound = |object: &Object| matches!(&object.spec, Spec::AuthorizationPolicy(policy) if policy.inbound());
        list(&mut self.authorizations, (gone, come), inbound, |object| (asked(object), object.key.path()));
        list(&mut self.contents, (gone, come), |object| matches!(object.key.kind, Kind::Secret | Kind::ConfigMap), by_key);
        place(&mut self.service_routes, (gone, come), called, age);
        let places = |object: &Object| match &object.spec {
            Spec::TrafficPolicy(policy) => policy.places(&object.key).into_iter().collect(),
            _ => BTreeSet::new(),
        };
        if place(&mut self.traffic, (gone, come), places, age) {
            let policies = self.traffic.values().flatten();
            let settings = policies.filter_map(|object| if let Spec::TrafficPolicy(policy) = &object.spec { Some(policy) } else { None });
            let faults = settings.flat_map(|policy| policy.settings.faults.iter().flatten());
            self.fault_callers = Arc::new(faults.flat_map(|fault| fault.from.iter().cloned()).collect());
        }
        place(&mut self.slices, (gone, come), sliced, by_key);
        for (objects, is_there) in [(gone, false), (come, true)] {
            for object in objects {
                let Spec::EndpointSlice(slice) = &object.spec else { continue };
                let entry = ((object.key.namespace.clone(), slice.service.clone()), object.key.name.clone());
                for endpoint in slice.endpoints.iter().filter(|_| !slice.service.is_empty()) {
                    self.listed.edit(&endpoint.address, |listed| {
                        _ = if is_there { listed.insert(entry.clone()) } else { listed.remove(&entry) };
                    });
                }
            }
        }
        if gone.iter().chain(come).any(|object| object.key.kind == Kind::ReferenceGrant) {
            let mut grants: BTreeMap<String, Vec<Arc<Object>>> = BTreeMap::new();
            for (key, object) in world.live().filter(|(key, _)| key.kind == Kind::ReferenceGrant) {
                grants.entry(key.namespace.clone()).or_default().push(Arc::clone(object));
            }
            self.grants = Arc::new(grants);
        }
    }

    /// The instances of one family as they are now; returns those that are not what they were.
    fn settle(&mut self, world: &World, of: &Name) -> Vec<Changed<Instance>> {
        let mut before = BTreeMap::new();
        for name in members(&self.instances, of) {
            let was = self.instances.shared(&name).map(Arc::clone);
            before.insert(name, was);
        }
        before.keys().for_each(|name| self.instances.remove(name));
        members(&self.workloads, of).iter().for_each(|name| self.workloads.remove(name));
        if self.hidden.iter().any(|(namespace, name, _)| *namespace == of.0 && family(name) == of.1) {
            Arc::make_mut(&mut self.hidden).retain(|(namespace, name, _)| *namespace != of.0 || family(name) != of.1);
        }
        let objects = workloads(world, of);
        objects.iter().for_each(|object| self.add_workload(world, object));
        objects.iter().for_each(|object| self.add_former(world, object));
        for name in members(&self.instances, of) {
            before.entry(name).or_default();
        }
        let mut changed = Vec::new();
        for (name, was) in before {
            let is = self.instances.shared(&name).map(Arc::clone);
            match was.clone().filter(|was| is.as_ref().is_some_and(|is| **was == **is)) {
                Some(same) => self.instances.share(name, same),
                None => changed.push(Changed { name, was, is }),
            }
        }
        changed
    }

    fn add_workload(&mut self, world: &World, object: &Arc<Object>) {
        let Spec::Workload(workload) = &object.spec else { return };
        let label = self.namespace_label(&object.key.namespace, proto::annotations::INJECT).map(str::to_owned);
        let mut names = Vec::new();
        for instance in instances(world, object, workload, label.as_deref(), names_of(&object.key.name, workload)) {
            let name = (instance.namespace.clone(), instance.name.clone());
            if self.instances.contains_key(&name) {
                Arc::make_mut(&mut self.hidden).insert((name.0, name.1, instance.workload));
                continue;
            }
            names.push(name.clone());
            self.instances.insert(name, instance);
        }
        names.sort();
        self.workloads.insert(name_of(&object.key), names);
    }

    /// A change between one replica and several renames every instance. Those that run under their old names stay until the first
    /// new one is ready, so that there is always somebody to serve.
    fn add_former(&mut self, world: &World, object: &Arc<Object>) {
        let Spec::Workload(workload) = &object.spec else { return };
        let key = name_of(&object.key);
        let mut names = self.workloads.get(&key).cloned().unwrap_or_default();
        if names.iter().any(|name| self.instances.get(name).is_some_and(|instance| instance.ready)) {
            return;
        }
        let label = self.namespace_label(&key.0, proto::annotations::INJECT).map(str::to_owned);
        let former = former_names(world, &object.key, workload);
        for instance in instances(world, object, workload, label.as_deref(), former) {
            let name = (instance.namespace.clone(), instance.name.clone());
            // What another Workload declares is its own.
            if !self.instances.contains_key(&name) {
                self.instances.insert(name.clone(), instance);
                names.push(name);
            }
        }
        names.sort();
        self.workloads.insert(key, names);
    }

    /// Services that changed, or that pick other instances now, and what is in front of whom.
    fn serve(&mut self, world: &World, names: BTreeSet<Name>, instances: &[Changed<Instance>]) -> Vec<Changed<ServiceView>> {
        let mut before: BTreeMap<Name, Option<Arc<ServiceView>>> = BTreeMap::new();
        let namespaces = names.iter().map(|name| name.0.as_str()).collect();
        let all = self.instances.clone();
        let table = (names.len() >= TABLE_MIN).then(|| labelled(&all, &namespaces));
        for name in names {
            let was = self.services.shared(&name).map(Arc::clone);
            if let Some(was) = &was {
                self.choosers.edit_key(&name, was, false);
            }
            self.services.remove(&name);
            let key = ObjectKey::new(Kind::Service, &name.0, &name.1);
            if let Some(view) = world.get(&key).and_then(|object| view(world, object, &all, table.as_ref())) {
                self.choosers.edit_key(&name, &view, true);
                self.services.insert(name.clone(), view);
            }
            let picked = |view: Option<&ServiceView>| view.map(|view| view.instances.iter().cloned().collect()).unwrap_or_default();
            let (former, now): (BTreeSet<Name>, BTreeSet<Name>) = (picked(was.as_deref()), picked(self.services.get(&name)));
            former.difference(&now).for_each(|instance| self.fronts.edit(instance, |fronts| fronts.retain(|front| *front != name)));
            now.difference(&former).for_each(|instance| self.fronts.edit(instance, |fronts| add(fronts, &name)));
            before.insert(name, was);
        }
        for Changed { name, is, .. } in instances {
            let now = is.as_ref().map(|instance| self.choosing(instance)).unwrap_or_default();
            let former: BTreeSet<Name> = self.fronts.get(name).into_iter().flatten().cloned().collect();
            for service in former.symmetric_difference(&now) {
                let Some(was) = self.services.shared(service).map(Arc::clone) else { continue };
                let mut view = (*was).clone();
                if now.contains(service) { add(&mut view.instances, name) } else { view.instances.retain(|known| known != name) }
                self.services.insert(service.clone(), view);
                before.entry(service.clone()).or_insert(Some(was));
            }
            self.fronts.edit(name, |fronts| *fronts = now.into_iter().collect());
        }
        let changed = |(name, was)| {
            let is = self.services.shared(&name).map(Arc::clone);
            Changed { name, was, is }
        };
        before.into_iter().map(changed).collect()
    }

    /// The Services that pick an instance.
    fn choosing(&self, instance: &Instance) -> BTreeSet<Name> {
        let mut found = BTreeSet::new();
        for (label, value) in instance.labels() {
            let first = (instance.namespace.clone(), label.clone(), value.clone(), String::new());
            let here = self.choosers.from(&first).take_while(|(key, ())| (&key.0, &key.1, &key.2) == (&first.0, &first.1, &first.2));
            for (key, ()) in here {
                let name = (key.0.clone(), key.3.clone());
                if self.services.get(&name).and_then(ServiceView::service).is_some_and(|service| picks(&service.selector, instance)) {
                    found.insert(name);
                }
            }
        }
        found
    }

    /// Who has which address, after these changes.
    fn address(
        &mut self,
        (former, world): (&World, &World),
        gateways: &BTreeSet<Name>,
        services: &[Changed<ServiceView>],
        instances: &[Changed<Instance>],
    ) {
        let ranges = &world.settings().ranges;
        let mut claims: Vec<(IpAddr, Claim)> = Vec::new();
        let mut claim = |addresses: &[IpAddr], claim: Claim| claims.extend(addresses.iter().map(|address| (*address, claim.clone())));
        for name in gateways {
            for address in self.gateway_addresses.get(name).cloned().unwrap_or_default() {
                self.disclaim(world, address, (GATEWAY, name));
            }
            self.gateway_addresses.remove(name);
            if self.gateways.contains_key(name) {
                let given = world.allocations().instance(ranges, &gateway_name(&name.0, &name.1));
                let given: Vec<IpAddr> = given.into_iter().flatten().collect();
                claim(&given, Claim { rank: GATEWAY, created_ms: 0, name: name.clone() });
                self.gateway_addresses.insert(name.clone(), given);
            }
        }
        for Changed { name, was, is } in services {
            let (was, is) = (was.as_deref().map(|view| (&view.object, &view.addresses)), is.as_deref().map(|view| (&view.object, &view.addresses)));
            self.reclaim((former, world), (SERVICE, name), (was, is), &mut claim);
        }
        for Changed { name, was, is } in instances {
            let (was, is) = (was.as_deref().map(|one| (&one.object, &one.addresses)), is.as_deref().map(|one| (&one.object, &one.addresses)));
            self.reclaim((former, world), (INSTANCE, name), (was, is), &mut claim);
        }
        for (address, claim) in claims {
            self.claim(world, address, claim);
        }
    }

    fn reclaim(
        &mut self,
        (former, world): (&World, &World),
        (rank, name): (u8, &Name),
        (was, is): (Option<Claimant<'_>>, Option<Claimant<'_>>),
        claim: &mut impl FnMut(&[IpAddr], Claim),
    ) {
        let age = |world: &World, claimant: Option<Claimant<'_>>| claimant.map(|(object, addresses)| (world.created_ms(object), addresses.clone()));
        let (was, is) = (age(former, was), age(world, is));
        if was == is {
            return;
        }
        was.iter().flat_map(|(_, addresses)| addresses).for_each(|address| self.disclaim(world, *address, (rank, name)));
        if let Some((created_ms, addresses)) = is {
            claim(&addresses, Claim { rank, created_ms, name: name.clone() });
        }
    }

    /// Who has it, as a claim.
    fn owner(&self, world: &World, address: IpAddr) -> Option<Claim> {
        let aged = |rank, object: Option<&Arc<Object>>, name: &Name| {
            let created_ms = object.map_or(0, |object| world.created_ms(object));
            Claim { rank, created_ms, name: name.clone() }
        };
        Some(match self.addresses.get(&address)? {
            Address::Gateway(name) => aged(GATEWAY, None, name),
            Address::Service(name) => aged(SERVICE, self.services.get(name).map(|view| &view.object), name),
            Address::Instance(name) => aged(INSTANCE, self.instances.get(name).map(|instance| &instance.object), name),
        })
    }

    fn claim(&mut self, world: &World, address: IpAddr, claim: Claim) {
        let Some(owner) = self.owner(world, address) else {
            self.addresses.insert(address, claim.owner());
            return;
        };
        self.contested.edit(&address, |claims| {
            for claim in [owner, claim] {
                if !claims.contains(&claim) {
                    claims.push(claim);
                }
            }
            claims.sort();
        });
        if let Some(first) = self.contested.get(&address).and_then(|claims| claims.first()) {
            self.addresses.insert(address, first.owner());
        }
    }

    fn disclaim(&mut self, world: &World, address: IpAddr, (rank, name): (u8, &Name)) {
        let mut left = self.contested.get(&address).cloned().unwrap_or_default();
        left.retain(|claim| (claim.rank, &claim.name) != (rank, name));
        match left.first() {
            Some(first) => self.addresses.insert(address, first.owner()),
            None if self.owner(world, address).is_some_and(|owner| (owner.rank, &owner.name) == (rank, name)) => self.addresses.remove(&address),
            None => {}
        }
        // One alone contests nothing.
        let left = if left.len() > 1 { left } else { Vec::new() };
        self.contested.edit(&address, |claims| *claims = left);
    }
}

/// Something before and after.
struct Changed<T> {
    name: Name,
    was: Option<Arc<T>>,
    is: Option<Arc<T>>,
}

/// Who claims addresses, and which.
type Claimant<'a> = (&'a Arc<Object>, &'a Vec<IpAddr>);

/// Ranks of claims.
const GATEWAY: u8 = 0;
const SERVICE: u8 = 1;
const INSTANCE: u8 = 2;

impl Claim {
    fn owner(&self) -> Address {
        match self.rank {
            GATEWAY => Address::Gateway(self.name.clone()),
            SERVICE => Address::Service(self.name.clone()),
            _ => Address::Instance(self.name.clone()),
        }
    }
}

impl Sorted<(String, String, String, String), ()> {
    fn edit_key(&mut self, name: &Name, view: &ServiceView, is_there: bool) {
        let Some((label, value)) = view.service().and_then(|service| service.selector.first_key_value()) else { return };
        let key = (name.0.clone(), label.clone(), value.clone(), name.1.clone());
        if is_there { self.insert(key, ()) } else { self.remove(&key) }
    }
}

impl<'a> Difference<'a> {
    fn between(former: &'a World, world: &'a World) -> Self {
        let mut this = Self::default();
        if !Arc::ptr_eq(&former.slots, &world.slots) {
            this.objects(former, world);
        }
        let mut runs = |(namespace, name): &Name| _ = this.families.insert((namespace.clone(), family(name).to_owned()));
        if !Arc::ptr_eq(&former.instances, &world.instances) {
            let ready = |world: &'a World| world.instances.iter().filter(|(_, state)| state.ready).map(|(name, _)| name).collect();
            let (before, after): (BTreeSet<&Name>, BTreeSet<&Name>) = (ready(former), ready(world));
            before.symmetric_difference(&after).for_each(|name| runs(name));
        }
        if !Arc::ptr_eq(&former.draining, &world.draining) {
            former.draining.symmetric_difference(&world.draining).for_each(&mut runs);
        }
        if !Arc::ptr_eq(&former.allocations, &world.allocations) {
            let [services, instances, gateways] = former.allocations.changes(&world.allocations);
            instances.iter().for_each(runs);
            this.services.extend(services);
            this.gateways.extend(gateways);
        }
        this
    }

    fn objects(&mut self, former: &'a World, world: &'a World) {
        let (mut before, mut after) = (former.live().peekable(), world.live().peekable());
        loop {
            let order = match (before.peek(), after.peek()) {
                (Some((a, _)), Some((b, _))) => a.cmp(b),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (None, None) => return,
            };
            let was = if order.is_le() { before.next() } else { None };
            let is = if order.is_ge() { after.next() } else { None };
            let same = |((_, was), (_, is)): (Pair<'a>, Pair<'a>)| Arc::ptr_eq(was, is) || was == is && former.created_ms(was) == world.created_ms(is);
            if !was.zip(is).is_some_and(same) {
                self.gone.extend(was.map(|(_, object)| object));
                self.come.extend(is.map(|(_, object)| object));
            }
        }
    }
}

type Pair<'a> = (&'a ObjectKey, &'a Arc<Object>);

/// The names of a family among the keys of a map, in order.
fn members<T>(map: &Sorted<Name, T>, of: &Name) -> Vec<Name> {
    let (first, end) = numbered(&of.1);
    let one = map.contains_key(of).then(|| of.clone());
    let others = map.from(&(of.0.clone(), first)).map(|(name, _)| name).take_while(|name| name.0 == of.0 && name.1 < end);
    one.into_iter().chain(others.filter(|name| family(&name.1) == of.1).cloned()).collect()
}

/// The Workloads of a family, in order.
fn workloads<'a>(world: &'a World, of: &Name) -> Vec<&'a Arc<Object>> {
    let (first, end) = numbered(&of.1);
    let key = |name: &str| ObjectKey::new(Kind::Workload, &of.0, name);
    let others = world.slots().range(key(&first)..key(&end)).filter(|(key, _)| family(&key.name) == of.1);
    world.get(&key(&of.1)).into_iter().chain(others.filter_map(|(key, _)| world.get(key))).collect()
}

/// Between which names those of a family with a number lie.
fn numbered(family: &str) -> (String, String) {
    // `:` comes after `9`.
    (format!("{family}-0"), format!("{family}-:"))
}

fn name_of(key: &ObjectKey) -> Name {
    (key.namespace.clone(), key.name.clone())
}

fn add(names: &mut Vec<Name>, name: &Name) {
    if let Err(place) = names.binary_search(name) {
        names.insert(place, name.clone());
    }
}

fn name_space(namespaces: &mut BTreeMap<String, NamespaceView>, name: &str) {
    if name.is_empty() || namespaces.contains_key(name) {
        return;
    }
    let labels = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())]);
    namespaces.insert(name.to_owned(), NamespaceView { labels, annotations: BTreeMap::new() });
}

/// Takes objects out of an ordered list, and others into it; false: none of them belongs there.
fn list<K: Ord>(
    objects: &mut Objects,
    (gone, come): (&[&Arc<Object>], &[&Arc<Object>]),
    fits: impl Fn(&Object) -> bool,
    rank: impl Fn(&Arc<Object>) -> K,
) -> bool {
    let out: BTreeSet<&ObjectKey> = gone.iter().filter(|object| fits(object)).map(|object| &object.key).collect();
    let new: Vec<&Arc<Object>> = come.iter().filter(|object| fits(object)).copied().collect();
    if out.is_empty() && new.is_empty() {
        return false;
    }
    let objects = Arc::make_mut(objects);
    objects.retain(|object| !out.contains(&object.key));
    if new.len() > TABLE_MIN {
        objects.extend(new.into_iter().cloned());
        objects.sort_by_cached_key(rank);
    } else {
        for object in new {
            let own = rank(object);
            let place = objects.partition_point(|other| rank(other) < own);
            objects.insert(place, Arc::clone(object));
        }
    }
    true
}

/// The same with lists by what the objects are about.
fn place<P: Ord + Clone, K: Ord>(
    lists: &mut Sorted<P, Vec<Arc<Object>>>,
    (gone, come): (&[&Arc<Object>], &[&Arc<Object>]),
    places: impl Fn(&Object) -> BTreeSet<P>,
    rank: impl Fn(&Arc<Object>) -> K,
) -> bool {
    let mut any = false;
    for object in gone {
        for place in places(object) {
            lists.edit(&place, |list| list.retain(|known| known.key != object.key));
            any = true;
        }
    }
    for object in come {
        for place in places(object) {
            let own = rank(object);
            lists.edit(&place, |list| {
                let at = list.partition_point(|other| rank(other) < own);
                list.insert(at, Arc::clone(object));
            });
            any = true;
        }
    }
    any
}

/// The Services that a route names as parents.
fn called(object: &Object) -> BTreeSet<Name> {
    let Spec::Route(spec) = &object.spec else { return BTreeSet::new() };
    let parents = spec.parents.iter().filter(|parent| parent.is_service());
    parents.map(|parent| (parent.namespace.clone().unwrap_or_else(|| object.key.namespace.clone()), parent.name.clone())).collect()
}

/// The Service that an EndpointSlice belongs to.
fn sliced(object: &Object) -> BTreeSet<Name> {
    match &object.spec {
        Spec::EndpointSlice(slice) if !slice.service.is_empty() => BTreeSet::from([(object.key.namespace.clone(), slice.service.clone())]),
        _ => BTreeSet::new(),
    }
}

fn labelled<'a>(instances: &'a Sorted<Name, Instance>, namespaces: &BTreeSet<&str>) -> Labelled<'a> {
    let mut labelled = Labelled::new();
    for (name, instance) in instances.iter().filter(|(name, _)| namespaces.contains(name.0.as_str())) {
        for (label, value) in instance.labels() {
            labelled.entry((&name.0, label, value)).or_default().push(name);
        }
    }
    labelled
}

fn picks(selector: &BTreeMap<String, String>, instance: &Instance) -> bool {
    selector.iter().all(|(label, value)| instance.labels().get(label) == Some(value))
}

/// A Service with the instances that it picks.
fn view(world: &World, object: &Arc<Object>, instances: &Sorted<Name, Instance>, table: Option<&Labelled<'_>>) -> Option<ServiceView> {
    let Spec::Service(service) = &object.spec else { return None };
    let (key, ranges) = (&object.key, &world.settings().ranges);
    let addresses = service.addresses(ranges, world.allocations().service(ranges, &key.path()));
    let fits = |name: &Name| instances.get(name).is_some_and(|instance| picks(&service.selector, instance));
    let picked = match table {
        _ if service.selector.is_empty() => Vec::new(),
        Some(table) => {
            // The rarest label of the selector leaves the fewest to look at.
            let label = |(label, value): (&String, &String)| table.get(&(key.namespace.as_str(), label.as_str(), value.as_str()));
            let groups = service.selector.iter().map(|pair| label(pair).map_or(&[][..], Vec::as_slice));
            let rarest = groups.min_by_key(|group| group.len()).unwrap_or_default();
            rarest.iter().filter(|name| fits(name)).map(|name| (*name).clone()).collect()
        }
        None => {
            let here = instances.from(&(key.namespace.clone(), String::new())).take_while(|(name, _)| name.0 == key.namespace);
            here.filter(|(_, instance)| picks(&service.selector, instance)).map(|(name, _)| name.clone()).collect()
        }
    };
    Some(ServiceView { object: Arc::clone(object), addresses, instances: picked })
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
