//! Listeners, from Envoy's `Listener`: `inbound`, `out/IP:PORT` and `edge/PORT`.

use std::net::SocketAddr;

use prost::Name;
use proto::xds::core::TrafficDirection;
use proto::xds::listener::{FilterChain, FilterChainMatch, Listener as Raw, ListenerFilter, listener_filter};
use proto::xds::{http_inspector, original_dst, tls_inspector};

use super::hcm::{self, End, Routes, Side};
use super::{SNIFF_TIMEOUT, duration, endpoint, forward, inbound, route, same_name, stamp};
use crate::model::Protocol;
use crate::rejected::{Wrong, refuse};

/// What a listener resource becomes; route tables and clusters still by name.
#[derive(Debug)]
pub(super) enum Listener {
    Inbound(inbound::Inbound),
    Out(SocketAddr, Road),
    Edge(u16, Road),
}

/// See [`crate::model::Outbound`].
#[derive(Debug)]
pub(super) struct Road {
    pub(super) content: u64,
    pub(super) protocol: Protocol,
    pub(super) http: Option<Source>,
    pub(super) tcp: Option<forward::Forward>,
}

/// Where a table comes from.
#[derive(Debug)]
pub(super) enum Source {
    Named(String),
    Inline(route::Table),
}

pub(super) fn compile(name: &str, raw: &Raw) -> Result<Listener, Wrong> {
    same_name(name, &raw.name, "name")?;
    refuse(raw.api_listener.is_some(), "api_listener")?;
    listener_filters(raw)?;
    let direction = TrafficDirection::try_from(raw.traffic_direction);
    let wrong_direction = || Wrong::new("traffic_direction", format!("does not fit the name `{name}`"));
    let address = endpoint::socket(raw.address.as_ref()).map_err(|wrong| wrong.within("address"))?;
    if name == proto::names::INBOUND {
        if direction != Ok(TrafficDirection::Inbound) {
            return Err(wrong_direction());
        }
        return Ok(Listener::Inbound(inbound::compile(raw)?));
    }
    if direction == Ok(TrafficDirection::Inbound) || direction.is_err() {
        return Err(wrong_direction());
    }
    refuse(raw.use_original_dst == Some(true), "use_original_dst")?;
    let wrong_address = || Wrong::new("address", format!("{address} does not fit the name `{name}`"));
    if let Some(destination) = proto::names::outbound_address(name) {
        // The proxy's one outbound socket serves all of these.
        refuse(raw.bind_to_port == Some(true), "bind_to_port")?;
        return if destination == address {
            Ok(Listener::Out(destination, road(raw)?.unwrap_or_else(nowhere)))
        } else {
            Err(wrong_address())
        };
    }
    let road = || road(raw)?.ok_or_else(|| Wrong::new("filter_chains", "is empty"));
    if let Some(port) = proto::names::edge_port(name) {
        refuse(raw.bind_to_port == Some(false), "bind_to_port")?;
        return if port == address.port() && port != 0 { Ok(Listener::Edge(port, road()?)) } else { Err(wrong_address()) };
    }
    Err(Wrong::new("name", "is none of inbound, out/IP:PORT, edge/PORT"))
}

/// The proxy learns the original destination and the first bytes by itself; these filters say no more than that.
fn listener_filters(raw: &Raw) -> Result<(), Wrong> {
    let known = [original_dst::OriginalDst::type_url(), tls_inspector::TlsInspector::type_url(), http_inspector::HttpInspector::type_url()];
    for (index, filter) in raw.listener_filters.iter().enumerate() {
        let ListenerFilter { name, config_type: Some(listener_filter::ConfigType::TypedConfig(config)) } = filter else {
            return Err(Wrong::new(format!("listener_filters[{index}].typed_config"), "is missing"));
        };
        if !known.contains(&config.type_url) {
            let why = format!("filter `{}` is not supported", name.escape_debug());
            return Err(Wrong::new(format!("listener_filters[{index}]"), why));
        }
    }
    let timeout = duration(raw.listener_filters_timeout.as_ref(), "listener_filters_timeout")?;
    if timeout.is_some_and(|timeout| timeout != SNIFF_TIMEOUT) {
        let why = format!("is fixed to {} ms in this proxy", SNIFF_TIMEOUT.as_millis());
        return Err(Wrong::new("listener_filters_timeout", why));
    }
    refuse(timeout.is_some() && !raw.continue_on_listener_filters_timeout, "continue_on_listener_filters_timeout: false")
}

/// What a mesh address's port that nothing is served at becomes.
fn nowhere() -> Road {
    Road { content: stamp(), protocol: Protocol::Auto, http: None, tcp: None }
}

/// Declared HTTP, declared TCP, or both chains of an undeclared protocol; `None` without any chain.
fn road(raw: &Raw) -> Result<Option<Road>, Wrong> {
    let mut http: Option<(Protocol, Source, bool)> = None;
    let mut tcp: Option<forward::Forward> = None;
    for (field, chain) in chains(raw).chain(raw.default_filter_chain.iter().map(|chain| ("default_filter_chain".to_owned(), chain))) {
        let at = |wrong: Wrong| wrong.within(&field);
        let sniffed = outbound_match(chain.filter_chain_match.as_ref()).map_err(at)?;
        refuse(chain.transport_socket.is_some(), "transport_socket").map_err(at)?;
        match hcm::compile(chain, Side::Outbound).map_err(at)? {
            End::Http { protocol, routes } if http.is_none() => http = Some((protocol, source(routes).map_err(at)?, sniffed)),
            End::Tcp(raw) if tcp.is_none() && !sniffed => tcp = Some(forward::tcp(&raw).map_err(|w| at(w.within("filters[0]")))?),
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
    Ok(Some(Road { content: stamp(), protocol, http, tcp }))
}

/// Whether the chain is for bytes that turned out to be HTTP.
fn outbound_match(raw: Option<&FilterChainMatch>) -> Result<bool, Wrong> {
    let Some(raw) = raw else { return Ok(false) };
    let at = |field: &str| format!("filter_chain_match.{field}");
    refuse(raw.destination_port.is_some(), &at("destination_port"))?;
    refuse(!raw.prefix_ranges.is_empty(), &at("prefix_ranges"))?;
    refuse(!raw.server_names.is_empty(), &at("server_names"))?;
    refuse(!matches!(raw.transport_protocol.as_str(), "" | "raw_buffer"), &at("transport_protocol"))?;
    application_http(&raw.application_protocols).map_err(|wrong| wrong.within("filter_chain_match"))
}

/// True for the names that the HTTP inspector gives, false for none.
pub(super) fn application_http(protocols: &[String]) -> Result<bool, Wrong> {
    if let Some(other) = protocols.iter().find(|name| !matches!(name.as_str(), "http/1.0" | "http/1.1" | "h2c")) {
        return Err(Wrong::new("application_protocols", format!("`{}` is not supported here", other.escape_debug())));
    }
    Ok(!protocols.is_empty())
}

fn source(routes: Routes) -> Result<Source, Wrong> {
    Ok(match routes {
        Routes::Named(name) => Source::Named(name),
        Routes::Inline(raw) => Source::Inline(route::compile(&raw, None).map_err(|wrong| wrong.within("filters[0].route_config"))?),
    })
}

/// A chain's place in a message about several.
pub(super) fn chains(raw: &Raw) -> impl Iterator<Item = (String, &FilterChain)> {
    raw.filter_chains.iter().enumerate().map(|(index, chain)| (format!("filter_chains[{index}]"), chain))
}
