//! What a policy makes of a rule's requests. What the route says itself is kept; a policy fills what is absent.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::mesh::{Hedge, RateLimit, Retry, RoutePolicy, RouteTelemetry};
use proto::names;
use proto::xds::route::route::Action;
use proto::xds::route::route_action::{ClusterSpecifier, MaxStreamDuration};
use proto::xds::route::{RouteAction, RouteConfiguration};
use proto::xds::unpack;

use super::{hashes, of_port, of_service, said, section, settings, some, wide};
use crate::translate::attach::Backend;
use crate::world::traffic::{Caller, Place, RetryCause, TrafficSettings};
use crate::world::{Index, Kind, Name, Object, ObjectKey, telemetry};

/// Retry a body of at most this many bytes, where nobody says how many.
const BODY_BUFFER_BYTES: u32 = 65_536;
/// First and longest wait before another attempt, where nobody says one.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(250));
/// How often the first wait of a route's own retry doubles at most, where nobody says a longest one.
const GROWTH: u32 = 10;
/// No wait grows beyond this by itself.
const GROWN_MAX: Duration = Duration::from_secs(24 * 3600);
/// The codes of `RetriableStatus` where nobody lists any.
const STATUSES: [u32; 3] = [502, 503, 504];
/// UNAVAILABLE, likewise.
const GRPC_STATUSES: [u32; 1] = [14];

/// Where a rule stands.
#[derive(Clone, Copy)]
pub(in crate::translate) struct RulePlace<'a> {
    /// Who calls.
    pub caller: &'a Caller,
    /// The route and the rule's own name; `None`: a Service port without routes.
    pub route: Option<(&'a Object, Option<&'a str>)>,
    /// The Gateway and its listener, at an edge.
    pub listener: Option<(&'a Name, &'a str)>,
    /// The Service port that the route is attached to, inside the mesh.
    pub parent: Option<&'a Backend>,
    /// Where the rule's first good backend leads.
    pub backend: Option<&'a Backend>,
}

/// The places that a rule belongs to, the narrowest first: its route, the Service it goes by, and the listener it came in by.
pub(super) fn places(
    index: &Index,
    route: Option<(&Object, Option<&str>)>,
    service: Option<&Backend>,
    listener: Option<(&Name, &str)>,
) -> Vec<Place> {
    let mut places = Vec::new();
    if let Some((route, rule)) = route {
        places.extend(section(&route.key, rule));
    }
    places.extend(service.into_iter().flat_map(|service| of_port(index, service)));
    if let Some((gateway, listener)) = listener {
        places.extend(section(&ObjectKey::new(Kind::Gateway, &gateway.0, &gateway.1), Some(listener)));
    }
    match service {
        Some(service) => places.extend(wide(&service.service.0)),
        None => places.push(Place::Mesh),
    }
    places
}

/// Completes what a route says of one rule: an absent timeout is the policy's, else none; a zero one is none, whatever a policy says.
pub(in crate::translate) fn fill(index: &Index, place: RulePlace<'_>, action: &mut RouteAction, policy: &mut RoutePolicy) {
    if index.traffic.is_empty() {
        attempts(&TrafficSettings::default(), policy);
    } else {
        let places = places(index, place.route, place.parent.or(place.backend), place.listener);
        let said = settings(index, &places, true);
        action.timeout = action.timeout.take().or_else(|| some(said.request));
        action.idle_timeout = some(said.stream_idle).or(action.idle_timeout.take());
        if action.max_stream_duration.is_none()
            && let Some(longest) = some(said.stream)
        {
            action.max_stream_duration = Some(MaxStreamDuration { max_stream_duration: Some(longest), grpc_timeout_header_max: None });
        }
        attempts(&said, policy);
        policy.session = policy.session.take().or_else(|| said.session.clone());
        policy.priority = policy.priority.take().or_else(|| said.priority.clone());
        let hashed = || hashes(&said) || place.backend.is_some_and(|backend| hashes(&of_service(index, backend)));
        if policy.hash.is_empty()
            && let Some(hash) = said.hash.as_ref().filter(|_| hashed())
        {
            policy.hash.clone_from(hash);
        }
        let meant = said.faults.iter().flatten().filter(|fault| concerns(&fault.from, place.caller));
        policy.faults.extend(meant.map(|fault| fault.fault.clone()));
        policy.rate_limits.extend(limits(index, &places));
    }
    policy.telemetry = telemetry(index, &place);
    // Ours always say: stock Envoy would take 15 s for an absent timeout.
    action.timeout.get_or_insert_default();
    policy.attempt_timeout.take_if(|timeout| *timeout == prost_types::Duration::default());
}

/// What Telemetry objects say of the calls: the route's own before the Service's, at one place the oldest, field by field.
fn telemetry(index: &Index, place: &RulePlace<'_>) -> Option<RouteTelemetry> {
    if index.call_telemetries.is_empty() {
        return None;
    }
    let mut all = RouteTelemetry::default();
    for place in places(index, place.route, place.parent.or(place.backend), None) {
        let objects = index.call_telemetries.get(&place).into_iter().flatten();
        for said in objects.filter_map(|object| telemetry::content(object)) {
            all.sample_percent = all.sample_percent.or(said.sample_percent);
            all.keep_errors = all.keep_errors.or(said.keep_errors);
            // Zero says that none is kept for being slow, whatever a wider place says.
            all.keep_slower = all.keep_slower.or_else(|| said.keep_slower.and_then(|bound| prost_types::Duration::try_from(bound).ok()));
            all.log_enabled = all.log_enabled.or(said.access_log);
            all.log_filter = all.log_filter.take().or_else(|| said.log_filter.clone());
            all.log_sample_success_percent = all.log_sample_success_percent.or(said.log_success_percent);
        }
    }
    (all != RouteTelemetry::default()).then_some(all)
}

/// Retries, hedges and the timeout of one attempt. A route's own `retry` says what is tried again and how often; how long to wait, how
/// much to keep and how long one try may take is the policy's where the route is silent.
fn attempts(said: &TrafficSettings, policy: &mut RoutePolicy) {
    let own = policy.retry.is_some();
    if let Some(retry) = policy.retry.as_mut() {
        complete(said, retry);
    }
    let again = !own && said.attempts.is_some_and(|attempts| attempts > 0);
    let per_try = said.per_try.filter(|_| own || again);
    let given = [said.backend_request.filter(|timeout| !timeout.is_zero()), per_try].into_iter().flatten().min();
    policy.attempt_timeout = policy.attempt_timeout.take().or_else(|| some(given));
    if again {
        policy.retry = Some(retry(said, policy.attempt_timeout.is_some()));
    }
    if policy.hedge.is_none()
        && let Some(hedge) = said.hedge.as_ref().filter(|hedge| !hedge.methods.is_empty() && hedge.max_percent > 0.0)
    {
        let (at_quantile, max_percent) = (hedge.at_quantile, hedge.max_percent);
        policy.hedge = Some(Hedge { at_quantile, max_percent, methods: hedge.methods.clone() });
    }
}

/// Says what a route's own retry leaves open. The longest wait is never shorter than the first.
fn complete(said: &TrafficSettings, retry: &mut Retry) {
    let own = retry.backoff_base.and_then(|wait| Duration::try_from(wait).ok());
    let base = own.unwrap_or_else(|| base(said));
    let longest = said.backoff_max.unwrap_or_else(|| base.saturating_mul(GROWTH).min(GROWN_MAX));
    // A wait of zero is one, too: left out, it would be the default's.
    let wait = |wait: Duration| prost_types::Duration::try_from(wait).ok();
    (retry.backoff_base, retry.backoff_max) = (wait(base), wait(longest.max(base)));
    retry.body_buffer_bytes = said.body_buffer_bytes.unwrap_or(BODY_BUFFER_BYTES);
}

/// The first wait. Where nobody says one, it is no longer than the longest that somebody says.
fn base(said: &TrafficSettings) -> Duration {
    said.backoff_base.unwrap_or_else(|| said.backoff_max.map_or(BACKOFF.0, |longest| longest.min(BACKOFF.0)))
}

/// `timed`: an attempt has a timeout. Who sets it for a try wants another; for other timeouts it is a reset by ourselves.
fn retry(said: &TrafficSettings, timed: bool) -> Retry {
    let causes = said.causes.as_ref();
    let on = |cause| causes.is_none_or(|causes| causes.contains(&cause));
    let codes = |cause, listed: Option<&Vec<u32>>, default: &[u32]| match listed {
        _ if !on(cause) => Vec::new(),
        Some(listed) => listed.clone(),
        None => default.to_vec(),
    };
    Retry {
        attempts: said.attempts.unwrap_or_default(),
        connect_failure: on(RetryCause::ConnectFailure),
        reset: on(RetryCause::Reset),
        refused_stream: on(RetryCause::RefusedStream),
        attempt_timeout: timed && (said.per_try.is_some() || on(RetryCause::Reset)),
        statuses: codes(RetryCause::RetriableStatus, said.status_codes.as_ref(), &STATUSES),
        grpc_statuses: codes(RetryCause::GrpcStatus, said.grpc_statuses.as_ref(), &GRPC_STATUSES),
        backoff_base: some(Some(base(said))),
        // A base that somebody sets alone may be longer than the default's longest.
        backoff_max: some(Some(said.backoff_max.unwrap_or(BACKOFF.1).max(base(said)))),
        body_buffer_bytes: said.body_buffer_bytes.unwrap_or(BODY_BUFFER_BYTES),
    }
}

/// Whether a fault is for that caller.
fn concerns(from: &[Caller], caller: &Caller) -> bool {
    let fits = |named: &Caller| {
        named.namespace == caller.namespace && (named.service_account.is_none() || named.service_account == caller.service_account)
    };
    from.is_empty() || from.iter().any(fits)
}

/// The rate limits that callers keep: those of the narrowest route or Gateway that has any, each one bucket for all that it is about.
fn limits(index: &Index, places: &[Place]) -> Vec<RateLimit> {
    for place in places.iter().filter(|place| place.of_callers()) {
        let Some(limits) = said(index, place).find_map(|(_, policy)| policy.settings.rate_limits.as_ref()) else { continue };
        let at = match place {
            Place::Section(key, section) => format!("{}/{}/{}/{section}", key.kind, key.namespace, key.name),
            Place::Object(key) => format!("{}/{}/{}", key.kind, key.namespace, key.name),
            Place::Namespace(_) | Place::Mesh => continue,
        };
        return limits.iter().map(|limit| RateLimit { name: format!("{}@{at}", limit.name), ..limit.clone() }).collect();
    }
    Vec::new()
}

/// The clusters of a table that sessions lead to.
pub(in crate::translate) fn sessions(table: &RouteConfiguration) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for route in table.virtual_hosts.iter().flat_map(|host| &host.routes) {
        let policy = route.typed_per_filter_config.get(names::POLICY).and_then(|any| unpack::<RoutePolicy>(any).ok());
        if policy.is_none_or(|policy| policy.session.is_none()) {
            continue;
        }
        let Some(Action::Route(action)) = &route.action else { continue };
        match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => {
                found.insert(name.clone());
            }
            Some(ClusterSpecifier::WeightedClusters(weighted)) => found.extend(weighted.clusters.iter().map(|one| one.name.clone())),
            None => {}
        }
    }
    found
}
