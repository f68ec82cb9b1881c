//! Instances as they are now, and which Services they are behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::difference::Changed;
use crate::world::index::{Index, Name, ServiceView};
use crate::world::instance::{Instance, family, former_names, instances, names as names_of, of_pod};
use crate::world::object::Object;
use crate::world::sorted::Sorted;
use crate::world::{Kind, ObjectKey, Spec, World};

/// So many Services at once are worth a table of labels.
const TABLE_MIN: usize = 8;

/// Instances by namespace and one of their labels.
type Labelled<'a> = BTreeMap<(&'a str, &'a str, &'a str), Vec<&'a Name>>;

impl Index {
    /// The instances of one family as they are now; returns those that are not what they were.
    pub(super) fn settle(&mut self, world: &World, of: &Name) -> Vec<Changed<Instance>> {
        let mut before = BTreeMap::new();
        for name in members(&self.instances, of) {
            let was = self.instances.shared(&name).map(Arc::clone);
            before.insert(name, was);
        }
        before.keys().for_each(|name| self.instances.remove(name));
        if self.hidden.iter().any(|(namespace, name, _)| *namespace == of.0 && family(name) == of.1) {
            Arc::make_mut(&mut self.hidden).retain(|(namespace, name, _)| *namespace != of.0 || family(name) != of.1);
        }
        let objects = workloads(world, of);
        objects.iter().for_each(|object| self.add_workload(world, object));
        objects.iter().for_each(|object| self.add_former(world, object));
        pods(world, of).into_iter().for_each(|object| self.add_pod(world, object));
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
        for instance in instances(world, object, workload, label.as_deref(), names_of(&object.key.name, workload)) {
            let name = (instance.namespace.clone(), instance.name.clone());
            if self.instances.contains_key(&name) {
                Arc::make_mut(&mut self.hidden).insert((name.0, name.1, instance.workload));
            } else {
                self.instances.insert(name, instance);
            }
        }
    }

    /// A change between one replica and several renames every instance. Those that run under their old names stay until the first
    /// new one is ready, so that there is always somebody to serve.
    fn add_former(&mut self, world: &World, object: &Arc<Object>) {
        let Spec::Workload(workload) = &object.spec else { return };
        let serves = |name: String| {
            let instance = self.instances.get(&(object.key.namespace.clone(), name));
            instance.is_some_and(|instance| instance.ready && instance.object.key == object.key)
        };
        if names_of(&object.key.name, workload).any(serves) {
            return;
        }
        let label = self.namespace_label(&object.key.namespace, proto::annotations::INJECT).map(str::to_owned);
        let former = former_names(world, &object.key, workload);
        for instance in instances(world, object, workload, label.as_deref(), former) {
            self.add_where_vacant(instance);
        }
    }

    fn add_pod(&mut self, world: &World, object: &Arc<Object>) {
        let Spec::Pod(pod) = &object.spec else { return };
        of_pod(world, object, pod).into_iter().for_each(|instance| self.add_where_vacant(instance));
    }

    /// What another Workload declares is its own.
    fn add_where_vacant(&mut self, instance: Instance) {
        let name = (instance.namespace.clone(), instance.name.clone());
        if !self.instances.contains_key(&name) {
            self.instances.insert(name, instance);
        }
    }

    /// The instances of each Workload; one that is declared is named also where it has none.
    pub(super) fn gather(&mut self, world: &World, declared: BTreeSet<Name>, instances: &[Changed<Instance>]) {
        let mut moves: BTreeMap<Name, (BTreeSet<&Name>, BTreeSet<&Name>)> =
            declared.into_iter().map(|name| (name, Default::default())).collect();
        let of = |instance: &Instance| (instance.namespace.clone(), instance.workload.clone());
        for Changed { name, was, is } in instances {
            if let Some(was) = was {
                moves.entry(of(was)).or_default().0.insert(name);
            }
            if let Some(is) = is {
                moves.entry(of(is)).or_default().1.insert(name);
            }
        }
        for (workload, (gone, come)) in moves {
            let mut names: BTreeSet<Name> =
                self.workloads.get(&workload).into_iter().flatten().filter(|name| !gone.contains(name)).cloned().collect();
            names.extend(come.into_iter().cloned());
            if names.is_empty() && world.get(&ObjectKey::new(Kind::Workload, &workload.0, &workload.1)).is_none() {
                self.workloads.remove(&workload);
            } else {
                self.workloads.insert(workload, names.into_iter().collect());
            }
        }
    }

    /// Services that changed, or that pick other instances now, and what is in front of whom.
    pub(super) fn serve(&mut self, world: &World, names: BTreeSet<Name>, instances: &[Changed<Instance>]) -> Vec<Changed<ServiceView>> {
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
                if now.contains(service) {
                    add(&mut view.instances, name)
                } else {
                    view.instances.retain(|known| known != name)
                }
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
}

impl Sorted<(String, String, String, String), ()> {
    fn edit_key(&mut self, name: &Name, view: &ServiceView, is_there: bool) {
        let Some((label, value)) = view.service().and_then(|service| service.selector.first_key_value()) else { return };
        let key = (name.0.clone(), label.clone(), value.clone(), name.1.clone());
        if is_there { self.insert(key, ()) } else { self.remove(&key) }
    }
}

/// The names of a family among the keys of a map, in order.
fn members<T>(map: &Sorted<Name, T>, of: &Name) -> Vec<Name> {
    let (first, end) = numbered(&of.1);
    let one = map.contains_key(of).then(|| of.clone());
    let others = map.from(&(of.0.clone(), first)).map(|(name, _)| name).take_while(|name| name.0 == of.0 && name.1 < end);
    one.into_iter().chain(others.filter(|name| family(&name.1) == of.1).cloned()).collect()
}

/// The Workloads of a family, in order.
fn workloads<'a>(world: &'a World, of: &Name) -> Vec<&'a Arc<Object>> {
    relatives(world, Kind::Workload, of)
}

/// The pods of a family, in order.
fn pods<'a>(world: &'a World, of: &Name) -> Vec<&'a Arc<Object>> {
    relatives(world, Kind::Pod, of)
}

fn relatives<'a>(world: &'a World, kind: Kind, of: &Name) -> Vec<&'a Arc<Object>> {
    let (first, end) = numbered(&of.1);
    let key = |name: &str| ObjectKey::new(kind, &of.0, name);
    let end = key(&end);
    let others = world.slots().from(&key(&first)).take_while(|(key, _)| **key < end).filter(|(key, _)| family(&key.name) == of.1);
    world.get(&key(&of.1)).into_iter().chain(others.filter_map(|(key, _)| world.get(key))).collect()
}

/// Between which names those of a family with a number lie.
fn numbered(family: &str) -> (String, String) {
    // `:` comes after `9`.
    (format!("{family}-0"), format!("{family}-:"))
}

fn add(names: &mut Vec<Name>, name: &Name) {
    if let Err(place) = names.binary_search(name) {
        names.insert(place, name.clone());
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
    let key = &object.key;
    let given = world.allocations().service(&world.settings().ranges, &key.path());
    let addresses = service.addresses(world.settings(), given);
    let fits = |name: &Name| instances.get(name).is_some_and(|instance| picks(&service.selector, instance));
    let picked = match table {
        _ if service.selector.is_empty() => Vec::new(),
        Some(table) => {
            // The rarest label of the selector leaves the fewest to look at.
            let groups = service.selector.iter().map(|(label, value)| table.get(&(&key.namespace, label, value)));
            let rarest = groups.map(|group| group.map_or(&[][..], Vec::as_slice)).min_by_key(|group| group.len());
            rarest.unwrap_or_default().iter().filter(|name| fits(name)).map(|name| (*name).clone()).collect()
        }
        None => {
            let here = instances.from(&(key.namespace.clone(), String::new())).take_while(|(name, _)| name.0 == key.namespace);
            here.filter(|(_, instance)| picks(&service.selector, instance)).map(|(name, _)| name.clone()).collect()
        }
    };
    Some(ServiceView { object: Arc::clone(object), addresses, instances: picked })
}
