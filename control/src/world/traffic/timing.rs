//! `timeouts` and `upstreamProtocol`.

use super::{TrafficSettings, positive};
use crate::world::door::{Cursor, Fields};

pub(super) fn read(mut fields: Fields<'_>, into: &mut TrafficSettings) {
    into.connect = fields.get("connect").and_then(|at| positive(&at));
    // "0s" means none (Gateway API), and so lifts what a wider place says.
    let mut time = |name| fields.get(name).and_then(|at| at.duration());
    into.request = time("request");
    into.backend_request = time("backendRequest");
    into.idle = time("idle");
    into.stream_idle = time("streamIdle");
    into.stream = time("stream");
    fields.done();
}

/// What a destination is taken to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// As its port declares, else as its callers do.
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// Bytes, for callers and servers alike.
    Tcp,
}

impl UpstreamProtocol {
    /// Every value with its word.
    pub const WORDS: [(&'static str, Self); 4] = [("Auto", Self::Auto), ("Http1", Self::Http1), ("Http2", Self::Http2), ("Tcp", Self::Tcp)];

    pub(super) fn read(at: &Cursor<'_>) -> Option<Self> {
        at.word(&Self::WORDS)
    }
}
