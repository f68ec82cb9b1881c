//! A session: who has logged in, as the provider said, and what refreshes that. It is all in the browser's hands, sealed.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::seal::{SealKeys, SealPurpose};
use crate::authenticate::believed;
use crate::claims::Claims;

/// Clocks of replicas may differ by so much.
pub(super) const SKEW_SECS: u64 = 300;

/// How long sessions live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SessionLives {
    /// Without a request.
    pub(super) idle: Duration,
    /// At most.
    pub(super) max: Duration,
    /// A refresh begins once so much of the access token's time is over.
    pub(super) refresh_at_percent: u32,
}

/// What is kept of one login.
#[derive(Clone, Debug)]
pub struct LoginSession {
    pub(super) kept: KeptSession,
    /// What its ID token says.
    pub(crate) claims: Arc<Claims>,
}

/// As it is sealed: names are short, since browsers keep little.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptSession {
    /// What the session is known by.
    #[serde(rename = "i")]
    pub(super) id: String,
    #[serde(rename = "t")]
    pub(super) id_token: String,
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub(super) access_token: Option<String>,
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub(super) refresh_token: Option<String>,
    /// Unix times: when it began, when it was sealed last, from when on it is to be refreshed.
    #[serde(rename = "s")]
    pub(super) began_secs: u64,
    #[serde(rename = "u")]
    pub(super) used_secs: u64,
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    pub(super) due_secs: Option<u64>,
    /// When its first ID token was issued, by the provider's clock.
    #[serde(rename = "f", default)]
    pub(super) issued_secs: u64,
}

impl LoginSession {
    pub(super) fn new(kept: KeptSession, issuer: &Arc<str>, content: Map<String, Value>) -> Self {
        Self { claims: Arc::new(Claims { issuer: Arc::clone(issuer), content }), kept }
    }

    /// What a browser has kept. `None`: it is none of ours.
    pub(super) fn open(keys: &SealKeys, sealed: &str, issuer: &Arc<str>) -> Option<Self> {
        Self::opened(keys, (SealPurpose::Session, sealed), issuer)
    }

    /// What a store has kept. `None`: it is none of ours.
    pub(super) fn stored(keys: &SealKeys, sealed: &str, issuer: &Arc<str>) -> Option<Self> {
        Self::opened(keys, (SealPurpose::Stored, sealed), issuer)
    }

    fn opened(keys: &SealKeys, (purpose, sealed): (SealPurpose, &str), issuer: &Arc<str>) -> Option<Self> {
        let kept: KeptSession = serde_json::from_slice(&keys.open(purpose, sealed)?).ok()?;
        let content = believed(&kept.id_token)?;
        Some(Self::new(kept, issuer, content))
    }

    /// As a browser keeps it, used at that time.
    pub(super) fn seal(&self, keys: &SealKeys, now_secs: u64) -> Option<String> {
        self.sealed(keys, SealPurpose::Session, now_secs)
    }

    /// As a store keeps it.
    pub(super) fn seal_stored(&self, keys: &SealKeys, now_secs: u64) -> Option<String> {
        self.sealed(keys, SealPurpose::Stored, now_secs)
    }

    fn sealed(&self, keys: &SealKeys, purpose: SealPurpose, now_secs: u64) -> Option<String> {
        let kept = KeptSession { used_secs: now_secs, ..self.kept.clone() };
        keys.seal(purpose, &serde_json::to_vec(&kept).ok()?)
    }

    /// Whether it goes on at that time. A clock that was set back lets nobody stay longer than a session may.
    pub(super) fn lives(&self, now_secs: u64, lives: &SessionLives) -> bool {
        let rests = now_secs < self.kept.used_secs.saturating_add(lives.idle.as_secs());
        rests && now_secs < self.ends_secs(lives) && self.kept.began_secs <= now_secs.saturating_add(SKEW_SECS)
    }

    /// Unix time of its end, whatever it does.
    pub(super) fn ends_secs(&self, lives: &SessionLives) -> u64 {
        self.kept.began_secs.saturating_add(lives.max.as_secs())
    }

    /// Whether the browser is to keep it anew: a tenth of the time that it may rest is over.
    pub(super) fn is_worn(&self, now_secs: u64, lives: &SessionLives) -> bool {
        now_secs.saturating_sub(self.kept.used_secs) >= (lives.idle.as_secs() / 10).max(1)
    }

    /// How long the browser keeps it.
    pub(super) fn life_secs(&self, now_secs: u64, lives: &SessionLives) -> u64 {
        lives.idle.as_secs().min(self.ends_secs(lives).saturating_sub(now_secs)).max(1)
    }

    /// Whether it is to be refreshed.
    pub(super) fn is_due(&self, now_secs: u64) -> bool {
        self.kept.refresh_token.is_some() && self.kept.due_secs.is_some_and(|due| now_secs >= due)
    }

    /// Whom it is about.
    pub(super) fn subject(&self) -> Option<&str> {
        self.claims.content.get("sub")?.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVES: SessionLives =
        SessionLives { idle: Duration::from_secs(3600), max: Duration::from_secs(12 * 3600), refresh_at_percent: 80 };

    fn session() -> LoginSession {
        let kept = KeptSession {
            id: "id".to_owned(),
            id_token: crate::authenticate::tests::token(serde_json::json!({})),
            access_token: None,
            refresh_token: Some("refresh".to_owned()),
            began_secs: 1_000,
            used_secs: 1_000,
            due_secs: Some(1_240),
            issued_secs: 1_000,
        };
        let content = believed(&kept.id_token).unwrap();
        LoginSession::new(kept, &"https://id.example".into(), content)
    }

    #[test]
    fn a_session_ends_by_rest_and_by_age() {
        // Aim: second by second at each bound; what is used goes on up to its age, and not a second longer.
        let session = session();
        for (now, lives, worn, due) in [
            (1_000, true, false, false),
            (1_239, true, false, false),
            (1_240, true, false, true),
            (1_359, true, false, true),
            (1_360, true, true, true),
            (4_599, true, true, true),
            (4_600, false, true, true),
        ] {
            assert_eq!((session.lives(now, &LIVES), session.is_worn(now, &LIVES), session.is_due(now)), (lives, worn, due), "{now}");
        }
        let mut used = session.clone();
        used.kept.used_secs = 44_000;
        assert!(used.lives(44_199, &LIVES) && !used.lives(44_200, &LIVES));
        assert_eq!((used.life_secs(44_000, &LIVES), session.life_secs(1_000, &LIVES)), (200, 3_600));
        used.kept.refresh_token = None;
        assert!(!used.is_due(44_000));
    }

    #[test]
    fn a_session_comes_back_as_it_was() {
        // Aim: sealed and opened it says the same, but when it was used; what is no session of ours is none.
        let keys = SealKeys::read(&[b'k'; 32], b"o").unwrap();
        let issuer: Arc<str> = "https://id.example".into();
        let one = session();
        let opened = LoginSession::open(&keys, &one.seal(&keys, 2_000).unwrap(), &issuer).unwrap();
        assert_eq!((opened.kept.used_secs, &opened.claims), (2_000, &one.claims));
        assert_eq!(KeptSession { used_secs: 1_000, ..opened.kept.clone() }, one.kept);
        assert_eq!(opened.subject(), Some("ada"));
        for content in ["{}", "[]", "{\"i\":1}"] {
            let sealed = keys.seal(SealPurpose::Session, content.as_bytes()).unwrap();
            assert!(LoginSession::open(&keys, &sealed, &issuer).is_none(), "{content}");
        }
    }
}
