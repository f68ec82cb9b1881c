//! The `inbound` listener: its filter chains per port, folded into one rule per port.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::names::{ALPN_MESH, fact};
use proto::xds::core::Metadata;
use proto::xds::listener::{FilterChain, FilterChainMatch};
use proto::xds::route::RouteConfiguration;

use super::chains::{application_http, placed};
use super::hcm::{self, End, Facing, Routes};
use super::policy::{Link, Policies};
use super::transport::{self, Security};
use super::{INBOUND_CLUSTER, forward, metadata, route, stamp};
use crate::model::{Backend, MtlsMode, Protocol};
use crate::rejected::{Wrong, refuse};

/// Most chains of the listener.
const CHAINS_MAX: usize = 4096;

/// See [`crate::model::Inbound`].
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) content: u64,
    pub(super) ports: BTreeMap<u16, InboundPort>,
    pub(super) other: InboundPort,
}

/// See [`crate::model::InboundPort`].
#[derive(Debug)]
pub(super) struct InboundPort {
    pub(super) mode: MtlsMode,
    pub(super) protocol: Protocol,
    pub(super) table: route::RouteTable,
    pub(super) service_namespace: String,
    pub(super) service: String,
    pub(super) idle_timeout: Option<Duration>,
}

/// A chain's part in a port's rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Mesh TLS, told by our marker in the offered ALPN.
    Marked,
    /// Mesh TLS whatever ALPN is offered.
    AnyTls,
    /// The application's own TLS.
    Passthrough,
    /// Plaintext.
    Plain,
}

struct PortChain {
    field: String,
    /// `NS/NAME` labels.
    service: (String, String),
    role: Role,
    /// Only for what the inspector found to be HTTP.
    sniffed: bool,
    end: End,
}

pub(super) fn compile(chains: &[FilterChain], policies: &mut Policies) -> Result<Inbound, Wrong> {
    if chains.len() > CHAINS_MAX {
        return Err(Wrong::new("filter_chains", format!("holds more than {CHAINS_MAX} chains")));
    }
    let mut groups: BTreeMap<Option<u16>, Vec<PortChain>> = BTreeMap::new();
    for (field, chain) in placed(chains) {
        let (port, chain) = read(chain, &field).map_err(|wrong| wrong.within(&field))?;
        groups.entry(port).or_default().push(chain);
    }
    let Some(other) = groups.remove(&None) else {
        return Err(Wrong::new("filter_chains", "no chain without destination_port: the rule for every other port is missing"));
    };
    let other = fold(&other, "every other port", policies)?;
    let port = |(port, chains): (Option<u16>, Vec<PortChain>)| {
        let port = port.unwrap_or_default();
        Ok((port, fold(&chains, &format!("port {port}"), policies)?))
    };
    Ok(Inbound { content: stamp(), ports: groups.into_iter().map(port).collect::<Result<_, Wrong>>()?, other })
}

fn read(raw: &FilterChain, field: &str) -> Result<(Option<u16>, PortChain), Wrong> {
    // The name is a label.
    let FilterChain { filter_chain_match, filters, metadata, transport_socket, name: _ } = raw;
    let wanted = filter_chain_match.clone().unwrap_or_default();
    let FilterChainMatch { destination_port, prefix_ranges, server_names, transport_protocol, application_protocols: protocols } = wanted;
    let at = |name: &str| format!("filter_chain_match.{name}");
    refuse(!prefix_ranges.is_empty(), &at("prefix_ranges"))?;
    refuse(!server_names.is_empty(), &at("server_names"))?;
    let port = match destination_port {
        None => None,
        Some(port) => match u16::try_from(port) {
            Ok(port) if port > 0 => Some(port),
            _ => return Err(Wrong::new(at("destination_port"), format!("{port} is not a port"))),
        },
    };
    let transport = transport_socket.as_ref().map(transport::downstream).transpose().map_err(|wrong| wrong.within("transport_socket"))?;
    let (role, sniffed) = match (transport_protocol.as_str(), transport == Some(Security::Mesh)) {
        ("tls", true) if protocols == ALPN_MESH => (Role::Marked, false),
        ("tls", true) => (Role::AnyTls, foreign_http(&protocols)?),
        ("tls", false) if protocols.is_empty() => (Role::Passthrough, false),
        ("tls", false) => return Err(Wrong::unsupported(at("application_protocols"))),
        ("raw_buffer", false) => (Role::Plain, http_names(&protocols)?),
        _ => return Err(Wrong::new(at("transport_protocol"), "is none of mesh TLS, TLS passed through and plaintext")),
    };
    let end = hcm::compile(filters, Facing::Inbound)?;
    match (role, &end) {
        (_, End::Tcp(_)) if sniffed => return Err(Wrong::new(at("application_protocols"), "names HTTP for a chain that is not")),
        (Role::Passthrough, End::Http { .. }) => {
            return Err(Wrong::new("filters[0]", "the application's own TLS can only be passed through"));
        }
        (Role::Marked, End::Http { protocol, .. }) if *protocol != Protocol::Http => {
            return Err(Wrong::new("filters[0].codec_type", "must be AUTO: mesh ALPN says the version"));
        }
        _ => {}
    }
    Ok((port, PortChain { field: field.to_owned(), service: service(metadata.as_ref())?, role, sniffed, end }))
}

fn http_names(protocols: &[String]) -> Result<bool, Wrong> {
    application_http(protocols).map_err(|wrong| wrong.within("filter_chain_match"))
}

/// Under Strict the inner protocol shows in the ALPN of stock clients, or in the first bytes.
fn foreign_http(protocols: &[String]) -> Result<bool, Wrong> {
    let others: Vec<String> = protocols.iter().filter(|name| *name != "h2").cloned().collect();
    let sniffed = http_names(&others)?;
    if sniffed == (others.len() < protocols.len()) {
        return Ok(sniffed);
    }
    Err(Wrong::new("filter_chain_match.application_protocols", "must name all of http/1.1, h2c and h2, or none"))
}

/// Which of PeerAuthentication's modes a port's chains spell.
fn fold(chains: &[PortChain], whose: &str, policies: &mut Policies) -> Result<InboundPort, Wrong> {
    let with = |role: Role| chains.iter().filter(|chain| chain.role == role).collect::<Vec<_>>();
    let (marked, any_tls, passed, plain) = (with(Role::Marked), with(Role::AnyTls), with(Role::Passthrough), with(Role::Plain));
    let (mode, deciding) = match (marked.is_empty(), any_tls.is_empty(), passed.is_empty(), plain.is_empty()) {
        (true, false, true, true) => (MtlsMode::Strict, &any_tls),
        (false, true, false, false) => (MtlsMode::Permissive, &plain),
        (true, true, true, false) => (MtlsMode::Disabled, &plain),
        _ => {
            let why = format!("the chains of {whose} spell none of Strict, Permissive and Disabled");
            return Err(Wrong::new("filter_chains", why));
        }
    };
    if passed.len() > 1 || marked.len() > 1 {
        return Err(Wrong::new("filter_chains", format!("two chains of {whose} match the same")));
    }
    let protocol = inner_protocol(deciding, whose)?;
    // Whatever is declared, mesh ALPN says what a peer brings; only the declaration itself may not differ.
    if let Some(odd) = marked.iter().find(|chain| matches!(chain.end, End::Tcp(_)) != (protocol == Protocol::Tcp)) {
        return Err(Wrong::new(format!("{}.filters[0]", odd.field), format!("the chains of {whose} declare different protocols")));
    }
    let (service_namespace, service) = deciding[0].service.clone();
    if let Some(odd) = chains.iter().find(|chain| chain.service != deciding[0].service) {
        return Err(Wrong::new(format!("{}.metadata", odd.field), format!("{} differs between the chains of {whose}", fact::SERVICE)));
    }
    Ok(InboundPort {
        mode,
        protocol,
        table: table(chains, policies)?,
        service_namespace,
        service,
        idle_timeout: idle_timeout(chains, policies)?,
    })
}

/// One chain declares a protocol, two leave it to the first bytes.
fn inner_protocol(chains: &[&PortChain], whose: &str) -> Result<Protocol, Wrong> {
    match chains {
        [only] if !only.sniffed => Ok(match only.end {
            End::Http { protocol, .. } => protocol,
            End::Tcp(_) => Protocol::Tcp,
        }),
        [one, two] if one.sniffed != two.sniffed => {
            // Version by the first bytes: that is what "undeclared" means.
            let plain = |chain: &PortChain| !matches!(chain.end, End::Http { protocol: Protocol::Http1 | Protocol::Http2, .. });
            let other = if one.sniffed { two } else { one };
            refuse(!plain(one) || !plain(two) || !matches!(other.end, End::Tcp(_)), &format!("{}.filters[0]", other.field))?;
            Ok(Protocol::Auto)
        }
        _ => Err(Wrong::new("filter_chains", format!("two chains of {whose} match the same, or the one for other bytes is missing"))),
    }
}

fn service(metadata: Option<&Metadata>) -> Result<(String, String), Wrong> {
    metadata::only(metadata, &[fact::SERVICE])?;
    let text = metadata::text_or_empty(metadata, fact::SERVICE)?;
    match text.split_once('/') {
        Some((namespace, name)) if !name.contains('/') => Ok((namespace.to_owned(), name.to_owned())),
        None if text.is_empty() => Ok((String::new(), String::new())),
        _ => Err(Wrong::new(format!("metadata.{}", fact::SERVICE), format!("`{}` is not NS/NAME", text.escape_debug()))),
    }
}

/// The one route table of a port's HTTP chains; a port without any still meets peers whose mesh ALPN says HTTP.
fn table(chains: &[PortChain], policies: &mut Policies) -> Result<route::RouteTable, Wrong> {
    let mut found: Option<&RouteConfiguration> = None;
    for chain in chains {
        let End::Http { routes, .. } = &chain.end else { continue };
        let at = |why: &str| Wrong::new(format!("{}.filters[0]", chain.field), why);
        let Routes::Inline(raw) = routes else {
            return Err(at("inbound routes must be inline (route_config)"));
        };
        if found.is_some_and(|found| *found != **raw) {
            return Err(at("the chains of one port must have the same route_config"));
        }
        found = Some(raw);
    }
    let raw = found.cloned().unwrap_or_else(default_routes);
    route::compile(&raw, None, policies).map_err(|wrong| wrong.within("route_config"))
}

/// Everything to the application.
fn default_routes() -> RouteConfiguration {
    use proto::xds::route::{Route, RouteAction, RouteMatch, VirtualHost, route, route_action, route_match};
    let action =
        RouteAction { cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(INBOUND_CLUSTER.to_owned())), ..Default::default() };
    let rule = Route {
        name: INBOUND_CLUSTER.to_owned(),
        r#match: Some(RouteMatch { path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())), ..Default::default() }),
        action: Some(route::Action::Route(action)),
        ..Default::default()
    };
    let host = VirtualHost { name: INBOUND_CLUSTER.to_owned(), domains: vec!["*".to_owned()], routes: vec![rule], ..Default::default() };
    RouteConfiguration {
        name: INBOUND_CLUSTER.to_owned(),
        virtual_hosts: vec![host],
        ignore_port_in_host_matching: true,
        ..Default::default()
    }
}

/// Opaque connections go to the application and nowhere else; their timeout is the same in all chains of a port.
fn idle_timeout(chains: &[PortChain], policies: &mut Policies) -> Result<Option<Duration>, Wrong> {
    let mut found = None;
    for chain in chains {
        let End::Tcp(raw) = &chain.end else { continue };
        let at = |wrong: Wrong| wrong.within(format!("{}.filters[0]", chain.field));
        let forward = forward::tcp(raw, policies).map_err(at)?;
        let local = |backend: &Backend<Link>| matches!(&backend.target, Link::Cluster(name) if name == INBOUND_CLUSTER);
        if !matches!(forward.backends.as_slice(), [only] if local(only)) {
            return Err(at(Wrong::new("cluster", format!("must be `{INBOUND_CLUSTER}`"))));
        }
        if found.is_some_and(|found| found != forward.policy.idle_timeout) {
            return Err(at(Wrong::new("idle_timeout", "differs between the chains of one port")));
        }
        found = Some(forward.policy.idle_timeout);
    }
    Ok(found.unwrap_or(Some(super::OPAQUE_IDLE_DEFAULT)))
}
