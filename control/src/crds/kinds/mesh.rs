//! Mesh and Telemetry.

use std::collections::BTreeMap;

use schemars::JsonSchema;

use super::parts::{Duration, EntryPlace, GatewayTarget, Percent, WorkloadChoice, rules};

/// A SPIFFE trust domain.
const TRUST_DOMAIN: &str = "^[a-z0-9._-]+$";

/// The mesh's switches.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[(
        "!has(self.federation) || self.federation.all(other, other.trustDomain != self.trustDomain)",
        "federation names the mesh's own trust domain, for which nobody else is ever believed",
    )])),
)]
pub(in crate::crds) struct MeshSpec {
    /// SPIFFE trust domain of every identity.
    #[schemars(regex(pattern = TRUST_DOMAIN), length(max = 255), extend("default" = "cluster.local"))]
    trust_domain: Option<String>,
    /// Lives of certificates.
    certificates: Option<Certificates>,
    /// Traffic to addresses that the mesh does not know.
    #[schemars(extend("default" = "Allow"))]
    outside_mesh: Option<Outside>,
    /// Whether a proxy may start from its last good configuration; not supported by this version.
    config_cache: Option<ConfigCache>,
    /// Of all AuthorizationPolicies.
    authorization: Option<Authorization>,
    /// Other trust domains that are believed, for identities of their own only.
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["trustDomain"]))]
    federation: Option<Vec<Federated>>,
}

/// Lives of certificates.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[(
        "duration(self.leafLife) <= duration(self.intermediateLife) && duration(self.intermediateLife) <= duration(self.rootLife)",
        "a certificate would outlive its issuer: leafLife <= intermediateLife <= rootLife",
    )])),
)]
struct Certificates {
    /// Of a workload's certificate.
    #[schemars(extend("default" = "24h"))]
    leaf_life: Option<Life>,
    /// When it is renewed, per cent of its life.
    #[schemars(range(min = 1, max = 95), extend("default" = 66))]
    rotate_at_percent: Option<u32>,
    /// Of an issuing certificate.
    #[schemars(extend("default" = "2160h"))]
    intermediate_life: Option<Life>,
    /// Of a root.
    #[schemars(extend("default" = "87600h"))]
    root_life: Option<Life>,
}

/// At least 30s.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[("duration(self) >= duration('30s')", "too short; use at least 30s")])))]
struct Life(Duration);

/// Traffic to addresses that the mesh does not know.
#[derive(JsonSchema)]
enum Outside {
    Allow,
    Deny,
}

/// Whether a proxy may start from its last good configuration.
#[derive(JsonSchema)]
struct ConfigCache {
    /// Not supported by this version: only false.
    #[schemars(extend("enum" = [false]))]
    enabled: Option<bool>,
}

/// Of all AuthorizationPolicies.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Authorization {
    /// Whether every one only logs and counts.
    dry_run: Option<bool>,
}

/// Another trust domain.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Federated {
    /// Its name.
    #[schemars(regex(pattern = TRUST_DOMAIN), length(max = 255))]
    trust_domain: String,
    /// Where its roots stand, PEM.
    bundle: EntryPlace,
}

/// What proxies tell about their traffic.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[(
        "!has(self.selector) || !has(self.selector.matchLabels) || size(self.selector.matchLabels) == 0 || !has(self.targetRefs) || size(self.targetRefs) == 0",
        "it has both targetRefs and a selector; keep one of them",
    )])),
)]
pub(in crate::crds) struct TelemetrySpec {
    /// Gateways it is about, in its own namespace.
    #[schemars(length(max = 16))]
    target_refs: Option<Vec<GatewayTarget>>,
    /// Workloads it is about.
    selector: Option<WorkloadChoice>,
    /// The access log.
    access_log: Option<AccessLog>,
    /// Spans.
    tracing: Option<Tracing>,
    /// Metrics.
    metrics: Option<Metrics>,
}

/// The access log.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "(has(self.format) && self.format == 'Text') == (has(self.template) && self.template != '')",
    "the format Text has a template, and no other has one",
)])))]
struct AccessLog {
    /// Whether each exchange is logged.
    enabled: Option<bool>,
    /// Its form. Default: Json.
    format: Option<LogFormat>,
    /// One line, with fields of the log as `{name}`.
    #[schemars(length(max = 4096))]
    template: Option<String>,
}

/// The log's form.
#[derive(JsonSchema)]
enum LogFormat {
    Json,
    Combined,
    Text,
}

/// Spans.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Tracing {
    /// Where they go.
    otlp: Option<Otlp>,
    /// Share of new traces that is sampled.
    sample_percent: Option<Percent>,
    /// Attributes of every span.
    attributes: Option<BTreeMap<String, String>>,
}

/// Where spans go.
#[derive(JsonSchema)]
struct Otlp {
    /// As http://HOST:4317.
    #[schemars(regex(pattern = "^(?i:http)://([^/@?#\\s]*@)?[^/@?#\\s]+:[0-9]{1,5}/?([?][^\\s]*)?$"))]
    endpoint: String,
    /// How they travel.
    protocol: Option<OtlpProtocol>,
}

/// How spans travel.
#[derive(JsonSchema)]
enum OtlpProtocol {
    Grpc,
}

/// Metrics.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Metrics {
    /// Label sets of one proxy at most.
    #[schemars(range(min = 1, max = 1_000_000))]
    series_max: Option<u32>,
    /// Which labels metrics of traffic have.
    labels: Option<MetricLabels>,
    /// Where metrics are sent as well.
    otlp: Option<MetricsOtlp>,
}

/// Labels of metrics of traffic.
#[derive(JsonSchema)]
struct MetricLabels {
    /// Those they do without.
    #[schemars(length(max = 11))]
    drop: Option<Vec<DroppedLabel>>,
    /// Those they have in addition.
    #[schemars(length(max = 11))]
    add: Option<Vec<AddedLabel>>,
}

/// A label that metrics can do without.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
enum DroppedLabel {
    SourceNamespace,
    SourceWorkload,
    DestinationWorkload,
    Route,
    Protocol,
    GrpcCode,
    Reason,
    Mtls,
}

/// A label that metrics can have in addition.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
enum AddedLabel {
    Method,
    DestinationZone,
    Consumer,
}

/// Where metrics are sent.
#[derive(JsonSchema)]
struct MetricsOtlp {
    /// As http://HOST:4317.
    #[schemars(regex(pattern = "^(?i:http)://([^/@?#\\s]*@)?[^/@?#\\s]+:[0-9]{1,5}/?([?][^\\s]*)?$"))]
    endpoint: String,
    /// How often, 1s to 1h. Default: 10s.
    interval: Option<Duration>,
}
