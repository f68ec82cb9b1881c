//! Endpoints and their live counters.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use proto::identity::Identity;

/// Holds the current [`EndpointSet`] of a cluster.
#[derive(Debug, Default)]
pub struct EndpointCell(pub ArcSwap<EndpointSet>);

/// Endpoints at one moment.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// Healthy endpoints, the ones to pick from.
    pub ready: Vec<Arc<Endpoint>>,
    /// Known but not to be picked (draining, unhealthy); for dumps.
    pub other: Vec<Arc<Endpoint>>,
    /// Running sums of the weights of `ready`; empty when all weights are equal.
    pub(crate) weight_sums: Vec<u64>,
}

impl EndpointSet {
    /// A set of endpoints to pick from, and of those that are only known.
    pub fn new(ready: Vec<Arc<Endpoint>>, other: Vec<Arc<Endpoint>>) -> Self {
        let equal = ready.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        let mut sum = 0_u64;
        let mut running = |endpoint: &Arc<Endpoint>| {
            sum += u64::from(endpoint.weight.max(1));
            sum
        };
        let weight_sums = if equal { Vec::new() } else { ready.iter().map(&mut running).collect() };
        Self { ready, other, weight_sums }
    }
}

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
    /// Counters that outlive snapshots.
    pub live: Arc<EndpointLive>,
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

/// Live counters of an endpoint, carried from set to set (and shared between clusters) by address.
#[derive(Debug, Default)]
pub struct EndpointLive {
    /// Requests (or opaque connections) in flight.
    pub in_flight: AtomicU32,
    /// All requests ever sent.
    pub sent: AtomicU64,
    /// Consecutive connect failures, for the tie-break away from dead endpoints.
    pub connect_failures: AtomicU32,
}

impl EndpointLive {
    /// Counts one request (or opaque connection) until the guard drops.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.sent.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// A connection was made: the endpoint is alive.
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
}

/// One request in flight to an endpoint; dropping it, also on cancel, takes it off the count.
#[derive(Debug)]
pub struct InFlight(Arc<EndpointLive>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
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
