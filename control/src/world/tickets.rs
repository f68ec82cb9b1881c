//! What session tickets of edges are made with: a seed per half day, the newest three. Each Gateway's own keys follow from them, so replicas
//! of the control plane and of an edge have the same ones; when a seed is forgotten, nobody can open its tickets any more.

use std::fmt;

use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::crypto::tls13::OkmBlock;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Name;

/// How long tickets are made with one seed.
pub const SEED_MS: i64 = 12 * 60 * 60 * 1000;
/// Seeds that are kept: the newest, and two whose tickets are still taken.
const SEEDS_MAX: usize = 3;
/// Bytes of one seed.
const SEED_BYTES: usize = 32;
/// Bytes of one key, as Envoy has them: name, HMAC key, AES key.
const KEY_BYTES: usize = 80;

/// See the module. Never printed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seeds(Vec<Seed>);

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seed {
    /// When it was made, milliseconds since 1970.
    made_ms: i64,
    bytes: [u8; SEED_BYTES],
}

impl fmt::Debug for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} seeds", self.0.len())
    }
}

impl Seeds {
    /// The seeds after that moment, with a new one from `random` where it is time; `None`: they stay as they are. A clock that goes back
    /// makes none.
    pub fn turned<E>(&self, now_ms: i64, random: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Option<Self>, E> {
        if self.0.first().is_some_and(|newest| now_ms.saturating_sub(newest.made_ms) < SEED_MS) {
            return Ok(None);
        }
        let mut bytes = [0; SEED_BYTES];
        random(&mut bytes)?;
        let kept = |seed: &&Seed| now_ms.saturating_sub(seed.made_ms) < SEED_MS * 3;
        let former = self.0.iter().filter(kept).take(SEEDS_MAX - 1).cloned();
        Ok(Some(Self(std::iter::once(Seed { made_ms: now_ms, bytes }).chain(former).collect())))
    }

    /// The keys of one Gateway, the newest first.
    pub fn keys(&self, gateway: &Name) -> Vec<Zeroizing<Vec<u8>>> {
        let of = |seed: &Seed| {
            let mut key = Zeroizing::new(vec![0; KEY_BYTES]);
            // HKDF-Expand (RFC 5869, section 2.3) of a seed that is random already. Of 80 bytes it cannot fail; without TLS 1.3 there is none.
            let hkdf = TLS13_AES_128_GCM_SHA256.tls13().map(|suite| suite.hkdf_provider.expander_for_okm(&OkmBlock::new(&seed.bytes)));
            let info = [&b"meshwright session tickets "[..], gateway.0.as_bytes(), b"/", gateway.1.as_bytes()];
            hkdf?.expand_slice(&info, &mut key).ok()?;
            Some(key)
        };
        self.0.iter().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_are_made_anew_twice_a_day_and_taken_for_a_day_more() {
        // Aim: one new seed per half day, three at most, the newest first; each Gateway has keys of its own, the same at every replica; after
        // a long sleep none of the old ones is believed; a clock that goes back changes nothing.
        let mut count = 0_u8;
        let mut seeds = Seeds::default();
        let mut turn = |seeds: &Seeds, now_ms| {
            seeds
                .turned(now_ms, |bytes| {
                    count += 1;
                    bytes.fill(count);
                    Ok::<_, ()>(())
                })
                .unwrap()
        };
        for (now_ms, made, held) in
            [(0, true, 1), (SEED_MS - 1, false, 1), (SEED_MS, true, 2), (SEED_MS * 2, true, 3), (SEED_MS * 3, true, 3), (SEED_MS, false, 3)]
        {
            let next = turn(&seeds, now_ms);
            assert_eq!(next.is_some(), made, "{now_ms}");
            seeds = next.unwrap_or(seeds);
            assert_eq!(seeds.0.len(), held, "{now_ms}");
        }
        let gateway = |name: &str| seeds.keys(&("shop".to_owned(), name.to_owned()));
        let (one, other) = (gateway("a"), gateway("b"));
        assert!(one == gateway("a") && one.len() == 3 && one.iter().all(|key| key.len() == KEY_BYTES && !other.contains(key)));
        let former = one[0].clone();
        seeds = turn(&seeds, SEED_MS * 4).unwrap();
        assert_eq!(seeds.keys(&("shop".to_owned(), "a".to_owned()))[1], former);
        assert_eq!(turn(&seeds, SEED_MS * 20).unwrap().0.len(), 1);
        assert!(!format!("{seeds:?}").contains(char::is_numeric) || format!("{seeds:?}") == "3 seeds");
    }
}
