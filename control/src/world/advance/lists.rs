//! Lists of objects, whole and by what they are about.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::difference::name_of;
use crate::world::edge::consumer_page;
use crate::world::index::{Index, Name, Objects};
use crate::world::object::{Object, attachment};
use crate::world::revocation::{Revocation, Revoked};
use crate::world::security::authorization::Action;
use crate::world::sorted::Sorted;
use crate::world::{Kind, ObjectKey, Spec, World};

/// So many at once are sorted anew.
const MANY: usize = 8;

impl Index {
    /// Lists of objects, whole and by what they are about.
    pub(super) fn list_all(&mut self, world: &World, gone: &[&Arc<Object>], come: &[&Arc<Object>]) {
        // Gateway API compares `namespace/name` as one text.
        let age = |object: &Arc<Object>| (world.created_ms(object), object.key.path(), object.key.kind);
        let by_key = |object: &Arc<Object>| object.key.clone();
        let of = |kind: Kind| move |object: &Object| object.key.kind == kind && !matches!(object.spec, Spec::Broken(_));
        list(&mut self.routes, (gone, come), |object| matches!(object.spec, Spec::Route(_)), age);
        list(&mut self.peer_authentications, (gone, come), of(Kind::PeerAuthentication), age);
        list(
            &mut self.request_authentications,
            (gone, come),
            |object| matches!(&object.spec, Spec::RequestAuthentication(spec) if spec.attachment.targets.is_empty()),
            age,
        );
        list(&mut self.telemetries, (gone, come), of(Kind::Telemetry), age);
        if list(&mut self.revocations, (gone, come), of(Kind::Revocation), age) {
            self.revoked = Arc::new(Revoked::of(self.revocations.iter().filter_map(|object| revocation(object))));
        }
        list(&mut self.canaries, (gone, come), of(Kind::Canary), age);
        let selects = |object: &Object| matches!(&object.spec, Spec::TrafficPolicy(policy) if policy.selector.is_some());
        list(&mut self.traffic_selectors, (gone, come), selects, age);
        list(&mut self.egress, (gone, come), of(Kind::EgressPolicy), by_key);
        let inbound = |object: &Object| matches!(&object.spec, Spec::AuthorizationPolicy(policy) if policy.inbound());
        list(&mut self.authorizations, (gone, come), inbound, |object| (asked(object), object.key.path()));
        list(&mut self.contents, (gone, come), |object| matches!(object.key.kind, Kind::Secret | Kind::ConfigMap), by_key);
        place(&mut self.service_routes, (gone, come), called, age);
        place(&mut self.gateway_sets, (gone, come), fronted, age);
        place(&mut self.backend_tls, (gone, come), secured, age);
        gone.iter().filter(|object| object.key.kind == Kind::ListenerSet).for_each(|set| self.listener_sets.remove(&name_of(&set.key)));
        for set in come.iter().filter(|object| object.key.kind == Kind::ListenerSet) {
            self.listener_sets.insert(name_of(&set.key), Arc::clone(set));
        }
        gone.iter().filter(|object| object.key.kind == Kind::XBackend).for_each(|gone| self.externals.remove(&name_of(&gone.key)));
        for backend in come.iter().filter(|object| matches!(object.spec, Spec::ExternalBackend(_))) {
            self.externals.insert(name_of(&backend.key), Arc::clone(backend));
        }
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
        let told = |object: &Object| match &object.spec {
            Spec::Telemetry(spec) => spec.places(&object.key),
            _ => BTreeSet::new(),
        };
        place(&mut self.call_telemetries, (gone, come), told, age);
        let edges = |object: &Object| attachment(object).map(|at| at.places(&object.key).into_iter().collect()).unwrap_or_default();
        place(&mut self.edge, (gone, come), edges, age);
        let pages = |object: &Object| match &object.spec {
            Spec::Consumer(_) => BTreeSet::from([consumer_page(&object.key)]),
            _ => BTreeSet::new(),
        };
        place(&mut self.consumers, (gone, come), pages, age);
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
        self.list_grants(world, gone, come);
    }

    /// ReferenceGrants by namespace.
    fn list_grants(&mut self, world: &World, gone: &[&Arc<Object>], come: &[&Arc<Object>]) {
        if gone.iter().chain(come).any(|object| object.key.kind == Kind::ReferenceGrant) {
            let mut grants: BTreeMap<String, Vec<Arc<Object>>> = BTreeMap::new();
            for object in world.of_kind(Kind::ReferenceGrant).filter_map(|(_, slot)| slot.live()?.object.as_ref()) {
                grants.entry(object.key.namespace.clone()).or_default().push(Arc::clone(object));
            }
            self.grants = Arc::new(grants);
        }
    }
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
    if new.len() > MANY {
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

/// The Gateway that a ListenerSet is for.
fn fronted(object: &Object) -> BTreeSet<Name> {
    let Spec::ListenerSet(set) = &object.spec else { return BTreeSet::new() };
    set.parent(&object.key.namespace).into_iter().collect()
}

/// The Services that a BackendTLSPolicy is about.
fn secured(object: &Object) -> BTreeSet<Name> {
    let Spec::BackendTlsPolicy(policy) = &object.spec else { return BTreeSet::new() };
    policy.targets.iter().filter(|target| target.is_service()).map(|to| (object.key.namespace.clone(), to.name.clone())).collect()
}

/// The Service that an EndpointSlice belongs to.
fn sliced(object: &Object) -> BTreeSet<Name> {
    match &object.spec {
        Spec::EndpointSlice(slice) if !slice.service.is_empty() => BTreeSet::from([(object.key.namespace.clone(), slice.service.clone())]),
        _ => BTreeSet::new(),
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
