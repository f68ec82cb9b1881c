//! The authority's own roots: their keys, the issuing certificate below them, and the steps of a rotation. Each step is one write.

use std::sync::Arc;

use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::attest;
use crate::authority::{self, Issuing, SERIAL_BYTES, SignError};
use crate::policy::{EXPIRED_GRACE, NoRandomness, Policy, random};
use crate::roots::life::{Kept, Life};
use crate::roots::{Phase, RootSet};
use crate::store::{Pair, Seal, Store, StoreError};

/// An issuing certificate is replaced once this share of its life is over.
pub(crate) const ISSUING_ROTATE_PERCENT: i32 = 66;

/// Why the roots, or what is below them, cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootsError {
    /// Signing failed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No randomness.
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

/// Roots whose keys are in the store.
pub(crate) struct OwnRoots {
    life: Life,
    /// Of the root that issues. That of the next one stays in the store until it is used.
    key: Zeroizing<Vec<u8>>,
}

impl OwnRoots {
    /// Takes up what the store holds, or makes the first root; and the issuing certificate below it.
    pub(crate) fn open(store: &Store, policy: &Policy, now: OffsetDateTime) -> Result<(Self, Issuing), RootsError> {
        let root = if let Some(pair) = store.pair(Seal::Root)? {
            pair
        } else {
            let (pair, _) = new_root(policy, now)?;
            store.put_pairs(&[(Seal::Root, &pair)])?;
            tracing::info!(store = %store.path().display(), "made the mesh's root certificate");
            pair
        };
        let next = store.pair(Seal::Next)?.map(|pair| CertificateDer::from(pair.certificate));
        let history = store.history()?.unwrap_or_default();
        let life = Life::restore(CertificateDer::from(root.certificate), next, history).ok_or_else(|| corrupt(store, "roots"))?;
        let own = Self { life, key: root.key };
        dates(own.life.issuing()).ok_or_else(|| corrupt(store, "root certificate"))?;
        let issuing = match store.pair(Seal::Issuing)? {
            Some(pair) => own.joined(pair, now).map_err(|_| corrupt(store, "issuing certificate"))?,
            None => {
                let pair = own.make_issuing(policy, now)?;
                store.put_pairs(&[(Seal::Issuing, &pair)])?;
                own.joined(pair, now)?
            }
        };
        Ok((own, issuing))
    }

    /// What everybody else sees.
    pub(crate) fn set(&self, now: OffsetDateTime) -> RootSet {
        self.life.set(now.unix_timestamp())
    }

    /// What the control plane shows beside its own leaf's chain: the way to former roots, and roots by which the bearer of a token that
    /// pins one of them knows it: the former ones, and, for whoever comes by that way, the issuing one.
    pub(crate) fn shown(&self, now: OffsetDateTime) -> Vec<CertificateDer<'static>> {
        let now = now.unix_timestamp();
        let mut shown = self.life.crosses(now);
        let come_by = (!shown.is_empty()).then(|| self.life.issuing().clone());
        shown.extend(self.life.former(now));
        shown.extend(come_by);
        shown
    }

    /// The next issuing certificate. One that cannot be written down is used all the same: every leaf carries its chain.
    pub(crate) fn renew_issuing(&self, store: &Store, policy: &Policy, now: OffsetDateTime) -> Result<Issuing, RootsError> {
        let pair = self.make_issuing(policy, now)?;
        let certificate = CertificateDer::from(pair.certificate.clone());
        if let Some((_, end)) = dates(&certificate).filter(|(_, end)| *end <= now) {
            // Its root has ended, or the clock is ahead for a moment: the one before may be of use again, this one never is.
            return Err(SignError::IssuerExpired(end).into());
        }
        if let Err(error) = store.put_pairs(&[(Seal::Issuing, &pair)]) {
            tracing::error!(%error, "the new issuing certificate is in memory only");
        }
        Ok(self.joined(pair, now)?)
    }

    /// Trust: makes the next root, and the way to it from the one that issues. Taken again it changes nothing.
    pub(crate) fn trust(&mut self, store: &Store, policy: &Policy, now: OffsetDateTime) -> Result<(), RootsError> {
        if self.life.phase() != Phase::Steady {
            return Ok(());
        }
        let (next, serial) = new_root(policy, now)?;
        let next_der = CertificateDer::from(next.certificate.clone());
        let (former_begin, former_end) = dates(self.life.issuing()).ok_or_else(|| corrupt(store, "root certificate"))?;
        let (_, next_end) = dates(&next_der).ok_or_else(|| corrupt(store, "next root certificate"))?;
        let cross = if former_end > now {
            let former = (self.life.issuing(), key_pair(&self.key)?, (former_begin, former_end));
            let cross = authority::cross((&key_pair(&next.key)?, serial, next_end), former, random::<SERIAL_BYTES>()?)?;
            Some(Kept::new(&cross, former_end.min(next_end).unix_timestamp()))
        } else {
            None
        };
        let life = self.life.trust(next_der, cross);
        store.step(life.history(), &[(Seal::Next, &next)], None)?;
        self.life = life;
        Ok(())
    }

    /// Issue: the next root issues from now on, by a fresh issuing certificate; the former root's key is forgotten. `None`: that is so
    /// already, or nothing is next.
    pub(crate) fn issue(&mut self, store: &Store, policy: &Policy, now: OffsetDateTime) -> Result<Option<Issuing>, RootsError> {
        if self.life.phase() != Phase::Trusting {
            return Ok(None);
        }
        let next = store.pair(Seal::Next)?.ok_or_else(|| corrupt(store, "next root"))?;
        let (_, former_end) = dates(self.life.issuing()).ok_or_else(|| corrupt(store, "root certificate"))?;
        let fresh = Self { life: self.life.issue(former_end.unix_timestamp()), key: next.key.clone() };
        let pair = fresh.make_issuing(policy, now)?;
        store.step(fresh.life.history(), &[(Seal::Root, &next), (Seal::Issuing, &pair)], Some(Seal::Next))?;
        *self = fresh;
        Ok(Some(self.joined(pair, now)?))
    }

    /// Drop: the former root is believed no more. Leaves below it, of which the last ends at `last_end`, may renew themselves as any
    /// leaf may that has ended.
    pub(crate) fn retire(&mut self, store: &Store, policy: &Policy, last_end: i64, now: OffsetDateTime) -> Result<bool, RootsError> {
        if self.life.phase() != Phase::Issuing {
            return Ok(false);
        }
        let life = policy.leaf_life.max(attest::LIFE_MAX);
        let until = (now + life).unix_timestamp().max(last_end) + i64::try_from(EXPIRED_GRACE.as_secs()).unwrap_or(0);
        let life = self.life.retire(until);
        store.step(life.history(), &[], None)?;
        self.life = life;
        Ok(true)
    }

    fn make_issuing(&self, policy: &Policy, now: OffsetDateTime) -> Result<Pair, RootsError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(SignError::from)?;
        let (_, end) = dates(self.life.issuing()).ok_or_else(|| SignError::Library("the root has no dates".to_owned()))?;
        let root = (self.life.issuing(), key_pair(&self.key)?, end);
        let certificate = authority::intermediate(&key, root, now, policy.intermediate_life, random::<SERIAL_BYTES>()?)?.to_vec();
        Ok(Pair { certificate, key: Zeroizing::new(key.serialize_der()) })
    }

    /// While the former root is believed, leaves carry the way to it: a proxy that has lost the control plane knows no other.
    fn joined(&self, pair: Pair, now: OffsetDateTime) -> Result<Issuing, SignError> {
        let rotating = self.life.phase() == Phase::Issuing;
        let above = if rotating { self.life.crosses(now.unix_timestamp()).into_iter().take(1).collect() } else { Vec::new() };
        issuing_of(pair, self.life.issuing().clone(), above)
    }
}

/// A root with its key, and the serial number that its name is made of.
fn new_root(policy: &Policy, now: OffsetDateTime) -> Result<(Pair, [u8; SERIAL_BYTES]), RootsError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(SignError::from)?;
    let serial = random::<SERIAL_BYTES>()?;
    let certificate = authority::root(&key, now, policy.root_life, serial)?.to_vec();
    Ok((Pair { certificate, key: Zeroizing::new(key.serialize_der()) }, serial))
}

/// Joins an issuing certificate and its key.
fn issuing_of(pair: Pair, root_der: CertificateDer<'static>, above: Vec<CertificateDer<'static>>) -> Result<Issuing, SignError> {
    let certificate_der = CertificateDer::from(pair.certificate);
    let (not_before, not_after) = dates(&certificate_der).ok_or_else(|| SignError::Library("no dates in it".to_owned()))?;
    let issuer = Arc::new(Issuer::from_ca_cert_der(&certificate_der, key_pair(&pair.key)?)?);
    Ok(Issuing { root_der, certificate_der, above, not_after, not_before, issuer })
}

fn key_pair(pkcs8: &[u8]) -> Result<KeyPair, SignError> {
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8.into(), &PKCS_ECDSA_P256_SHA256)?)
}

/// Start and end of a certificate; `None`: it does not read.
pub(crate) fn dates(der: &CertificateDer<'_>) -> Option<(OffsetDateTime, OffsetDateTime)> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    Some((parsed.validity().not_before.to_datetime(), parsed.validity().not_after.to_datetime()))
}

fn corrupt(store: &Store, what: &'static str) -> StoreError {
    StoreError::Corrupt { path: store.path(), what }
}
