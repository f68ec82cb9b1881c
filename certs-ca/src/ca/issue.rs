//! The way in to signing: who may try, what is remembered of it, and service accounts.

use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::{Ca, CaError, Policy, Proof};
use crate::attest::{AUDIENCE, Attempts, Attestation, ServiceAccountError, ServiceAccountVerifier, TOKEN_BYTES_MAX};
use crate::audit::{Audit, Counts, Issuance, Query, Refusal, RefusalKind};
use crate::csr::Csr;
use crate::minting::Keyring;
use crate::store::{Store, StoreError};

/// A request for a leaf, as it came.
#[derive(Clone, Copy, Debug)]
pub struct Application<'a> {
    /// What is asked for.
    pub csr: &'a Csr,
    /// By which instance.
    pub instance: &'a str,
    /// For how long; the policy caps it.
    pub life: Option<Duration>,
    /// Where it came from, where it came by a network.
    pub from: Option<IpAddr>,
    /// The leaf is for the application beside the proxy.
    pub for_application: bool,
    /// Unique id of the pod that is the instance now, empty: there is none; `None`: nobody knows of pods here.
    pub pod_uid: Option<&'a str>,
}

/// What a refusal says of whom it met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// What spoke for the caller was a secret that it may try again and again, or a certificate that is none of ours.
    Guess,
    /// The gate did not let it in.
    TurnedAway,
    /// Neither.
    Other,
}

/// What the authority remembers of its callers.
pub(super) struct Desk {
    pub(super) audit: Audit,
    pub(super) keyring: Mutex<Keyring>,
    /// Keys are not rotated before that second: the disk did not take the last attempt.
    pub(super) rotate_from: AtomicI64,
    /// Streams that the bundles are told on.
    listeners: AtomicUsize,
    attempts: Mutex<Attempts>,
    verifier: OnceLock<Arc<dyn ServiceAccountVerifier>>,
}

impl Desk {
    pub(super) fn open(store: &Store) -> Result<Self, StoreError> {
        let mut keyring = Keyring::default();
        store.token_keys()?.into_iter().for_each(|key| keyring.add(key));
        Ok(Self {
            audit: Audit::default(),
            keyring: Mutex::new(keyring),
            rotate_from: AtomicI64::new(i64::MIN),
            listeners: AtomicUsize::new(0),
            attempts: Mutex::default(),
            verifier: OnceLock::new(),
        })
    }
}

/// One that follows the bundles, from [`Ca::listen`] until it is dropped.
pub(crate) struct Listening(Arc<Ca>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.desk.listeners.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Proof<'_> {
    /// As the audit log names it.
    pub fn attestation(&self) -> Attestation {
        match self {
            Self::Token(_) => Attestation::Token,
            Self::Leaf(_) => Attestation::Certificate,
            Self::ServiceAccount(_) => Attestation::ServiceAccount,
        }
    }
}

impl Ca {
    /// Somebody follows the bundles from now on.
    pub(crate) fn listen(self: &Arc<Self>) -> Listening {
        self.desk.listeners.fetch_add(1, Ordering::Relaxed);
        Listening(self.clone())
    }

    /// How many do.
    pub fn listeners(&self) -> usize {
        self.desk.listeners.load(Ordering::Relaxed)
    }

    /// Has service-account tokens verified from now on. The first verifier stays.
    pub fn verify_service_accounts(&self, verifier: Arc<dyn ServiceAccountVerifier>) {
        // A second one is a second cluster, and there is none.
        let _ = self.desk.verifier.set(verifier);
    }

    /// The unique id of the pod that such a token speaks for.
    pub(super) fn verify_service_account(
        &self,
        token: &str,
        csr: &Csr,
        instance: &str,
        trust_domain: &str,
    ) -> Result<String, ServiceAccountError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(ServiceAccountError::TooLarge(token.len()));
        }
        let verifier = self.desk.verifier.get().ok_or(ServiceAccountError::NoVerifier)?;
        let account = verifier.verify(token, AUDIENCE)?;
        account.covers(csr, instance, trust_domain)?;
        Ok(account.pod.map(|pod| pod.uid).unwrap_or_default())
    }

    /// Whether an attempt by token from there, for that workload (`NS/NAME`, where it is known), is looked at.
    ///
    /// # Errors
    /// [`CaError::Limited`]: too many were refused.
    pub fn may_try(&self, from: Option<IpAddr>, workload: Option<&str>) -> Result<(), CaError> {
        let now = (self.clock)().unix_timestamp();
        Ok(self.attempts().admit(from, workload, now)?)
    }

    /// Counts a certificate by what may be shown again and again: the leaf before, or a service account.
    ///
    /// # Errors
    /// [`CaError::Limited`]: the instance had too many.
    pub(super) fn may_have(&self, application: &Application<'_>, policy: &Policy) -> Result<(), CaError> {
        let Application { csr, instance, .. } = application;
        let holder = format!("{}/{} (workload {})", csr.identity.namespace(), instance, csr.workload);
        let now = (self.clock)().unix_timestamp();
        Ok(self.attempts().issue(holder, policy.leaf_life, now)?)
    }

    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        self.desk.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a refusal.
    ///
    /// # Errors
    /// [`CaError::Limited`]: it is one too many, and only counted.
    pub(crate) fn note_refusal(&self, refusal: Refusal, fault: Fault) -> Result<(), CaError> {
        let now = (self.clock)().unix_timestamp();
        match fault {
            Fault::Guess => {
                // Anybody may show a service account's token that is none, and name any workload: that counts by where it comes from only, or
                // a few strangers would keep new pods from joining.
                let of_workload = !refusal.workload.is_empty() && refusal.attestation != Attestation::ServiceAccount;
                let workload = of_workload.then(|| format!("{}/{}", refusal.namespace, refusal.workload));
                self.attempts().refused(refusal.peer, workload.as_deref(), now);
            }
            Fault::TurnedAway => self.attempts().turn_away(refusal.peer, now)?,
            Fault::Other => {}
        }
        let kind = match fault {
            Fault::Guess => RefusalKind::Unproven,
            Fault::TurnedAway => RefusalKind::NotAdmitted,
            Fault::Other => RefusalKind::BadRequest,
        };
        self.desk.audit.refused(Refusal { time: now, ..refusal }, kind);
        Ok(())
    }

    /// Counts an attempt that was not looked at.
    pub(crate) fn note_limited(&self) {
        self.desk.audit.limited();
    }

    /// Certificates given out, newest first, at most `rows_max`: of the log at rest, and what waits for its disk.
    ///
    /// # Errors
    /// The store.
    pub fn issuances(&self, query: &Query, rows_max: usize) -> Result<Vec<Issuance>, CaError> {
        let mut rows = self.desk.audit.waiting(query);
        rows.truncate(rows_max);
        let rest = rows_max - rows.len();
        if rest > 0 {
            rows.extend(self.store.issuances(query, rest)?);
        }
        Ok(rows)
    }

    /// The last refusals, newest first.
    pub fn refusals(&self, query: &Query) -> Vec<Refusal> {
        self.desk.audit.refusals(query)
    }

    /// What was done since the start.
    pub fn counts(&self) -> Counts {
        self.desk.audit.counts()
    }

    /// What is wrong with keeping the log, if anything is.
    pub fn failure(&self) -> Option<String> {
        self.desk.audit.failure()
    }
}
