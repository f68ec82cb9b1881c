//! The condition `Live` (`kinds.md`, "Where a policy applies"): whether every proxy concerned has acknowledged an object.

use std::collections::HashMap;

use super::apply::some_of;
use crate::publish::epoch::{Book, UNCHANGED};
use crate::translate::{Condition, Status};
use crate::world::Kind;
use crate::world::key::ObjectKey;

/// What the book says of every object, read once for a whole answer.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// The newest epoch that touched an object, by kind, namespace and name, and whether it changed nothing of it.
    touched: HashMap<(String, String, String), (u64, bool)>,
    /// The newest epoch that every proxy runs, whole.
    live: u64,
    /// Reason and message for what came later.
    hindered: (&'static str, String),
}

impl Ledger {
    pub(crate) fn read(book: &Book) -> Self {
        let mut ledger = Self::default();
        for entry in book.newest_first() {
            for object in &entry.objects {
                let key = (object.kind.clone(), object.namespace.clone(), object.name.clone());
                ledger.touched.entry(key).or_insert((entry.number, object.result == UNCHANGED));
            }
            if entry.live() {
                ledger.live = ledger.live.max(entry.number);
            }
        }
        let Some(newest) = book.newest() else { return ledger };
        ledger.hindered = match newest.refused.first() {
            Some(refusal) if newest.settled() => ("Refused", format!("{} refused {}: {}", refusal.proxy, refusal.object, refusal.reason)),
            _ => ("Pending", format!("waiting for {}", some_of(newest.waiting().map(String::as_str)))),
        };
        ledger
    }

    /// The newest remembered epoch that touched an object.
    pub(crate) fn touched(&self, key: &ObjectKey) -> Option<u64> {
        self.last(key).map(|(number, _)| number)
    }

    /// Whether this process has found an object as the one before it left it, and nothing has touched it since: whether that is live, the
    /// one before may have known.
    pub(crate) fn resumed(&self, key: &ObjectKey) -> bool {
        self.last(key).is_some_and(|(_, unchanged)| unchanged)
    }

    fn last(&self, key: &ObjectKey) -> Option<(u64, bool)> {
        self.touched.get(&(key.kind.text().to_owned(), key.namespace.clone(), key.name.clone())).copied()
    }

    /// Adds the condition beside `Accepted`, wherever a status has one. A Gateway or ListenerSet has `Programmed` instead.
    pub(crate) fn complete(&self, key: &ObjectKey, status: &mut Status) {
        if matches!(key.kind, Kind::Gateway | Kind::GatewayClass | Kind::ListenerSet) {
            return;
        }
        // What no remembered epoch touched was there long before.
        let live = self.touched(key).is_none_or(|number| number <= self.live);
        let parents = status.parents.iter_mut().map(|parent| &mut parent.conditions);
        let ancestors = status.ancestors.iter_mut().map(|ancestor| &mut ancestor.conditions);
        for conditions in [&mut status.conditions].into_iter().chain(parents).chain(ancestors) {
            let Some(accepted) = conditions.iter().find(|condition| condition.kind == "Accepted") else { continue };
            let (reason, message) = match (accepted.status == "True", live) {
                (false, _) => ("NotAccepted", String::new()),
                (true, true) => ("Live", String::new()),
                (true, false) => self.hindered.clone(),
            };
            let condition = Condition {
                kind: "Live".to_owned(),
                status: if reason == "Live" { "True" } else { "False" },
                reason: reason.to_owned(),
                message,
                observed_generation: accepted.observed_generation,
            };
            conditions.push(condition);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::publish::epoch::Touched;

    fn said(book: &Book, accepted: &'static str) -> (&'static str, String, String) {
        let key = ObjectKey { kind: Kind::Telemetry, namespace: "shop".into(), name: "a".into() };
        let accepted =
            Condition { kind: "Accepted".into(), status: accepted, reason: String::new(), message: String::new(), observed_generation: 3 };
        let mut status = Status { conditions: vec![accepted], ..Status::default() };
        Ledger::read(book).complete(&key, &mut status);
        let live = status.conditions.pop().unwrap();
        assert_eq!((live.kind.as_str(), live.observed_generation), ("Live", 3));
        (live.status, live.reason, live.message)
    }

    /// Aim: live with the last acknowledgement, waiting before it, refused until a later epoch is taken whole.
    #[test]
    fn an_object_is_live_when_everybody_took_it() {
        let touched = Touched { kind: "Telemetry".into(), namespace: "shop".into(), name: "a".into(), result: "changed" };
        let expected: BTreeSet<String> = ["shop/x".to_owned()].into();
        let mut book = Book::default();
        assert_eq!(said(&book, "True").0, "True");
        book.open(7, vec![touched], (expected.clone(), 0), 0);
        assert_eq!(said(&book, "True"), ("False", "Pending".into(), "waiting for shop/x".into()));
        assert_eq!(said(&book, "False").1, "NotAccepted");
        book.refused("shop/x", 7, "Listener inbound: no", 1);
        assert_eq!(said(&book, "True"), ("False", "Refused".into(), "shop/x refused Listener inbound: no".into()));
        book.open(8, Vec::new(), (expected, 0), 2);
        book.acknowledged("shop/x", 8, 3);
        assert_eq!(said(&book, "True").0, "True");
    }
}
