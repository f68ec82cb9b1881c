//! Our subset against the published protocol: every message, every field set, through the `envoy-types` type of the same name and back.

// Helpers may unwrap as tests do.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;

use prost::{Message, Name};
use protox::prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

mod sources;

/// No oneof of ours has more alternatives, no enum more values; each round takes the next of each.
const ROUNDS: usize = 9;

/// A message after theirs has read it and ours has read theirs: its bytes, and what each side prints of it.
struct Hop {
    bytes: Vec<u8>,
    ours: BTreeSet<String>,
    theirs: BTreeSet<String>,
}

fn hop<Ours, Theirs>(bytes: &[u8]) -> Hop
where
    Ours: Message + Name + Default + Debug,
    Theirs: Message + Name + Default + Debug,
{
    assert_eq!(Ours::full_name(), Theirs::full_name());
    let theirs = Theirs::decode(bytes).unwrap();
    let ours = Ours::decode(theirs.encode_to_vec().as_slice()).unwrap();
    Hop { bytes: ours.encode_to_vec(), ours: facts(&format!("{ours:?}")), theirs: facts(&format!("{theirs:?}")) }
}

/// Out of a `Debug` text: each `field: value` up to where the value nests, and the name before each `(` or ` {`.
fn facts(debug: &str) -> BTreeSet<String> {
    let word = |end: usize| debug[..end].rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
    let value = |start: usize| debug[start..].split([',', '(', '{', '}']).next().unwrap_or_default().trim();
    let fields = debug.match_indices(": ").map(|(at, _)| format!("{}: {}", word(at), value(at + 2)));
    let names = ["(", " {"].iter().flat_map(|mark| debug.match_indices(mark)).map(|(at, _)| word(at).to_owned());
    fields.chain(names).collect()
}

macro_rules! published {
    ($($($package:ident)::+ { $($($message:ident)::+),+ })+) => {{
        let mut hops: HashMap<String, fn(&[u8]) -> Hop> = HashMap::new();
        $({
            use proto::generated::$($package)::+ as ours;
            use envoy_types::pb::$($package)::+ as theirs;
            $(hops.insert(ours::$($message)::+::full_name(), hop::<ours::$($message)::+, theirs::$($message)::+>);)+
        })+
        hops
    }};
}

#[rustfmt::skip]
fn hops() -> HashMap<String, fn(&[u8]) -> Hop> {
    published! {
        envoy::config::cluster::v3 { CircuitBreakers, Cluster, LoadBalancingPolicy, circuit_breakers::Thresholds,
            cluster::CommonLbConfig, cluster::EdsClusterConfig, cluster::LeastRequestLbConfig, cluster::TransportSocketMatch,
            load_balancing_policy::Policy }
        envoy::config::core::v3 { Address, AggregatedConfigSource, BindConfig, CidrRange, ConfigSource, ControlPlane, DataSource,
            HeaderValue, HeaderValueOption, Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions, Locality, Metadata, Node,
            QueryParameter, RuntimeFractionalPercent, SelfConfigSource, SocketAddress, TransportSocket, TypedExtensionConfig }
        envoy::config::endpoint::v3 { ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
            cluster_load_assignment::Policy }
        envoy::config::listener::v3 { ApiListener, Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter,
            UdpListenerConfig }
        envoy::config::route::v3 { DirectResponseAction, HeaderMatcher, QueryParameterMatcher, RedirectAction, RetryPolicy, Route,
            RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster, retry_policy::RetryBackOff,
            route_action::MaxStreamDuration, weighted_cluster::ClusterWeight }
        envoy::extensions::common::ratelimit::v3 { RateLimitDescriptor, rate_limit_descriptor::Entry }
        envoy::extensions::filters::http::router::v3 { Router }
        envoy::extensions::filters::listener::http_inspector::v3 { HttpInspector }
        envoy::extensions::filters::listener::original_dst::v3 { OriginalDst }
        envoy::extensions::filters::listener::tls_inspector::v3 { TlsInspector }
        envoy::extensions::filters::network::http_connection_manager::v3 { HttpConnectionManager, HttpFilter, Rds,
            http_connection_manager::SetCurrentClientCertDetails, http_connection_manager::Tracing, http_connection_manager::UpgradeConfig }
        envoy::extensions::filters::network::tcp_proxy::v3 { TcpProxy, tcp_proxy::WeightedCluster,
            tcp_proxy::weighted_cluster::ClusterWeight }
        envoy::extensions::load_balancing_policies::least_request::v3 { LeastRequest }
        envoy::extensions::load_balancing_policies::round_robin::v3 { RoundRobin }
        envoy::extensions::transport_sockets::raw_buffer::v3 { RawBuffer }
        envoy::extensions::transport_sockets::tls::v3 { CertificateValidationContext, CommonTlsContext, DownstreamTlsContext,
            GenericSecret, SdsSecretConfig, Secret, SubjectAltNameMatcher, TlsCertificate, TlsParameters, TlsSessionTicketKeys, UpstreamTlsContext,
            certificate_validation_context::SystemRootCerts, common_tls_context::CombinedCertificateValidationContext }
        envoy::extensions::upstreams::http::v3 { HttpProtocolOptions, http_protocol_options::ExplicitHttpConfig,
            http_protocol_options::UseDownstreamHttpConfig }
        envoy::data::accesslog::v3 { AccessLogCommon, ConnectionProperties, HttpAccessLogEntry, HttpRequestProperties,
            HttpResponseProperties, ResponseFlags, TcpAccessLogEntry, TlsProperties, response_flags::Unauthorized,
            tls_properties::CertificateProperties, tls_properties::certificate_properties::SubjectAltName }
        envoy::service::accesslog::v3 { StreamAccessLogsMessage, StreamAccessLogsResponse,
            stream_access_logs_message::HttpAccessLogEntries, stream_access_logs_message::Identifier,
            stream_access_logs_message::TcpAccessLogEntries }
        envoy::service::auth::v3 { AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
            attribute_context::HttpRequest, attribute_context::Peer, attribute_context::Request, attribute_context::TlsSession }
        envoy::service::discovery::v3 { DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            Resource }
        envoy::service::ratelimit::v3 { RateLimitRequest, RateLimitResponse, rate_limit_response::DescriptorStatus }
        envoy::r#type::matcher::v3 { RegexMatchAndSubstitute, RegexMatcher, StringMatcher }
        envoy::r#type::v3 { FractionalPercent, HttpStatus, Int64Range, Percent }
        google::rpc { Status }
    }
}

fn pool() -> DescriptorPool {
    sources::compiled("proto").descriptor_pool()
}

/// All fields at once, then each alone: alone, two fields of one type with their numbers swapped cannot hide each other.
fn samples(descriptor: &MessageDescriptor, round: usize) -> Vec<DynamicMessage> {
    let alone = descriptor.fields().map(|field| {
        let mut message = DynamicMessage::new(descriptor.clone());
        set(&mut message, &field, round);
        message
    });
    alone.chain([filled(descriptor, round)]).collect()
}

fn filled(descriptor: &MessageDescriptor, round: usize) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for oneof in descriptor.oneofs() {
        let alternatives: Vec<_> = oneof.fields().collect();
        // `google.protobuf.Value` would go round in circles.
        let chosen = alternatives.iter().find(|field| field.full_name() == "google.protobuf.Value.string_value");
        set(&mut message, chosen.unwrap_or(&alternatives[round % alternatives.len()]), round);
    }
    for field in descriptor.fields().filter(|field| field.containing_oneof().is_none()) {
        set(&mut message, &field, round);
    }
    message
}

fn set(message: &mut DynamicMessage, field: &FieldDescriptor, round: usize) {
    let value = if let (true, Kind::Message(entry)) = (field.is_map(), field.kind()) {
        Value::Map([(MapKey::String("key".into()), one(&entry.map_entry_value_field(), round))].into())
    } else if field.is_list() {
        Value::List(vec![one(field, round), one(field, round + 1)])
    } else {
        one(field, round)
    };
    message.set_field(field, value);
}

/// A value that is not the default, so that it shows on the wire.
fn one(field: &FieldDescriptor, round: usize) -> Value {
    let number = field.number();
    match field.kind() {
        Kind::Message(descriptor) => Value::Message(filled(&descriptor, round)),
        Kind::Enum(descriptor) => {
            let numbers: Vec<_> = descriptor.values().map(|value| value.number()).filter(|&number| number != 0).collect();
            Value::EnumNumber(numbers[round % numbers.len()])
        }
        Kind::String => Value::String(format!("text {number}")),
        Kind::Bytes => Value::Bytes(format!("bytes {number}").into_bytes().into()),
        Kind::Bool => Value::Bool(true),
        Kind::Double => Value::F64(f64::from(number) + 0.5),
        Kind::Uint32 => Value::U32(u32::MAX - number),
        Kind::Uint64 => Value::U64(u64::MAX - u64::from(number)),
        Kind::Int32 => Value::I32(-1),
        Kind::Int64 => Value::I64(i64::MIN),
        other => panic!("{}: no sample for {other:?}", field.full_name()),
    }
}

fn published(pool: &DescriptorPool) -> BTreeMap<String, MessageDescriptor> {
    let foreign = |message: &MessageDescriptor| ["envoy.", "google.rpc."].iter().any(|start| message.full_name().starts_with(start));
    pool.all_messages().filter(|m| foreign(m) && !m.is_map_entry()).map(|m| (m.full_name().to_owned(), m)).collect()
}

/// Aim: no message of ours escapes the comparison.
#[test]
fn every_message_of_the_subset_is_listed() {
    let ours: BTreeSet<_> = published(&pool()).into_keys().collect();
    assert_eq!(hops().into_keys().collect::<BTreeSet<_>>(), ours);
}

/// Aim: each field has the published number and type.
#[test]
fn every_field_survives_the_published_type() {
    let hops = hops();
    for (name, descriptor) in published(&pool()) {
        for sent in (0..ROUNDS).flat_map(|round| samples(&descriptor, round)) {
            let hop = hops[&name](&sent.encode_to_vec());
            // No assert_eq: a dynamic message prints its whole schema.
            let back = DynamicMessage::decode(descriptor.clone(), hop.bytes.as_slice()).unwrap();
            assert!(back == sent, "{name} loses a field there: sent {:?}, back {:?}", sent.encode_to_vec(), hop.bytes);
            // Bytes are printed otherwise there; that they are the same was seen above.
            let strange: Vec<_> = hop.ours.difference(&hop.theirs).filter(|fact| !fact.contains(": b\"")).collect();
            assert!(strange.is_empty(), "{name} reads differently there: {strange:?}");
        }
    }
}

/// Aim: stock clients find the service.
#[test]
fn services_have_their_published_names() {
    use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server as theirs;
    use proto::xds::discovery::aggregated_discovery_service_server as ours;
    assert_eq!(ours::SERVICE_NAME, theirs::SERVICE_NAME);
    use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_service_server as limits_theirs;
    use proto::xds::ratelimit::rate_limit_service_server as limits_ours;
    assert_eq!(limits_ours::SERVICE_NAME, limits_theirs::SERVICE_NAME);
    use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server as logs_theirs;
    use proto::xds::accesslog::access_log_service_server as logs_ours;
    assert_eq!(logs_ours::SERVICE_NAME, logs_theirs::SERVICE_NAME);
}
