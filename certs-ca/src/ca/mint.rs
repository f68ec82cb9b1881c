//! JWT-SVIDs: keys kept in the store and rotated in time, tokens for whoever holds a leaf.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{Ca, CaError, not_control};
use crate::authority::SignError;
use crate::held::Held;
use crate::minting::{self, Keyring, Minted, TokenKey, check_audiences};

/// Pause between two attempts to rotate keys on a disk that takes none.
const ROTATE_RETRY_SECS: i64 = 60;

impl Ca {
    /// A token for the identity of a leaf that TLS has verified and that has not ended.
    ///
    /// # Errors
    /// The leaf or an audience is refused, or the first key cannot be kept.
    pub fn mint(&self, leaf: &CertificateDer<'_>, audiences: &[String]) -> Result<Minted, CaError> {
        check_audiences(audiences)?;
        let now = (self.clock)();
        let Held { identity, not_after, .. } = Held::read(leaf).map_err(CaError::Leaf)?;
        not_control(&identity)?;
        if not_after <= now {
            return Err(CaError::Leaf("it has expired; renew it first"));
        }
        let keyring = self.keyring(now)?;
        let key = keyring.signing(now.unix_timestamp()).ok_or(CaError::Random)?;
        let minted = minting::mint(key, &identity, audiences, now, not_after)?;
        self.desk.audit.minted();
        Ok(minted)
    }

    /// The keys that tokens are verified by, as a JWKS document.
    ///
    /// # Errors
    /// The first key cannot be made or kept.
    pub fn token_keys(&self) -> Result<String, CaError> {
        Ok(self.keyring((self.clock)())?.jwks())
    }

    /// The trust domain of identities that are signed here.
    pub fn trust_domain(&self) -> String {
        self.lock().policy.trust_domain.clone()
    }

    /// The ring as it is to be now. A key signs only after it was kept: one that went with the process would leave tokens that nobody
    /// can verify.
    fn keyring(&self, now: OffsetDateTime) -> Result<MutexGuard<'_, Keyring>, CaError> {
        let mut keyring = self.desk.keyring.lock().unwrap_or_else(PoisonError::into_inner);
        let second = now.unix_timestamp();
        if !keyring.is_empty() && second < self.desk.rotate_from.load(Ordering::Relaxed) {
            return Ok(keyring);
        }
        let due = keyring.due(second);
        let fresh = due.map(TokenKey::generate).transpose().map_err(|error: SignError| CaError::Sign(error))?;
        let gone = keyring.retire(second);
        if fresh.is_none() && gone.is_empty() {
            return Ok(keyring);
        }
        match (self.store.put_token_key(fresh.as_ref(), &gone), fresh) {
            (Ok(()), Some(key)) => keyring.add(key),
            (Ok(()), None) => {}
            // Rows that should have gone go with a later start.
            (Err(error), _) if !keyring.is_empty() => {
                self.desk.rotate_from.store(second + ROTATE_RETRY_SECS, Ordering::Relaxed);
                tracing::error!(%error, "the keys of JWT-SVIDs were not rotated");
            }
            (Err(error), _) => return Err(error.into()),
        }
        Ok(keyring)
    }
}
