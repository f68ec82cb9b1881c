//! The listeners of a Gateway: its own, and those that ListenerSets bring along, in the order in which they have precedence; which are
//! refused, and what is attached to each (`gateway-api.md` 1.3, 1.4).

use std::collections::BTreeSet;
use std::sync::Arc;

use super::attach::{self, Attachment, content, covers, narrowness};
#[cfg(test)]
use super::judged::LISTENERS_MAX;
pub(super) use super::judged::{Family, Judged, listeners, refused, set, set_refused};
use crate::world::gateway::Gateway;
use crate::world::{Index, Name, Object};

/// A Gateway of ours with all that is attached to it.
pub(super) struct Edge<'a> {
    /// Its name.
    pub name: &'a Name,
    /// Its content.
    pub gateway: &'a Gateway,
    /// Its listeners, see [`listeners`].
    pub listeners: Vec<Judged<'a>>,
    /// Routes at each, the oldest first, with each of their hosts there.
    pub attached: Vec<Vec<(&'a Arc<Object>, String)>>,
}

impl<'a> Edge<'a> {
    /// `None`: there is no such Gateway of ours.
    pub(super) fn of(index: &'a Index, name: &'a Name) -> Option<Self> {
        let gateway = index.gateways.get(name).and_then(|object| attach::gateway(object))?;
        let listeners = listeners(index, name);
        let mut attached: Vec<Vec<(&'a Arc<Object>, String)>> = listeners.iter().map(|_| Vec::new()).collect();
        for route in index.routes.iter().filter(|route| attach::names_gateway(index, route, name)) {
            let mut hosts: BTreeSet<(usize, String)> = BTreeSet::new();
            for parent in content(route).into_iter().flat_map(|spec| &spec.parents) {
                if let Attachment::Gateway(other, places) = attach::standing_at(index, route, parent, Some((name, &listeners)))
                    && other == *name
                {
                    hosts.extend(places.into_iter().flat_map(|(place, hosts)| hosts.into_iter().map(move |host| (place, host))));
                }
            }
            for (place, host) in hosts {
                attached[place].push((route, host));
            }
        }
        Some(Self { name, gateway, listeners, attached })
    }

    /// The listeners in force, with their places.
    pub(super) fn served(&self) -> impl Iterator<Item = (usize, &Judged<'a>)> {
        self.listeners.iter().enumerate().filter(|(_, judged)| judged.refused.is_none())
    }

    /// The same of one port and family.
    pub(super) fn at(&self, port: u16, family: Family) -> impl Iterator<Item = (usize, &Judged<'a>)> {
        let here = move |judged: &Judged<'_>| judged.listener.port == port && Family::of(&judged.listener.protocol) == Some(family);
        self.served().filter(move |(_, judged)| here(judged))
    }

    /// Its ports, and what is spoken there.
    pub(super) fn ports(&self, index: &Index) -> BTreeSet<(u16, Family)> {
        ports_of(index, self.gateway, &self.listeners)
    }

    /// Whether of all listeners of its port and family this one is the narrowest that a host belongs to.
    pub(super) fn has(&self, place: usize, host: &str) -> bool {
        let own = self.listeners[place].listener;
        let Some(family) = Family::of(&own.protocol) else { return false };
        let fits = self.at(own.port, family).filter(|(_, judged)| covers(judged.host(), host));
        fits.max_by_key(|(_, judged)| narrowness(judged.host())).is_some_and(|(best, _)| best == place)
    }

    /// The oldest route at a listener.
    pub(super) fn oldest(&self, place: usize) -> Option<&'a Arc<Object>> {
        self.attached[place].first().map(|(route, _)| *route)
    }
}

fn ports_of(index: &Index, gateway: &Gateway, listeners: &[Judged<'_>]) -> BTreeSet<(u16, Family)> {
    if refused(index, gateway).is_some() {
        return BTreeSet::new();
    }
    let served = listeners.iter().filter(|judged| judged.refused.is_none());
    served.filter_map(|judged| Some((judged.listener.port, Family::of(&judged.listener.protocol)?))).collect()
}

/// The ports that a Gateway's proxy serves, and what is spoken there.
pub(super) fn ports(index: &Index, name: &Name) -> BTreeSet<(u16, Family)> {
    let Some(gateway) = index.gateways.get(name).and_then(|object| attach::gateway(object)) else { return BTreeSet::new() };
    ports_of(index, gateway, &listeners(index, name))
}

#[cfg(test)]
#[path = "edge_tests.rs"]
mod tests;
