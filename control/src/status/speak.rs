//! What is said of each object: the translator's word, and what only proxies can confirm.

use std::collections::BTreeMap;

use proto::annotations::GATEWAY_NAME;

use super::features::claimed;
use super::merge::Spoken;
use crate::api::away::Away;
use crate::api::live::Ledger;
use crate::publish::board::Board;
use crate::publish::edition::Edition;
use crate::translate::{Condition, Status, statuses};
use crate::world::key::{GATEWAY_API, OWN, ObjectKey};
use crate::world::{Kind, Name, Spec, World};

/// The version of Gateway API that this one is made for: its features and its definitions.
const BUNDLE: &str = "v1.6";

/// The cluster's definitions of Gateway API, as they say themselves.
#[derive(Clone, Debug)]
pub(super) struct Definitions {
    /// Of which version they are.
    pub version: String,
    /// Of which channel, where they say.
    pub channel: Option<String>,
}

/// Of every object whose status is ours to write, what is so now. `bundle`: of the cluster's definitions, where known. `Live`, and a
/// Gateway's `Programmed`, are true only once the proxies concerned have acknowledged.
pub(super) fn spoken(board: &Board, edition: &Edition, bundle: Option<&Definitions>) -> BTreeMap<ObjectKey, Spoken> {
    let (ledger, away) = (board.read(Ledger::read), Away::read(board));
    let ours = statuses(&edition.world).into_iter().filter(|(key, _)| matches!(key.kind.group(), GATEWAY_API | OWN));
    let mut spoken = BTreeMap::new();
    for (key, mut status) in ours {
        ledger.complete(&key, &mut status);
        if let Some(object) = edition.world.get(&key) {
            away.complete(object, &mut status);
        }
        if let Some(gateway) = served_by(&edition.world, &key) {
            let told = ledger.touched(&key).unwrap_or_default();
            // All that are there: a request may meet any of them.
            let runs = board.gateway_runs(&gateway.0, &gateway.1).is_some_and(|epoch| epoch >= told.max(1));
            unprogrammed(&mut status, runs);
            if key.kind == Kind::Gateway {
                unaddressed(&mut status);
            }
        }
        let accepted = status.conditions.iter().any(|condition| condition.kind == "Accepted" && condition.status == "True");
        if let Some(bundle) = bundle.filter(|_| key.kind == Kind::GatewayClass) {
            version(&mut status, &bundle.version);
        }
        let channel = bundle.and_then(|bundle| bundle.channel.as_deref());
        let features = if key.kind == Kind::GatewayClass && accepted { claimed(channel) } else { Vec::new() };
        // A Gateway's proxy has to be there.
        let resumed = !matches!(key.kind, Kind::Gateway | Kind::ListenerSet) && ledger.resumed(&key);
        let uid = uid(&edition.world, &key);
        spoken.insert(key, Spoken { status, features, resumed, uid });
    }
    spoken
}

/// The Gateway whose proxy has to run an object before anything of it is programmed.
fn served_by(world: &World, key: &ObjectKey) -> Option<Name> {
    match &world.get(key)?.spec {
        Spec::Gateway(_) => Some((key.namespace.clone(), key.name.clone())),
        Spec::ListenerSet(set) => set.parent(&key.namespace),
        _ => None,
    }
}

/// The object that a status is about: the newest by that name, refused or not.
fn uid(world: &World, key: &ObjectKey) -> String {
    let Some(slot) = world.slots().get(key) else { return String::new() };
    let refused = slot.refused_newer().or_else(|| slot.refused().filter(|_| slot.live().is_none()));
    let uid = match refused {
        Some(refused) => refused.document().pointer("/metadata/uid").and_then(serde_json::Value::as_str).map(str::to_owned),
        None => slot.live().and_then(|live| live.object.as_ref()).and_then(|object| object.metadata.uid.clone()),
    };
    uid.unwrap_or_default()
}

/// Whether this version is made for the cluster's definitions. Others may work, too: objects are read leniently.
fn version(status: &mut Status, bundle: &str) {
    let Some(generation) = status.conditions.first().map(|condition| condition.observed_generation) else { return };
    let supported = bundle.strip_prefix(BUNDLE).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let (status_word, reason) = if supported { ("True", "SupportedVersion") } else { ("False", "UnsupportedVersion") };
    let message = match supported {
        true => String::new(),
        false => format!("this version is made for Gateway API {BUNDLE}, the cluster's definitions are of {bundle}"),
    };
    status.conditions.push(Condition {
        kind: "SupportedVersion".to_owned(),
        status: status_word,
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
    });
}

/// A Gateway that nobody can reach serves nobody, though its proxy does what it says.
fn unaddressed(status: &mut Status) {
    if !status.addresses.is_empty() {
        return;
    }
    let programmed = status.conditions.iter_mut().find(|condition| condition.kind == "Programmed" && condition.status == "True");
    if let Some(programmed) = programmed {
        programmed.status = "False";
        "AddressNotAssigned".clone_into(&mut programmed.reason);
        programmed.message = format!("no Service and no ready pod of its namespace is labelled `{GATEWAY_NAME}` with its name");
    }
}

/// A Gateway whose proxy has not acknowledged it serves nothing yet, whatever else is said.
fn unprogrammed(status: &mut Status, runs: bool) {
    if runs {
        return;
    }
    let listeners = status.listeners.iter_mut().map(|listener| &mut listener.conditions);
    let conditions = [&mut status.conditions].into_iter().chain(listeners).flatten();
    for condition in conditions.filter(|condition| condition.kind == "Programmed" && condition.status == "True") {
        condition.status = "False";
        "Pending".clone_into(&mut condition.reason);
        "no proxy of this Gateway has acknowledged it yet, or not every one that is connected".clone_into(&mut condition.message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(kind: &str, status: &'static str) -> Condition {
        Condition { kind: kind.to_owned(), status, reason: kind.to_owned(), message: String::new(), observed_generation: 7 }
    }

    /// Aim: a class says whether it is made for the cluster's definitions, by their minor version, of the generation that it has seen.
    #[test]
    fn a_class_says_for_which_version_it_is_made() {
        for (bundle, wanted) in
            [("v1.6.3", "True"), ("v1.6", "True"), ("v1.60.0", "False"), ("v1.5.1", "False"), ("v2.0.0", "False"), ("x", "False")]
        {
            let mut status = Status { conditions: vec![said("Accepted", "True")], ..Status::default() };
            version(&mut status, bundle);
            let condition = &status.conditions[1];
            assert_eq!(
                (condition.kind.as_str(), condition.status, condition.observed_generation),
                ("SupportedVersion", wanted, 7),
                "{bundle}"
            );
        }
    }

    /// Aim: a Gateway that would be programmed and has no address says why nobody can reach it; one that is not is left as it is.
    #[test]
    fn a_gateway_without_an_address_is_not_programmed() {
        let told = |programmed: &'static str, addresses: Vec<BTreeMap<&'static str, String>>| {
            let mut status = Status { conditions: vec![said("Programmed", programmed)], addresses, ..Status::default() };
            unaddressed(&mut status);
            (status.conditions[0].status, status.conditions[0].reason.clone())
        };
        assert_eq!(told("True", Vec::new()), ("False", "AddressNotAssigned".to_owned()));
        assert_eq!(told("False", Vec::new()), ("False", "Programmed".to_owned()));
        assert_eq!(told("True", vec![BTreeMap::new()]), ("True", "Programmed".to_owned()));
    }
}
