//! What several kinds have in common.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::{Value, json};

/// Gateway API's durations (GEP-2257): up to four numbers with a unit.
pub(super) const DURATION: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
/// A header's name (RFC 9110, section 5.1).
const TOKEN: &str = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$";

/// CEL rules, each with what is said where it does not hold.
pub(super) fn rules(rules: &[(&str, &str)]) -> Value {
    rules.iter().map(|(rule, message)| json!({"rule": rule, "message": message})).collect()
}

/// Such as 1h30m or 150ms.
#[derive(JsonSchema)]
pub(super) struct Duration(#[schemars(regex(pattern = DURATION), length(max = 28))] String);

/// Such as 1h30m or 150ms, and some time.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[("duration(self) > duration('0s')", "it is no time at all; write for example 1s")])))]
pub(super) struct Positive(#[schemars(regex(pattern = DURATION), length(max = 28))] String);

/// Such as 1h30m or 150ms, at least 10ms.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[("duration(self) >= duration('10ms')", "it is too short; use at least 10ms")])))]
pub(super) struct Pace(#[schemars(regex(pattern = DURATION), length(max = 28))] String);

/// Such as 1h30m or 150ms, above 0s and up to 60s.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "duration(self) > duration('0s') && duration(self) <= duration('60s')",
    "no such time to wait; use a time above 0s and up to 60s",
)])))]
pub(super) struct Wait(#[schemars(regex(pattern = DURATION), length(max = 28))] String);

/// What becomes of a request where a service does not answer.
#[derive(JsonSchema)]
pub(super) enum OnError {
    Deny,
    Allow,
}

/// 0 to 100, fractions allowed.
#[derive(JsonSchema)]
pub(super) struct Percent(#[schemars(range(min = 0, max = 100))] f64);

/// A port.
#[derive(JsonSchema)]
pub(super) struct Port(#[schemars(range(min = 1, max = 65_535))] u32);

/// A header's name.
#[derive(JsonSchema)]
pub(super) struct HeaderName(#[schemars(regex(pattern = TOKEN))] String);

/// A token of at most 128 bytes: the name of a cookie or header.
#[derive(JsonSchema)]
pub(super) struct TokenName(#[schemars(regex(pattern = TOKEN), length(min = 1, max = 128))] String);

/// 1 to 2048 bytes.
#[derive(JsonSchema)]
pub(super) struct Short(#[schemars(length(min = 1, max = 2048))] String);

/// Nothing more is said.
#[derive(JsonSchema)]
pub(super) struct Empty {}

/// Which workloads it is about: those that have all these labels; none: its whole namespace.
#[derive(JsonSchema)]
pub(super) struct WorkloadChoice {
    /// Labels and their values.
    #[schemars(rename = "matchLabels")]
    match_labels: Option<BTreeMap<String, String>>,
}

/// What a policy is about, by name, in the policy's own namespace.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[(
        "!has(self.group) || self.group == (self.kind == 'Service' ? '' : 'gateway.networking.k8s.io')",
        "that group has no such kind; leave group out",
    )])),
)]
pub(super) struct TrafficTarget {
    /// The kind's API group; may be left out.
    #[schemars(length(max = 253))]
    group: Option<String>,
    /// The kind.
    kind: TrafficTargetKind,
    /// The object's name.
    name: String,
    /// A Service's port, a route's rule or a Gateway's listener, by name.
    section_name: Option<String>,
}

/// What callers' behaviour can be said of.
#[derive(JsonSchema)]
enum TrafficTargetKind {
    Service,
    HTTPRoute,
    GRPCRoute,
    Gateway,
}

/// What an edge judges, by name, in the policy's own namespace.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct EdgeTarget {
    /// The kind's API group; may be left out.
    #[schemars(extend("enum" = ["gateway.networking.k8s.io"]))]
    group: Option<String>,
    /// The kind.
    kind: EdgeTargetKind,
    /// The object's name.
    name: String,
    /// A route's rule or a Gateway's listener, by name.
    section_name: Option<String>,
}

/// What an edge judges.
#[derive(JsonSchema)]
enum EdgeTargetKind {
    HTTPRoute,
    GRPCRoute,
    Gateway,
    ListenerSet,
}

/// HTTP's methods, as Gateway API knows them.
#[derive(JsonSchema)]
#[schemars(rename_all = "UPPERCASE")]
#[allow(clippy::upper_case_acronyms, reason = "as HTTP writes them")]
pub(super) enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
}

/// gRPC's status codes by name.
#[derive(JsonSchema)]
#[schemars(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum GrpcCode {
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

/// A header that must be there, with that value.
#[derive(JsonSchema)]
pub(super) struct HeaderMatch {
    /// How the value is compared.
    #[schemars(rename = "type", extend("default" = "Exact"))]
    kind: Option<HeaderMatchKind>,
    /// The header's name; its case does not matter.
    name: HeaderName,
    /// The whole value, or an expression for it.
    #[schemars(length(max = 4096))]
    value: String,
}

/// How a header's value is compared.
#[derive(JsonSchema)]
enum HeaderMatchKind {
    Exact,
    RegularExpression,
}

/// A label of DNS (RFC 1123).
pub(super) const LABEL: &str = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";
/// Labels joined by dots.
pub(super) const SUBDOMAIN: &str = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?([.][a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$";

/// An entry of a ConfigMap or Secret of the same namespace.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("minProperties" = 1, "maxProperties" = 1))]
pub(super) struct EntryPlace {
    /// An entry of a ConfigMap.
    config_map_ref: Option<EntryRef>,
    /// An entry of a Secret.
    secret_ref: Option<EntryRef>,
}

/// An object and the name of one of its entries.
#[derive(JsonSchema)]
struct EntryRef {
    /// The object's name.
    name: String,
    /// The entry's name.
    key: String,
}

/// A final status.
#[derive(JsonSchema)]
pub(super) struct FinalStatus(#[schemars(range(min = 200, max = 599))] u32);
