//! Service ports and listeners of Gateways with a TCPRoute, TLSRoute or UDPRoute: connections and datagrams are led, not requests.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use proto::names::BAD_BACKEND;
use proto::xds::listener::{Filter, Listener};

use super::attach::{Backend, content, good, narrowness};
use super::cluster::Destination;
use super::edge_listeners::Edge;
use super::frontend::Frontend;
use super::rule::cluster;
use super::{listener, policy, wire};
use crate::world::route::BackendRef;
use crate::world::{Kind, Object};

/// Where connections go.
#[derive(Clone, Default)]
struct Split {
    /// Clusters with their weights.
    clusters: Vec<(String, u32)>,
    /// As [`wire::tcp`] has it. A connection has one timeout, whichever backend it leads to: the longest of theirs, of those with a
    /// weight where there are any.
    idle: Option<Duration>,
}

/// The listener of a Service port whose routes, the oldest first, are of one of the two kinds; adds all that they lead to.
pub(super) fn listener(front: &Frontend<'_>, address: SocketAddr, routes: &[&Object], backends: &mut BTreeSet<Backend>) -> Listener {
    let tls = routes.iter().any(|route| route.key.kind == Kind::TLSRoute);
    if !tls {
        // The oldest serves; the others wait for its place.
        let split = routes.first().map(|route| split(front, route, backends)).unwrap_or_default();
        return listener::bytes(address, wire::tcp(&split.clusters, split.idle));
    }
    let mut chains: Vec<(String, Split)> = Vec::new();
    for route in routes {
        let split = split(front, route, backends);
        for name in server_names(route) {
            // Of one name the oldest serves.
            if !chains.iter().any(|(known, _)| *known == name) {
                chains.push((name, split.clone()));
            }
        }
    }
    // Names of one narrowness are different names: their order is for the eye.
    chains.sort_by(|(a, _), (b, _)| narrowness(b).cmp(&narrowness(a)).then_with(|| a.cmp(b)));
    listener::by_name(address, chains.into_iter().map(|(name, split)| (name, wire::tcp(&split.clusters, split.idle))))
}

/// Filters for the names that TLS may ask a Gateway's listener for, the narrowest first: of one name the oldest route serves, and a name
/// that belongs to a narrower listener is that one's.
pub(super) fn by_host(front: &Frontend<'_>, edge: &Edge<'_>, place: usize, backends: &mut BTreeSet<Backend>) -> Vec<(String, Filter)> {
    let mut led: Vec<(String, Filter)> = Vec::new();
    for (route, host) in &edge.attached[place] {
        if edge.has(place, host) && !led.iter().any(|(known, _)| known == host) {
            let split = split(front, route, backends);
            led.push((host.clone(), wire::tcp(&split.clusters, split.idle)));
        }
    }
    led.sort_by(|(a, _), (b, _)| narrowness(b).cmp(&narrowness(a)).then_with(|| a.cmp(b)));
    led
}

/// The filter of a Gateway's listener for bytes: the oldest route serves; without one they are refused.
pub(super) fn oldest(front: &Frontend<'_>, edge: &Edge<'_>, place: usize, backends: &mut BTreeSet<Backend>) -> Filter {
    let split = edge.oldest(place).map(|route| split(front, route, backends)).unwrap_or_default();
    wire::tcp(&split.clusters, split.idle)
}

/// Where a Gateway's listener leads datagrams, with weights: the oldest route serves; without one they are dropped.
pub(super) fn datagrams(front: &Frontend<'_>, edge: &Edge<'_>, place: usize, backends: &mut BTreeSet<Backend>) -> Vec<(String, u32)> {
    let Some(route) = edge.oldest(place) else { return Vec::new() };
    let listed = content(route).and_then(|spec| spec.rules.first()).map(|rule| rule.backends()).unwrap_or_default();
    let mut clusters = Vec::new();
    for reference in listed {
        let name = match good(front.index, route, reference, false) {
            Some(backend) => {
                let name = Destination::Datagrams(backend.clone()).name();
                backends.insert(backend);
                name
            }
            None => BAD_BACKEND.to_owned(),
        };
        clusters.push((name, reference.weight));
    }
    clusters
}

/// What TLS may ask for; `*`: anything, or nothing.
fn server_names(route: &Object) -> Vec<String> {
    let names = content(route).map_or(&[][..], |spec| &spec.hostnames);
    if names.is_empty() { vec!["*".to_owned()] } else { names.to_vec() }
}

fn split(front: &Frontend<'_>, route: &Object, backends: &mut BTreeSet<Backend>) -> Split {
    let rule = content(route).and_then(|spec| spec.rules.first());
    let (mut weighty, mut resting) = (BTreeSet::new(), BTreeSet::new());
    let named = |reference: &BackendRef| {
        let backends = if reference.weight > 0 { &mut weighty } else { &mut resting };
        (cluster(front, route, reference, backends), reference.weight)
    };
    let clusters = match rule.map(|rule| &rule.backends) {
        Some(Some(listed)) => listed.iter().map(named).collect(),
        Some(None) => {
            weighty.extend(front.called.cloned());
            vec![(front.called.map_or_else(|| BAD_BACKEND.to_owned(), Backend::cluster), 1)]
        }
        None => Vec::new(),
    };
    let counted = if weighty.is_empty() { &resting } else { &weighty };
    let idle = policy::longest(counted.iter().map(|backend| policy::idle(front.index, backend)));
    backends.extend(weighty);
    backends.extend(resting);
    Split { clusters, idle }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{FileChange, Folder};
    use crate::world::traffic::Caller;
    use crate::world::{Allocations, World, WorldSettings};

    #[test]
    fn the_longest_silence_is_that_of_backends_with_a_weight() {
        // Aim: a backend of weight 0 decides only where none has any.
        let service = |name: &str, idle: u64| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a}}\n\
                 spec: {{selector: {{app: {name}}}, ports: [{{name: tcp, port: 1}}]}}\n---\n\
                 apiVersion: meshwright.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: a}}\n\
                 spec: {{targetRefs: [{{group: '', kind: Service, name: {name}}}], timeouts: {{idle: {idle}s}}}}\n---\n"
            )
        };
        let caller = Caller { namespace: "a".to_owned(), service_account: None };
        for ((short, long), wanted) in [((1, 0), 60), ((1, 1), 600), ((0, 1), 600), ((0, 0), 600)] {
            let route = format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: TCPRoute\nmetadata: {{name: x, namespace: a}}\n\
                 spec: {{parentRefs: [{{group: '', kind: Service, name: short}}], rules: [{{backendRefs: [\
                 {{name: short, port: 1, weight: {short}}}, {{name: long, port: 1, weight: {long}}}]}}]}}"
            );
            let text = service("short", 60) + &service("long", 600) + &route;
            let change = FileChange { file: "f".to_owned(), text: Some(Ok(text)) };
            let mut world = World::new(WorldSettings::default(), Allocations::default());
            world.apply(Folder::default().update(vec![change], 0));
            let called = Backend { service: ("a".to_owned(), "short".to_owned()), port: 1 };
            let front = Frontend { index: world.index(), caller: &caller, called: Some(&called), listener: None };
            let mut backends = BTreeSet::new();
            let split = split(&front, &world.index().routes[0], &mut backends);
            assert_eq!((split.idle, backends.len()), (Some(Duration::from_secs(wanted)), 2), "{short}:{long}");
        }
    }
}
