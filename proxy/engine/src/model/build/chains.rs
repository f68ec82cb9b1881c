//! What all filter chains have in common.

use proto::xds::listener::{FilterChain, FilterChainMatch};

use super::hcm::Routes;
use super::policy::Policies;
use super::route;
use super::transport::{self, Security};
use crate::model::Domains;
use crate::rejected::{Wrong, refuse};

/// The transport protocol of a chain for TLS.
const TLS: &str = "tls";
/// Most chains of one listener for TLS by name, and most names of one of them: a route has 1024 at most.
pub(super) const SERVER_NAMES_MAX: usize = 65_536;

/// Where a table comes from.
#[derive(Debug)]
pub(super) enum TableSource {
    Named(String),
    Inline(route::RouteTable),
}

/// True for the names that the HTTP inspector gives to both versions, false for none. One version alone would send the other elsewhere.
pub(super) fn application_http(protocols: &[String]) -> Result<bool, Wrong> {
    let at = |why: String| Wrong::new("application_protocols", why);
    if let Some(other) = protocols.iter().find(|name| !matches!(name.as_str(), "http/1.0" | "http/1.1" | "h2c")) {
        return Err(at(format!("`{}` is not supported here", other.escape_debug())));
    }
    let both = ["http/1.1", "h2c"].iter().all(|wanted| protocols.iter().any(|name| name == wanted));
    if protocols.is_empty() || both { Ok(both) } else { Err(at("must name both http/1.1 and h2c, or none".to_owned())) }
}

/// A chain's place in a message about several.
pub(super) fn placed(listed: &[FilterChain]) -> impl Iterator<Item = (String, &FilterChain)> {
    listed.iter().enumerate().map(|(index, chain)| (format!("filter_chains[{index}]"), chain))
}

/// Whether a chain is for TLS alone.
pub(super) fn of_tls(chain: &FilterChain) -> bool {
    chain.filter_chain_match.as_ref().is_some_and(|wanted| wanted.transport_protocol == TLS)
}

/// No name means any, or none.
pub(super) fn server_names(raw: &FilterChainMatch, place: usize, names: &mut Domains) -> Result<(), Wrong> {
    let FilterChainMatch { destination_port, prefix_ranges, server_names, transport_protocol, application_protocols } = raw;
    refuse(destination_port.is_some(), "destination_port")?;
    refuse(!prefix_ranges.is_empty(), "prefix_ranges")?;
    refuse(!application_protocols.is_empty(), "application_protocols")?;
    if transport_protocol != TLS {
        return Err(Wrong::new("transport_protocol", "must be tls, as its neighbours'"));
    }
    if server_names.is_empty() && !names.add("*", place) {
        return Err(Wrong::new("server_names", "are missing, and another chain takes every name already"));
    }
    if server_names.len() > SERVER_NAMES_MAX {
        return Err(Wrong::new("server_names", format!("are more than {SERVER_NAMES_MAX}")));
    }
    for (index, name) in server_names.iter().enumerate() {
        let at = |wrong: Wrong| wrong.within(format!("server_names[{index}]"));
        refuse(name == "*", "").map_err(at)?;
        route::add_domain(names, name, place).map_err(at)?;
    }
    Ok(())
}

/// Applications come in plaintext.
pub(super) fn plaintext(raw: Option<&proto::xds::core::TransportSocket>) -> Result<(), Wrong> {
    match raw.map(transport::downstream).transpose().map_err(|wrong| wrong.within("transport_socket"))? {
        None | Some(Security::Plain) => Ok(()),
        Some(Security::Mesh) => Err(Wrong::unsupported("transport_socket")),
    }
}

pub(super) fn source(routes: Routes, policies: &mut Policies) -> Result<TableSource, Wrong> {
    Ok(match routes {
        Routes::Named(name) => TableSource::Named(name),
        Routes::Inline(raw) => {
            TableSource::Inline(route::compile(&raw, None, policies).map_err(|wrong| wrong.within("filters[0].route_config"))?)
        }
    })
}
