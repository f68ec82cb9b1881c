//! What a filter chain does with a connection: an HTTP connection manager or a TCP proxy.

use prost::Name;
use prost_types::Any;
use proto::xds::hcm::HttpConnectionManager;
use proto::xds::hcm::http_connection_manager::{CodecType, ForwardClientCertDetails, RouteSpecifier};
use proto::xds::hcm::{HttpFilter, http_filter};
use proto::xds::listener::{FilterChain, filter};
use proto::xds::route::RouteConfiguration;
use proto::xds::router::Router;
use proto::xds::tcp_proxy::TcpProxy;

use super::cluster::config_source;
use super::unpack;
use crate::model::Protocol;
use crate::rejected::{Wrong, refuse};

/// The one filter of a chain.
#[derive(Debug)]
pub(super) enum End {
    Http { protocol: Protocol, routes: Routes },
    Tcp(TcpProxy),
}

/// Where a connection manager has its routes from.
#[derive(Debug)]
pub(super) enum Routes {
    Named(String),
    Inline(Box<RouteConfiguration>),
}

/// Which side the connection manager is on: fields that describe what the proxy does by itself must describe just that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Inbound,
    Outbound,
}

pub(super) fn compile(chain: &FilterChain, side: Side) -> Result<End, Wrong> {
    let [filter] = chain.filters.as_slice() else {
        return Err(Wrong::new("filters", format!("holds {} filters instead of one", chain.filters.len())));
    };
    let at = |wrong: Wrong| wrong.within("filters[0]");
    let Some(filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
        return Err(at(Wrong::new("typed_config", "is missing")));
    };
    if config.type_url == HttpConnectionManager::type_url() {
        return http(&unpack(config).map_err(at)?, side).map_err(at);
    }
    if config.type_url == TcpProxy::type_url() {
        return Ok(End::Tcp(unpack(config).map_err(at)?));
    }
    Err(at(Wrong::new("typed_config", format!("filter `{}` ({}) is not supported", filter.name.escape_debug(), short(config)))))
}

fn short(config: &Any) -> &str {
    config.type_url.rsplit('/').next().unwrap_or_default()
}

fn http(raw: &HttpConnectionManager, side: Side) -> Result<End, Wrong> {
    let protocol = match CodecType::try_from(raw.codec_type) {
        Ok(CodecType::Auto) => Protocol::Http,
        Ok(CodecType::Http1) => Protocol::Http1,
        Ok(CodecType::Http2) => Protocol::Http2,
        Ok(CodecType::Http3) => return Err(Wrong::unsupported("codec_type HTTP3")),
        Err(_) => return Err(Wrong::new("codec_type", format!("unknown value {}", raw.codec_type))),
    };
    switches(raw, side)?;
    http_filters(&raw.http_filters)?;
    let routes = match &raw.route_specifier {
        None => return Err(Wrong::new("route_specifier", "is missing: rds or route_config")),
        Some(RouteSpecifier::Rds(rds)) => {
            config_source(rds.config_source.as_ref(), "rds.config_source")?;
            if rds.route_config_name.is_empty() {
                return Err(Wrong::new("rds.route_config_name", "is empty"));
            }
            Routes::Named(rds.route_config_name.clone())
        }
        Some(RouteSpecifier::RouteConfig(table)) => Routes::Inline(Box::new(table.clone())),
    };
    Ok(End::Http { protocol, routes })
}

fn switches(raw: &HttpConnectionManager, side: Side) -> Result<(), Wrong> {
    refuse(raw.tracing.is_some(), "tracing")?;
    refuse(raw.common_http_protocol_options.is_some(), "common_http_protocol_options")?;
    refuse(raw.http2_protocol_options.is_some(), "http2_protocol_options")?;
    refuse(raw.stream_idle_timeout.is_some(), "stream_idle_timeout")?;
    refuse(raw.use_remote_address == Some(true), "use_remote_address")?;
    // The inbound side sets x-forwarded-client-cert and removes the caller's; the outbound side passes none on (contract, section 4).
    let forwarding = ForwardClientCertDetails::try_from(raw.forward_client_cert_details);
    let ours = match side {
        Side::Inbound => matches!(forwarding, Ok(ForwardClientCertDetails::Sanitize | ForwardClientCertDetails::SanitizeSet)),
        Side::Outbound => matches!(forwarding, Ok(ForwardClientCertDetails::Sanitize)),
    };
    refuse(!ours, "forward_client_cert_details")?;
    if let Some(details) = &raw.set_current_client_cert_details {
        let more = details.subject == Some(true) || details.cert || details.chain || details.dns;
        refuse(more || side == Side::Outbound, "set_current_client_cert_details")?;
    }
    for (index, upgrade) in raw.upgrade_configs.iter().enumerate() {
        let websocket = upgrade.upgrade_type.eq_ignore_ascii_case("websocket") && upgrade.enabled != Some(false);
        refuse(!websocket, &format!("upgrade_configs[{index}]"))?;
    }
    Ok(())
}

/// The router, once and last; a filter we do not know may be passed over only if it says so itself.
fn http_filters(filters: &[HttpFilter]) -> Result<(), Wrong> {
    let mut routers = 0;
    for (index, filter) in filters.iter().enumerate() {
        let at = |wrong: Wrong| wrong.within(format!("http_filters[{index}]"));
        let config = filter.config_type.as_ref().map(|http_filter::ConfigType::TypedConfig(config)| config);
        let router = config.is_some_and(|config| config.type_url == Router::type_url());
        if !router && (filter.is_optional || filter.disabled) {
            continue;
        }
        if !router {
            let kind = config.map_or("no typed_config", short);
            return Err(at(Wrong::new("", format!("filter `{}` ({kind}) is not supported", filter.name.escape_debug()))));
        }
        refuse(filter.disabled, "disabled").map_err(at)?;
        routers += 1;
        if index + 1 != filters.len() || routers > 1 {
            return Err(at(Wrong::new("", "the router must be the last filter")));
        }
    }
    if routers == 1 { Ok(()) } else { Err(Wrong::new("http_filters", "has no router")) }
}
