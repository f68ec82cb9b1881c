//! What an epoch is made of, as rows for its readers. Pure.

use crate::publish::epoch::{Touched, UNCHANGED};
use crate::publish::trust::Roots;
use crate::world::{Change, ObjectKey, Origin, Outcome};

pub(super) fn touched(key: &ObjectKey, result: &'static str) -> Touched {
    Touched { kind: key.kind.text().to_owned(), namespace: key.namespace.clone(), name: key.name.clone(), result }
}

/// Roots as objects of an epoch: one that is believed anew is created, one that issues from now on is changed, one that is dropped deleted.
pub(super) fn believed(before: &Roots, after: &Roots) -> Vec<Touched> {
    let (former, now) = (before.fingerprints(), after.fingerprints());
    let row = |name: &String, result| Touched { kind: "Root".to_owned(), namespace: String::new(), name: name.clone(), result };
    let created = now.iter().filter(|root| !former.contains(root)).map(|root| row(root, "created"));
    let issues = now.first().filter(|root| former.contains(root) && former.first() != Some(root)).map(|root| row(root, "changed"));
    let deleted = former.iter().filter(|root| !now.contains(root)).map(|root| row(root, "deleted"));
    created.chain(issues).chain(deleted).collect()
}

/// Where changes are from; the first that says it.
pub(super) fn origin(changes: &[Change]) -> Option<Origin> {
    changes.iter().find_map(|change| match change {
        Change::Put { origin, .. } | Change::Remove { origin, .. } | Change::Relisted { origin, .. } | Change::Synced(origin) => {
            Some(*origin)
        }
        _ => None,
    })
}

/// As `apply -o json` says it; a refused version is no result.
pub(super) fn word(outcome: Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Created => Some("created"),
        Outcome::Changed => Some("changed"),
        Outcome::Unchanged => Some(UNCHANGED),
        Outcome::Deleted => Some("deleted"),
        Outcome::Refused => None,
    }
}
