//! The way in from the wire.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use proto::mesh::{self, EdgeLimits, KeyMissing, edge_limit, limit_store};

use super::key;
use super::{Bandwidth, CONCURRENCY_MAX, Concurrency, Cost, IfMissing, Limit, ObjectLimits, QUEUE_MAX, ServiceLimits, WithoutStore};
use crate::authorize::{TruthOf, ValueOf};
use crate::limit::{
    AMOUNT_MAX, HeadersTold, LimitMemories, Memory, OBJECT_LIMITS_MAX, RedisMode, RedisPlace, RemotePlace, RemoteStore, ServicePlace,
    quota, rate,
};
use crate::raw::duration;
use crate::rejected::Wrong;

/// Longest name of a limit.
const NAME_BYTES_MAX: usize = 63;

/// `asked`: how many services the rule's policies ask before this one's.
pub(crate) fn object(raw: &EdgeLimits, memories: &LimitMemories, asked: usize) -> Result<ObjectLimits, Wrong> {
    let EdgeLimits { policy, memory, before_auth: _, limits, concurrency, store, without_store, draft_headers, legacy_headers, bandwidth } =
        raw;
    if memory.is_empty() {
        return Err(Wrong::new("memory", "is empty"));
    }
    for (field, count, most) in [
        ("limits", limits.len(), OBJECT_LIMITS_MAX),
        ("concurrency", concurrency.len(), CONCURRENCY_MAX),
        ("bandwidth", bandwidth.len(), CONCURRENCY_MAX),
    ] {
        if count > most {
            return Err(Wrong::new(field, format!("holds {count}, which is more than {most}")));
        }
    }
    let memory = memories.adopt(memory);
    let limits = limits
        .iter()
        .enumerate()
        .map(|(index, raw)| limit((policy, &memory), raw).map_err(|wrong| wrong.within(format!("limits[{index}]"))));
    let busy = concurrency
        .iter()
        .enumerate()
        .map(|(index, raw)| busy((policy, &memory), raw).map_err(|wrong| wrong.within(format!("concurrency[{index}]"))));
    let wide = bandwidth.iter().enumerate().map(|(index, raw)| wide(raw).map_err(|wrong| wrong.within(format!("bandwidth[{index}]"))));
    let mut service = None;
    let (remote, ahead_percent) = match store.as_ref().map(|store| &store.kind) {
        Some(Some(limit_store::Kind::Leases(mesh::LeaseStore { ahead_percent }))) => (None, *ahead_percent),
        Some(Some(limit_store::Kind::Redis(raw))) => {
            (Some(redis(policy, raw, memories).map_err(|wrong| wrong.within("store.redis"))?), raw.ahead_percent)
        }
        Some(Some(limit_store::Kind::Service(raw))) => {
            let (store, limits) = served((policy, &memory, asked), raw, memories).map_err(|wrong| wrong.within("store.service"))?;
            service = Some(limits);
            (Some(store), 0)
        }
        Some(None) | None => return Err(Wrong::new("store.kind", "is missing: leases, redis or service")),
    };
    if ahead_percent > 100 {
        return Err(Wrong::new("store.ahead_percent", "is more than 100"));
    }
    let without_store = match mesh::WithoutStore::try_from(*without_store) {
        Ok(mesh::WithoutStore::Share) => WithoutStore::Share,
        Ok(mesh::WithoutStore::Allow) => WithoutStore::Allow,
        Ok(mesh::WithoutStore::Deny) => WithoutStore::Deny,
        Err(_) => return Err(Wrong::new("without_store", format!("{without_store} is not known"))),
    };
    let limits: Vec<Limit> = limits.collect::<Result<_, _>>()?;
    if service.is_some() && without_store == WithoutStore::Share {
        return Err(Wrong::new("without_store", "is a share of numbers that the service has: allow or deny"));
    }
    if service.is_some() && limits.iter().any(|limit| limit.shared) {
        return Err(Wrong::new("limits", "are shared, beside a service that has the numbers"));
    }
    let concurrency = busy.collect::<Result<_, _>>()?;
    let policy: Arc<str> = policy.as_str().into();
    memory.count_at(&policy, remote.as_ref());
    Ok(ObjectLimits {
        policy,
        limits,
        concurrency,
        bandwidth: wide.collect::<Result<_, _>>()?,
        memory,
        store: remote.as_ref().map_or_else(|| Arc::clone(memories.leases()), |remote| Arc::clone(&remote.live)),
        remote,
        service,
        peers: Arc::clone(memories.leases()),
        ahead_percent: ahead_percent.into(),
        without_store,
        told: HeadersTold { draft: *draft_headers, legacy: *legacy_headers },
    })
}

/// The store at a place, shared by all objects that name it.
pub(crate) fn redis(policy: &str, raw: &mesh::RedisStore, memories: &LimitMemories) -> Result<Arc<RemoteStore>, Wrong> {
    let mesh::RedisStore { addresses, tls, username, password, key_prefix, timeout, ahead_percent: _, mode, master } = raw;
    let timeout = duration(timeout.as_ref(), "timeout")?.unwrap_or_default();
    let mode = match mesh::RedisMode::try_from(*mode) {
        Ok(mesh::RedisMode::Sentinel) => RedisMode::Sentinel(master.as_str().into()),
        Ok(_) if !master.is_empty() => return Err(Wrong::new("master", "is a name that sentinels know, without sentinels")),
        Ok(mesh::RedisMode::Single) => RedisMode::Single,
        Ok(mesh::RedisMode::Cluster) => RedisMode::Cluster,
        Err(_) => return Err(Wrong::new("mode", format!("{mode} is not known"))),
    };
    let first = addresses.first().map_or("", String::as_str);
    let place = RedisPlace::new((first, *tls), (username, password), key_prefix, timeout).and_then(|place| place.of(mode, addresses));
    let place = place.map_err(|(field, why)| Wrong::new(field, why))?;
    Ok(memories.store(RemotePlace::Redis(Arc::new(place)), namespace(policy)))
}

/// Of NAMESPACE/NAME.
fn namespace(policy: &str) -> &str {
    policy.split_once('/').map_or("", |(namespace, _)| namespace)
}

/// A service, and what it is asked.
fn served(
    (policy, memory, asked): (&str, &Memory, usize),
    raw: &mesh::RateLimitService,
    memories: &LimitMemories,
) -> Result<(Arc<RemoteStore>, ServiceLimits), Wrong> {
    let timeout = duration(raw.timeout.as_ref(), "timeout")?.unwrap_or_default();
    let place = ServicePlace::new(&raw.address, &raw.cluster, timeout).map_err(|(field, why)| Wrong::new(field, why))?;
    let path: Arc<str> = format!("{policy}/rls").into();
    let counts = memory.counts(&path);
    let store = memories.store(RemotePlace::Service(Arc::new(place)), namespace(policy));
    Ok((store, ServiceLimits::compile(raw, (path, asked), counts)?))
}

/// Reads an object by itself.
///
/// # Errors
/// Says what is wrong with it.
pub fn read(raw: &EdgeLimits, memories: &LimitMemories) -> Result<ObjectLimits, String> {
    object(raw, memories, 0).map_err(Wrong::text)
}

fn limit((policy, memory): (&str, &Memory), raw: &mesh::EdgeLimit) -> Result<Limit, Wrong> {
    let mesh::EdgeLimit { name, numbers, key, missing, when, cost, cost_cel, shared, dry_run, cost_header } = raw;
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(Wrong::new("name", format!("has {} bytes, not 1 to {NAME_BYTES_MAX}", name.len())));
    }
    let numbers = match numbers {
        Some(edge_limit::Numbers::Rate(raw)) => rate(raw).map_err(|wrong| wrong.within("rate"))?,
        Some(edge_limit::Numbers::Quota(raw)) => quota(raw).map_err(|wrong| wrong.within("quota"))?,
        None => return Err(Wrong::new("numbers", "is missing: rate or quota")),
    };
    let when = (!when.is_empty()).then(|| TruthOf::compile(when)).transpose().map_err(|why| Wrong::new("when", why))?;
    let cost = match cost_cel.as_str() {
        "" if (1..=AMOUNT_MAX).contains(&u64::from(*cost)) => Cost::Same((*cost).into()),
        "" => return Err(Wrong::new("cost", format!("{cost} is not from 1 to {AMOUNT_MAX}"))),
        _ if *cost > 0 => return Err(Wrong::new("cost", "stands beside cost_cel")),
        text => Cost::Made(ValueOf::compile(text).map_err(|why| Wrong::new("cost_cel", why))?),
    };
    let missing = match KeyMissing::try_from(*missing) {
        Ok(KeyMissing::Together) => IfMissing::Together,
        Ok(KeyMissing::Skipped) => IfMissing::Skip,
        Ok(KeyMissing::Refused) => IfMissing::Deny,
        Err(_) => return Err(Wrong::new("missing", format!("{missing} is not known"))),
    };
    let settled =
        || cost_header.parse().map_err(|_| Wrong::new("cost_header", format!("`{}` is not a header name", cost_header.escape_debug())));
    let settled = (!cost_header.is_empty()).then(settled).transpose()?;
    let path = format!("{policy}/{name}").into();
    let (key, counts) = (key::compile(key)?, memory.counts(&path));
    let mark = digest(&SHA256, name.as_bytes()).as_ref().first_chunk::<4>().map_or(0, |bytes| u32::from_be_bytes(*bytes)).max(1);
    let limit = Limit {
        name: name.as_str().into(),
        path,
        mark,
        numbers,
        shared: *shared,
        key,
        missing,
        when,
        cost,
        settled,
        dry_run: *dry_run,
        policy: None,
        counts,
    };
    Ok(limit.with_policy())
}

fn wide(raw: &mesh::BandwidthLimit) -> Result<Bandwidth, Wrong> {
    let mesh::BandwidthLimit { response_bytes_per_second, key } = raw;
    if *response_bytes_per_second == 0 {
        return Err(Wrong::new("response_bytes_per_second", "is 0"));
    }
    Ok(Bandwidth { bytes_per_second: (*response_bytes_per_second).into(), key: key::compile(key)? })
}

fn busy((policy, memory): (&str, &Arc<Memory>), raw: &mesh::ConcurrencyLimit) -> Result<Concurrency, Wrong> {
    let mesh::ConcurrencyLimit { requests, key, queue } = raw;
    if *requests == 0 {
        return Err(Wrong::new("requests", "is 0"));
    }
    if *queue > QUEUE_MAX {
        return Err(Wrong::new("queue", format!("is more than {QUEUE_MAX}")));
    }
    let path: Arc<str> = format!("{policy}/concurrency").into();
    let counts = memory.counts(&path);
    Ok(Concurrency { requests: *requests, queue: *queue, key: key::compile(key)?, path, counts })
}
