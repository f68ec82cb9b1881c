//! Where the proxy is between its start and its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::snapshots::Snapshots;
use crate::tls::{CredentialCell, TrustCell};

/// Between the word to the control plane and the drain: peers hear of it meanwhile.
const TELL: Duration = Duration::from_millis(50);

/// Shared by signals, admin and probes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    snapshots: Snapshots,
    credentials: Arc<CredentialCell>,
    trust: Arc<TrustCell>,
    bound: Arc<AtomicBool>,
    started: Arc<AtomicBool>,
    /// Cancelled when the instance is known to end soon: callers are told, and served as before.
    pub parting: CancellationToken,
    /// Cancelled when the end begins: not ready any more, and whoever balances is told.
    pub draining: CancellationToken,
    /// Cancelled when doors close and connections end in order.
    pub closing: CancellationToken,
    /// Cancelled when the process shall end once it is drained.
    pub leaving: CancellationToken,
    /// Cancelled when the process shall end now.
    pub quit: CancellationToken,
}

impl Lifecycle {
    /// A proxy that has just begun.
    pub fn new(snapshots: Snapshots, credentials: Arc<CredentialCell>, trust: Arc<TrustCell>) -> Self {
        Self {
            snapshots,
            credentials,
            trust,
            bound: Arc::default(),
            started: Arc::default(),
            parting: CancellationToken::new(),
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
            leaving: CancellationToken::new(),
            quit: CancellationToken::new(),
        }
    }

    /// The listeners are open.
    pub fn bound(&self) {
        self.bound.store(true, Ordering::Release);
    }

    /// Begins the drain and lets the process end after it; the second time it ends at once.
    pub fn leave(&self) {
        if self.leaving.is_cancelled() {
            self.quit.cancel();
        }
        self.draining.cancel();
        self.leaving.cancel();
    }

    /// Waits for the end and lets it come about: readiness is gone then, and whoever balances in front of an edge hears of that, so clients are let in for as
    /// long as a ClientPolicy wants it. Then doors close, and `drain` ends connections within the time that it is given: `bound`, where no
    /// ClientPolicy says. What is in force when each part begins counts. Dropping the future leaves it at what has begun.
    pub async fn end_in_order(&self, bound: Duration, drain: impl AsyncFnOnce(Duration)) {
        self.draining.cancelled().await;
        let grace = self.snapshots.load().ending().readiness_grace;
        if !grace.is_zero() {
            tracing::info!(grace_secs = grace.as_secs_f64(), "not ready any more; clients are let in for a while");
            tokio::time::sleep(grace).await;
        }
        let bound = self.snapshots.load().ending().go_away_grace.unwrap_or(bound);
        tracing::info!(bound_secs = bound.as_secs_f64(), "draining");
        self.closing.cancel();
        tokio::time::sleep(TELL).await;
        drain(bound).await;
    }

    /// Whether traffic should be sent here: certificate, first epoch, open listeners, no drain, not revoked.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn ready(&self) -> Result<(), &'static str> {
        if self.draining.is_cancelled() {
            return Err("draining");
        }
        if !self.bound.load(Ordering::Acquire) {
            return Err("the listeners are not open yet");
        }
        if self.credentials.current().is_none() {
            return Err("no certificate yet");
        }
        if self.snapshots.load().settings.is_none() {
            return Err("no configuration yet");
        }
        if self.trust.outcast().borrow().is_some() {
            return Err("the identity of this proxy, or its certificate, is revoked");
        }
        self.started.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether it was ever ready.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn started(&self) -> Result<(), &'static str> {
        if self.started.load(Ordering::Acquire) { Ok(()) } else { self.ready() }
    }
}

#[cfg(test)]
mod tests {
    use engine::model::Snapshot;

    use super::*;
    use crate::tls::testing::Authority;

    /// Aim: ready needs certificate, configuration and listeners, is interrupted while it is revoked, ends with the drain; started stays; a second wish to leave is final.
    #[test]
    fn readiness_follows_the_parts() {
        let (snapshots, credentials) = (Snapshots::default(), Arc::new(CredentialCell::default()));
        let trust = Arc::new(TrustCell::default());
        let life = Lifecycle::new(snapshots.clone(), Arc::clone(&credentials), Arc::clone(&trust));
        assert_eq!(life.ready(), Err("the listeners are not open yet"));
        life.bound();
        assert_eq!(life.ready(), Err("no certificate yet"));
        credentials.publish(Authority::new("root").issue("spiffe://cluster.local/ns/shop/sa/a", "a"));
        assert_eq!(life.started(), Err("no configuration yet"));
        let settings = Some(Arc::new(crate::snapshots::testing::settings()));
        snapshots.publish(Arc::new(Snapshot { settings, ..Snapshot::default() }));
        assert_eq!(life.ready(), Ok(()));
        trust.cast_out(Some("spiffe://cluster.local/ns/shop/sa/a is revoked"));
        assert!(life.ready().unwrap_err().contains("is revoked"));
        trust.cast_out(None);
        assert_eq!(life.ready(), Ok(()));
        life.leave();
        assert_eq!((life.ready(), life.started()), (Err("draining"), Ok(())));
        assert!(!life.quit.is_cancelled());
        life.leave();
        assert!(life.quit.is_cancelled());
    }
}
