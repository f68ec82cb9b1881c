//! Label sets of metrics: what distinguishes one series from another (contract, section 5).

use std::sync::Arc;

use engine::failure::{Blame, Reason};
use engine::model::{MetricLabel, MetricLabels};
use http::Method;

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

/// Methods that are told apart; others, and none, are the first two (OpenTelemetry's `_OTHER`).
const METHODS: [&str; 11] = ["", "_OTHER", "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE"];

/// A request's method, where metrics tell it: its place among [`METHODS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct MethodLabel(u8);

impl MethodLabel {
    pub(super) fn of(method: &Method) -> Self {
        let place = METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(1);
        Self(u8::try_from(place).unwrap_or(1))
    }

    pub(super) const fn number(self) -> u8 {
        self.0
    }

    fn text(self) -> &'static str {
        METHODS.get(usize::from(self.0)).copied().unwrap_or_default()
    }
}

/// Labels that are there where a Telemetry asks for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Extra {
    pub(super) method: MethodLabel,
    pub(super) destination_zone: Option<Arc<str>>,
    pub(super) consumer: Option<Arc<str>>,
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

/// The server's or the mesh's fault: 5xx, no answer, or one of gRPC's server errors.
pub(super) fn is_failure(code: u16, grpc: u8, reason: Option<Reason>) -> bool {
    let no_answer = code == CODE_NONE && reason.is_some_and(|reason| reason.blame() != Blame::Client);
    let server_error = code != CODE_NONE && code >= 500;
    no_answer || server_error || is_server_error(grpc)
}

/// Nobody did anything wrong: no reason of the mesh's, no status of 400 or more, gRPC's OK.
pub(super) fn went_well(code: u16, grpc: u8, reason: Option<Reason>) -> bool {
    reason.is_none() && (code == CODE_NONE || code < 400) && matches!(grpc, GRPC_NONE | 0)
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
    pub(super) extra: Extra,
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
            extra: Extra::default(),
        }
    }

    /// The same without what tells more series than the traffic has parties: those whose labels are these become one as they are counted.
    pub(super) fn without(mut self, dropped: MetricLabels) -> Self {
        let parties = [
            (MetricLabel::SourceNamespace, &mut self.source_namespace),
            (MetricLabel::SourceWorkload, &mut self.source_workload),
            (MetricLabel::DestinationWorkload, &mut self.destination_workload),
        ];
        for (label, text) in parties {
            if dropped.has(label) {
                *text = Arc::from("");
            }
        }
        self
    }

    /// The same without all that is dropped: the rest is needed for more than metrics, and goes as they are read. `None`: it has nothing to lose.
    pub(super) fn blanked(&self, dropped: MetricLabels) -> Option<Self> {
        let dropped_here = |label: &MetricLabel| label.can_be_dropped() && dropped.has(*label);
        if !MetricLabel::ALL.iter().any(dropped_here) {
            return None;
        }
        let mut blank = self.clone().without(dropped);
        if dropped.has(MetricLabel::Route) {
            blank.route = Arc::from("");
        }
        if dropped.has(MetricLabel::Protocol) {
            blank.wire = Wire::Tcp;
        }
        if dropped.has(MetricLabel::GrpcCode) {
            blank.grpc_code = GRPC_NONE;
        }
        if dropped.has(MetricLabel::Reason) {
            blank.reason = None;
        }
        if dropped.has(MetricLabel::Mtls) {
            blank.mtls = false;
        }
        Some(blank)
    }

    /// Calls `tell` with each name and value, in the order in which they are told. What is dropped is not there; nor is what nobody added.
    pub(super) fn each<E>(&self, selected: MetricLabels, mut tell: impl FnMut(&'static str, &str) -> Result<(), E>) -> Result<(), E> {
        let mut tell = |name: &'static str, value: &str| {
            let dropped = selected != MetricLabels::default()
                && MetricLabel::parse(name).is_some_and(|label| label.can_be_dropped() && selected.has(label));
            if dropped { Ok(()) } else { tell(name, value) }
        };
        let mtls = if self.mtls { "true" } else { "false" };
        tell("direction", self.direction.text())?;
        tell("source_namespace", &self.source_namespace)?;
        tell("source_workload", &self.source_workload)?;
        tell("destination_namespace", &self.destination_namespace)?;
        tell("destination_service", &self.destination_service)?;
        tell("destination_workload", &self.destination_workload)?;
        if let Some((ruled, rule)) = &self.ruled {
            tell("policy", rule)?;
            tell("verdict", ruled.text())?;
            return tell("mtls", mtls);
        }
        let (mut code, mut grpc_code) = (itoa::Buffer::new(), itoa::Buffer::new());
        tell("route", &self.route)?;
        tell("protocol", self.wire.text())?;
        tell("code", if self.code == CODE_NONE { "" } else { code.format(self.code) })?;
        tell("grpc_code", if self.grpc_code == GRPC_NONE { "" } else { grpc_code.format(self.grpc_code) })?;
        tell("reason", self.reason.map_or("", Reason::text))?;
        tell("mtls", mtls)?;
        if selected.has(MetricLabel::Method) {
            tell("method", self.extra.method.text())?;
        }
        if selected.has(MetricLabel::DestinationZone) {
            tell("destination_zone", self.extra.destination_zone.as_deref().unwrap_or_default())?;
        }
        if selected.has(MetricLabel::Consumer) {
            tell("consumer", self.extra.consumer.as_deref().unwrap_or_default())?;
        }
        Ok(())
    }
}
