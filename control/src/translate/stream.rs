//! Service ports with a TCPRoute or TLSRoute: connections are led, not requests.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use proto::names::BAD_BACKEND;
use proto::xds::listener::Listener;

use super::attach::{Backend, content, narrowness};
use super::rule::{Frontend, cluster};
use super::{listener, policy, wire};
use crate::world::{Kind, Object};

/// Where connections go.
#[derive(Clone, Default)]
struct Split {
    /// Clusters with their weights.
    clusters: Vec<(String, u32)>,
    /// As [`wire::tcp`] has it. A connection has one timeout, whichever backend it leads to: the longest of theirs.
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

/// What TLS may ask for; `*`: anything, or nothing.
fn server_names(route: &Object) -> Vec<String> {
    let names = content(route).map_or(&[][..], |spec| &spec.hostnames);
    if names.is_empty() { vec!["*".to_owned()] } else { names.to_vec() }
}

fn split(front: &Frontend<'_>, route: &Object, backends: &mut BTreeSet<Backend>) -> Split {
    let rule = content(route).and_then(|spec| spec.rules.first());
    let mut own = BTreeSet::new();
    let clusters = match rule.map(|rule| &rule.backends) {
        Some(Some(listed)) => listed.iter().map(|reference| (cluster(front, route, reference, &mut own), reference.weight)).collect(),
        Some(None) => {
            own.extend(front.called.cloned());
            vec![(front.called.map_or_else(|| BAD_BACKEND.to_owned(), Backend::cluster), 1)]
        }
        None => Vec::new(),
    };
    let idle = policy::longest(own.iter().map(|backend| policy::idle(front.index, backend)));
    backends.extend(own);
    Split { clusters, idle }
}
