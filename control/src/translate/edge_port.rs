//! What an edge proxy runs on one port of its Gateway: the Listener with a chain for each thing that is served there, and the route tables
//! that its chains lead to. Of names the narrowest listener has each, and no wider one catches what that one does not serve.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use proto::mesh::{UdpCluster, UdpProxy};
use proto::names;
use proto::xds::core::{TrafficDirection, address, socket_address};
use proto::xds::listener::{Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, UdpListenerConfig, listener_filter};
use proto::xds::pack;

use super::attach::covers;
use super::cluster::{Destination, destinations};
use super::edge::authorization::DoorPolicies;
use super::edge::client;
use super::edge_listeners::{Edge, Family, Judged};
use super::frontend::Frontend;
use super::protocol::Protocol;
use super::route::{self, RouteTable};
use super::wire::{self, Routes};
use super::{edge_tls, stream};
use crate::world::traffic::Caller;
use crate::world::{Index, World};

/// See the module.
pub(super) struct EdgePort {
    pub listener: Listener,
    pub tables: Vec<RouteTable>,
    /// What else it leads to.
    pub destinations: BTreeSet<Destination>,
}

/// Everything of one port.
pub(super) fn port(world: &World, edge: &Edge<'_>, (port, family): (u16, Family), caller: &Caller) -> EdgePort {
    match family {
        Family::Http => http(world, edge, port, caller),
        Family::Tls => tls(world, edge, port, caller),
        Family::Tcp => tcp(world.index(), edge, port, caller),
        Family::Udp => udp(world.index(), edge, port, caller),
    }
}

fn listener(name: String, port: u16, filter_chains: Vec<FilterChain>) -> Listener {
    Listener {
        address: Some(wire::socket(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)),
        filter_chains,
        traffic_direction: TrafficDirection::Outbound.into(),
        name,
        ..Listener::default()
    }
}

fn http(world: &World, edge: &Edge<'_>, port: u16, caller: &Caller) -> EdgePort {
    let name = names::edge(port);
    let filters = vec![wire::http(Protocol::Http, Routes::Named(name.clone()), false)];
    let chain = FilterChain { name: name.clone(), filters, ..FilterChain::default() };
    let tables = vec![route::edge_http(world, edge, port, caller)];
    let mut listener = listener(name.clone(), port, vec![chain]);
    // Several listeners cannot be told apart before a request is read.
    let mut here = edge.at(port, Family::Http).map(|(_, judged)| judged);
    let only = here.next().filter(|_| here.next().is_none());
    listener.listener_filters.extend(client::sent(world.index(), edge, (port, Family::Http), &[(name, only)]));
    EdgePort { listener, tables, destinations: BTreeSet::new() }
}

fn tls(world: &World, edge: &Edge<'_>, port: u16, caller: &Caller) -> EdgePort {
    let index = world.index();
    let asked = DoorPolicies::at(index, edge.name, port);
    let (mut chains, mut tables, mut backends) = (Vec::new(), Vec::new(), BTreeSet::new());
    let mut led_to: Vec<(String, Option<&Judged<'_>>)> = Vec::new();
    for (place, judged) in edge.at(port, Family::Tls) {
        let clients = client::at_listener(index, edge.name, judged);
        let socket = judged.terminates().then(|| {
            let context = edge_tls::downstream(index, (edge.name, edge.gateway), judged, &clients);
            wire::transport("envoy.transport_sockets.tls", &context)
        });
        if judged.listener.protocol == "HTTPS" {
            let table = names::edge_listener(port, &judged.name());
            led_to.push((judged.name(), Some(judged)));
            let verified = clients.tells_client != Some(false) && edge.gateway.clients.on(port).is_some();
            let mut chain = chain(judged.name(), judged.host(), wire::edge_http(table, verified));
            chain.transport_socket = socket;
            chains.push(chain);
            tables.push(route::edge_https(world, edge, place, caller));
            continue;
        }
        let front = Frontend { index, caller, called: None, listener: Some((edge.name, judged)) };
        let closed = asked.closes(index, edge.name, judged);
        let own = asked.of_chains(index, edge.name, judged).filter(|_| !closed);
        let led = if closed { Vec::new() } else { stream::by_host(&front, edge, place, &mut backends) };
        let several = led.len() > 1;
        for (host, filter) in led {
            let name = if several || judged.passes() { format!("{}/{host}", judged.name()) } else { judged.name() };
            led_to.push((name.clone(), Some(judged)));
            let mut chain = chain(name, &host, filter);
            chain.transport_socket.clone_from(&socket);
            if let Some(own) = &own {
                chain.filters.insert(0, wire::asks(own));
            }
            chains.push(chain);
        }
        chains.extend(shut(edge, place, judged, &chains));
    }
    let mut listener = listener(names::edge(port), port, chains);
    listener.listener_filters.push(wire::tls_inspector());
    listener.listener_filters.extend(client::sent(index, edge, (port, Family::Tls), &led_to));
    EdgePort { listener, tables, destinations: destinations(backends).collect() }
}

/// A chain that leads nowhere, for a listener's own name where nothing is attached to all of it and a wider listener would catch the rest.
fn shut(edge: &Edge<'_>, place: usize, judged: &Judged<'_>, chains: &[FilterChain]) -> Option<FilterChain> {
    let host = judged.host();
    let wider = |(other, one): (usize, &Judged<'_>)| other != place && covers(one.host(), host);
    if host == "*" || !edge.at(judged.listener.port, Family::Tls).any(wider) {
        return None;
    }
    let known = |chain: &FilterChain| chain.filter_chain_match.iter().flat_map(|told| &told.server_names).any(|name| name == host);
    let name = format!("{}/{host}", judged.name());
    (!chains.iter().any(|chain| known(chain) || chain.name == name)).then(|| chain(name, host, wire::tcp(&[], None)))
}

/// A chain for TLS that asks for a host; `*`: for any or none.
fn chain(name: String, host: &str, filter: Filter) -> FilterChain {
    FilterChain {
        name,
        filter_chain_match: Some(FilterChainMatch {
            transport_protocol: "tls".to_owned(),
            server_names: if host == "*" { Vec::new() } else { vec![host.to_owned()] },
            ..FilterChainMatch::default()
        }),
        filters: vec![filter],
        ..FilterChain::default()
    }
}

fn tcp(index: &Index, edge: &Edge<'_>, port: u16, caller: &Caller) -> EdgePort {
    let (mut chains, mut backends, mut led_to) = (Vec::new(), BTreeSet::new(), Vec::new());
    for (place, judged) in edge.at(port, Family::Tcp).take(1) {
        led_to.push((judged.name(), Some(judged)));
        let front = Frontend { index, caller, called: None, listener: Some((edge.name, judged)) };
        let closed = DoorPolicies::at(index, edge.name, port).closes(index, edge.name, judged);
        let filters = vec![if closed { wire::tcp(&[], None) } else { stream::oldest(&front, edge, place, &mut backends) }];
        chains.push(FilterChain { name: judged.name(), filters, ..FilterChain::default() });
    }
    let mut listener = listener(names::edge(port), port, chains);
    listener.listener_filters.extend(client::sent(index, edge, (port, Family::Tcp), &led_to));
    EdgePort { listener, tables: Vec::new(), destinations: destinations(backends).collect() }
}

fn udp(index: &Index, edge: &Edge<'_>, port: u16, caller: &Caller) -> EdgePort {
    let mut backends = BTreeSet::new();
    let mut proxy = UdpProxy::default();
    let open = |judged: &Judged<'_>| !DoorPolicies::at(index, edge.name, port).closes(index, edge.name, judged);
    for (place, judged) in edge.at(port, Family::Udp).take(1).filter(|&(_, judged)| open(judged)) {
        let front = Frontend { index, caller, called: None, listener: Some((edge.name, judged)) };
        let clusters = stream::datagrams(&front, edge, place, &mut backends);
        proxy.clusters = clusters.into_iter().map(|(cluster, weight)| UdpCluster { cluster, weight }).collect();
    }
    let mut listener = listener(names::edge_udp(port), port, Vec::new());
    if let Some(address::Address::SocketAddress(socket)) = listener.address.as_mut().and_then(|at| at.address.as_mut()) {
        socket.protocol = socket_address::Protocol::Udp.into();
    }
    listener.udp_listener_config = Some(UdpListenerConfig {});
    listener.listener_filters.push(ListenerFilter {
        name: "meshwright.udp_proxy".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(pack(&proxy))),
    });
    EdgePort { listener, tables: Vec::new(), destinations: backends.into_iter().map(Destination::Datagrams).collect() }
}

#[cfg(test)]
#[path = "edge_port_tests.rs"]
mod tests;
