//! The application's JWT-SVIDs: minted by the authority, kept until half of their life is over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proto::identity::Identity;
use proto::mesh::certificates_client::CertificatesClient;
use proto::mesh::{MintTokenRequest, MintTokenResponse};
use tokio::sync::Semaphore;
use tonic::{Code, Status};

use crate::io::{Clock, Moment};
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

/// A clock may be set back by so much without consequence.
const CLOCK_SKEW: Duration = Duration::from_secs(30);

/// Whose token for whom.
type Key = (String, Vec<String>);

#[derive(Clone, Debug)]
struct Kept {
    token: Arc<str>,
    /// When it came, which is when it was minted.
    came: Moment,
    life: Duration,
}

impl Kept {
    /// Whether no fresh one is needed yet. One that was minted before the clock was set back may be of the future for others.
    fn is_fresh(&self, clock: &Clock) -> bool {
        clock.since(self.came) < self.life / 2 && clock.wall() + CLOCK_SKEW >= self.came.wall()
    }

    fn left(&self, clock: &Clock) -> Duration {
        self.life.saturating_sub(clock.since(self.came))
    }
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
        if let Some(kept) = self.look(&key).filter(|kept| kept.is_fresh(&self.clock)) {
            return Ok(kept.token);
        }
        let _turn = self.minting.acquire().await.map_err(|_| Status::unavailable("the proxy ends"))?;
        // Somebody else may have asked for the same meanwhile.
        let known = self.look(&key);
        if let Some(kept) = known.as_ref().filter(|kept| kept.is_fresh(&self.clock)) {
            return Ok(Arc::clone(&kept.token));
        }
        let minted = match tokio::time::timeout(MINT_MAX, self.mint(&key.1)).await {
            Ok(minted) => minted,
            Err(_) => Err(Status::unavailable("the control plane did not answer")),
        };
        match (minted, known) {
            (Ok(minted), _) => Ok(self.keep(key, &minted)),
            (Err(_), Some(kept)) if !kept.left(&self.clock).is_zero() => Ok(kept.token),
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
        let token: Arc<str> = minted.token.as_str().into();
        let kept = Kept { token: Arc::clone(&token), came: self.clock.moment(), life: Duration::from_secs(life) };
        insert(&mut self.kept.lock(), key, kept, &self.clock);
        token
    }
}

fn insert(tokens: &mut BTreeMap<Key, Kept>, key: Key, kept: Kept, clock: &Clock) {
    if tokens.len() >= KEPT_MAX && !tokens.contains_key(&key) {
        tokens.retain(|_, kept| !kept.left(clock).is_zero());
    }
    if tokens.len() >= KEPT_MAX
        && !tokens.contains_key(&key)
        && let Some(first) = tokens.iter().min_by_key(|(_, kept)| kept.left(clock)).map(|(key, _)| key.clone())
    {
        tokens.remove(&first);
    }
    tokens.insert(key, kept);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::SystemTime;

    use super::*;

    /// Aim: an application that asks for ever other audiences fills no memory: the ended go first, then what ends first.
    #[tokio::test(start_paused = true)]
    async fn kept_tokens_are_bounded() {
        let clock = Clock::simulated(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000));
        let came = clock.moment();
        let kept = |secs: u64| Kept { token: "t".into(), came, life: Duration::from_secs(secs) };
        let key = |n: u64| (String::new(), vec![n.to_string()]);
        let mut tokens = BTreeMap::new();
        for n in 0..KEPT_MAX as u64 + 3 {
            insert(&mut tokens, key(n), kept(100 + n), &clock);
        }
        assert_eq!(tokens.len(), KEPT_MAX);
        assert!(!tokens.contains_key(&key(2)) && tokens.contains_key(&key(3)));
        tokio::time::advance(Duration::from_secs(150)).await;
        insert(&mut tokens, key(9_999), kept(900), &clock);
        assert_eq!(tokens.len(), KEPT_MAX + 3 - 51 + 1, "the ended went");
    }

    /// Aim: a clock that is set, or a machine that sleeps, makes no token last longer than it does: one is given out in the first half of
    /// its life by whichever clock shows more, and not while others may take it for one of the future.
    #[tokio::test(start_paused = true)]
    async fn a_kept_token_lasts_no_longer_than_it_does() {
        static BY_MS: AtomicI64 = AtomicI64::new(0);
        let clock = Clock::Stepped { wall: SystemTime::UNIX_EPOCH, started: tokio::time::Instant::now(), by_ms: &BY_MS };
        BY_MS.store(3_600_000, Ordering::Relaxed);
        let kept = Kept { token: "t".into(), came: clock.moment(), life: Duration::from_secs(300) };
        for (by_ms, advance_secs, fresh, left_secs, case) in [
            (3_600_000, 60, true, 240, "the first half"),
            (3_590_000, 60, true, 180, "a clock that was corrected a little"),
            (0, 0, false, 180, "one that was an hour ahead"),
            (3_600_000, 40, false, 140, "the second half"),
            (3_900_000, 0, false, 0, "a machine that slept past its end"),
            (0, 200, false, 0, "past its end, by the monotonic clock"),
        ] {
            BY_MS.store(by_ms, Ordering::Relaxed);
            tokio::time::advance(Duration::from_secs(advance_secs)).await;
            assert_eq!((kept.is_fresh(&clock), kept.left(&clock).as_secs()), (fresh, left_secs), "{case}");
        }
    }
}
