//! What sets one world apart from the one before it, as far as proxies can see it. A property test holds this against views: one that
//! depends on nothing that is touched is the same in both worlds.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::attach::content;
use super::subject::{Affected, Subject};
use super::{attach, backend_tls, canary, edge, edge_listeners, edge_tls, external_backend, mtls, policy, protocol};
use crate::world::own::Selector;
use crate::world::traffic::Place;
use crate::world::{Address, Index, Instance, Kind, Name, Object, ObjectKey, ServiceView, Spec, World, references};

/// See the module. What is not attributed here is `All`.
pub fn touched(before: &World, after: &World) -> Affected {
    let (was, is) = (before.index(), after.index());
    let apart = !Arc::ptr_eq(&was.mesh, &is.mesh) && was.mesh != is.mesh
        || !Arc::ptr_eq(&was.namespaces, &is.namespaces) && was.namespaces != is.namespaces
        || !Arc::ptr_eq(&was.grants, &is.grants) && was.grants != is.grants
        || [(&was.telemetries, &is.telemetries), (&was.revocations, &is.revocations)]
            .iter()
            .any(|(was, is)| differ(was, is).next().is_some())
        || before.settings() != after.settings()
        // The mesh's own roots, and those of policies for its instances, which are of no Gateway.
        || differ(&was.contents, &is.contents).any(|object| [before, after].into_iter().any(|world| is_everybodys(world, &object.key)));
    if apart {
        return Affected::All;
    }
    let mut sum = Sum { worlds: (before, after), was, is, touched: BTreeSet::new(), behind: BTreeSet::new() };
    let places = was.traffic.changes(&is.traffic);
    if places.iter().any(|(place, ..)| matches!(place, Place::Namespace(_) | Place::Mesh)) {
        return Affected::All;
    }
    for (place, ..) in places {
        if let Place::Section(key, _) | Place::Object(key) = place {
            sum.target((before, after), key);
        }
    }
    // All proxies know the Gateways by name.
    if was.gateways.changes(&is.gateways).iter().any(|(_, was, is)| was.is_none() || is.is_none()) {
        return Affected::All;
    }
    let edges = was.edge.changes(&is.edge);
    if edges.iter().any(|(place, ..)| matches!(place, Place::Namespace(_) | Place::Mesh)) {
        return Affected::All;
    }
    for (place, ..) in edges {
        if let Place::Section(key, _) | Place::Object(key) = place {
            sum.target((before, after), key);
        }
    }
    // What authorization servers outside the mesh may be asked.
    // Whether cookies of logins are taken out anywhere.
    if differ(&was.egress, &is.egress).next().is_some() || was.has_logins() != is.has_logins() {
        for index in sum.both() {
            sum.touched.extend(index.gateways.keys().map(Subject::gateway));
        }
    }
    sum.consumers();
    sum.services();
    sum.instances();
    sum.gateways();
    sum.sets();
    sum.backends();
    sum.secrets((before, after));
    sum.slices();
    sum.addresses();
    sum.routes();
    sum.touched.extend(canary::changed(was, is).map(Subject::service));
    for (was, is, selector) in [
        (&was.authorizations, &is.authorizations, select_calls as fn(&Object) -> Option<&Selector>),
        (&was.request_authentications, &is.request_authentications, select_tokens),
        (&was.egress, &is.egress, select_egress),
        (&was.traffic_selectors, &is.traffic_selectors, select_traffic),
    ] {
        sum.selected(was, is, selector, false);
    }
    sum.selected(&was.peer_authentications, &is.peer_authentications, select_peers, true);
    Affected::Some(sum.end())
}

/// Whether something of which every proxy is told refers to an object.
fn is_everybodys(world: &World, key: &ObjectKey) -> bool {
    let policies = world.index().egress.iter();
    let mesh = world.of_kind(Kind::Mesh).filter_map(|(_, slot)| slot.live()?.object.as_ref());
    policies.chain(mesh).any(|object| references(object).contains(key))
}

fn select_calls(object: &Object) -> Option<&Selector> {
    if let Spec::AuthorizationPolicy(spec) = &object.spec { Some(&spec.selector) } else { None }
}

fn select_tokens(object: &Object) -> Option<&Selector> {
    if let Spec::RequestAuthentication(spec) = &object.spec { Some(&spec.selector) } else { None }
}

fn select_egress(object: &Object) -> Option<&Selector> {
    if let Spec::EgressPolicy(spec) = &object.spec { Some(&spec.selector) } else { None }
}

fn select_traffic(object: &Object) -> Option<&Selector> {
    policy::content(object).map(|spec| &spec.selector)
}

fn select_peers(object: &Object) -> Option<&Selector> {
    mtls::content(object).map(|spec| &spec.selector)
}

/// Objects of one list that the other does not have. Most are the very same.
fn differ<'a>(was: &'a Arc<Vec<Arc<Object>>>, is: &'a Arc<Vec<Arc<Object>>>) -> impl Iterator<Item = &'a Arc<Object>> {
    let set = |objects: &Arc<Vec<Arc<Object>>>| -> BTreeSet<*const Object> { objects.iter().map(Arc::as_ptr).collect() };
    let apart = !Arc::ptr_eq(was, is);
    let (before, after) = if apart { (set(was), set(is)) } else { Default::default() };
    let gone = was.iter().filter(move |object| apart && !after.contains(&Arc::as_ptr(object)));
    gone.chain(is.iter().filter(move |object| apart && !before.contains(&Arc::as_ptr(object))))
}

struct Sum<'a> {
    worlds: (&'a World, &'a World),
    was: &'a Index,
    is: &'a Index,
    touched: BTreeSet<Subject>,
    /// Services with others behind them, or behind them otherwise.
    behind: BTreeSet<&'a Name>,
}

impl<'a> Sum<'a> {
    fn both(&self) -> [&'a Index; 2] {
        [self.was, self.is]
    }

    /// Pages on which somebody is otherwise, or what they show: keys, files of users and lists of addresses stand in contents. Where several
    /// claim one credential, who has it may be another one by now, of whichever page.
    fn consumers(&mut self) {
        let mut pages: BTreeSet<u8> = self.was.consumers.changes(&self.is.consumers).iter().map(|(page, ..)| **page).collect();
        for object in differ(&self.was.contents, &self.is.contents) {
            for index in self.both() {
                pages.extend(edge::consumers::pages_of(index, &object.key));
            }
        }
        pages.extend(edge::consumers::contested(self.worlds.0, self.worlds.1));
        if self.worlds.0.login_seeds() != self.worlds.1.login_seeds() {
            pages.insert(edge::consumers::page_of_made_keys());
        }
        self.touched.extend(pages.into_iter().map(Subject::consumers));
    }

    fn services(&mut self) {
        for (name, was, is) in self.was.services.changes(&self.is.services) {
            self.behind.insert(name);
            if !was.zip(is).is_some_and(|(was, is)| *was.object == *is.object && was.addresses == is.addresses) {
                self.touched.insert(Subject::service(name));
            }
            let picked =
                |view: Option<&'a ServiceView>| -> BTreeSet<&'a Name> { view.into_iter().flat_map(|view| &view.instances).collect() };
            for instance in picked(was).symmetric_difference(&picked(is)) {
                self.touched.insert(Subject::instance(instance));
            }
        }
    }

    /// All that is touched. What a Service's own instances say may make another one of its ports opaque.
    fn end(mut self) -> BTreeSet<Subject> {
        for name in std::mem::take(&mut self.behind) {
            self.touched.insert(Subject::endpoints(name));
            let [was, is] = self.both().map(|index| index.services.get(name).map(|view| protocol::opaque_ports(index, view)));
            if was != is {
                self.touched.insert(Subject::service(name));
            }
        }
        self.touched
    }

    fn instances(&mut self) {
        for (name, was, is) in self.was.instances.changes(&self.is.instances) {
            self.around(name, [was, is]);
            let declared = |one: &Instance| Instance { ready: false, draining: false, ..one.clone() };
            if was.map(declared) != is.map(declared) {
                self.touched.insert(Subject::instance(name));
            }
        }
    }

    /// Services that an instance is an endpoint of.
    fn around(&mut self, name: &Name, states: [Option<&Instance>; 2]) {
        for (index, instance) in self.both().into_iter().zip(states) {
            self.behind.extend(index.fronts.get(name).into_iter().flatten());
            for address in instance.into_iter().flat_map(|instance| &instance.addresses) {
                self.listed(*address);
            }
        }
    }

    /// Services of which an EndpointSlice has that address.
    fn listed(&mut self, address: IpAddr) {
        for index in self.both() {
            for (service, _) in index.listed.get(&address).into_iter().flatten() {
                self.touched.insert(Subject::endpoints(service));
            }
        }
    }

    fn gateways(&mut self) {
        for (name, ..) in self.was.gateways.changes(&self.is.gateways) {
            self.touched.insert(Subject::gateway(name));
        }
        for (name, ..) in self.was.gateway_addresses.changes(&self.is.gateway_addresses) {
            self.touched.insert(Subject::gateway(name));
        }
    }

    /// Gateways' ListenerSets are of what they say.
    fn sets(&mut self) {
        for (name, ..) in self.was.gateway_sets.changes(&self.is.gateway_sets) {
            self.touched.insert(Subject::gateway(name));
        }
    }

    /// How edges meet Services, with whom they believe there.
    fn backends(&mut self) {
        for (service, ..) in self.was.backend_tls.changes(&self.is.backend_tls) {
            self.touched.insert(Subject::service(service));
        }
        for ((namespace, name), was, is) in self.was.externals.changes(&self.is.externals) {
            self.touched.insert(Subject::service(&external_backend::known_as((namespace, name))));
            // Gateways that lead there are given what it is to be shown.
            for (index, object) in self.both().into_iter().zip([was, is]) {
                let object = object.filter(|object| external_backend::content(object).is_some_and(|spec| spec.certificate.is_some()));
                self.touched.extend(
                    object.into_iter().flat_map(|object| backend_tls::let_outside(index, object)).map(|name| Subject::secrets(&name)),
                );
            }
        }
        for object in differ(&self.was.contents, &self.is.contents) {
            for index in self.both() {
                self.touched.extend(backend_tls::referrers(index, &object.key).iter().map(Subject::service));
            }
        }
    }

    /// What Gateways keep secret.
    fn secrets(&mut self, (before, after): (&'a World, &'a World)) {
        let mut changed: BTreeSet<&ObjectKey> = differ(&self.was.contents, &self.is.contents).map(|object| &object.key).collect();
        changed.extend(before.credentials().changes(after.credentials()).into_iter().map(|(key, ..)| key));
        for key in changed {
            for index in self.both() {
                self.touched.extend(edge_tls::referrers(index, key).iter().map(Subject::secrets));
            }
        }
        if !Arc::ptr_eq(before.tickets(), after.tickets()) && before.tickets() != after.tickets() {
            self.touched.extend(self.is.gateways.keys().map(Subject::secrets));
        }
        self.touched.extend(edge::acme::proving_otherwise(before, after).into_iter().map(Subject::secrets));
    }

    fn slices(&mut self) {
        for (service, ..) in self.was.slices.changes(&self.is.slices) {
            self.touched.insert(Subject::endpoints(service));
        }
        for (address, ..) in self.was.listed.changes(&self.is.listed) {
            self.touched.insert(Subject::address(*address));
        }
    }

    fn addresses(&mut self) {
        for (address, was, is) in self.was.addresses.changes(&self.is.addresses) {
            self.touched.insert(Subject::address(*address));
            self.listed(*address);
            for owner in [was, is].into_iter().flatten() {
                if let Address::Instance(name) = owner {
                    self.touched.insert(Subject::instance(name));
                }
            }
        }
    }

    fn routes(&mut self) {
        for route in differ(&self.was.routes, &self.is.routes) {
            self.parents(route);
        }
        // Which Services take gRPC depends on routes, and on all that they are attached to.
        if !Arc::ptr_eq(&self.was.grpc_ports, &self.is.grpc_ports) {
            let [was, is] = self.both().map(attach::all_grpc_ports);
            for (service, _) in was.symmetric_difference(is) {
                self.touched.insert(Subject::service(service));
            }
        }
    }

    /// What a route is attached to, or would be.
    fn parents(&mut self, route: &Object) {
        for parent in content(route).into_iter().flat_map(|spec| &spec.parents) {
            let name = (parent.namespace.clone().unwrap_or_else(|| route.key.namespace.clone()), parent.name.clone());
            if parent.is_service() {
                self.touched.insert(Subject::service(&name));
            } else {
                // A ListenerSet that comes or goes takes its routes along; its Gateway is touched by itself then.
                let gateways = self.both().map(|index| attach::leads_to_gateway(index, &route.key, parent));
                self.touched.extend(gateways.iter().flatten().map(Subject::gateway));
            }
        }
    }

    /// What a policy of that target says something of.
    fn target(&mut self, worlds: (&'a World, &'a World), key: &ObjectKey) {
        let name = (key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::Service => _ = self.touched.insert(Subject::service(&name)),
            Kind::Gateway => _ = self.touched.insert(Subject::gateway(&name)),
            Kind::ListenerSet => {
                for index in self.both() {
                    let set = index.listener_sets.get(&name).and_then(|object| edge_listeners::set(object));
                    self.touched.extend(set.and_then(|set| set.parent(&name.0)).as_ref().map(Subject::gateway));
                }
            }
            _ => [worlds.0, worlds.1].into_iter().filter_map(|world| world.get(key)).for_each(|route| self.parents(route)),
        }
    }

    /// Instances that policies select which are new, gone or others. `served`: also what is said of them as endpoints.
    fn selected(
        &mut self,
        was: &'a Arc<Vec<Arc<Object>>>,
        is: &'a Arc<Vec<Arc<Object>>>,
        selector: fn(&Object) -> Option<&Selector>,
        served: bool,
    ) {
        for object in differ(was, is) {
            let Some(selector) = selector(object) else { continue };
            let root = object.key.namespace == proto::annotations::ROOT_NAMESPACE && selector.is_none();
            for index in self.both() {
                let first = if root { Name::default() } else { (object.key.namespace.clone(), String::new()) };
                let near = index.instances.from(&first).take_while(|(name, _)| root || name.0 == object.key.namespace);
                for (name, instance) in near.filter(|(_, one)| mtls::applies(object, selector, &one.namespace, one.labels())) {
                    self.touched.insert(Subject::instance(name));
                    if served {
                        self.around(name, [Some(instance), None]);
                    }
                }
            }
        }
    }
}
