//! What a policy makes of a cluster.

use std::time::Duration;

use proto::mesh::active_check::Kind as Check;
use proto::mesh::{Balance, ClusterPolicy, Limits, Outlier, RetryBudget};
use proto::words::Protocol;

use super::{CONNECT, defaults, of_service, some};
use crate::translate::attach::Backend;
use crate::world::Index;
use crate::world::traffic::{TrafficSettings, UpstreamProtocol};

/// Everything that policies say of one cluster, defaults included.
pub(in crate::translate) struct ClusterTraits {
    /// What travels beside Envoy's fields.
    pub policy: ClusterPolicy,
    /// TCP connect and TLS handshake together.
    pub connect: Duration,
    /// What it speaks, where a policy says so.
    pub protocol: Option<Protocol>,
}

/// The traits of a Service port; `None`: of an instance's or a Gateway's own address, which stands for one endpoint. Whoever calls it wants
/// that one, so nothing is ejected.
pub(in crate::translate) fn of_cluster(index: &Index, service: Option<&Backend>, sessions: bool) -> ClusterTraits {
    let Some(backend) = service else {
        let policy = ClusterPolicy { outlier: None, ..policy(&defaults(), None, sessions) };
        return ClusterTraits { policy, connect: CONNECT, protocol: None };
    };
    let mut settings = of_service(index, backend);
    settings.fill(&defaults());
    ClusterTraits {
        policy: policy(&settings, Some(host(index, backend)), sessions),
        connect: settings.connect.unwrap_or(CONNECT),
        protocol: match settings.upstream_protocol {
            Some(UpstreamProtocol::Http1) => Some(Protocol::Http1),
            Some(UpstreamProtocol::Http2) => Some(Protocol::Http2),
            // Bytes make the whole port opaque, see `protocol::of_service`.
            Some(UpstreamProtocol::Auto | UpstreamProtocol::Tcp) | None => None,
        },
    }
}

/// What its endpoints are called by.
fn host(index: &Index, backend: &Backend) -> String {
    let (namespace, name) = &backend.service;
    backend.outside(index).map_or_else(|| format!("{name}.{namespace}"), |(_, spec)| spec.hostname.clone())
}

/// `said` has every default filled in.
fn policy(said: &TrafficSettings, host: Option<String>, sessions: bool) -> ClusterPolicy {
    let mut check = said.active.clone();
    if let Some(Check::Http(http)) = check.as_mut().and_then(|check| check.kind.as_mut())
        && let Some(host) = host
    {
        http.host = host;
    }
    ClusterPolicy {
        balance: Some(Balance {
            algorithm: said.algorithm.unwrap_or_default().into(),
            slow_start: some(said.slow_start),
            prefer: said.prefer.unwrap_or_default().into(),
            failover_below_healthy_percent: said.failover_percent.unwrap_or_default(),
            panic_below_healthy_percent: said.panic_percent.unwrap_or_default(),
        }),
        limits: limits(said),
        outlier: outlier(said),
        check,
        budget: Some(RetryBudget {
            percent: said.budget_percent.unwrap_or_default(),
            min_per_second: said.budget_per_second.unwrap_or_default(),
        }),
        sessions,
    }
}

fn limits(said: &TrafficSettings) -> Option<Limits> {
    let limits = Limits {
        connections: said.connections.unwrap_or_default(),
        requests: said.requests.unwrap_or_default(),
        pending: said.pending.unwrap_or_default(),
        pending_timeout: some(said.pending_timeout),
        requests_per_connection: said.requests_per_connection.unwrap_or_default(),
    };
    // How long to wait means nothing where nobody waits.
    let any = [limits.connections, limits.requests, limits.pending, limits.requests_per_connection].iter().any(|limit| *limit > 0);
    any.then_some(limits)
}

/// Whether anything can be ejected.
pub(in crate::translate) fn ejects(said: &TrafficSettings) -> bool {
    let counts = [said.consecutive_errors, said.consecutive_connect_failures].into_iter().flatten().any(|count| count > 0);
    let rates = [said.success_rate_percent, said.latency_factor].into_iter().flatten().any(|rate| rate > 0.0);
    (counts || rates) && said.max_ejected_percent.is_none_or(|percent| percent > 0.0)
}

fn outlier(said: &TrafficSettings) -> Option<Outlier> {
    ejects(said).then(|| Outlier {
        consecutive_errors: said.consecutive_errors.unwrap_or_default(),
        consecutive_connect_failures: said.consecutive_connect_failures.unwrap_or_default(),
        success_rate_min_percent: said.success_rate_percent.unwrap_or_default(),
        latency_factor: said.latency_factor.unwrap_or_default(),
        interval: some(said.outlier_interval),
        eject_for: some(said.eject_for),
        max_ejected_percent: said.max_ejected_percent.unwrap_or_default(),
    })
}
