//! Clusters: named sets of endpoints, and how they are spoken to.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::set::TIERS_MAX;
use super::{ClusterPolicy, Ejected, Endpoint, EndpointCell, EndpointFacts, Health, Locality, Named, Protocol};
use crate::Moment;
use crate::budget::Budget;
use crate::gate::Gate;
use crate::health::{Outcome, Probes};
use crate::sketch::Sketch;

/// A named set of endpoints and how they are spoken to.
#[derive(Debug)]
pub struct Cluster {
    /// Resource name.
    pub name: Arc<str>,
    /// Namespace label of the destination Service.
    pub namespace: Arc<str>,
    /// Name label of the destination Service (or instance).
    pub service: Arc<str>,
    /// The protocol the application speaks: `Http` means "as downstream".
    pub protocol: Protocol,
    /// Time for TCP connect and TLS handshake together.
    pub connect_timeout: Duration,
    /// Where connections go.
    pub kind: ClusterKind,
    /// What applications must prove by TLS of their own, inside mesh TLS where the endpoint has an identity; `None`: there is no such TLS. One
    /// value for as long as nothing of it changes.
    pub tls: Option<Arc<Named>>,
    /// How its endpoints are balanced, bounded and judged.
    pub policy: Arc<ClusterPolicy>,
    /// The endpoints now. The one thing that changes inside a snapshot: endpoints travel at once and are not epochs. All clusters of
    /// this name, whatever their epoch, have the same cell.
    pub endpoints: Arc<EndpointCell>,
    /// What is counted across all its endpoints; shared in the same way.
    pub live: Arc<ClusterLive>,
}

/// See [`Cluster::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterKind {
    /// Balanced over [`Cluster::endpoints`].
    Endpoints,
    /// The application beside this proxy, at the original destination's port.
    Local,
    /// The original destination itself, in plaintext.
    OriginalDestination,
}

/// What is kept of a cluster as a whole. It outlives pushes: the next cluster of the same name goes on with it.
#[derive(Debug, Default)]
pub struct ClusterLive {
    /// First attempts, and what they earn for retries and hedges.
    pub budget: Budget,
    /// Bounds what is under way.
    pub gate: Arc<Gate>,
    /// Bounds connections to all its endpoints.
    pub connections: Arc<Gate>,
    /// Latencies, for hedges.
    pub sketch: Sketch,
    /// Whose turn it is, tier by tier; 0 before the first.
    pub(crate) turns: [AtomicU64; TIERS_MAX],
    /// Which requests may see whether endpoints are back whose connects fail.
    pub(crate) probes: Probes,
    /// Of a cluster that is resolved: the number of its workload.
    workload_id: OnceLock<u32>,
}

/// Most addresses of one name that are endpoints; those beyond are left out.
pub const RESOLVED_MAX: usize = 64;

impl Cluster {
    /// Books how an attempt at one of its endpoints ended. Where that throws endpoints out, says why: the shell counts it. A good answer
    /// of an endpoint in good standing costs a few loads.
    pub fn told(&self, endpoint: &Arc<Endpoint>, outcome: Outcome, now: Moment) -> Option<Ejected> {
        if let (Outcome::Answered { took, .. }, Some(true)) = (outcome, outcome.good()) {
            self.live.sketch.record(took);
        }
        self.endpoints.told(&self.policy, endpoint, outcome, now)
    }

    /// Takes the addresses that its name has now (`ClusterPolicy::resolves`): they are its endpoints at once. What is known of those that stay
    /// goes on.
    pub fn resolved(&self, found: &[IpAddr]) {
        let Some(name) = &self.policy.resolves else { return };
        let mut addresses: Vec<SocketAddr> = found.iter().map(|ip| SocketAddr::new(ip.to_canonical(), name.port)).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(RESOLVED_MAX);
        let set = self.endpoints.load();
        let mut known: Vec<SocketAddr> = set.ready.iter().chain(&set.other).map(|endpoint| endpoint.address).collect();
        known.sort_unstable();
        if known == addresses {
            return;
        }
        let workload_id = *self.live.workload_id.get_or_init(next_workload_id);
        let facts = |address: SocketAddr| EndpointFacts {
            address,
            weight: 1,
            health: Health::Healthy,
            identity: None,
            namespace: Arc::clone(&self.namespace),
            workload: Arc::clone(&self.service),
            instance: address.ip().to_string().into(),
            workload_id,
            locality: Locality::default(),
        };
        let listed: Vec<EndpointFacts> = addresses.into_iter().map(facts).collect();
        self.endpoints.list(&self.name, (stamp(), &listed));
    }

    /// Endpoints whose active check is due. Each is due again after an interval, whether its result is told or not; the first time it is
    /// somewhere within one.
    pub fn checks_due(&self, now: Moment) -> Vec<Arc<Endpoint>> {
        self.policy.check.as_ref().map(|check| self.endpoints.checks_due(check, now)).unwrap_or_default()
    }

    /// When to ask [`Cluster::checks_due`] again, unless endpoints change before; `None` without active checks or endpoints.
    pub fn next_check(&self) -> Option<Moment> {
        self.policy.check.as_ref().and_then(|_| self.endpoints.next_check())
    }

    /// Books the result of an active check. Whether that makes the endpoint well or unwell.
    pub fn checked(&self, endpoint: &Arc<Endpoint>, good: bool, now: Moment) -> bool {
        self.policy.check.as_ref().is_some_and(|check| self.endpoints.checked(check, endpoint, good, now))
    }
}

/// A stamp for content, unique in this process and never 0.
pub(crate) fn stamp() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Never given twice in this process, so a metric handle interned under it cannot be another workload's.
pub(crate) fn next_workload_id() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
