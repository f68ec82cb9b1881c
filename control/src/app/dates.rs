//! What time brings along: certificates end by their dates, and keys of session tickets and of logins grow old.

use std::time::Duration;

use crate::world::login_keys::LoginSeeds;
use crate::world::tickets::Seeds;
use crate::world::{Change, World};

/// How often the world is told the time.
pub(super) const PERIOD: Duration = Duration::from_secs(60);

/// Seeds that have to be kept before anybody has them, so that a replica which takes over has the same.
#[derive(Default)]
pub(super) struct Turned {
    /// Of session tickets.
    pub(super) tickets: Option<Seeds>,
    /// Of logins.
    pub(super) logins: Option<LoginSeeds>,
}

/// What changes at that moment, and what has to be kept first.
pub(super) fn due(world: &World, now_ms: i64) -> (Vec<Change>, Turned) {
    let mut changes = vec![Change::Clock { now_ms }];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    let none = || tracing::error!("the system gives no random bytes: the keys of session tickets and of logins stay as they are");
    let tickets = world.tickets().turned(now_ms, |bytes| random.fill(bytes)).unwrap_or_else(|_| {
        none();
        None
    });
    let logins = world.login_seeds().turned(now_ms, |bytes| random.fill(bytes)).unwrap_or_else(|_| {
        none();
        None
    });
    changes.extend(tickets.clone().map(Change::Tickets));
    changes.extend(logins.clone().map(Change::LoginSeeds));
    (changes, Turned { tickets, logins })
}
