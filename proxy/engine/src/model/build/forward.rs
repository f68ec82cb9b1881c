//! Weighted backends as compiled: clusters still by name. Linking is in `link`.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use proto::mesh::{BackendPolicy, RoutePolicy};
use proto::xds::route::route_action::{ClusterNotFoundResponseCode, ClusterSpecifier, MaxStreamDuration};
use proto::xds::route::{RouteAction, WeightedCluster, weighted_cluster};
use proto::xds::tcp_proxy::TcpProxy;
use proto::xds::tcp_proxy::tcp_proxy::{self as tcp_proxy, ClusterSpecifier as TcpCluster};

use super::policy::{self, Link, Policies, Timeouts};
use super::{OPAQUE_IDLE_DEFAULT, timeout};
use crate::filter::{Filter, RequestHeaders, ResponseHeaders};
use crate::model::{Backend, Forward, Steps};
use crate::raw::duration;
use crate::rejected::{Wrong, refuse};

/// Silence that ends a client's datagrams where nothing says one.
const DATAGRAM_IDLE_DEFAULT: Duration = Duration::from_secs(60);
/// Most backends of one rule.
const BACKENDS_MAX: usize = 1024;

/// `headers` are the operations of the rule itself and of the levels above, and what they were compiled from.
pub(super) fn http(
    raw: &RouteAction,
    policy: &RoutePolicy,
    headers: (&[Filter], &[u8]),
    policies: &mut Policies,
) -> Result<Forward<Link>, Wrong> {
    let at = |wrong: Wrong| wrong.within("route");
    let RouteAction {
        cluster_not_found_response_code,
        prefix_rewrite,
        regex_rewrite,
        timeout: whole,
        idle_timeout,
        retry_policy,
        max_stream_duration,
        cluster_specifier,
        host_rewrite_specifier,
    } = raw;
    refuse(!prefix_rewrite.is_empty(), "prefix_rewrite").map_err(at)?;
    refuse(regex_rewrite.is_some(), "regex_rewrite").map_err(at)?;
    refuse(host_rewrite_specifier.is_some(), "host_rewrite_literal").map_err(at)?;
    refuse(retry_policy.is_some(), "retry_policy").map_err(at)?;
    let unavailable = ClusterNotFoundResponseCode::ServiceUnavailable as i32;
    refuse(*cluster_not_found_response_code != unavailable, "cluster_not_found_response_code").map_err(at)?;
    let backends = match cluster_specifier {
        None => return Err(at(Wrong::new("cluster", "is missing"))),
        Some(ClusterSpecifier::Cluster(name)) => vec![backend(1, Link::named(name, "cluster").map_err(at)?, &plain(policies)?)],
        Some(ClusterSpecifier::WeightedClusters(WeightedCluster { clusters })) => {
            let one = |(index, raw): (usize, &weighted_cluster::ClusterWeight)| {
                weighted(raw, policies).map_err(|wrong| at(wrong.within(format!("weighted_clusters.clusters[{index}]"))))
            };
            clusters.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()?
        }
    };
    let timeouts = Timeouts {
        // Envoy would take 15 s for an absent timeout; ours always say, and "none" is the mesh's default.
        request: timeout(whole.as_ref(), "timeout", None).map_err(at)?,
        idle: timeout(idle_timeout.as_ref(), "idle_timeout", None).map_err(at)?,
        stream: match max_stream_duration {
            None => None,
            Some(MaxStreamDuration { max_stream_duration, grpc_timeout_header_max }) => {
                let at = |wrong: Wrong| at(wrong.within("max_stream_duration"));
                refuse(grpc_timeout_header_max.is_some(), "grpc_timeout_header_max").map_err(at)?;
                timeout(max_stream_duration.as_ref(), "max_stream_duration", None).map_err(at)?
            }
        },
    };
    let compiled = policies.of_rule(policy, timeouts, headers).map_err(policy::within)?;
    let mirrors = policy::mirrors(policy.filters.as_ref(), &policies.memories.canaries).map_err(policy::within)?;
    let asked = policy::asked(policy.edge.as_ref()).map_err(policy::within)?;
    Ok(Forward::new(compiled, checked(backends, "weighted_clusters.clusters").map_err(at)?, mirrors).asking(asked))
}

/// The steps of a backend that has none of its own.
fn plain(policies: &mut Policies) -> Result<Arc<Steps>, Wrong> {
    policies.of_backend(&BackendPolicy::default(), (&[], &[]))
}

fn backend(weight: u32, target: Link, steps: &Arc<Steps>) -> Backend<Link> {
    Backend { weight: u64::from(weight), target, steps: Arc::clone(steps), mirrors: Vec::new(), counts: None }
}

fn weighted(raw: &weighted_cluster::ClusterWeight, policies: &mut Policies) -> Result<Backend<Link>, Wrong> {
    let weighted_cluster::ClusterWeight {
        name,
        weight,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        typed_per_filter_config,
    } = raw;
    let own: BackendPolicy = policy::find(typed_per_filter_config)?;
    let request = RequestHeaders::compile(request_headers_to_add, request_headers_to_remove)?;
    let response = ResponseHeaders::compile(response_headers_to_add, response_headers_to_remove)?;
    let weight = weight.ok_or_else(|| Wrong::new("weight", "is missing"))?;
    let headers = changes(request, response);
    let content = if headers.is_empty() {
        Vec::new()
    } else {
        let bare = weighted_cluster::ClusterWeight {
            name: String::new(),
            weight: None,
            typed_per_filter_config: Default::default(),
            ..raw.clone()
        };
        bare.encode_to_vec()
    };
    let steps = policies.of_backend(&own, (&headers, &content)).map_err(policy::within)?;
    let canaries = &policies.memories.canaries;
    let mirrors = policy::mirrors(own.filters.as_ref(), canaries).map_err(policy::within)?;
    let counts = policy::counts(own.canary.as_ref(), canaries).map_err(|wrong| policy::within(wrong.within("canary")))?;
    Ok(Backend { mirrors, counts, ..backend(weight, Link::named(name, "name")?, &steps) })
}

pub(super) fn changes(request: Option<RequestHeaders>, response: Option<ResponseHeaders>) -> Vec<Filter> {
    request.map(Filter::RequestHeaders).into_iter().chain(response.map(Filter::ResponseHeaders)).collect()
}

pub(super) fn tcp(raw: &TcpProxy, policies: &mut Policies) -> Result<Forward<Link>, Wrong> {
    let TcpProxy { stat_prefix, idle_timeout, cluster_specifier } = raw;
    // Envoy asks for the name of its own statistics, which this proxy does not keep.
    if !matches!(stat_prefix.as_str(), "" | "tcp") {
        return Err(Wrong::new("stat_prefix", "must be tcp"));
    }
    let steps = plain(policies)?;
    let backends = match cluster_specifier {
        None => return Err(Wrong::new("cluster", "is missing")),
        Some(TcpCluster::Cluster(name)) => vec![backend(1, Link::named(name, "cluster")?, &steps)],
        Some(TcpCluster::WeightedClusters(tcp_proxy::WeightedCluster { clusters })) => {
            let one = |(index, raw): (usize, &tcp_proxy::weighted_cluster::ClusterWeight)| {
                let tcp_proxy::weighted_cluster::ClusterWeight { name, weight } = raw;
                let link = Link::named(name, "name").map_err(|w| w.within(format!("weighted_clusters.clusters[{index}]")))?;
                Ok(backend(*weight, link, &steps))
            };
            clusters.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()?
        }
    };
    let idle = timeout(idle_timeout.as_ref(), "idle_timeout", Some(OPAQUE_IDLE_DEFAULT))?;
    Ok(Forward::new(policies.of_bytes(idle), checked(backends, "weighted_clusters.clusters")?, Vec::new()))
}

/// Where datagrams go, by weight; none: nowhere.
pub(super) fn udp(
    weights: impl Iterator<Item = (String, u32)>,
    idle: Option<&prost_types::Duration>,
    policies: &mut Policies,
) -> Result<Forward<Link>, Wrong> {
    let steps = plain(policies)?;
    let one = |(index, (name, weight)): (usize, (String, u32))| {
        let link = Link::named(&name, "cluster").map_err(|wrong| wrong.within(format!("clusters[{index}]")))?;
        Ok(backend(weight, link, &steps))
    };
    let backends = weights.enumerate().map(one).collect::<Result<Vec<_>, _>>()?;
    let idle = duration(idle, "idle_timeout")?.unwrap_or(DATAGRAM_IDLE_DEFAULT);
    if idle.is_zero() {
        return Err(Wrong::new("idle_timeout", "must be longer than 0s: nothing else ends a session"));
    }
    Ok(Forward::new(policies.of_bytes(Some(idle)), checked(backends, "clusters")?, Vec::new()))
}

/// Bounds number and sum (Envoy's own rule for the sum). A weight of 0 means that no draw falls there.
fn checked(backends: Vec<Backend<Link>>, field: &str) -> Result<Vec<Backend<Link>>, Wrong> {
    if backends.len() > BACKENDS_MAX {
        return Err(Wrong::new(field, format!("holds more than {BACKENDS_MAX} backends")));
    }
    let sum: u64 = backends.iter().map(|backend| backend.weight).sum();
    if sum > u64::from(u32::MAX) {
        return Err(Wrong::new(field, format!("the weights add up to {sum}, more than {}", u32::MAX)));
    }
    Ok(backends)
}
