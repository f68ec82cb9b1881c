//! The view of one proxy: its own listeners, the names it asked for, and the closure of both, put together from parts (`part`).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use proto::names::{self, Mode};

use super::cluster::Calling;
use super::part::{PartKey, ViewPart};
use super::subject::Subject;
use super::{Audience, View};
use crate::world::World;
use crate::world::edge::CONSUMER_PAGES;

/// What a proxy should hold: what its own listeners imply, and the closure of the names it `wants` (`out/IP:PORT`, `dns/NAME`).
pub fn view(world: &World, audience: &Audience, wants: &BTreeSet<String>) -> View {
    let mut view = View::default();
    compose(
        world,
        audience,
        wants,
        |key| Arc::new(key.make(world)),
        |part| {
            view.resources.extend(part.resources.iter().map(|(url, name, item)| ((*url, name.clone()), Arc::clone(item))));
        },
    )
    .missing
    .clone_into(&mut view.missing);
    view
}

/// What putting a view together came to, beside its resources.
#[derive(Debug, Default)]
pub struct Composed {
    /// Names asked for that lead nowhere.
    pub missing: BTreeSet<String>,
    /// What the view depends on, in order, each once.
    pub subjects: Vec<Subject>,
}

/// Puts a view together from parts, which come from `part`: made at once, or from where they are kept. Each is shown to `take`; one may come
/// twice.
pub fn compose(
    world: &World,
    audience: &Audience,
    wants: &BTreeSet<String>,
    part: impl Fn(PartKey) -> Arc<ViewPart>,
    take: impl FnMut(&ViewPart),
) -> Composed {
    let mut closure = Closure { part, take, composed: Composed::default(), destinations: BTreeSet::new(), sessions: BTreeSet::new() };
    let caller = audience.caller(world.index());
    let outbound = |address: SocketAddr| PartKey::Outbound(address, caller.clone());
    let own = closure.add(PartKey::Own(audience.clone()));
    let node = &audience.node;
    if node.mode == Mode::Edge {
        closure.add(PartKey::Secrets((node.namespace.clone(), node.instance.clone())));
    }
    if let Some(usable) = audience.usable(world.index()) {
        for page in 0..CONSUMER_PAGES {
            closure.add(PartKey::Consumers(Arc::clone(&usable), page));
        }
    }
    for name in wants {
        let found = if let Some(address) = names::outbound_address(name) {
            !closure.add(outbound(address)).missing
        } else if names::dns_host(name).is_some() {
            let part = closure.add(PartKey::Name(name.clone(), audience.node.namespace.clone()));
            part.calls.iter().for_each(|address| _ = closure.add(outbound(*address)));
            !part.missing
        } else {
            false
        };
        if !found {
            closure.composed.missing.insert(name.clone());
        }
    }
    for destination in std::mem::take(&mut closure.destinations) {
        let sessions = closure.sessions.contains(&destination.name());
        let calling = Calling { namespace: node.namespace.clone(), mode: node.mode, sessions, shows: own.shows.clone() };
        closure.add(PartKey::Cluster(destination.clone(), calling));
        closure.add(PartKey::Assignment(destination));
    }
    let mut composed = closure.composed;
    composed.subjects.sort_unstable();
    composed.subjects.dedup();
    composed
}

struct Closure<P, T> {
    part: P,
    take: T,
    composed: Composed,
    destinations: BTreeSet<super::cluster::Destination>,
    /// Clusters with endpoints that sessions name.
    sessions: BTreeSet<String>,
}

impl<P: Fn(PartKey) -> Arc<ViewPart>, T: FnMut(&ViewPart)> Closure<P, T> {
    fn add(&mut self, key: PartKey) -> Arc<ViewPart> {
        let part = (self.part)(key);
        (self.take)(&part);
        self.destinations.extend(part.destinations.iter().cloned());
        self.sessions.extend(part.sessions.iter().cloned());
        self.composed.subjects.extend(&part.subjects);
        part
    }
}
