//! Every field of a TrafficPolicy with its path: the one list by which fields are merged, compared and shown.

use std::time::Duration;

use proto::mesh::{ActiveCheck, HashKey, Priority, RateLimit, Session};

use super::show::Shown;
use super::{Algorithm, Hedging, Injection, Prefer, RetryCause, UpstreamProtocol};
use super::{balance, fault, health, limit, retry, timing};
use crate::world::door::Fields;

/// Whom a field is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// A destination, whichever rule leads there: never of a route or a Gateway.
    Destination,
    /// What one call does.
    Call,
}

/// One field, as messages name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettingField {
    /// Below `spec`.
    pub path: &'static str,
    /// Whom it is about.
    pub reach: Reach,
}

macro_rules! settings {
    ($($(#[$doc:meta])* $field:ident: $kind:ty = $path:literal $reach:ident,)*) => {
        /// What a policy says; what it leaves to wider places is `None`. A list or a closed shape is one field.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct TrafficSettings { $($(#[$doc])* pub $field: Option<$kind>,)* }

        impl TrafficSettings {
            /// The path of every field.
            pub const PATHS: &[&str] = &[$($path),*];

            /// Takes from a wider place, or from a younger object of the same place, what is still open.
            pub fn fill(&mut self, wider: &Self) {
                $(if self.$field.is_none() { self.$field.clone_from(&wider.$field); })*
            }

            /// The fields that are said.
            pub fn fields(&self) -> Vec<SettingField> {
                let mut said = Vec::new();
                $(if self.$field.is_some() { said.push(SettingField { path: $path, reach: Reach::$reach }); })*
                said
            }

            /// The fields that are said, by path, each with its value in words.
            pub fn shown(&self) -> Vec<(&'static str, String)> {
                let mut said = Vec::new();
                $(if let Some(value) = &self.$field { said.push(($path, value.shown())); })*
                said
            }
        }
    };
}

settings! {
    /// How an endpoint is chosen.
    algorithm: Algorithm = "loadBalancer.algorithm" Destination,
    /// What a call is hashed by, where the algorithm hashes: the first that yields.
    hash: Vec<HashKey> = "loadBalancer.hash" Call,
    /// How long a fresh endpoint grows into its share.
    slow_start: Duration = "loadBalancer.slowStart" Destination,
    /// Which endpoints are near enough.
    prefer: Prefer = "loadBalancer.locality.prefer" Destination,
    /// Below this share of healthy near endpoints, further ones take part.
    failover_percent: f64 = "loadBalancer.locality.failoverBelowHealthyPercent" Destination,
    /// Below this share of healthy endpoints, health is disregarded.
    panic_percent: f64 = "loadBalancer.panicBelowHealthyPercent" Destination,
    /// Calls of one session stay at one endpoint.
    session: Session = "sessionPersistence" Call,
    /// TCP connect and TLS handshake together.
    connect: Duration = "timeouts.connect" Destination,
    /// The whole exchange; zero: none.
    request: Duration = "timeouts.request" Call,
    /// One attempt; zero: none.
    backend_request: Duration = "timeouts.backendRequest" Call,
    /// An opaque connection on which nothing moves; zero: none.
    idle: Duration = "timeouts.idle" Destination,
    /// An exchange on which nothing moves; zero: none.
    stream_idle: Duration = "timeouts.streamIdle" Call,
    /// An exchange, however busy; zero: none.
    stream: Duration = "timeouts.stream" Call,
    /// Attempts beyond the first.
    attempts: u32 = "retry.attempts" Call,
    /// One attempt, where there may be another.
    per_try: Duration = "retry.perTryTimeout" Call,
    /// What makes another attempt.
    causes: Vec<RetryCause> = "retry.on" Call,
    /// For the cause `RetriableStatus`.
    status_codes: Vec<u32> = "retry.statusCodes" Call,
    /// For the cause `GrpcStatus`, by number.
    grpc_statuses: Vec<u32> = "retry.grpcStatuses" Call,
    /// First wait before another attempt.
    backoff_base: Duration = "retry.backoff.base" Call,
    /// Longest wait.
    backoff_max: Duration = "retry.backoff.max" Call,
    /// Largest body that is kept to be sent again.
    body_buffer_bytes: u32 = "retry.bodyBufferBytes" Call,
    /// Retries, per cent of requests.
    budget_percent: f64 = "retry.budget.percent" Destination,
    /// Retries that are always allowed.
    budget_per_second: u32 = "retry.budget.minPerSecond" Destination,
    /// A second attempt beside a slow first one.
    hedge: Hedging = "retry.hedge" Call,
    /// Connections of one proxy; zero: no limit.
    connections: u32 = "limits.connections" Destination,
    /// Requests under way of one proxy; zero: no limit.
    requests: u32 = "limits.requests" Destination,
    /// Requests that wait; zero: no limit.
    pending: u32 = "limits.pending" Destination,
    /// How long they wait; zero: as long as it takes.
    pending_timeout: Duration = "limits.pendingTimeout" Destination,
    /// Requests of one connection before it is closed; zero: no limit.
    requests_per_connection: u32 = "limits.requestsPerConnection" Destination,
    /// Failed requests in a row that eject; zero: off.
    consecutive_errors: u32 = "health.outlier.consecutiveErrors" Destination,
    /// Failed connects in a row that eject; zero: off.
    consecutive_connect_failures: u32 = "health.outlier.consecutiveConnectFailures" Destination,
    /// Lowest share of success; zero: off.
    success_rate_percent: f64 = "health.outlier.successRateMinPercent" Destination,
    /// How many times slower than the others' median; zero: off.
    latency_factor: f64 = "health.outlier.latencyFactor" Destination,
    /// How often rates are judged.
    outlier_interval: Duration = "health.outlier.interval" Destination,
    /// How long the first ejection lasts.
    eject_for: Duration = "health.outlier.ejectFor" Destination,
    /// Largest ejected share.
    max_ejected_percent: f64 = "health.outlier.maxEjectedPercent" Destination,
    /// Probes of our own.
    active: ActiveCheck = "health.active" Destination,
    /// Faults to inject.
    faults: Vec<Injection> = "faults" Call,
    /// How many requests may come: said of a destination, its servers count; of a route or Gateway, its callers.
    rate_limits: Vec<RateLimit> = "rateLimits" Call,
    /// Who is shed first.
    priority: Priority = "priority" Call,
    /// What the destination speaks, whatever its port declares.
    upstream_protocol: UpstreamProtocol = "upstreamProtocol" Destination,
}

impl TrafficSettings {
    pub(super) fn read(fields: &mut Fields<'_>) -> Self {
        let mut settings = Self::default();
        if let Some(at) = fields.get("loadBalancer") {
            balance::read(at.fields(), &mut settings);
        }
        if let Some(at) = fields.get("sessionPersistence") {
            settings.session = balance::session(at.fields());
        }
        if let Some(at) = fields.get("timeouts") {
            timing::read(at.fields(), &mut settings);
        }
        if let Some(at) = fields.get("retry") {
            retry::read(at.fields(), &mut settings);
        }
        if let Some(at) = fields.get("limits") {
            limit::read(at.fields(), &mut settings);
        }
        if let Some(at) = fields.get("health") {
            health::read(at.fields(), &mut settings);
        }
        settings.faults = fields.get("faults").map(|at| fault::read(&at));
        settings.rate_limits = fields.get("rateLimits").map(|at| limit::rates(&at));
        settings.priority = fields.get("priority").and_then(|at| limit::priority(at.fields()));
        settings.upstream_protocol = fields.get("upstreamProtocol").and_then(|at| UpstreamProtocol::read(&at));
        settings
    }
}
