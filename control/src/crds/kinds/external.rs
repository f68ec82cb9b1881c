//! ExternalAuth: a service that says whether a request may go on.

use schemars::JsonSchema;

use super::edge::LOCKED;
use super::limits::EdgeLimitPart;
use super::parts::{Duration, EdgeTarget, HeaderName, OnError, Wait, rules};

/// Who is asked, and how. Without targetRefs: all routes of the namespace; in the root namespace: the mesh.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[
        LOCKED,
        ("!has(self.http) || !has(self.protocol) || self.protocol == 'Http'", "http is for protocol Http"),
    ])),
)]
pub(in crate::crds) struct ExternalAuthSpec {
    /// Gateways and routes it is about.
    #[schemars(length(max = 16))]
    target_refs: Option<Vec<EdgeTarget>>,
    /// What it sets cannot be changed below.
    locked: Option<bool>,
    /// The service; in another namespace a ReferenceGrant lets it be referred to.
    backend_ref: Option<ServiceRef>,
    /// Grpc: Envoy's ext_authz v3; Http: plain HTTP, where 200 lets a request on. Default: Grpc.
    protocol: Option<CheckProtocol>,
    /// How it is asked by HTTP.
    http: Option<HttpCheck>,
    /// How much of a body it is shown.
    forward_body: Option<ForwardBody>,
    /// How long it is waited for, up to 60s. Default: 500ms.
    timeout: Option<Wait>,
    /// A condition in CEL: when it is asked. Default: always.
    #[schemars(length(min = 1, max = 4096))]
    when: Option<String>,
    /// It is asked, and its word counts for nothing.
    dry_run: Option<bool>,
    /// How long its word counts.
    cache: Option<VerdictCache>,
    /// Where it does not answer. Deny: 503; Allow: requests go on, marked x-meshwright-unchecked. Default: Deny.
    on_error: Option<OnError>,
}

/// A port of a Service.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "has(self.port) || has(self.group) && self.group != '' || has(self.kind) && self.kind != 'Service'",
    "a reference to a Service needs a port",
)])))]
pub(super) struct ServiceRef {
    /// The kind's API group.
    group: Option<String>,
    /// The kind; default Service.
    kind: Option<String>,
    /// Its namespace; default the object's own.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    namespace: Option<String>,
    /// Its name.
    name: String,
    /// Its port.
    port: Option<super::parts::Port>,
}

/// How a service is asked.
#[derive(JsonSchema)]
enum CheckProtocol {
    Grpc,
    Http,
}

/// How a service is asked by HTTP.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct HttpCheck {
    /// What stands before the request's own path.
    #[schemars(length(max = 1024), regex(pattern = "^/[!-~]*$"), extend("x-kubernetes-validations" = rules(&[
        ("!self.contains('?') && !self.contains('#') && !self.contains('%')", "a path without ?, # and %"),
    ])))]
    path: Option<String>,
    /// Headers that it is shown, beside Authorization.
    #[schemars(length(max = 64))]
    allowed_request_headers: Option<Vec<HeaderName>>,
    /// Headers of its answer that are set on what is forwarded, or that the client sees of another answer than 200.
    #[schemars(length(max = 64))]
    allowed_response_headers: Option<Vec<HeaderName>>,
}

/// How much of a body a service is shown.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct ForwardBody {
    /// At most; 0: nothing.
    #[schemars(range(min = 0, max = 1_048_576))]
    max_bytes: Option<u32>,
    /// Of a longer one the beginning will do; else such a request is answered 413.
    partial: Option<bool>,
}

/// How long a service's word counts, and for whom.
#[derive(JsonSchema)]
struct VerdictCache {
    /// At most 1h; 0s: not at all.
    #[schemars(extend(
        "x-kubernetes-validations" = rules(&[("duration(self) <= duration('1h')", "it is longer than an hour")]),
    ))]
    ttl: Option<Duration>,
    /// All parts together are the key. Default: the header authorization.
    #[schemars(length(min = 1, max = 8))]
    key: Option<Vec<EdgeLimitPart>>,
    /// How many are remembered. Default: 10000.
    #[schemars(range(min = 2, max = 100_000))]
    entries: Option<u32>,
}
