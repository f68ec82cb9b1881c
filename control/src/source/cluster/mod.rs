//! A Kubernetes cluster as a source of objects: a watch for each kind that means something to a mesh, and for each Secret and ConfigMap that
//! an object names, all of them one stream of changes.
//!
//! What an API server sends goes through the same door as a file's text (`document`), after it has been pruned to what is read of it. A
//! list that is read anew is compared with what is known (`listing`), and while the API server is away what was last known stays: no fault
//! of a watch ever takes an object out of the world.

mod document;
mod fault;
mod gather;
mod listing;
mod pulse;
mod table;
mod watching;

use std::collections::BTreeMap;
use std::time::Duration;

use kube::Client;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, interval_at, sleep_until};

use crate::clock::Clock;
use crate::world::Change;
use gather::{Delivery, Gathering, Orders};
pub use pulse::Pulses;
use watching::Watching;

/// Deliveries on their way; a watch that has more waits.
const DELIVERIES_MAX: usize = 256;
/// Changes of one step at most.
const STEP_MAX: usize = 1_000;
/// How long a change waits for others.
const STEP_WAIT: Duration = Duration::from_millis(50);
/// How often it is said who has not been listed, until all have been.
const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster to be watched.
pub struct Cluster {
    /// Who we are there, and where it is.
    pub client: Client,
    /// Wall time.
    pub clock: Clock,
    /// What is counted.
    pub pulses: Pulses,
}

/// The watches that run.
struct Watches {
    cluster: Cluster,
    send: mpsc::Sender<Delivery>,
    tasks: JoinSet<()>,
    running: BTreeMap<u64, AbortHandle>,
}

impl Cluster {
    /// Watches for ever and sends what changed, in steps; the first that holds [`Change::Synced`] comes when everything has been listed
    /// once. Ends when nobody receives any more, with an error when a watch ends by itself. Dropping the future ends all watches.
    ///
    /// # Errors
    /// A watch ended, which it never should.
    pub async fn run(self, out: mpsc::Sender<Vec<Change>>) -> anyhow::Result<()> {
        let (send, mut received) = mpsc::channel(DELIVERIES_MAX);
        let mut watches = Watches { cluster: self, send, tasks: JoinSet::new(), running: BTreeMap::new() };
        let (mut gathering, orders) = Gathering::new();
        watches.follow(orders);
        let mut due = Instant::now();
        let mut patience = interval_at(due + PATIENCE, PATIENCE);
        loop {
            let held_until = gathering.held_until();
            tokio::select! {
                biased;
                () = out.closed() => return Ok(()),
                Some(ended) = watches.tasks.join_next() => match ended {
                    Err(error) if error.is_panic() => return Err(error.into()),
                    _ => {}
                },
                () = sleep_until(held_until.unwrap_or(due)), if held_until.is_some() => {
                    let (before, mut orders) = (gathering.len(), Orders::default());
                    gathering.release(Instant::now(), &mut orders);
                    watches.follow(orders);
                    if before == 0 {
                        due = Instant::now();
                    }
                }
                Some(delivery) = received.recv() => {
                    let (before, synced) = (gathering.len(), gathering.is_synced());
                    watches.follow(gathering.on(delivery, Instant::now()));
                    if before == 0 && gathering.len() > 0 {
                        due = Instant::now() + STEP_WAIT;
                    }
                    if gathering.len() < STEP_MAX && synced == gathering.is_synced() {
                        continue;
                    }
                    if !hand(&mut gathering, &out).await {
                        return Ok(());
                    }
                }
                () = sleep_until(due), if gathering.len() > 0 => {
                    if !hand(&mut gathering, &out).await {
                        return Ok(());
                    }
                }
                _ = patience.tick(), if !gathering.is_synced() => say_waiting(&gathering),
            }
        }
    }
}

/// Hands over what has been gathered; whether anybody takes it.
async fn hand(gathering: &mut Gathering, out: &mpsc::Sender<Vec<Change>>) -> bool {
    gathering.len() == 0 || out.send(gathering.take()).await.is_ok()
}

impl Watches {
    fn follow(&mut self, orders: Orders) {
        for watch in orders.end {
            if let Some(task) = self.running.remove(&watch) {
                task.abort();
            }
            self.cluster.pulses.end(watch);
        }
        for (watch, subject) in orders.begin {
            let pulse = self.cluster.pulses.begin(watch, subject.kind());
            let (client, clock, out) = (self.cluster.client.clone(), self.cluster.clock.clone(), self.send.clone());
            let task = self.tasks.spawn(Watching { watch, subject, client, clock, pulse, out }.run());
            self.running.insert(watch, task);
        }
    }
}

fn say_waiting(gathering: &Gathering) {
    let waiting: Vec<_> = gathering.waiting().map(ToString::to_string).collect();
    tracing::warn!("still waiting for the cluster's {}", waiting.join(", "));
}
