//! Local rate limits: the generic cell rate algorithm (ITU-T I.371, annex A) over one atomic number per bucket.
//!
//! A bucket remembers when it will be full again. `requests` and `burst` together may come at once to a full bucket; it fills with
//! `requests` in each `per`. The memory has a name and outlives pushes: a new limit of that name goes on with it, so that the share that is
//! used up stays used up, also where the rate has changed; but no bucket is ever emptier than empty under the numbers that hold now.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderName, HeaderValue, header};
use proto::mesh::limit_key::Kind;
use xxhash_rust::xxh3::Xxh3;

use super::{Exchange, Verdict};
use crate::Moment;
use crate::failure::{LocalReply, Reason};
use crate::raw::duration;
use crate::rejected::Wrong;

/// Most limits of one policy.
pub const LIMITS_MAX: usize = 16;
/// Most parts of one limit's key.
pub const KEY_PARTS_MAX: usize = 8;
/// Most keys that a limit tells apart at a time; what comes beyond shares one bucket.
pub const LIMIT_KEYS_MAX: usize = SHARDS * SHARD_KEYS_MAX;
const SHARDS: usize = 16;
const SHARD_KEYS_MAX: usize = 1024;
/// Most requests, and most beyond them, of one period.
pub const REQUESTS_MAX: u32 = 1_000_000_000;
/// Longest period.
pub const PER_MAX: Duration = Duration::from_secs(24 * 3600);

/// Answers what comes too fast.
#[derive(Clone, Debug)]
pub struct RateLimit {
    name: String,
    requests: u32,
    per: Duration,
    burst: u32,
    /// Time that one request takes to come back, in nanoseconds.
    each_nanos: u64,
    /// How far ahead of time a bucket may be after a request is let through, in nanoseconds.
    ahead_nanos: u64,
    key: Vec<KeyPart>,
    buckets: Arc<Buckets>,
    policy: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum KeyPart {
    /// The proved identity; all who prove none are one.
    Identity,
    Header(HeaderName),
}

/// The memory of one limit.
#[derive(Debug, Default)]
pub struct Buckets {
    /// For a limit without key, and for keys beyond the bound.
    shared: AtomicU64,
    shards: [Mutex<Shard>; SHARDS],
    /// Requests that met the shared bucket although the limit has a key.
    overflowed: AtomicU64,
}

#[derive(Debug, Default)]
struct Shard {
    /// When each bucket is full again, in nanoseconds.
    full_at: HashMap<u128, u64>,
    /// No bucket is full again before, so that looking for one would be in vain.
    sweep_at: u64,
}

/// A request comes too early by this many nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TooEarly(u64);

impl Buckets {
    /// Requests that met the shared bucket since the start, because there were more keys than [`LIMIT_KEYS_MAX`].
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }
}

impl RateLimit {
    /// `buckets`: the memory of that name.
    pub(crate) fn compile(raw: &proto::mesh::RateLimit, buckets: Arc<Buckets>) -> Result<Self, Wrong> {
        let proto::mesh::RateLimit { name, requests, per, burst, key, policy } = raw;
        if name.is_empty() {
            return Err(Wrong::new("name", "is empty"));
        }
        if !(1..=REQUESTS_MAX).contains(requests) {
            return Err(Wrong::new("requests", format!("{requests} is not from 1 to {REQUESTS_MAX}")));
        }
        if *burst > REQUESTS_MAX {
            return Err(Wrong::new("burst", format!("{burst} is more than {REQUESTS_MAX}")));
        }
        let per = duration(per.as_ref(), "per")?.filter(|per| !per.is_zero() && *per <= PER_MAX);
        let per = per.ok_or_else(|| Wrong::new("per", format!("is not above 0 and up to {} h", PER_MAX.as_secs() / 3600)))?;
        if key.len() > KEY_PARTS_MAX {
            return Err(Wrong::new("key", format!("holds more than {KEY_PARTS_MAX} parts")));
        }
        let part = |(index, raw)| KeyPart::compile(raw).map_err(|wrong: Wrong| wrong.within(format!("key[{index}]")));
        // At most a day divided by one, times 2 * 10^9 of a day's 2 * 10^9th: far below 2^64 as a whole, and checked all the same.
        let each_nanos = (per.as_nanos() / u128::from(*requests)).max(1);
        let ahead_nanos = each_nanos * (u128::from(*requests) + u128::from(*burst) - 1);
        let nanos = |nanos: u128| u64::try_from(nanos).map_err(|_| Wrong::new("burst", "takes more than 584 years to come back"));
        Ok(Self {
            name: name.clone(),
            requests: *requests,
            per,
            burst: *burst,
            each_nanos: nanos(each_nanos)?,
            ahead_nanos: nanos(ahead_nanos)?,
            key: key.iter().enumerate().map(part).collect::<Result<_, _>>()?,
            buckets,
            policy: policy.clone(),
        })
    }

    /// Takes one request out of its bucket, or answers it. Nothing is allocated for a request that is let through, but for a key's first.
    pub fn on_request(&self, exchange: &Exchange<'_>) -> Verdict {
        match self.take(self.key_of(exchange), exchange.now) {
            Ok(()) => Verdict::Go,
            Err(early) => Verdict::Answer(Box::new(refused(early))),
        }
    }

    /// The answer that a request would get now, without taking anything.
    pub fn would_answer(&self, exchange: &Exchange<'_>) -> Option<LocalReply> {
        let now = exchange.now.nanos();
        let full_at = match self.key_of(exchange) {
            None => Some(self.buckets.shared.load(Ordering::Relaxed)),
            Some(key) => self.buckets.shard(key).lock().unwrap_or_else(PoisonError::into_inner).full_at.get(&key).copied(),
        };
        self.after(full_at.unwrap_or_default(), now).err().map(refused)
    }

    /// When the bucket is full again after one request more.
    fn after(&self, full_at: u64, now: u64) -> Result<u64, TooEarly> {
        let full_at = full_at.max(now).min(self.latest(now));
        match (full_at - now).checked_sub(self.ahead_nanos) {
            None | Some(0) => Ok(full_at.saturating_add(self.each_nanos)),
            Some(early) => Err(TooEarly(early)),
        }
    }

    /// When an empty bucket is full again. What was remembered under a slower limit may say later.
    const fn latest(&self, now: u64) -> u64 {
        now.saturating_add(self.ahead_nanos).saturating_add(self.each_nanos)
    }

    fn take(&self, key: Option<u128>, now: Moment) -> Result<(), TooEarly> {
        let now = now.nanos();
        let Some(key) = key else { return self.take_shared(now) };
        let mut shard = self.buckets.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        if shard.full_at.len() >= SHARD_KEYS_MAX && !shard.full_at.contains_key(&key) && !shard.make_room(now, self.latest(now)) {
            drop(shard);
            self.buckets.overflowed.fetch_add(1, Ordering::Relaxed);
            return self.take_shared(now);
        }
        match shard.full_at.entry(key) {
            Entry::Occupied(mut bucket) => {
                let full_at = bucket.get_mut();
                // Also where the request comes too early: the wait begins now, and not with each request anew.
                *full_at = (*full_at).min(self.latest(now));
                *full_at = self.after(*full_at, now)?;
            }
            Entry::Vacant(place) => drop(place.insert(self.after(0, now)?)),
        }
        Ok(())
    }

    fn take_shared(&self, now: u64) -> Result<(), TooEarly> {
        let shared = &self.buckets.shared;
        let mut full_at = shared.load(Ordering::Relaxed);
        if full_at > self.latest(now) {
            full_at = shared.fetch_min(self.latest(now), Ordering::Relaxed).min(self.latest(now));
        }
        loop {
            let after = self.after(full_at, now)?;
            // Each turn that fails is another's that succeeded.
            match shared.compare_exchange_weak(full_at, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(found) => full_at = found,
            }
        }
    }

    /// `None` without a key. What is absent is told from what is empty.
    fn key_of(&self, exchange: &Exchange<'_>) -> Option<u128> {
        if self.key.is_empty() {
            return None;
        }
        let mut hash = Xxh3::new();
        let mut add = |bytes: Option<&[u8]>| {
            let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
            hash.update(&length.to_le_bytes());
            hash.update(bytes.unwrap_or_default());
        };
        for part in &self.key {
            match part {
                KeyPart::Identity => match exchange.caller {
                    None => add(None),
                    Some(caller) => [caller.trust_domain(), caller.namespace(), caller.service_account()]
                        .into_iter()
                        .for_each(|part| add(Some(part.as_bytes()))),
                },
                KeyPart::Header(name) => add(exchange.request.headers.get(name).map(HeaderValue::as_bytes)),
            }
        }
        Some(hash.digest128())
    }

    /// The object that asks for it, `NAMESPACE/NAME`.
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// The name of its memory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its memory.
    pub const fn buckets(&self) -> &Arc<Buckets> {
        &self.buckets
    }

    /// What it does, in words.
    pub fn story(&self) -> String {
        let part = |part: &KeyPart| match part {
            KeyPart::Identity => "source identity".to_owned(),
            KeyPart::Header(name) => format!("header {name}"),
        };
        let parts: Vec<String> = self.key.iter().map(part).collect();
        let each = if parts.is_empty() { String::new() } else { format!(" for each {}", parts.join(" and ")) };
        let burst = if self.burst == 0 { String::new() } else { format!(" and {} at once beyond", self.burst) };
        let whose = if self.policy.is_empty() { String::new() } else { format!(", by {}", self.policy) };
        format!("lets through {} in {:?}{burst}{each}{whose}", self.requests, self.per)
    }
}

impl KeyPart {
    fn compile(proto::mesh::LimitKey { kind }: &proto::mesh::LimitKey) -> Result<Self, Wrong> {
        match kind {
            None => Err(Wrong::new("kind", "is missing: source_identity or header")),
            Some(Kind::SourceIdentity(true)) => Ok(Self::Identity),
            Some(Kind::SourceIdentity(false)) => Err(Wrong::new("source_identity", "is false")),
            Some(Kind::Header(name)) => {
                name.parse().map(Self::Header).map_err(|_| Wrong::new("header", format!("`{}` is not a header name", name.escape_debug())))
            }
        }
    }
}

impl Buckets {
    fn shard(&self, key: u128) -> &Mutex<Shard> {
        let [first, ..] = &self.shards;
        self.shards.get(key as usize % SHARDS).unwrap_or(first)
    }
}

impl Shard {
    /// Lets go of buckets that are full again: they remember nothing. None is to be full again later than `latest`.
    fn make_room(&mut self, now: u64, latest: u64) -> bool {
        // What lies beyond is from before the limit was changed.
        if now < self.sweep_at && self.sweep_at <= latest {
            return false;
        }
        self.full_at.retain(|_, full_at| {
            *full_at = (*full_at).min(latest);
            *full_at > now
        });
        self.sweep_at = if self.full_at.len() < SHARD_KEYS_MAX { 0 } else { self.full_at.values().copied().min().unwrap_or_default() };
        self.full_at.len() < SHARD_KEYS_MAX
    }
}

#[cold]
fn refused(TooEarly(nanos): TooEarly) -> LocalReply {
    let secs = nanos.div_ceil(1_000_000_000).max(1);
    LocalReply { headers: vec![(header::RETRY_AFTER, HeaderValue::from(secs))], ..LocalReply::of(Reason::RateLimited) }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;
    use crate::filter::tests::exchange;

    fn raw(requests: u32, per_millis: u32, burst: u32, key: Vec<Kind>) -> proto::mesh::RateLimit {
        proto::mesh::RateLimit {
            name: "shop/limit/0".into(),
            requests,
            per: Some(prost_types::Duration { seconds: i64::from(per_millis / 1000), nanos: (per_millis % 1000 * 1_000_000) as i32 }),
            burst,
            key: key.into_iter().map(|kind| proto::mesh::LimitKey { kind: Some(kind) }).collect(),
            policy: "shop/limits".into(),
        }
    }

    fn limit(requests: u32, per_millis: u32, burst: u32) -> RateLimit {
        RateLimit::compile(&raw(requests, per_millis, burst, Vec::new()), Arc::default()).unwrap()
    }

    fn at(millis: u64) -> Moment {
        Moment::of_nanos(millis * 1_000_000)
    }

    /// How many of `asked` requests at one moment get through.
    fn through(limit: &RateLimit, key: Option<u128>, millis: u64, asked: usize) -> usize {
        (0..asked).filter(|_| limit.take(key, at(millis)).is_ok()).count()
    }

    #[test]
    fn a_full_bucket_gives_rate_and_burst_and_then_the_rate() {
        // Aim: all at once at first, then one by one as they come back, and no more after a pause than a bucket holds.
        let limit = limit(10, 1000, 5);
        assert_eq!(through(&limit, None, 5000, 100), 15);
        assert_eq!(through(&limit, None, 5099, 100), 0);
        assert_eq!(through(&limit, None, 5100, 100), 1);
        assert_eq!(through(&limit, None, 5600, 100), 5);
        assert_eq!(through(&limit, None, 60_000, 100), 15);
    }

    #[test]
    fn a_change_of_rate_goes_on_with_the_same_memory() {
        // Aim: a push refills nothing, and half full under the old rate is half full under the new one.
        let old = limit(10, 1000, 0);
        assert_eq!(through(&old, None, 1000, 5), 5);
        let same = RateLimit::compile(&raw(10, 1000, 0, Vec::new()), Arc::clone(&old.buckets)).unwrap();
        assert_eq!(through(&same, None, 1000, 2), 2);
        let quick = RateLimit::compile(&raw(100, 1000, 0, Vec::new()), Arc::clone(&old.buckets)).unwrap();
        assert_eq!(through(&quick, None, 1000, 1000), 30);
    }

    #[test]
    fn a_relaxed_limit_makes_nobody_wait_for_the_old_one() {
        // Aim: an empty bucket of a slow limit is an empty one of the quick limit, in which the next request comes back in its own time.
        for key in [None, Some(7)] {
            let parts = if key.is_some() { vec![Kind::Header("x".into())] } else { Vec::new() };
            let slow = RateLimit::compile(&raw(1, 3_600_000, 1, parts.clone()), Arc::default()).unwrap();
            assert_eq!(through(&slow, key, 1000, 9), 2);
            let quick = RateLimit::compile(&raw(10, 1000, 0, parts), Arc::clone(&slow.buckets)).unwrap();
            assert_eq!(through(&quick, key, 2000, 9), 0, "it is empty, and a push refills nothing");
            assert_eq!((through(&quick, key, 2050, 9), through(&quick, key, 2100, 9)), (0, 1));
            assert_eq!(through(&quick, key, 5000, 99), 10);
        }
    }

    #[test]
    fn a_relaxed_limit_makes_room_for_keys_in_its_own_time() {
        // Aim: buckets of a slow limit are let go when the quick one has filled them, and not when the slow one would have.
        let parts = vec![Kind::Header("x".into())];
        let slow = RateLimit::compile(&raw(1, 3_600_000, 0, parts.clone()), Arc::default()).unwrap();
        let keys = LIMIT_KEYS_MAX as u128;
        assert!((0..keys).all(|key| slow.take(Some(key), at(1000)).is_ok()));
        assert!(slow.take(Some(keys), at(1000)).is_ok() && slow.buckets.overflowed() == 1, "beyond the bound");
        let quick = RateLimit::compile(&raw(10, 1000, 0, parts), Arc::clone(&slow.buckets)).unwrap();
        let _ = quick.take(Some(keys), at(2000));
        assert!(quick.take(Some(keys), at(3001)).is_ok());
        assert_eq!(quick.buckets.overflowed(), 2, "once more before they were full again");
    }

    #[test]
    fn keys_have_buckets_of_their_own() {
        // Aim: header and identity together are the key, absent is not empty, and without a key all share.
        let parts = vec![Kind::SourceIdentity(true), Kind::Header("x-tenant".into())];
        let limit = RateLimit::compile(&raw(1, 1000, 0, parts), Arc::default()).unwrap();
        let callers = ["spiffe://cluster.local/ns/a/sa/b", "spiffe://cluster.local/ns/ab/sa/c"].map(|text| text.parse().unwrap());
        let mut seen = 0;
        for caller in [None, Some(&callers[0]), Some(&callers[1])] {
            for tenant in [None, Some(""), Some("x")] {
                let mut request = Request::get("/");
                if let Some(tenant) = tenant {
                    request = request.header("x-tenant", tenant);
                }
                let mut parts = request.body(()).unwrap().into_parts().0;
                let mut exchange = exchange(&mut parts);
                (exchange.caller, exchange.now) = (caller, at(1));
                assert!(limit.would_answer(&exchange).is_none());
                assert!(matches!(limit.on_request(&exchange), Verdict::Go));
                assert!(limit.would_answer(&exchange).is_some());
                let Verdict::Answer(reply) = limit.on_request(&exchange) else { panic!() };
                assert_eq!(
                    (reply.status.as_u16(), reply.reason, &reply.headers[0].1),
                    (429, Some(Reason::RateLimited), &"1".parse().unwrap())
                );
                seen += 1;
            }
        }
        assert_eq!((seen, limit.buckets.overflowed()), (9, 0));
    }

    #[test]
    fn keys_are_bounded_and_full_buckets_go_first() {
        // Aim: beyond the bound all new keys share one bucket, and are counted; what is full again makes room.
        let limit = RateLimit::compile(&raw(2, 1000, 0, vec![Kind::Header("x".into())]), Arc::default()).unwrap();
        let keys = LIMIT_KEYS_MAX as u128;
        assert!((0..keys).all(|key| limit.take(Some(key), at(1000)).is_ok()));
        assert_eq!(limit.buckets.overflowed(), 0);
        assert_eq!((keys..keys + 50).filter(|key| limit.take(Some(*key), at(1000)).is_ok()).count(), 2);
        assert_eq!(limit.buckets.overflowed(), 50);
        assert_eq!(through(&limit, Some(0), 1000, 10), 1, "who has a bucket keeps it");
        assert!((keys..2 * keys - 16).all(|key| limit.take(Some(key), at(1501)).is_ok()), "all but one are full again");
        assert_eq!(limit.buckets.overflowed(), 50);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        // Aim: by name of the field, and no number overflows.
        for (bad, field) in [
            (proto::mesh::RateLimit { name: String::new(), ..raw(1, 1, 0, vec![]) }, "name"),
            (raw(0, 1000, 0, vec![]), "requests"),
            (raw(REQUESTS_MAX + 1, 1000, 0, vec![]), "requests"),
            (raw(1, 0, 0, vec![]), "per"),
            (proto::mesh::RateLimit { per: None, ..raw(1, 1, 0, vec![]) }, "per"),
            (raw(1, 24 * 3600 * 1000 + 1, 0, vec![]), "per"),
            (raw(1, 1000, u32::MAX, vec![]), "burst"),
            (raw(1, 24 * 3600 * 1000, REQUESTS_MAX, vec![]), "burst"),
            (raw(1, 1000, 0, vec![Kind::Header("a b".into())]), "key[0].header"),
            (raw(1, 1000, 0, vec![Kind::SourceIdentity(false)]), "key[0].source_identity"),
            (raw(1, 1000, 0, vec![Kind::SourceIdentity(true); KEY_PARTS_MAX + 1]), "key"),
        ] {
            let text = RateLimit::compile(&bad, Arc::default()).unwrap_err().of("T", "n").to_string();
            assert!(text.contains(field), "{text} should hold {field}");
        }
        assert!(limit(REQUESTS_MAX, 1, REQUESTS_MAX).take(None, Moment::of_nanos(u64::MAX)).is_ok());
    }

    proptest! {
        /// Aim: over any stretch of time no more get through than the bucket held and what came back meanwhile, and never fewer than the rate.
        #[test]
        fn the_rate_holds_over_any_stretch(requests in 1..50_u32, burst in 0..50_u32, steps in prop::collection::vec(0..200_u64, 1..60)) {
            let limit = limit(requests, 1000, burst);
            let (mut now, mut passed) = (10_000, 0);
            for step in &steps {
                now += step;
                passed += through(&limit, None, now, 200);
            }
            let span = steps.iter().skip(1).sum::<u64>();
            let came_back = (span as f64) * f64::from(requests) / 1000.0;
            let held = f64::from(requests + burst);
            prop_assert!(passed as f64 <= held + came_back + 1.0, "{passed} of {held} + {came_back}");
            prop_assert!(passed as f64 >= came_back.floor().min(held), "{passed} of {came_back}");
        }
    }
}
