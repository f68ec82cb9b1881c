//! What session tickets of edges are made with: a seed per half day, or per whatever a ClientPolicy says instead, the newest three of each. Each Gateway's own keys follow from them, so replicas
//! of the control plane and of an edge have the same ones; when a seed is forgotten, nobody can open its tickets any more.

use std::collections::BTreeSet;
use std::fmt;

use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::crypto::tls13::OkmBlock;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Name;
use proto::names::TICKET_HOURS;

/// An hour.
const HOUR_MS: i64 = 60 * 60 * 1000;
/// Seeds of one period that are kept: the newest, and two whose tickets are still taken.
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
    /// How long tickets are made with it.
    #[serde(default = "usual")]
    hours: u32,
    bytes: [u8; SEED_BYTES],
}

const fn usual() -> u32 {
    TICKET_HOURS
}

impl Seed {
    fn period_ms(&self) -> i64 {
        i64::from(self.hours) * HOUR_MS
    }
}

impl fmt::Debug for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} seeds", self.0.len())
    }
}

impl Seeds {
    /// The seeds after that moment, with a new one from `random` for each period whose time it is, the usual one and those in `wanted`; `None`: they
    /// stay as they are. A clock that goes back makes none, and what nobody wants any more is forgotten.
    pub fn turned<E>(
        &self,
        now_ms: i64,
        wanted: &BTreeSet<u32>,
        mut random: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<Option<Self>, E> {
        let mut next = Vec::with_capacity(self.0.len() + 1);
        for hours in wanted.iter().copied().chain([TICKET_HOURS]).collect::<BTreeSet<_>>() {
            let of = || self.0.iter().filter(move |seed| seed.hours == hours);
            if of().next().is_some_and(|newest| now_ms.saturating_sub(newest.made_ms) < newest.period_ms()) {
                next.extend(of().cloned());
                continue;
            }
            let mut bytes = [0; SEED_BYTES];
            random(&mut bytes)?;
            next.push(Seed { made_ms: now_ms, hours, bytes });
            let kept = |seed: &&Seed| now_ms.saturating_sub(seed.made_ms) < seed.period_ms() * 3;
            next.extend(of().filter(kept).take(SEEDS_MAX - 1).cloned());
        }
        let next = Self(next);
        Ok((next != *self).then_some(next))
    }

    /// The keys of one Gateway that are turned after so many hours, the newest first. Until there is a seed for that, those of the usual one.
    pub fn keys(&self, gateway: &Name, hours: u32) -> Vec<Zeroizing<Vec<u8>>> {
        let hours = if self.0.iter().any(|seed| seed.hours == hours) { hours } else { TICKET_HOURS };
        let of = |seed: &Seed| {
            let mut key = Zeroizing::new(vec![0; KEY_BYTES]);
            // HKDF-Expand (RFC 5869, section 2.3) of a seed that is random already. Of 80 bytes it cannot fail; without TLS 1.3 there is none.
            let hkdf = TLS13_AES_128_GCM_SHA256.tls13().map(|suite| suite.hkdf_provider.expander_for_okm(&OkmBlock::new(&seed.bytes)));
            let info = [&b"meshwright session tickets "[..], gateway.0.as_bytes(), b"/", gateway.1.as_bytes()];
            hkdf?.expand_slice(&info, &mut key).ok()?;
            Some(key)
        };
        self.0.iter().filter(|seed| seed.hours == hours).filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED_MS: i64 = 12 * HOUR_MS;

    #[test]
    fn tickets_are_made_anew_twice_a_day_and_taken_for_a_day_more() {
        // Aim: one new seed per half day, three at most, the newest first; each Gateway has keys of its own, the same at every replica; after
        // a long sleep none of the old ones is believed; a clock that goes back changes nothing.
        let mut count = 0_u8;
        let mut seeds = Seeds::default();
        let mut turn = |seeds: &Seeds, now_ms| {
            seeds
                .turned(now_ms, &BTreeSet::new(), |bytes| {
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
        let gateway = |name: &str| seeds.keys(&("shop".to_owned(), name.to_owned()), 12);
        let (one, other) = (gateway("a"), gateway("b"));
        assert!(one == gateway("a") && one.len() == 3 && one.iter().all(|key| key.len() == KEY_BYTES && !other.contains(key)));
        let former = one[0].clone();
        seeds = turn(&seeds, SEED_MS * 4).unwrap();
        assert_eq!(seeds.keys(&("shop".to_owned(), "a".to_owned()), 12)[1], former);
        assert_eq!(turn(&seeds, SEED_MS * 20).unwrap().0.len(), 1);
        assert!(!format!("{seeds:?}").contains(char::is_numeric) || format!("{seeds:?}") == "3 seeds");
    }

    #[test]
    fn each_period_has_seeds_of_its_own() {
        // Aim: what a policy says instead of twelve hours is turned by itself, leaves the usual ones alone, is served by those until it has one, and is
        // forgotten with the policy; what an older version kept is of the usual period.
        let gateway = ("shop".to_owned(), "edge".to_owned());
        let mut count = 0_u8;
        let mut turn = |seeds: &Seeds, now_ms, wanted: &[u32]| {
            let random = |bytes: &mut [u8]| {
                count += 1;
                bytes.fill(count);
                Ok::<_, ()>(())
            };
            seeds.turned(now_ms, &wanted.iter().copied().collect(), random).unwrap()
        };
        let first = turn(&Seeds::default(), 0, &[]).unwrap();
        assert!(first.keys(&gateway, 1) == first.keys(&gateway, 12) && first.keys(&gateway, 1).len() == 1);
        let both = turn(&first, 60_000, &[1]).unwrap();
        assert_eq!((both.keys(&gateway, 12), both.keys(&gateway, 1).len()), (first.keys(&gateway, 12), 1));
        assert!(both.keys(&gateway, 1) != both.keys(&gateway, 12));
        assert_eq!(turn(&both, HOUR_MS, &[1]), None);
        let later = turn(&both, HOUR_MS + 60_000, &[1]).unwrap();
        assert_eq!((later.keys(&gateway, 12).len(), later.keys(&gateway, 1).len()), (1, 2));
        assert_eq!(later.keys(&gateway, 1)[1], both.keys(&gateway, 1)[0]);
        assert_eq!(turn(&later, HOUR_MS + 60_001, &[]).unwrap(), first);
        let old = serde_json::to_string(&first).unwrap().replace(",\"hours\":12", "");
        assert_eq!(serde_json::from_str::<Seeds>(&old).unwrap(), first);
    }
}
