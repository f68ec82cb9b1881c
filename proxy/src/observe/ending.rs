//! How an exchange ended, as OpenTelemetry's semantic conventions judge it (HTTP spans, "Status"; gRPC, "Span status"). Pure.

use std::time::Duration;

use engine::failure::Reason;
use engine::model::Keep;

use super::labels::{CODE_NONE, GRPC_NONE};

/// gRPC's codes by number.
const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The same that are a server's own fault.
const GRPC_OF_SERVERS: [&str; 6] = ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];

/// Why a span is exported that was not sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeepCause {
    Error,
    Slow,
}

impl KeepCause {
    /// As spans say it.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Slow => "slow",
        }
    }
}

/// What is known of an end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    /// The span is a server's.
    pub(super) server: bool,
    /// Of HTTP.
    pub(super) code: u16,
    /// Of a gRPC call.
    pub(super) grpc: u8,
    /// Of the mesh's own.
    pub(super) reason: Option<Reason>,
}

impl Ending {
    /// The name of its gRPC code.
    pub(super) fn grpc_code(&self) -> Option<&'static str> {
        GRPC_CODES.get(usize::from(self.grpc)).copied()
    }

    /// Whether its span says that it failed: 4xx and what a caller did wrong are errors to a client, and not to a server.
    pub(super) fn is_error(&self) -> bool {
        match (self.grpc, self.code) {
            (GRPC_NONE, CODE_NONE) => self.reason.is_some(),
            (GRPC_NONE, code) if code >= 400 => code >= 500 || !self.server,
            (GRPC_NONE, _) | (0, _) => self.reason.is_some(),
            _ => !self.server || self.is_servers(),
        }
    }

    fn is_servers(&self) -> bool {
        self.grpc_code().is_some_and(|code| GRPC_OF_SERVERS.contains(&code))
    }

    /// `error.type`: our reason, else the code. `None`: it is no error.
    pub(super) fn error_type<'a>(&self, digits: &'a mut itoa::Buffer) -> Option<&'a str> {
        if !self.is_error() {
            return None;
        }
        let known = self.reason.map(Reason::text).or_else(|| self.grpc_code().filter(|_| self.grpc != 0));
        Some(known.unwrap_or_else(|| digits.format(self.code)))
    }

    /// Whether its span is kept although it was not sampled: the fault is a server's or the mesh's own word, or it took too long.
    pub(super) fn kept(&self, keep: Keep, duration: Duration) -> Option<KeepCause> {
        let failed = || self.reason.is_some() || self.code != CODE_NONE && self.code >= 500 || self.is_servers();
        if keep.errors && failed() {
            return Some(KeepCause::Error);
        }
        (!keep.slower.is_zero() && duration > keep.slower).then_some(KeepCause::Slow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Ending = Ending { server: false, code: 200, grpc: GRPC_NONE, reason: None };

    /// Aim: what is an error to a client and to a server, and how it is called, by HTTP's codes, by gRPC's, and by the mesh's own reasons.
    #[test]
    fn errors_are_those_of_the_conventions() {
        let denied = Some(Reason::Denied);
        for (ending, of_client, of_server) in [
            (BASE, None, None),
            (Ending { code: 404, ..BASE }, Some("404"), None),
            (Ending { code: 503, ..BASE }, Some("503"), Some("503")),
            (Ending { code: 403, reason: denied, ..BASE }, Some("denied"), None),
            (Ending { code: 502, reason: Some(Reason::UpstreamReset), ..BASE }, Some("upstream_reset"), Some("upstream_reset")),
            (Ending { reason: Some(Reason::UpstreamReset), ..BASE }, Some("upstream_reset"), Some("upstream_reset")),
            (Ending { code: CODE_NONE, reason: Some(Reason::ClientGone), ..BASE }, Some("client_gone"), Some("client_gone")),
            (Ending { grpc: 0, ..BASE }, None, None),
            (Ending { grpc: 5, ..BASE }, Some("NOT_FOUND"), None),
            (Ending { grpc: 14, ..BASE }, Some("UNAVAILABLE"), Some("UNAVAILABLE")),
            (Ending { grpc: 7, code: 403, reason: denied, ..BASE }, Some("denied"), None),
            (Ending { grpc: 0, reason: Some(Reason::ClientGone), ..BASE }, Some("client_gone"), Some("client_gone")),
        ] {
            let told = |server| Ending { server, ..ending }.error_type(&mut itoa::Buffer::new()).map(str::to_owned);
            assert_eq!((told(false).as_deref(), told(true).as_deref()), (of_client, of_server), "{ending:?}");
        }
    }

    /// Aim: kept are servers' errors, the mesh's own and what took longer, each where it is asked for; a caller's own mistakes are not.
    #[test]
    fn what_is_kept_is_what_was_asked_for() {
        let second = Duration::from_secs(1);
        let (none, errors) = (Keep::default(), Keep { errors: true, slower: Duration::ZERO });
        let slow = Keep { errors: false, slower: second };
        let all = Keep { errors: true, slower: second };
        let failed = Ending { code: 500, ..BASE };
        for (ending, keep, took, wanted) in [
            (failed, none, second * 9, None),
            (failed, errors, second, Some(KeepCause::Error)),
            (failed, slow, second, None),
            (failed, slow, second * 2, Some(KeepCause::Slow)),
            (failed, all, second * 2, Some(KeepCause::Error)),
            (BASE, all, second * 2, Some(KeepCause::Slow)),
            (BASE, errors, second * 2, None),
            (Ending { code: 404, ..BASE }, errors, second, None),
            (Ending { code: CODE_NONE, reason: Some(Reason::ClientGone), ..BASE }, errors, second, Some(KeepCause::Error)),
            (Ending { grpc: 5, ..BASE }, errors, second, None),
            (Ending { grpc: 13, ..BASE }, errors, second, Some(KeepCause::Error)),
        ] {
            assert_eq!(ending.kept(keep, took), wanted, "{ending:?} {keep:?} {took:?}");
        }
    }
}
