//! What is known of a request at limits, for whoever answers it.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;

use super::{Counted, LimitAsk};
use crate::Moment;
use crate::filter::HeaderOp;
use crate::limit::{Now, OWN_HEADERS, RowState, is_own_header};

/// What has a pace is sent in so many portions a second, so that whole pieces do not run ahead of it.
const PORTIONS_PER_SEC: u64 = 20;

impl Counted {
    /// Says on the answer how the tightest limit stands, in place of what an application says there.
    pub fn tell(&self, headers: &mut HeaderMap) {
        let Some(count) = self.0.as_ref() else { return };
        count.said.iter().for_each(|op| op.apply(headers));
        if count.tightest.is_none() {
            return;
        }
        // Most applications say nothing of limits, and to see that takes less than to look each name up.
        if headers.keys().any(is_own_header) {
            OWN_HEADERS.iter().for_each(|name| _ = headers.remove(name));
        }
        count.tell(|name, value| _ = headers.append(name, value));
    }

    /// Notes what another guard has to say on the answer.
    pub(in crate::filter::guard) fn say(&mut self, ops: &[HeaderOp]) {
        if !ops.is_empty() {
            self.0.get_or_insert_default().said.extend_from_slice(ops);
        }
    }

    /// Settles what the request took by what its answer says of that; what says nothing, or no number, took what it did.
    pub fn settle(&mut self, headers: &HeaderMap, now: Now) {
        let Some(count) = self.0.as_mut() else { return };
        for (object, place, key, cost) in count.open.drain(..) {
            let Some(limit) = object.limits.get(place) else { continue };
            let said = limit.settled.as_ref().and_then(|name| headers.get(name)).and_then(|value| value.to_str().ok());
            let Some(took) = said.and_then(|text| text.trim().parse::<u64>().ok()) else { continue };
            object.memory.rows.with(key, |row| match &mut row.state {
                RowState::Own(meter) => {
                    limit.numbers.give_back(meter, cost.saturating_sub(took), now);
                    limit.numbers.charge(meter, took.saturating_sub(cost), now);
                }
                RowState::Shared(held) => held.settle(cost, took),
                RowState::Fresh | RowState::Pace(_) => {}
            });
        }
    }

    /// Whether something is settled with the answer.
    pub fn is_open(&self) -> bool {
        self.0.as_ref().is_some_and(|count| !count.open.is_empty())
    }

    /// Whether its answer's body has a pace.
    pub fn is_paced(&self) -> bool {
        self.0.as_ref().is_some_and(|count| !count.paces.is_empty())
    }

    /// How many of so many bytes of its answer go on next, and how long they wait first.
    pub fn portion(&self, bytes: usize, now: Moment) -> (usize, Duration) {
        let paces = || self.0.iter().flat_map(|count| &count.paces);
        let most = paces().map(|pace| pace.bytes_per_second / PORTIONS_PER_SEC).min().unwrap_or(u64::MAX);
        let portion = bytes.min(usize::try_from(most).unwrap_or(usize::MAX).max(1));
        let wait = paces().map(|pace| pace.memory.sent(pace.key, (portion as u64, pace.bytes_per_second), now)).max();
        (portion, wait.unwrap_or_default())
    }

    /// The limit that refused it.
    pub fn refused(&self) -> Option<&Arc<str>> {
        self.0.as_ref()?.refused.as_ref()
    }

    /// What stores are to be asked beside the road.
    pub fn aside(&mut self) -> Vec<LimitAsk> {
        self.0.as_mut().map(|count| std::mem::take(&mut count.aside)).unwrap_or_default()
    }

    /// A store that was asked for it did not answer in time.
    pub fn unanswered(&mut self) {
        self.0.get_or_insert_default().silent = true;
    }
}
