//! Kinds that say what holds at Gateways.

use std::collections::BTreeMap;

use schemars::JsonSchema;

use super::parts::{Empty, HeaderName, LABEL, Positive, Short, rules};

/// Whose keys open a route. Without targetRefs: all routes of the namespace; in the root namespace: the mesh.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[LOCKED])),
)]
pub(in crate::crds) struct ApiKeyAuthSpec {
    /// Gateways and routes it is about.
    #[schemars(length(max = 16))]
    target_refs: Option<Vec<GuardTarget>>,
    /// What it sets cannot be changed below.
    locked: Option<bool>,
    /// Whether a request without any credential is let through.
    mode: Option<Mode>,
    /// Where keys stand; the first place that has one counts. Default: x-api-key, then Authorization: Bearer.
    #[schemars(length(min = 1, max = 16))]
    from: Option<Vec<CredentialPlace>>,
    /// Whose keys count.
    consumers: Option<ConsumerChoice>,
    /// What a key must be good for.
    #[schemars(length(max = 16))]
    scopes: Option<Vec<Short>>,
    /// What the backend sees.
    forward: Option<Forward>,
}

/// What only holds for a part of a Gateway belongs to whoever wrote it.
const LOCKED: (&str, &str) = (
    "!has(self.locked) || !self.locked || !has(self.targetRefs) || self.targetRefs.all(t, t.kind != 'HTTPRoute' && t.kind != 'GRPCRoute')",
    "only what holds for a Gateway, a listener or the mesh can be locked",
);

/// Whether a credential must be shown.
#[derive(JsonSchema)]
enum Mode {
    Required,
    Optional,
}

/// What an edge object is about, by name, in its own namespace.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct GuardTarget {
    /// The kind's API group; may be left out.
    #[schemars(extend("enum" = ["gateway.networking.k8s.io"]))]
    group: Option<String>,
    /// The kind.
    kind: GuardTargetKind,
    /// The object's name.
    name: String,
    /// A route's rule or a listener, by name.
    section_name: Option<String>,
}

/// What an edge object can be about.
#[derive(JsonSchema)]
enum GuardTargetKind {
    Gateway,
    ListenerSet,
    HTTPRoute,
    GRPCRoute,
}

/// Where a credential stands.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("[has(self.header), has(self.query), has(self.cookie)].filter(x, x).size() == 1", "write one of header, query and cookie"),
    ("!has(self.prefix) || has(self.header)", "a prefix belongs to a header"),
])))]
struct CredentialPlace {
    /// A header.
    #[schemars(length(max = 2048), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    header: Option<String>,
    /// What stands before it in the header.
    #[schemars(length(max = 2048))]
    prefix: Option<String>,
    /// A parameter of the query.
    query: Option<Short>,
    /// A cookie.
    #[schemars(length(min = 1, max = 2048), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    cookie: Option<String>,
}

/// Which consumers count.
#[derive(JsonSchema)]
struct ConsumerChoice {
    /// Same: of the object's namespace; All: of others, too, where a ReferenceGrant lets them be referred to.
    #[schemars(extend("default" = "Same"))]
    namespaces: Option<Namespaces>,
    /// Of these only those with all these labels.
    selector: Option<LabelChoice>,
}

/// Where consumers may be declared.
#[derive(JsonSchema)]
enum Namespaces {
    Same,
    All,
}

/// Labels that must be there.
#[derive(JsonSchema)]
struct LabelChoice {
    /// Labels and their values.
    #[schemars(rename = "matchLabels")]
    match_labels: Option<BTreeMap<String, String>>,
}

/// What the backend sees.
#[derive(JsonSchema)]
struct Forward {
    /// Whether it sees the credential.
    credential: Option<Credential>,
    /// Headers that are filled, whatever the caller says there.
    #[schemars(length(max = 16))]
    headers: Option<Vec<FilledHeader>>,
}

/// Whether the backend sees the credential.
#[derive(JsonSchema)]
enum Credential {
    Strip,
    Keep,
}

/// A header that is filled.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[("has(self.value) != has(self.cel)", "write either value or cel")])))]
struct FilledHeader {
    /// The header.
    #[schemars(length(max = 2048))]
    name: HeaderName,
    /// What stands there.
    #[schemars(length(max = 2048))]
    value: Option<String>,
    /// An expression in CEL for it.
    #[schemars(length(min = 1, max = 4096))]
    cel: Option<String>,
}

/// Who calls from outside. Policies, logs and limits speak of it.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(in crate::crds) struct ConsumerSpec {
    /// Whose it is; default: the namespace.
    team: Option<Word>,
    /// For people.
    display_name: Option<Short>,
    /// What policies speak of it by.
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "set"))]
    groups: Option<Vec<Word>>,
    /// Further words, for expressions and keys of limits.
    #[schemars(extend("maxProperties" = 32))]
    attributes: Option<BTreeMap<String, Short>>,
    /// It may not call.
    disabled: Option<bool>,
    /// From then on it may not.
    #[schemars(extend("format" = "date-time"))]
    expires_at: Option<String>,
    /// What it shows; two at once is how one is replaced.
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    credentials: Option<Vec<ConsumerCredential>>,
}

/// 1 to 63 letters, digits, `-`, `_` and `.`.
#[derive(JsonSchema)]
struct Word(#[schemars(regex(pattern = "^[A-Za-z0-9._-]+$"), length(min = 1, max = 63))] String);

/// One credential.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[
        (
            "[has(self.apiKey), has(self.basic), has(self.jwt), has(self.certificate)].filter(x, x).size() == 1",
            "a credential is exactly one of apiKey, basic, jwt and certificate",
        ),
        (
            "!has(self.notBefore) || !has(self.expiresAt) || timestamp(self.notBefore) < timestamp(self.expiresAt)",
            "it ends before it begins",
        ),
    ])),
)]
struct ConsumerCredential {
    /// Its name.
    name: Word,
    /// Before, it does not hold.
    #[schemars(extend("format" = "date-time"))]
    not_before: Option<String>,
    /// From then on it does not hold.
    #[schemars(extend("format" = "date-time"))]
    expires_at: Option<String>,
    /// What it is good for.
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "set"))]
    scopes: Option<Vec<Short>>,
    /// A key.
    api_key: Option<KeyCredential>,
    /// A username and a password.
    basic: Option<PasswordCredential>,
    /// Tokens.
    jwt: Option<TokenCredential>,
    /// A client certificate.
    certificate: Option<CertificateCredential>,
}

/// A key: its hash, or where it stands.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[
        ("has(self.sha256) != has(self.secretRef)", "write either sha256 or secretRef"),
        ("!has(self.prefix) || has(self.sha256)", "a key in a Secret has no prefix of its own"),
    ])),
)]
struct KeyCredential {
    /// Its SHA-256 in hex.
    sha256: Option<Hash>,
    /// What of the key may be told.
    #[schemars(length(max = 16), regex(pattern = "^[A-Za-z0-9_-]*$"))]
    prefix: Option<String>,
    /// The entry of a Secret that holds it, at least 20 bytes.
    secret_ref: Option<SecretEntry>,
}

/// A SHA-256 in hex.
#[derive(JsonSchema)]
struct Hash(#[schemars(regex(pattern = "^[0-9A-Fa-f]{64}$"), length(max = 64))] String);

/// An entry of a Secret of the same namespace.
#[derive(JsonSchema)]
struct SecretEntry {
    /// The Secret.
    name: String,
    /// The entry.
    key: String,
}

/// A username, and the hash of its password.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct PasswordCredential {
    /// The username.
    #[schemars(length(min = 1, max = 2048), regex(pattern = "^[^:\\x00-\\x1f\\x7f]+$"))]
    username: String,
    /// The entry of a Secret that holds the hash: argon2id, bcrypt or scrypt.
    secret_ref: SecretEntry,
}

/// Tokens of an issuer that say this.
#[derive(JsonSchema)]
struct TokenCredential {
    /// `iss`.
    issuer: Short,
    /// Claims, each with its value.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 32))]
    claims: BTreeMap<String, Short>,
}

/// A client certificate, by one of its names or its hash.
#[derive(JsonSchema)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
struct CertificateCredential {
    /// A URI of its alternative names.
    uri: Option<Short>,
    /// A DNS name of them.
    dns: Option<Short>,
    /// The SHA-256 of its DER.
    sha256: Option<Hash>,
}

/// How much may come. Objects of all places apply together. Without targetRefs: all routes of the namespace; in the root namespace: the mesh.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("x-kubernetes-validations" = rules(&[
    LOCKED,
    ("has(self.limits) && size(self.limits) > 0 || has(self.concurrency) && size(self.concurrency) > 0 || has(self.bandwidth) && size(self.bandwidth) > 0", "it limits nothing"),
])))]
pub(in crate::crds) struct RateLimitSpec {
    /// Gateways and routes it is about.
    #[schemars(length(max = 16))]
    target_refs: Option<Vec<GuardTarget>>,
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
struct EdgeLimitPart {
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
    /// How many may wait; none yet.
    #[schemars(range(min = 0, max = 0), extend("default" = 0))]
    queue: Option<u32>,
}

/// Who keeps what is counted together.
#[derive(JsonSchema)]
struct LimitStore {
    /// The control plane.
    leases: Option<LeaseStore>,
}

/// The control plane counts, and proxies take some of each key's share ahead.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct LeaseStore {
    /// Of the whole limit; 0: each request asks.
    #[schemars(range(min = 0, max = 100), extend("default" = 1))]
    ahead_percent: Option<u32>,
}
