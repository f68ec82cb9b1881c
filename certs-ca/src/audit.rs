//! Who was given which certificate, by what proof; and who was refused. Issuances are kept by the store, refusals in memory.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::attest::Attestation;

/// Issuances kept. Beyond it the oldest are forgotten.
pub const ISSUANCES_MAX: u64 = 100_000;
/// Issuances older than this are forgotten.
pub const AGE_MAX_SECS: i64 = 400 * 24 * 3600;
/// Refusals kept, in memory. Beyond it the oldest are forgotten.
pub const REFUSALS_MAX: usize = 1_000;
/// Issuances that wait for a disk that takes them. Beyond it the oldest are lost, counted and told.
pub const UNWRITTEN_MAX: usize = 10_000;
/// Longest text of a caller's own that is kept.
const TEXT_CHARS_MAX: usize = 300;

/// One certificate given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issuance {
    /// Seconds since 1970.
    pub time: i64,
    /// Lower-case hex.
    pub serial: String,
    /// SPIFFE URI.
    pub identity: String,
    /// Namespace of the workload.
    pub namespace: String,
    /// Its name.
    pub workload: String,
    /// The instance that asked.
    pub instance: String,
    /// By what.
    pub attestation: Attestation,
    /// Subject of the issuing certificate.
    pub issuer: String,
    /// Seconds since 1970.
    pub not_after: i64,
    /// Where the request came from, where it came by a network.
    pub peer: Option<IpAddr>,
    /// For the application beside the proxy, which has a key of its own.
    #[serde(default)]
    pub for_application: bool,
    /// Lower-case hex SHA-256 of the leaf; empty in rows of older versions.
    #[serde(default)]
    pub leaf_sha256: String,
    /// Unique id of the pod that it was issued to; empty where a token of another kind spoke for it.
    #[serde(default)]
    pub pod_uid: String,
}

/// One request that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Seconds since 1970.
    pub time: i64,
    /// As asked for; empty where the request could not be read.
    pub identity: String,
    /// Namespace of the workload, as asked for.
    pub namespace: String,
    /// Its name.
    pub workload: String,
    /// The instance it named.
    pub instance: String,
    /// What spoke for it.
    pub attestation: Attestation,
    /// Where the request came from.
    pub peer: Option<IpAddr>,
    /// Why.
    pub reason: String,
}

/// Which rows are wanted.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Of this namespace; empty: of all.
    pub namespace: String,
    /// Of this workload, or this instance; empty: of all.
    pub name: String,
    /// Nothing older, in seconds since 1970.
    pub since: i64,
}

impl Query {
    pub(crate) fn meets(&self, namespace: &str, names: [&str; 2], time: i64) -> bool {
        let of_namespace = self.namespace.is_empty() || self.namespace == namespace;
        of_namespace && (self.name.is_empty() || names.contains(&self.name.as_str())) && time >= self.since
    }
}

/// What was done so far, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Certificates by join token.
    pub by_token: u64,
    /// Certificates by the leaf before.
    pub by_certificate: u64,
    /// Certificates by service account.
    pub by_service_account: u64,
    /// Requests refused.
    pub refused: u64,
    /// The same, by why: see [`RefusalKind`].
    pub refused_by: [u64; RefusalKind::ALL.len()],
    /// JWT-SVIDs.
    pub tokens_minted: u64,
    /// Issuances that no disk took.
    pub lost: u64,
    /// How long signing took.
    pub signing: SigningTimes,
}

/// Why a request was refused, in a few words that do not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// What spoke for the caller proves nothing.
    Unproven,
    /// The gate knows nobody of that name, or of that place.
    NotAdmitted,
    /// What is asked for cannot be given.
    BadRequest,
    /// There were too many.
    Limited,
}

impl RefusalKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Unproven, Self::NotAdmitted, Self::BadRequest, Self::Limited];

    /// As metrics spell it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Unproven => "unproven",
            Self::NotAdmitted => "not_admitted",
            Self::BadRequest => "bad_request",
            Self::Limited => "limited",
        }
    }
}

/// Upper bounds of [`SigningTimes`], in microseconds; one without bound follows.
pub const SIGNING_BOUNDS_MICROS: [u64; 8] = [100, 250, 500, 1000, 2500, 10_000, 50_000, 250_000];

/// How long signing a certificate took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SigningTimes {
    /// By [`SIGNING_BOUNDS_MICROS`].
    pub buckets: [u64; SIGNING_BOUNDS_MICROS.len() + 1],
    /// All together.
    pub micros: u64,
}

/// The part of the log that is in memory.
#[derive(Debug, Default)]
pub struct Audit {
    refusals: Mutex<VecDeque<Refusal>>,
    unwritten: Mutex<Unwritten>,
    issued: [AtomicU64; 3],
    refused: [AtomicU64; RefusalKind::ALL.len()],
    signing: Mutex<SigningTimes>,
    minted: AtomicU64,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Unwritten {
    rows: VecDeque<Issuance>,
    failure: Option<String>,
}

impl Audit {
    /// Counts an issuance and hands out what is to be written: it, and those that no disk took before.
    pub(crate) fn issued(&self, issuance: Issuance) -> Vec<Issuance> {
        self.issued[issuance.attestation as usize].fetch_add(1, Ordering::Relaxed);
        let mut waiting = lock(&self.unwritten);
        waiting.rows.push_back(issuance);
        waiting.rows.drain(..).collect()
    }

    /// Told how writing went. What was not written is written with the next.
    pub(crate) fn written(&self, rows: Vec<Issuance>, failure: Option<String>) {
        let mut waiting = lock(&self.unwritten);
        waiting.failure.clone_from(&failure);
        if failure.is_none() {
            return;
        }
        for row in rows.into_iter().rev() {
            waiting.rows.push_front(row);
        }
        while waiting.rows.len() > UNWRITTEN_MAX {
            waiting.rows.pop_front();
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Why issuances are in memory only, if they are.
    pub fn failure(&self) -> Option<String> {
        let waiting = lock(&self.unwritten);
        let failure = waiting.failure.as_ref()?;
        let lost = self.lost.load(Ordering::Relaxed);
        let lost = if lost == 0 { String::new() } else { format!(", {lost} are lost") };
        Some(format!("{} issued certificates are not in the audit log on disk{lost}: {failure}", waiting.rows.len()))
    }

    /// Issuances that wait for the disk, newest first.
    pub(crate) fn waiting(&self, query: &Query) -> Vec<Issuance> {
        let waiting = lock(&self.unwritten);
        waiting.rows.iter().rev().filter(|row| query.meets(&row.namespace, [&row.workload, &row.instance], row.time)).cloned().collect()
    }

    /// Remembers a refusal.
    pub(crate) fn refused(&self, refusal: Refusal, kind: RefusalKind) {
        self.refused[kind as usize].fetch_add(1, Ordering::Relaxed);
        let clipped = |text: String| text.chars().take(TEXT_CHARS_MAX).collect();
        let Refusal { time, identity, namespace, workload, instance, attestation, peer, reason } = refusal;
        let [identity, namespace, workload, instance, reason] = [identity, namespace, workload, instance, reason].map(clipped);
        let mut refusals = lock(&self.refusals);
        if refusals.len() == REFUSALS_MAX {
            refusals.pop_front();
        }
        refusals.push_back(Refusal { time, identity, namespace, workload, instance, attestation, peer, reason });
    }

    /// Counts an attempt that was not looked at.
    pub(crate) fn limited(&self) {
        self.refused[RefusalKind::Limited as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A certificate was signed within that time.
    pub(crate) fn signed(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut signing = lock(&self.signing);
        let bucket = SIGNING_BOUNDS_MICROS.iter().position(|bound| micros <= *bound).unwrap_or(SIGNING_BOUNDS_MICROS.len());
        signing.buckets[bucket] += 1;
        signing.micros = signing.micros.saturating_add(micros);
    }

    /// The last refusals, newest first.
    pub fn refusals(&self, query: &Query) -> Vec<Refusal> {
        let refusals = lock(&self.refusals);
        refusals.iter().rev().filter(|row| query.meets(&row.namespace, [&row.workload, &row.instance], row.time)).cloned().collect()
    }

    pub(crate) fn minted(&self) {
        self.minted.fetch_add(1, Ordering::Relaxed);
    }

    /// What was done since the start.
    pub fn counts(&self) -> Counts {
        let issued = |attestation: Attestation| self.issued[attestation as usize].load(Ordering::Relaxed);
        let refused_by = RefusalKind::ALL.map(|kind| self.refused[kind as usize].load(Ordering::Relaxed));
        Counts {
            by_token: issued(Attestation::Token),
            by_certificate: issued(Attestation::Certificate),
            by_service_account: issued(Attestation::ServiceAccount),
            refused: refused_by.iter().sum(),
            refused_by,
            tokens_minted: self.minted.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
            signing: *lock(&self.signing),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn issuance(serial: usize, time: i64) -> Issuance {
        Issuance {
            time,
            serial: format!("{serial:08}"),
            identity: "spiffe://cluster.local/ns/shop/sa/catalog".into(),
            namespace: "shop".into(),
            workload: "catalog".into(),
            instance: format!("catalog-{}", serial % 3),
            attestation: Attestation::Token,
            issuer: String::new(),
            not_after: time + 60,
            peer: None,
            for_application: false,
            leaf_sha256: format!("{serial:064x}"),
            pod_uid: String::new(),
        }
    }

    #[test]
    fn what_the_disk_did_not_take_is_written_with_the_next() {
        // Aim: a failing disk loses nothing up to the bound, beyond it the oldest, and says so in words.
        let audit = Audit::default();
        let failed = |rows| audit.written(rows, Some("no space".to_owned()));
        failed(audit.issued(issuance(1, 1)));
        let rows = audit.issued(issuance(2, 2));
        assert_eq!(rows.iter().map(|row| row.time).collect::<Vec<_>>(), [1, 2]);
        failed(rows);
        assert!(audit.failure().unwrap().contains("2 issued certificates") && audit.failure().unwrap().contains("no space"));
        assert_eq!(audit.waiting(&Query::default()).len(), 2);
        for n in 3..UNWRITTEN_MAX + 4 {
            failed(audit.issued(issuance(n, 3)));
        }
        assert_eq!(audit.counts().lost, 3);
        assert!(audit.failure().unwrap().contains("3 are lost"));
        let rows = audit.issued(issuance(0, 9));
        audit.written(rows, None);
        assert!(audit.failure().is_none() && audit.waiting(&Query::default()).is_empty());
    }

    #[test]
    fn signing_is_timed() {
        // Aim: each time lands in the first bucket whose bound it does not exceed, and all are added up.
        let audit = Audit::default();
        for micros in [100, 101, 250_000, 250_001] {
            audit.signed(Duration::from_micros(micros));
        }
        let signing = audit.counts().signing;
        assert_eq!((signing.buckets, signing.micros), ([1, 1, 0, 0, 0, 0, 0, 1, 1], 500_202));
    }

    #[test]
    fn the_last_refusals_are_there_with_their_reason() {
        // Aim: bounded, newest first, filtered by namespace, workload or instance, and time; a huge text is clipped.
        let audit = Audit::default();
        for n in 0..REFUSALS_MAX + 5 {
            let row = issuance(n, i64::try_from(n).unwrap());
            audit.refused(
                Refusal {
                    time: row.time,
                    identity: row.identity,
                    namespace: row.namespace,
                    workload: row.workload,
                    instance: row.instance,
                    attestation: row.attestation,
                    peer: None,
                    reason: "x".repeat(5000),
                },
                if n % 2 == 0 { RefusalKind::Unproven } else { RefusalKind::BadRequest },
            );
        }
        let all = audit.refusals(&Query::default());
        assert_eq!((all.len(), all[0].time, audit.counts().refused), (REFUSALS_MAX, 1004, 1005));
        assert_eq!(all[0].reason.len(), TEXT_CHARS_MAX);
        audit.limited();
        assert_eq!((audit.counts().refused, audit.counts().refused_by), (1006, [503, 0, 502, 1]));
        assert!(audit.refusals(&Query { namespace: "bank".into(), ..Query::default() }).is_empty());
        assert_eq!(audit.refusals(&Query { name: "catalog".into(), since: 1003, ..Query::default() }).len(), 2);
        assert_eq!(audit.refusals(&Query { name: "catalog-0".into(), since: 1002, ..Query::default() }).len(), 1);
    }
}
