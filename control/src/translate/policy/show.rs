//! What holds at each Service port, and at each rule where it is something else: what `analyze --show-defaults` prints.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::rule::places;
use super::{defaults, of_port, said, settings, wide};
use crate::translate::attach::{self, Attachment, Backend};
use crate::translate::edge_listeners;
use crate::world::route::{Route, Rule};
use crate::world::traffic::Place;
use crate::world::{Index, Name, Object, ObjectKey, World};

/// One setting that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedSetting {
    /// The Service or the route.
    pub key: ObjectKey,
    /// `ports[NUMBER]` of a Service, `rules[NUMBER]` of a route.
    pub part: String,
    /// Path of the field below `spec` of a TrafficPolicy.
    pub field: &'static str,
    /// Its value in words.
    pub value: String,
    /// The policy that says so; `None`: the default.
    pub from: Option<ObjectKey>,
}

/// Every setting of every Service port, and of every rule what differs from the Service that it goes by.
pub fn resolved(world: &World) -> Vec<ResolvedSetting> {
    let index = world.index();
    let mut rows = Vec::new();
    for (name, view) in index.services.iter() {
        for port in view.service().map_or(&[][..], |service| &service.ports) {
            let backend = Backend { service: name.clone(), port: port.port };
            let part = format!("ports[{}]", port.port);
            let row = |(field, (value, from))| ResolvedSetting { key: view.object.key.clone(), part: part.clone(), field, value, from };
            rows.extend(of_destination(index, &backend).into_iter().map(row));
        }
    }
    for route in index.routes.iter() {
        let Some(spec) = attach::content(route) else { continue };
        for (number, rule) in spec.rules.iter().enumerate() {
            let part = format!("rules[{number}]");
            let row = |(field, (value, from))| ResolvedSetting { key: route.key.clone(), part: part.clone(), field, value, from };
            rows.extend(of_rule(index, (route, spec), rule).into_iter().map(row));
        }
    }
    rows
}

type Values = BTreeMap<&'static str, (String, Option<ObjectKey>)>;

fn of_destination(index: &Index, backend: &Backend) -> Values {
    let places: Vec<Place> = of_port(index, backend).chain(wide(&backend.service.0)).collect();
    let mut found = values(index, &places, false);
    for (field, value) in defaults().shown() {
        found.entry(field).or_insert((value, None));
    }
    found
}

fn values(index: &Index, places: &[Place], callers: bool) -> Values {
    let mut from: BTreeMap<&str, &ObjectKey> = BTreeMap::new();
    for place in places {
        for (object, policy) in said(index, place) {
            for field in policy.settings.fields() {
                if field.path != "rateLimits" || place.of_callers() == callers {
                    from.entry(field.path).or_insert(&object.key);
                }
            }
        }
    }
    let all = settings(index, places, callers);
    all.shown().into_iter().map(|(field, value)| (field, (value, from.get(field).map(|key| (*key).clone())))).collect()
}

/// By the first parent that takes the route.
fn of_rule(index: &Index, (route, spec): (&Arc<Object>, &Route), rule: &Rule) -> Values {
    let attached = spec.parents.iter().find_map(|parent| match attach::standing(index, route, parent) {
        Attachment::Service(name, ports, _) => Some((ports.first().map(|port| Backend { service: name, port: *port }), None)),
        Attachment::Gateway(name, listeners) => Some((None, listener(index, &name, &listeners))),
        Attachment::Foreign | Attachment::Refused(_) => None,
    });
    let Some((parent, listener)) = attached else { return Values::new() };
    let mesh = parent.is_some();
    let service = parent.or_else(|| attach::first(index, route, rule, mesh));
    let listener = listener.as_ref().map(|(name, listener)| (name, listener.as_str()));
    let mut found = values(index, &places(index, Some((route, rule.name.as_deref())), service.as_ref(), listener), true);
    let general = service.map(|service| of_destination(index, &service)).unwrap_or_default();
    found.retain(|field, (value, _)| general.get(field).is_none_or(|(known, _)| known != value));
    // The route's own word is in its manifest, and a policy's about the same is idle.
    for (told, fields) in [
        (rule.timeouts.request.is_some(), &["timeouts.request"][..]),
        (rule.timeouts.backend_request.is_some(), &["timeouts.backendRequest", "retry.perTryTimeout"]),
        (rule.retry.is_some(), &["retry.attempts", "retry.on", "retry.statusCodes", "retry.grpcStatuses"]),
        (rule.retry.as_ref().is_some_and(|retry| retry.backoff.is_some()), &["retry.backoff.base"]),
        (rule.session.is_some(), &["sessionPersistence"]),
    ] {
        found.retain(|field, _| !told || !fields.contains(field));
    }
    found
}

fn listener(index: &Index, name: &Name, listeners: &[(usize, Vec<String>)]) -> Option<(Name, String)> {
    let judged = edge_listeners::listeners(index, name);
    let listener = listeners.first().and_then(|(place, _)| judged.get(*place))?;
    Some((name.clone(), listener.section().to_owned()))
}
