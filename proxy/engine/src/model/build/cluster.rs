//! Clusters, from Envoy's `Cluster`.

use std::sync::Arc;
use std::time::Duration;

use prost::Name;
use prost_types::Any;
use proto::xds::cluster::cluster::{ClusterDiscoveryType, DiscoveryType, LbConfig, LbPolicy};
use proto::xds::cluster::{CircuitBreakers, Cluster as Raw};
use proto::xds::upstream_http::HttpProtocolOptions;
use proto::xds::upstream_http::http_protocol_options::UpstreamProtocolOptions;
use proto::xds::upstream_http::http_protocol_options::explicit_http_config::ProtocolConfig;
use proto::xds::{core, least_request, raw_buffer, tls};

use super::{CONNECT_TIMEOUT_DEFAULT, INBOUND_CLUSTER, duration, metadata, same_name, unpack};
use crate::model::{Cluster, ClusterKind, EndpointCell, Protocol};
use crate::rejected::{Wrong, refuse};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A cluster that has not met its endpoints yet.
pub(super) struct Draft {
    cluster: Cluster,
    /// Name of the assignment with its endpoints.
    pub(super) assignment: String,
}

impl Draft {
    pub(super) fn with_endpoints(self, endpoints: Arc<EndpointCell>) -> Cluster {
        Cluster { endpoints, ..self.cluster }
    }
}

pub(super) fn compile(name: &str, raw: &Raw) -> Result<Draft, Wrong> {
    same_name(name, &raw.name, "name")?;
    refuse(raw.load_assignment.is_some(), "load_assignment")?;
    refuse(raw.upstream_bind_config.is_some(), "upstream_bind_config")?;
    let kind = kind(name, raw)?;
    let assignment = assignment(name, raw, kind)?;
    balancing(raw, kind)?;
    circuit_breakers(raw.circuit_breakers.as_ref())?;
    transport(raw)?;
    let connect_timeout = duration(raw.connect_timeout.as_ref(), "connect_timeout")?.unwrap_or(CONNECT_TIMEOUT_DEFAULT);
    if connect_timeout == Duration::ZERO {
        return Err(Wrong::new("connect_timeout", "must be longer than 0s"));
    }
    let metadata = raw.metadata.as_ref();
    let cluster = Cluster {
        name: name.into(),
        namespace: metadata::text_or_empty(metadata, "namespace")?.into(),
        service: metadata::text_or_empty(metadata, "service")?.into(),
        protocol: protocol(raw)?,
        connect_timeout,
        kind,
        endpoints: Arc::default(),
    };
    Ok(Draft { cluster, assignment })
}

fn kind(name: &str, raw: &Raw) -> Result<ClusterKind, Wrong> {
    let Some(ClusterDiscoveryType::Type(value)) = raw.cluster_discovery_type else {
        return Err(Wrong::new("type", "is missing: EDS or ORIGINAL_DST"));
    };
    match DiscoveryType::try_from(value) {
        Ok(DiscoveryType::Eds) => Ok(ClusterKind::Endpoints),
        Ok(DiscoveryType::OriginalDst) if name == INBOUND_CLUSTER => Ok(ClusterKind::Local),
        Ok(DiscoveryType::OriginalDst) => Ok(ClusterKind::OriginalDestination),
        Ok(other) => Err(Wrong::unsupported(format!("type {}", other.as_str_name()))),
        Err(_) => Err(Wrong::new("type", format!("unknown value {value}"))),
    }
}

fn assignment(name: &str, raw: &Raw, kind: ClusterKind) -> Result<String, Wrong> {
    let Some(eds) = &raw.eds_cluster_config else {
        return Ok(name.to_owned());
    };
    if kind != ClusterKind::Endpoints {
        return Err(Wrong::new("eds_cluster_config", "belongs to clusters of type EDS only"));
    }
    config_source(eds.eds_config.as_ref(), "eds_cluster_config.eds_config")?;
    Ok(if eds.service_name.is_empty() { name.to_owned() } else { eds.service_name.clone() })
}

/// Everything comes on the one ADS stream; what is not there is waited for by the control plane, not by us.
pub(super) fn config_source(raw: Option<&core::ConfigSource>, field: &str) -> Result<(), Wrong> {
    use core::config_source::ConfigSourceSpecifier as Source;
    match raw.and_then(|source| source.config_source_specifier.as_ref()) {
        None | Some(Source::Ads(_) | Source::Self_(_)) => Ok(()),
    }
    .and_then(|()| refuse(raw.is_some_and(|source| source.initial_fetch_timeout.is_some()), &format!("{field}.initial_fetch_timeout")))
    .and_then(|()| refuse(raw.is_some_and(|source| source.resource_api_version == core::ApiVersion::V2 as i32), field))
}

/// One balancer is built in: least request over two.
fn balancing(raw: &Raw, kind: ClusterKind) -> Result<(), Wrong> {
    let policy = LbPolicy::try_from(raw.lb_policy).map_err(|_| Wrong::new("lb_policy", format!("unknown value {}", raw.lb_policy)))?;
    if let Some(common) = &raw.common_lb_config {
        let panic = common.healthy_panic_threshold.as_ref().map_or(0.0, |percent| percent.value);
        refuse(panic != 0.0, "common_lb_config.healthy_panic_threshold")?;
    }
    if kind != ClusterKind::Endpoints {
        return refuse(raw.load_balancing_policy.is_some() || raw.lb_config.is_some(), "load_balancing_policy");
    }
    if let Some(LbConfig::LeastRequestLbConfig(config)) = &raw.lb_config {
        refuse(config.choice_count.is_some_and(|count| count != 2), "least_request_lb_config.choice_count")?;
    }
    if let Some(policies) = &raw.load_balancing_policy {
        // The first policy that the client knows counts; the others are for other clients.
        let known = least_request::LeastRequest::type_url();
        let configs = policies.policies.iter().filter_map(|policy| policy.typed_extension_config.as_ref()?.typed_config.as_ref());
        let Some(config) = configs.into_iter().find(|config| config.type_url == known) else {
            return Err(Wrong::new("load_balancing_policy", "names no policy that this proxy knows: least_request"));
        };
        let config: least_request::LeastRequest = unpack(config)?;
        return refuse(config.choice_count.is_some_and(|count| count != 2), "load_balancing_policy.least_request.choice_count");
    }
    match policy {
        LbPolicy::LeastRequest => Ok(()),
        other => Err(Wrong::new("lb_policy", format!("{} is not supported by this proxy: LEAST_REQUEST", other.as_str_name()))),
    }
}

/// Envoy's own defaults bite, so "no limit" is written out as the largest number. Real limits are not carried out yet.
fn circuit_breakers(raw: Option<&CircuitBreakers>) -> Result<(), Wrong> {
    for (index, threshold) in raw.iter().flat_map(|raw| &raw.thresholds).enumerate() {
        let limits = [threshold.max_connections, threshold.max_pending_requests, threshold.max_requests, threshold.max_retries];
        refuse(limits.iter().flatten().any(|limit| *limit != u32::MAX), &format!("circuit_breakers.thresholds[{index}]"))?;
    }
    Ok(())
}

/// Which transport an endpoint takes follows from its identity (mesh TLS with one, plaintext without): just what these say.
fn transport(raw: &Raw) -> Result<(), Wrong> {
    for (index, entry) in raw.transport_socket_matches.iter().enumerate() {
        let field = || format!("transport_socket_matches[{index}]");
        let config = socket_config(entry.transport_socket.as_ref()).ok_or_else(|| Wrong::new(field(), "has no transport_socket"))?;
        let by_mode = entry.r#match.as_ref().is_some_and(|wanted| !wanted.fields.is_empty());
        let mesh = config.type_url == tls::UpstreamTlsContext::type_url();
        let plain = config.type_url == raw_buffer::RawBuffer::type_url();
        if !(mesh && by_mode || plain && !by_mode) {
            return Err(Wrong::new(field(), "is neither mesh TLS by tlsMode nor plaintext for the rest"));
        }
        if mesh {
            unpack::<tls::UpstreamTlsContext>(config).map_err(|wrong| wrong.within(field()))?;
        }
    }
    let plain = |config: &Any| config.type_url == raw_buffer::RawBuffer::type_url();
    refuse(socket_config(raw.transport_socket.as_ref()).is_some_and(|config| !plain(config)), "transport_socket")
}

pub(super) fn socket_config(socket: Option<&core::TransportSocket>) -> Option<&Any> {
    use core::transport_socket::ConfigType;
    match socket?.config_type.as_ref()? {
        ConfigType::TypedConfig(config) => Some(config),
    }
}

/// Our metadata says it most precisely; Envoy's protocol options must not contradict, and stand in where there is no metadata.
fn protocol(raw: &Raw) -> Result<Protocol, Wrong> {
    let options = match raw.typed_extension_protocol_options.iter().find(|(key, _)| *key != HTTP_OPTIONS) {
        Some((key, _)) => return Err(Wrong::unsupported(format!("typed_extension_protocol_options[\"{key}\"]"))),
        None => raw.typed_extension_protocol_options.get(HTTP_OPTIONS).map(http_options).transpose()?,
    };
    let declared = match metadata::text(raw.metadata.as_ref(), "protocol")? {
        None => return Ok(options.unwrap_or(Protocol::Auto)),
        Some("http") => Protocol::Http,
        Some("http1") => Protocol::Http1,
        Some("http2") => Protocol::Http2,
        Some("tcp") => Protocol::Tcp,
        Some("" | "auto") => Protocol::Auto,
        Some(other) => {
            let why = format!("`{}` is not one of http, http1, http2, tcp", other.escape_debug());
            return Err(Wrong::new("metadata[\"meshwright.dev\"].protocol", why));
        }
    };
    match (declared, options) {
        (Protocol::Http1, Some(Protocol::Http2)) | (Protocol::Http2, Some(Protocol::Http1)) => {
            Err(Wrong::new(format!("typed_extension_protocol_options[\"{HTTP_OPTIONS}\"]"), "contradicts the protocol in the metadata"))
        }
        _ => Ok(declared),
    }
}

fn http_options(raw: &Any) -> Result<Protocol, Wrong> {
    let field = || format!("typed_extension_protocol_options[\"{HTTP_OPTIONS}\"]");
    let options: HttpProtocolOptions = unpack(raw).map_err(|wrong| wrong.within(field()))?;
    let (protocol, http2) = match options.upstream_protocol_options {
        None => (Protocol::Http1, None),
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => (Protocol::Http, config.http2_protocol_options),
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(config)) => match config.protocol_config {
            Some(ProtocolConfig::Http2ProtocolOptions(options)) => (Protocol::Http2, Some(options)),
            Some(ProtocolConfig::HttpProtocolOptions(_)) | None => (Protocol::Http1, None),
        },
    };
    let tuned = http2.is_some_and(|options| options != core::Http2ProtocolOptions::default());
    refuse(tuned, &format!("{}.http2_protocol_options", field()))?;
    Ok(protocol)
}
