//! Whom this proxy believes: the roots that a peer's chain may end in, those of other trust domains, and whose word counts no more.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use engine::model::{Revocation, Revoked, Trust};
use parking_lot::Mutex;
use proto::identity::Identity;
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

type Anchors = Vec<TrustAnchor<'static>>;
type Roots = Vec<CertificateDer<'static>>;

/// What is believed at one moment.
#[derive(Debug, Default)]
pub(super) struct Believed {
    pub(super) anchors: Anchors,
    pub(super) roots: Roots,
    federated: BTreeMap<String, (Anchors, Roots)>,
    revoked: Arc<Revoked>,
    /// Counts changes of roots, of ours and of others.
    pub(super) generation: u64,
    /// Counts all changes.
    edition: u64,
}

impl Believed {
    /// The anchors of another trust domain; `None`: nobody of it is believed.
    pub(super) fn federated(&self, trust_domain: &str) -> Option<&[TrustAnchor<'static>]> {
        self.federated.get(trust_domain).map(|(anchors, _)| anchors.as_slice())
    }

    /// What revokes an identity or the certificate of that serial number.
    pub(super) fn revoked(&self, identity: &Identity, serial: &str, now_secs: u64) -> Option<&Revocation> {
        self.revoked.find(identity, serial, now_secs)
    }
}

/// Reads DER roots.
pub(super) fn anchors(roots: &[CertificateDer<'static>]) -> Result<Anchors, TrustError> {
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

/// Holds what is believed now.
#[derive(Debug)]
pub struct TrustCell {
    current: ArcSwap<Believed>,
    /// Whoever changes it holds this: a change is made of what was there before.
    changing: Mutex<()>,
    changed: watch::Sender<u64>,
    /// Why this proxy itself is not believed any more.
    outcast: watch::Sender<Option<Arc<str>>>,
}

impl Default for TrustCell {
    fn default() -> Self {
        Self { current: ArcSwap::default(), changing: Mutex::new(()), changed: watch::Sender::new(0), outcast: watch::Sender::new(None) }
    }
}

impl TrustCell {
    /// Makes these the mesh's own roots; all else stays. Equal content changes nothing; returns whether something changed.
    ///
    /// # Errors
    /// The bundle is empty or malformed: the former one stays.
    pub fn publish(&self, roots: Vec<CertificateDer<'static>>) -> Result<bool, TrustError> {
        let _changing = self.changing.lock();
        let before = self.current();
        if before.roots == roots {
            return Ok(false);
        }
        let anchors = anchors(&roots)?;
        let (federated, revoked) = (before.federated.clone(), Arc::clone(&before.revoked));
        let (generation, edition) = (before.generation + 1, before.edition + 1);
        self.put(Believed { anchors, roots, federated, revoked, generation, edition });
        Ok(true)
    }

    /// Takes over all that the control plane says. Equal content changes nothing; returns whether something changed.
    ///
    /// # Errors
    /// One of the bundles is empty or malformed: all stays as it was.
    pub fn believe(&self, trust: &Trust) -> Result<bool, TrustError> {
        let _changing = self.changing.lock();
        let before = self.current();
        let same_roots =
            before.roots == trust.roots && before.federated.iter().map(|(name, (_, roots))| (name, roots)).eq(&trust.federated);
        if same_roots && before.revoked == trust.revoked {
            return Ok(false);
        }
        let read = |(name, roots): (&String, &Roots)| Ok((name.clone(), (anchors(roots)?, roots.clone())));
        self.put(Believed {
            anchors: anchors(&trust.roots)?,
            roots: trust.roots.clone(),
            federated: trust.federated.iter().map(read).collect::<Result<_, TrustError>>()?,
            revoked: Arc::clone(&trust.revoked),
            generation: before.generation + u64::from(!same_roots),
            edition: before.edition + 1,
        });
        Ok(true)
    }

    fn put(&self, believed: Believed) {
        self.current.store(Arc::new(believed));
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Wakes at each change, of roots and of what is revoked.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Notes that this proxy itself is not believed any more, and why, or that it is again. Whether that is new.
    pub fn cast_out(&self, why: Option<&str>) -> bool {
        self.outcast.send_if_modified(|held| {
            let fresh = held.as_deref() != why;
            if fresh {
                *held = why.map(Arc::from);
            }
            fresh
        })
    }

    /// Why this proxy itself is not believed any more; wakes when that changes.
    pub fn outcast(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.outcast.subscribe()
    }

    /// Whether there is no bundle yet.
    pub fn is_empty(&self) -> bool {
        self.current.load().roots.is_empty()
    }

    /// The mesh's own roots, DER.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.current.load().roots.clone()
    }

    /// The mesh's own roots and, by name, those of the trust domains it is federated with, of one moment; DER.
    pub fn bundles(&self) -> (Vec<CertificateDer<'static>>, BTreeMap<String, Vec<CertificateDer<'static>>>) {
        let current = self.current.load();
        let federated = current.federated.iter().map(|(name, (_, roots))| (name.clone(), roots.clone())).collect();
        (current.roots.clone(), federated)
    }

    /// SHA-256 of each of the mesh's own roots, hex, for `get certs`.
    pub fn fingerprints(&self) -> Vec<String> {
        self.current.load().roots.iter().map(|root| hex(&sha256(root))).collect()
    }

    pub(super) fn current(&self) -> Arc<Believed> {
        self.current.load_full()
    }

    /// Counts changes, of roots and of what is revoked.
    pub(super) fn edition(&self) -> u64 {
        self.current.load().edition
    }
}
