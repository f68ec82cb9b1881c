//! A request that waits for a place among those under way.

use std::sync::Arc;

use super::{Concurrency, Counted, no_place};
use crate::failure::LocalReply;
use crate::limit::{LimitCounts, LimitVerdict, WaitingPlace};

/// A place that comes free some time. Dropping it gives the wait up.
#[derive(Debug)]
pub struct PlaceAsk {
    waiting: WaitingPlace,
    path: Arc<str>,
    counts: Arc<LimitCounts>,
}

impl PlaceAsk {
    pub(super) fn new(waiting: WaitingPlace, limit: &Concurrency) -> Self {
        limit.counts.waits(true);
        Self { waiting, path: Arc::clone(&limit.path), counts: Arc::clone(&limit.counts) }
    }

    /// Waits for the place, which is the request's then: it is asked for by that once more. Cancelled it waits no more, and the place goes to the next.
    pub async fn turn(&mut self, counted: &mut Counted) {
        let place = (&mut self.waiting).await;
        counted.0.get_or_insert_default().given.extend(place);
    }

    /// It took too long: what the request is answered.
    pub fn late(self, counted: &mut Counted) -> LocalReply {
        self.counts.add(LimitVerdict::Refused);
        let count = counted.0.get_or_insert_default();
        count.given.clear();
        count.refused = Some(Arc::clone(&self.path));
        no_place()
    }
}

impl Drop for PlaceAsk {
    fn drop(&mut self) {
        self.counts.waits(false);
    }
}
