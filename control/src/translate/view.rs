//! The view of one proxy: its own listeners, the names it asked for, and the closure of both.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use proto::names::{self, Mode};
use proto::xds::route::RouteConfiguration;
use proto::xds::{self, pack};

use super::attach::{self, Backend};
use super::cluster::{Destination, assignment, cluster, destinations, port_of};
use super::mtls::Modes;
use super::rule::Frontend;
use super::security::{authentication, egress};
use super::{
    AUTHENTICATION, AUTHORIZATION, Audience, DNS_RECORD, EGRESS, Encoded, PROXY_CONFIG, View, dns, listener, policy, protocol, route,
    security, settings, stream,
};
use crate::world::{Address, Name, Object, World};

/// What a proxy should hold: what its own listeners imply, and the closure of the names it `wants` (`out/IP:PORT`, `dns/NAME`).
pub fn view(world: &World, audience: &Audience, wants: &BTreeSet<String>) -> View {
    let mut closure = Closure { world, audience, view: View::default(), destinations: BTreeSet::new(), sessions: BTreeSet::new() };
    closure.add(PROXY_CONFIG, names::PROXY.to_owned(), &settings::proxy_config(world, audience));
    match audience.node.mode {
        Mode::Sidecar => closure.inbound(),
        Mode::Edge => closure.edge(),
    }
    for name in wants {
        let found = if let Some(address) = names::outbound_address(name) {
            closure.outbound(address)
        } else if let Some(host) = names::dns_host(name) {
            closure.dns(name, host)
        } else {
            false
        };
        if !found {
            closure.view.missing.insert(name.clone());
        }
    }
    closure.finish()
}

struct Closure<'a> {
    world: &'a World,
    audience: &'a Audience,
    view: View,
    destinations: BTreeSet<Destination>,
    /// Clusters with endpoints that sessions name.
    sessions: BTreeSet<String>,
}

impl Closure<'_> {
    fn add<M: Message + prost::Name>(&mut self, type_url: &'static str, name: String, message: &M) {
        debug_assert_eq!(type_url, M::type_url());
        let any = pack(message);
        let version = proto::epoch::version(&any.value);
        self.view.resources.insert((type_url, name), Arc::new(Encoded { version, any }));
    }

    fn inbound(&mut self) {
        let index = self.world.index();
        let node = &self.audience.node;
        let instance = index.instances.get(&(node.namespace.clone(), node.instance.clone()));
        let modes = Modes::new(index, &node.namespace, &self.audience.labels);
        self.add(xds::LISTENER, names::INBOUND.to_owned(), &listener::inbound(index, instance, &modes));
        if let Some(egress) = egress::egress(self.world, &node.namespace, &self.audience.labels) {
            self.add(EGRESS, names::EGRESS.to_owned(), &egress);
        }
        if let Some(rules) = authentication::authentication(self.world, &node.namespace, &self.audience.labels) {
            self.add(AUTHENTICATION, names::INBOUND.to_owned(), &rules);
        }
        if let Some(authorization) = security::authorization(self.world, &node.namespace, &self.audience.labels) {
            self.add(AUTHORIZATION, names::INBOUND.to_owned(), &authorization);
        }
    }

    fn edge(&mut self) {
        let node = &self.audience.node;
        let name = (node.namespace.clone(), node.instance.clone());
        let Some(gateway) = self.world.index().gateways.get(&name).and_then(|object| attach::gateway(object)) else { return };
        for port in attach::ports(gateway) {
            self.add(xds::LISTENER, names::edge(port), &listener::edge(port));
            let table = route::edge(self.world, &name, gateway, port, self.audience);
            self.destinations.extend(destinations(table.backends));
            self.table(&table.config);
        }
    }

    fn table(&mut self, config: &RouteConfiguration) {
        self.sessions.extend(policy::sessions(config));
        self.add(xds::ROUTE, config.name.clone(), config);
    }

    /// Whether the mesh has that address. A port that it does not serve is a listener that leads nowhere.
    fn outbound(&mut self, address: SocketAddr) -> bool {
        let index = self.world.index();
        match index.addresses.get(&address.ip()) {
            Some(Address::Service(name)) => {
                let Some(view) = index.services.get(name) else { return false };
                let Some(port) = port_of(view, address.port()) else { return self.nowhere(address) };
                if self.stream(address, name) {
                    return true;
                }
                let protocol = protocol::of_service(index, view, port, &self.audience.node.namespace);
                let cluster = names::service_port(&name.0, &name.1, port.port);
                let mut table = cluster.clone();
                if protocol != protocol::Protocol::Tcp {
                    let routes = route::service(self.world, name, port.port, self.audience);
                    table.clone_from(&routes.config.name);
                    self.destinations.extend(destinations(routes.backends));
                    self.table(&routes.config);
                }
                // The whole port, for bytes that are no HTTP; with routes there are none.
                if !protocol.is_http() {
                    self.destinations.insert(Destination::Service(Backend { service: name.clone(), port: port.port }));
                }
                let idle = policy::idle(index, &Backend { service: name.clone(), port: port.port });
                self.listener(address, protocol, (&table, &cluster), idle);
                true
            }
            Some(Address::Instance(name)) => {
                let workload = index.instances.get(name).map_or(name.1.as_str(), |instance| &instance.workload);
                let rule = names::rule("Workload", &name.0, workload, names::DEFAULT_RULE);
                self.single(address, Destination::Instance(name.clone(), address.port()), rule)
            }
            Some(Address::Gateway(name)) => {
                let gateway = index.gateways.get(name).and_then(|object| attach::gateway(object));
                if !gateway.is_some_and(|gateway| attach::ports(gateway).contains(&address.port())) {
                    return self.nowhere(address);
                }
                let rule = names::rule("Gateway", &name.0, &name.1, names::DEFAULT_RULE);
                self.single(address, Destination::Gateway(name.clone(), address.port()), rule)
            }
            None => false,
        }
    }

    /// Whether the Service port has routes for connections; then their listener is its.
    fn stream(&mut self, address: SocketAddr, service: &Name) -> bool {
        let (index, client) = (self.world.index(), self.audience.node.namespace.as_str());
        let (routes, _) = attach::service_routes(index, service, address.port(), client);
        let routes: Vec<&Object> = routes.into_iter().map(Arc::as_ref).filter(|route| !route.key.kind.routes_http()).collect();
        if routes.is_empty() {
            return false;
        }
        let called = Backend { service: service.clone(), port: address.port() };
        let front = Frontend { index, audience: self.audience, called: Some(&called), listener: None };
        let mut backends = BTreeSet::new();
        let listener = stream::listener(&front, address, &routes, &mut backends);
        self.destinations.extend(destinations(backends));
        self.add(xds::LISTENER, names::outbound(address), &listener);
        true
    }

    /// A destination that nothing routes: its own table, its own cluster.
    fn single(&mut self, address: SocketAddr, destination: Destination, rule: String) -> bool {
        let protocol = destination.protocol(self.world.index(), &self.audience.node.namespace);
        let name = destination.name();
        if protocol != protocol::Protocol::Tcp {
            self.table(&route::single(name.clone(), rule));
        }
        self.listener(address, protocol, (&name, &name), None);
        self.destinations.insert(destination);
        true
    }

    fn nowhere(&mut self, address: SocketAddr) -> bool {
        self.add(xds::LISTENER, names::outbound(address), &listener::nowhere(address));
        true
    }

    fn listener(&mut self, address: SocketAddr, protocol: protocol::Protocol, leads: (&str, &str), idle: Option<Duration>) {
        self.add(xds::LISTENER, names::outbound(address), &listener::outbound(address, protocol, leads, idle));
    }

    fn dns(&mut self, name: &str, host: &str) -> bool {
        let Some((record, calls)) = dns::record(self.world.index(), &self.audience.node.namespace, host) else { return false };
        self.add(DNS_RECORD, name.to_owned(), &record);
        for address in calls {
            self.outbound(address);
        }
        true
    }

    fn finish(mut self) -> View {
        let index = self.world.index();
        for destination in std::mem::take(&mut self.destinations) {
            let name = destination.name();
            let sessions = self.sessions.contains(&name);
            self.add(xds::CLUSTER, name.clone(), &cluster(index, &destination, &self.audience.node, sessions));
            self.add(xds::ENDPOINT, name, &assignment(index, &destination));
        }
        self.view
    }
}
