//! Looks at the book of epochs and tells of what is new in it. It comes after everybody else: who publishes and who answers never waits for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::SpanContext;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Making, Traces, told};
use crate::publish::board::Board;
use crate::publish::epoch::Entry;
use crate::translate::own_tracing;

/// A push is followed for so long.
const FOLLOWED_MAX: Duration = Duration::from_secs(10);
/// Between looks: when proxies answered is in the book, whenever one looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Pushes that are followed at once; one more ends the oldest. The book remembers a few more.
const PUSHES_MAX: usize = 128;

/// What was told already.
#[derive(Debug, Default)]
struct Followed {
    /// Of the newest epoch whose change was told.
    newest: u64,
    /// Epochs whose push goes on, and their changes.
    pushes: BTreeMap<u64, SpanContext>,
}

impl Traces {
    /// Tells of every epoch of a board, until `stop`.
    pub async fn follow(self, board: Arc<Board>, stop: CancellationToken) {
        // A task that ends is the end of a control plane.
        let Some(making) = self.0 else { return stop.cancelled().await };
        let mut followed = Followed::default();
        let mut turns = board.turns();
        let mut edition = 0;
        loop {
            if let Some(now) = board.edition().filter(|now| now.serial != edition) {
                edition = now.serial;
                let to = Some(own_tracing(&now.world));
                making.to.send_if_modified(|known| std::mem::replace(known, to.clone()) != to);
            }
            followed.look(&making, &board);
            let pause = async {
                sleep(LOOK_EVERY).await;
                // Who is late makes no turn.
                let patience = if followed.pushes.is_empty() { Duration::MAX } else { FOLLOWED_MAX / 10 };
                let _ = tokio::time::timeout(patience, turns.changed()).await;
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = pause => {}
            }
        }
    }
}

impl Followed {
    fn look(&mut self, making: &Making, board: &Board) {
        let now_us = board.clock.us();
        board.read(|book| {
            let fresh: Vec<&Entry> =
                book.newest_first().take_while(|entry| entry.number > self.newest).filter(|entry| entry.cause.is_some()).collect();
            for entry in fresh.into_iter().rev() {
                if let Some(cause) = &entry.cause {
                    self.pushes.insert(entry.number, told::change(&making.tracer, entry, cause));
                    self.newest = entry.number;
                }
            }
            let too_many = self.pushes.len().saturating_sub(PUSHES_MAX);
            let given_up: Vec<u64> = self.pushes.keys().take(too_many).copied().collect();
            self.pushes.retain(|number, change| {
                let Some(entry) = book.entry(*number) else { return false };
                let waited = Duration::from_micros(now_us.saturating_sub(entry.accepted_us));
                let over = entry.settled() || waited >= FOLLOWED_MAX || given_up.contains(number);
                if over {
                    told::push(&making.tracer, entry, change, now_us);
                }
                !over
            });
        });
    }
}
