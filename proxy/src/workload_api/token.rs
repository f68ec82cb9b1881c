//! The application's JWT-SVIDs: minted by the authority, kept until half of their life is over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use proto::identity::Identity;
use proto::mesh::certificates_client::CertificatesClient;
use proto::mesh::{MintTokenRequest, MintTokenResponse};
use tokio::sync::Semaphore;
use tonic::{Code, Status};

use crate::io::Clock;
use crate::tls::CredentialCell;
use crate::tls::dial::Dialer;

/// Tokens kept. Beyond it the one that ends first is forgotten.
const KEPT_MAX: usize = 256;
/// Requests to the authority at a time; more wait.
const MINTING_MAX: usize = 4;
/// Longest a request may take.
const MINT_MAX: Duration = Duration::from_secs(10);
/// Audiences of one token, as the authority has it.
const AUDIENCES_MAX: usize = 16;

/// Whose token for whom.
type Key = (String, Vec<String>);

#[derive(Clone, Debug)]
struct Kept {
    token: Arc<str>,
    /// A fresh one is fetched from here on.
    stale: SystemTime,
    ends: SystemTime,
}

/// See the module.
pub(super) struct Tokens {
    dialer: Dialer,
    credentials: Arc<CredentialCell>,
    clock: Clock,
    instance: String,
    kept: Mutex<BTreeMap<Key, Kept>>,
    minting: Semaphore,
}

impl Tokens {
    pub(super) fn new(dialer: Dialer, credentials: Arc<CredentialCell>, clock: Clock, instance: String) -> Self {
        Self { dialer, credentials, clock, instance, kept: Mutex::default(), minting: Semaphore::new(MINTING_MAX) }
    }

    /// The identity that the proxy proves now.
    pub(super) fn identity(&self) -> Option<Arc<Identity>> {
        let now = self.clock.wall();
        self.credentials.current().filter(|leaf| leaf.not_after > now).map(|leaf| Arc::clone(&leaf.identity))
    }

    /// A token for these audiences: a kept one in the first half of its life, else a fresh one; where none can be had, a kept one to its
    /// end. Dropping the future gives it up.
    pub(super) async fn fetch(&self, identity: &Identity, mut audiences: Vec<String>) -> Result<Arc<str>, Status> {
        audiences.sort();
        audiences.dedup();
        if audiences.len() > AUDIENCES_MAX {
            return Err(Status::invalid_argument(format!("{} audiences, at most {AUDIENCES_MAX} go into one token", audiences.len())));
        }
        let key = (identity.to_string(), audiences);
        let fresh = |kept: &Kept, now| kept.stale > now;
        if let Some(kept) = self.look(&key).filter(|kept| fresh(kept, self.clock.wall())) {
            return Ok(kept.token);
        }
        let _turn = self.minting.acquire().await.map_err(|_| Status::unavailable("the proxy ends"))?;
        // Somebody else may have asked for the same meanwhile.
        let known = self.look(&key);
        if let Some(kept) = known.as_ref().filter(|kept| fresh(kept, self.clock.wall())) {
            return Ok(Arc::clone(&kept.token));
        }
        let minted = match tokio::time::timeout(MINT_MAX, self.mint(&key.1)).await {
            Ok(minted) => minted,
            Err(_) => Err(Status::unavailable("the control plane did not answer")),
        };
        match (minted, known) {
            (Ok(minted), _) => Ok(self.keep(key, &minted)),
            (Err(_), Some(kept)) if kept.ends > self.clock.wall() => Ok(kept.token),
            (Err(status), _) => Err(status),
        }
    }

    fn look(&self, key: &Key) -> Option<Kept> {
        self.kept.lock().get(key).cloned()
    }

    /// Over a connection of its own: one that was opened with a former leaf would prove what has ended.
    async fn mint(&self, audience: &[String]) -> Result<MintTokenResponse, Status> {
        let channel = self.dialer.connect(true).await.map_err(|error| Status::unavailable(error.to_string()))?;
        let request = MintTokenRequest { audience: audience.to_vec(), instance: self.instance.clone() };
        let minted = CertificatesClient::new(channel).mint_token(request).await.map_err(|status| match status.code() {
            Code::InvalidArgument | Code::PermissionDenied => status,
            // For the application these are passing: it tries again.
            _ => Status::unavailable(format!("the authority gave no token: {}", status.message())),
        })?;
        Ok(minted.into_inner())
    }

    fn keep(&self, key: Key, minted: &MintTokenResponse) -> Arc<str> {
        let seconds = |at: &Option<prost_types::Timestamp>| at.as_ref().map_or(0, |at| at.seconds);
        let life = u64::try_from(seconds(&minted.expires).saturating_sub(seconds(&minted.issued))).unwrap_or(0);
        let now = self.clock.wall();
        let token: Arc<str> = minted.token.as_str().into();
        let kept = Kept { token: Arc::clone(&token), stale: now + Duration::from_secs(life) / 2, ends: now + Duration::from_secs(life) };
        insert(&mut self.kept.lock(), key, kept, now);
        token
    }
}

fn insert(tokens: &mut BTreeMap<Key, Kept>, key: Key, kept: Kept, now: SystemTime) {
    if tokens.len() >= KEPT_MAX && !tokens.contains_key(&key) {
        tokens.retain(|_, kept| kept.ends > now);
    }
    if tokens.len() >= KEPT_MAX
        && !tokens.contains_key(&key)
        && let Some(first) = tokens.iter().min_by_key(|(_, kept)| kept.ends).map(|(key, _)| key.clone())
    {
        tokens.remove(&first);
    }
    tokens.insert(key, kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: an application that asks for ever other audiences fills no memory: the ended go first, then what ends first.
    #[test]
    fn kept_tokens_are_bounded() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let kept = |secs: u64| Kept { token: "t".into(), stale: now, ends: now + Duration::from_secs(secs) };
        let key = |n: u64| (String::new(), vec![n.to_string()]);
        let mut tokens = BTreeMap::new();
        for n in 0..KEPT_MAX as u64 + 3 {
            insert(&mut tokens, key(n), kept(100 + n), now);
        }
        assert_eq!(tokens.len(), KEPT_MAX);
        assert!(!tokens.contains_key(&key(2)) && tokens.contains_key(&key(3)));
        insert(&mut tokens, key(9_999), kept(900), now + Duration::from_secs(150));
        assert_eq!(tokens.len(), KEPT_MAX + 3 - 51 + 1, "the ended went");
    }
}
