//! Canary: a candidate version of a Service gets a growing part of its traffic, for as long as it does no worse than the stable one. What its
//! author wants stands here, how it stands in `standing`; what becomes of it is decided by `crate::canary`.

mod read;
mod standing;

use std::time::Duration;

use proto::xds::route::HeaderMatcher;

pub use standing::{CanaryBook, CanaryIndex, CanaryLack, CanaryOverlay, CanaryPhase, CanaryRoute, CanaryStanding, SplitPart, content};

use super::{Name, ObjectKey};

/// Canaries of a mesh that are decided at once; the youngest beyond it are refused.
pub const CANARIES_MAX: usize = 64;
/// Steps of one, written or counted up.
pub const STEPS_MAX: usize = 100;
/// Gates of one.
pub const GATES_MAX: usize = 8;

/// A Canary.
#[derive(Clone, Debug, PartialEq)]
pub struct Canary {
    /// The Service that is called, of the Canary's own namespace.
    pub service: String,
    /// Its port, by number; the two below have it, too.
    pub port: u16,
    /// The Service of the version that is known to be good.
    pub stable: String,
    /// The Service of the version that is tried.
    pub candidate: String,
    /// What the candidate gets, one after the other; `continuous` is counted up to steps. After the last one it has everything.
    pub steps: Vec<CanaryStep>,
    /// What counts as worse.
    pub analysis: CanaryAnalysis,
    /// Who else is asked before a step is over.
    pub gates: Vec<CanaryGate>,
    /// What is done when the candidate is worse.
    pub on_failure: OnFailure,
}

impl Canary {
    /// The Service that is called.
    pub fn called(&self, key: &ObjectKey) -> Name {
        (key.namespace.clone(), self.service.clone())
    }

    /// A digest of what is compared with what: while it stays, what was decided at the end holds.
    pub fn pair(&self) -> String {
        let Self { service, port, stable, candidate, .. } = self;
        proto::epoch::version(format!("{service}:{port} {stable} {candidate}").as_bytes())
    }

    /// A digest of all of it.
    pub fn digest(&self) -> String {
        proto::epoch::version(format!("{self:?}").as_bytes())
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub struct CanaryStep {
    /// What the candidate gets.
    pub share: CanaryShare,
    /// How long it lasts at least; `None`: until the evidence is enough.
    pub hold: Option<Duration>,
    /// Somebody has to approve what follows.
    pub approve: bool,
}

/// What the candidate gets of the requests; the stable version answers all others.
#[derive(Clone, Debug, PartialEq)]
pub enum CanaryShare {
    /// Those with all these headers.
    Match(Vec<HeaderMatcher>),
    /// Copies of so many in a million; the stable version answers.
    Mirror(u32),
    /// So many in a hundred.
    Weight(u8),
}

/// What counts as worse.
#[derive(Clone, Debug, PartialEq)]
pub struct CanaryAnalysis {
    /// The share of failures may be higher than the stable version's by so many points of a hundred.
    pub errors_max_increase_percent: f64,
    /// The quantile of the latency that is compared, in per cent.
    pub latency_quantile: f64,
    /// It may be so many times the stable version's.
    pub latency_max_ratio: f64,
    /// How sure a verdict has to be: a candidate that is not worse is taken for worse with a chance of one less this, at most, however long
    /// one looks.
    pub confidence: f64,
    /// Before a step is over the candidate has answered so many requests.
    pub min_requests: u64,
}

impl Default for CanaryAnalysis {
    fn default() -> Self {
        Self { errors_max_increase_percent: 1.0, latency_quantile: 99.0, latency_max_ratio: 1.2, confidence: 0.99, min_requests: 200 }
    }
}

/// Who is asked beside the mesh's own counts.
#[derive(Clone, Debug, PartialEq)]
pub enum CanaryGate {
    /// A web service: 2xx says yes. Asked when a step would be over otherwise.
    Webhook {
        /// Where.
        url: String,
        /// How long it may take.
        timeout: Duration,
    },
    /// A number that Prometheus has. Asked all along.
    Prometheus {
        /// Where it answers.
        url: String,
        /// The query, of one number.
        query: String,
        /// The number is not below this.
        min: Option<f64>,
        /// The number is not above this.
        max: Option<f64>,
    },
}

/// What is done when the candidate is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// The stable version gets everything.
    #[default]
    Rollback,
    /// Nothing changes until somebody says what.
    Pause,
}

#[cfg(test)]
mod tests;
