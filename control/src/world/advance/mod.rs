//! From the index of one world to that of the next. What was added, replaced and taken away since is put into place; everything else is
//! shared. An index from nothing is the same, with everything added: so both come about by the same code, and a property test holds them
//! against one another.

mod behind;
mod canaries;
mod claims;
mod difference;
mod lists;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use self::difference::{Changed, Difference, name_of};
use super::index::{Index, NamespaceView};
use super::instance::{family, zone};
use super::object::Object;
use super::{Kind, ObjectKey, Spec, World};

impl Index {
    /// From nothing.
    pub(super) fn build(world: &World) -> Self {
        let mut index = Self { classes: Arc::new(our_classes(world)), in_cluster: world.settings().in_cluster, ..Self::default() };
        let mut difference = Difference::default();
        let mut namespaces = BTreeMap::new();
        for (key, object) in world.standing() {
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
        let rare = |object: &&&Arc<Object>| matches!(object.key.kind, Kind::Namespace | Kind::GatewayClass | Kind::Mesh);
        if objects().any(|object| rare(&object)) || zones(&difference.gone) != zones(&difference.come) {
            return Self::build(world);
        }
        let before = former.index();
        let mut index = before.clone();
        index.left_out = OnceLock::new();
        if objects().any(|object| object.key.kind == Kind::OidcLogin) {
            index.logins = OnceLock::new();
        }
        let claims = |object: &Object| {
            let uses = matches!(object.key.kind, Kind::BasicAuth | Kind::RequestAuthentication | Kind::OidcLogin | Kind::ReferenceGrant);
            // A Gateway that asks clients for certificates uses consumers, too.
            let asks = matches!(&object.spec, Spec::Gateway(gateway) if gateway.clients.all().next().is_some());
            uses || asks || matches!(object.key.kind, Kind::Consumer | Kind::Secret)
        };
        if objects().any(|object| claims(object)) {
            index.claims = OnceLock::new();
        }
        let leads = |object: &Object| {
            matches!(object.spec, Spec::Route(_) | Spec::Service(_) | Spec::Gateway(_) | Spec::ListenerSet(_) | Spec::BackendTlsPolicy(_))
                || matches!(object.key.kind, Kind::ReferenceGrant | Kind::XBackend | Kind::EgressPolicy)
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
        let carriers = gone.iter().chain(come).filter(|object| matches!(object.key.kind, Kind::Workload | Kind::Pod));
        families.extend(carriers.map(|object| (object.key.namespace.clone(), family(&object.key.name).to_owned())));
        let instances: Vec<_> = families.iter().flat_map(|family| self.settle(world, family)).collect();
        for Changed { name, is, .. } in &instances {
            match is {
                Some(instance) if instance.is_started() => self.started.insert(name.clone(), ()),
                _ => self.started.remove(name),
            }
        }
        let declared = gone.iter().chain(come).filter(|object| object.key.kind == Kind::Workload).map(|object| name_of(&object.key));
        self.gather(world, declared.collect(), &instances);
        let mut services = difference.services.clone();
        services.extend(gone.iter().chain(come).filter(|object| object.key.kind == Kind::Service).map(|object| name_of(&object.key)));
        let services = self.serve(world, services, &instances);
        self.address((former, world), &gateways, &services, &instances);
        let canaried = canaries::overlays(self, world.canaries());
        if *self.canaried != canaried {
            self.canaried = Arc::new(canaried);
        }
    }
}

fn name_space(namespaces: &mut BTreeMap<String, NamespaceView>, name: &str) {
    if name.is_empty() || namespaces.contains_key(name) {
        return;
    }
    let labels = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())]);
    namespaces.insert(name.to_owned(), NamespaceView { labels, annotations: BTreeMap::new() });
}

/// Region and zone of nodes.
fn zones<'a>(objects: &[&'a Arc<Object>]) -> BTreeMap<&'a ObjectKey, (String, String)> {
    objects.iter().filter(|object| object.key.kind == Kind::Node).map(|object| (&object.key, zone(object))).collect()
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
