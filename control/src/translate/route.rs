//! Route tables: the rules of all routes that meet at one Service port or one edge port, in the order in which they are tried.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::mesh::RoutePolicy;
use proto::names::{self, fact};
use proto::xds::route::route::Action;
use proto::xds::route::route_action::ClusterSpecifier;
use proto::xds::route::{DirectResponseAction, HeaderMatcher, Route, RouteConfiguration, VirtualHost};

use super::attach::{self, Backend};
use super::canary;
use super::edge::ladder::Spot;
use super::edge::login::{self, ServedPath};
use super::edge_listeners::{Edge, Family};
use super::frontend::Frontend;
use super::rank::entries;
use super::rule;
use super::wire;
use crate::world::route::{Match, PathMatch};
use crate::world::traffic::Caller;
use crate::world::{Name, World};

/// Reason of what came to another listener than its host belongs to.
const MISDIRECTED: &str = "misdirected";

/// A table and the backends that its rules lead to.
pub(super) struct RouteTable {
    pub config: RouteConfiguration,
    pub backends: BTreeSet<Backend>,
}

/// The table of a Service port, as one caller sees it.
pub(super) fn service(world: &World, service: &Name, port: u16, caller: &Caller) -> RouteTable {
    let called = Backend { service: service.clone(), port };
    let client = caller.namespace.as_str();
    let front = Frontend { index: world.index(), caller, called: Some(&called), listener: None };
    let (routes, consumer) = attach::service_routes(front.index, service, port, client);
    let mut name = called.cluster();
    if consumer {
        name = format!("{name}@{client}");
    }
    let mut backends = BTreeSet::new();
    let rules = if routes.is_empty() {
        let by_headers = canary::headers(front.index, &called).map(|headers| default(&front, Some((&called, headers)), &mut backends));
        by_headers.into_iter().chain([default(&front, None, &mut backends)]).collect()
    } else {
        let entries = entries(world, routes.into_iter().map(|route| (route, "*".to_owned())));
        entries.iter().flat_map(|entry| rule::compile(&front, entry, &mut backends)).collect()
    };
    RouteTable { config: table(name, vec![host("*".to_owned(), rules)]), backends }
}

/// The rule of a Service port that no route is about. `matched`: for requests with these headers, by which its canary goes.
fn default(front: &Frontend<'_>, matched: Option<(&Backend, &[HeaderMatcher])>, backends: &mut BTreeSet<Backend>) -> Route {
    let service = front.called.map(|called| &called.service).cloned().unwrap_or_default();
    let specifier = rule::own(front, matched.map(|(called, _)| called), backends);
    let mut action = rule::forward(specifier.unwrap_or_else(|| ClusterSpecifier::Cluster(names::BAD_BACKEND.to_owned())), None);
    let mut found = rule::match_of(&Match::any(), false);
    found.headers.extend(matched.iter().flat_map(|(_, headers)| headers.iter().cloned()));
    let name = names::rule("Service", &service.0, &service.1, names::DEFAULT_RULE);
    let mut rule = Route { name, r#match: Some(found), ..Route::default() };
    wire::attach_policy(&mut rule.typed_per_filter_config, &rule::rule_policy(front, None, &mut action, backends));
    rule.action = Some(Action::Route(action));
    rule
}

/// The table for calls to an address of one's own: one rule, to the cluster of that name.
pub(super) fn single(name: String, rule: String) -> RouteConfiguration {
    let rule = plain(rule, name.clone());
    table(name, vec![host("*".to_owned(), vec![rule])])
}

/// The table of the inbound side: everything to the application.
pub(super) fn inbound(policy: &RoutePolicy) -> RouteConfiguration {
    let mut rule = plain(names::INBOUND.to_owned(), names::INBOUND.to_owned());
    wire::attach_policy(&mut rule.typed_per_filter_config, policy);
    table(names::INBOUND.to_owned(), vec![host("*".to_owned(), vec![rule])])
}

/// The table of all HTTP listeners of one edge port. The narrowest listener that a host fits has it alone; inside a listener, a narrower
/// host is a matter of rank, not a wall: rules of wildcard hosts still serve what the exact host's rules do not.
pub(super) fn edge_http(world: &World, edge: &Edge<'_>, port: u16, caller: &Caller) -> RouteTable {
    let mut backends = BTreeSet::new();
    let mut hosts = Vec::new();
    for (place, _) in edge.at(port, Family::Http) {
        hosts.extend(own_hosts(world, edge, place, caller, &mut backends));
    }
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    RouteTable { config: table(names::edge(port), hosts), backends }
}

/// The table of one HTTPS listener. TLS has chosen it by the name that was asked for; a request on that connection for a host of another
/// listener of the port is answered 421 (RFC 9110, section 15.5.20), so that a client which has put several names on one connection asks
/// again on its own; one for nobody's host is 404 (`gateway-api.md` 4.3.19).
pub(super) fn edge_https(world: &World, edge: &Edge<'_>, place: usize, caller: &Caller) -> RouteTable {
    let own = &edge.listeners[place];
    let port = own.listener.port;
    let mut backends = BTreeSet::new();
    let mut hosts = own_hosts(world, edge, place, caller, &mut backends);
    let others = edge.at(port, Family::Tls).filter(|(other, judged)| *other != place && judged.listener.protocol == "HTTPS");
    let others: BTreeSet<&str> = others.map(|(_, judged)| judged.host()).collect();
    for other in others {
        if !hosts.iter().any(|known| known.name == other) {
            hosts.push(host(other.to_owned(), vec![misdirected()]));
        }
    }
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    RouteTable { config: table(names::edge_listener(port, &own.name()), hosts), backends }
}

/// What a listener says of its own host and of those of its routes that no narrower listener has.
fn own_hosts(world: &World, edge: &Edge<'_>, place: usize, caller: &Caller, backends: &mut BTreeSet<Backend>) -> Vec<VirtualHost> {
    let judged = &edge.listeners[place];
    let front = Frontend { index: world.index(), caller, called: None, listener: Some((edge.name, judged)) };
    let attached = &edge.attached[place];
    let mut domains: BTreeSet<&str> = BTreeSet::from([judged.host()]);
    domains.extend(attached.iter().map(|(_, host)| host.as_str()));
    let mut hosts = Vec::new();
    for domain in domains.into_iter().filter(|domain| edge.has(place, domain)) {
        let here = attached.iter().filter(|(_, host)| attach::covers(host, domain)).map(|(route, host)| (*route, host.clone()));
        let mut seen = BTreeSet::new();
        let entries = entries(world, here);
        let spot = Spot { gateway: edge.name, owner: &judged.owner.key, listener: &judged.listener.name, route: None };
        let spots = entries.iter().map(|entry| Spot { route: Some((&**entry.route, entry.rule.name.as_deref())), ..spot });
        let mut rules: Vec<Route> = login::paths(front.index, &spot, spots, backends).into_iter().map(served).collect();
        for entry in entries {
            // A rule that comes in by several hosts counts by its narrowest, which is first.
            if seen.insert((&entry.route.key, entry.place())) {
                rules.extend(rule::compile(&front, &entry, backends));
            }
        }
        hosts.push(host(domain.to_owned(), rules));
    }
    hosts
}

/// A path that a login serves by itself: it is answered before any backend is asked.
fn served(ServedPath { name, path, policy }: ServedPath) -> Route {
    let matched = Match { path: PathMatch::Exact(path), ..Match::any() };
    let action = rule::forward(ClusterSpecifier::Cluster(names::BAD_BACKEND.to_owned()), None);
    let (r#match, action) = (Some(rule::match_of(&matched, false)), Some(Action::Route(action)));
    let mut route = Route { name, r#match, action, ..Route::default() };
    wire::attach_policy(&mut route.typed_per_filter_config, &policy);
    route
}

fn misdirected() -> Route {
    Route {
        name: MISDIRECTED.to_owned(),
        r#match: Some(rule::match_of(&Match::any(), false)),
        action: Some(Action::DirectResponse(DirectResponseAction { status: 421, body: None })),
        metadata: Some(wire::facts(&[(fact::REASON, MISDIRECTED)])),
        ..Route::default()
    }
}

fn table(name: String, virtual_hosts: Vec<VirtualHost>) -> RouteConfiguration {
    RouteConfiguration { name, virtual_hosts, ignore_port_in_host_matching: true, ..RouteConfiguration::default() }
}

fn host(domain: String, routes: Vec<Route>) -> VirtualHost {
    VirtualHost { name: domain.clone(), domains: vec![domain], routes, ..VirtualHost::default() }
}

/// Everything to one cluster.
fn plain(name: String, cluster: String) -> Route {
    let action = rule::forward(ClusterSpecifier::Cluster(cluster), Some(Duration::ZERO));
    Route { name, r#match: Some(rule::match_of(&Match::any(), false)), action: Some(Action::Route(action)), ..Route::default() }
}
