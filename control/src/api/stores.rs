//! The condition `Degraded` of a RateLimit: its store is away from some proxy.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::publish::board::Board;
use crate::publish::epoch::moment;
use crate::translate::{Condition, Status};
use crate::world::{Object, Spec};

/// Stores that some proxy does not reach, by name.
#[derive(Debug, Default)]
pub(super) struct StoresAway(BTreeMap<String, AwayFrom>);

/// From whom, why, and since when.
#[derive(Debug, Default)]
struct AwayFrom {
    proxies: u64,
    /// One of them, and what it says.
    example: (String, String),
    since_secs: u64,
}

impl StoresAway {
    /// What connected proxies say now.
    pub(super) fn read(board: &Arc<Board>) -> Self {
        let mut away: BTreeMap<String, AwayFrom> = BTreeMap::new();
        for proxy in board.correspondents() {
            let rows = board.correspondent(&proxy, |correspondent| correspondent.traffic.stores_away.clone()).unwrap_or_default();
            for row in rows {
                let known = away.entry(row.store).or_insert_with(|| AwayFrom {
                    proxies: 0,
                    example: (proxy.clone(), row.error),
                    since_secs: row.since_secs,
                });
                known.proxies += 1;
                known.since_secs = known.since_secs.min(row.since_secs);
            }
        }
        Self(away)
    }

    /// Adds the condition where an object's store is away.
    pub(super) fn complete(&self, object: &Object, status: &mut Status) {
        let Spec::RateLimit(spec) = &object.spec else { return };
        let store = match (&spec.store.redis, &spec.store.rls) {
            (Some(redis), _) => format!("redis/{}", redis.address().to_ascii_lowercase()),
            (None, Some(rls)) => format!("rls/{}", rls.address(&object.key.namespace)),
            (None, None) => return,
        };
        let Some(away) = self.0.get(&store) else { return };
        let (proxy, error) = &away.example;
        let since = moment(away.since_secs.saturating_mul(1000));
        let message = format!("{store} is away from {} proxies since {since}; {proxy}: {error}", away.proxies);
        for ancestor in &mut status.ancestors {
            let Some(generation) = ancestor.conditions.first().map(|accepted| accepted.observed_generation) else { continue };
            ancestor.conditions.push(Condition {
                kind: "Degraded".to_owned(),
                status: "True",
                reason: "StoreAway".to_owned(),
                message: message.clone(),
                observed_generation: generation,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{FileChange, Folder};
    use crate::translate::statuses;
    use crate::world::{Allocations, World, WorldSettings};

    #[test]
    fn a_condition_says_from_whom_a_store_is_away() {
        // Aim: only objects with that very store have it, with how many proxies, since when and why.
        let limit = |name: &str, store: &str| {
            format!(
                "apiVersion: meshwright.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: {name}, namespace: a}}\n\
                 spec: {{limits: [{{name: all, requests: 1, per: 1s}}], store: {store}}}\n---\n"
            )
        };
        let text = limit("leases", "{leases: {}}")
            + &limit("near", "{redis: {addresses: ['near:1']}}")
            + &limit("far", "{redis: {addresses: ['Far:1']}}");
        let mut world = World::new(WorldSettings::default(), Allocations::default());
        world.apply(Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(text)) }], 0));
        let example = ("edge/a/edge".to_owned(), "it has closed the connection".to_owned());
        let away = StoresAway([("redis/far:1".to_owned(), AwayFrom { proxies: 2, example, since_secs: 0 })].into());
        for (key, mut status) in statuses(&world) {
            away.complete(world.get(&key).unwrap(), &mut status);
            let told = status.ancestors[0].conditions.iter().find(|condition| condition.kind == "Degraded").cloned();
            let told = told.map(|condition| (condition.status, condition.message));
            let wanted = "redis/far:1 is away from 2 proxies since 1970-01-01T00:00:00Z; edge/a/edge: it has closed the connection";
            assert_eq!(told, (key.name == "far").then(|| ("True", wanted.to_owned())));
        }
    }
}
