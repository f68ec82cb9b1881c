//! What is said of each object: the translator's word, and what only proxies can confirm.

use std::collections::BTreeMap;

use super::features::FEATURES;
use super::merge::Spoken;
use crate::api::live::Ledger;
use crate::publish::board::Board;
use crate::publish::edition::Edition;
use crate::publish::peer::edge_key;
use crate::translate::{Status, statuses};
use crate::world::Kind;
use crate::world::key::{GATEWAY_API, OWN, ObjectKey};

/// Of every object whose status is ours to write, what is so now. `Live`, and a Gateway's `Programmed`, are true only once the proxies
/// concerned have acknowledged.
pub(super) fn spoken(board: &Board, edition: &Edition) -> BTreeMap<ObjectKey, Spoken> {
    let ledger = board.read(Ledger::read);
    let ours = statuses(&edition.world).into_iter().filter(|(key, _)| matches!(key.kind.group(), GATEWAY_API | OWN));
    let mut spoken = BTreeMap::new();
    for (key, mut status) in ours {
        ledger.complete(&key, &mut status);
        if key.kind == Kind::Gateway {
            let proxy = edge_key(&key.namespace, &key.name);
            let told = ledger.touched(&key).unwrap_or_default();
            let runs = board.is_present(&proxy) && board.running(&proxy) >= told.max(1);
            unprogrammed(&mut status, runs);
        }
        let accepted = status.conditions.iter().any(|condition| condition.kind == "Accepted" && condition.status == "True");
        let features = if key.kind == Kind::GatewayClass && accepted { FEATURES.to_vec() } else { Vec::new() };
        // A Gateway's proxy has to be there.
        let resumed = key.kind != Kind::Gateway && ledger.resumed(&key);
        spoken.insert(key, Spoken { status, features, resumed });
    }
    spoken
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
        "no proxy of this Gateway has acknowledged it yet".clone_into(&mut condition.message);
    }
}
