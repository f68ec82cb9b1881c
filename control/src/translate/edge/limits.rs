//! RateLimit as proxies are told: all objects of all places, the narrowest first.

use proto::mesh::limit_store::Kind;
use proto::mesh::{EdgeLimits, LeaseStore, LimitStore};

use crate::world::edge::EdgeRateLimit;
use crate::world::traffic::Place;
use crate::world::{Index, Object, ObjectKey, Spec};

pub(super) fn sent(index: &Index, places: &[Place]) -> Vec<EdgeLimits> {
    let route = places.iter().find_map(|place| match place {
        Place::Object(key) if key.kind.routes_http() => Some(key),
        _ => None,
    });
    let objects = places.iter().flat_map(|place| index.edge.get(place).into_iter().flatten());
    let mut told: Vec<EdgeLimits> = Vec::new();
    for object in objects {
        let Spec::RateLimit(spec) = &object.spec else { continue };
        // One object may be about several of these places, and counts once.
        if !told.iter().any(|other| other.policy == object.key.path()) {
            told.push(one(object, spec, route));
        }
    }
    told
}

fn one(object: &Object, spec: &EdgeRateLimit, route: Option<&ObjectKey>) -> EdgeLimits {
    let EdgeRateLimit { attachment: _, before_auth, limits, per_target, concurrency, ahead_percent, without_store, draft, legacy } = spec;
    let policy = object.key.path();
    let memory = match route.filter(|_| *per_target) {
        Some(route) => format!("{policy}@{route}"),
        None => policy.clone(),
    };
    EdgeLimits {
        policy,
        memory,
        before_auth: *before_auth,
        limits: limits.clone(),
        concurrency: concurrency.clone(),
        store: Some(LimitStore { kind: Some(Kind::Leases(LeaseStore { ahead_percent: *ahead_percent })) }),
        without_store: (*without_store).into(),
        draft_headers: *draft,
        legacy_headers: *legacy,
    }
}
