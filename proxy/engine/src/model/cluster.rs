//! Clusters: named sets of endpoints, and how they are spoken to.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::set::TIERS_MAX;
use super::{ClusterPolicy, Ejected, Endpoint, EndpointCell, Named, Protocol};
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
}

impl Cluster {
    /// Books how an attempt at one of its endpoints ended. Where that throws endpoints out, says why: the shell counts it. A good answer
    /// of an endpoint in good standing costs a few loads.
    pub fn told(&self, endpoint: &Arc<Endpoint>, outcome: Outcome, now: Moment) -> Option<Ejected> {
        if let (Outcome::Answered { took, .. }, Some(true)) = (outcome, outcome.good()) {
            self.live.sketch.record(took);
        }
        self.endpoints.told(&self.policy, endpoint, outcome, now)
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
