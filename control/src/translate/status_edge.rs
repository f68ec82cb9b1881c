//! What status says of Gateways, of ListenerSets and of how edges meet backends (`gateway-api.md` 1.3, 1.4, 1.7).

use std::collections::BTreeMap;

use proto::annotations::CONTROLLER;
use proto::words::ADDRESS_NOT_USABLE;
use serde_json::json;

use super::attach::WhyNot;
use super::edge_listeners::{self, Edge, Judged};
use super::edge_tls::{self, TlsStanding};
use super::status_words::{AncestorStatus, Condition, Conditions, ListenerStatus, ParentStatus, Status, wholly_invalid};
use super::{attach, backend_tls, reached};
use crate::world::backend_tls::BackendTlsPolicy;
use crate::world::core::Ingress;
use crate::world::external_backend::ExternalBackend;
use crate::world::gateway::Gateway;
use crate::world::key::GATEWAY_API;
use crate::world::listener::ListenerSet;
use crate::world::{Kind, Name, Object, ObjectKey, World};

/// A Gateway with all that is to be said of its listeners.
struct EdgeStatus<'a> {
    edge: Edge<'a>,
    standings: Vec<TlsStanding>,
    overlaps: BTreeMap<usize, (&'static str, String)>,
    /// Its proxy is there, or nobody watches over it.
    pending: Option<WhyNot>,
}

impl<'a> EdgeStatus<'a> {
    fn of(world: &'a World, name: &'a Name) -> Option<Self> {
        let edge = Edge::of(world.index(), name)?;
        let standings = edge_tls::standings(world, name, edge.gateway, &edge.listeners);
        let overlaps = edge_tls::overlaps(&edge.listeners, &standings);
        let state = world.gateway_states().get(name);
        // In a cluster no node agent tells; there its proxy's acknowledgement does (`status::speak`).
        let told = world.settings().assume_ready || world.settings().in_cluster;
        // One that asks for an address which is not to be had goes on where it is.
        let serves = state.is_some_and(|state| state.ready && !state.message.starts_with(ADDRESS_NOT_USABLE));
        let pending = (!told && !serves).then(|| {
            let message = state.map(|state| state.message.clone()).unwrap_or_default();
            let reason = if message.starts_with(ADDRESS_NOT_USABLE) { "AddressNotUsable" } else { "Pending" };
            WhyNot::new(reason, message)
        });
        Some(Self { edge, standings, overlaps, pending })
    }

    /// Listeners of one object, with their places.
    fn of_owner<'s>(&'s self, owner: &'s ObjectKey) -> impl Iterator<Item = (usize, &'s Judged<'a>)> {
        self.edge.listeners.iter().enumerate().filter(move |(_, judged)| judged.owner.key == *owner)
    }

    fn accepted(&self, place: usize) -> bool {
        self.edge.listeners[place].refused.is_none() && self.standings[place].refused.is_none()
    }

    fn serves(&self, place: usize) -> bool {
        self.accepted(place) && self.standings[place].serves(&self.edge.listeners[place])
    }

    fn programmed(&self, served: bool, pending: &'static str, by: &Conditions) -> Condition {
        match (&self.pending, served) {
            (_, false) => by.say("Programmed", "False", "Invalid", ""),
            (None, true) => by.holds("Programmed"),
            (Some(why), true) => by.say("Programmed", "False", if pending.is_empty() { why.reason } else { pending }, why.message.clone()),
        }
    }

    /// How many accepted routes a listener has; unresolved backends do not matter.
    fn routes(&self, place: usize) -> usize {
        let mut routes: Vec<&ObjectKey> = Vec::new();
        for (route, _) in &self.edge.attached[place] {
            let good = attach::content(route).is_some_and(|spec| wholly_invalid(spec).is_none());
            if good && routes.last() != Some(&&route.key) {
                routes.push(&route.key);
            }
        }
        routes.len()
    }

    fn listener(&self, place: usize, served: bool, by: &Conditions) -> ListenerStatus {
        let (judged, standing) = (&self.edge.listeners[place], &self.standings[place]);
        let mut conditions = vec![match judged.refused.as_ref().or(standing.refused.as_ref()) {
            Some(refusal) => by.fails("Accepted", refusal),
            None => by.holds("Accepted"),
        }];
        let conflict = judged.refused.as_ref().filter(|_| judged.conflicted());
        if let Some(conflict) = conflict {
            conditions.push(by.say("Conflicted", "True", conflict.reason, conflict.message.clone()));
        }
        conditions.push(match (&standing.unresolved, judged.invalid_kinds.as_slice()) {
            (_, kinds @ [_, ..]) => by.say("ResolvedRefs", "False", "InvalidRouteKinds", format!("it cannot carry {}", kinds.join(", "))),
            (Some(refusal), []) => by.fails("ResolvedRefs", refusal),
            (None, []) => by.say("ResolvedRefs", "True", "ResolvedRefs", standing.remark.clone().unwrap_or_default()),
        });
        conditions.push(match conflict {
            // The suite wants the conflict's own word in all three.
            Some(conflict) => by.fails("Programmed", conflict),
            None => match &standing.pending {
                Some((_, why)) if self.accepted(place) => by.say("Programmed", "False", "CertificatePending", why.clone()),
                _ => self.programmed(served && self.serves(place), "Pending", by),
            },
        });
        if let Some((reason, message)) = self.overlaps.get(&place) {
            conditions.push(by.say("OverlappingTLSConfig", "True", reason, message.clone()));
        }
        let kind = |kind: &Kind| BTreeMap::from([("group", GATEWAY_API.to_owned()), ("kind", kind.text().to_owned())]);
        let supported = if judged.refused.is_none() { judged.kinds.as_slice() } else { &[] };
        ListenerStatus {
            name: judged.listener.name.clone(),
            supported_kinds: supported.iter().map(kind).collect(),
            attached_routes: self.routes(place),
            conditions,
        }
    }
}

/// Of a Gateway of ours.
pub(super) fn of_gateway(world: &World, object: &Object, name: &Name, gateway: &Gateway, by: &Conditions) -> Option<Status> {
    let index = world.index();
    let told = EdgeStatus::of(world, name)?;
    let refused = edge_listeners::refused(index, gateway);
    let own: Vec<usize> = told.of_owner(&object.key).map(|(place, _)| place).collect();
    let good = own.iter().filter(|place| told.accepted(**place)).count();
    let accepted = match &refused {
        Some(refusal) => by.fails("Accepted", refusal),
        None if good == 0 => by.say("Accepted", "False", "ListenersNotValid", "no listener can be served"),
        None if good < own.len() => by.say("Accepted", "True", "ListenersNotValid", "some listeners cannot be served"),
        None => by.holds("Accepted"),
    };
    let served = refused.is_none() && good > 0;
    let mut conditions = vec![accepted, told.programmed(served, "", by)];
    conditions.extend(resolved(world, &told, gateway, by));
    if gateway.clients.all().any(|(_, demand)| demand.insecure) {
        let message = "tls.frontend lets in clients whose certificate nobody has checked (AllowInsecureFallback)";
        conditions.push(by.say("InsecureFrontendValidationMode", "True", "ConfigurationChanged", message));
    }
    let places = if served { places(world, name) } else { Vec::new() };
    let place = |place: &Ingress| match place {
        Ingress::Address(address) => BTreeMap::from([("type", "IPAddress".to_owned()), ("value", address.to_string())]),
        Ingress::Name(name) => BTreeMap::from([("type", "Hostname".to_owned()), ("value", name.clone())]),
    };
    let sets = index.gateway_sets.get(name).into_iter().flatten();
    let attached = sets.filter(|set| told.of_owner(&set.key).any(|(place, _)| told.serves(place))).count();
    Some(Status {
        conditions,
        listeners: own.iter().map(|place| told.listener(*place, served, by)).collect(),
        addresses: places.iter().map(place).collect(),
        attached_listener_sets: served.then_some(attached),
        ..Status::default()
    })
}

/// Of what a Gateway itself refers to, where it does.
fn resolved(world: &World, told: &EdgeStatus<'_>, gateway: &Gateway, by: &Conditions) -> Option<Condition> {
    let unresolved = || told.standings.iter().any(|standing| standing.unresolved.is_some());
    Some(match edge_tls::client_certificate(world, told.edge.name, gateway)? {
        Err(refusal) => by.fails("ResolvedRefs", &refusal),
        Ok((object, _, Some(fault))) => {
            let message = format!("{object}: {fault}; the certificate that it held stays in force for a day");
            by.say("ResolvedRefs", "False", "InvalidClientCertificateRef", message)
        }
        Ok(_) if unresolved() => by.say("ResolvedRefs", "False", "ListenersNotResolved", "some listener's references do not resolve"),
        Ok(_) => by.holds("ResolvedRefs"),
    })
}

/// Where a Gateway is reached: at an address of its own, which we gave it, or those that it chose; in a cluster, where others put what
/// serves it.
fn places(world: &World, name: &Name) -> Vec<Ingress> {
    let index = world.index();
    if world.settings().in_cluster {
        return reached::places(index, name);
    }
    let gateway = index.gateways.get(name).and_then(|object| attach::gateway(object));
    let chosen: Vec<Ingress> = gateway
        .into_iter()
        .flat_map(|gateway| &gateway.addresses)
        .filter_map(|(_, value)| value.parse().ok().map(Ingress::Address))
        .collect();
    if !chosen.is_empty() {
        return chosen;
    }
    index.gateway_addresses.get(name).into_iter().flatten().copied().map(Ingress::Address).collect()
}

/// Of a ListenerSet whose parent is a Gateway; of others' Gateways nothing.
pub(super) fn of_set(world: &World, object: &Object, set: &ListenerSet, by: &Conditions) -> Option<Status> {
    let index = world.index();
    let refusal =
        |refusal: &WhyNot| Status { conditions: vec![by.fails("Accepted", refusal), by.fails("Programmed", refusal)], ..Status::default() };
    let Some(name) = set.parent(&object.key.namespace) else {
        return Some(refusal(&WhyNot::new("Invalid", "its parent is no Gateway")));
    };
    if index.foreign_gateways.contains(&name) {
        return None;
    }
    let Some(gateway) = index.gateways.get(&name) else {
        let message = format!("there is no Gateway {}/{}", name.0, name.1);
        return Some(refusal(&WhyNot::new("ParentNotAccepted", message)));
    };
    if let Some(refused) = edge_listeners::set_refused(index, gateway, object) {
        return Some(refusal(&refused));
    }
    let told = EdgeStatus::of(world, &name)?;
    let own: Vec<usize> = told.of_owner(&object.key).map(|(place, _)| place).collect();
    // What waits for its first certificate is as good as its author could make it.
    let waits = |place: usize| told.accepted(place) && told.standings[place].pending.is_some();
    let good = own.iter().filter(|place| told.serves(**place) || waits(**place)).count();
    let conditions = if good == 0 {
        let none = WhyNot::new("ListenersNotValid", "no listener can be served");
        vec![by.fails("Accepted", &none), by.fails("Programmed", &none)]
    } else if good < own.len() {
        let accepted = by.say("Accepted", "True", "ListenersNotValid", "some listeners cannot be served");
        vec![accepted, told.programmed(true, "Pending", by)]
    } else {
        vec![by.holds("Accepted"), told.programmed(true, "Pending", by)]
    };
    Some(Status { conditions, listeners: own.iter().map(|place| told.listener(*place, true, by)).collect(), ..Status::default() })
}

/// Of an XBackend, at each Gateway that leads there.
pub(super) fn of_external(world: &World, object: &Object, spec: &ExternalBackend, by: &Conditions) -> Status {
    let index = world.index();
    let accepted = match backend_tls::judge_outside(index, object, spec) {
        Ok(()) => by.holds("Accepted"),
        Err(refusal) => by.fails("Accepted", &refusal),
    };
    let unresolved = spec.tls.as_ref().and_then(|policy| backend_tls::unresolved(index, object, policy));
    let unresolved = unresolved.or_else(|| edge_tls::unshown(world, object, spec));
    let resolved = unresolved.map_or_else(|| by.holds("ResolvedRefs"), |refusal| by.fails("ResolvedRefs", &refusal));
    let one = |(namespace, name): Name| ParentStatus {
        parent_ref: json!({"group": GATEWAY_API, "kind": "Gateway", "namespace": namespace, "name": name}),
        controller_name: CONTROLLER,
        conditions: vec![accepted.clone(), resolved.clone()],
    };
    Status { parents: backend_tls::ancestors_outside(index, object).into_iter().map(one).collect(), ..Status::default() }
}

/// Of a BackendTLSPolicy, at each Gateway that goes by it.
pub(super) fn of_backend_tls(world: &World, object: &Object, policy: &BackendTlsPolicy, by: &Conditions) -> Status {
    let index = world.index();
    let accepted = match backend_tls::judge(index, object, policy) {
        Ok(()) => by.holds("Accepted"),
        Err(refusal) => by.fails("Accepted", &refusal),
    };
    let resolved = match backend_tls::unresolved(index, object, policy) {
        Some(refusal) => by.fails("ResolvedRefs", &refusal),
        None => by.holds("ResolvedRefs"),
    };
    let one = |(namespace, name): Name| AncestorStatus {
        ancestor_ref: json!({"group": GATEWAY_API, "kind": "Gateway", "namespace": namespace, "name": name}),
        controller_name: CONTROLLER,
        conditions: vec![accepted.clone(), resolved.clone()],
    };
    Status { ancestors: backend_tls::ancestors(index, object, policy).into_iter().map(one).collect(), ..Status::default() }
}
