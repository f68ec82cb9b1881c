//! One rule as proxies run it: Envoy's own fields, and beside them our policy (`policy.proto`) for what Envoy's do not say, or say
//! otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::mesh::{self, BackendPolicy, RoutePolicy};
use proto::names::{BAD_BACKEND, fact};
use proto::xds::core::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction};
use proto::xds::matcher::{RegexMatcher, StringMatcher, string_matcher::MatchPattern};
use proto::xds::route::header_matcher::HeaderMatchSpecifier;
use proto::xds::route::query_parameter_matcher::QueryParameterMatchSpecifier;
use proto::xds::route::route::Action;
use proto::xds::route::route_action::ClusterSpecifier;
use proto::xds::route::route_match::PathSpecifier;
use proto::xds::route::weighted_cluster::ClusterWeight;
use proto::xds::route::{DirectResponseAction, HeaderMatcher, QueryParameterMatcher, Route, RouteAction, RouteMatch, WeightedCluster};

use super::attach::{self, Backend};
use super::canary::{self, Weighed};
use super::edge::{self, OwnCheck, ladder::Spot};
use super::edge_listeners::Judged;
use super::frontend::Frontend;
use super::policy::{self, RulePlace};
use super::rank::RankedMatch;
use super::wire;
use crate::world::route::{
    BackendRef, Cors, Filters, HeaderOps, Match, Mirror, PathChange, PathMatch, Redirect, Rewrite, RouteRetry, Rule, SessionPersistence,
    ValueMatch,
};
use crate::world::{Index, Kind, Name, Object};

/// Attempts beyond the first where a `retry` does not say how many.
const ATTEMPTS: u32 = 1;
/// An origin that no page has: its scheme is none of the web's.
const NO_ORIGIN: &str = "none://invalid";

/// Everything that holds for a rule's requests beside Envoy's own fields. `written`: by which match of which route; `None`: the
/// Service has none. What the route itself leaves open, in `action` too, is what policies say.
pub(super) fn rule_policy(
    front: &Frontend<'_>,
    written: Option<&RankedMatch<'_>>,
    action: &mut RouteAction,
    backends: &mut BTreeSet<Backend>,
) -> RoutePolicy {
    let mut told = written.map(|entry| own_policy(front, entry)).unwrap_or_default();
    let first = match written {
        Some(RankedMatch { route, rule: rule @ Rule { backends: Some(_), .. }, .. }) => {
            attach::first(front.index, route, rule, front.granted())
        }
        _ => front.called.cloned(),
    };
    let place = RulePlace {
        caller: front.caller,
        route: written.map(|entry| (&**entry.route, entry.rule.name.as_deref())),
        listener: front.listener.map(|(gateway, judged)| (gateway, judged.section())),
        parent: front.called,
        backend: first.as_ref(),
    };
    policy::fill(front.index, place, action, &mut told);
    told.edge = front.listener.and_then(|(gateway, judged)| {
        let route = written.map(|entry| (&**entry.route, entry.rule.name.as_deref()));
        let spot = Spot { gateway, owner: &judged.owner.key, listener: &judged.listener.name, route };
        let own = written.and_then(|entry| Some((entry, entry.rule.filters.external.as_ref()?, entry.name())));
        let own = own.as_ref().map(|(entry, says, name)| OwnCheck { route: entry.route, name, says });
        edge::policy(front.index, &spot, (own, verifies(front.index, gateway, judged)), backends)
    });
    told
}

/// Whether clients show certificates at a listener.
fn verifies(index: &Index, gateway: &Name, judged: &Judged<'_>) -> bool {
    let found = index.gateways.get(gateway).and_then(|gateway| attach::gateway(gateway));
    judged.listener.protocol == "HTTPS" && found.is_some_and(|gateway| gateway.clients.on(judged.listener.port).is_some())
}

/// What the route itself says. Its timeout of zero goes before a policy's, and is none.
fn own_policy(front: &Frontend<'_>, entry: &RankedMatch<'_>) -> RoutePolicy {
    let rule = entry.rule;
    RoutePolicy {
        filters: filters(front, entry, &rule.filters),
        attempt_timeout: rule.timeouts.backend_request.and_then(duration),
        retry: rule.retry.as_ref().map(retry),
        session: rule.session.as_ref().map(|told| session(told, &entry.name())),
        ..RoutePolicy::default()
    }
}

/// One match of one rule as routes; adds all that they lead to. Where a canary goes by headers just now there is one more before, for requests that
/// have them.
pub(super) fn compile(front: &Frontend<'_>, entry: &RankedMatch<'_>, backends: &mut BTreeSet<Backend>) -> Vec<Route> {
    let mut routes = Vec::new();
    for (backend, headers) in by_headers(front, entry) {
        let mut route = compile_one(front, entry, Some(&backend), backends);
        route.r#match.get_or_insert_default().headers.extend(headers.iter().cloned());
        routes.push(route);
    }
    routes.push(compile_one(front, entry, None, backends));
    routes
}

/// Backends of a rule whose canaries go by headers now, each once.
fn by_headers<'a>(front: &Frontend<'a>, entry: &RankedMatch<'_>) -> BTreeMap<Backend, &'a [HeaderMatcher]> {
    if front.index.canaried.overlays.is_empty() || entry.rule.fails() || entry.rule.filters.redirect.is_some() {
        return BTreeMap::new();
    }
    let named = |reference| attach::good(front.index, entry.route, reference, front.granted());
    let led: Vec<Backend> = match &entry.rule.backends {
        Some(listed) => listed.iter().filter_map(named).collect(),
        None => front.called.cloned().into_iter().collect(),
    };
    led.into_iter().filter_map(|backend| canary::headers(front.index, &backend).map(|headers| (backend, headers))).collect()
}

/// `matched`: the backend whose canary goes by headers that the request has.
fn compile_one(front: &Frontend<'_>, entry: &RankedMatch<'_>, matched: Option<&Backend>, backends: &mut BTreeSet<Backend>) -> Route {
    let rule = entry.rule;
    let calls = front.called.is_none() && entry.route.key.kind == Kind::GRPCRoute;
    let mut compiled = Route { name: entry.name(), r#match: Some(match_of(entry.matched, calls)), ..Route::default() };
    // Without what its author asked for it must not be served; without backends it cannot be. Either way it keeps its place, so
    // that no broader rule catches its requests.
    let specifier = if rule.fails() { None } else { target(front, entry, matched, backends) };
    let Some(specifier) = specifier else {
        compiled.action = Some(Action::DirectResponse(DirectResponseAction { status: 500, body: None }));
        compiled.metadata = Some(wire::facts(&[(fact::REASON, BAD_BACKEND)]));
        return compiled;
    };
    let mut action = forward(specifier, rule.timeouts.request);
    let Filters { request, response, cors: _, redirect: _, rewrite: _, mirrors, external: _ } = &rule.filters;
    (compiled.request_headers_to_add, compiled.request_headers_to_remove) = header_ops(request);
    (compiled.response_headers_to_add, compiled.response_headers_to_remove) = header_ops(response);
    backends.extend(mirrored(front, entry.route, mirrors).map(|(backend, _)| backend));
    wire::attach_policy(&mut compiled.typed_per_filter_config, &rule_policy(front, Some(entry), &mut action, backends));
    compiled.action = Some(Action::Route(action));
    compiled
}

/// Where a rule's requests go; `None`: nowhere.
fn target(
    front: &Frontend<'_>,
    entry: &RankedMatch<'_>,
    matched: Option<&Backend>,
    backends: &mut BTreeSet<Backend>,
) -> Option<ClusterSpecifier> {
    if entry.rule.filters.redirect.is_some() {
        // Answered before any backend is asked.
        return Some(ClusterSpecifier::Cluster(BAD_BACKEND.to_owned()));
    }
    let Some(listed) = &entry.rule.backends else {
        return own(front, matched, backends);
    };
    let listed = listed.iter().map(|reference| weighted(front, entry, reference, backends)).collect();
    led(canary::split(front, listed, matched, backends))
}

/// To the port that is called itself.
pub(super) fn own(front: &Frontend<'_>, matched: Option<&Backend>, backends: &mut BTreeSet<Backend>) -> Option<ClusterSpecifier> {
    let called = front.called?;
    let cluster = ClusterWeight { name: called.cluster(), weight: Some(1), ..ClusterWeight::default() };
    let weighed = Weighed { cluster, backend: Some(called.clone()), policy: BackendPolicy::default() };
    led(canary::split(front, vec![weighed], matched, backends))
}

/// `None`: nowhere.
fn led(clusters: Vec<ClusterWeight>) -> Option<ClusterSpecifier> {
    let only = clusters.first()?;
    let plain = ClusterWeight { name: only.name.clone(), weight: only.weight, ..ClusterWeight::default() };
    let alone = clusters.len() == 1 && only.weight != Some(0) && *only == plain;
    Some(if alone { ClusterSpecifier::Cluster(plain.name) } else { ClusterSpecifier::WeightedClusters(WeightedCluster { clusters }) })
}

fn weighted(front: &Frontend<'_>, entry: &RankedMatch<'_>, reference: &BackendRef, backends: &mut BTreeSet<Backend>) -> Weighed {
    let backend = resolved(front, entry.route, reference);
    let name = backend.as_ref().map_or_else(|| BAD_BACKEND.to_owned(), Backend::cluster);
    let mut weight = ClusterWeight { name, weight: Some(reference.weight), ..ClusterWeight::default() };
    if backend.is_none() {
        return Weighed { cluster: weight, backend, policy: BackendPolicy::default() };
    }
    let Filters { request, response, cors: _, redirect: _, rewrite: _, mirrors, external: _ } = &reference.filters;
    (weight.request_headers_to_add, weight.request_headers_to_remove) = header_ops(request);
    (weight.response_headers_to_add, weight.response_headers_to_remove) = header_ops(response);
    backends.extend(mirrored(front, entry.route, mirrors).map(|(backend, _)| backend));
    let mut own = filters(front, entry, &reference.filters);
    if let Some((_, spec)) = backend.as_ref().and_then(|backend| backend.outside(front.index)) {
        // A host outside the mesh knows itself by its own name, unless the route says another: its rule's word comes after.
        let rewrite = own.get_or_insert_default().rewrite.get_or_insert_default();
        if rewrite.hostname.is_empty() {
            rewrite.hostname.clone_from(&spec.hostname);
        }
    }
    Weighed { cluster: weight, backend, policy: BackendPolicy { filters: own, canary: None } }
}

/// The cluster that a reference leads to: a bad one keeps its share, which is refused; so does one that an edge would have to meet otherwise
/// than it can.
pub(super) fn cluster(front: &Frontend<'_>, route: &Object, reference: &BackendRef, backends: &mut BTreeSet<Backend>) -> String {
    let resolved = resolved(front, route, reference);
    let name = resolved.as_ref().map_or_else(|| BAD_BACKEND.to_owned(), Backend::cluster);
    backends.extend(resolved);
    name
}

fn resolved(front: &Frontend<'_>, route: &Object, reference: &BackendRef) -> Option<Backend> {
    attach::good(front.index, route, reference, front.granted()).filter(|backend| !front.refuses(backend))
}

/// An exchange under way may be silent as long as it likes (kinds, "defaults"): stock Envoy would end it after five minutes.
/// A timeout that is left out is for policies to fill in, see [`rule_policy`].
pub(super) fn forward(specifier: ClusterSpecifier, timeout: Option<Duration>) -> RouteAction {
    RouteAction {
        cluster_specifier: Some(specifier),
        timeout: timeout.and_then(duration),
        idle_timeout: Some(wire::seconds(0)),
        ..RouteAction::default()
    }
}

fn duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

/// The filters that Envoy's own fields do not say; `None` without any.
fn filters(front: &Frontend<'_>, entry: &RankedMatch<'_>, filters: &Filters) -> Option<mesh::Filters> {
    let Filters { request: _, response: _, cors: shared, redirect, rewrite, mirrors, external: _ } = filters;
    let path = |change: &PathChange| path_change(change, entry.matched);
    let mirror = |(backend, per_million): (Backend, u32)| mesh::Mirror { cluster: backend.cluster(), per_million, canary: None };
    let lowered = mesh::Filters {
        cors: shared.as_ref().map(cors),
        redirect: redirect.as_ref().map(|Redirect { scheme, hostname, path: change, port, status }| mesh::Redirect {
            scheme: scheme.clone().unwrap_or_default(),
            hostname: hostname.clone().unwrap_or_default(),
            path: change.as_ref().map(path),
            port: port.unwrap_or_default().into(),
            status: (*status).into(),
        }),
        rewrite: rewrite.as_ref().map(|Rewrite { hostname, path: change }| mesh::Rewrite {
            hostname: hostname.clone().unwrap_or_default(),
            path: change.as_ref().map(path),
        }),
        mirrors: mirrored(front, entry.route, mirrors).map(mirror).collect(),
    };
    (lowered != mesh::Filters::default()).then_some(lowered)
}

fn cors(told: &Cors) -> mesh::Cors {
    let Cors { allow_origins, allow_methods, allow_headers, expose_headers, allow_credentials, max_age_secs } = told;
    mesh::Cors {
        // Who lists none lets nobody in.
        allow_origins: if allow_origins.is_empty() { vec![NO_ORIGIN.to_owned()] } else { allow_origins.clone() },
        allow_methods: allow_methods.clone(),
        allow_headers: allow_headers.clone(),
        expose_headers: expose_headers.clone(),
        allow_credentials: *allow_credentials,
        max_age_secs: *max_age_secs,
    }
}

fn path_change(change: &PathChange, matched: &Match) -> mesh::PathChange {
    let kind = match change {
        PathChange::Full(path) => mesh::path_change::Kind::Full(path.clone()),
        PathChange::Prefix(replacement) => {
            // The door lets it only where a prefix is matched.
            let matched = if let PathMatch::Prefix(prefix) = &matched.path { prefix.clone() } else { String::new() };
            mesh::path_change::Kind::Prefix(mesh::PrefixChange { matched, replacement: replacement.clone() })
        }
    };
    mesh::PathChange { kind: Some(kind) }
}

/// The mirrors that can be served. One with a bad reference sends nothing, and the request itself is none the worse.
fn mirrored<'a>(front: &'a Frontend<'_>, route: &'a Object, mirrors: &'a [Mirror]) -> impl Iterator<Item = (Backend, u32)> + 'a {
    let sent = mirrors.iter().filter(|mirror| mirror.per_million > 0);
    let led = sent.filter_map(|mirror| Some((attach::backend(front.index, route, &mirror.to, front.granted()).ok()?, mirror.per_million)));
    led.filter(|(backend, _)| !front.refuses(backend))
}

/// GEP-1731: whatever came to no answer is tried again wherever there is a `retry`, statuses only as it lists them. What it cannot
/// say, and the first wait where it does not, is left open.
fn retry(told: &RouteRetry) -> mesh::Retry {
    let RouteRetry { codes, attempts, backoff } = told;
    mesh::Retry {
        attempts: attempts.unwrap_or(ATTEMPTS),
        connect_failure: true,
        reset: true,
        refused_stream: true,
        attempt_timeout: true,
        statuses: codes.iter().map(|code| u32::from(*code)).collect(),
        grpc_statuses: Vec::new(),
        backoff_base: backoff.and_then(duration),
        backoff_max: None,
        body_buffer_bytes: 0,
    }
}

/// GEP-1619. Where nobody names the session, its name is the rule's own, so that sessions of different rules do not meet.
pub(super) fn session(told: &SessionPersistence, rule: &str) -> mesh::Session {
    let SessionPersistence { name, header, absolute_timeout, idle_timeout, permanent } = told;
    let own = || format!("mw-session-{}", proto::epoch::version(rule.as_bytes()));
    mesh::Session {
        name: name.clone().unwrap_or_else(own),
        header: *header,
        absolute_timeout: absolute_timeout.and_then(duration),
        idle_timeout: idle_timeout.and_then(duration),
        permanent: *permanent,
        path: if *header { String::new() } else { "/".to_owned() },
    }
}

fn header_ops(ops: &HeaderOps) -> (Vec<HeaderValueOption>, Vec<String>) {
    let option = |(name, value): &(String, String), action: HeaderAppendAction| HeaderValueOption {
        // In Envoy's values `%` starts a substitution; here it is a letter like any other.
        header: Some(HeaderValue { key: name.clone(), value: value.replace('%', "%%") }),
        append: None,
        append_action: action.into(),
        keep_empty_value: true,
    };
    let set = ops.set.iter().map(|pair| option(pair, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = ops.add.iter().map(|pair| option(pair, HeaderAppendAction::AppendIfExistsOrAdd));
    (set.chain(add).collect(), ops.remove.clone())
}

/// A match as Envoy spells it. `grpc`: of gRPC calls only, where other requests come in too.
pub(super) fn match_of(matched: &Match, grpc: bool) -> RouteMatch {
    let path = match &matched.path {
        PathMatch::Exact(path) => PathSpecifier::Path(path.clone()),
        PathMatch::Prefix(prefix) if prefix.is_empty() => PathSpecifier::Prefix("/".to_owned()),
        PathMatch::Prefix(prefix) => PathSpecifier::PathSeparatedPrefix(prefix.clone()),
        PathMatch::Regex(pattern) => PathSpecifier::SafeRegex(RegexMatcher { regex: pattern.clone() }),
        PathMatch::Service(service) => PathSpecifier::Prefix(format!("/{service}/")),
        PathMatch::Method(method) => PathSpecifier::SafeRegex(RegexMatcher { regex: format!("/[^/]+/{method}") }),
    };
    let calls = grpc.then(|| HeaderMatcher {
        name: "content-type".to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(MatchPattern::Prefix("application/grpc".to_owned())),
            ignore_case: false,
        })),
        ..HeaderMatcher::default()
    });
    let method = matched.method.iter().map(|method| (":method".to_owned(), ValueMatch::Exact(method.clone())));
    let header = |(name, value): (String, ValueMatch)| HeaderMatcher {
        name,
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(string(&value))),
        ..HeaderMatcher::default()
    };
    let query = |(name, value): &(String, ValueMatch)| QueryParameterMatcher {
        name: name.clone(),
        query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(string(value))),
    };
    RouteMatch {
        path_specifier: Some(path),
        headers: method.chain(matched.headers.iter().cloned()).map(header).chain(calls).collect(),
        query_parameters: matched.query.iter().map(query).collect(),
        ..RouteMatch::default()
    }
}

fn string(value: &ValueMatch) -> StringMatcher {
    let pattern = match value {
        ValueMatch::Exact(text) => MatchPattern::Exact(text.clone()),
        ValueMatch::Regex(pattern) => MatchPattern::SafeRegex(RegexMatcher { regex: pattern.clone() }),
    };
    StringMatcher { match_pattern: Some(pattern), ignore_case: false }
}
