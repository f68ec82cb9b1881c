//! What a filter chain does with a connection: an HTTP connection manager or a TCP proxy.

use prost::Name;
use prost_types::Any;
use proto::xds::hcm::HttpConnectionManager;
use proto::xds::hcm::http_connection_manager::{
    CodecType, ForwardClientCertDetails, RouteSpecifier, SetCurrentClientCertDetails, UpgradeConfig,
};
use proto::xds::hcm::{HttpFilter, Rds, http_filter};
use proto::xds::listener::{Filter, filter};
use proto::xds::route::RouteConfiguration;
use proto::xds::router::Router;
use proto::xds::tcp_proxy::TcpProxy;

use super::transport::config_source;
use super::unpack;
use crate::model::Protocol;
use crate::rejected::{Wrong, refuse};

/// The one filter of a chain.
#[derive(Debug)]
pub(super) enum End {
    Http {
        protocol: Protocol,
        routes: Routes,
        /// An edge tells on what its client's certificate proves.
        tells_client: bool,
    },
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
pub(super) enum Facing {
    Inbound,
    Outbound,
    Edge,
}

pub(super) fn compile(filters: &[Filter], side: Facing) -> Result<End, Wrong> {
    // The name is a label; the type decides.
    let [Filter { name, config_type }] = filters else {
        return Err(Wrong::new("filters", format!("holds {} filters instead of one", filters.len())));
    };
    let at = |wrong: Wrong| wrong.within("filters[0]");
    let Some(filter::ConfigType::TypedConfig(config)) = config_type else {
        return Err(at(Wrong::new("typed_config", "is missing")));
    };
    if config.type_url == HttpConnectionManager::type_url() {
        return http(&unpack(config).map_err(at)?, side).map_err(at);
    }
    if config.type_url == TcpProxy::type_url() {
        return Ok(End::Tcp(unpack(config).map_err(at)?));
    }
    Err(at(Wrong::new("typed_config", format!("filter `{}` ({}) is not supported", name.escape_debug(), short(config)))))
}

fn short(config: &Any) -> &str {
    config.type_url.rsplit('/').next().unwrap_or_default()
}

fn http(raw: &HttpConnectionManager, side: Facing) -> Result<End, Wrong> {
    let HttpConnectionManager {
        codec_type,
        stat_prefix,
        route_specifier,
        http_filters,
        tracing,
        common_http_protocol_options,
        http2_protocol_options,
        stream_idle_timeout,
        use_remote_address,
        forward_client_cert_details,
        set_current_client_cert_details,
        upgrade_configs,
    } = raw;
    refuse(tracing.is_some(), "tracing")?;
    refuse(common_http_protocol_options.is_some(), "common_http_protocol_options")?;
    refuse(http2_protocol_options.is_some(), "http2_protocol_options")?;
    refuse(stream_idle_timeout.is_some(), "stream_idle_timeout")?;
    // An edge adds its client to x-forwarded-for, a sidecar does not.
    refuse(use_remote_address.is_some_and(|told| told != (side == Facing::Edge)), "use_remote_address")?;
    statistics(stat_prefix, side)?;
    let tells_client = client_certificate(*forward_client_cert_details, set_current_client_cert_details.as_ref(), side)?;
    upgrades(upgrade_configs)?;
    filters(http_filters)?;
    let protocol = codec(*codec_type)?;
    if side == Facing::Edge && protocol != Protocol::Http {
        return Err(Wrong::new("codec_type", "must be AUTO at an edge: a client chooses its version by its first bytes"));
    }
    Ok(End::Http { protocol, routes: routes(route_specifier.as_ref())?, tells_client })
}

fn codec(raw: i32) -> Result<Protocol, Wrong> {
    match CodecType::try_from(raw) {
        Ok(CodecType::Auto) => Ok(Protocol::Http),
        Ok(CodecType::Http1) => Ok(Protocol::Http1),
        Ok(CodecType::Http2) => Ok(Protocol::Http2),
        Ok(CodecType::Http3) => Err(Wrong::unsupported("codec_type HTTP3")),
        Err(_) => Err(Wrong::new("codec_type", format!("unknown value {raw}"))),
    }
}

fn routes(raw: Option<&RouteSpecifier>) -> Result<Routes, Wrong> {
    match raw {
        None => Err(Wrong::new("route_specifier", "is missing: rds or route_config")),
        Some(RouteSpecifier::Rds(Rds { config_source: source, route_config_name })) => {
            config_source(source.as_ref(), "rds.config_source")?;
            if route_config_name.is_empty() {
                return Err(Wrong::new("rds.route_config_name", "is empty"));
            }
            Ok(Routes::Named(route_config_name.clone()))
        }
        Some(RouteSpecifier::RouteConfig(table)) => Ok(Routes::Inline(Box::new(table.clone()))),
    }
}

/// Envoy asks for the name of its own statistics, which this proxy does not keep: only the side may stand there.
fn statistics(prefix: &str, side: Facing) -> Result<(), Wrong> {
    let wanted = if side == Facing::Inbound { "inbound" } else { "outbound" };
    if prefix.is_empty() || prefix == wanted { Ok(()) } else { Err(Wrong::new("stat_prefix", format!("must be {wanted}"))) }
}

/// The inbound side sets x-forwarded-client-cert and removes the caller's; the outbound side passes none on (contract, section 4). An edge
/// removes it too, and may set what its client's certificate proves: hash, subject and names, all of it or nothing.
fn client_certificate(forwarding: i32, details: Option<&SetCurrentClientCertDetails>, side: Facing) -> Result<bool, Wrong> {
    let (wanted, word) = match side {
        Facing::Inbound => (ForwardClientCertDetails::SanitizeSet, "SANITIZE_SET"),
        Facing::Outbound | Facing::Edge => (ForwardClientCertDetails::Sanitize, "SANITIZE"),
    };
    let said = ForwardClientCertDetails::try_from(forwarding);
    let SetCurrentClientCertDetails { subject, cert, chain, dns, uri } = details.copied().unwrap_or_default();
    if side == Facing::Edge && said == Ok(ForwardClientCertDetails::SanitizeSet) {
        if subject == Some(true) && dns && uri && !cert && !chain {
            return Ok(true);
        }
        return Err(Wrong::new("set_current_client_cert_details", "must be subject, dns and uri where an edge is to SANITIZE_SET"));
    }
    if said != Ok(wanted) {
        return Err(Wrong::new("forward_client_cert_details", format!("must be {word} on this side")));
    }
    let more = subject == Some(true) || cert || chain || dns;
    if more || uri != (side == Facing::Inbound) {
        return Err(Wrong::new("set_current_client_cert_details", "must be the URI on the inbound side, and nothing on the outbound one"));
    }
    Ok(false)
}

fn upgrades(raw: &[UpgradeConfig]) -> Result<(), Wrong> {
    for (index, UpgradeConfig { upgrade_type, enabled }) in raw.iter().enumerate() {
        let websocket = upgrade_type.eq_ignore_ascii_case("websocket") && *enabled != Some(false);
        refuse(!websocket, &format!("upgrade_configs[{index}]"))?;
    }
    Ok(())
}

/// The router, once and last; a filter we do not know may be passed over only if it says so itself.
fn filters(filters: &[HttpFilter]) -> Result<(), Wrong> {
    let mut routers = 0;
    for (index, filter) in filters.iter().enumerate() {
        let at = |wrong: Wrong| wrong.within(format!("http_filters[{index}]"));
        // The name is a label; the type decides.
        let HttpFilter { name, config_type, is_optional, disabled } = filter;
        let config = config_type.as_ref().map(|http_filter::ConfigType::TypedConfig(config)| config);
        let router = config.is_some_and(|config| config.type_url == Router::type_url());
        if !router && (*is_optional || *disabled) {
            continue;
        }
        if !router {
            let kind = config.map_or("no typed_config", short);
            return Err(at(Wrong::new("", format!("filter `{}` ({kind}) is not supported", name.escape_debug()))));
        }
        refuse(*disabled, "disabled").map_err(at)?;
        let Router {} = config.map_or_else(|| Ok(Router {}), unpack).map_err(at)?;
        routers += 1;
        if index + 1 != filters.len() || routers > 1 {
            return Err(at(Wrong::new("", "the router must be the last filter")));
        }
    }
    if routers == 1 { Ok(()) } else { Err(Wrong::new("http_filters", "has no router")) }
}
