//! What may go wrong with an exchange, whose fault it is and what the caller sees.

use http::{HeaderName, HeaderValue, StatusCode};

/// Who has to act. Picks the metric, the log level and who gets paged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The downstream sent something wrong or went away.
    Client,
    /// Our proxy on the caller's side, or its configuration.
    ClientProxy,
    /// The path between the proxies.
    Network,
    /// Our proxy on the server's side, or its configuration.
    ServerProxy,
    /// The application that was called.
    Application,
    /// A rule said no.
    Policy,
}

/// Carries a [`Reason`] on every error that the mesh itself made (contract, section 4).
pub const REASON_HEADER: HeaderName = HeaderName::from_static("x-meshwright-reason");

/// The closed set of reason codes (contract, section 4): header `x-meshwright-reason`, access log, span and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the contract's own; `text` and `blame` say the rest")]
pub enum Reason {
    NoRoute,
    BadBackend,
    NoEndpoints,
    ConnectFailed,
    ConnectTimeout,
    TlsFailed,
    IdentityMismatch,
    UpstreamReset,
    UpstreamProtocol,
    RequestTimeout,
    AttemptTimeout,
    IdleTimeout,
    ClientGone,
    Overflow,
    RateLimited,
    Denied,
    Unauthenticated,
    Fault,
    ConfigPending,
    Draining,
    BadRequest,
    TooLarge,
    Misdirected,
    PolicyUnavailable,
    Maintenance,
}

impl Reason {
    /// Every reason, in order; `reason as usize` is its index.
    pub const ALL: [Self; 25] = [
        Self::NoRoute,
        Self::BadBackend,
        Self::NoEndpoints,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::TlsFailed,
        Self::IdentityMismatch,
        Self::UpstreamReset,
        Self::UpstreamProtocol,
        Self::RequestTimeout,
        Self::AttemptTimeout,
        Self::IdleTimeout,
        Self::ClientGone,
        Self::Overflow,
        Self::RateLimited,
        Self::Denied,
        Self::Unauthenticated,
        Self::Fault,
        Self::ConfigPending,
        Self::Draining,
        Self::BadRequest,
        Self::TooLarge,
        Self::Misdirected,
        Self::PolicyUnavailable,
        Self::Maintenance,
    ];

    /// The code as the contract spells it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::BadBackend => "bad_backend",
            Self::NoEndpoints => "no_endpoints",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::TlsFailed => "tls_failed",
            Self::IdentityMismatch => "identity_mismatch",
            Self::UpstreamReset => "upstream_reset",
            Self::UpstreamProtocol => "upstream_protocol",
            Self::RequestTimeout => "request_timeout",
            Self::AttemptTimeout => "attempt_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::ClientGone => "client_gone",
            Self::Overflow => "overflow",
            Self::RateLimited => "rate_limited",
            Self::Denied => "denied",
            Self::Unauthenticated => "unauthenticated",
            Self::Fault => "fault",
            Self::ConfigPending => "config_pending",
            Self::Draining => "draining",
            Self::BadRequest => "bad_request",
            Self::TooLarge => "too_large",
            Self::Misdirected => "misdirected",
            Self::PolicyUnavailable => "policy_unavailable",
            Self::Maintenance => "maintenance",
        }
    }

    /// What a client outside the mesh is told; it names no credential, no backend and nobody else (edge-kinds.md, "Answers the mesh makes").
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::NoRoute => "Nothing is served here.",
            Self::BadBackend => "The route leads nowhere.",
            Self::NoEndpoints => "No instance of the service is available.",
            Self::ConnectFailed | Self::ConnectTimeout => "The service cannot be reached.",
            Self::TlsFailed | Self::IdentityMismatch => "The service could not prove its identity.",
            Self::UpstreamReset => "The service broke the exchange off.",
            Self::UpstreamProtocol => "The service gave no answer that can be understood.",
            Self::RequestTimeout | Self::AttemptTimeout => "The service did not answer in time.",
            Self::IdleTimeout => "Nothing was sent for too long.",
            Self::ClientGone => "The client went away.",
            Self::Overflow => "Too many requests are waiting.",
            Self::RateLimited => "Too many requests came within a short time.",
            Self::Denied => "The caller may not do this.",
            Self::Unauthenticated => "No valid credential was shown.",
            Self::Fault => "A fault was injected on purpose.",
            Self::ConfigPending => "The gateway is not configured yet.",
            Self::Draining => "The gateway is about to end.",
            Self::BadRequest => "The request cannot be understood.",
            Self::TooLarge => "The request is too large.",
            Self::Misdirected => "The request was meant for another server.",
            Self::PolicyUnavailable => "A policy that guards this is not available.",
            Self::Maintenance => "The service is under maintenance.",
        }
    }

    /// The reason that [`Reason::text`] spells so.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.text() == text)
    }

    /// The code as a header value.
    pub const fn header(self) -> HeaderValue {
        HeaderValue::from_static(self.text())
    }

    /// Whose fault it is, where the place that made the failure does not know better.
    pub const fn blame(self) -> Blame {
        match self {
            Self::BadRequest | Self::TooLarge | Self::ClientGone | Self::Misdirected => Blame::Client,
            Self::NoRoute | Self::BadBackend | Self::NoEndpoints | Self::ConfigPending | Self::Overflow | Self::Draining => {
                Blame::ClientProxy
            }
            Self::ConnectFailed | Self::ConnectTimeout => Blame::Network,
            Self::TlsFailed | Self::IdentityMismatch => Blame::ServerProxy,
            Self::UpstreamReset | Self::UpstreamProtocol | Self::RequestTimeout | Self::AttemptTimeout | Self::IdleTimeout => {
                Blame::Application
            }
            Self::RateLimited | Self::Denied | Self::Unauthenticated | Self::Fault | Self::PolicyUnavailable | Self::Maintenance => {
                Blame::Policy
            }
        }
    }

    /// The status that a caller over HTTP sees.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::BadBackend => StatusCode::INTERNAL_SERVER_ERROR,
            Self::UpstreamProtocol => StatusCode::BAD_GATEWAY,
            Self::RequestTimeout | Self::AttemptTimeout | Self::IdleTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::BadRequest | Self::ClientGone => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Blame {
    /// As the access log spells it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::ClientProxy => "client_proxy",
            Self::Network => "network",
            Self::ServerProxy => "server_proxy",
            Self::Application => "application",
            Self::Policy => "policy",
        }
    }
}

/// May the attempt be made again on another endpoint?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Nothing of the request was written upstream: free replay, for any method (RFC 9110, section 9.2.2).
    NeverWritten,
    /// It may have arrived, but no byte of an answer came.
    Unanswered,
    /// Something may have arrived.
    No,
}

/// The one error of the road.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", reason.text())]
pub struct Failure {
    /// What the caller is told.
    pub reason: Reason,
    /// Whose fault it is.
    pub blame: Blame,
    /// Whether the attempt may be made again.
    pub retry: Retry,
    /// For the log: names the peer and what happened.
    pub cause: String,
}

impl Failure {
    /// A failure with the reason's own blame that must not be retried.
    pub fn new(reason: Reason, cause: impl Into<String>) -> Self {
        Self { reason, blame: reason.blame(), retry: Retry::No, cause: cause.into() }
    }

    /// The same, of what came from upstream: what is too large there is the application's.
    pub fn upstream(reason: Reason, cause: impl Into<String>) -> Self {
        let blame = if reason == Reason::TooLarge { Blame::Application } else { reason.blame() };
        Self { blame, ..Self::new(reason, cause) }
    }

    /// The same, of a request that may have arrived and brought no byte of an answer.
    pub fn unanswered(reason: Reason, cause: impl Into<String>) -> Self {
        Self { retry: Retry::Unanswered, ..Self::new(reason, cause) }
    }

    /// The same, of a request of which nothing was written upstream.
    pub fn never_written(reason: Reason, cause: impl Into<String>) -> Self {
        Self { retry: Retry::NeverWritten, ..Self::new(reason, cause) }
    }
}

/// An answer that the mesh itself makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalReply {
    /// Status of the answer.
    pub status: StatusCode,
    /// Present on every error of the mesh's own.
    pub reason: Option<Reason>,
    /// Further headers, e.g. `location`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Body, usually empty or one line of text.
    pub body: bytes::Bytes,
    /// The code that a gRPC caller sees, where it is not to follow from the rest.
    pub grpc_status: Option<u8>,
}

impl LocalReply {
    /// The answer for a reason, without further headers or body.
    pub const fn of(reason: Reason) -> Self {
        Self { status: reason.status(), reason: Some(reason), headers: Vec::new(), body: bytes::Bytes::new(), grpc_status: None }
    }
}

impl From<Reason> for LocalReply {
    fn from(reason: Reason) -> Self {
        Self::of(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_listed_once_and_spelled_one_way() {
        // Aim: `reason as usize` is the index in ALL, and text and parse are inverse.
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert_eq!(Reason::parse(reason.text()), Some(reason));
            assert!(reason.status().as_u16() >= 400);
        }
        assert_eq!(Reason::parse("made_up"), None);
    }
}
