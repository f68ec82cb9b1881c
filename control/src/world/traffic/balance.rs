//! `loadBalancer` and `sessionPersistence`.

pub use proto::mesh::balance::{Algorithm, Prefer};
use proto::mesh::hash_key::Kind as Key;
use proto::mesh::{HashCookie, HashKey, Session};

use super::{TrafficSettings, header, positive, wire};
use crate::world::door::{Cursor, Fields};
use crate::world::route::{PROTECTED, session_timeout};

/// Most parts of a hash.
const HASH_KEYS_MAX: usize = 8;
/// Longest name of a cookie, header or query parameter (Gateway API: sessionName).
const NAME_BYTES_MAX: usize = 128;
/// Cookie or header of a session that has no name.
const SESSION_NAME: &str = "mw-session";

pub(super) fn read(mut fields: Fields<'_>, into: &mut TrafficSettings) {
    into.algorithm = fields.get("algorithm").and_then(|at| {
        at.word(&[
            ("LeastRequest", Algorithm::LeastRequest),
            ("PeakEwma", Algorithm::PeakEwma),
            ("RoundRobin", Algorithm::RoundRobin),
            ("Random", Algorithm::Random),
            ("RingHash", Algorithm::RingHash),
            ("Maglev", Algorithm::Maglev),
        ])
    });
    into.hash = fields.get("hash").map(|at| at.list(HASH_KEYS_MAX).iter().filter_map(key).collect());
    into.slow_start = fields.get("slowStart").and_then(|at| at.duration());
    if let Some(at) = fields.get("locality") {
        let mut locality = at.fields();
        let words = [("None", Prefer::None), ("Zone", Prefer::Zone), ("Region", Prefer::Region)];
        into.prefer = locality.get("prefer").and_then(|at| at.word(&words));
        into.failover_percent = locality.get("failoverBelowHealthyPercent").and_then(|at| at.percent());
        locality.done();
    }
    into.panic_percent = fields.get("panicBelowHealthyPercent").and_then(|at| at.percent());
    fields.done();
}

fn key(at: &Cursor<'_>) -> Option<HashKey> {
    let mut fields = at.fields();
    let mut kinds = Vec::new();
    if let Some(at) = fields.get("header") {
        kinds.push(header(&at).map(Key::Header));
    }
    if let Some(at) = fields.get("cookie") {
        kinds.push(cookie(at.fields()).map(Key::Cookie));
    }
    if let Some(at) = fields.get("sourceAddress") {
        at.fields().done();
        kinds.push(Some(Key::SourceAddress(true)));
    }
    if let Some(at) = fields.get("query") {
        kinds.push(name(&at, |_| true).map(Key::Query));
    }
    fields.done();
    if kinds.len() != 1 {
        at.error("a part of a hash is exactly one thing", "write one of header, cookie, sourceAddress and query");
        return None;
    }
    Some(HashKey { kind: Some(kinds.pop()??) })
}

fn cookie(mut fields: Fields<'_>) -> Option<HashCookie> {
    let name = fields.need("name").and_then(|at| name(&at, is_token));
    let ttl = fields.get("ttl").and_then(|at| positive(&at)).and_then(wire);
    fields.done();
    // Only a cookie that is made has a path.
    let path = if ttl.is_some() { "/".to_owned() } else { String::new() };
    Some(HashCookie { name: name?, ttl, path })
}

fn name(at: &Cursor<'_>, fits: fn(&str) -> bool) -> Option<String> {
    let text = at.text()?;
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !fits(&text) {
        let shown: String = text.chars().take(NAME_BYTES_MAX).collect();
        at.error(format!("`{shown}` is no such name"), format!("use 1 to {NAME_BYTES_MAX} letters, digits, `-` and `_`"));
        return None;
    }
    Some(text)
}

/// A token (RFC 9110, 5.6.2), which names of cookies and headers are.
fn is_token(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Gateway API's shape (GEP-1619).
pub(super) fn session(mut fields: Fields<'_>) -> Option<Session> {
    let header = fields.get("type").and_then(|at| at.word(&[("Cookie", false), ("Header", true)])).unwrap_or(false);
    let name = match fields.get("sessionName") {
        Some(at) => {
            let name = name(&at, is_token)?;
            if header && PROTECTED.contains(&name.to_lowercase().as_str()) {
                at.error(format!("the header `{name}` belongs to the connection"), "use a name of its own, such as x-session");
            }
            name
        }
        None => SESSION_NAME.to_owned(),
    };
    let mut time = |name| fields.get(name).and_then(|at| positive(&at).map(|time| session_timeout(&at, time)));
    let (absolute, idle) = (time("absoluteTimeout"), time("idleTimeout"));
    let mut permanent = false;
    if let Some(at) = fields.get("cookieConfig") {
        let mut config = at.fields();
        permanent = config.get("lifetimeType").and_then(|at| at.word(&[("Session", false), ("Permanent", true)])).unwrap_or(false);
        config.done();
        if header {
            at.error("a header has no cookieConfig", "remove it, or use type Cookie");
        }
    }
    if permanent && absolute.is_none() {
        fields.at().error("a permanent cookie needs absoluteTimeout", "add it, or use lifetimeType Session");
    }
    if let (Some(absolute), Some(idle)) = (absolute, idle)
        && idle > absolute
    {
        fields.at().error("idleTimeout is longer than absoluteTimeout", "make it shorter, or leave it out");
    }
    fields.done();
    let name = if header { name.to_lowercase() } else { name };
    let (absolute_timeout, idle_timeout) = (absolute.and_then(wire), idle.and_then(wire));
    Some(Session { name, header, absolute_timeout, idle_timeout, permanent, path: if header { String::new() } else { "/".to_owned() } })
}
