//! Route tables: the rules of all routes that meet at one Service port or one edge port, merged and sorted once by Gateway API's
//! order of precedence (`gateway-api.md` 4.3.1), so that the first that matches wins. A regular expression ranks after Exact and
//! before PathPrefix.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use proto::names::{self, BAD_BACKEND, fact};
use proto::xds::core::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction};
use proto::xds::matcher::{RegexMatcher, StringMatcher, string_matcher::MatchPattern};
use proto::xds::route::header_matcher::HeaderMatchSpecifier;
use proto::xds::route::query_parameter_matcher::QueryParameterMatchSpecifier;
use proto::xds::route::route::Action;
use proto::xds::route::route_action::ClusterSpecifier;
use proto::xds::route::route_match::PathSpecifier;
use proto::xds::route::weighted_cluster::ClusterWeight;
use proto::xds::route::{
    DirectResponseAction, HeaderMatcher, QueryParameterMatcher, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
    WeightedCluster,
};

use super::attach::{self, Attachment, Backend, content};
use super::wire;
use crate::world::gateway::Gateway;
use crate::world::route::{HeaderOps, Headers, Match, PathMatch, Rule, ValueMatch};
use crate::world::{Index, Name, Object, Spec, World};

/// A table and the backends that its rules lead to.
pub(super) struct RouteTable {
    pub config: RouteConfiguration,
    pub backends: BTreeSet<Backend>,
}

/// One match of one rule with all that decides its rank.
pub(super) struct RankedMatch<'a> {
    rank: Rank<'a>,
    /// The object that wrote it.
    pub route: &'a Arc<Object>,
    /// The rule.
    pub rule: &'a Rule,
    /// Index of the rule.
    pub number: usize,
    /// The match.
    pub matched: &'a Match,
    /// The host it came in by.
    pub host: String,
}

/// Smaller comes first.
type Rank<'a> = (Reverse<(bool, usize)>, PathRank, Reverse<bool>, Reverse<usize>, Reverse<usize>, (i64, &'a str, &'a str), (usize, usize));
type PathRank = (u8, Reverse<usize>);

fn path_rank(path: &PathMatch) -> PathRank {
    match path {
        PathMatch::Exact(path) => (0, Reverse(path.len())),
        PathMatch::Regex(pattern) => (1, Reverse(pattern.len())),
        PathMatch::Prefix(prefix) => (2, Reverse(prefix.len())),
    }
}

/// The entries of routes, each with the hosts it comes in by, in order of precedence.
pub(super) fn entries<'a>(world: &World, routes: impl IntoIterator<Item = (&'a Arc<Object>, String)>) -> Vec<RankedMatch<'a>> {
    let mut entries = Vec::new();
    for (route, host) in routes {
        let Some(spec) = content(route) else { continue };
        let origin = (world.created_ms(route), route.key.namespace.as_str(), route.key.name.as_str());
        for (number, rule) in spec.rules.iter().enumerate().filter(|(_, rule)| rule.unmatchable.is_empty()) {
            for (place, matched) in rule.matches.iter().enumerate() {
                let rank = (
                    Reverse(attach::narrowness(&host)),
                    path_rank(&matched.path),
                    Reverse(matched.method.is_some()),
                    Reverse(matched.headers.len()),
                    Reverse(matched.query.len()),
                    origin,
                    (number, place),
                );
                entries.push(RankedMatch { rank, route, rule, number, matched, host: host.clone() });
            }
        }
    }
    entries.sort_by(|a, b| a.rank.cmp(&b.rank));
    entries
}

/// The table of a Service port, as callers in namespace `client` see it.
pub(super) fn service(world: &World, service: &Name, port: u16, client: &str) -> RouteTable {
    let (routes, consumer) = attach::service_routes(world.index(), service, port, client);
    let mut name = names::service_port(&service.0, &service.1, port);
    if consumer {
        name = format!("{name}@{client}");
    }
    let mut backends = BTreeSet::new();
    let rules = if routes.is_empty() {
        backends.insert(Backend { service: service.clone(), port });
        let cluster = names::service_port(&service.0, &service.1, port);
        vec![plain(names::rule("Service", &service.0, &service.1, names::DEFAULT_RULE), cluster)]
    } else {
        let entries = entries(world, routes.into_iter().map(|route| (route, "*".to_owned())));
        entries.iter().map(|entry| compile(world.index(), entry, true, &mut backends)).collect()
    };
    RouteTable { config: table(name, vec![host("*".to_owned(), rules)]), backends }
}

/// The table for calls to an address of one's own: one rule, to the cluster of that name.
pub(super) fn single(name: String, rule: String) -> RouteConfiguration {
    let rule = plain(rule, name.clone());
    table(name, vec![host("*".to_owned(), vec![rule])])
}

/// The table of the inbound side: everything to the application.
pub(super) fn inbound() -> RouteConfiguration {
    table(names::INBOUND.to_owned(), vec![host("*".to_owned(), vec![plain(names::INBOUND.to_owned(), names::INBOUND.to_owned())])])
}

/// The table of one edge port. The narrowest listener that a host fits has it alone; inside a listener, a narrower host is a
/// matter of rank, not a wall: rules of wildcard hosts still serve what the exact host's rules do not.
pub(super) fn edge(world: &World, name: &Name, gateway: &Gateway, port: u16) -> RouteTable {
    let judged = attach::listeners(gateway);
    let served: Vec<_> = judged.iter().enumerate().filter(|(_, judged)| judged.refused.is_none() && judged.listener.port == port).collect();
    let hostname = |place: usize| gateway.listeners[place].hostname.as_deref().unwrap_or("*");
    let mut backends = BTreeSet::new();
    let mut hosts = Vec::new();
    for (place, _) in &served {
        let attached = attached(world.index(), name, *place);
        let mut domains: BTreeSet<&str> = BTreeSet::from([hostname(*place)]);
        domains.extend(attached.iter().map(|(_, host)| host.as_str()));
        for domain in domains {
            let fits = served.iter().map(|(other, _)| *other).filter(|other| attach::covers(hostname(*other), domain));
            if fits.max_by_key(|other| attach::narrowness(hostname(*other))) != Some(*place) {
                continue;
            }
            let here = attached.iter().filter(|(_, host)| attach::covers(host, domain)).map(|(route, host)| (*route, host.clone()));
            let mut seen = BTreeSet::new();
            let mut rules = Vec::new();
            for entry in entries(world, here) {
                // A rule that comes in by several hosts counts by its narrowest, which is first.
                if seen.insert((&entry.route.key, entry.rank.6)) {
                    rules.push(compile(world.index(), &entry, false, &mut backends));
                }
            }
            hosts.push(host(domain.to_owned(), rules));
        }
    }
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    RouteTable { config: table(names::edge(port), hosts), backends }
}

/// Routes attached to one listener of a Gateway, with each of their hosts there.
pub(super) fn attached<'a>(index: &'a Index, gateway: &Name, place: usize) -> Vec<(&'a Arc<Object>, String)> {
    let mut attached = Vec::new();
    for route in &index.routes {
        let mut hosts = BTreeSet::new();
        for parent in content(route).into_iter().flat_map(|spec| &spec.parents) {
            if let Attachment::Gateway(name, listeners) = attach::standing(index, route, parent)
                && name == *gateway
            {
                hosts.extend(listeners.into_iter().filter(|(other, _)| *other == place).flat_map(|(_, hosts)| hosts));
            }
        }
        attached.extend(hosts.into_iter().map(|host| (route, host)));
    }
    attached
}

fn table(name: String, virtual_hosts: Vec<VirtualHost>) -> RouteConfiguration {
    RouteConfiguration { name, virtual_hosts, ignore_port_in_host_matching: true, ..RouteConfiguration::default() }
}

fn host(domain: String, routes: Vec<Route>) -> VirtualHost {
    VirtualHost { name: domain.clone(), domains: vec![domain], routes, ..VirtualHost::default() }
}

/// Everything to one cluster.
fn plain(name: String, cluster: String) -> Route {
    let action = to(ClusterSpecifier::Cluster(cluster), wire::seconds(0));
    Route { name, r#match: Some(match_of(&Match::any())), action: Some(Action::Route(action)), ..Route::default() }
}

/// An exchange under way may be silent as long as it likes (kinds, "defaults"): stock Envoy would end it after five minutes.
fn to(specifier: ClusterSpecifier, timeout: prost_types::Duration) -> RouteAction {
    RouteAction {
        cluster_specifier: Some(specifier),
        timeout: Some(timeout),
        idle_timeout: Some(wire::seconds(0)),
        ..RouteAction::default()
    }
}

/// One match of one rule as a route. `mesh`: its parent is a Service.
fn compile(index: &Index, entry: &RankedMatch<'_>, mesh: bool, backends: &mut BTreeSet<Backend>) -> Route {
    let RankedMatch { route, rule, number, matched, .. } = entry;
    let key = &route.key;
    let rule_name = rule.name.clone().unwrap_or_else(|| number.to_string());
    let mut compiled = Route {
        name: names::rule(key.kind.text(), &key.namespace, &key.name, &rule_name),
        r#match: Some(match_of(matched)),
        ..Route::default()
    };
    // Without what its author asked for it must not be served; without backends it cannot be. Either way it keeps its place, so
    // that no broader rule catches its requests.
    if !rule.failing.is_empty() || rule.backends.is_empty() {
        compiled.action = Some(Action::DirectResponse(DirectResponseAction { status: 500, body: None }));
        compiled.metadata = Some(wire::facts(&[(fact::REASON, BAD_BACKEND)]));
        return compiled;
    }
    let mut weights = Vec::new();
    for reference in &rule.backends {
        let resolved = if reference.failing.is_empty() { attach::backend(index, route, reference, mesh).ok() } else { None };
        let name = match &resolved {
            Some(backend) => names::service_port(&backend.service.0, &backend.service.1, backend.port),
            None => BAD_BACKEND.to_owned(),
        };
        backends.extend(resolved);
        let mut weight = ClusterWeight { name, weight: Some(reference.weight), ..ClusterWeight::default() };
        let Headers { request, response } = &reference.headers;
        (weight.request_headers_to_add, weight.request_headers_to_remove) = header_ops(request);
        (weight.response_headers_to_add, weight.response_headers_to_remove) = header_ops(response);
        weights.push(weight);
    }
    let alone = weights.len() == 1
        && weights[0] == ClusterWeight { name: weights[0].name.clone(), weight: weights[0].weight, ..Default::default() };
    let specifier = match weights.first() {
        Some(only) if alone && only.weight != Some(0) => ClusterSpecifier::Cluster(only.name.clone()),
        _ => ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: weights }),
    };
    let timeout = rule.timeout.and_then(|timeout| prost_types::Duration::try_from(timeout).ok());
    compiled.action = Some(Action::Route(to(specifier, timeout.unwrap_or(wire::seconds(0)))));
    (compiled.request_headers_to_add, compiled.request_headers_to_remove) = header_ops(&rule.headers.request);
    (compiled.response_headers_to_add, compiled.response_headers_to_remove) = header_ops(&rule.headers.response);
    compiled
}

fn header_ops(ops: &HeaderOps) -> (Vec<HeaderValueOption>, Vec<String>) {
    let option = |(name, value): &(String, String), action: HeaderAppendAction| HeaderValueOption {
        // In Envoy's values `%` starts a substitution; here it is a letter like any other.
        header: Some(HeaderValue { key: name.clone(), value: value.replace('%', "%%") }),
        append_action: action.into(),
        keep_empty_value: true,
    };
    let set = ops.set.iter().map(|pair| option(pair, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = ops.add.iter().map(|pair| option(pair, HeaderAppendAction::AppendIfExistsOrAdd));
    (set.chain(add).collect(), ops.remove.clone())
}

fn match_of(matched: &Match) -> RouteMatch {
    let path = match &matched.path {
        PathMatch::Exact(path) => PathSpecifier::Path(path.clone()),
        PathMatch::Prefix(prefix) if prefix.is_empty() => PathSpecifier::Prefix("/".to_owned()),
        PathMatch::Prefix(prefix) => PathSpecifier::PathSeparatedPrefix(prefix.clone()),
        PathMatch::Regex(pattern) => PathSpecifier::SafeRegex(RegexMatcher { regex: pattern.clone() }),
    };
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
        headers: method.chain(matched.headers.iter().cloned()).map(header).collect(),
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

/// The content of a Gateway.
pub(super) fn gateway(object: &Object) -> Option<&Gateway> {
    if let Spec::Gateway(gateway) = &object.spec { Some(gateway) } else { None }
}
