//! Listeners, from Envoy's `Listener`: `inbound`, `out/IP:PORT`, `edge/PORT` and `edge/PORT/udp`.

use std::net::SocketAddr;
use std::sync::Arc;

use prost::Name;
use prost_types::Any;
use proto::mesh;
use proto::xds::core::TrafficDirection;
use proto::xds::listener::{FilterChain, FilterChainMatch, Listener as Raw, ListenerFilter, listener_filter};
use proto::xds::{http_inspector, original_dst, tls_inspector};

use super::chains::{SERVER_NAMES_MAX, TableSource, application_http, of_tls, placed, plaintext, server_names, source};
use super::edge::EdgeDraft;
use super::hcm::{self, End, Facing};
use super::policy::{Link, Policies};
use super::secret::Secrets;
use super::{SNIFF_TIMEOUT, client, duration, edge, endpoint, forward, inbound, metadata, same_name, stamp, unpack};
use crate::model::{ByServerName, ClientPolicy, Datagrams, Domains, Forward, Protocol};
use crate::rejected::{Wrong, refuse};

/// What a listener resource becomes; route tables and clusters still by name.
#[derive(Debug)]
pub(super) enum Listener {
    Inbound(inbound::Inbound),
    Out(SocketAddr, Road),
    Edge(u16, EdgeDraft),
    Datagrams(u16, Datagrams<Link>),
}

/// See [`crate::model::Outbound`].
#[derive(Debug)]
pub(super) struct Road {
    pub(super) content: u64,
    pub(super) protocol: Protocol,
    pub(super) http: Option<TableSource>,
    pub(super) tcp: Option<Forward<Link>>,
    pub(super) tls: Option<ByServerName<Link>>,
}

impl Listener {
    /// What holds for the clients of an edge's port.
    pub(super) fn clients(&self) -> Option<&Arc<ClientPolicy>> {
        if let Self::Edge(_, draft) = self { Some(&draft.clients) } else { None }
    }
}

/// `before` held for the clients of the same port.
pub(super) fn compile(
    name: &str,
    raw: &Raw,
    (policies, secrets): (&mut Policies, &mut Secrets),
    before: Option<&ClientPolicy>,
) -> Result<Listener, Wrong> {
    let Raw {
        name: inner,
        address,
        stat_prefix,
        filter_chains,
        use_original_dst,
        default_filter_chain,
        metadata,
        listener_filters,
        listener_filters_timeout,
        continue_on_listener_filters_timeout,
        traffic_direction,
        udp_listener_config,
        api_listener,
        bind_to_port,
    } = raw;
    same_name(name, inner, "name")?;
    refuse(api_listener.is_some(), "api_listener")?;
    refuse(!stat_prefix.is_empty(), "stat_prefix")?;
    refuse(*use_original_dst == Some(true), "use_original_dst")?;
    metadata::only(metadata.as_ref(), &[])?;
    if let Some(port) = proto::names::edge_udp_port(name) {
        return datagrams(port, raw, policies);
    }
    refuse(udp_listener_config.is_some(), "udp_listener_config")?;
    let clients = inspectors(name, (filter_chains, listener_filters), before)?;
    inspection(listener_filters_timeout.as_ref(), *continue_on_listener_filters_timeout)?;
    let direction = TrafficDirection::try_from(*traffic_direction);
    let wrong_direction = || Wrong::new("traffic_direction", format!("does not fit the name `{name}`"));
    let address = endpoint::socket(address.as_ref()).map_err(|wrong| wrong.within("address"))?;
    let wrong_address = || Wrong::new("address", format!("{address} does not fit the name `{name}`"));
    let chains = (filter_chains.as_slice(), default_filter_chain.as_ref());
    if name == proto::names::INBOUND {
        if direction != Ok(TrafficDirection::Inbound) {
            return Err(wrong_direction());
        }
        refuse(*bind_to_port == Some(false), "bind_to_port")?;
        refuse(default_filter_chain.is_some(), "default_filter_chain")?;
        let fits = address.ip().is_unspecified() && address.port() == proto::names::INBOUND_PORT;
        return if fits { Ok(Listener::Inbound(inbound::compile(filter_chains, policies)?)) } else { Err(wrong_address()) };
    }
    if direction == Ok(TrafficDirection::Inbound) || direction.is_err() {
        return Err(wrong_direction());
    }
    if let Some(destination) = proto::names::outbound_address(name) {
        // The proxy's one outbound socket serves all of these.
        refuse(*bind_to_port == Some(true), "bind_to_port")?;
        return if destination == address {
            Ok(Listener::Out(destination, road(chains, policies)?.unwrap_or_else(nowhere)))
        } else {
            Err(wrong_address())
        };
    }
    if let Some(port) = proto::names::edge_port(name) {
        refuse(*bind_to_port == Some(false), "bind_to_port")?;
        let fits = address.ip().is_unspecified() && port == address.port() && port != 0;
        return if fits { Ok(Listener::Edge(port, edge::compile(chains, clients, policies, secrets)?)) } else { Err(wrong_address()) };
    }
    Err(Wrong::new("name", "is none of inbound, out/IP:PORT, edge/PORT, edge/PORT/udp"))
}

/// An edge's port of datagrams; what all listeners must say was read.
fn datagrams(port: u16, raw: &Raw, policies: &mut Policies) -> Result<Listener, Wrong> {
    let Raw { name, address, filter_chains, default_filter_chain, listener_filters, udp_listener_config, bind_to_port, .. } = raw;
    let found = endpoint::datagram_port(address.as_ref()).map_err(|wrong| wrong.within("address"))?;
    if found != port || port == 0 {
        return Err(Wrong::new("address", format!("does not fit the name `{name}`")));
    }
    if !matches!(TrafficDirection::try_from(raw.traffic_direction), Ok(TrafficDirection::Unspecified | TrafficDirection::Outbound)) {
        return Err(Wrong::new("traffic_direction", format!("does not fit the name `{name}`")));
    }
    refuse(*bind_to_port == Some(false), "bind_to_port")?;
    refuse(!filter_chains.is_empty(), "filter_chains")?;
    refuse(default_filter_chain.is_some(), "default_filter_chain")?;
    refuse(raw.listener_filters_timeout.is_some(), "listener_filters_timeout")?;
    refuse(raw.continue_on_listener_filters_timeout, "continue_on_listener_filters_timeout")?;
    let datagrams = edge::datagrams(name, (udp_listener_config.as_ref(), listener_filters), policies)?;
    Ok(Listener::Datagrams(port, datagrams))
}

/// The proxy learns the original destination and the first bytes by itself; these filters say no more than that. Their names are labels. An
/// edge's may say what holds for its clients.
fn inspectors(
    listener: &str,
    (chains, filters): (&[FilterChain], &[ListenerFilter]),
    before: Option<&ClientPolicy>,
) -> Result<Arc<ClientPolicy>, Wrong> {
    let mut clients: Option<Arc<ClientPolicy>> = None;
    for (index, filter) in filters.iter().enumerate() {
        let at = |wrong: Wrong| wrong.within(format!("listener_filters[{index}].typed_config"));
        let ListenerFilter { name, config_type } = filter;
        let Some(listener_filter::ConfigType::TypedConfig(config)) = config_type else {
            return Err(at(Wrong::new("", "is missing")));
        };
        let Some(port) = proto::names::edge_port(listener).filter(|_| config.type_url == mesh::ClientPolicy::type_url()) else {
            inspector(name, config).map_err(at)?;
            continue;
        };
        let names = chains.iter().map(|chain| chain.name.as_str()).collect();
        let compiled = client::compile(&unpack(config).map_err(at)?, (port, &names), before).map_err(at)?;
        if clients.replace(Arc::new(compiled)).is_some() {
            return Err(at(Wrong::new("", "is the second that says what holds for clients")));
        }
    }
    Ok(clients.unwrap_or_default())
}

fn inspector(name: &str, config: &Any) -> Result<(), Wrong> {
    if config.type_url == original_dst::OriginalDst::type_url() {
        let original_dst::OriginalDst {} = unpack(config)?;
    } else if config.type_url == tls_inspector::TlsInspector::type_url() {
        let tls_inspector::TlsInspector {} = unpack(config)?;
    } else if config.type_url == http_inspector::HttpInspector::type_url() {
        let http_inspector::HttpInspector {} = unpack(config)?;
    } else {
        return Err(Wrong::new("", format!("filter `{}` is not supported", name.escape_debug())));
    }
    Ok(())
}

/// Who has said nothing by then is not cut off: both sides are watched from then on.
fn inspection(wait: Option<&prost_types::Duration>, go_on: bool) -> Result<(), Wrong> {
    let wait = duration(wait, "listener_filters_timeout")?;
    if wait.is_some_and(|wait| wait != SNIFF_TIMEOUT) {
        let why = format!("is fixed to {} ms in this proxy", SNIFF_TIMEOUT.as_millis());
        return Err(Wrong::new("listener_filters_timeout", why));
    }
    if wait.is_some() != go_on {
        let why = "goes together with listener_filters_timeout: this proxy waits that long and then goes on";
        return Err(Wrong::new("continue_on_listener_filters_timeout", why));
    }
    Ok(())
}

/// What a mesh address's port that nothing is served at becomes.
fn nowhere() -> Road {
    Road { content: stamp(), protocol: Protocol::Auto, http: None, tcp: None, tls: None }
}

/// Declared HTTP, declared TCP, both chains of an undeclared protocol, or TLS by name; `None` without any chain.
fn road((listed, rest): (&[FilterChain], Option<&FilterChain>), policies: &mut Policies) -> Result<Option<Road>, Wrong> {
    if listed.iter().any(of_tls) {
        refuse(rest.is_some(), "default_filter_chain")?;
        return by_server_name(listed, policies).map(Some);
    }
    let mut http: Option<(Protocol, TableSource, bool)> = None;
    let mut tcp: Option<Forward<Link>> = None;
    for (field, chain) in placed(listed).chain(rest.map(|chain| ("default_filter_chain".to_owned(), chain))) {
        let at = |wrong: Wrong| wrong.within(&field);
        // The name is a label.
        let FilterChain { filter_chain_match, filters, metadata, transport_socket, name: _ } = chain;
        // What is left over is asked for nothing.
        refuse(rest.is_some_and(|rest| std::ptr::eq(rest, chain)) && filter_chain_match.is_some(), "filter_chain_match").map_err(at)?;
        let sniffed = outbound_match(filter_chain_match.as_ref()).map_err(at)?;
        plaintext(transport_socket.as_ref()).map_err(at)?;
        metadata::only(metadata.as_ref(), &[]).map_err(at)?;
        match hcm::compile(filters, Facing::Outbound).map_err(at)? {
            End::Http { protocol, routes, .. } if http.is_none() => http = Some((protocol, source(routes, policies).map_err(at)?, sniffed)),
            End::Tcp(raw) if tcp.is_none() && !sniffed => tcp = Some(forward::tcp(&raw, policies).map_err(|w| at(w.within("filters[0]")))?),
            End::Http { .. } | End::Tcp(_) => return Err(at(Wrong::new("filters", "another chain takes the same connections"))),
        }
    }
    let (protocol, http) = match (http, &tcp) {
        (None, None) => return Ok(None),
        (None, Some(_)) => (Protocol::Tcp, None),
        (Some((protocol, source, false)), None) => (protocol, Some(source)),
        (Some((Protocol::Http, source, true)), Some(_)) => (Protocol::Auto, Some(source)),
        (Some(_), _) => {
            let why = "spell neither a declared protocol nor the two chains (HTTP by application_protocols, the rest) of an undeclared one";
            return Err(Wrong::new("filter_chains", why));
        }
    };
    Ok(Some(Road { content: stamp(), protocol, http, tcp, tls: None }))
}

/// TLS that passes untouched to where the name leads that it asks for. What meets no chain is closed, so there is no rest.
fn by_server_name(listed: &[FilterChain], policies: &mut Policies) -> Result<Road, Wrong> {
    if listed.len() > SERVER_NAMES_MAX {
        return Err(Wrong::new("filter_chains", format!("are more than {SERVER_NAMES_MAX}")));
    }
    let (mut names, mut forwards) = (Domains::default(), Vec::with_capacity(listed.len()));
    for (place, (field, chain)) in placed(listed).enumerate() {
        let at = |wrong: Wrong| wrong.within(&field);
        // The name is a label.
        let FilterChain { filter_chain_match, filters, metadata, transport_socket, name: _ } = chain;
        let wanted =
            filter_chain_match.as_ref().ok_or_else(|| at(Wrong::new("filter_chain_match", "must be for tls, as its neighbours'")))?;
        server_names(wanted, place, &mut names).map_err(|wrong| at(wrong.within("filter_chain_match")))?;
        plaintext(transport_socket.as_ref()).map_err(at)?;
        metadata::only(metadata.as_ref(), &[]).map_err(at)?;
        match hcm::compile(filters, Facing::Outbound).map_err(at)? {
            End::Tcp(raw) => forwards.push(Arc::new(forward::tcp(&raw, policies).map_err(|wrong| at(wrong.within("filters[0]")))?)),
            End::Http { .. } => return Err(at(Wrong::new("filters", "TLS passes untouched here: must be a TcpProxy"))),
        }
    }
    let tls = ByServerName::new(Arc::new(names), forwards);
    Ok(Road { content: stamp(), protocol: Protocol::Tcp, http: None, tcp: None, tls: Some(tls) })
}

/// Whether the chain is for bytes that turned out to be HTTP.
fn outbound_match(raw: Option<&FilterChainMatch>) -> Result<bool, Wrong> {
    let Some(raw) = raw else { return Ok(false) };
    let at = |field: &str| format!("filter_chain_match.{field}");
    let FilterChainMatch { destination_port, prefix_ranges, server_names, transport_protocol, application_protocols } = raw;
    refuse(destination_port.is_some(), &at("destination_port"))?;
    refuse(!prefix_ranges.is_empty(), &at("prefix_ranges"))?;
    refuse(!server_names.is_empty(), &at("server_names"))?;
    refuse(!matches!(transport_protocol.as_str(), "" | "raw_buffer"), &at("transport_protocol"))?;
    application_http(application_protocols).map_err(|wrong| wrong.within("filter_chain_match"))
}
