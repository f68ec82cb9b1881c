//! Resources as the control plane writes them (docs/architecture.md), for tests.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::{Message, Name};
use prost_types::{Struct, Value, value};
use proto::mesh;
use proto::xds::cluster::Cluster;
use proto::xds::cluster::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
use proto::xds::core::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, DataSource, HealthStatus, Metadata, SocketAddress, TransportSocket, address,
    config_source, data_source, socket_address, transport_socket,
};
use proto::xds::endpoint::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint};
use proto::xds::hcm::http_connection_manager::{CodecType, ForwardClientCertDetails, RouteSpecifier, SetCurrentClientCertDetails};
use proto::xds::hcm::{HttpConnectionManager, HttpFilter, Rds, http_filter};
use proto::xds::listener::{Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, UdpListenerConfig, filter, listener_filter};
use proto::xds::matcher::{RegexMatcher, StringMatcher, string_matcher};
use proto::xds::route::header_matcher::HeaderMatchSpecifier;
use proto::xds::route::query_parameter_matcher::QueryParameterMatchSpecifier;
use proto::xds::route::route_match::PathSpecifier;
use proto::xds::route::{
    HeaderMatcher, QueryParameterMatcher, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster, route,
    route_action, weighted_cluster,
};
use proto::xds::tcp_proxy::{TcpProxy, tcp_proxy};
use proto::xds::tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
use proto::xds::tls::downstream_tls_context::SessionTicketKeysType;
use proto::xds::tls::subject_alt_name_matcher::SanType;
use proto::xds::tls::tls_parameters::TlsProtocol;
use proto::xds::tls::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret, SubjectAltNameMatcher, TlsCertificate,
    TlsParameters, TlsSessionTicketKeys, UpstreamTlsContext, secret,
};
use proto::xds::{http_inspector, raw_buffer, router, tls_inspector};

use crate::model::build::{Parts, Rejected};

pub(crate) fn put<M: Message + Name>(parts: &mut Parts, name: &str, message: &M) -> Result<(), Rejected> {
    let any = proto::xds::pack(message);
    parts.put(&M::type_url(), name, &proto::epoch::version(&any.value), &any)
}

pub(crate) fn facts(pairs: &[(&str, &str)]) -> Metadata {
    let text = |text: &str| Value { kind: Some(value::Kind::StringValue(text.to_owned())) };
    let fields = pairs.iter().map(|(key, value)| ((*key).to_owned(), text(value))).collect();
    Metadata { filter_metadata: BTreeMap::from([(proto::names::METADATA.to_owned(), Struct { fields })]) }
}

pub(crate) fn address(text: &str) -> Address {
    let socket: std::net::SocketAddr = text.parse().unwrap();
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: socket.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(socket.port().into())),
            ..Default::default()
        })),
    }
}

pub(crate) fn cluster(name: &str) -> Cluster {
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        lb_policy: LbPolicy::LeastRequest.into(),
        connect_timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        metadata: Some(facts(&[("namespace", "shop"), ("service", name), ("protocol", "http")])),
        ..Default::default()
    }
}

pub(crate) fn endpoint(at: &str, workload: &str, health: HealthStatus) -> LbEndpoint {
    let identity = format!("spiffe://cluster.local/ns/shop/sa/{workload}");
    LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(Endpoint { address: Some(address(at)), ..Default::default() })),
        health_status: health.into(),
        metadata: Some(facts(&[("namespace", "shop"), ("workload", workload), ("instance", workload), ("identity", &identity)])),
        ..Default::default()
    }
}

pub(crate) fn assignment(name: &str, endpoints: Vec<LbEndpoint>) -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![LocalityLbEndpoints { lb_endpoints: endpoints, ..Default::default() }],
        ..Default::default()
    }
}

pub(crate) fn prefix(path: &str) -> RouteMatch {
    let specifier = if path == "/" { PathSpecifier::Prefix("/".into()) } else { PathSpecifier::PathSeparatedPrefix(path.into()) };
    RouteMatch { path_specifier: Some(specifier), ..Default::default() }
}

pub(crate) fn exact(path: &str) -> RouteMatch {
    RouteMatch { path_specifier: Some(PathSpecifier::Path(path.into())), ..Default::default() }
}

pub(crate) fn path_regex(regex: &str) -> RouteMatch {
    RouteMatch { path_specifier: Some(PathSpecifier::SafeRegex(RegexMatcher { regex: regex.into() })), ..Default::default() }
}

pub(crate) fn string(pattern: string_matcher::MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..Default::default() }
}

pub(crate) fn header(name: &str, value: &str) -> HeaderMatcher {
    let exact = string(string_matcher::MatchPattern::Exact(value.into()));
    HeaderMatcher { name: name.into(), header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exact)), ..Default::default() }
}

pub(crate) fn query(name: &str, value: &str) -> QueryParameterMatcher {
    let exact = string(string_matcher::MatchPattern::Exact(value.into()));
    QueryParameterMatcher { name: name.into(), query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(exact)) }
}

/// A rule to one cluster, or to several by weight.
pub(crate) fn rule(name: &str, wanted: RouteMatch, to: &[(&str, u32)]) -> Route {
    let weight = |(name, weight): &(&str, u32)| weighted_cluster::ClusterWeight {
        name: (*name).to_owned(),
        weight: Some(*weight),
        ..Default::default()
    };
    let specifier = match to {
        [(only, 1)] => route_action::ClusterSpecifier::Cluster((*only).to_owned()),
        many => route_action::ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: many.iter().map(weight).collect() }),
    };
    Route {
        name: name.to_owned(),
        r#match: Some(wanted),
        action: Some(route::Action::Route(RouteAction {
            cluster_specifier: Some(specifier),
            timeout: Some(prost_types::Duration::default()),
            ..Default::default()
        })),
        ..Default::default()
    }
}

pub(crate) fn host(domains: &[&str], routes: Vec<Route>) -> VirtualHost {
    let domains: Vec<String> = domains.iter().map(|domain| (*domain).to_owned()).collect();
    VirtualHost { name: domains.join(","), domains, routes, ..Default::default() }
}

pub(crate) fn table(name: &str, hosts: Vec<VirtualHost>) -> RouteConfiguration {
    RouteConfiguration { name: name.to_owned(), virtual_hosts: hosts, ignore_port_in_host_matching: true, ..Default::default() }
}

pub(crate) fn hcm(route_specifier: RouteSpecifier) -> HttpConnectionManager {
    HttpConnectionManager {
        codec_type: CodecType::Auto.into(),
        route_specifier: Some(route_specifier),
        http_filters: vec![HttpFilter {
            name: "router".into(),
            config_type: Some(http_filter::ConfigType::TypedConfig(proto::xds::pack(&router::Router {}))),
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub(crate) fn chain<M: Message + Name>(message: &M) -> FilterChain {
    let config = Some(filter::ConfigType::TypedConfig(proto::xds::pack(message)));
    FilterChain { filters: vec![Filter { name: "f".into(), config_type: config }], ..Default::default() }
}

pub(crate) fn rds(table: &str) -> HttpConnectionManager {
    hcm(RouteSpecifier::Rds(Rds { route_config_name: table.into(), ..Default::default() }))
}

pub(crate) fn tcp_to(cluster: &str) -> TcpProxy {
    TcpProxy { cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(cluster.into())), ..Default::default() }
}

/// Declared HTTP.
pub(crate) fn out_http(at: &str, table: &str) -> Listener {
    Listener {
        name: format!("out/{at}"),
        address: Some(address(at)),
        filter_chains: vec![chain(&rds(table))],
        traffic_direction: 2,
        bind_to_port: Some(false),
        ..Default::default()
    }
}

/// Undeclared.
pub(crate) fn out_auto(at: &str, table: &str, cluster: &str) -> Listener {
    let inspector = proto::xds::pack(&http_inspector::HttpInspector {});
    let sniffed = FilterChainMatch { application_protocols: vec!["http/1.1".into(), "h2c".into()], ..Default::default() };
    Listener {
        filter_chains: vec![FilterChain { filter_chain_match: Some(sniffed), ..chain(&rds(table)) }],
        default_filter_chain: Some(chain(&tcp_to(cluster))),
        listener_filters: vec![ListenerFilter {
            name: "envoy.filters.listener.http_inspector".into(),
            config_type: Some(listener_filter::ConfigType::TypedConfig(inspector)),
        }],
        ..out_http(at, table)
    }
}

/// TLS by the name it asks for (none: any) to a cluster each.
pub(crate) fn out_tls(at: &str, to: &[(&str, &str)]) -> Listener {
    let inspector = proto::xds::pack(&tls_inspector::TlsInspector {});
    let chain = |(name, cluster): &(&str, &str)| FilterChain {
        name: format!("tls/{name}"),
        filter_chain_match: Some(FilterChainMatch {
            transport_protocol: "tls".into(),
            server_names: Some((*name).to_owned()).filter(|name| !name.is_empty()).into_iter().collect(),
            ..Default::default()
        }),
        ..chain(&tcp_to(cluster))
    };
    Listener {
        filter_chains: to.iter().map(chain).collect(),
        listener_filters: vec![ListenerFilter {
            name: "envoy.filters.listener.tls_inspector".into(),
            config_type: Some(listener_filter::ConfigType::TypedConfig(inspector)),
        }],
        ..out_http(at, "")
    }
}

pub(crate) fn out_nowhere(at: &str) -> Listener {
    Listener { filter_chains: Vec::new(), ..out_http(at, "") }
}

pub(crate) fn ads() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        initial_fetch_timeout: None,
        resource_api_version: ApiVersion::V3.into(),
    }
}

pub(crate) fn socket_of<M: Message + Name>(name: &str, config: &M) -> TransportSocket {
    TransportSocket { name: name.into(), config_type: Some(transport_socket::ConfigType::TypedConfig(proto::xds::pack(config))) }
}

pub(crate) fn plaintext() -> TransportSocket {
    socket_of("envoy.transport_sockets.raw_buffer", &raw_buffer::RawBuffer {})
}

/// `{tlsMode: mesh}`.
pub(crate) fn mesh_mode() -> Struct {
    let (key, value) = proto::names::TLS_MODE_MESH;
    Struct { fields: BTreeMap::from([(key.to_owned(), Value { kind: Some(value::Kind::StringValue(value.to_owned())) })]) }
}

pub(crate) fn mesh_tls() -> CommonTlsContext {
    let secret = |name: &str| SdsSecretConfig { name: name.to_owned(), sds_config: Some(ads()) };
    let peer = SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(string(string_matcher::MatchPattern::Prefix("spiffe://cluster.local/".into()))),
    };
    let context = CertificateValidationContext { match_typed_subject_alt_names: vec![peer], ..Default::default() };
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13.into(),
            tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
        }),
        tls_certificate_sds_secret_configs: vec![secret(proto::names::LEAF)],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
            default_validation_context: Some(context),
            validation_context_sds_secret_config: Some(secret(proto::names::ROOT_CA)),
        })),
        alpn_protocols: MESH_ALPN.map(str::to_owned).to_vec(),
    }
}

pub(crate) fn upstream_tls() -> TransportSocket {
    socket_of("envoy.transport_sockets.tls", &UpstreamTlsContext { common_tls_context: Some(mesh_tls()), sni: String::new() })
}

pub(crate) fn inbound_chain(port: Option<u32>, transport: &str, alpn: &[&str], mesh: bool, inner: FilterChain) -> FilterChain {
    let context = DownstreamTlsContext {
        require_client_certificate: Some(true),
        common_tls_context: Some(mesh_tls()),
        session_ticket_keys_type: None,
    };
    FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            destination_port: port,
            transport_protocol: transport.into(),
            application_protocols: alpn.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        }),
        transport_socket: mesh.then(|| socket_of("envoy.transport_sockets.tls", &context)),
        ..inner
    }
}

/// The inline table of an inbound chain.
pub(crate) fn to_application() -> FilterChain {
    let routes = table("inbound", vec![host(&["*"], vec![rule("inbound", prefix("/"), &[("inbound", 1)])])]);
    chain(&telling(hcm(RouteSpecifier::RouteConfig(routes))))
}

/// As the inbound side has it: the application is told who calls.
pub(crate) fn telling(manager: HttpConnectionManager) -> HttpConnectionManager {
    HttpConnectionManager {
        forward_client_cert_details: ForwardClientCertDetails::SanitizeSet.into(),
        set_current_client_cert_details: Some(SetCurrentClientCertDetails { uri: true, ..Default::default() }),
        ..manager
    }
}

/// How an edge ends TLS with these secrets: certificates, authorities of clients, ticket keys.
pub(crate) fn edge_tls(certificates: &[&str], authorities: Option<&str>, alpn: &[&str]) -> DownstreamTlsContext {
    let secret = |name: &str| SdsSecretConfig { name: name.to_owned(), sds_config: Some(ads()) };
    let clients = authorities.map(|name| {
        ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
            default_validation_context: Some(CertificateValidationContext::default()),
            validation_context_sds_secret_config: Some(secret(name)),
        })
    });
    let common = CommonTlsContext {
        tls_params: Some(TlsParameters::default()),
        tls_certificate_sds_secret_configs: certificates.iter().map(|name| secret(name)).collect(),
        validation_context_type: clients,
        alpn_protocols: alpn.iter().map(|name| (*name).to_owned()).collect(),
    };
    DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: Some(authorities.is_some()),
        session_ticket_keys_type: Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(secret("tickets/shop/edge"))),
    }
}

/// A chain for TLS of these names, which is ended or passes.
pub(crate) fn by_name(name: &str, names: &[&str], ended: Option<&DownstreamTlsContext>, inner: FilterChain) -> FilterChain {
    FilterChain {
        name: name.to_owned(),
        filter_chain_match: Some(FilterChainMatch {
            transport_protocol: "tls".into(),
            server_names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        }),
        transport_socket: ended.map(|context| socket_of("envoy.transport_sockets.tls", context)),
        ..inner
    }
}

pub(crate) fn edge(port: u16, filter_chains: Vec<FilterChain>) -> Listener {
    Listener { name: format!("edge/{port}"), bind_to_port: None, filter_chains, ..out_nowhere(&format!("0.0.0.0:{port}")) }
}

/// The same port with everything that may be said of its clients, on a chain.
pub(crate) fn with_clients(mut listener: Listener, policy: &mesh::ClientPolicy) -> Listener {
    listener.listener_filters.push(ListenerFilter {
        name: "clients".into(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(proto::xds::pack(policy))),
    });
    listener
}

/// Everything that may be said of an edge's clients, on this chain.
pub(crate) fn clients(chain: &str, trusted: mesh::ClientAddress) -> mesh::ClientPolicy {
    let secs = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    mesh::ClientPolicy {
        proxy_protocol: Some(mesh::ProxyProtocol { required: true, trusted_cidrs: vec!["10.0.0.0/8".into()], timeout: secs(2) }),
        connections: Some(mesh::ClientConnections {
            max: 100,
            per_address: 10,
            new_per_second: 20,
            readiness_grace: secs(7),
            go_away_grace: secs(8),
        }),
        http3: None,
        chains: vec![mesh::ClientChain {
            chain: chain.into(),
            policy: "shop/edge".into(),
            address: Some(trusted),
            timeouts: Some(mesh::ClientTimeouts {
                tls_handshake: secs(1),
                request_headers: secs(2),
                body_idle: secs(3),
                write_stall: secs(4),
                min_bytes_per_second: Some(5),
            }),
            limits: Some(mesh::ClientLimits { header_bytes: 2048, headers: 20, uri_bytes: 200 }),
            lives: Some(mesh::ClientLives { idle: secs(5), max_age: secs(6), max_requests: 9 }),
            http1: Some(mesh::ClientHttp1 { disabled: false, refuse10: true, lower_case: true }),
            http2: Some(mesh::ClientHttp2 {
                disabled: false,
                max_streams: 10,
                stream_window: 70_000,
                connection_window: 700_000,
                resets_per_minute: 30,
                ping_interval: secs(9),
            }),
            paths: Some(mesh::ClientPaths { escaped_slashes: 1, underscore_headers: 2 }),
            headers: Some(mesh::ClientHeaders {
                set: vec![mesh::EarlyHeader { name: "x-edge".into(), value: "1".into() }],
                remove: vec!["x-debug".into()],
                keep_trusted_id: true,
                hsts: secs(60),
            }),
            tls: Some(mesh::ClientTls { plain_master_secret: true }),
        }],
    }
}

/// Datagrams of an edge's port.
pub(crate) fn edge_datagrams(port: u16, to: &[(&str, u32)]) -> Listener {
    let clusters = to.iter().map(|(cluster, weight)| mesh::UdpCluster { cluster: (*cluster).to_owned(), weight: *weight }).collect();
    let proxy = mesh::UdpProxy { clusters, idle_timeout: Some(prost_types::Duration { seconds: 30, nanos: 0 }) };
    let mut at = address(&format!("0.0.0.0:{port}"));
    if let Some(address::Address::SocketAddress(socket)) = &mut at.address {
        socket.protocol = socket_address::Protocol::Udp.into();
    }
    Listener {
        name: format!("edge/{port}/udp"),
        address: Some(at),
        udp_listener_config: Some(UdpListenerConfig {}),
        listener_filters: vec![ListenerFilter {
            name: "udp".into(),
            config_type: Some(listener_filter::ConfigType::TypedConfig(proto::xds::pack(&proxy))),
        }],
        traffic_direction: 2,
        ..Default::default()
    }
}

fn bytes(bytes: &[u8]) -> DataSource {
    DataSource { specifier: Some(data_source::Specifier::InlineBytes(bytes.to_vec().into())) }
}

fn pem(kind: &str, der: &[u8]) -> DataSource {
    bytes(format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", STANDARD.encode(der)).as_bytes())
}

/// A certificate of that many zeros, with a key of as many, by its name.
pub(crate) fn certificate(name: &str, zeros: u8) -> Secret {
    let der = [&[0x30, zeros][..], &vec![0; zeros.into()]].concat();
    let certificate = TlsCertificate {
        certificate_chain: Some(pem("CERTIFICATE", &der)),
        private_key: Some(pem("PRIVATE KEY", &der)),
        ocsp_staple: Some(bytes(b"good")),
    };
    Secret { name: name.to_owned(), r#type: Some(secret::Type::TlsCertificate(certificate)) }
}

/// Whoever vouches for clients, by its name.
pub(crate) fn authorities(name: &str) -> Secret {
    let context = CertificateValidationContext { trusted_ca: Some(pem("CERTIFICATE", &[0x30, 0])), ..Default::default() };
    Secret { name: name.to_owned(), r#type: Some(secret::Type::ValidationContext(context)) }
}

pub(crate) fn ticket_keys(name: &str, first: u8) -> Secret {
    let keys = TlsSessionTicketKeys { keys: vec![bytes(&[first; 80]), bytes(&[9; 80])] };
    Secret { name: name.to_owned(), r#type: Some(secret::Type::SessionTicketKeys(keys)) }
}

/// TLS to a server that proves one of several names, and is shown a certificate.
pub(crate) fn backend_tls() -> TransportSocket {
    let name = |kind: SanType, text: &str| SubjectAltNameMatcher {
        san_type: kind.into(),
        matcher: Some(string(string_matcher::MatchPattern::Exact(text.into()))),
    };
    let context = CertificateValidationContext {
        trusted_ca: Some(pem("CERTIFICATE", &[0x30, 0])),
        match_typed_subject_alt_names: vec![name(SanType::Dns, "*.b.example"), name(SanType::Uri, "spiffe://b/c")],
        ..Default::default()
    };
    let common = CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![SdsSecretConfig { name: "tls/shop/own".into(), sds_config: Some(ads()) }],
        validation_context_type: Some(ValidationContextType::ValidationContext(context)),
        ..Default::default()
    };
    socket_of("envoy.transport_sockets.tls", &UpstreamTlsContext { common_tls_context: Some(common), sni: "a.b.example".into() })
}

/// As an edge has it that tells on what its client's certificate proves.
pub(crate) fn telling_client(manager: HttpConnectionManager) -> HttpConnectionManager {
    HttpConnectionManager {
        forward_client_cert_details: ForwardClientCertDetails::SanitizeSet.into(),
        set_current_client_cert_details: Some(SetCurrentClientCertDetails {
            subject: Some(true),
            dns: true,
            uri: true,
            ..Default::default()
        }),
        ..manager
    }
}

pub(crate) const MESH_ALPN: [&str; 3] = proto::names::ALPN_MESH;

pub(crate) fn strict(port: Option<u32>) -> Vec<FilterChain> {
    vec![inbound_chain(port, "tls", &[], true, to_application())]
}

/// The same, of undeclared protocol.
pub(crate) fn strict_auto(port: Option<u32>) -> Vec<FilterChain> {
    vec![
        inbound_chain(port, "tls", &["http/1.1", "h2c", "h2"], true, to_application()),
        inbound_chain(port, "tls", &[], true, chain(&tcp_to("inbound"))),
    ]
}

/// Permissive, with plaintext of undeclared protocol.
pub(crate) fn permissive(port: Option<u32>) -> Vec<FilterChain> {
    let tcp = || chain(&tcp_to("inbound"));
    vec![
        inbound_chain(port, "tls", &MESH_ALPN, true, to_application()),
        inbound_chain(port, "raw_buffer", &["http/1.1", "h2c"], false, to_application()),
        inbound_chain(port, "raw_buffer", &[], false, tcp()),
        inbound_chain(port, "tls", &[], false, tcp()),
    ]
}

pub(crate) fn inbound(filter_chains: Vec<FilterChain>) -> Listener {
    Listener { name: "inbound".into(), address: Some(address("0.0.0.0:15006")), filter_chains, traffic_direction: 1, ..Default::default() }
}

/// A shop of one canary: `shop/catalog:80` splits 90/10 between two clusters of one endpoint each, behind 10.0.0.1:80.
pub(crate) fn shop() -> Parts {
    let mut parts = Parts::default();
    let split = [("shop/catalog-v1:80", 90), ("shop/catalog-v2:80", 10)];
    let routes = vec![
        rule("HTTPRoute/shop/catalog/beta", RouteMatch { headers: vec![header("x-beta", "1")], ..prefix("/v1") }, &[split[1]]),
        rule("HTTPRoute/shop/catalog/1", prefix("/v1"), &split),
    ];
    put(&mut parts, "shop/catalog:80", &table("shop/catalog:80", vec![host(&["*"], routes)])).unwrap();
    for (index, (name, _)) in split.iter().enumerate() {
        put(&mut parts, name, &cluster(name)).unwrap();
        let at = format!("10.1.0.{}:8080", index + 1);
        let workload = format!("catalog-v{}", index + 1);
        put(&mut parts, name, &assignment(name, vec![endpoint(&at, &workload, HealthStatus::Healthy)])).unwrap();
    }
    put(&mut parts, "out/10.0.0.1:80", &out_http("10.0.0.1:80", "shop/catalog:80")).unwrap();
    put(&mut parts, "inbound", &inbound([permissive(None), strict(Some(9090))].concat())).unwrap();
    parts
}

/// Whom to believe: two roots, of which the first one issues, another trust domain, and somebody who is revoked.
pub(crate) fn trust() -> mesh::Trust {
    let der = |text: &str| STANDARD.decode(text).unwrap();
    let roots = [ROOT_1, ROOT_2].map(der);
    let issuing_root = crate::model::sha256(&roots[0]).to_vec().into();
    let partner = mesh::FederatedBundle { trust_domain: "partner.example".into(), roots: vec![roots[1].clone().into()] };
    let until = Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 0 });
    let identity =
        mesh::RevokedIdentity { identity: "spiffe://cluster.local/ns/shop/sa/old".into(), until, revocation: "meshwright-system/r".into() };
    let serial = mesh::RevokedSerial { serial: "7d35".into(), until, revocation: "meshwright-system/r".into() };
    mesh::Trust {
        roots: roots.map(Into::into).to_vec(),
        issuing_root,
        federated: vec![partner],
        identities: vec![identity],
        serials: vec![serial],
    }
}

/// A self-signed root, DER in base64.
const ROOT_1: &str = "\
MIIBeTCCAR+gAwIBAgIUMOOnERzceqDifala+W4c+KFmI4owCgYIKoZIzj0EAwIwETEPMA0GA1UEAwwGcm9vdCAxMCAXDTI2MTEyOTA4MjgwNloYDzIxMjYx\
MTA1MDgyODA2WjARMQ8wDQYDVQQDDAZyb290IDEwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQ4pRxLQBwMGhc0du9z3pLaHhU6WhvUZyX0YWxX7zegEndy\
bJoI4ZEO4QYx6sYM99E9WT8zg8+/v0zxT7V8ppKxo1MwUTAdBgNVHQ4EFgQU+tFD2f7MM0t2Uq7z44y/Y1ADKl4wHwYDVR0jBBgwFoAU+tFD2f7MM0t2Uq7z\
44y/Y1ADKl4wDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiEAhMkorNDrBLsec4MnoSxcoKJslTancoBKfMEDcQJnuooCIFW1gCAoLGMSwVya\
+5oIhW/kCDwRLXSJ989vjDToZXpS";

/// A self-signed root, DER in base64.
const ROOT_2: &str = "\
MIIBejCCAR+gAwIBAgIUE8pVB5BsfhRNx0/uoaG35YOsFowwCgYIKoZIzj0EAwIwETEPMA0GA1UEAwwGcm9vdCAyMCAXDTI2MTEyOTA4MjgwNloYDzIxMjYx\
MTA1MDgyODA2WjARMQ8wDQYDVQQDDAZyb290IDIwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQYTukbTBn/UYTC0ZKBU9Z6os+H1C+f44XRM1qK9bQJmQD7\
ssLbfGJnUWmF6JLv0WL817FGtRKtOr5QSGVr6IFRo1MwUTAdBgNVHQ4EFgQURHLf/X8KizLBrS6CpggLYs6JgvwwHwYDVR0jBBgwFoAURHLf/X8KizLBrS6C\
pggLYs6JgvwwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEAqiYU51DWMS7TwY+UnWwzHJeeW+FWDHbDq1Rhdo8aYTwCIQDJo27BO7IMuS6O\
/Y8FfeuF2ld02TeeRafnOAbew9wIWw==";
/// One rule for tokens in which everything is said.
pub(crate) fn authentication() -> mesh::Authentication {
    let header = |name: &str, prefix: &str| mesh::TokenHeader { name: name.into(), prefix: prefix.into() };
    let rule = mesh::TokenRule {
        policy: "shop/tokens".into(),
        issuer: "https://id.example".into(),
        audiences: vec!["store".into()],
        jwks: r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"bench","x":"hwJCQ_O__uuFcIs9bTETs-FQYoaLEsm_LUBbLD_gWbM","y":"CKIBB8_1R6ny99dCtrvfCH1GTfDKS_SW5sgFf6XzC74"}]}"#
            .into(),
        jwks_uri: String::new(),
        from_headers: vec![header("authorization", "Bearer ")],
        from_query: vec!["token".into()],
        from_cookies: vec!["sid".into()],
        forward_token: true,
        claims_to_headers: vec![mesh::ClaimHeader { claim: "sub".into(), header: "x-user".into() }],
        clock_skew: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        consumer_claim: "azp".into(),
        token_types: vec!["at+jwt".into()],
        jwks_max_stale: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
    };
    let withheld = mesh::WithheldTokens {
        from_headers: vec![header("x-token", "")],
        from_query: vec!["t".into()],
        from_cookies: vec!["t".into()],
        headers: vec!["x-tenant".into()],
    };
    mesh::Authentication { rules: vec![rule], withheld: Some(withheld) }
}
