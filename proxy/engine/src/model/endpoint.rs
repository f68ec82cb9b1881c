//! Endpoints and what is known of each while it lives.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::identity::Identity;

use super::Locality;
use crate::Moment;
use crate::health::{Standing, Tally, Trials, Underway, Wellness};
use crate::spread::PeakEwma;

/// One instance's port.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Relative weight, at least 1.
    pub weight: u32,
    /// What the control plane says of it; only `Healthy` ones are picked.
    pub health: Health,
    /// The identity it must prove; `None`: not meshed, plaintext.
    pub identity: Option<Arc<Identity>>,
    /// Namespace of the workload.
    pub namespace: Arc<str>,
    /// Workload label.
    pub workload: Arc<str>,
    /// Instance name; empty when the control plane knows none.
    pub instance: Arc<str>,
    /// Unique per workload in this process; a key for interned metric handles.
    pub workload_id: u32,
    /// Where it runs.
    pub locality: Locality,
    /// What outlives snapshots.
    pub live: Arc<EndpointLive>,
}

/// What the control plane says of an endpoint; see [`Endpoint`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EndpointFacts {
    pub(crate) address: SocketAddr,
    pub(crate) weight: u32,
    pub(crate) health: Health,
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) namespace: Arc<str>,
    pub(crate) workload: Arc<str>,
    pub(crate) instance: Arc<str>,
    pub(crate) workload_id: u32,
    pub(crate) locality: Locality,
}

impl EndpointFacts {
    pub(crate) fn endpoint(&self, live: Arc<EndpointLive>) -> Endpoint {
        let Self { address, weight, health, identity, namespace, workload, instance, workload_id, locality } = self.clone();
        Endpoint { address, weight, health, identity, namespace, workload, instance, workload_id, locality, live }
    }

    /// Whether an endpoint is what these facts say.
    pub(crate) fn are_of(&self, known: &Endpoint) -> bool {
        self.address == known.address
            && self.weight == known.weight
            && self.health == known.health
            && self.identity == known.identity
            && self.namespace == known.namespace
            && self.workload == known.workload
            && self.instance == known.instance
            && self.workload_id == known.workload_id
            && self.locality == known.locality
    }
}

/// The control plane's word on an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// Takes traffic.
    Healthy,
    /// Not ready.
    Unhealthy,
    /// Leaving: finishes what it has.
    Draining,
}

impl Health {
    /// As dumps spell it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Healthy => "Healthy",
            Self::Unhealthy => "Unhealthy",
            Self::Draining => "Draining",
        }
    }
}

/// What is known of an endpoint in one cluster, carried from set to set by address.
#[derive(Debug, Default)]
pub struct EndpointLive {
    /// Requests (or opaque connections) in flight.
    pub in_flight: AtomicU32,
    /// All requests ever sent.
    pub sent: AtomicU64,
    /// Consecutive connect failures, for the tie-break away from dead endpoints.
    pub connect_failures: AtomicU32,
    /// When a connect last failed, or a request was last sent to see whether one succeeds; nanoseconds.
    pub(crate) probed_at: AtomicU64,
    /// Who tries it while it is half-open.
    pub(crate) trials: Trials,
    /// Recent latency.
    pub(crate) latency: PeakEwma,
    /// Runs and intervals that outlier detection goes by.
    pub(crate) tally: Tally,
    /// Whether it is thrown out, half-open included: spares the success path the lock.
    pub(crate) out: AtomicBool,
    /// When it first could be picked; 0: not yet seen by a clock.
    pub(crate) ready_since: AtomicU64,
    standing: Mutex<Standing>,
}

impl EndpointLive {
    /// Counts one request (or opaque connection) until the guard drops.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.sent.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone(), self.trials.enter())
    }

    /// What this proxy thinks of it.
    pub fn wellness(&self) -> Wellness {
        self.standing().wellness()
    }

    /// Its latency as last remembered, where the cluster is balanced by it.
    pub fn ewma(&self) -> Option<Duration> {
        self.latency.last()
    }

    pub(crate) fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens it by half when the time that it is thrown out for is over.
    pub(crate) fn wake(&self, now: Moment) {
        if self.standing().wake(now) {
            self.trials.open();
        }
    }

    /// When it first could be picked, as far as a clock has seen it.
    pub(crate) fn ready_since(&self) -> Option<Moment> {
        let nanos = self.ready_since.load(Ordering::Relaxed);
        (nanos > 0).then(|| Moment::of_nanos(nanos))
    }

    /// A connection was made, or one gave an answer: the endpoint is alive.
    pub fn connected(&self) {
        // The load spares the shared cache line a write in the usual case.
        if self.connect_failures.load(Ordering::Relaxed) != 0 {
            self.connect_failures.store(0, Ordering::Relaxed);
        }
    }

    /// A connection could not be made.
    pub fn connect_failed(&self) {
        let _ = self.connect_failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_add(1));
    }

    /// Whether so much time has passed since a connect last failed that this request may see whether the next succeeds: one at a time.
    /// `may` is asked if so.
    pub(crate) fn begin_probe(&self, wait: Duration, now: Moment, may: impl FnOnce() -> bool) -> bool {
        let last = self.probed_at.load(Ordering::Relaxed);
        now.since(Moment::of_nanos(last)) >= wait
            && may()
            && self.probed_at.compare_exchange(last, now.nanos(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// One request in flight to an endpoint; dropping it, also on cancel, takes it off the count, and ends its trial if it was one.
#[derive(Debug)]
pub struct InFlight(Arc<EndpointLive>, Underway);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.trials.leave(self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_counts_while_it_lives() {
        // Aim: in flight goes up and down with the guard, sent only up, failures start again after a success.
        let live = Arc::new(EndpointLive::default());
        let guards = (live.enter(), live.enter());
        assert_eq!(live.in_flight.load(Ordering::Relaxed), 2);
        drop(guards);
        assert_eq!((live.in_flight.load(Ordering::Relaxed), live.sent.load(Ordering::Relaxed)), (0, 2));
        live.connect_failed();
        live.connect_failed();
        assert_eq!(live.connect_failures.load(Ordering::Relaxed), 2);
        live.connected();
        assert_eq!(live.connect_failures.load(Ordering::Relaxed), 0);
    }
}
