//! Service ports with a TCPRoute or TLSRoute: connections are led, not requests.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use proto::names::BAD_BACKEND;
use proto::xds::listener::Listener;

use super::attach::{Backend, content, narrowness};
use super::rule::{Frontend, cluster};
use super::{listener, policy, wire};
use crate::world::{Kind, Object};

/// Where connections go: clusters with their weights.
type Split = Vec<(String, u32)>;

/// The listener of a Service port whose routes, the oldest first, are of one of the two kinds; adds all that they lead to.
pub(super) fn listener(front: &Frontend<'_>, address: SocketAddr, routes: &[&Object], backends: &mut BTreeSet<Backend>) -> Listener {
    let idle = front.called.and_then(|called| policy::idle(front.index, called));
    let tls = routes.iter().any(|route| route.key.kind == Kind::TLSRoute);
    if !tls {
        // The oldest serves; the others wait for its place.
        let split = routes.first().map(|route| split(front, route, backends)).unwrap_or_default();
        return listener::bytes(address, wire::tcp(&split, idle));
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
    listener::by_name(address, chains.into_iter().map(|(name, split)| (name, wire::tcp(&split, idle))))
}

/// What TLS may ask for; `*`: anything, or nothing.
fn server_names(route: &Object) -> Vec<String> {
    let names = content(route).map_or(&[][..], |spec| &spec.hostnames);
    if names.is_empty() { vec!["*".to_owned()] } else { names.to_vec() }
}

fn split(front: &Frontend<'_>, route: &Object, backends: &mut BTreeSet<Backend>) -> Split {
    let rule = content(route).and_then(|spec| spec.rules.first());
    match rule.map(|rule| &rule.backends) {
        Some(Some(listed)) => listed.iter().map(|reference| (cluster(front, route, reference, backends), reference.weight)).collect(),
        Some(None) => {
            backends.extend(front.called.cloned());
            vec![(front.called.map_or_else(|| BAD_BACKEND.to_owned(), Backend::cluster), 1)]
        }
        None => Vec::new(),
    }
}
