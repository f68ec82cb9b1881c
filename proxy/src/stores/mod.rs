//! Stores elsewhere that count limits, and keep sessions, for several proxies: one connection to each that an object of the live snapshot names. Questions of all
//! workers come here and are handed on; what a store grants is spent as a share of the control plane's count is (`engine::limit`). While a
//! store is away nobody waits for it: each limit goes by its `onError`, and sessions are not known. A rate-limit service is asked by the workers themselves, of each
//! request (`road::asking`).

mod cluster;
mod fault;
mod kept;
mod link;
#[cfg(test)]
mod real_tests;
mod redis;
mod sentinel;
mod server;
mod slots;
mod take;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};
use std::time::Duration;

use engine::limit::{NAMESPACE_STORES_MAX, RemotePlace, RemoteStore, STORES_MAX};
use proto::names::Mode;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use self::redis::RedisStore;
use crate::callout::Callout;
use crate::io::Draw;
use crate::observe::Telemetry;
use crate::snapshots::{POSED_MAX, PosedElsewhere, Snapshots};
use crate::xds::NodeIdentity;

/// Between two looks at which stores nobody names any more.
const LOOK: Duration = Duration::from_secs(5);

/// See the module.
pub struct StoreKeeper {
    /// Connects.
    pub callout: Callout,
    /// Says which stores there are, and where questions come from.
    pub snapshots: Snapshots,
    /// Time.
    pub telemetry: Arc<Telemetry>,
    /// Who we are.
    pub node: NodeIdentity,
}

/// The way to one store.
struct StoreWay {
    store: Weak<RemoteStore>,
    questions: mpsc::Sender<PosedElsewhere>,
}

impl StoreKeeper {
    /// Runs until `stop`. Only a Gateway's proxy has such limits.
    pub async fn run(self, draw: Draw, stop: CancellationToken) {
        if self.node.id.mode != Mode::Edge {
            return;
        }
        let Some(mut questions) = self.snapshots.limit_questions().take_remote() else { return };
        let (mut ways, mut tasks) = (Vec::new(), JoinSet::new());
        let mut changes = self.snapshots.changes();
        let mut every = interval(LOOK);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.meet(&mut ways, &mut tasks, &draw);
                }
                // The last who held a store may be a worker that has not looked at the live snapshot yet.
                _ = every.tick() => self.meet(&mut ways, &mut tasks, &draw),
                Some(posed) = questions.recv() => hand_on(&ways, posed),
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            }
        }
    }

    /// Begins with stores that are new, and leaves those that nobody names any more.
    fn meet(&self, ways: &mut Vec<StoreWay>, tasks: &mut JoinSet<()>, draw: &Draw) {
        ways.retain(|way| way.store.strong_count() > 0);
        let (placed, beyond) = self.snapshots.load().limits.placed_stores();
        for store in beyond {
            if store.trouble.away().is_none() {
                let why = format!(
                    "there is no place for it: a proxy speaks with {STORES_MAX} stores, and {NAMESPACE_STORES_MAX} that one namespace names"
                );
                tracing::warn!(
                    store = store.place.name(),
                    why,
                    "a store does not answer: each limit there goes by its onError, and sessions there are not known"
                );
                store.trouble.failed(&why, self.telemetry.times().0.unix().as_secs());
            }
        }
        for store in placed {
            if ways.iter().any(|way| std::ptr::eq(way.store.as_ptr(), Arc::as_ptr(&store))) {
                continue;
            }
            // A service is asked by the workers.
            let RemotePlace::Redis(place) = &store.place else { continue };
            // It may have been one too many before.
            store.trouble.over();
            let (questions, arriving) = mpsc::channel(POSED_MAX);
            let (place, live, trouble) = (Arc::clone(place), Arc::clone(&store.live), Arc::clone(&store.trouble));
            let (callout, telemetry, draw) = (self.callout.clone(), Arc::clone(&self.telemetry), Draw::seeded(draw.next()));
            let task = RedisStore { place, live, trouble, callout, snapshots: self.snapshots.clone(), telemetry, password: None };
            tasks.spawn(task.run(arriving, draw));
            ways.push(StoreWay { store: Arc::downgrade(&store), questions });
        }
    }
}

/// To the store that it is for. One that is not met yet, or has as many questions as it may, answers nothing.
fn hand_on(ways: &[StoreWay], posed: PosedElsewhere) {
    let wanted = posed.store().map(Arc::as_ptr);
    let way = ways.iter().find(|way| wanted.is_some_and(|wanted| std::ptr::eq(way.store.as_ptr(), wanted)));
    let Some(way) = way else { return posed.unanswered() };
    if let Err(full) = way.questions.try_send(posed) {
        full.into_inner().unanswered();
    }
}
