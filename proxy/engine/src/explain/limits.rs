//! `get limits -o json`: how keys of limits stand at this proxy.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::filter::Stage;
use crate::filter::guard::{Guard, ObjectLimits};
use crate::limit::Now;
use crate::model::{Action, Snapshot};

/// Most keys of one object that are shown, the newest first.
pub const SHOWN_KEYS_MAX: usize = 1_000;

/// One key of one limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitRow {
    /// `RateLimit`.
    pub kind: &'static str,
    /// Namespace of the object.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The limit's name.
    pub limit: String,
    /// Whose, hashed.
    pub key: String,
    /// What is used up.
    pub used: u64,
    /// What may be there at once.
    pub limit_value: u64,
    /// What is left.
    pub remaining: u64,
    /// When all of it is there again, seconds since 1970.
    pub resets_at_secs: u64,
    /// `leases` or `redis`, or `own` where this proxy counts for itself.
    pub store: &'static str,
    /// Whoever counts for all is away.
    pub degraded: bool,
}

/// How keys stand, object by object.
pub fn limits(snapshot: &Snapshot, now: Now) -> Vec<LimitRow> {
    let mut objects: BTreeMap<Arc<str>, Arc<ObjectLimits>> = BTreeMap::new();
    let hosts = snapshot.routes.values().flat_map(|table| &table.hosts);
    let gates = hosts.flat_map(|host| &host.rules).filter_map(|rule| match &rule.action {
        Action::Forward(forward) => Some(&forward.policy.steps.gates),
        Action::Reply(_) => None,
    });
    for stage in gates.flatten() {
        if let Stage::Guard(Guard::Limit(limits, _)) = stage {
            objects.extend(limits.objects().iter().map(|object| (Arc::clone(&object.memory.name), Arc::clone(object))));
        }
    }
    objects.values().flat_map(|object| rows(object, now)).collect()
}

fn rows(object: &ObjectLimits, now: Now) -> Vec<LimitRow> {
    let (namespace, name) = object.policy.split_once('/').unwrap_or(("", &object.policy));
    let standings = object.standings(SHOWN_KEYS_MAX, now).into_iter();
    let row = standings.map(|(limit, key, standing)| LimitRow {
        kind: "RateLimit",
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        limit: limit.name.to_string(),
        key: format!("{key:032x}"),
        used: limit.numbers.whole().saturating_sub(standing.remaining),
        limit_value: limit.numbers.whole(),
        remaining: standing.remaining,
        resets_at_secs: now.wall_secs.saturating_add(standing.reset.as_secs()),
        store: if limit.shared { object.store_kind() } else { "own" },
        degraded: limit.shared && object.store.away_since().is_some(),
    });
    row.collect()
}
