//! RateLimit.

use schemars::JsonSchema;

use super::edge::{LOCKED, SecretEntry};
use super::parts::{DURATION, EdgeTarget, Empty, HeaderName, LABEL, Positive, Short, rules};

/// How much may come. Objects of all places apply together. Without targetRefs: all routes of the namespace; in the root namespace: the mesh.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("x-kubernetes-validations" = rules(&[
    LOCKED,
    ("has(self.store) && has(self.store.rls) || has(self.limits) && size(self.limits) > 0 || has(self.concurrency) && size(self.concurrency) > 0 || has(self.bandwidth) && size(self.bandwidth) > 0", "it limits nothing"),
    (
        "!has(self.store) || !has(self.store.rls) || has(self.onError) && self.onError != 'Local'",
        "Local is a share of numbers, which a rate-limit service has; write onError Deny or Allow",
    ),
    (
        "!has(self.store) || !has(self.store.rls) || !has(self.limits) || self.limits.all(l, has(l.replicas) && l.replicas == 'PerProxy')",
        "a rate-limit service has the numbers of what proxies share; write replicas PerProxy",
    ),
])))]
pub(in crate::crds) struct RateLimitSpec {
    /// Gateways and routes it is about.
    #[schemars(length(max = 16))]
    target_refs: Option<Vec<EdgeTarget>>,
    /// What it sets cannot be changed below; limits never are.
    locked: Option<bool>,
    /// Whether it counts before it is known who calls.
    #[schemars(extend("default" = "AfterAuth"))]
    stage: Option<LimitStage>,
    /// All of them must allow.
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    limits: Option<Vec<EdgeLimit>>,
    /// Each route counts for itself.
    per_target: Option<bool>,
    /// How many requests may be under way at once, at each proxy.
    #[schemars(length(max = 8))]
    concurrency: Option<Vec<BusyLimit>>,
    /// How many bytes of answers may be sent in a second, by each proxy.
    #[schemars(length(max = 8))]
    bandwidth: Option<Vec<WideLimit>>,
    /// Who keeps what is counted together.
    store: Option<LimitStore>,
    /// What holds while that is away.
    #[schemars(extend("default" = "Local"))]
    on_error: Option<LimitOnError>,
    /// What clients are told beside retry-after.
    #[schemars(extend("default" = "Draft"))]
    headers: Option<LimitHeaders>,
}

/// When a limit counts.
#[derive(JsonSchema)]
enum LimitStage {
    AfterAuth,
    BeforeAuth,
}

/// What holds while the store is away.
#[derive(JsonSchema)]
enum LimitOnError {
    Local,
    Allow,
    Deny,
}

/// What clients are told.
#[derive(JsonSchema)]
enum LimitHeaders {
    Draft,
    Legacy,
    Both,
    None,
}

/// A token bucket, or a quota by the calendar.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("x-kubernetes-validations" = rules(&[
    ("has(self.quota) ? !has(self.requests) && !has(self.per) && !has(self.burst) : has(self.requests) && has(self.per)", "write either quota, or requests and per"),
])))]
struct EdgeLimit {
    /// What it has counted is kept by this name.
    #[schemars(regex(pattern = LABEL), length(min = 1, max = 63))]
    name: String,
    /// So many,
    #[schemars(range(min = 1, max = 1_000_000_000))]
    requests: Option<u32>,
    /// come back in this time,
    per: Option<Positive>,
    /// and so many may come at once; as many as come back, if nothing is said.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    burst: Option<u32>,
    /// So many in each period of the calendar.
    quota: Option<CalendarQuota>,
    /// All parts together are the key; none: one for all.
    #[schemars(length(max = 8))]
    key: Option<Vec<EdgeLimitPart>>,
    /// What becomes of a request that lacks a part of the key.
    #[schemars(extend("default" = "Shared"))]
    missing: Option<PartMissing>,
    /// CEL: which requests count.
    #[schemars(length(min = 1, max = 4096))]
    when: Option<String>,
    /// What a request takes: a number, or CEL that comes to one.
    #[schemars(extend("default" = 1, "x-kubernetes-int-or-string" = true))]
    cost: Option<serde_json::Value>,
    /// A header of the answer that says what it took in the end.
    cost_from_response: Option<CostHeader>,
    /// Whether all proxies count together.
    #[schemars(extend("default" = "Shared"))]
    replicas: Option<CountedBy>,
    /// Which answers count; there is no cache yet.
    #[schemars(extend("default" = "All"))]
    count: Option<CountedAnswers>,
    /// Counts and refuses nobody.
    dry_run: Option<bool>,
}

/// A header that says what a request took.
#[derive(JsonSchema)]
struct CostHeader {
    /// Its name.
    header: HeaderName,
}

/// How many bytes may be sent.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct WideLimit {
    /// So many in a second.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    response_bytes_per_second: u32,
    /// All parts together are the key; none: one for all.
    #[schemars(length(max = 8))]
    key: Option<Vec<EdgeLimitPart>>,
}

/// A part of the key is absent.
#[derive(JsonSchema)]
enum PartMissing {
    Shared,
    Skip,
    Deny,
}

/// Who counts together.
#[derive(JsonSchema)]
enum CountedBy {
    Shared,
    PerProxy,
}

/// Which answers count.
#[derive(JsonSchema)]
enum CountedAnswers {
    All,
}

/// So many in each period of a place's calendar.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct CalendarQuota {
    /// So many.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    requests: u32,
    /// In each.
    per: QuotaPeriod,
    /// Of the IANA database.
    #[schemars(length(min = 1, max = 64), extend("default" = "UTC"))]
    time_zone: Option<String>,
    /// The first day of a week.
    #[schemars(extend("default" = "Monday"))]
    week_start: Option<DayOfWeek>,
}

/// A period of the calendar.
#[derive(JsonSchema)]
enum QuotaPeriod {
    Hour,
    Day,
    Week,
    Month,
    Year,
}

/// A day.
#[derive(JsonSchema)]
enum DayOfWeek {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

/// Exactly one thing that requests are told apart by.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("minProperties" = 1, "maxProperties" = 1))]
pub(super) struct EdgeLimitPart {
    /// The consumer that calls, else issuer and subject of its token.
    consumer: Option<Empty>,
    /// The client's address.
    client_address: Option<AddressPart>,
    /// A header's values.
    #[schemars(length(max = 2048))]
    header: Option<HeaderName>,
    /// A claim of the token.
    claim: Option<Short>,
    /// The path, without the query.
    path: Option<Empty>,
    /// The method.
    method: Option<Empty>,
    /// An expression in CEL.
    #[schemars(length(min = 1, max = 4096))]
    cel: Option<String>,
}

/// The client's address.
#[derive(JsonSchema)]
struct AddressPart {
    /// Bits of an IPv6 address that count.
    #[schemars(rename = "ipv6Prefix", range(min = 1, max = 128), extend("default" = 64))]
    ipv6_prefix: Option<u32>,
}

/// How many requests may be under way.
#[derive(JsonSchema)]
struct BusyLimit {
    /// So many.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    requests: u32,
    /// All parts together are the key; none: one for all.
    #[schemars(length(max = 8))]
    key: Option<Vec<EdgeLimitPart>>,
    /// How many more of a key wait for their turn, ten seconds at most.
    #[schemars(range(min = 0, max = 1000), extend("default" = 0))]
    queue: Option<u32>,
}

/// Who keeps what is counted together.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[("(has(self.leases) ? 1 : 0) + (has(self.redis) ? 1 : 0) + (has(self.rls) ? 1 : 0) < 2", "one store counts, not two")])))]
struct LimitStore {
    /// The control plane.
    leases: Option<LeaseStore>,
    /// A server of the Redis protocol.
    redis: Option<RedisStore>,
    /// A rate-limit service (Envoy's protocol, v3), which has the numbers.
    rls: Option<RateServiceStore>,
}

/// A service is asked of each request.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct RateServiceStore {
    /// The Service; one of another namespace needs a ReferenceGrant.
    backend_ref: RateServiceRef,
    /// Whose limits it is asked for.
    #[schemars(length(min = 1, max = 2048))]
    domain: String,
    /// How long a request waits for it; up to 1s.
    #[schemars(extend("default" = "50ms"))]
    timeout: Option<StoreWait>,
    /// What it is asked about. One that lacks a part is left out.
    #[schemars(length(min = 1, max = 8))]
    descriptors: Vec<RateDescriptor>,
}

/// A port of a Service.
#[derive(JsonSchema)]
struct RateServiceRef {
    /// Its API group; may be left out.
    #[schemars(extend("enum" = [""]))]
    group: Option<String>,
    /// Its kind; may be left out.
    #[schemars(extend("enum" = ["Service"]))]
    kind: Option<String>,
    /// Its name.
    name: String,
    /// Its namespace; the object's where none is named.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    namespace: Option<String>,
    /// Its port.
    #[schemars(range(min = 1, max = 65535))]
    port: u16,
}

/// Names and values that are asked about together.
#[derive(JsonSchema)]
struct RateDescriptor {
    /// In their order.
    #[schemars(length(min = 1, max = 8))]
    entries: Vec<RateEntry>,
}

/// A name, and a value that is written down or found in the request.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[("has(self.value) != has(self.from)", "an entry has either value or from")])))]
struct RateEntry {
    /// The name.
    #[schemars(length(min = 1, max = 2048))]
    key: String,
    /// As it stands.
    #[schemars(length(min = 1, max = 2048))]
    value: Option<String>,
    /// As the request has it.
    from: Option<EdgeLimitPart>,
}

/// A server counts, by a script and by its own clock, and proxies take some of each key's share ahead.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("x-kubernetes-validations" = rules(&[
    ("!has(self.username) || has(self.authRef)", "a user is nobody without a password: write authRef"),
    ("has(self.mode) && self.mode != 'Single' || size(self.addresses) == 1", "a single server has one address"),
    ("!has(self.master) || has(self.mode) && self.mode == 'Sentinel'", "master is a name by which sentinels know a server"),
])))]
struct RedisStore {
    /// HOST:PORT of the server, of sentinels that watch it, or of some servers of a cluster; names are the mesh's where it has them.
    #[schemars(length(min = 1, max = 16))]
    addresses: Vec<HostPort>,
    /// What they are.
    #[schemars(extend("default" = "Single"))]
    mode: Option<RedisMode>,
    /// The name by which sentinels know the server; may be left out where they know one.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^\S+$"))]
    master: Option<String>,
    /// Each server proves itself by the name or address by which it is called, below the roots of the proxy's machine.
    tls: Option<bool>,
    /// As whom proxies speak; without it the server's default user.
    #[schemars(length(min = 1, max = 256))]
    username: Option<String>,
    /// Their password.
    auth_ref: Option<SecretEntry>,
    /// What names of keys begin with.
    #[schemars(length(max = 64), regex(pattern = "^[!-~]*$"), extend("default" = "meshwright:"))]
    key_prefix: Option<String>,
    /// How long a request waits for it; up to 1s.
    #[schemars(extend("default" = "50ms"))]
    timeout: Option<StoreWait>,
    /// Of the whole limit; 0: each request asks.
    #[schemars(range(min = 0, max = 100), extend("default" = 1))]
    ahead_percent: Option<u32>,
}

/// A host and a port; an IPv6 address in brackets.
#[derive(JsonSchema)]
pub(super) struct HostPort(
    #[schemars(regex(pattern = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[1-9][0-9]{0,4}$"), length(max = 261))] String,
);

/// Some time, up to 1s.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[("duration(self) > duration('0s') && duration(self) <= duration('1s')", "use a time above zero and up to 1s")])))]
pub(super) struct StoreWait(#[schemars(regex(pattern = DURATION), length(max = 28))] String);

/// What addresses are.
#[derive(JsonSchema)]
pub(super) enum RedisMode {
    Single,
    Sentinel,
    Cluster,
}

/// The control plane counts, and proxies take some of each key's share ahead.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct LeaseStore {
    /// Of the whole limit; 0: each request asks.
    #[schemars(range(min = 0, max = 100), extend("default" = 1))]
    ahead_percent: Option<u32>,
}
