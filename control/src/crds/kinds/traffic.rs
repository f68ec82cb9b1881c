//! TrafficPolicy.

use schemars::JsonSchema;

use super::fault::WrittenFault;
use super::parts::{
    Duration, Empty, FinalStatus, GrpcCode, HeaderName, Method, Pace, Percent, Positive, TokenName, TrafficTarget, WorkloadChoice, rules,
};

/// Headers that belong to a connection, which no session can be named by; as `world::route::PROTECTED`.
const UNPROTECTED: &str = "self.type != 'Header' || !self.sessionName.matches('(?i)^(host|connection|keep-alive|proxy-connection|transfer-encoding|te|trailer|upgrade|content-length|x-forwarded-client-cert)$')";

/// Everything about how callers treat a destination; every block may be left out.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[
        (
            "!has(self.selector) || !has(self.selector.matchLabels) || size(self.selector.matchLabels) == 0 || !has(self.targetRefs) || size(self.targetRefs) == 0",
            "it has both targetRefs and a selector; keep one of them",
        ),
        (
            "!has(self.selector) || !has(self.selector.matchLabels) || size(self.selector.matchLabels) == 0 || !(has(self.loadBalancer) || has(self.sessionPersistence) || has(self.timeouts) || has(self.retry) || has(self.limits) || has(self.health) || has(self.faults) || has(self.priority) || has(self.upstreamProtocol))",
            "a selector chooses servers and carries rateLimits only; name the Service in targetRefs",
        ),
        (
            "!has(self.targetRefs) || self.targetRefs.all(target, target.kind == 'Service') || !(has(self.limits) || has(self.health) || has(self.upstreamProtocol) || has(self.loadBalancer) && (has(self.loadBalancer.algorithm) || has(self.loadBalancer.slowStart) || has(self.loadBalancer.locality) || has(self.loadBalancer.panicBelowHealthyPercent)) || has(self.timeouts) && (has(self.timeouts.connect) || has(self.timeouts.idle)) || has(self.retry) && has(self.retry.budget))",
            "what every rule of a destination shares is said of the Service, in a policy of its own: loadBalancer (but hash), timeouts.connect, timeouts.idle, retry.budget, limits, health, upstreamProtocol",
        ),
    ])),
)]
pub(in crate::crds) struct TrafficPolicySpec {
    /// Services, routes or Gateways it is about; with neither these nor a selector: the whole namespace.
    #[schemars(length(max = 16))]
    target_refs: Option<Vec<TrafficTarget>>,
    /// Serving workloads it is about, for rateLimits.
    selector: Option<WorkloadChoice>,
    /// How an endpoint is chosen.
    load_balancer: Option<LoadBalancer>,
    /// Calls of one session stay at one endpoint.
    session_persistence: Option<SessionPersistence>,
    /// How long things may take.
    timeouts: Option<Timeouts>,
    /// What is tried again.
    retry: Option<Retry>,
    /// How much one proxy may ask of the destination; 0: no limit.
    limits: Option<Limits>,
    /// Which endpoints are fit to be called.
    health: Option<Health>,
    /// Faults to inject; all that match apply, delays before aborts.
    #[schemars(length(max = 16))]
    faults: Option<Vec<WrittenFault>>,
    /// How many requests may come. Of a Service: counted by its servers; of a route: by its callers.
    #[schemars(length(max = 16))]
    rate_limits: Option<Vec<RateLimit>>,
    /// Who is shed first under overload.
    priority: Option<Priority>,
    /// What the destination speaks, whatever its port declares.
    upstream_protocol: Option<UpstreamProtocol>,
}

/// How an endpoint is chosen.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct LoadBalancer {
    /// Absent everywhere: LeastRequest, of two random choices.
    algorithm: Option<Algorithm>,
    /// For RingHash and Maglev: the first part that yields.
    #[schemars(length(max = 8))]
    hash: Option<Vec<HashPart>>,
    /// How long a fresh endpoint grows into its share.
    slow_start: Option<Duration>,
    /// Which endpoints are near enough.
    locality: Option<Locality>,
    /// Below this share of healthy endpoints, health is disregarded; 0: never.
    panic_below_healthy_percent: Option<Percent>,
}

/// How an endpoint is chosen.
#[derive(JsonSchema)]
enum Algorithm {
    LeastRequest,
    PeakEwma,
    RoundRobin,
    Random,
    RingHash,
    Maglev,
}

/// Exactly one thing that a call is hashed by.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("minProperties" = 1, "maxProperties" = 1))]
struct HashPart {
    /// A header's value.
    header: Option<HeaderName>,
    /// A cookie's value.
    cookie: Option<HashCookie>,
    /// The caller's address.
    source_address: Option<Empty>,
    /// A query parameter's value.
    #[schemars(length(min = 1, max = 128))]
    query: Option<String>,
}

/// A cookie; with a ttl it is made where the caller has none.
#[derive(JsonSchema)]
struct HashCookie {
    /// Its name.
    name: TokenName,
    /// How long one that is made lives.
    ttl: Option<Positive>,
}

/// Which endpoints are near enough.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Locality {
    /// What is preferred.
    prefer: Option<Prefer>,
    /// Below this share of healthy near endpoints, further ones take part.
    failover_below_healthy_percent: Option<Percent>,
}

/// What is preferred.
#[derive(JsonSchema)]
enum Prefer {
    None,
    Zone,
    Region,
}

/// Gateway API's session persistence (GEP-1619).
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[
        (UNPROTECTED, "that header belongs to the connection; use a name of its own, such as x-session"),
        ("self.type != 'Header' || !has(self.cookieConfig)", "a header has no cookieConfig"),
        (
            "!has(self.cookieConfig) || !has(self.cookieConfig.lifetimeType) || self.cookieConfig.lifetimeType != 'Permanent' || has(self.absoluteTimeout)",
            "a permanent cookie needs absoluteTimeout",
        ),
        (
            "!has(self.absoluteTimeout) || !has(self.idleTimeout) || duration(self.idleTimeout) <= duration(self.absoluteTimeout) || duration(self.idleTimeout) < duration('1s')",
            "idleTimeout is longer than absoluteTimeout",
        ),
    ])),
)]
struct SessionPersistence {
    /// What carries the session.
    #[schemars(rename = "type", extend("default" = "Cookie"))]
    kind: Option<SessionKind>,
    /// Name of the cookie or header.
    #[schemars(extend("default" = "mw-session"))]
    session_name: Option<TokenName>,
    /// When the session ends, used or not.
    absolute_timeout: Option<Positive>,
    /// When an unused session ends.
    idle_timeout: Option<Positive>,
    /// Of a cookie.
    cookie_config: Option<CookieConfig>,
}

/// What carries a session.
#[derive(JsonSchema)]
enum SessionKind {
    Cookie,
    Header,
}

/// Of a session's cookie.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct CookieConfig {
    /// Whether it outlives the browser's session.
    lifetime_type: Option<CookieLifetime>,
}

/// Whether a cookie outlives the browser's session.
#[derive(JsonSchema)]
enum CookieLifetime {
    Session,
    Permanent,
}

/// How long things may take; 0s: no limit.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Timeouts {
    /// TCP connect and TLS handshake together.
    connect: Option<Positive>,
    /// The whole exchange.
    request: Option<Duration>,
    /// One attempt.
    backend_request: Option<Duration>,
    /// An opaque connection on which nothing moves.
    idle: Option<Duration>,
    /// An exchange on which nothing moves.
    stream_idle: Option<Duration>,
    /// An exchange, however busy.
    stream: Option<Duration>,
}

/// What is tried again.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Retry {
    /// Attempts beyond the first.
    #[schemars(range(max = 10))]
    attempts: Option<u32>,
    /// One attempt, where there may be another.
    per_try_timeout: Option<Positive>,
    /// What makes another attempt.
    #[schemars(length(max = 5), extend("x-kubernetes-list-type" = "set"))]
    on: Option<Vec<RetryCause>>,
    /// For the cause RetriableStatus.
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "set"))]
    status_codes: Option<Vec<RetriedStatus>>,
    /// For the cause GrpcStatus.
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "set"))]
    grpc_statuses: Option<Vec<GrpcCode>>,
    /// Waits between attempts.
    backoff: Option<Backoff>,
    /// Largest body that is kept to be sent again.
    #[schemars(range(max = 1_048_576))]
    body_buffer_bytes: Option<u32>,
    /// How many retries there may be beside the requests.
    budget: Option<Budget>,
    /// A second attempt beside a slow first one.
    hedge: Option<Hedge>,
}

/// What makes another attempt.
#[derive(JsonSchema)]
enum RetryCause {
    ConnectFailure,
    Reset,
    RefusedStream,
    RetriableStatus,
    GrpcStatus,
}

/// A status that may be tried again.
#[derive(JsonSchema)]
struct RetriedStatus(#[schemars(range(min = 400, max = 599))] u32);

/// Waits between attempts.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "!has(self.base) || !has(self.max) || duration(self.base) <= duration(self.max)",
    "base is longer than max",
)])))]
struct Backoff {
    /// The first.
    base: Option<Positive>,
    /// The longest.
    max: Option<Positive>,
}

/// How many retries there may be beside the requests.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Budget {
    /// Of the requests.
    percent: Option<Percent>,
    /// That are always allowed.
    #[schemars(range(max = 1_000_000))]
    min_per_second: Option<u32>,
}

/// A second attempt beside a slow first one.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Hedge {
    /// The latency, as a quantile of those seen, after which it starts.
    #[schemars(extend("minimum" = 0, "maximum" = 100, "exclusiveMinimum" = true, "exclusiveMaximum" = true, "default" = 95))]
    at_quantile: Option<f64>,
    /// Second attempts at most, per cent of requests.
    #[schemars(extend("default" = 5))]
    max_percent: Option<Percent>,
    /// For these methods.
    #[schemars(length(max = 9), extend("x-kubernetes-list-type" = "set", "default" = ["GET", "HEAD"]))]
    methods: Option<Vec<Method>>,
}

/// How much one proxy may ask of the destination; 0: no limit.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Limits {
    /// Connections.
    #[schemars(range(max = 10_000_000))]
    connections: Option<u32>,
    /// Requests under way.
    #[schemars(range(max = 10_000_000))]
    requests: Option<u32>,
    /// Requests that wait.
    #[schemars(range(max = 10_000_000))]
    pending: Option<u32>,
    /// How long they wait.
    pending_timeout: Option<Duration>,
    /// Requests of one connection before it is closed.
    #[schemars(range(max = 10_000_000))]
    requests_per_connection: Option<u32>,
}

/// Which endpoints are fit to be called.
#[derive(JsonSchema)]
struct Health {
    /// What traffic tells.
    outlier: Option<Outlier>,
    /// What probes tell.
    active: Option<Active>,
}

/// What traffic tells.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Outlier {
    /// Failed requests in a row that eject; 0: off.
    #[schemars(range(max = 1_000_000))]
    consecutive_errors: Option<u32>,
    /// Failed connects in a row that eject; 0: off.
    #[schemars(range(max = 1_000_000))]
    consecutive_connect_failures: Option<u32>,
    /// Lowest share of success; 0: off.
    success_rate_min_percent: Option<Percent>,
    /// How many times slower than the others' median; 0: off.
    #[schemars(
        range(min = 0, max = 1000),
        extend("x-kubernetes-validations" = rules(&[("self == 0.0 || self > 1.0", "a factor is 0 (off) or more than 1")])),
    )]
    latency_factor: Option<f64>,
    /// How often rates are judged.
    interval: Option<Pace>,
    /// How long the first ejection lasts.
    eject_for: Option<Pace>,
    /// Largest ejected share.
    max_ejected_percent: Option<Percent>,
}

/// What probes tell.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[(
        "(has(self.http) ? 1 : 0) + (has(self.grpc) ? 1 : 0) + (has(self.tcp) ? 1 : 0) == 1",
        "a probe is exactly one of http, grpc and tcp",
    )])),
)]
struct Active {
    /// A request.
    http: Option<HttpCheck>,
    /// gRPC's health protocol.
    grpc: Option<GrpcCheck>,
    /// A connection.
    tcp: Option<Empty>,
    /// Between two probes.
    #[schemars(extend("default" = "5s"))]
    interval: Option<Pace>,
    /// For one probe.
    #[schemars(extend("default" = "1s"))]
    timeout: Option<Pace>,
    /// Successes in a row that make it healthy.
    #[schemars(range(min = 1, max = 1000), extend("default" = 2))]
    healthy_after: Option<u32>,
    /// Failures in a row that make it unhealthy.
    #[schemars(range(min = 1, max = 1000), extend("default" = 3))]
    unhealthy_after: Option<u32>,
}

/// A request.
#[derive(JsonSchema)]
struct HttpCheck {
    /// Path and query.
    #[schemars(length(max = 1024), regex(pattern = "^/[^#\\s]*$"), extend("default" = "/"))]
    path: Option<String>,
    /// Statuses that are a success.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "set", "default" = [200]))]
    expect: Option<Vec<FinalStatus>>,
}

/// gRPC's health protocol.
#[derive(JsonSchema)]
struct GrpcCheck {
    /// The service asked for; empty: the server as a whole.
    #[schemars(length(max = 1024))]
    service: Option<String>,
}

/// How many requests may come.
#[derive(JsonSchema)]
struct RateLimit {
    /// So many,
    #[schemars(range(min = 1, max = 1_000_000_000))]
    requests: u32,
    /// in this time,
    #[schemars(extend("x-kubernetes-validations" = rules(&[(
        "duration(self) > duration('0s') && duration(self) <= duration('24h')",
        "it is no time, or longer than a day",
    )])))]
    per: Duration,
    /// and so many more at once.
    #[schemars(range(max = 1_000_000_000), extend("default" = 0))]
    burst: Option<u32>,
    /// What is counted apart; none: one bucket per proxy.
    #[schemars(length(max = 8))]
    key: Option<Vec<LimitPart>>,
}

/// Exactly one thing that requests are told apart by.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("minProperties" = 1, "maxProperties" = 1))]
struct LimitPart {
    /// The caller's identity.
    source_identity: Option<Empty>,
    /// A header's value.
    header: Option<HeaderName>,
}

/// Who is shed first under overload.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "!has(self.default) || self.default in self.classes",
    "default is none of the classes",
)])))]
struct Priority {
    /// The header that says the class.
    header: HeaderName,
    /// The classes, the highest first.
    #[schemars(length(min = 2, max = 16), extend("x-kubernetes-list-type" = "set"))]
    classes: Vec<Class>,
    /// The class of who says nothing; absent: the lowest.
    #[schemars(length(max = 64))]
    default: Option<String>,
    /// Who goes first.
    shed: Option<Shed>,
}

/// A class's name.
#[derive(JsonSchema)]
struct Class(#[schemars(regex(pattern = "^[!-~]+$"), length(max = 64))] String);

/// Who goes first.
#[derive(JsonSchema)]
enum Shed {
    LowestFirst,
}

/// What a destination is taken to speak.
#[derive(JsonSchema)]
enum UpstreamProtocol {
    Auto,
    Http1,
    Http2,
    Tcp,
}
