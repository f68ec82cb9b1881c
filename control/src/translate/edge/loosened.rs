//! Where a narrower object of a kind that guards lets in what a wider one does not, field by field, as the ladder allows unless the wider one is
//! `locked`: both are told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::ladder::{Climb, Rung};
use super::spots::{Spots, spots_at};
use crate::world::edge::{ApiKeyAuth, BasicAuth, ConsumerChoice, ExternalAuth, FailureLimit, FilledHeader, Namespaces, OidcLogin};
use crate::world::object::attachment;
use crate::world::security::authentication::{JwtRule, RequestAuthentication};
use crate::world::traffic::Place;
use crate::world::{Index, Kind, Name, Object, ObjectKey, Spec, World};

/// Objects that are named in one sentence.
const NAMED_MAX: usize = 8;

/// Fields by whose word they are, or in whose place.
type Fields = BTreeMap<ObjectKey, BTreeSet<&'static str>>;

/// An edge kind that guards.
pub(super) trait Guard: Rung {
    /// Whether its word on a field lets in what `wider`, which fields that it does not say give the defaults to, would not, or what cannot be
    /// compared with that. `neighbours`: both are of one namespace.
    fn loosens(&self, wider: &Self, field: &'static str, neighbours: bool) -> bool;
}

/// What is to be told of an object at one Gateway: what it loosens, and who loosens it; each with what to do.
pub(super) fn told(world: &World, object: &Object, gateway: &Name, spots: &Spots) -> Vec<(String, &'static str)> {
    let index = world.index();
    let mut own = Fields::new();
    for (field, wide) in spots.iter().flat_map(|places| by(index, object, places)) {
        own.entry(wide).or_default().insert(field);
    }
    let mut told = Vec::new();
    if !own.is_empty() {
        told.push((format!("loosens what is said by {}", named(&own)), "leave the fields to the wider object, unless this is meant"));
    }
    let others = others(world, object, gateway);
    if !others.is_empty() {
        told.push((format!("is loosened by {}", named(&others)), "write `locked: true` to keep what it says, unless this is meant"));
    }
    told
}

/// Who loosens what an object says of all of a Gateway, of a listener or of the mesh: those whom it is not locked against need not be its author's.
fn others(world: &World, object: &Object, gateway: &Name) -> Fields {
    let mut found = Fields::new();
    let guards =
        matches!(object.key.kind, Kind::ApiKeyAuth | Kind::BasicAuth | Kind::RequestAuthentication | Kind::ExternalAuth | Kind::OidcLogin);
    let of_routes = |kind: Kind| matches!(kind, Kind::HTTPRoute | Kind::GRPCRoute);
    let is_wide = attachment(object).is_some_and(|own| !own.locked && own.targets.iter().all(|target| !of_routes(target.kind)));
    if !guards || !is_wide {
        return found;
    }
    let index = world.index();
    let narrower = index.edge.iter().filter(|(place, _)| **place != Place::Mesh).flat_map(|(_, objects)| objects);
    let same = |other: &&Arc<Object>| other.key.kind == object.key.kind && other.key != object.key;
    let narrower: BTreeMap<&ObjectKey, &Arc<Object>> = narrower.filter(same).map(|other| (&other.key, other)).collect();
    for (key, other) in narrower {
        for places in spots_at(world, other, gateway) {
            let fields = by(index, other, &places).into_iter().filter(|(_, wide)| *wide == object.key).map(|(field, _)| field);
            let fields: BTreeSet<&'static str> = fields.collect();
            if !fields.is_empty() {
                found.entry(key.clone()).or_default().extend(fields);
            }
        }
    }
    found
}

/// What an object loosens at some places, and in whose place it says that.
fn by(index: &Index, object: &Object, places: &[Place]) -> Vec<(&'static str, ObjectKey)> {
    match &object.spec {
        Spec::ApiKeyAuth(_) => Climb::<ApiKeyAuth>::of(index, places).loosened(&object.key, ApiKeyAuth::loosens),
        Spec::BasicAuth(_) => Climb::<BasicAuth>::of(index, places).loosened(&object.key, BasicAuth::loosens),
        Spec::RequestAuthentication(_) => {
            Climb::<RequestAuthentication>::of(index, places).loosened(&object.key, RequestAuthentication::loosens)
        }
        Spec::ExternalAuth(_) => Climb::<ExternalAuth>::of(index, places).loosened(&object.key, ExternalAuth::loosens),
        Spec::OidcLogin(_) => Climb::<OidcLogin>::of(index, places).loosened(&object.key, OidcLogin::loosens),
        _ => Vec::new(),
    }
}

fn named(fields: &Fields) -> String {
    let one = |(key, fields): (&ObjectKey, &BTreeSet<&str>)| format!("{key} ({})", fields.iter().copied().collect::<Vec<_>>().join(", "));
    let mut all: Vec<String> = fields.iter().take(NAMED_MAX).map(one).collect();
    if fields.len() > NAMED_MAX {
        all.push(format!("{} more", fields.len() - NAMED_MAX));
    }
    all.join(", ")
}

/// True where it was not, if nobody says so that is `usual`.
fn newly(own: Option<bool>, wider: Option<bool>, usual: bool) -> bool {
    own == Some(true) && !wider.unwrap_or(usual)
}

/// Something that stands in a wider list is not in this one.
fn lacks<T: PartialEq>(own: Option<&Vec<T>>, wider: Option<&Vec<T>>) -> bool {
    let own: &[T] = own.map_or(&[], Vec::as_slice);
    wider.is_some_and(|wider| wider.iter().any(|item| !own.contains(item)))
}

/// A header that callers have no word in by the wider one's, and have by this.
fn fills_less(own: Option<&Vec<FilledHeader>>, wider: Option<&Vec<FilledHeader>>) -> bool {
    let names = |list: Option<&Vec<FilledHeader>>| list.map(|list| list.iter().map(|header| header.name.clone()).collect::<Vec<_>>());
    lacks(names(own).as_ref(), names(wider).as_ref())
}

/// The same of claims.
fn claims_less(own: Option<&Vec<(String, String)>>, wider: Option<&Vec<(String, String)>>) -> bool {
    let names = |list: Option<&Vec<(String, String)>>| list.map(|list| list.iter().map(|(_, header)| header.clone()).collect::<Vec<_>>());
    lacks(names(own).as_ref(), names(wider).as_ref())
}

/// Consumers of other namespaces, or without a label that is asked for. `Same` is each object's own namespace.
fn takes_others(own: Option<&ConsumerChoice>, wider: Option<&ConsumerChoice>, neighbours: bool) -> bool {
    let (Some(own), wider) = (own, wider.cloned().unwrap_or_default()) else { return false };
    let others = !neighbours || (own.namespaces == Namespaces::All && wider.namespaces == Namespaces::Same);
    others || wider.labels.iter().any(|(name, value)| own.labels.get(name) != Some(value))
}

impl Guard for ApiKeyAuth {
    fn loosens(&self, wider: &Self, field: &'static str, neighbours: bool) -> bool {
        match field {
            "mode" => newly(self.optional, wider.optional, false),
            "consumers" => takes_others(self.consumers.as_ref(), wider.consumers.as_ref(), neighbours),
            "scopes" => lacks(self.scopes.as_ref(), wider.scopes.as_ref()),
            "forward.credential" => newly(self.forward.keep, wider.forward.keep, false),
            "forward.headers" => fills_less(self.forward.headers.as_ref(), wider.forward.headers.as_ref()),
            _ => false,
        }
    }
}

impl Guard for BasicAuth {
    fn loosens(&self, wider: &Self, field: &'static str, neighbours: bool) -> bool {
        match field {
            "mode" => newly(self.optional, wider.optional, false),
            "consumers" => takes_others(self.consumers.as_ref(), wider.consumers.as_ref(), neighbours),
            "users" => wider.users.is_some() && self.users != wider.users,
            "scopes" => lacks(self.scopes.as_ref(), wider.scopes.as_ref()),
            "failures" => {
                let most = |said: &Self| match &said.failures {
                    Some(said) => said.as_ref().map_or(u32::MAX, |said| said.per_minute),
                    None => FailureLimit::default().per_minute,
                };
                most(self) > most(wider)
            }
            "forward.credential" => newly(self.forward.keep, wider.forward.keep, false),
            "forward.headers" => fills_less(self.forward.headers.as_ref(), wider.forward.headers.as_ref()),
            _ => false,
        }
    }
}

impl Guard for RequestAuthentication {
    fn loosens(&self, wider: &Self, field: &'static str, _: bool) -> bool {
        match field {
            "mode" => newly(self.optional, wider.optional, true),
            "jwtRules" => {
                let fills = |said: &Self| said.rules.iter().flat_map(|rule| rule.fills.clone()).collect::<Vec<_>>();
                let taken = |rule: &JwtRule| wider.rules.iter().any(|known| takes_no_more(rule, known));
                !wider.rules.is_empty() && !self.rules.iter().all(taken) || claims_less(Some(&fills(self)), Some(&fills(wider)))
            }
            "introspection" => match (&self.introspection, &wider.introspection) {
                (Some(own), Some(wider)) => own.url != wider.url || own.cache > wider.cache || own.allow_without && !wider.allow_without,
                (Some(own), None) => own.allow_without,
                _ => false,
            },
            _ => false,
        }
    }
}

/// Whether a rule for tokens takes none that another does not.
fn takes_no_more(rule: &JwtRule, than: &JwtRule) -> bool {
    let within = |own: &[String], wider: &[String]| wider.is_empty() || (!own.is_empty() && own.iter().all(|item| wider.contains(item)));
    rule.issuer == than.issuer
        && rule.keys == than.keys
        && rule.skew <= than.skew
        && within(&rule.audiences, &than.audiences)
        && within(&rule.types, &than.types)
}

impl Guard for ExternalAuth {
    fn loosens(&self, wider: &Self, field: &'static str, neighbours: bool) -> bool {
        match field {
            // Another service has the word.
            "backendRef" => match (&self.to, &wider.to) {
                (Some(own), Some(wider)) => {
                    let same = (&own.group, &own.kind, &own.name, own.port) == (&wider.group, &wider.kind, &wider.name, wider.port);
                    !same || own.namespace != wider.namespace || (own.namespace.is_none() && !neighbours)
                }
                _ => false,
            },
            // Or the same is asked something else.
            "http.path" => wider.to.is_some() && self.path.as_deref().unwrap_or_default() != wider.path.as_deref().unwrap_or_default(),
            "http.allowedRequestHeaders" => lacks(self.request_headers.as_ref(), wider.request_headers.as_ref()),
            // What callers say there is not taken off any more.
            "http.allowedResponseHeaders" => lacks(self.response_headers.as_ref(), wider.response_headers.as_ref()),
            "forwardBody" => {
                let (own, wider) = (self.body.unwrap_or_default(), wider.body.unwrap_or_default());
                own.bytes_max < wider.bytes_max || own.partial && !wider.partial && wider.bytes_max > 0
            }
            // It goes on unasked sooner.
            "timeout" => wider.allow_without == Some(true) && self.timeout < Some(wider.timeout.unwrap_or(super::external::TIMEOUT)),
            "when" => self.when.is_some() && self.when != wider.when,
            "dryRun" => newly(self.dry_run, wider.dry_run, false),
            "cache" => self.cache.as_ref().is_some_and(|own| {
                let wider = wider.cache.as_ref().filter(|wider| !wider.ttl.is_zero());
                !own.ttl.is_zero() && wider.is_none_or(|wider| own.ttl > wider.ttl || own.key != wider.key)
            }),
            "onError" => newly(self.allow_without, wider.allow_without, false),
            _ => false,
        }
    }
}

impl Guard for OidcLogin {
    fn loosens(&self, wider: &Self, field: &'static str, _: bool) -> bool {
        match field {
            "mode" => newly(self.optional, wider.optional, false),
            "issuer" => wider.issuer.is_some() && self.issuer != wider.issuer,
            "endpoints" => wider.issuer.is_some() && self.endpoints != wider.endpoints,
            "session.idle" => self.session.idle > Some(wider.session.idle.unwrap_or(super::login::IDLE)),
            "session.max" => self.session.max > Some(wider.session.max.unwrap_or(super::login::MAX)),
            "forward.claimsToHeaders" => claims_less(self.fills.as_ref(), wider.fills.as_ref()),
            _ => false,
        }
    }
}
