//! Label sets of metrics: what distinguishes one series from another (contract, section 5).

use std::sync::Arc;

use engine::failure::{Blame, Reason};
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

pub use proto::defaults::BUCKET_BOUNDS_SECS;

/// [`BUCKET_BOUNDS_SECS`] in nanoseconds, for comparing without floats.
pub(super) const BUCKET_BOUNDS_NANOS: [u64; 14] = [
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// Which road an exchange took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the application beside this proxy.
    Inbound,
    /// From it, or from outside through an edge.
    Outbound,
}

impl Direction {
    /// As labels and log spell it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// What a series counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum MetricFamily {
    /// Finished HTTP requests.
    Http,
    /// Opaque connections.
    Tcp,
    /// Attempts that were made again; `reason` says why.
    Retry,
    /// Attempts that were made beside one under way.
    Hedge,
    /// What authorization policies said.
    Ruling,
}

/// What a rule's word came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Ruled {
    Denied,
    WouldDeny,
    Audited,
}

impl Ruled {
    const fn text(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::WouldDeny => "would_deny",
            Self::Audited => "audited",
        }
    }
}

/// What was spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Wire {
    Http1,
    Http2,
    Grpc,
    Tcp,
}

impl Wire {
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

/// "No gRPC status" in [`Labels::grpc_code`].
pub(super) const GRPC_NONE: u8 = u8::MAX;

/// Whether a gRPC status is a server's error (UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS, as in OpenTelemetry's
/// rules for server spans).
pub const fn is_server_error(grpc: u8) -> bool {
    matches!(grpc, 2 | 4 | 12 | 13 | 14 | 15)
}
/// "No HTTP status" in [`Labels::code`].
pub(super) const CODE_NONE: u16 = u16::MAX;
/// Every open label of the series that takes what does not fit.
const OVERFLOW: &str = "overflow";

/// The server's or the mesh's fault: 5xx, no answer, or one of gRPC's server errors (UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED,
/// INTERNAL, UNAVAILABLE, DATA_LOSS, as in OpenTelemetry's rules for server spans).
pub(super) fn is_failure(code: u16, grpc: u8, reason: Option<Reason>) -> bool {
    let no_answer = code == CODE_NONE && reason.is_some_and(|reason| reason.blame() != Blame::Client);
    let server_error = code != CODE_NONE && code >= 500;
    no_answer || server_error || matches!(grpc, 2 | 4 | 12 | 13 | 14 | 15)
}

/// One label set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Labels {
    pub(super) family: MetricFamily,
    pub(super) direction: Direction,
    pub(super) source_namespace: Arc<str>,
    pub(super) source_workload: Arc<str>,
    pub(super) destination_namespace: Arc<str>,
    pub(super) destination_service: Arc<str>,
    pub(super) destination_workload: Arc<str>,
    pub(super) route: Arc<str>,
    pub(super) wire: Wire,
    pub(super) code: u16,
    pub(super) grpc_code: u8,
    pub(super) reason: Option<Reason>,
    pub(super) mtls: bool,
    /// What a policy said, and which rule: of [`MetricFamily::Ruling`] only.
    pub(super) ruled: Option<(Ruled, Arc<str>)>,
}

impl Labels {
    /// The set that stands in for all that do not fit: one per family and direction.
    pub(super) fn overflow(&self) -> Self {
        let other: Arc<str> = Arc::from(OVERFLOW);
        Self {
            family: self.family,
            direction: self.direction,
            source_namespace: Arc::clone(&other),
            source_workload: Arc::clone(&other),
            destination_namespace: Arc::clone(&other),
            destination_service: Arc::clone(&other),
            destination_workload: Arc::clone(&other),
            ruled: self.ruled.as_ref().map(|(ruled, _)| (*ruled, Arc::clone(&other))),
            route: other,
            wire: if self.family == MetricFamily::Tcp { Wire::Tcp } else { Wire::Http1 },
            code: CODE_NONE,
            grpc_code: GRPC_NONE,
            reason: None,
            mtls: false,
        }
    }

    /// Labels of a policy's word: who called whom, and which rule said what.
    fn encode_ruling(&self, encoder: &mut LabelSetEncoder<'_>, ruled: Ruled, rule: &str) -> std::fmt::Result {
        let pairs: [(&str, &str); 9] = [
            ("direction", self.direction.text()),
            ("source_namespace", &self.source_namespace),
            ("source_workload", &self.source_workload),
            ("destination_namespace", &self.destination_namespace),
            ("destination_service", &self.destination_service),
            ("destination_workload", &self.destination_workload),
            ("policy", rule),
            ("verdict", ruled.text()),
            ("mtls", if self.mtls { "true" } else { "false" }),
        ];
        for pair in pairs {
            pair.encode(encoder.encode_label())?;
        }
        Ok(())
    }

    fn code_text(&self, number: &mut [u8; 3]) -> usize {
        if self.code == CODE_NONE {
            return 0;
        }
        let code = self.code.min(999);
        for (place, digit) in number.iter_mut().zip([code / 100, code / 10 % 10, code % 10]) {
            *place = b'0' + u8::try_from(digit).unwrap_or(0);
        }
        if code == 0 { 1 } else { 3 }
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> std::fmt::Result {
        if let Some((ruled, rule)) = &self.ruled {
            return self.encode_ruling(encoder, *ruled, rule);
        }
        let mut number = [b'0'; 3];
        let digits = self.code_text(&mut number);
        let code = std::str::from_utf8(&number[..digits]).unwrap_or("");
        let grpc = if self.grpc_code == GRPC_NONE { String::new() } else { self.grpc_code.to_string() };
        let pairs: [(&str, &str); 12] = [
            ("direction", self.direction.text()),
            ("source_namespace", &self.source_namespace),
            ("source_workload", &self.source_workload),
            ("destination_namespace", &self.destination_namespace),
            ("destination_service", &self.destination_service),
            ("destination_workload", &self.destination_workload),
            ("route", &self.route),
            ("protocol", self.wire.text()),
            ("code", code),
            ("grpc_code", &grpc),
            ("reason", self.reason.map_or("", Reason::text)),
            ("mtls", if self.mtls { "true" } else { "false" }),
        ];
        for pair in pairs {
            pair.encode(encoder.encode_label())?;
        }
        Ok(())
    }
}
