//! Shares of limits that all proxies of a Gateway keep together: one stream to the control plane, which counts. Questions of all workers go up
//! in batches, grants come down; while there is no stream, or no answer on it, each limit goes by what it says for that
//! (`engine::limit`). What a key was given and has not used for a while goes back.

mod session;
#[cfg(test)]
mod tests;
mod unused;

use std::sync::Arc;
use std::time::Duration;

use engine::limit::StoreLive;
use proto::mesh::limit_leases_client::LimitLeasesClient;
use proto::names::Mode;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::io::Draw;
use crate::observe::Telemetry;
use crate::snapshots::{Posed, Snapshots, unanswered};
use crate::tls::CredentialCell;
use crate::tls::dial::Uplink;
use crate::xds::{Backoff, NodeIdentity};
use session::LeaseSession;

pub use unused::Unused;

/// Batches waiting to be sent; beyond it questions wait, and grow into larger batches.
const BATCHES_AHEAD: usize = 4;
/// Questions in one batch.
const BATCH_MAX: usize = 512;
/// Between two looks at what was not answered and what lies idle.
const LOOK: Duration = Duration::from_millis(250);

/// See the module.
#[derive(Debug)]
pub struct LeaseKeeper {
    /// Reconnects by itself; the one ADS uses.
    pub uplink: Uplink,
    /// Who we are.
    pub node: NodeIdentity,
    /// Says whether there are such limits, and where questions come from.
    pub snapshots: Snapshots,
    /// Time.
    pub telemetry: Arc<Telemetry>,
    /// There is no stream without a leaf.
    pub credentials: Arc<CredentialCell>,
}

impl LeaseKeeper {
    /// Runs until `stop`, through any number of streams. Only a Gateway's proxy has such limits.
    pub async fn run(self, draw: Draw, stop: CancellationToken) {
        if self.node.id.mode != Mode::Edge {
            return;
        }
        let Some(mut questions) = self.snapshots.limit_questions().take() else { return };
        let mut backoff = Backoff::default();
        loop {
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                ended = self.stream(&mut questions, &mut backoff) => ended,
            };
            let store = self.store();
            if store.is_away(self.telemetry.moment()) {
                tracing::warn!(code = ?ended.code(), why = ended.message(), "limits that proxies share are counted by each on its own: the control plane does not answer");
            }
            if ended.code() == Code::Unauthenticated {
                self.uplink.open_anew();
            }
            let pause = sleep(backoff.next(draw.next()));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    // Who asks meanwhile is not to wait.
                    Some(posed) = questions.recv() => unanswered(&posed),
                    () = &mut pause => break,
                }
            }
        }
    }

    fn store(&self) -> Arc<StoreLive> {
        Arc::clone(self.snapshots.load().limits.leases())
    }

    /// One stream, from the time when there is something to share.
    async fn stream(&self, questions: &mut mpsc::Receiver<Posed>, backoff: &mut Backoff) -> Status {
        self.wanted(questions).await;
        let store = self.store();
        let (batches, outgoing) = mpsc::channel(BATCHES_AHEAD);
        let mut session = LeaseSession::new(self.node.id.to_string());
        // Queued before the call: the server may answer nothing before it has heard who speaks.
        if batches.send(session.hello()).await.is_err() {
            return Status::unavailable("the stream was closed");
        }
        let mut grants = match LimitLeasesClient::new(self.uplink.channel()).lease(ReceiverStream::new(outgoing)).await {
            Ok(grants) => grants.into_inner(),
            Err(status) => return status,
        };
        let mut every = interval(LOOK);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut posed = Vec::with_capacity(BATCH_MAX);
        loop {
            tokio::select! {
                biased;
                told = grants.message() => match told {
                    Ok(Some(told)) => {
                        backoff.reset();
                        let now = self.telemetry.moment();
                        if !session.is_heard() {
                            store.begins();
                        }
                        if store.away_since().is_some() {
                            tracing::info!(replicas = told.replicas, "the control plane counts the limits that proxies share");
                        }
                        store.shared_by(told.replicas);
                        store.is_here();
                        session.granted(told, now);
                    }
                    Ok(None) => return Status::unavailable("the control plane closed the stream"),
                    Err(status) => return status,
                },
                // Before whatever a busy proxy has always more of.
                _ = every.tick() => {
                    let now = self.telemetry.moment();
                    session.look(now);
                    if session.is_silent(now) && store.is_away(now) {
                        tracing::warn!("the control plane does not answer about limits; each proxy goes by itself");
                    }
                }
                room = batches.reserve(), if session.has_more() => match room {
                    Ok(room) => room.send(session.batch(BATCH_MAX, self.telemetry.moment())),
                    Err(_) => return Status::unavailable("the stream was closed"),
                },
                // What finds no place in a session waits here, and grows into a larger batch.
                _ = questions.recv_many(&mut posed, BATCH_MAX), if !session.is_full() => session.ask(posed.drain(..), self.telemetry.moment()),
            }
        }
    }

    /// Waits for the leaf, and for the first limit that is shared; meanwhile nobody is kept waiting.
    async fn wanted(&self, questions: &mut mpsc::Receiver<Posed>) {
        let (mut leaves, mut changes) = (self.credentials.changes(), self.snapshots.changes());
        while self.credentials.current().is_none() || !self.snapshots.load().limits.is_used() {
            tokio::select! {
                biased;
                _ = leaves.changed() => {}
                _ = changes.changed() => {}
                Some(posed) = questions.recv() => unanswered(&posed),
            }
        }
    }
}
