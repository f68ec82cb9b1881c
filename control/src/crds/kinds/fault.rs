//! `faults` of a TrafficPolicy.

use schemars::JsonSchema;

use super::parts::{Duration, Empty, FinalStatus, GrpcCode, HeaderMatch, LABEL, Method, Percent, SUBDOMAIN, rules};

/// A fault, and whose requests meet it.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "has(self.delay) || has(self.abort)",
    "the fault does nothing; add delay, abort or both",
)])))]
pub(super) struct WrittenFault {
    /// Which requests.
    #[schemars(rename = "match")]
    matches: Option<FaultMatch>,
    /// Whose; none named: everybody's.
    #[schemars(length(max = 16))]
    from: Option<Vec<Caller>>,
    /// How many of them.
    #[schemars(extend("default" = 100))]
    percent: Option<Percent>,
    /// They wait.
    delay: Option<Delay>,
    /// They fail.
    abort: Option<Abort>,
}

/// Gateway API's match types; of every list one item must hold, of headers all.
#[derive(JsonSchema)]
struct FaultMatch {
    /// Headers.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    headers: Option<Vec<HeaderMatch>>,
    /// Methods.
    #[schemars(length(max = 16))]
    methods: Option<Vec<Method>>,
    /// Paths.
    #[schemars(length(max = 16))]
    paths: Option<Vec<FaultPath>>,
}

/// A path.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "has(self.type) && self.type == 'RegularExpression' || self.value.startsWith('/') && !self.value.contains('//')",
    "a path starts with `/` and has no empty element",
)])))]
struct FaultPath {
    /// How it is compared.
    #[schemars(rename = "type", extend("default" = "PathPrefix"))]
    kind: Option<FaultPathKind>,
    /// The path, or an expression for it.
    #[schemars(length(max = 4096))]
    value: String,
}

/// How a path is compared.
#[derive(JsonSchema)]
enum FaultPathKind {
    PathPrefix,
    Exact,
    RegularExpression,
}

/// A caller by its identity.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Caller {
    /// Its namespace.
    #[schemars(regex(pattern = LABEL))]
    namespace: String,
    /// Its service account; absent: any of the namespace.
    #[schemars(regex(pattern = SUBDOMAIN), length(max = 253))]
    service_account: Option<String>,
}

/// Exactly one way to wait, at most 1h.
#[derive(JsonSchema)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
struct Delay {
    /// Always the same.
    #[schemars(extend("x-kubernetes-validations" = rules(&[(
        "duration(self) > duration('0s') && duration(self) <= duration('1h')",
        "a delay lasts some time, at most 1h",
    )])))]
    fixed: Option<Duration>,
    /// Any of a range.
    uniform: Option<Uniform>,
}

/// Any time of a range.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("duration(self.min) <= duration(self.max)", "min is longer than max"),
    ("duration(self.max) > duration('0s') && duration(self.max) <= duration('1h')", "a delay lasts some time, at most 1h"),
])))]
struct Uniform {
    /// The shortest.
    min: Duration,
    /// The longest.
    max: Duration,
}

/// Exactly one way to fail.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", extend("minProperties" = 1, "maxProperties" = 1))]
struct Abort {
    /// An HTTP status.
    http_status: Option<FinalStatus>,
    /// A gRPC status.
    grpc_status: Option<GrpcCode>,
    /// The connection or stream is reset.
    reset: Option<Empty>,
}
