//! Weighted backends as compiled: clusters still by name. Linking is in `link`.

use std::time::Duration;

use proto::names::BAD_BACKEND;
use proto::xds::route::route_action::{ClusterNotFoundResponseCode, ClusterSpecifier};
use proto::xds::route::{RouteAction, WeightedCluster, weighted_cluster};
use proto::xds::tcp_proxy::TcpProxy;
use proto::xds::tcp_proxy::tcp_proxy::{self as tcp_proxy, ClusterSpecifier as TcpCluster};

use super::{OPAQUE_IDLE_DEFAULT, timeout};
use crate::filter::{Filter, RequestHeaders, ResponseHeaders, Stage};
use crate::rejected::{Wrong, refuse};

/// Most backends of one rule.
const BACKENDS_MAX: usize = 1024;

/// See [`crate::model::Forward`].
#[derive(Debug)]
pub(super) struct Forward {
    pub(super) backends: Vec<Backend>,
    pub(super) stages: Vec<Stage>,
    pub(super) request_timeout: Option<Duration>,
    pub(super) idle_timeout: Option<Duration>,
}

/// One target with a weight of at least 1.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) weight: u32,
    pub(super) target: Target,
    pub(super) stages: Vec<Stage>,
}

/// Where a backend leads.
#[derive(Debug)]
pub(super) enum Target {
    /// To the cluster of that name, if there is one.
    Cluster(String),
    /// The convention for a bad backend reference: its share is answered 500.
    BadBackend,
}

impl Target {
    fn named(name: &str, field: &str) -> Result<Self, Wrong> {
        match name {
            "" => Err(Wrong::new(field, "is empty")),
            BAD_BACKEND => Ok(Self::BadBackend),
            name => Ok(Self::Cluster(name.to_owned())),
        }
    }
}

/// `stages` are those of the rule itself and of the levels above.
pub(super) fn http(raw: &RouteAction, stages: Vec<Stage>) -> Result<Forward, Wrong> {
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
    refuse(!prefix_rewrite.is_empty(), "prefix_rewrite")?;
    refuse(regex_rewrite.is_some(), "regex_rewrite")?;
    refuse(host_rewrite_specifier.is_some(), "host_rewrite_literal")?;
    refuse(retry_policy.is_some(), "retry_policy")?;
    refuse(max_stream_duration.is_some(), "max_stream_duration")?;
    let unavailable = ClusterNotFoundResponseCode::ServiceUnavailable as i32;
    refuse(*cluster_not_found_response_code != unavailable, "cluster_not_found_response_code")?;
    let backends = match cluster_specifier {
        None => return Err(Wrong::new("cluster", "is missing")),
        Some(ClusterSpecifier::Cluster(name)) => {
            vec![Backend { weight: 1, target: Target::named(name, "cluster")?, stages: Vec::new() }]
        }
        Some(ClusterSpecifier::WeightedClusters(WeightedCluster { clusters })) => {
            let one = |(index, raw): (usize, &weighted_cluster::ClusterWeight)| {
                weighted(raw).map_err(|wrong| wrong.within(format!("weighted_clusters.clusters[{index}]")))
            };
            clusters.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()?
        }
    };
    Ok(Forward {
        backends: checked(backends, "weighted_clusters.clusters")?,
        stages,
        // Envoy would take 15 s for an absent timeout; ours always say, and "none" is the mesh's default.
        request_timeout: timeout(whole.as_ref(), "timeout", None)?,
        idle_timeout: timeout(idle_timeout.as_ref(), "idle_timeout", None)?,
    })
}

fn weighted(raw: &weighted_cluster::ClusterWeight) -> Result<Backend, Wrong> {
    let weighted_cluster::ClusterWeight {
        name,
        weight,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        typed_per_filter_config,
    } = raw;
    refuse(!typed_per_filter_config.is_empty(), "typed_per_filter_config")?;
    let request = RequestHeaders::compile(request_headers_to_add, request_headers_to_remove)?;
    let response = ResponseHeaders::compile(response_headers_to_add, response_headers_to_remove)?;
    let weight = weight.ok_or_else(|| Wrong::new("weight", "is missing"))?;
    Ok(Backend { weight, target: Target::named(name, "name")?, stages: stages(request, response) })
}

pub(super) fn stages(request: Option<RequestHeaders>, response: Option<ResponseHeaders>) -> Vec<Stage> {
    let request = request.map(|filter| Stage::Local(Filter::RequestHeaders(filter)));
    let response = response.map(|filter| Stage::Local(Filter::ResponseHeaders(filter)));
    request.into_iter().chain(response).collect()
}

pub(super) fn tcp(raw: &TcpProxy) -> Result<Forward, Wrong> {
    let TcpProxy { stat_prefix, idle_timeout, cluster_specifier } = raw;
    // Envoy asks for the name of its own statistics, which this proxy does not keep.
    if !matches!(stat_prefix.as_str(), "" | "tcp") {
        return Err(Wrong::new("stat_prefix", "must be tcp"));
    }
    let backends = match cluster_specifier {
        None => return Err(Wrong::new("cluster", "is missing")),
        Some(TcpCluster::Cluster(name)) => {
            vec![Backend { weight: 1, target: Target::named(name, "cluster")?, stages: Vec::new() }]
        }
        Some(TcpCluster::WeightedClusters(tcp_proxy::WeightedCluster { clusters })) => {
            let one = |(index, raw): (usize, &tcp_proxy::weighted_cluster::ClusterWeight)| {
                let tcp_proxy::weighted_cluster::ClusterWeight { name, weight } = raw;
                let target = Target::named(name, "name").map_err(|w| w.within(format!("weighted_clusters.clusters[{index}]")))?;
                Ok(Backend { weight: *weight, target, stages: Vec::new() })
            };
            clusters.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()?
        }
    };
    Ok(Forward {
        backends: checked(backends, "weighted_clusters.clusters")?,
        stages: Vec::new(),
        request_timeout: None,
        idle_timeout: timeout(idle_timeout.as_ref(), "idle_timeout", Some(OPAQUE_IDLE_DEFAULT))?,
    })
}

/// Bounds number and sum (Envoy's own rule for the sum); a weight of 0 means never.
fn checked(mut backends: Vec<Backend>, field: &str) -> Result<Vec<Backend>, Wrong> {
    if backends.len() > BACKENDS_MAX {
        return Err(Wrong::new(field, format!("holds more than {BACKENDS_MAX} backends")));
    }
    let sum: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    if sum > u64::from(u32::MAX) {
        return Err(Wrong::new(field, format!("the weights add up to {sum}, more than {}", u32::MAX)));
    }
    backends.retain(|backend| backend.weight > 0);
    Ok(backends)
}
