//! AuthorizationPolicies at an edge. They add up: those of a rule's route, its listener, its Gateway. Those that look at addresses alone are asked
//! before any rule, so that they hold for hosts that nobody serves, too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::mesh::{AddressList, Authorization, AuthorizationRule, CallSource, CallTarget};

use super::ladder::{Spot, all_places, places};
use crate::translate::attach::WhyNot;
use crate::translate::edge_listeners::{Judged, listeners};
use crate::world::content::ContentRef;
use crate::world::security::authorization::{Action, AuthorizationPolicy, lists};
use crate::world::traffic::Place;
use crate::world::{Index, Kind, Name, Object, ObjectKey, Spec, World};

/// Listeners that are named in one sentence.
const LISTENERS_TOLD_MAX: usize = 8;

/// The content of a policy for edges.
fn content(object: &Object) -> Option<&AuthorizationPolicy> {
    if let Spec::AuthorizationPolicy(policy) = &object.spec { Some(policy) } else { None }
}

/// The policies of some places, each once, in the order in which they are asked: Deny, Allow, Audit, each by name.
fn of_places<'a, 'p>(index: &'a Index, places: impl IntoIterator<Item = &'p Place>) -> Vec<(&'a Object, &'a AuthorizationPolicy)> {
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

/// What is asked at a Gateway's port before any rule: what forbids by addresses alone; and what allows. Where requests come in, or TLS that is told
/// apart by name, that is asked here by addresses only, and where nothing else at this Gateway allows: rules and chains ask the rest. Bytes and
/// datagrams of a whole port have neither, so all that decides is asked here of them: what allows by a request lets none of them in, and what
/// denies by one holds for all whom its addresses hold for.
pub(in crate::translate) struct DoorPolicies<'a>(Vec<(&'a Object, &'a AuthorizationPolicy)>);

impl<'a> DoorPolicies<'a> {
    pub(in crate::translate) fn at(index: &'a Index, gateway: &Name, port: u16) -> Self {
        if index.edge.is_empty() {
            return Self(Vec::new());
        }
        let judged = listeners(index, gateway);
        let here: Vec<&Judged<'_>> = judged.iter().filter(|one| one.refused.is_none() && one.listener.port == port).collect();
        let common = of_places(index, &in_common(gateway, &here));
        let all = all_places(index, gateway);
        let whole = !here.is_empty() && here.iter().all(|one| has_port(one));
        let only = of_places(index, &all)
            .into_iter()
            .filter(|(_, policy)| policy.action == Action::Allow)
            .all(|(object, policy)| is_of_addresses_alone(policy) && common.iter().any(|(known, _)| known.key == object.key));
        let asks = |policy: &AuthorizationPolicy| match policy.action {
            Action::Deny => whole || is_of_addresses_alone(policy),
            Action::Allow => whole || only,
            Action::Audit => false,
        };
        Self(common.into_iter().filter(|(_, policy)| asks(policy)).collect())
    }

    fn has(&self, object: &Object) -> bool {
        self.0.iter().any(|(known, _)| known.key == object.key)
    }

    /// Policies that hold for the bytes or datagrams of a listener and are not asked there: of several listeners at a port the others must
    /// not meet what is said of one.
    fn missed(&self, index: &'a Index, gateway: &Name, judged: &Judged<'_>) -> Vec<&'a ObjectKey> {
        if !has_port(judged) {
            return Vec::new();
        }
        let holding = of_places(index, &places_of(gateway, judged)).into_iter();
        holding.filter(|(object, policy)| decides(index, policy) && !self.has(object)).map(|(object, _)| &object.key).collect()
    }

    /// What the chains of a listener for TLS ask of its connections, beside what the port asks of all.
    pub(in crate::translate) fn of_chains(&self, index: &Index, gateway: &Name, judged: &Judged<'_>) -> Option<Authorization> {
        let own = of_places(index, &places_of(gateway, judged)).into_iter();
        let asked = own.filter(|(object, policy)| policy.action != Action::Audit && !self.has(object));
        let policies: Vec<_> = asked.map(|(object, policy)| policy.sent(&object.key)).collect();
        (!policies.is_empty()).then_some(Authorization { policies, dry_run: index.mesh.authorization_dry_run })
    }

    /// Whether a listener for connections or datagrams must lead nowhere: nobody would ask a policy that holds there, or one never was good.
    pub(in crate::translate) fn closes(&self, index: &'a Index, gateway: &Name, judged: &Judged<'_>) -> bool {
        let of_calls = |places: &[Place]| {
            let mut objects = places.iter().flat_map(|place| index.edge.get(place).into_iter().flatten());
            objects.any(|object| matches!(object.spec, Spec::Broken(_)) && object.key.kind == Kind::AuthorizationPolicy)
        };
        !index.edge.is_empty() && (of_calls(&places_of(gateway, judged)) || !self.missed(index, gateway, judged).is_empty())
    }
}

/// Whether a policy lets in, or keeps out.
fn decides(index: &Index, policy: &AuthorizationPolicy) -> bool {
    policy.action != Action::Audit && !policy.dry_run && !index.mesh.authorization_dry_run
}

/// The same as proxies are told; `None`: nobody is asked.
pub(in crate::translate) fn door(index: &Index, gateway: &Name, port: u16) -> Option<Authorization> {
    let policies: Vec<_> = DoorPolicies::at(index, gateway, port).0.iter().map(|(object, policy)| policy.sent(&object.key)).collect();
    (!policies.is_empty()).then_some(Authorization { policies, dry_run: index.mesh.authorization_dry_run })
}

/// What status says of a policy that cannot be asked as it is written where connections or datagrams come in: it closes listeners of a Gateway,
/// because nobody can ask it there, or is judged there without what it asks of requests.
pub(super) fn partly(index: &Index, object: &Object, gateway: &Name) -> Option<WhyNot> {
    let policy = content(object)?;
    let looks = decides(index, policy) && !is_of_addresses_alone(policy);
    let mut doors: BTreeMap<u16, DoorPolicies<'_>> = BTreeMap::new();
    let (mut closed, mut blind) = (Vec::new(), Vec::new());
    for judged in listeners(index, gateway).iter().filter(|judged| judged.refused.is_none() && streams(judged)) {
        let port = judged.listener.port;
        let asked = doors.entry(port).or_insert_with(|| DoorPolicies::at(index, gateway, port));
        if asked.missed(index, gateway, judged).contains(&&object.key) {
            closed.push(judged.name());
        } else if looks && of_places(index, &places_of(gateway, judged)).iter().any(|(known, _)| known.key == object.key) {
            blind.push(judged.name());
        }
    }
    closed.truncate(LISTENERS_TOLD_MAX);
    blind.truncate(LISTENERS_TOLD_MAX);
    let message = match (closed.as_slice(), blind.as_slice(), policy.action) {
        ([], [], _) => return None,
        ([], blind, Action::Allow) => {
            format!(
                "at {} no requests come in: there it lets in by addresses and ports alone, and nobody by rules that ask for more",
                blind.join(", ")
            )
        }
        ([], blind, _) => format!(
            "at {} no requests come in: there its rules deny everybody whom their addresses and ports hold for, whatever else they ask, \
             and one that names neither closes {}",
            blind.join(", "),
            if blind.len() == 1 { "it" } else { "them all" }
        ),
        (closed, ..) => format!(
            "it cannot be asked at {}, whose port other listeners have, too, so they lead nowhere: give each a port of its own, or name the Gateway",
            closed.join(", ")
        ),
    };
    Some(WhyNot::new("UnsupportedValue", message))
}

/// Whether connections or datagrams come in at a listener, and no requests.
fn streams(judged: &Judged<'_>) -> bool {
    matches!(judged.listener.protocol.as_str(), "TCP" | "UDP" | "TLS")
}

/// Whether it has its port for itself, as far as it is not told apart by name: policies of its port are its own.
fn has_port(judged: &Judged<'_>) -> bool {
    matches!(judged.listener.protocol.as_str(), "TCP" | "UDP")
}

/// The places that a listener belongs to.
fn places_of(gateway: &Name, judged: &Judged<'_>) -> Vec<Place> {
    places(&Spot { gateway, owner: &judged.owner.key, listener: &judged.listener.name, route: None })
}

/// The places whose policies hold for whatever comes in at a port: those that all its listeners belong to.
fn in_common(gateway: &Name, here: &[&Judged<'_>]) -> Vec<Place> {
    let mut each = here.iter().map(|judged| places_of(gateway, judged));
    let key = ObjectKey::new(Kind::Gateway, &gateway.0, &gateway.1);
    let mut common = each.next().unwrap_or_else(|| vec![Place::Object(key), Place::Mesh]);
    each.for_each(|places| common.retain(|place| places.contains(place)));
    common
}

fn is_of_addresses_alone(policy: &AuthorizationPolicy) -> bool {
    policy.rules.iter().all(|written| is_of_addresses(&written.rule))
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

/// A list as proxies are told: all entries of its ConfigMap, one range a line. What cannot be read is left out, line by line. `None`: there is no
/// such ConfigMap; a proxy that has no list lets nobody in by it, and nobody past it.
pub(super) fn list(world: &World, name: &str) -> Option<AddressList> {
    let (namespace, own) = name.split_once('/')?;
    world.get(&ObjectKey::new(Kind::ConfigMap, namespace, own))?;
    let mut ranges = String::new();
    for line in texts(world, name).iter().flat_map(|text| text.lines()) {
        if engine::consumers::AddressList::read(line).is_ok() {
            ranges.push_str(line.split('#').next().unwrap_or_default().trim());
            ranges.push('\n');
        }
    }
    Some(AddressList { name: name.to_owned(), ranges })
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
