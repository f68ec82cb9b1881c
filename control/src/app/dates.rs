//! What time brings along: certificates end by their dates, and keys of session tickets grow old.

use std::time::Duration;

use crate::world::tickets::Seeds;
use crate::world::{Change, Object, Spec, World};

/// How often the world is told the time.
pub(super) const PERIOD: Duration = Duration::from_secs(60);

/// What changes at that moment, and the seeds of tickets that have to be kept before anybody has them, so that a replica which takes over has
/// the same.
pub(super) fn due(world: &World, now_ms: i64) -> (Vec<Change>, Option<Seeds>) {
    let mut changes = vec![Change::Clock { now_ms }];
    let of = |object: &Object| if let Spec::ClientPolicy(policy) = &object.spec { policy.ticket_hours } else { None };
    let wanted = world.index().edge.values().flatten().filter_map(|object| of(object)).collect();
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    let seeds = world.tickets().turned(now_ms, &wanted, |bytes| random.fill(bytes)).unwrap_or_else(|_| {
        tracing::error!("the system gives no random bytes: the keys of session tickets stay as they are");
        None
    });
    changes.extend(seeds.clone().map(Change::Tickets));
    (changes, seeds)
}
