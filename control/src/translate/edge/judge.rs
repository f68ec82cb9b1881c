//! An edge object's standing with each Gateway it is about (Gateway API, policy attachment: `status.ancestors`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::acme::{self, OwnCondition};
use super::ladder::{Climb, Lost};
use super::spots::{About, about};
use super::{authorization, basic, client, consumers, external, limits, login, loosened, secret, tokens};
use crate::translate::attach::WhyNot;
use crate::world::edge::{ApiKeyAuth, BasicAuth, ClientPolicy, ExternalAuth, OidcLogin};
use crate::world::object::attachment;
use crate::world::security::authentication::RequestAuthentication;
use crate::world::security::authorization::lists;
use crate::world::traffic::{Place, PolicyTarget};
use crate::world::{Index, Kind, Object, ObjectKey, Spec, World};

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

/// Judges an object at every Gateway; nothing for one that is none of an edge's.
pub(in crate::translate) fn judge(world: &World, object: &Object) -> Vec<EdgeAncestor> {
    let Some(attachment) = attachment(object) else { return Vec::new() };
    let About { gateways, nowhere: astray } = about(world, object, attachment);
    let index = world.index();
    let refused = |(target, field, refusal): (&PolicyTarget, (String, u32), WhyNot)| EdgeAncestor {
        reference: reference(object, target),
        field,
        accepted: Err(refusal),
        partly: None,
        resolved: None,
        own: Vec::new(),
        loosened: Vec::new(),
    };
    let mut ancestors: Vec<EdgeAncestor> = astray.into_iter().map(refused).collect();
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
