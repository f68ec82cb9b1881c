//! How a destination is treated, whichever rule leads there: from [`proto::mesh::ClusterPolicy`].

use std::time::Duration;

use crate::budget::RetryBudget;
use crate::gate::Limits;
use crate::health::{ActiveCheck, Outlier};

/// Compiled policy of a cluster. The default is what a cluster without one gets (kinds, "defaults"), but for outlier detection, which
/// the control plane writes out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterPolicy {
    /// Who takes the next request.
    pub balance: Balance,
    /// Bounds on what is under way.
    pub limits: Limits,
    /// When endpoints are thrown out for how they answer.
    pub outlier: Option<Outlier>,
    /// How endpoints are asked whether they are well.
    pub check: Option<ActiveCheck>,
    /// Bound on retries.
    pub budget: RetryBudget,
    /// Endpoints can be named by session tokens.
    pub sessions: bool,
    /// The name whose addresses are the endpoints, which the proxy finds out; `None`: the control plane lists them.
    pub resolves: Option<Box<OutsideName>>,
}

/// A host outside the mesh.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OutsideName {
    /// Its name, in lower case, without a dot at its end.
    pub host: Box<str>,
    /// The port of all its addresses.
    pub port: u16,
}

/// Who takes the next request.
#[derive(Clone, Debug, PartialEq)]
pub struct Balance {
    /// The choice among equals.
    pub algorithm: Algorithm,
    /// Time over which a new endpoint's weight grows from a tenth to the whole. Not for hashes.
    pub slow_start: Option<Duration>,
    /// Which endpoints go first by where they are.
    pub prefer: Prefer,
    /// Below this share of healthy endpoints of the nearer ones, per cent, the further take the rest in proportion.
    pub failover_below_percent: f64,
    /// Below this share of healthy endpoints of all, per cent, health is disregarded; 0: never.
    pub panic_below_percent: f64,
}

impl Default for Balance {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::LeastRequest,
            slow_start: None,
            prefer: Prefer::Anywhere,
            failover_below_percent: FAILOVER_BELOW_PERCENT,
            panic_below_percent: 0.0,
        }
    }
}

/// Where a policy with locality does not say (kinds, `TrafficPolicy`).
const FAILOVER_BELOW_PERCENT: f64 = 70.0;

/// The choice among equals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// Of two drawn by weight, the one with fewer requests in flight.
    #[default]
    LeastRequest,
    /// Of two drawn by weight, the one with the smaller product of recent latency and requests in flight.
    PeakEwma,
    /// One after the other, by weight.
    RoundRobin,
    /// Drawn by weight.
    Random,
    /// By hash, on a ring of points.
    RingHash,
    /// By hash, in a table that the endpoints fill in turn.
    Maglev,
}

impl Algorithm {
    /// As users write it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::LeastRequest => "LeastRequest",
            Self::PeakEwma => "PeakEwma",
            Self::RoundRobin => "RoundRobin",
            Self::Random => "Random",
            Self::RingHash => "RingHash",
            Self::Maglev => "Maglev",
        }
    }

    /// Whether the request's hash decides.
    pub const fn hashes(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }
}

/// Which endpoints go first by where they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefer {
    /// It does not matter.
    #[default]
    Anywhere,
    /// Those in the proxy's own zone, then those in its region.
    Zone,
    /// Those in the proxy's own region.
    Region,
}

impl Prefer {
    /// As users write it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Anywhere => "None",
            Self::Zone => "Zone",
            Self::Region => "Region",
        }
    }
}
