//! The parts that views are made of. What a part holds follows from its key and the world alone, and it says which subjects it depends on:
//! so whoever has made one may give it to all who ask by the same key, until one of its subjects is touched (`publish::memo`).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use proto::names::{self, Mode};
use proto::xds::route::RouteConfiguration;
use proto::xds::{self, pack};

use super::attach::{self, Backend, content};
use super::canary;
use super::cluster::{Calling, Destination, assignment, cluster, destinations, port_of};
use super::edge;
use super::edge_listeners::{self, Edge, Family, Judged};
use super::edge_port::{self, EdgePort};
use super::external_backend;
use super::frontend::Frontend;
use super::mtls::Modes;
use super::security::{authentication, egress};
use super::subject::Subject;
use super::usable::Usable;
use super::{
    AUTHENTICATION, AUTHORIZATION, Audience, CONSUMERS, DNS_RECORD, EGRESS, Encoded, PROXY_CONFIG, dns, edge_tls, listener, policy,
    protocol, route, security, settings, stream,
};
use crate::world::traffic::Caller;
use crate::world::{Address, Index, Name, Object, World};

/// What a part is of: all that its maker sees beside the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PartKey {
    /// A proxy's own side.
    Own(Audience),
    /// What an address leads to.
    Outbound(SocketAddr, Caller),
    /// What a wanted name (`dns/NAME`) leads to, asked for in a namespace.
    Name(String, String),
    /// The cluster of a destination.
    Cluster(Destination, Calling),
    /// The endpoints of a destination.
    Assignment(Destination),
    /// What an edge of a Gateway keeps secret. It goes to nobody else.
    Secrets(Name),
    /// One page of the consumers that a Gateway's objects can use.
    Consumers(Arc<Usable>, u8),
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ViewPart {
    /// Type URL and name of each resource.
    pub resources: Vec<(&'static str, String, Arc<Encoded>)>,
    /// Clusters that must come with them.
    pub destinations: BTreeSet<Destination>,
    /// Clusters with endpoints that sessions name.
    pub(super) sessions: BTreeSet<String>,
    /// The Secret with which an edge proves to backends who it is.
    pub(super) shows: Option<String>,
    /// Addresses that will be called next.
    pub(super) calls: Vec<SocketAddr>,
    /// There is no such thing.
    pub(super) missing: bool,
    /// What it depends on, in order, each once.
    pub subjects: Vec<Subject>,
}

impl ViewPart {
    /// Whether it differs from another one in nothing but what its resources say: same names, same things beside it, same dependence.
    pub fn is_shaped_as(&self, other: &Self) -> bool {
        let mut names = self.resources.iter().zip(&other.resources);
        (&self.destinations, &self.sessions, &self.shows, &self.calls, self.missing, &self.subjects)
            == (&other.destinations, &other.sessions, &other.shows, &other.calls, other.missing, &other.subjects)
            && self.resources.len() == other.resources.len()
            && names.all(|((url, name, _), (other_url, other_name, _))| (url, name) == (other_url, other_name))
    }
}

impl PartKey {
    /// Makes the part.
    pub fn make(&self, world: &World) -> ViewPart {
        let mut maker = Maker { world, part: ViewPart::default() };
        match self {
            Self::Own(audience) => match audience.node.mode {
                Mode::Sidecar => maker.sidecar(audience),
                Mode::Edge => maker.edge(audience),
            },
            Self::Outbound(address, caller) => maker.part.missing = !maker.outbound(*address, caller),
            Self::Name(name, namespace) => maker.part.missing = !maker.name(name, namespace),
            Self::Cluster(destination, calling) => {
                maker.depend(destination);
                let message = cluster(world.index(), destination, calling);
                maker.add(xds::CLUSTER, destination.name(), &message);
            }
            Self::Consumers(usable, page) => {
                maker.part.subjects.push(Subject::consumers(*page));
                if let Some(consumers) = edge::consumers::page(world, usable, *page) {
                    maker.add(CONSUMERS, names::consumers(*page), &consumers);
                }
            }
            Self::Assignment(destination) => {
                match destination {
                    Destination::Service(backend) | Destination::Datagrams(backend) => {
                        let service = &backend.service;
                        maker.part.subjects.extend([Subject::service(service), Subject::endpoints(service)]);
                    }
                    Destination::Instance(name, _) => maker.part.subjects.push(Subject::instance(name)),
                    Destination::Gateway(name, _) => maker.part.subjects.push(Subject::gateway(name)),
                }
                // Those of a host outside the mesh its proxy finds out by itself.
                let outside = matches!(destination, Destination::Service(backend) if backend.outside(world.index()).is_some());
                if !outside {
                    maker.add(xds::ENDPOINT, destination.name(), &assignment(world.index(), destination));
                }
            }
            Self::Secrets(name) => maker.secrets(name),
        }
        let mut part = maker.part;
        part.subjects.sort_unstable();
        part.subjects.dedup();
        part
    }
}

struct Maker<'a> {
    world: &'a World,
    part: ViewPart,
}

impl Maker<'_> {
    fn add<M: Message + prost::Name>(&mut self, type_url: &'static str, name: String, message: &M) {
        debug_assert_eq!(type_url, M::type_url());
        self.part.resources.push((type_url, name, Arc::new(Encoded::new(pack(message)))));
    }

    /// What a destination speaks depends on what is said of it.
    fn depend(&mut self, destination: &Destination) {
        match destination {
            Destination::Service(backend) | Destination::Datagrams(backend) => self.part.subjects.push(Subject::service(&backend.service)),
            Destination::Instance(name, _) => self.depend_on_instance(name),
            Destination::Gateway(name, _) => self.part.subjects.push(Subject::gateway(name)),
        }
    }

    /// What an instance's ports take depends on the Services in front of it, too.
    fn depend_on_instance(&mut self, name: &Name) {
        self.part.subjects.push(Subject::instance(name));
        self.part.subjects.extend(self.world.index().fronts.get(name).into_iter().flatten().map(Subject::service));
    }

    /// Services that a route refers to, whether or not there are any.
    fn depend_on_backends(&mut self, route: &Object) {
        for reference in content(route).into_iter().flat_map(|spec| &spec.rules).flat_map(|rule| rule.references()) {
            let namespace = reference.namespace.clone().unwrap_or_else(|| route.key.namespace.clone());
            let outside = external_backend::is_meant(reference).then(|| external_backend::known_as((&namespace, &reference.name)));
            let service = outside.unwrap_or((namespace, reference.name.clone()));
            self.part.subjects.push(Subject::service(&service));
            self.part.subjects.extend(canary::subjects(self.world.index(), &service));
        }
    }

    /// Services that objects at a Gateway ask, whether or not there are any.
    fn depend_on_asked(&mut self, gateway: &Name) {
        let index = self.world.index();
        if index.edge.is_empty() {
            return;
        }
        let places = edge::ladder::all_places(index, gateway);
        for object in places.iter().flat_map(|place| index.edge.get(place).into_iter().flatten()) {
            for service in [edge::external::service_of(object), edge::limits::service_of(object)].into_iter().flatten() {
                self.part.subjects.push(Subject::service(&service));
            }
            if let Some(said) = authentication::content(object).and_then(|spec| spec.introspection.as_ref()) {
                dns::traced(index, &object.key.namespace, said.url.host(), &mut self.part.subjects);
            }
        }
    }

    fn sidecar(&mut self, audience: &Audience) {
        let (world, index, node) = (self.world, self.world.index(), &audience.node);
        let name = (node.namespace.clone(), node.instance.clone());
        self.depend_on_instance(&name);
        self.add(PROXY_CONFIG, names::PROXY.to_owned(), &settings::proxy_config(world, audience));
        let modes = Modes::new(index, &node.namespace, &audience.labels);
        self.add(xds::LISTENER, names::INBOUND.to_owned(), &listener::inbound(index, index.instances.get(&name), &modes));
        if let Some(egress) = egress::egress(world, &node.namespace, &audience.labels) {
            self.add(EGRESS, names::EGRESS.to_owned(), &egress);
        }
        if let Some(rules) = authentication::authentication(world, &node.namespace, &audience.labels) {
            self.add(AUTHENTICATION, names::INBOUND.to_owned(), &rules);
        }
        if let Some(authorization) = security::authorization(world, &node.namespace, &audience.labels) {
            self.add(AUTHORIZATION, names::INBOUND.to_owned(), &authorization);
        }
    }

    fn edge(&mut self, audience: &Audience) {
        let (world, index, node) = (self.world, self.world.index(), &audience.node);
        let name = (node.namespace.clone(), node.instance.clone());
        self.part.subjects.push(Subject::gateway(&name));
        self.add(PROXY_CONFIG, names::PROXY.to_owned(), &settings::proxy_config(world, audience));
        let Some(edge) = Edge::of(index, &name) else { return };
        for route in index.routes.iter().filter(|route| attach::names_gateway(index, route, &name)) {
            self.depend_on_backends(route);
        }
        self.depend_on_asked(&name);
        self.part.shows = edge_tls::shown(index, &name, edge.gateway);
        let caller = audience.caller(index);
        for port in edge.ports(index) {
            if let Some(door) = edge::authorization::door(index, &name, port.0) {
                self.add(AUTHORIZATION, names::edge(port.0), &door);
            }
            let EdgePort { listener, tables, destinations: led } = edge_port::port(world, &edge, port, &caller);
            self.add(xds::LISTENER, listener.name.clone(), &listener);
            self.part.destinations.extend(led);
            for table in tables {
                self.part.destinations.extend(destinations(table.backends));
                self.table(&table.config);
            }
        }
    }

    fn secrets(&mut self, name: &Name) {
        let index = self.world.index();
        self.part.subjects.extend([Subject::gateway(name), Subject::secrets(name)]);
        let Some(edge) = Edge::of(index, name) else { return };
        let hours = |judged: &Judged<'_>| edge::client::ticket_hours(index, name, judged);
        for (name, secret) in edge_tls::secrets(self.world, &edge, hours) {
            self.add(xds::SECRET, name, &secret);
        }
    }

    fn table(&mut self, config: &RouteConfiguration) {
        self.part.sessions.extend(policy::sessions(config));
        self.add(xds::ROUTE, config.name.clone(), config);
    }

    /// Whether the mesh has that address. A port that it does not serve is a listener that leads nowhere.
    fn outbound(&mut self, address: SocketAddr, caller: &Caller) -> bool {
        let index = self.world.index();
        self.part.subjects.push(Subject::address(address.ip()));
        match index.addresses.get(&address.ip()) {
            Some(Address::Service(name)) => self.service(address, name, caller),
            Some(Address::Instance(name)) => {
                self.depend_on_instance(name);
                let workload = index.instances.get(name).map_or(name.1.as_str(), |instance| &instance.workload);
                let rule = names::rule("Workload", &name.0, workload, names::DEFAULT_RULE);
                self.single(address, Destination::Instance(name.clone(), address.port()), rule, caller)
            }
            Some(Address::Gateway(name)) => {
                self.part.subjects.push(Subject::gateway(name));
                let here = |(port, family): &(u16, Family)| *port == address.port() && *family != Family::Udp;
                if !edge_listeners::ports(index, name).iter().any(here) {
                    return self.nowhere(address);
                }
                let rule = names::rule("Gateway", &name.0, &name.1, names::DEFAULT_RULE);
                self.single(address, Destination::Gateway(name.clone(), address.port()), rule, caller)
            }
            None => false,
        }
    }

    fn service(&mut self, address: SocketAddr, name: &Name, caller: &Caller) -> bool {
        let index = self.world.index();
        self.part.subjects.push(Subject::service(name));
        self.part.subjects.extend(canary::subjects(index, name));
        let Some(view) = index.services.get(name) else { return false };
        let Some(port) = port_of(view, address.port()) else { return self.nowhere(address) };
        for route in index.service_routes.get(name).into_iter().flatten() {
            self.depend_on_backends(route);
        }
        if self.stream(address, name, caller) {
            return true;
        }
        let protocol = protocol::of_service(index, view, port, &caller.namespace);
        let cluster = names::service_port(&name.0, &name.1, port.port);
        let mut table = cluster.clone();
        if protocol != protocol::Protocol::Tcp {
            let routes = route::service(self.world, name, port.port, caller);
            table.clone_from(&routes.config.name);
            self.part.destinations.extend(destinations(routes.backends));
            self.table(&routes.config);
        }
        // The whole port, for bytes that are no HTTP; with routes there are none.
        if !protocol.is_http() {
            self.part.destinations.insert(Destination::Service(Backend { service: name.clone(), port: port.port }));
        }
        let idle = policy::idle(index, &Backend { service: name.clone(), port: port.port });
        self.listener(address, protocol, (&table, &cluster), idle);
        true
    }

    /// Whether the Service port has routes for connections; then their listener is its.
    fn stream(&mut self, address: SocketAddr, service: &Name, caller: &Caller) -> bool {
        let index = self.world.index();
        let (routes, _) = attach::service_routes(index, service, address.port(), &caller.namespace);
        let routes: Vec<&Object> = routes.into_iter().map(Arc::as_ref).filter(|route| !route.key.kind.routes_http()).collect();
        if routes.is_empty() {
            return false;
        }
        let called = Backend { service: service.clone(), port: address.port() };
        let front = Frontend { index, caller, called: Some(&called), listener: None };
        let mut backends = BTreeSet::new();
        let listener = stream::listener(&front, address, &routes, &mut backends);
        self.part.destinations.extend(destinations(backends));
        self.add(xds::LISTENER, names::outbound(address), &listener);
        true
    }

    /// A destination that nothing routes: its own table, its own cluster.
    fn single(&mut self, address: SocketAddr, destination: Destination, rule: String, caller: &Caller) -> bool {
        let protocol = destination.protocol(self.world.index(), &caller.namespace);
        let name = destination.name();
        if protocol != protocol::Protocol::Tcp {
            self.table(&route::single(name.clone(), rule));
        }
        self.listener(address, protocol, (&name, &name), None);
        self.part.destinations.insert(destination);
        true
    }

    fn nowhere(&mut self, address: SocketAddr) -> bool {
        self.add(xds::LISTENER, names::outbound(address), &listener::nowhere(address));
        true
    }

    fn listener(&mut self, address: SocketAddr, protocol: protocol::Protocol, leads: (&str, &str), idle: Option<Duration>) {
        self.add(xds::LISTENER, names::outbound(address), &listener::outbound(address, protocol, leads, idle));
    }

    fn name(&mut self, name: &str, namespace: &str) -> bool {
        let host = names::dns_host(name).unwrap_or_default();
        let Some((record, calls)) = dns::traced(self.world.index(), namespace, host, &mut self.part.subjects) else { return false };
        self.add(DNS_RECORD, name.to_owned(), &record);
        self.part.calls = calls;
        true
    }
}

impl Audience {
    /// Which consumers its Gateway's objects can use; `None`: nobody asks for any.
    pub(crate) fn usable(&self, index: &Index) -> Option<Arc<Usable>> {
        let gateway = (self.node.namespace.clone(), self.node.instance.clone());
        let edge = self.node.mode == Mode::Edge;
        let usable = if edge { edge::consumers::usable(index, &gateway) } else { Usable::default() };
        (usable != Usable::default()).then(|| Arc::new(usable))
    }

    /// As which caller it meets the rules of others: its account counts where somebody names it.
    pub(crate) fn caller(&self, index: &Index) -> Caller {
        let named = Caller { namespace: self.node.namespace.clone(), service_account: Some(self.service_account.clone()) };
        if index.fault_callers.contains(&named) { named } else { Caller { service_account: None, ..named } }
    }
}
