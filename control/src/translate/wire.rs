//! The small messages that every resource is made of.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use prost_types::{Any, Struct, Value, value};
use proto::mesh::Authorization;
use proto::names;
use proto::xds::core::data_source::Specifier;
use proto::xds::core::{DataSource, Metadata, SocketAddress, TransportSocket, address, config_source, socket_address, transport_socket};
use proto::xds::hcm::http_connection_manager::{
    CodecType, ForwardClientCertDetails, RouteSpecifier, SetCurrentClientCertDetails, UpgradeConfig,
};
use proto::xds::hcm::{HttpConnectionManager, HttpFilter, Rds, http_filter};
use proto::xds::listener::{Filter, ListenerFilter, filter, listener_filter};
use proto::xds::route::RouteConfiguration;
use proto::xds::tcp_proxy::tcp_proxy::weighted_cluster::ClusterWeight;
use proto::xds::tcp_proxy::{TcpProxy, tcp_proxy};
use proto::xds::tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
use proto::xds::{core, http_inspector, matcher, pack, raw_buffer, router, tls, tls_inspector};

use super::protocol::Protocol;

/// Texts as a `Struct`.
pub(super) fn texts(pairs: &[(&str, &str)]) -> Struct {
    let value = |text: &str| Value { kind: Some(value::Kind::StringValue(text.to_owned())) };
    Struct { fields: pairs.iter().map(|(name, text)| ((*name).to_owned(), value(text))).collect() }
}

/// Our own facts about a resource.
pub(super) fn facts(pairs: &[(&str, &str)]) -> Metadata {
    Metadata { filter_metadata: BTreeMap::from([(names::METADATA.to_owned(), texts(pairs))]) }
}

pub(super) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})),
        initial_fetch_timeout: None,
        resource_api_version: core::ApiVersion::V3.into(),
    }
}

pub(super) fn socket(ip: IpAddr, port: u16) -> core::Address {
    let socket = SocketAddress {
        address: ip.to_string(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(port.into())),
        ..SocketAddress::default()
    };
    core::Address { address: Some(address::Address::SocketAddress(socket)) }
}

/// Puts a policy beside Envoy's fields, unless it says nothing.
pub(super) fn attach_policy<M: prost::Message + prost::Name + Default + PartialEq>(config: &mut BTreeMap<String, Any>, policy: &M) {
    if *policy != M::default() {
        config.insert(names::POLICY.to_owned(), pack(policy));
    }
}

/// A duration in seconds.
pub(super) fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// Where a connection manager has its routes from.
pub(super) enum Routes {
    /// The table of that name.
    Named(String),
    /// This table.
    Inline(RouteConfiguration),
}

/// HTTPS at an edge, with the route table of that name. `verified`: clients prove who they are, and the application is told.
pub(super) fn edge_http(table: String, verified: bool) -> Filter {
    let told = verified.then_some(SetCurrentClientCertDetails { subject: Some(true), dns: true, uri: true, ..Default::default() });
    manager(Protocol::Http, Routes::Named(table), "outbound", told)
}

/// HTTP on a chain. `inbound`: the side that tells the application who called.
pub(super) fn http(protocol: Protocol, routes: Routes, inbound: bool) -> Filter {
    let told = inbound.then(|| SetCurrentClientCertDetails { uri: true, ..Default::default() });
    manager(protocol, routes, if inbound { "inbound" } else { "outbound" }, told)
}

/// `told`: what the application is told of its caller's certificate; `None`: nothing, and nobody else tells it.
fn manager(protocol: Protocol, routes: Routes, side: &str, told: Option<SetCurrentClientCertDetails>) -> Filter {
    let codec = match protocol {
        Protocol::Http1 => CodecType::Http1,
        Protocol::Http2 => CodecType::Http2,
        Protocol::Http | Protocol::Tcp | Protocol::Auto => CodecType::Auto,
    };
    let router = HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack(&router::Router::default()))),
        ..HttpFilter::default()
    };
    let forwarding = if told.is_some() { ForwardClientCertDetails::SanitizeSet } else { ForwardClientCertDetails::Sanitize };
    let manager = HttpConnectionManager {
        codec_type: codec.into(),
        stat_prefix: side.to_owned(),
        route_specifier: Some(match routes {
            Routes::Named(name) => RouteSpecifier::Rds(Rds { config_source: Some(ads()), route_config_name: name }),
            Routes::Inline(table) => RouteSpecifier::RouteConfig(table),
        }),
        http_filters: vec![router],
        forward_client_cert_details: forwarding.into(),
        set_current_client_cert_details: told,
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".to_owned(), enabled: None }],
        ..HttpConnectionManager::default()
    };
    Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(&manager))),
    }
}

/// Bytes to one of these clusters, by weight; without any weight they are refused. `idle`: how long nothing may move; `None`: the
/// default, zero: for ever.
pub(super) fn tcp(split: &[(String, u32)], idle: Option<Duration>) -> Filter {
    let weight = |(name, weight): &(String, u32)| ClusterWeight { name: name.clone(), weight: *weight };
    let specifier = match split {
        [(only, 1..)] => tcp_proxy::ClusterSpecifier::Cluster(only.clone()),
        _ if split.iter().all(|(_, weight)| *weight == 0) => tcp_proxy::ClusterSpecifier::Cluster(names::BAD_BACKEND.to_owned()),
        several => {
            tcp_proxy::ClusterSpecifier::WeightedClusters(tcp_proxy::WeightedCluster { clusters: several.iter().map(weight).collect() })
        }
    };
    let proxy = TcpProxy {
        stat_prefix: "tcp".to_owned(),
        cluster_specifier: Some(specifier),
        idle_timeout: idle.and_then(|idle| prost_types::Duration::try_from(idle).ok()),
    };
    Filter { name: "envoy.filters.network.tcp_proxy".to_owned(), config_type: Some(filter::ConfigType::TypedConfig(pack(&proxy))) }
}

/// Asks who may, before anything is carried.
pub(super) fn asks(policies: &Authorization) -> Filter {
    Filter { name: "meshwright.authorization".to_owned(), config_type: Some(filter::ConfigType::TypedConfig(pack(policies))) }
}

/// Bytes to one cluster.
pub(super) fn tcp_to(cluster: &str, idle: Option<Duration>) -> Filter {
    tcp(&[(cluster.to_owned(), 1)], idle)
}

/// Tells HTTP from other bytes.
pub(super) fn http_inspector() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.http_inspector".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(pack(&http_inspector::HttpInspector {}))),
    }
}

/// Reads which name TLS asks for.
pub(super) fn tls_inspector() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(pack(&tls_inspector::TlsInspector {}))),
    }
}

/// What the HTTP inspector calls the versions.
pub(super) fn http_names() -> Vec<String> {
    vec!["http/1.1".to_owned(), "h2c".to_owned()]
}

/// The ALPN names of mesh peers.
pub(super) fn mesh_names() -> Vec<String> {
    names::ALPN_MESH.map(str::to_owned).to_vec()
}

/// What both ends of mesh TLS share: our own certificate, the trust bundle, identities of the trust domain, TLS 1.3.
pub(super) fn mesh_tls(trust_domain: &str, alpn: Vec<String>) -> tls::CommonTlsContext {
    let peer = tls::SubjectAltNameMatcher {
        san_type: tls::subject_alt_name_matcher::SanType::Uri.into(),
        matcher: Some(matcher::StringMatcher {
            match_pattern: Some(matcher::string_matcher::MatchPattern::Prefix(format!("spiffe://{trust_domain}/"))),
            ignore_case: false,
        }),
    };
    let trust = CombinedCertificateValidationContext {
        default_validation_context: Some(tls::CertificateValidationContext {
            match_typed_subject_alt_names: vec![peer],
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(tls::SdsSecretConfig { name: names::ROOT_CA.to_owned(), sds_config: Some(ads()) }),
    };
    tls::CommonTlsContext {
        tls_params: Some(tls::TlsParameters {
            tls_minimum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv13.into(),
            tls_maximum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv13.into(),
        }),
        tls_certificate_sds_secret_configs: vec![tls::SdsSecretConfig { name: names::LEAF.to_owned(), sds_config: Some(ads()) }],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(trust)),
        alpn_protocols: alpn,
    }
}

pub(super) fn transport<M: prost::Message + prost::Name>(name: &str, config: &M) -> TransportSocket {
    TransportSocket { name: name.to_owned(), config_type: Some(transport_socket::ConfigType::TypedConfig(pack(config))) }
}

pub(super) fn plaintext() -> TransportSocket {
    transport("envoy.transport_sockets.raw_buffer", &raw_buffer::RawBuffer {})
}

/// Bytes that stand in the resource itself.
pub(super) fn inline(bytes: &[u8]) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes.to_vec().into())) })
}
