//! `limits`, `rateLimits` and `priority`.

use std::time::Duration;

use engine::filter::{KEY_PARTS_MAX, LIMITS_MAX, PER_MAX, REQUESTS_MAX};
use engine::model::CLASSES_MAX;
use proto::mesh::limit_key::Kind as Key;
use proto::mesh::{LimitKey, Priority, RateLimit};

use super::{TrafficSettings, each_once, header, positive, whole, wire};
use crate::world::door::{Cursor, Fields};

/// Highest limit; more than any machine has sockets.
const LIMIT_MAX: u32 = 10_000_000;
/// Longest name of a class.
const CLASS_BYTES_MAX: usize = 64;

pub(super) fn read(mut fields: Fields<'_>, into: &mut TrafficSettings) {
    into.connections = fields.get("connections").and_then(|at| whole(&at, 0..=LIMIT_MAX));
    into.requests = fields.get("requests").and_then(|at| whole(&at, 0..=LIMIT_MAX));
    into.pending = fields.get("pending").and_then(|at| whole(&at, 0..=LIMIT_MAX));
    into.pending_timeout = fields.get("pendingTimeout").and_then(|at| at.duration());
    into.requests_per_connection = fields.get("requestsPerConnection").and_then(|at| whole(&at, 0..=LIMIT_MAX));
    fields.done();
}

pub(super) fn rates(at: &Cursor<'_>) -> Vec<RateLimit> {
    at.list(LIMITS_MAX).iter().enumerate().filter_map(|(number, at)| rate(number, at)).collect()
}

/// Its name is the policy's and the item's: whoever sends it adds the place.
fn rate(number: usize, at: &Cursor<'_>) -> Option<RateLimit> {
    let mut fields = at.fields();
    let requests = fields.need("requests").and_then(|at| whole(&at, 1..=REQUESTS_MAX));
    let per = fields.need("per").and_then(|at| period(&at));
    let burst = fields.get("burst").and_then(|at| whole(&at, 0..=REQUESTS_MAX)).unwrap_or(0);
    let key = fields.get("key").map(|at| at.list(KEY_PARTS_MAX)).unwrap_or_default();
    let key: Vec<Option<LimitKey>> = key.iter().map(part).collect();
    fields.done();
    if let (Some(requests), Some(per)) = (requests, per)
        && !returns(requests, per, burst)
    {
        at.error("so large a burst takes centuries to come back", "make burst smaller, or per shorter");
    }
    let policy = format!("{}/{}", at.key().namespace, at.key().name);
    let name = format!("TrafficPolicy/{policy}/{number}");
    // A part that does not read never makes one bucket for all of many.
    let key = key.into_iter().collect::<Option<Vec<_>>>()?;
    Some(RateLimit { name, requests: requests?, per: wire(per?), burst, key, policy })
}

/// The time in which the requests come back: at most a day.
fn period(at: &Cursor<'_>) -> Option<Duration> {
    let read = positive(at)?;
    if read > PER_MAX {
        at.error("it is longer than a day", format!("use at most {}h", PER_MAX.as_secs() / 3600));
        return None;
    }
    Some(read)
}

/// Whether a full bucket fills again within what nanoseconds can count, as the proxy reckons them.
fn returns(requests: u32, per: Duration, burst: u32) -> bool {
    let each = (per.as_nanos() / u128::from(requests)).max(1);
    u64::try_from(each * (u128::from(requests) + u128::from(burst) - 1)).is_ok()
}

fn part(at: &Cursor<'_>) -> Option<LimitKey> {
    let mut fields = at.fields();
    let mut kinds = Vec::new();
    if let Some(at) = fields.get("sourceIdentity") {
        at.fields().done();
        kinds.push(Some(Key::SourceIdentity(true)));
    }
    if let Some(at) = fields.get("header") {
        kinds.push(header(&at).map(Key::Header));
    }
    fields.done();
    if kinds.len() != 1 {
        at.error("a part of a key is exactly one of sourceIdentity and header", "write for example `sourceIdentity: {}`");
        return None;
    }
    Some(LimitKey { kind: Some(kinds.pop()??) })
}

pub(super) fn priority(mut fields: Fields<'_>) -> Option<Priority> {
    let name = fields.need("header").and_then(|at| header(&at));
    let place = fields.need("classes");
    let listed = place.as_ref().map(|at| at.list(CLASSES_MAX)).unwrap_or_default();
    let classes = each_once(listed.into_iter().filter_map(|at| class(&at).map(|class| (at, class))).collect());
    if let Some(at) = place
        && classes.len() < 2
    {
        at.error("one class alone ranks nobody", "list at least two, the highest first");
    }
    // Who says nothing ranks lowest, unless told otherwise.
    let mut default = classes.len().saturating_sub(1);
    if let Some(at) = fields.get("default") {
        let words: Vec<(&str, usize)> = classes.iter().enumerate().map(|(rank, class)| (class.as_str(), rank)).collect();
        default = at.word(&words).unwrap_or(default);
    }
    if let Some(at) = fields.get("shed") {
        at.word(&[("LowestFirst", ())]);
    }
    fields.done();
    Some(Priority { header: name?, classes, default_class: u32::try_from(default).unwrap_or(0) })
}

fn class(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    if text.is_empty() || text.len() > CLASS_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        at.error("no such name of a class", format!("use 1 to {CLASS_BYTES_MAX} letters and digits"));
        return None;
    }
    Some(text)
}
