//! What canaries make of the rules that lead to their Services, by how they stand.

use std::collections::BTreeMap;

use crate::world::ObjectKey;
use crate::world::canary::{CANARIES_MAX, CanaryBook, CanaryIndex, CanaryLack, CanaryOverlay, CanaryRoute, content};
use crate::world::index::{Index, Name, ServiceView};

/// What the canaries of an index come to, the oldest first.
pub(super) fn overlays(index: &Index, book: &CanaryBook) -> CanaryIndex {
    let mut all = CanaryIndex::default();
    let mut taken: BTreeMap<(Name, u16), ObjectKey> = BTreeMap::new();
    let lack = |name: &Name, port: u16| match index.services.get(name).and_then(ServiceView::service) {
        None => Some(format!("there is no Service {}/{}", name.0, name.1)),
        Some(service) if service.ports.iter().any(|known| known.port == port) => None,
        Some(_) => Some(format!("Service {}/{} has no port {port}", name.0, name.1)),
    };
    for object in index.canaries.iter() {
        let Some(spec) = content(object) else { continue };
        let (key, called) = (object.key.clone(), (spec.called(&object.key), spec.port));
        if let Some(older) = taken.get(&called) {
            all.lacks.insert(key, CanaryLack::Rival(older.clone()));
            continue;
        }
        if taken.len() >= CANARIES_MAX {
            all.lacks.insert(key, CanaryLack::TooMany);
            continue;
        }
        taken.insert(called.clone(), key.clone());
        if let Some(why) = lack(&called.0, spec.port) {
            all.lacks.insert(key, CanaryLack::Called(why));
            continue;
        }
        let version = |name: &String| (key.namespace.clone(), name.clone());
        let (stable, candidate) = (version(&spec.stable), version(&spec.candidate));
        let standing = book.standings.get(&key).cloned().unwrap_or_default();
        let mut route = standing.route(spec);
        let [no_stable, no_candidate] = [&stable, &candidate].map(|name| lack(name, spec.port));
        if no_candidate.is_some() {
            route = CanaryRoute::Stable;
        }
        let serves = no_stable.is_none() || route == CanaryRoute::Weight(100);
        if let Some(why) = no_stable.or(no_candidate) {
            all.lacks.insert(key.clone(), CanaryLack::Version(why));
        }
        // Without the stable version the Service itself answers, as if there were no canary.
        if serves {
            all.overlays.insert(called, CanaryOverlay { key, run: standing.run, stable, candidate, port: spec.port, route });
        }
    }
    all
}
