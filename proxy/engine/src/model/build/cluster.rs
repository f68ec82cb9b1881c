//! Clusters, from Envoy's `Cluster`.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use prost::Name;
use prost_types::Any;
use proto::names::{POLICY, fact};
use proto::xds::cluster::circuit_breakers::Thresholds;
use proto::xds::cluster::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbConfig, LbPolicy, LeastRequestLbConfig, TransportSocketMatch,
};
use proto::xds::cluster::{CircuitBreakers, Cluster as Raw, LoadBalancingPolicy, load_balancing_policy};
use proto::xds::core::{Http1ProtocolOptions, Metadata, RoutingPriority, TransportSocket, TypedExtensionConfig};
use proto::xds::endpoint::ClusterLoadAssignment;
use proto::xds::types::Percent;
use proto::xds::upstream_http::HttpProtocolOptions;
use proto::xds::upstream_http::http_protocol_options::explicit_http_config::ProtocolConfig;
use proto::xds::upstream_http::http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig};
use proto::xds::{core, least_request};

use super::secret::Secrets;
use super::transport::{self, Security, config_source};
use super::{CONNECT_TIMEOUT_DEFAULT, INBOUND_CLUSTER, cluster_policy, duration, endpoint, metadata, same_name, tls, unpack};
use crate::model::{Cluster, ClusterKind, ClusterLive, ClusterPolicy, EndpointCell, Named, OutsideName, Protocol};
use crate::rejected::{Wrong, refuse};

/// Fewest entries before dead ones are looked for.
const PRUNE_FLOOR: usize = 256;
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A cluster that has not met its endpoints yet.
pub(super) struct ClusterDraft {
    cluster: Cluster,
    /// Name of the assignment with its endpoints.
    pub(super) assignment: String,
}

/// What is the same for every cluster of a name, for as long as one lives.
#[derive(Debug, Default)]
pub(super) struct Lives {
    by_name: HashMap<Arc<str>, (Weak<EndpointCell>, Weak<ClusterLive>)>,
    /// Size at which dead entries are looked for.
    prune_at: usize,
}

impl Lives {
    /// Joins a cluster with what former ones of its name left; whether there was none.
    pub(super) fn adopt(&mut self, draft: ClusterDraft) -> (Cluster, bool) {
        let mut cluster = draft.cluster;
        let known = self.by_name.get(&cluster.name).and_then(|(cell, live)| Some((cell.upgrade()?, live.upgrade()?)));
        if let Some((cell, live)) = known {
            (cluster.endpoints, cluster.live) = (cell, live);
            return (cluster, false);
        }
        if self.by_name.len() >= self.prune_at.max(PRUNE_FLOOR) {
            self.by_name.retain(|_, (cell, _)| cell.strong_count() > 0);
            self.prune_at = 2 * self.by_name.len();
        }
        self.by_name.insert(cluster.name.clone(), (Arc::downgrade(&cluster.endpoints), Arc::downgrade(&cluster.live)));
        (cluster, true)
    }
}

pub(super) fn compile(name: &str, raw: &Raw, secrets: &mut Secrets) -> Result<ClusterDraft, Wrong> {
    let Raw {
        transport_socket_matches,
        name: inner,
        alt_stat_name,
        cluster_discovery_type,
        eds_cluster_config,
        connect_timeout,
        lb_policy,
        load_assignment,
        circuit_breakers,
        typed_extension_protocol_options,
        upstream_bind_config,
        lb_config,
        common_lb_config,
        transport_socket,
        metadata,
        load_balancing_policy,
        respect_dns_ttl,
    } = raw;
    same_name(name, inner, "name")?;
    refuse(!alt_stat_name.is_empty(), "alt_stat_name")?;
    refuse(upstream_bind_config.is_some(), "upstream_bind_config")?;
    let kind = kind(name, cluster_discovery_type.as_ref())?;
    let is_resolved =
        matches!(cluster_discovery_type, Some(ClusterDiscoveryType::Type(value)) if *value == DiscoveryType::StrictDns as i32);
    let resolves = outside(name, (is_resolved, *respect_dns_ttl), load_assignment.as_ref())?;
    refuse(is_resolved && eds_cluster_config.is_some(), "eds_cluster_config")?;
    let assignment = assignment(name, eds_cluster_config.as_ref(), kind)?;
    panic_threshold(common_lb_config.as_ref())?;
    balancing((*lb_policy, lb_config.as_ref(), load_balancing_policy.as_ref()), kind)?;
    limits(circuit_breakers.as_ref())?;
    let tls = sockets((transport_socket_matches, transport_socket.as_ref()), kind, secrets)?;
    let connect_timeout = duration(connect_timeout.as_ref(), "connect_timeout")?.unwrap_or(CONNECT_TIMEOUT_DEFAULT);
    if connect_timeout == Duration::ZERO {
        return Err(Wrong::new("connect_timeout", "must be longer than 0s"));
    }
    let at = || format!("typed_extension_protocol_options[\"{POLICY}\"]");
    let policy = match typed_extension_protocol_options.get(POLICY) {
        Some(raw) => unpack(raw).and_then(|raw| cluster_policy::compile(&raw, kind)).map_err(|wrong| wrong.within(at()))?,
        None => ClusterPolicy::default(),
    };
    let metadata = metadata.as_ref();
    metadata::only(metadata, &[fact::NAMESPACE, fact::SERVICE, fact::PROTOCOL])?;
    let cluster = Cluster {
        name: name.into(),
        namespace: metadata::text_or_empty(metadata, fact::NAMESPACE)?.into(),
        service: metadata::text_or_empty(metadata, fact::SERVICE)?.into(),
        protocol: protocol(typed_extension_protocol_options, metadata)?,
        connect_timeout,
        kind,
        tls,
        policy: Arc::new(ClusterPolicy { resolves, ..policy }),
        endpoints: Arc::default(),
        live: Arc::default(),
    };
    Ok(ClusterDraft { cluster, assignment })
}

fn kind(name: &str, raw: Option<&ClusterDiscoveryType>) -> Result<ClusterKind, Wrong> {
    let Some(ClusterDiscoveryType::Type(value)) = raw else {
        return Err(Wrong::new("type", "is missing: EDS, STRICT_DNS or ORIGINAL_DST"));
    };
    match DiscoveryType::try_from(*value) {
        Ok(DiscoveryType::Eds | DiscoveryType::StrictDns) => Ok(ClusterKind::Endpoints),
        Ok(DiscoveryType::OriginalDst) if name == INBOUND_CLUSTER => Ok(ClusterKind::Local),
        Ok(DiscoveryType::OriginalDst) => Ok(ClusterKind::OriginalDestination),
        Ok(other) => Err(Wrong::unsupported(format!("type {}", other.as_str_name()))),
        Err(_) => Err(Wrong::new("type", format!("unknown value {value}"))),
    }
}

/// The name whose addresses are the endpoints: of STRICT_DNS, by the time that each record may be kept.
fn outside(
    name: &str,
    (is_resolved, respect_dns_ttl): (bool, bool),
    raw: Option<&ClusterLoadAssignment>,
) -> Result<Option<Box<OutsideName>>, Wrong> {
    if !is_resolved {
        refuse(raw.is_some(), "load_assignment")?;
        return refuse(respect_dns_ttl, "respect_dns_ttl").map(|()| None);
    }
    if !respect_dns_ttl {
        return Err(Wrong::new("respect_dns_ttl", "must be true: addresses are kept as long as their records say"));
    }
    let raw = raw.ok_or_else(|| Wrong::new("load_assignment", "is missing: it names the host"))?;
    endpoint::outside(name, raw).map(|name| Some(Box::new(name))).map_err(|wrong| wrong.within("load_assignment"))
}

fn assignment(name: &str, raw: Option<&EdsClusterConfig>, kind: ClusterKind) -> Result<String, Wrong> {
    let Some(EdsClusterConfig { eds_config, service_name }) = raw else {
        return Ok(name.to_owned());
    };
    if kind != ClusterKind::Endpoints {
        return Err(Wrong::new("eds_cluster_config", "belongs to clusters of type EDS only"));
    }
    config_source(eds_config.as_ref(), "eds_cluster_config.eds_config")?;
    Ok(if service_name.is_empty() { name.to_owned() } else { service_name.clone() })
}

/// Endpoints known dead get nothing while one lives.
fn panic_threshold(raw: Option<&CommonLbConfig>) -> Result<(), Wrong> {
    let Some(CommonLbConfig { healthy_panic_threshold }) = raw else { return Ok(()) };
    let zero = healthy_panic_threshold.as_ref().is_none_or(|Percent { value }| *value == 0.0);
    if zero { Ok(()) } else { Err(Wrong::new("common_lb_config.healthy_panic_threshold", "must be 0")) }
}

/// One balancer is built in: least request over two. A cluster that is no set of endpoints has nothing to balance.
fn balancing((policy, config, policies): (i32, Option<&LbConfig>, Option<&LoadBalancingPolicy>), kind: ClusterKind) -> Result<(), Wrong> {
    let policy = LbPolicy::try_from(policy).map_err(|_| Wrong::new("lb_policy", format!("unknown value {policy}")))?;
    if kind != ClusterKind::Endpoints {
        refuse(policies.is_some(), "load_balancing_policy")?;
        refuse(config.is_some(), "least_request_lb_config")?;
        let fits = policy == LbPolicy::ClusterProvided;
        return if fits { Ok(()) } else { Err(Wrong::new("lb_policy", "must be CLUSTER_PROVIDED for a cluster of type ORIGINAL_DST")) };
    }
    if let Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig { choice_count })) = config {
        two(*choice_count, "least_request_lb_config.choice_count")?;
    }
    match (policies, policy) {
        (Some(policies), _) => first_known(policies).map_err(|wrong| wrong.within("load_balancing_policy")),
        (None, LbPolicy::LeastRequest) => Ok(()),
        (None, other) => Err(Wrong::new("lb_policy", format!("{} is not supported by this proxy: LEAST_REQUEST", other.as_str_name()))),
    }
}

/// It goes before `lb_policy`, which is then for clients that do not know it. The first policy that the client knows counts; the others are
/// for other clients, and their names are labels.
fn first_known(LoadBalancingPolicy { policies }: &LoadBalancingPolicy) -> Result<(), Wrong> {
    let known = least_request::LeastRequest::type_url();
    for (index, load_balancing_policy::Policy { typed_extension_config }) in policies.iter().enumerate() {
        let Some(TypedExtensionConfig { name: _, typed_config: Some(config) }) = typed_extension_config else { continue };
        if config.type_url == known {
            let at = |wrong: Wrong| wrong.within(format!("policies[{index}]"));
            let least_request::LeastRequest { choice_count } = unpack(config).map_err(at)?;
            return two(choice_count, "least_request.choice_count").map_err(at);
        }
    }
    Err(Wrong::new("", "names no policy that this proxy knows: least_request"))
}

fn two(choices: Option<u32>, field: &str) -> Result<(), Wrong> {
    if choices.is_none_or(|count| count == 2) { Ok(()) } else { Err(Wrong::new(field, "must be 2")) }
}

/// Envoy's own defaults bite, so "no limit" is written out as the largest number. Real limits are not carried out yet.
fn limits(raw: Option<&CircuitBreakers>) -> Result<(), Wrong> {
    let Some(CircuitBreakers { thresholds }) = raw else { return Ok(()) };
    for (index, threshold) in thresholds.iter().enumerate() {
        let at = |field: &str| format!("circuit_breakers.thresholds[{index}].{field}");
        let Thresholds { priority, max_connections, max_pending_requests, max_requests, max_retries } = threshold;
        // No limit is no limit, whatever the priority.
        RoutingPriority::try_from(*priority).map_err(|_| Wrong::new(at("priority"), format!("unknown value {priority}")))?;
        for (limit, field) in [
            (max_connections, "max_connections"),
            (max_pending_requests, "max_pending_requests"),
            (max_requests, "max_requests"),
            (max_retries, "max_retries"),
        ] {
            refuse(limit.is_some_and(|limit| limit != u32::MAX), &at(field))?;
        }
    }
    Ok(())
}

/// Which transport an endpoint takes follows from its identity: mesh TLS with one; without, plaintext or TLS to who proves a name: just what
/// these say. Where it is TLS to who proves a name, an application of the mesh proves it as well, inside mesh TLS.
fn sockets(
    (matches, rest): (&[TransportSocketMatch], Option<&TransportSocket>),
    kind: ClusterKind,
    secrets: &mut Secrets,
) -> Result<Option<Arc<Named>>, Wrong> {
    refuse(!matches.is_empty() && kind != ClusterKind::Endpoints, "transport_socket_matches")?;
    let mut everybody: Option<Option<Arc<Named>>> = None;
    for (index, entry) in matches.iter().enumerate() {
        let at = |wrong: Wrong| wrong.within(format!("transport_socket_matches[{index}]"));
        // The name is a label.
        let TransportSocketMatch { name: _, r#match: wanted, transport_socket } = entry;
        let socket = transport_socket.as_ref().ok_or_else(|| at(Wrong::new("transport_socket", "is missing")))?;
        let inside = |wrong: Wrong| at(wrong.within("transport_socket"));
        if everybody.is_some() {
            // The first that fits counts.
            return Err(at(Wrong::new("", "comes after the one for every endpoint")));
        }
        if wanted.as_ref().is_none_or(|wanted| wanted.fields.is_empty()) {
            everybody = Some(tls::named(socket, secrets).map_err(inside)?);
        } else if transport::upstream(socket).map_err(inside)? != Security::Mesh || !wanted.as_ref().is_some_and(metadata::mesh_mode) {
            return Err(at(Wrong::new("match", "is neither mesh TLS by tlsMode nor the rest")));
        }
    }
    let named = everybody.flatten();
    match rest.map(transport::upstream).transpose().map_err(|wrong| wrong.within("transport_socket"))? {
        None | Some(Security::Plain) => Ok(named),
        Some(Security::Mesh) => Err(Wrong::new("transport_socket", "is for endpoints without an identity: plaintext")),
    }
}

/// Our metadata says it most precisely; Envoy's protocol options must not contradict, and stand in where there is no metadata.
fn protocol(options: &BTreeMap<String, Any>, metadata: Option<&Metadata>) -> Result<Protocol, Wrong> {
    let at = |key: &str| format!("typed_extension_protocol_options[\"{}\"]", key.escape_debug());
    if let Some(key) = options.keys().find(|key| *key != HTTP_OPTIONS && *key != POLICY) {
        return Err(Wrong::unsupported(at(key)));
    }
    let options = options.get(HTTP_OPTIONS).map(http_options).transpose().map_err(|wrong| wrong.within(at(HTTP_OPTIONS)))?;
    let declared = match metadata::text(metadata, fact::PROTOCOL)? {
        None => return Ok(options.unwrap_or(Protocol::Auto)),
        Some("") => Protocol::Auto,
        Some(text) => Protocol::parse(text).ok_or_else(|| {
            let why = format!("`{}` is not one of http, http1, http2, tcp, auto", text.escape_debug());
            Wrong::new(format!("metadata[\"{}\"].{}", proto::names::METADATA, fact::PROTOCOL), why)
        })?,
    };
    if options.is_some_and(|options| options != declared) {
        return Err(Wrong::new(at(HTTP_OPTIONS), "contradicts the protocol in the metadata"));
    }
    Ok(declared)
}

fn http_options(raw: &Any) -> Result<Protocol, Wrong> {
    let HttpProtocolOptions { upstream_protocol_options } = unpack(raw)?;
    match upstream_protocol_options {
        None => Ok(Protocol::Http1),
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => {
            let UseDownstreamHttpConfig { http_protocol_options, http2_protocol_options } = config;
            let _: Option<Http1ProtocolOptions> = http_protocol_options;
            untuned(http2_protocol_options).map(|()| Protocol::Http)
        }
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config })) => match protocol_config {
            Some(ProtocolConfig::Http2ProtocolOptions(options)) => untuned(Some(options)).map(|()| Protocol::Http2),
            Some(ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions {})) | None => Ok(Protocol::Http1),
        },
    }
}

fn untuned(raw: Option<core::Http2ProtocolOptions>) -> Result<(), Wrong> {
    let Some(core::Http2ProtocolOptions { max_concurrent_streams, initial_stream_window_size, initial_connection_window_size }) = raw
    else {
        return Ok(());
    };
    let tuned = [max_concurrent_streams, initial_stream_window_size, initial_connection_window_size].iter().any(Option::is_some);
    refuse(tuned, "http2_protocol_options")
}
