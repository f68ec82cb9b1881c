//! An edge object's standing with each Gateway it is about (Gateway API, policy attachment: `status.ancestors`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::acme::{self, OwnCondition};
use super::ladder::{Climb, Lost, Spot, places};
use super::{authorization, basic, client, consumers, external, limits, login, loosened, secret, tokens};
use crate::translate::attach::{self, Attachment as Standing, WhyNot, content};
use crate::translate::edge_listeners::{self, Judged};
use crate::world::edge::{ApiKeyAuth, BasicAuth, ClientPolicy, EdgeAttachment, ExternalAuth, OidcLogin};
use crate::world::object::attachment;
use crate::world::security::authentication::RequestAuthentication;
use crate::world::security::authorization::lists;
use crate::world::traffic::{Place, PolicyTarget};
use crate::world::{Index, Kind, Name, Object, ObjectKey, Spec, World};

/// Fields that are named in one sentence.
const NAMED_MAX: usize = 8;

/// One Gateway, or what stands for it where a target leads to none.
#[derive(Debug)]
pub(in crate::translate) struct EdgeAncestor {
    /// As status names it.
    pub reference: serde_json::Value,
    /// Path of the field that names it, and its line; 0: the object's own.
    pub field: (String, u32),
    /// Whether it holds there.
    pub accepted: Result<String, WhyNot>,
    /// What of it does not.
    pub partly: Option<WhyNot>,
    /// Whether all that it refers to is there; `None`: it refers to nothing.
    pub resolved: Option<Result<(), WhyNot>>,
    /// What its kind says beside that.
    pub own: Vec<OwnCondition>,
    /// What of it lets in more than wider objects do, or of theirs less than it: each with what to do. Part of what is said where it holds.
    pub loosened: Vec<(String, &'static str)>,
}

/// Where requests come by that an object is about, at one Gateway.
pub(super) type Spots = BTreeSet<Vec<Place>>;

/// The Gateways that an object is about: where, and the field that leads there.
type About = BTreeMap<Name, (Spots, (String, u32))>;

/// Judges an object at every Gateway; nothing for one that is none of an edge's.
pub(in crate::translate) fn judge(world: &World, object: &Object) -> Vec<EdgeAncestor> {
    let Some(attachment) = attachment(object) else { return Vec::new() };
    let (gateways, mut ancestors) = about(world, object, attachment);
    let index = world.index();
    if gateways.is_empty() && ancestors.is_empty() {
        return vec![nowhere(object)];
    }
    let resolved = resolved(world, object);
    ancestors.extend(gateways.into_iter().map(|((namespace, name), (spots, field))| {
        let lost: Vec<Lost> = spots.iter().map(|places| lost(index, object, places)).collect();
        let (mut accepted, locked) = verdict(&lost);
        if spots.iter().any(|places| asks_nobody(index, object, places)) {
            let message = "neither it nor a wider object names a backendRef: what it is about is answered 500";
            accepted = Err(WhyNot::new("Invalid", message));
        }
        if matches!(object.spec, Spec::OidcLogin(_)) && spots.iter().any(|places| login::is_incomplete(index, places)) {
            let message = "neither it nor a wider object names both issuer and clientId: what it is about is answered 500";
            accepted = Err(WhyNot::new("Invalid", message));
        }
        let gateway = (namespace, name);
        let partly = locked
            .or_else(|| authorization::partly(index, object, &gateway))
            .or_else(|| client::misplaced(index, object, &gateway))
            .or_else(|| client::hindered(index, object, &gateway));
        let own = acme::conditions(world, object, &gateway, &spots);
        let loosened = if accepted.is_ok() { loosened::told(world, object, &gateway, &spots) } else { Vec::new() };
        let said = accepted.map(|said| said_with(said, &loosened));
        let (namespace, name) = gateway;
        let reference = json!({"group": Kind::Gateway.group(), "kind": "Gateway", "namespace": namespace, "name": name});
        EdgeAncestor { reference, field, accepted: said, partly, resolved: resolved.clone(), own, loosened }
    }));
    ancestors
}

/// One sentence of all that is to be said.
fn said_with(said: String, loosened: &[(String, &'static str)]) -> String {
    let all = std::iter::once(said).chain(loosened.iter().map(|(told, _)| told.clone()));
    all.filter(|told| !told.is_empty()).collect::<Vec<_>>().join("; ")
}

/// Where requests come by that an object is about, at that Gateway.
pub(super) fn spots_at(world: &World, object: &Object, gateway: &Name) -> Spots {
    let about = attachment(object).map(|attachment| about(world, object, attachment).0);
    about.and_then(|mut gateways| gateways.remove(gateway)).map(|(spots, _)| spots).unwrap_or_default()
}

/// All Gateways that it is about, and its targets that lead to none.
fn about(world: &World, object: &Object, attachment: &EdgeAttachment) -> (About, Vec<EdgeAncestor>) {
    let (mut gateways, mut ancestors) = (About::new(), Vec::new());
    let mut add = |spots: Vec<(Name, Vec<Place>)>, field: &(String, u32)| {
        for (gateway, places) in spots {
            gateways.entry(gateway).or_insert_with(|| (Spots::new(), field.clone())).0.insert(places);
        }
    };
    for (number, target) in attachment.targets.iter().enumerate() {
        let field = (format!("spec.targetRefs[{number}]"), target.line);
        match spots_of(world, object, target) {
            Ok(spots) => add(spots, &field),
            Err(refusal) => ancestors.push(EdgeAncestor {
                reference: reference(object, target),
                field,
                accepted: Err(refusal),
                partly: None,
                resolved: None,
                own: Vec::new(),
                loosened: Vec::new(),
            }),
        }
    }
    if attachment.targets.is_empty() {
        add(wide(world.index(), object, attachment), &("spec".to_owned(), 0));
    }
    (gateways, ancestors)
}

/// Whether an ExternalAuth holds where nobody says who is asked.
fn asks_nobody(index: &Index, object: &Object, places: &[Place]) -> bool {
    let held = || Climb::<ExternalAuth>::of(index, places).held();
    matches!(object.spec, Spec::ExternalAuth(_)) && held().is_some_and(|held| held.says.to.is_none())
}

fn lost(index: &Index, object: &Object, places: &[Place]) -> Lost {
    match &object.spec {
        Spec::ApiKeyAuth(_) => Climb::<ApiKeyAuth>::of(index, places).lost(&object.key),
        Spec::BasicAuth(_) => Climb::<BasicAuth>::of(index, places).lost(&object.key),
        Spec::ClientPolicy(_) => Climb::<ClientPolicy>::of(index, places).lost(&object.key),
        Spec::RequestAuthentication(_) => Climb::<RequestAuthentication>::of(index, places).lost(&object.key),
        Spec::ExternalAuth(_) => Climb::<ExternalAuth>::of(index, places).lost(&object.key),
        Spec::OidcLogin(_) => Climb::<OidcLogin>::of(index, places).lost(&object.key),
        _ => Lost { kept: 1, ..Lost::default() },
    }
}

/// Whether all that it refers to is there.
fn resolved(world: &World, object: &Object) -> Option<Result<(), WhyNot>> {
    let fault = match &object.spec {
        Spec::BasicAuth(spec) => {
            let users = spec.users.as_ref()?;
            basic::fault(world, users).or_else(|| consumers::crowded(world, users))
        }
        Spec::RateLimit(spec) => match &spec.store.rls {
            Some(_) => return limits::resolve(world.index(), object).map(|resolved| resolved.map(|_| ())),
            None => {
                let near = || spec.store.redis.as_ref().and_then(|redis| limits::near(world.index(), redis));
                let password = spec.store.password();
                if password.is_none() && near().is_none() {
                    return None;
                }
                password.and_then(|at| secret::shown(world, at).err()).or_else(near)
            }
        },
        Spec::ExternalAuth(spec) => {
            let resolved = external::resolve(world.index(), object, spec.to.as_ref()?);
            return Some(resolved.map(|_| ()));
        }
        Spec::OidcLogin(spec) => {
            if spec.issuer.is_none() && spec.secrets().next().is_none() {
                return None;
            }
            login::fault(world, object, spec)
        }
        Spec::RequestAuthentication(spec) => {
            let keys = tokens::keys_barred(world.index(), spec);
            if keys.is_none() && spec.introspection.is_none() {
                return None;
            }
            let said = spec.introspection.as_ref();
            let unproved = || said?.secret.as_ref().and_then(|at| secret::shown(world, at).err());
            keys.or_else(|| tokens::barred(world.index(), object, &said?.url)).or_else(unproved)
        }
        Spec::AuthorizationPolicy(policy) => {
            let mut named = lists(policy).peekable();
            named.peek()?;
            named.find_map(|list| authorization::fault(world, list))
        }
        _ => return None,
    };
    Some(fault.map_or(Ok(()), |why| Err(WhyNot::new("InvalidRef", why))))
}

/// What its losses at all spots come to.
fn verdict(lost: &[Lost]) -> (Result<String, WhyNot>, Option<WhyNot>) {
    let told = |which: fn(&Lost) -> &Vec<(&'static str, ObjectKey)>, verb: &str| {
        let mut by: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for (field, owner) in lost.iter().flat_map(which) {
            by.entry(owner.to_string()).or_default().insert(field);
        }
        let one = |(owner, fields): (&String, &BTreeSet<&str>)| {
            format!("{owner} {verb} {}", fields.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", "))
        };
        (!by.is_empty()).then(|| by.iter().map(one).collect::<Vec<_>>().join("; "))
    };
    let locked = told(|lost| &lost.locked, "locks").map(|told| WhyNot::new("Locked", told));
    let older = told(|lost| &lost.older, "is older and wins in");
    let nothing = lost.iter().all(|lost| lost.kept == 0);
    match older {
        Some(told) if nothing => (Err(WhyNot::new("Conflicted", told)), locked),
        Some(told) => (Ok(told), locked),
        None => (Ok(String::new()), locked),
    }
}

fn reference(object: &Object, target: &PolicyTarget) -> serde_json::Value {
    let (group, kind) = (target.kind.group(), target.kind.text());
    let mut reference = json!({"group": group, "kind": kind, "namespace": object.key.namespace, "name": target.name});
    if let (Some(section), Some(map)) = (&target.section, reference.as_object_mut()) {
        map.insert("sectionName".to_owned(), json!(section));
    }
    reference
}

/// An object that is about no Gateway yet.
fn nowhere(object: &Object) -> EdgeAncestor {
    let root = object.key.namespace == proto::annotations::ROOT_NAMESPACE;
    let (reference, message) = if root {
        let mesh = json!({"group": "meshwright.dev", "kind": "Mesh", "namespace": object.key.namespace, "name": "default"});
        (mesh, "there is no Gateway yet")
    } else {
        let namespace = json!({"group": "", "kind": "Namespace", "name": object.key.namespace});
        (namespace, "no route of this namespace is attached to a Gateway yet")
    };
    let field = ("spec".to_owned(), 0);
    let accepted = Ok(message.to_owned());
    EdgeAncestor { reference, field, accepted, partly: None, resolved: None, own: Vec::new(), loosened: Vec::new() }
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
                && !super::ladder::rule_names(route).any(|name| name == section)
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
