//! What an object's store does with it: goes away, answers, is told; and how the object's keys stand.

use std::time::Duration;

use super::{Limit, ObjectLimits, Stop, Took, WithoutStore};
use crate::Moment;
use crate::limit::{Grant, KeyKnown, KeyStanding, LimitVerdict, Now, RemotePlace, RowState};

impl ObjectLimits {
    /// How long a request waits for its store, where that is not the control plane.
    pub fn wait(&self) -> Option<Duration> {
        self.remote.as_ref().map(|remote| remote.place.timeout())
    }

    /// What its store is, in a word.
    pub(crate) fn store_kind(&self) -> &'static str {
        match self.remote.as_ref().map(|remote| &remote.place) {
            None => "leases",
            Some(RemotePlace::Redis(_)) => "redis",
            Some(RemotePlace::Service(_)) => "rls",
        }
    }

    /// While the store is away.
    pub(super) fn take_alone(&self, limit: &Limit, (key, cost): (u128, u64), now: Now) -> Result<Took, Stop> {
        match self.without_store {
            WithoutStore::Deny => Err(Stop::Away),
            WithoutStore::Allow => {
                limit.counts.add(LimitVerdict::StoreAwayAllowed);
                Ok(None)
            }
            WithoutStore::Share => {
                let replicas = u64::from(self.peers.replicas());
                let share = limit.numbers.share(replicas);
                let taken = self.memory.rows.with(key, |row| row.of(limit.mark).shared().alone(cost, &share, replicas, now));
                taken.map(|standing| Some((key, cost, standing))).map_err(Stop::Refused)
            }
        }
    }

    /// The store has answered.
    pub fn granted(&self, key: u128, grant: &Grant, now: Moment) {
        self.memory.rows.with(key, |row| row.shared().granted(grant, now));
    }

    /// Of what a store is asked: what was let through without it, and what is known of the key.
    pub fn account(&self, key: u128, now: Moment) -> (u64, Option<KeyKnown>) {
        let session = self.store.session();
        self.memory.rows.with(key, |row| (row.shared().owed(), row.shared().known(session, now)))
    }

    /// The store does not answer a question.
    pub fn unanswered(&self, key: u128, spent: u64) {
        self.memory.rows.peek(key, |row| row.shared().unanswered(spent));
    }

    /// How keys stand, as far as this proxy knows; at most so many of each part of the table, the newest first.
    pub(crate) fn standings(&self, most: usize, now: Now) -> Vec<(&Limit, u128, KeyStanding)> {
        let mut found = Vec::new();
        self.memory.rows.each(|key, row| {
            let standing = |limit: &Limit| match &row.state {
                RowState::Fresh | RowState::Pace(_) => None,
                RowState::Own(meter) => Some(limit.numbers.look(&mut meter.clone(), 1, now)),
                RowState::Shared(held) => Some(held.standing(now.moment)),
            };
            if let Some(limit) = self.limits.iter().find(|limit| limit.mark == row.limit)
                && let Some(standing) = standing(limit)
            {
                found.push((limit, key, standing));
            }
            found.len() < most
        });
        found
    }
}
