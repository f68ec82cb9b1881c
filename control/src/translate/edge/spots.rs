//! Where requests come by that an edge object is about: for each Gateway the places that they belong to.

use std::collections::{BTreeMap, BTreeSet};

use super::ladder::{Spot, places, rule_names};
use crate::translate::attach::{self, Attachment as Standing, WhyNot, content};
use crate::translate::edge_listeners::{self, Judged};
use crate::world::edge::EdgeAttachment;
use crate::world::object::attachment;
use crate::world::traffic::{Place, PolicyTarget};
use crate::world::{Index, Kind, Name, Object, ObjectKey, World};

/// Where requests come by that an object is about, at one Gateway.
pub(super) type Spots = BTreeSet<Vec<Place>>;

/// What an object is about.
pub(super) struct About<'a> {
    /// The Gateways: where, and the path of the field that leads there, with its line.
    pub gateways: BTreeMap<Name, (Spots, (String, u32))>,
    /// Targets that lead to none, with the field and why.
    pub nowhere: Vec<(&'a PolicyTarget, (String, u32), WhyNot)>,
}

/// See [`About`].
pub(super) fn about<'a>(world: &World, object: &Object, attachment: &'a EdgeAttachment) -> About<'a> {
    let mut about = About { gateways: BTreeMap::new(), nowhere: Vec::new() };
    let mut add = |spots: Vec<(Name, Vec<Place>)>, field: &(String, u32)| {
        for (gateway, places) in spots {
            about.gateways.entry(gateway).or_insert_with(|| (Spots::new(), field.clone())).0.insert(places);
        }
    };
    for (number, target) in attachment.targets.iter().enumerate() {
        let field = (format!("spec.targetRefs[{number}]"), target.line);
        match spots_of(world, object, target) {
            Ok(spots) => add(spots, &field),
            Err(refusal) => about.nowhere.push((target, field, refusal)),
        }
    }
    if attachment.targets.is_empty() {
        add(wide(world.index(), object, attachment), &("spec".to_owned(), 0));
    }
    about
}

/// The same at one Gateway.
pub(super) fn spots_at(world: &World, object: &Object, gateway: &Name) -> Spots {
    let about = attachment(object).map(|attachment| about(world, object, attachment));
    about.and_then(|mut about| about.gateways.remove(gateway)).map(|(spots, _)| spots).unwrap_or_default()
}

/// The spots of what has no targets.
fn wide(index: &Index, object: &Object, attachment: &EdgeAttachment) -> Vec<(Name, Vec<Place>)> {
    let place = attachment.places(&object.key).pop();
    if matches!(place, Some(Place::Mesh)) {
        return index.gateways.keys().flat_map(|name| of_gateway(index, name, None)).collect();
    }
    let routes = index.routes.iter().filter(|route| route.key.namespace == object.key.namespace);
    routes.flat_map(|route| of_route(index, route, None)).collect()
}

/// The spots that a target is about.
///
/// # Errors
/// There is no such thing.
fn spots_of(world: &World, object: &Object, target: &PolicyTarget) -> Result<Vec<(Name, Vec<Place>)>, WhyNot> {
    let index = world.index();
    let key = target.key(&object.key.namespace);
    let name = (key.namespace.clone(), key.name.clone());
    let none = |message: String| Err(WhyNot::new("TargetNotFound", message));
    let section = target.section.as_deref();
    match target.kind {
        Kind::Gateway => {
            if index.foreign_gateways.contains(&name) {
                return none(format!("{key} is another controller's"));
            }
            let Some(gateway) = index.gateways.get(&name).and_then(|gateway| attach::gateway(gateway)) else {
                return none(format!("there is no {key}"));
            };
            if let Some(section) = section
                && !gateway.listeners.iter().any(|listener| listener.name == section)
            {
                return none(format!("{key} has no listener named `{section}`"));
            }
            Ok(of_gateway(index, &name, section))
        }
        Kind::ListenerSet => {
            let set = index.listener_sets.get(&name).and_then(|object| edge_listeners::set(object));
            let Some(set) = set else { return none(format!("there is no {key}")) };
            let gateway = set.parent(&name.0).filter(|gateway| index.gateways.contains_key(gateway));
            let Some(gateway) = gateway else { return none(format!("{key} belongs to no Gateway of ours")) };
            if let Some(section) = section
                && !set.listeners.iter().any(|listener| listener.name == section)
            {
                return none(format!("{key} has no listener named `{section}`"));
            }
            Ok(of_listeners(index, &gateway, &key, section))
        }
        Kind::HTTPRoute | Kind::GRPCRoute => {
            let Some(route) = world.get(&key) else { return none(format!("there is no {key}")) };
            if let Some(section) = section
                && !rule_names(route).any(|name| name == section)
            {
                return none(format!("{key} has no rule named `{section}`"));
            }
            let spots = of_route(index, route, section);
            if spots.is_empty() { none(format!("{key} is attached to no Gateway")) } else { Ok(spots) }
        }
        _ => none(format!("{}s are not served by this version", target.kind)),
    }
}

/// All listeners at a Gateway, those of its ListenerSets too, or one of its own.
fn of_gateway(index: &Index, name: &Name, section: Option<&str>) -> Vec<(Name, Vec<Place>)> {
    let key = ObjectKey::new(Kind::Gateway, &name.0, &name.1);
    if section.is_some() {
        return of_listeners(index, name, &key, section);
    }
    edge_listeners::listeners(index, name).iter().map(|judged| (name.clone(), places(&spot(name, judged, None)))).collect()
}

/// All listeners of a Gateway or ListenerSet, or one.
fn of_listeners(index: &Index, name: &Name, owner: &ObjectKey, section: Option<&str>) -> Vec<(Name, Vec<Place>)> {
    let judged = edge_listeners::listeners(index, name);
    let own = judged.iter().filter(|judged| judged.owner.key == *owner && section.is_none_or(|section| judged.listener.name == section));
    own.map(|judged| (name.clone(), places(&spot(name, judged, None)))).collect()
}

fn spot<'a>(gateway: &'a Name, judged: &'a Judged<'_>, route: Option<(&'a Object, Option<&'a str>)>) -> Spot<'a> {
    Spot { gateway, owner: &judged.owner.key, listener: &judged.listener.name, route }
}

/// All listeners that a route is attached to.
fn of_route(index: &Index, route: &Object, rule: Option<&str>) -> Vec<(Name, Vec<Place>)> {
    let mut spots = Vec::new();
    for parent in content(route).into_iter().flat_map(|spec| &spec.parents) {
        let Standing::Gateway(name, attached) = attach::standing(index, route, parent) else { continue };
        let judged = edge_listeners::listeners(index, &name);
        for judged in attached.iter().filter_map(|(listener, _)| judged.get(*listener)) {
            spots.push((name.clone(), places(&spot(&name, judged, Some((route, rule))))));
        }
    }
    spots
}
