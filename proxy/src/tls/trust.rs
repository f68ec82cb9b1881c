//! The trust bundle: which roots a peer's chain may end in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use tokio::sync::watch;

use super::peer::{hex, sha256};

/// Roots in a bundle at most: a rotation needs two, federation a few more.
const ROOTS_MAX: usize = 64;

/// Why a bundle is not taken; the former one stays.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// No root at all would make every handshake fail.
    #[error("the trust bundle is empty")]
    Empty,
    /// More roots than any mesh has.
    #[error("the trust bundle holds {0} roots, at most {ROOTS_MAX} are taken")]
    TooMany(usize),
    /// One of them cannot be read.
    #[error("root {index} of the trust bundle is no certificate: {source}")]
    Malformed {
        /// Its place, from 0.
        index: usize,
        /// What is wrong.
        source: webpki::Error,
    },
}

/// A bundle at one moment.
#[derive(Debug, Default)]
pub(super) struct Trust {
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) generation: u64,
}

/// Reads DER roots.
pub(super) fn anchors(roots: &[CertificateDer<'static>]) -> Result<Vec<TrustAnchor<'static>>, TrustError> {
    if roots.is_empty() {
        return Err(TrustError::Empty);
    }
    if roots.len() > ROOTS_MAX {
        return Err(TrustError::TooMany(roots.len()));
    }
    let read = |(index, root)| {
        webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned()).map_err(|source| TrustError::Malformed { index, source })
    };
    roots.iter().enumerate().map(read).collect()
}

/// Holds the current bundle.
#[derive(Debug, Default)]
pub struct TrustCell {
    current: ArcSwap<Trust>,
    generation: AtomicU64,
    changed: watch::Sender<u64>,
}

impl TrustCell {
    /// Makes these the roots that peers are judged by. Equal content changes nothing; returns whether something changed.
    ///
    /// # Errors
    /// The bundle is empty or malformed: the former one stays.
    pub fn publish(&self, roots: Vec<CertificateDer<'static>>) -> Result<bool, TrustError> {
        if self.current.load().roots == roots {
            return Ok(false);
        }
        let anchors = anchors(&roots)?;
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        self.current.store(Arc::new(Trust { anchors, roots, generation }));
        self.changed.send_replace(generation);
        Ok(true)
    }

    /// Wakes when the roots change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether there is no bundle yet.
    pub fn is_empty(&self) -> bool {
        self.current.load().roots.is_empty()
    }

    /// The roots, DER.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.current.load().roots.clone()
    }

    /// SHA-256 of each root, hex, for `get certs`.
    pub fn fingerprints(&self) -> Vec<String> {
        self.current.load().roots.iter().map(|root| hex(&sha256(root))).collect()
    }

    pub(super) fn current(&self) -> Arc<Trust> {
        self.current.load_full()
    }

    pub(super) fn generation(&self) -> u64 {
        self.current.load().generation
    }
}
