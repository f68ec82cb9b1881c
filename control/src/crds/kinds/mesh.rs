//! Mesh and Telemetry.

use std::collections::BTreeMap;

use schemars::JsonSchema;

use super::external::ServiceRef;
use super::parts::{Duration, Empty, EntryPlace, Percent, TrafficTarget, WorkloadChoice, rules};

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
    ), (
        "!has(self.targetRefs) || self.targetRefs.all(target, target.kind != 'Gateway' || !has(target.sectionName) || target.sectionName == '')",
        "a proxy writes one log for all of its listeners; remove sectionName",
    ), (
        "!has(self.targetRefs) || self.targetRefs.all(target, target.kind == 'Gateway') || !(has(self.metrics) || has(self.accessLog) && (has(self.accessLog.format) || has(self.accessLog.template) || has(self.accessLog.fields) || has(self.accessLog.sinks)) || has(self.tracing) && (has(self.tracing.otlp) || has(self.tracing.zipkin) || has(self.tracing.attributes) || has(self.tracing.inferLinks)))",
        "of routes and Services only tracing.samplePercent, keepErrors, keepSlowerThan and accessLog.enabled, filter, sampleSuccessPercent can be said; say the rest of workloads or of the Gateway",
    )])),
)]
pub(in crate::crds) struct TelemetrySpec {
    /// Gateways, routes and Services that it is about, in its own namespace.
    #[schemars(length(max = 16))]
    target_refs: Option<Vec<TrafficTarget>>,
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
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[
        (
            "(has(self.format) && self.format == 'Text') == (has(self.template) && self.template != '')",
            "the format Text has a template, and no other has one",
        ),
        ("!has(self.fields) || !has(self.format) || self.format == 'Json'", "only the format Json has fields"),
    ])),
)]
struct AccessLog {
    /// Whether each exchange is logged.
    enabled: Option<bool>,
    /// Its form. Default: Json.
    format: Option<LogFormat>,
    /// One line, with fields of the log as `{name}`.
    #[schemars(length(max = 4096))]
    template: Option<String>,
    /// The fields that a line of JSON has, in that order; those within another one with a dot. Default: all.
    #[schemars(length(min = 1, max = 64))]
    fields: Option<Vec<String>>,
    /// A condition in CEL over the finished exchange: what it does not hold for is not logged.
    #[schemars(length(max = 1024))]
    filter: Option<String>,
    /// Share of the exchanges that went well that is logged; all others are. Default: 100.
    sample_success_percent: Option<Percent>,
    /// Where lines go. Default: to standard output.
    #[schemars(length(max = 8))]
    sinks: Option<Vec<LogSink>>,
}

/// Where lines of the access log go: one of these.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "[has(self.stdout), has(self.file), has(self.otlp), has(self.als)].filter(one, one).size() == 1",
    "a sink is one of stdout, file, otlp and als",
)])))]
struct LogSink {
    /// The proxy's standard output.
    stdout: Option<Empty>,
    /// A file of the proxy's own file system.
    file: Option<FileSink>,
    /// An OTLP collector, by gRPC.
    otlp: Option<OtlpSink>,
    /// A Service that takes Envoy's access log stream.
    als: Option<AlsSink>,
}

/// A file of the proxy's own file system.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct FileSink {
    /// Absolute; `{namespace}`, `{workload}` and `{instance}` stand for the proxy's own.
    #[schemars(regex(pattern = "^/(.*/)?[^/]+$"), length(max = 1024))]
    path: String,
    /// A file that would become larger is put aside first. Default: 67108864.
    #[schemars(range(min = 65_536, max = 1_099_511_627_776_u64))]
    max_bytes: Option<u64>,
    /// How many are kept that were put aside. Default: 5.
    #[schemars(range(min = 1, max = 100))]
    keep: Option<u32>,
}

/// An OTLP collector.
#[derive(JsonSchema)]
struct OtlpSink {
    /// As http://HOST:4317.
    #[schemars(regex(pattern = "^(?i:http)://[^/@?#\\s]+:[0-9]{1,5}/?$"))]
    endpoint: String,
}

/// A Service that takes Envoy's access log stream.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[(
        "(!has(self.backendRef.group) || self.backendRef.group in ['', 'core']) && (!has(self.backendRef.kind) || self.backendRef.kind == 'Service')",
        "the access log's stream goes to a Service",
    )])),
)]
struct AlsSink {
    /// The Service, of the object's own namespace; an object of the mesh's own namespace may name any.
    backend_ref: ServiceRef,
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
    /// Where they go as Zipkin's JSON, beside that or in its place.
    zipkin: Option<Zipkin>,
    /// Share of new traces that is sampled.
    sample_percent: Option<Percent>,
    /// Attributes of every span.
    attributes: Option<BTreeMap<String, String>>,
    /// Keep spans of failed requests, sampled or not. Default: false.
    keep_errors: Option<bool>,
    /// Keep spans of requests that took longer, sampled or not; 0s: none.
    keep_slower_than: Option<Duration>,
    /// Take requests without a trace for parts of the only one that the application is answering. Default: true.
    infer_links: Option<bool>,
}

/// Where spans go.
#[derive(JsonSchema)]
struct Otlp {
    /// As http://HOST:4317, with protocol Http as http://HOST:4318; or https.
    #[schemars(regex(pattern = "^(?i:https?)://[^/@?#\\s]+:[0-9]{1,5}(/[^?#\\s]*)?$"))]
    endpoint: String,
    /// How they travel. Default: Grpc.
    protocol: Option<OtlpProtocol>,
}

/// Where spans go as Zipkin's JSON.
#[derive(JsonSchema)]
struct Zipkin {
    /// As http://HOST:9411/api/v2/spans; or https.
    #[schemars(regex(pattern = "^(?i:https?)://[^/@?#\\s]+:[0-9]{1,5}/[^#\\s]+$"))]
    endpoint: String,
}

/// How spans travel.
#[derive(JsonSchema)]
enum OtlpProtocol {
    Grpc,
    Http,
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
    interval: Option<MetricsPace>,
}

/// How often metrics are sent.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "duration(self) >= duration('1s') && duration(self) <= duration('1h')", "metrics are sent every 1s to 1h",
)])))]
struct MetricsPace(#[schemars(regex(pattern = super::parts::DURATION), length(max = 28))] String);
