//! Route tables: the rules of all routes that meet at one Service port or one edge port, in the order in which they are tried.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proto::mesh::RoutePolicy;
use proto::names;
use proto::xds::route::route::Action;
use proto::xds::route::route_action::ClusterSpecifier;
use proto::xds::route::{Route, RouteConfiguration, VirtualHost};

use super::attach::{self, Attachment, Backend, content};
use super::rank::entries;
use super::rule::{self, Frontend};
use crate::world::gateway::Gateway;
use crate::world::route::Match;
use crate::world::traffic::Caller;
use crate::world::{Index, Name, Object, World};

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
        let mut rule = plain(names::rule("Service", &service.0, &service.1, names::DEFAULT_RULE), called.cluster());
        let mut action = rule::forward(ClusterSpecifier::Cluster(called.cluster()), None);
        rule::attach_policy(&mut rule.typed_per_filter_config, &rule::rule_policy(&front, None, &mut action));
        rule.action = Some(Action::Route(action));
        backends.insert(called.clone());
        vec![rule]
    } else {
        let entries = entries(world, routes.into_iter().map(|route| (route, "*".to_owned())));
        entries.iter().map(|entry| rule::compile(&front, entry, &mut backends)).collect()
    };
    RouteTable { config: table(name, vec![host("*".to_owned(), rules)]), backends }
}

/// The table for calls to an address of one's own: one rule, to the cluster of that name.
pub(super) fn single(name: String, rule: String) -> RouteConfiguration {
    let rule = plain(rule, name.clone());
    table(name, vec![host("*".to_owned(), vec![rule])])
}

/// The table of the inbound side: everything to the application.
pub(super) fn inbound(policy: &RoutePolicy) -> RouteConfiguration {
    let mut rule = plain(names::INBOUND.to_owned(), names::INBOUND.to_owned());
    rule::attach_policy(&mut rule.typed_per_filter_config, policy);
    table(names::INBOUND.to_owned(), vec![host("*".to_owned(), vec![rule])])
}

/// The table of one edge port. The narrowest listener that a host fits has it alone; inside a listener, a narrower host is a
/// matter of rank, not a wall: rules of wildcard hosts still serve what the exact host's rules do not.
pub(super) fn edge(world: &World, name: &Name, gateway: &Gateway, port: u16, caller: &Caller) -> RouteTable {
    let judged = attach::listeners(gateway);
    let served: Vec<_> = judged.iter().enumerate().filter(|(_, judged)| judged.refused.is_none() && judged.listener.port == port).collect();
    let hostname = |place: usize| gateway.listeners[place].hostname.as_deref().unwrap_or("*");
    let mut backends = BTreeSet::new();
    let mut hosts = Vec::new();
    for (place, judged) in &served {
        let listener = Some((name, judged.listener.name.as_str()));
        let edge = Frontend { index: world.index(), caller, called: None, listener };
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
                if seen.insert((&entry.route.key, entry.place())) {
                    rules.push(rule::compile(&edge, &entry, &mut backends));
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
    for route in index.routes.iter() {
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
    let action = rule::forward(ClusterSpecifier::Cluster(cluster), Some(Duration::ZERO));
    Route { name, r#match: Some(rule::match_of(&Match::any(), false)), action: Some(Action::Route(action)), ..Route::default() }
}
