//! TrafficPolicy on its way to proxies. Which settings hold at a place is decided here, field by field: a rule's before its route's,
//! before a Service port's, the Service's, a Gateway listener's, the Gateway's, before the destination's namespace's, before the
//! mesh's; at one place the older object's (`kinds.md`).
//!
//! A rule of a Service's routes goes by that Service, a rule of a Gateway's by the Service of its first backend. What belongs to a
//! destination (balancing, limits, health) goes by each backend's own Service.

mod cluster;
mod inbound;
mod judge;
mod rule;
mod show;

use std::sync::Arc;
use std::time::Duration;

pub(super) use cluster::{ClusterTraits, ejects, of_cluster};
pub(super) use inbound::{InboundTraits, of_inbound, uncounted};
pub(super) use judge::{Ancestor, judge, reference, target_found};
pub(super) use rule::{RulePlace, fill, sessions};
pub use show::{ResolvedSetting, resolved};

use super::attach::{self, Backend};
use crate::world::gateway::Gateway;
use crate::world::traffic::{Algorithm, Place, Prefer, TrafficPolicy, TrafficSettings, UpstreamProtocol};
use crate::world::{Index, Kind, Name, Object, ObjectKey, ServiceView, Spec};

/// The content of a TrafficPolicy.
pub(super) fn content(object: &Object) -> Option<&TrafficPolicy> {
    if let Spec::TrafficPolicy(policy) = &object.spec { Some(policy) } else { None }
}

/// Time for TCP connect and TLS handshake together (`kinds.md`, defaults).
pub(super) const CONNECT: Duration = Duration::from_secs(1);

/// A Gateway of ours.
fn gateway<'a>(index: &'a Index, name: &Name) -> Option<&'a Gateway> {
    index.gateways.get(name).and_then(|object| attach::gateway(object))
}

/// What holds where nobody says anything (`kinds.md`, defaults).
pub(super) fn defaults() -> TrafficSettings {
    TrafficSettings {
        algorithm: Some(Algorithm::LeastRequest),
        slow_start: Some(Duration::ZERO),
        prefer: Some(Prefer::None),
        failover_percent: Some(70.0),
        panic_percent: Some(0.0),
        connect: Some(CONNECT),
        request: Some(Duration::ZERO),
        backend_request: Some(Duration::ZERO),
        idle: Some(Duration::from_secs(3600)),
        stream_idle: Some(Duration::ZERO),
        stream: Some(Duration::ZERO),
        attempts: Some(0),
        budget_percent: Some(20.0),
        budget_per_second: Some(10),
        connections: Some(0),
        requests: Some(0),
        pending: Some(0),
        pending_timeout: Some(Duration::from_secs(1)),
        requests_per_connection: Some(0),
        consecutive_errors: Some(5),
        consecutive_connect_failures: Some(3),
        success_rate_percent: Some(0.0),
        latency_factor: Some(0.0),
        outlier_interval: Some(Duration::from_secs(10)),
        eject_for: Some(Duration::from_secs(30)),
        max_ejected_percent: Some(50.0),
        upstream_protocol: Some(UpstreamProtocol::Auto),
        ..TrafficSettings::default()
    }
}

/// The objects of one place, the oldest first.
fn said<'a>(index: &'a Index, place: &Place) -> impl Iterator<Item = (&'a Arc<Object>, &'a TrafficPolicy)> {
    let objects = index.traffic.get(place).into_iter().flatten();
    objects.filter_map(|object| content(object).map(|policy| (object, policy)))
}

/// What holds at places, the narrowest first. Rate limits of a destination are its servers' to keep, those of a route or Gateway its
/// callers': `callers` says which of the two are meant.
pub(super) fn settings(index: &Index, places: &[Place], callers: bool) -> TrafficSettings {
    let mut all = TrafficSettings::default();
    let mut limits = None;
    for place in places {
        for (_, policy) in said(index, place) {
            if place.of_callers() == callers && limits.is_none() {
                limits.clone_from(&policy.settings.rate_limits);
            }
            all.fill(&policy.settings);
        }
    }
    all.rate_limits = limits;
    all
}

fn section(key: &ObjectKey, name: Option<&str>) -> impl Iterator<Item = Place> + use<> {
    let section = name.filter(|name| !name.is_empty()).map(|name| Place::Section(key.clone(), name.to_owned()));
    section.into_iter().chain([Place::Object(key.clone())])
}

/// A Service port and its Service.
fn of_port(index: &Index, backend: &Backend) -> impl Iterator<Item = Place> + use<> {
    let ports = index.services.get(&backend.service).and_then(ServiceView::service).map_or(&[][..], |service| &service.ports);
    let port = ports.iter().find(|port| port.port == backend.port);
    let key = ObjectKey::new(Kind::Service, &backend.service.0, &backend.service.1);
    section(&key, port.map(|port| port.name.as_str()))
}

/// Whatever holds for every destination of a namespace.
pub(super) fn wide(namespace: &str) -> [Place; 2] {
    [Place::Namespace(namespace.to_owned()), Place::Mesh]
}

/// What holds for callers of a Service port that no rule says more of; without defaults.
fn of_service(index: &Index, backend: &Backend) -> TrafficSettings {
    if index.traffic.is_empty() {
        return TrafficSettings::default();
    }
    let places: Vec<Place> = of_port(index, backend).chain(wide(&backend.service.0)).collect();
    settings(index, &places, false)
}

/// One field of what holds for a Service port.
fn field<T>(index: &Index, backend: &Backend, get: impl Fn(&TrafficSettings) -> Option<T>) -> Option<T> {
    if index.traffic.is_empty() {
        return None;
    }
    let mut places = of_port(index, backend).chain(wide(&backend.service.0));
    places.find_map(|place| said(index, &place).find_map(|(_, policy)| get(&policy.settings)))
}

/// How long an opaque connection to a Service port may be silent, where a policy says so; zero: for ever.
pub(super) fn idle(index: &Index, backend: &Backend) -> Option<Duration> {
    field(index, backend, |said| said.idle)
}

/// The longest of several destinations' idle timeouts, where anybody says one; zero: for ever.
pub(super) fn longest(said: impl Iterator<Item = Option<Duration>>) -> Option<Duration> {
    let said: Vec<Option<Duration>> = said.collect();
    if said.iter().all(Option::is_none) {
        return None;
    }
    let each = said.into_iter().map(|idle| idle.or(defaults().idle).unwrap_or_default());
    each.max_by_key(|idle| if idle.is_zero() { Duration::MAX } else { *idle })
}

/// What a policy says that a Service port speaks.
pub(super) fn upstream_protocol(index: &Index, backend: &Backend) -> Option<UpstreamProtocol> {
    field(index, backend, |said| said.upstream_protocol)
}

/// Whether calls are spread by a hash.
pub(super) fn hashes(settings: &TrafficSettings) -> bool {
    matches!(settings.algorithm, Some(Algorithm::RingHash | Algorithm::Maglev))
}

/// A message's duration; zero is none.
fn some(duration: Option<Duration>) -> Option<prost_types::Duration> {
    duration.filter(|duration| !duration.is_zero()).and_then(|duration| prost_types::Duration::try_from(duration).ok())
}

#[cfg(test)]
mod tests;
