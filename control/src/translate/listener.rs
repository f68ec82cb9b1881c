//! Listeners: outbound ones by the address called, the inbound one of a sidecar, and an edge's.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use proto::names;
use proto::words::MtlsMode;
use proto::xds::core::TrafficDirection;
use proto::xds::listener::{Filter, FilterChain, FilterChainMatch, Listener};
use proto::xds::tls;

use super::mtls::Modes;
use super::policy::{self, InboundTraits};
use super::protocol::{self, Protocol};
use super::wire::{self, Routes};
use crate::world::{Index, Instance, ServiceView};

/// The listener for a port that a mesh address does not serve: without any chain, so that proxies refuse instead of waiting.
pub(super) fn nowhere(address: SocketAddr) -> Listener {
    Listener {
        name: names::outbound(address),
        address: Some(wire::socket(address.ip(), address.port())),
        bind_to_port: Some(false),
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Listener::default()
    }
}

/// The listener for one original destination: its route table, its cluster, or both where the protocol is undeclared.
/// `idle`: of opaque connections, as [`wire::tcp`] has it.
pub(super) fn outbound(address: SocketAddr, protocol: Protocol, (table, cluster): (&str, &str), idle: Option<Duration>) -> Listener {
    let http = || FilterChain {
        name: "http".to_owned(),
        filters: vec![wire::http(protocol, Routes::Named(table.to_owned()), false)],
        ..FilterChain::default()
    };
    let tcp = || FilterChain { name: "tcp".to_owned(), filters: vec![wire::tcp_to(cluster, idle)], ..FilterChain::default() };
    let mut listener = nowhere(address);
    match protocol {
        Protocol::Tcp => listener.filter_chains.push(tcp()),
        Protocol::Auto => {
            let sniffed = FilterChainMatch { application_protocols: wire::http_names(), ..FilterChainMatch::default() };
            listener.filter_chains.push(FilterChain { filter_chain_match: Some(sniffed), ..http() });
            listener.default_filter_chain = Some(tcp());
            listener.listener_filters.push(wire::http_inspector());
        }
        Protocol::Http | Protocol::Http1 | Protocol::Http2 => listener.filter_chains.push(http()),
    }
    listener
}

/// The listener for one original destination whose connections are not looked into.
pub(super) fn bytes(address: SocketAddr, filter: Filter) -> Listener {
    let mut listener = nowhere(address);
    listener.filter_chains.push(FilterChain { name: "tcp".to_owned(), filters: vec![filter], ..FilterChain::default() });
    listener
}

/// The listener for one original destination whose TLS is told apart by the name that it asks for, `*` standing for any or none: a
/// chain each, the narrowest first. What is no TLS, or asks for another name, meets no chain and is closed.
pub(super) fn by_name(address: SocketAddr, chains: impl Iterator<Item = (String, Filter)>) -> Listener {
    let mut listener = nowhere(address);
    listener.listener_filters.push(wire::tls_inspector());
    let chain = |(name, filter): (String, Filter)| FilterChain {
        name: format!("tls/{name}"),
        filter_chain_match: Some(FilterChainMatch {
            transport_protocol: "tls".to_owned(),
            server_names: if name == "*" { Vec::new() } else { vec![name] },
            ..FilterChainMatch::default()
        }),
        filters: vec![filter],
        ..FilterChain::default()
    };
    listener.filter_chains.extend(chains.map(chain));
    listener
}

/// The inbound side of a sidecar: chains per declared port, and the same without a port for every other.
pub(super) fn inbound(index: &Index, instance: Option<&Instance>, modes: &Modes) -> Listener {
    let mut chains = Vec::new();
    for port in instance.map(|instance| declared_ports(index, instance)).unwrap_or_default().union(&modes.ports()) {
        let protocol = instance.map_or(Protocol::Auto, |instance| protocol::of_server(index, instance, *port));
        let service = instance.map(|instance| only_service(index, instance, *port)).unwrap_or_default();
        let traits = instance.map(|instance| {
            let fronts = protocol::in_front(index, instance, *port);
            policy::of_inbound(index, instance, Some(*port), fronts)
        });
        let traits = traits.unwrap_or_default();
        let (mode, trust_domain) = (modes.of(*port), index.mesh.trust_domain.as_str());
        let plan = InboundPort { number: Some(*port), protocol, service, mode, trust_domain, traits };
        plan.chains(&mut chains);
    }
    let rest = InboundPort {
        number: None,
        protocol: Protocol::Auto,
        service: String::new(),
        mode: modes.other(),
        trust_domain: &index.mesh.trust_domain,
        traits: instance.map(|instance| policy::of_inbound(index, instance, None, std::iter::empty())).unwrap_or_default(),
    };
    rest.chains(&mut chains);
    Listener {
        name: names::INBOUND.to_owned(),
        address: Some(wire::socket(IpAddr::V4(Ipv4Addr::UNSPECIFIED), names::INBOUND_PORT)),
        filter_chains: chains,
        traffic_direction: TrafficDirection::Inbound.into(),
        ..Listener::default()
    }
}

/// Ports that the Workload declares or a Service leads to.
fn declared_ports(index: &Index, instance: &Instance) -> BTreeSet<u16> {
    let own = instance.workload().into_iter().flat_map(|workload| workload.ports.iter().map(|port| port.port));
    let led = protocol::selecting(index, instance).filter_map(ServiceView::service).flat_map(|service| &service.ports);
    own.chain(led.filter_map(|port| protocol::target(port, instance))).collect()
}

/// `NS/NAME` of the Service in front of a port; empty unless there is exactly one, for else nobody knows which was meant.
fn only_service(index: &Index, instance: &Instance, port: u16) -> String {
    let services: BTreeSet<_> = protocol::in_front(index, instance, port).map(|(view, _)| view.name()).collect();
    match services.first() {
        Some((namespace, name)) if services.len() == 1 => format!("{namespace}/{name}"),
        _ => String::new(),
    }
}

/// One port of the inbound side, or (no number) all others.
struct InboundPort<'a> {
    number: Option<u16>,
    protocol: Protocol,
    service: String,
    mode: MtlsMode,
    trust_domain: &'a str,
    traits: InboundTraits,
}

impl InboundPort<'_> {
    /// Adds the chains that spell the mode (`xds.md` 2.2).
    fn chains(&self, chains: &mut Vec<FilterChain>) {
        match self.mode {
            MtlsMode::Strict => self.add(chains, "strict", true),
            MtlsMode::Permissive => {
                let protocol = if self.protocol == Protocol::Tcp { Protocol::Tcp } else { Protocol::Http };
                chains.push(self.chain("mesh", true, wire::mesh_names(), protocol));
                self.add(chains, "plaintext", false);
                let mut passed = self.chain("passthrough", true, Vec::new(), Protocol::Tcp);
                passed.transport_socket = None;
                chains.push(passed);
            }
            MtlsMode::Disabled => self.add(chains, "plaintext", false),
        }
    }

    /// One chain for a declared protocol, two for an undeclared one.
    fn add(&self, chains: &mut Vec<FilterChain>, word: &str, encrypted: bool) {
        if self.protocol == Protocol::Auto {
            let mut http = wire::http_names();
            if encrypted {
                // What stock HTTP/2 clients offer; mesh peers say it by their own ALPN.
                http.push("h2".to_owned());
            }
            chains.push(self.chain(&format!("{word}-http"), encrypted, http, Protocol::Http));
            chains.push(self.chain(word, encrypted, Vec::new(), Protocol::Tcp));
        } else {
            chains.push(self.chain(word, encrypted, Vec::new(), self.protocol));
        }
    }

    fn chain(&self, word: &str, encrypted: bool, application_protocols: Vec<String>, protocol: Protocol) -> FilterChain {
        let filter = match protocol {
            Protocol::Tcp | Protocol::Auto => wire::tcp_to(names::INBOUND, self.traits.idle),
            _ => wire::http(protocol, Routes::Inline(super::route::inbound(&self.traits.policy)), true),
        };
        let tls = || tls::DownstreamTlsContext {
            common_tls_context: Some(wire::mesh_tls(self.trust_domain, wire::mesh_names())),
            require_client_certificate: Some(true),
            session_ticket_keys_type: None,
        };
        let number = self.number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        FilterChain {
            name: format!("{number}-{word}"),
            filter_chain_match: Some(FilterChainMatch {
                destination_port: self.number.map(u32::from),
                transport_protocol: if encrypted { "tls" } else { "raw_buffer" }.to_owned(),
                application_protocols,
                ..FilterChainMatch::default()
            }),
            filters: vec![filter],
            transport_socket: encrypted.then(|| wire::transport("envoy.transport_sockets.tls", &tls())),
            metadata: (!self.service.is_empty()).then(|| wire::facts(&[(names::fact::SERVICE, &self.service)])),
        }
    }
}
