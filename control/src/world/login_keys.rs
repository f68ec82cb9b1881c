//! What sessions of logins are sealed with, where nobody names a Secret: a seed per 30 days, the newest two. Each namespace's Gateways have keys
//! of their own that follow from them, so replicas of the control plane and of an edge have the same ones.

use std::fmt;

use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::crypto::tls13::OkmBlock;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// How long sessions are sealed with one seed.
pub const LOGIN_SEED_MS: i64 = 30 * 24 * 60 * 60 * 1000;
/// Seeds that are kept: the newest, and one whose sessions still open.
const LOGIN_SEEDS_MAX: usize = 2;
/// Bytes of a seed, and of a key.
const LOGIN_KEY_BYTES: usize = 32;

/// See the module. Never printed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginSeeds(Vec<LoginSeed>);

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LoginSeed {
    /// When it was made, milliseconds since 1970.
    made_ms: i64,
    bytes: [u8; LOGIN_KEY_BYTES],
}

impl fmt::Debug for LoginSeeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} seeds", self.0.len())
    }
}

impl LoginSeeds {
    /// The seeds after that moment, with a new one from `random` where it is time; `None`: they stay as they are. A clock that goes back
    /// makes none.
    pub fn turned<E>(&self, now_ms: i64, random: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Option<Self>, E> {
        if self.0.first().is_some_and(|newest| now_ms.saturating_sub(newest.made_ms) < LOGIN_SEED_MS) {
            return Ok(None);
        }
        let mut bytes = [0; LOGIN_KEY_BYTES];
        random(&mut bytes)?;
        let former = self.0.iter().take(LOGIN_SEEDS_MAX - 1).cloned();
        Ok(Some(Self(std::iter::once(LoginSeed { made_ms: now_ms, bytes }).chain(former).collect())))
    }

    /// The keys of one namespace's Gateways, one a line, the newest first.
    pub fn keys(&self, namespace: &str) -> Zeroizing<String> {
        let mut lines = Zeroizing::new(String::new());
        for seed in &self.0 {
            let mut key = Zeroizing::new([0; LOGIN_KEY_BYTES]);
            // HKDF-Expand (RFC 5869, section 2.3) of a seed that is random already. Without TLS 1.3 there is none.
            let hkdf = TLS13_AES_128_GCM_SHA256.tls13().map(|suite| suite.hkdf_provider.expander_for_okm(&OkmBlock::new(&seed.bytes)));
            let info = [&b"meshwright login sessions "[..], namespace.as_bytes()];
            if hkdf.is_some_and(|hkdf| hkdf.expand_slice(&info, &mut *key).is_ok()) {
                key.iter().for_each(|byte| lines.push_str(&format!("{byte:02x}")));
                lines.push('\n');
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_sealed_anew_once_a_month() {
        // Aim: one new seed per 30 days, two at most, the newest first; each namespace has keys of its own, the same at every replica; a clock that
        // goes back changes nothing; nothing of a seed is printed.
        let turn = |seeds: &LoginSeeds, now_ms: i64, fill: u8| {
            seeds
                .turned(now_ms, |bytes| {
                    bytes.fill(fill);
                    Ok::<_, ()>(())
                })
                .unwrap()
        };
        let one = turn(&LoginSeeds::default(), 0, 1).unwrap();
        assert!(turn(&one, LOGIN_SEED_MS - 1, 2).is_none() && turn(&one, -1, 2).is_none());
        let two = turn(&one, LOGIN_SEED_MS, 2).unwrap();
        let three = turn(&two, LOGIN_SEED_MS * 2, 3).unwrap();
        let lines = |seeds: &LoginSeeds, namespace: &str| seeds.keys(namespace).lines().map(str::to_owned).collect::<Vec<_>>();
        let (first, second, third) = (lines(&one, "shop"), lines(&two, "shop"), lines(&three, "shop"));
        assert_eq!((first.len(), second.len(), third.len()), (1, 2, 2));
        assert_eq!((&second[1], &third[1]), (&first[0], &second[0]));
        assert!(first != lines(&one, "other") && first[0].len() == 64);
        assert_eq!(format!("{two:?}"), "2 seeds");
        engine::login::check_seal_keys(two.keys("shop").as_bytes()).unwrap();
    }
}
