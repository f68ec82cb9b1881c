//! AuthorizationPolicies at an edge. They add up: those of a rule's route, its listener, its Gateway. Those that look at addresses alone are asked
//! before any rule, so that they hold for hosts that nobody serves, too.

use std::collections::BTreeSet;
use std::sync::Arc;

use proto::mesh::{AddressList, Authorization, AuthorizationRule, CallSource, CallTarget};

use super::ladder::all_places;
use crate::translate::attach;
use crate::world::content::ContentRef;
use crate::world::security::authorization::{Action, AuthorizationPolicy, lists};
use crate::world::traffic::Place;
use crate::world::{Index, Kind, Name, Object, ObjectKey, Spec, World};

/// The content of a policy for edges.
fn content(object: &Object) -> Option<&AuthorizationPolicy> {
    if let Spec::AuthorizationPolicy(policy) = &object.spec { Some(policy) } else { None }
}

/// The policies of some places, each once, in the order in which they are asked: Deny, Allow, Audit, each by name.
fn of_places<'a>(index: &'a Index, places: impl IntoIterator<Item = &'a Place>) -> Vec<(&'a Object, &'a AuthorizationPolicy)> {
    let objects = places.into_iter().flat_map(|place| index.edge.get(place).into_iter().flatten());
    let mut found: Vec<(&Object, &AuthorizationPolicy)> = Vec::new();
    for object in objects {
        if let Some(policy) = content(object)
            && !found.iter().any(|(known, _)| known.key == object.key)
        {
            found.push((object, policy));
        }
    }
    let asked = |action: Action| match action {
        Action::Deny => 0,
        Action::Allow => 1,
        Action::Audit => 2,
    };
    found.sort_by_key(|(object, policy)| (asked(policy.action), object.key.path()));
    found
}

/// All that holds for a rule; `None`: nothing.
pub(super) fn sent(index: &Index, places: &[Place]) -> Option<Authorization> {
    let found = of_places(index, places);
    let policies: Vec<_> = found.iter().map(|(object, policy)| policy.sent(&object.key)).collect();
    (!policies.is_empty()).then_some(Authorization { policies, dry_run: index.mesh.authorization_dry_run })
}

/// What is asked at a Gateway's port before any rule: what forbids by addresses alone; and what allows by them, where nothing else at this
/// Gateway allows.
pub(in crate::translate) fn door(index: &Index, gateway: &Name, port: u16) -> Option<Authorization> {
    if index.edge.is_empty() {
        return None;
    }
    let all = all_places(index, gateway);
    let places = of_port(index, gateway, port);
    let here = of_places(index, &places);
    let decides = |policy: &AuthorizationPolicy| policy.action != Action::Audit;
    let alone = |policy: &AuthorizationPolicy| policy.rules.iter().all(|written| is_of_addresses(&written.rule));
    let allowing = of_places(index, &all).into_iter().filter(|(_, policy)| policy.action == Action::Allow);
    let allowing: Vec<_> = allowing.collect();
    let only = allowing.iter().all(|(object, policy)| alone(policy) && here.iter().any(|(known, _)| known.key == object.key));
    let asked = here.into_iter().filter(|(_, policy)| decides(policy) && alone(policy) && (policy.action == Action::Deny || only));
    let policies: Vec<_> = asked.map(|(object, policy)| policy.sent(&object.key)).collect();
    (!policies.is_empty()).then_some(Authorization { policies, dry_run: index.mesh.authorization_dry_run })
}

/// The places whose policies hold for whatever comes in at a port: the Gateway's, and the listener's where it has the port alone.
fn of_port(index: &Index, gateway: &Name, port: u16) -> Vec<Place> {
    let key = ObjectKey::new(Kind::Gateway, &gateway.0, &gateway.1);
    let spec = index.gateways.get(gateway).and_then(|object| attach::gateway(object));
    let listeners: Vec<_> = spec.map_or(&[][..], |spec| &spec.listeners).iter().filter(|listener| listener.port == port).collect();
    let own = if let [only] = listeners.as_slice() { Some(Place::Section(key.clone(), only.name.clone())) } else { None };
    own.into_iter().chain([Place::Object(key), Place::Mesh]).collect()
}

/// Whether a rule looks at addresses and ports alone.
fn is_of_addresses(rule: &AuthorizationRule) -> bool {
    let source = |source: &CallSource| {
        let CallSource { ip_blocks, ip_lists, peer_ip_blocks, .. } = source;
        *source
            == CallSource {
                ip_blocks: ip_blocks.clone(),
                ip_lists: ip_lists.clone(),
                peer_ip_blocks: peer_ip_blocks.clone(),
                ..CallSource::default()
            }
    };
    let target = |target: &CallTarget| *target == CallTarget { ports: target.ports.clone(), ..CallTarget::default() };
    let AuthorizationRule { name: _, from, to, not_from, not_to, when } = rule;
    when.is_empty() && from.iter().chain(not_from).all(source) && to.iter().chain(not_to).all(target)
}

/// The lists of addresses that a Gateway's policies ask, `NAMESPACE/NAME` of their ConfigMaps.
pub(super) fn listed(index: &Index, gateway: &Name) -> BTreeSet<String> {
    let all = all_places(index, gateway);
    of_places(index, &all).into_iter().flat_map(|(_, policy)| lists(policy).cloned()).collect()
}

/// A list as proxies are told: all entries of its ConfigMap, one range a line. What cannot be read is left out, line by line.
pub(super) fn list(world: &World, name: &str) -> AddressList {
    let mut ranges = String::new();
    for line in texts(world, name).iter().flat_map(|text| text.lines()) {
        if engine::consumers::AddressList::read(line).is_ok() {
            ranges.push_str(line.split('#').next().unwrap_or_default().trim());
            ranges.push('\n');
        }
    }
    AddressList { name: name.to_owned(), ranges }
}

/// Why a list does not say all that it should.
pub(super) fn fault(world: &World, name: &str) -> Option<String> {
    let Some((namespace, own)) = name.split_once('/') else { return Some(format!("`{name}` is no ConfigMap")) };
    let key = ObjectKey::new(Kind::ConfigMap, namespace, own);
    if world.get(&key).is_none() {
        return Some(format!("there is no {key}"));
    }
    let wrong = |text: &Arc<str>| engine::consumers::AddressList::read(text).err().map(|why| format!("{key}: {why}"));
    texts(world, name).iter().find_map(wrong)
}

fn texts(world: &World, name: &str) -> Vec<Arc<str>> {
    let Some((namespace, own)) = name.split_once('/') else { return Vec::new() };
    let object = ObjectKey::new(Kind::ConfigMap, namespace, own);
    let read = |entry: String| {
        let bytes = world.content(&ContentRef { object: object.clone(), key: entry }).ok()?;
        std::str::from_utf8(&bytes).ok().map(Arc::from)
    };
    world.entries(&object).into_iter().filter_map(read).collect()
}
