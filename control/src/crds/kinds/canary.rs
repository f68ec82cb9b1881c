//! Canary.

use schemars::JsonSchema;

use super::parts::{HeaderMatch, LABEL, Port, rules};

/// An address that is asked.
const URL: &str = "^https?://[^/?#]+";

/// A candidate version of a Service gets a growing part of its traffic, for as long as it does no worse than the stable one.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[
        ("has(self.steps) != has(self.continuous)", "exactly one of steps and continuous is needed"),
        ("self.stable != self.candidate", "stable and candidate are one Service; give each version a Service of its own"),
    ])),
)]
pub(in crate::crds) struct CanarySpec {
    /// The Service that is called.
    service_ref: CalledService,
    /// The Service of the version that is known to be good.
    #[schemars(regex(pattern = LABEL), length(max = 63))]
    stable: String,
    /// The Service of the version that is tried.
    #[schemars(regex(pattern = LABEL), length(max = 63))]
    candidate: String,
    /// What the candidate gets, one after the other. After the last one it has everything.
    #[schemars(length(min = 1, max = 100))]
    steps: Option<Vec<Step>>,
    /// A weight that grows by itself, in place of steps.
    continuous: Option<Continuous>,
    /// What counts as worse.
    analysis: Option<Analysis>,
    /// Who else is asked before a step is over.
    #[schemars(length(max = 8))]
    gates: Option<Vec<Gate>>,
    /// What is done when the candidate is worse.
    #[schemars(extend("default" = "Rollback"))]
    on_failure: Option<OnFailure>,
}

/// A port of a Service of the same namespace; both versions have it, too.
#[derive(JsonSchema)]
struct CalledService {
    /// The Service.
    #[schemars(regex(pattern = LABEL), length(max = 63))]
    name: String,
    /// Its port, by number.
    port: Port,
}

/// Exactly one of match, mirrorPercent and weight.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    extend("x-kubernetes-validations" = rules(&[
        (
            "[has(self.match), has(self.mirrorPercent), has(self.weight)].filter(said, said).size() == 1",
            "a step is exactly one of match, mirrorPercent and weight",
        ),
        (
            "!has(self.weight) || self.weight < 100 || !(has(self.hold) || (has(self.approve) && self.approve))",
            "at a weight of 100 nothing is left to compare with; put hold and approve into the step before",
        ),
    ])),
)]
struct Step {
    /// Requests that all of it matches go to the candidate.
    #[schemars(rename = "match")]
    matches: Option<StepMatch>,
    /// The candidate gets copies of so many requests, per cent; the stable version answers.
    #[schemars(range(min = 0.0001, max = 100))]
    mirror_percent: Option<f64>,
    /// So many requests go to the candidate, per cent.
    #[schemars(range(min = 1, max = 100))]
    weight: Option<u32>,
    /// How long it lasts at least; absent: until the evidence is enough.
    hold: Option<Hold>,
    /// Somebody has to approve what follows.
    #[schemars(extend("default" = false))]
    approve: Option<bool>,
}

/// Gateway API's match types; all must hold.
#[derive(JsonSchema)]
struct StepMatch {
    /// Headers.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    headers: Vec<HeaderMatch>,
}

/// Such as 1h30m or 90s, 1s to 720h.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "duration(self) >= duration('1s') && duration(self) <= duration('720h')",
    "no such time to wait; use 1s to 720h",
)])))]
struct Hold(#[schemars(regex(pattern = super::parts::DURATION), length(max = 28))] String);

/// Such as 10s, 1s to 60s.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "duration(self) >= duration('1s') && duration(self) <= duration('60s')",
    "no such time to wait; use 1s to 60s",
)])))]
struct Patience(#[schemars(regex(pattern = super::parts::DURATION), length(max = 28))] String);

/// A weight that grows by itself.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[("self.from <= self.to", "from is more than to; begin below the end")])))]
struct Continuous {
    /// The first weight.
    #[schemars(range(min = 1, max = 99), extend("default" = 1))]
    from: Option<u32>,
    /// The last.
    #[schemars(range(min = 1, max = 100), extend("default" = 100))]
    to: Option<u32>,
    /// By how much it grows.
    #[schemars(range(min = 1, max = 100), extend("default" = 5))]
    increment: Option<u32>,
    /// How often.
    #[schemars(extend("default" = "1m"))]
    every: Option<Hold>,
}

/// What counts as worse.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Analysis {
    /// The share of failures.
    error_rate: Option<ErrorRate>,
    /// The latency.
    latency: Option<Latency>,
    /// How sure a verdict has to be.
    #[schemars(range(min = 0.8, max = 0.9999), extend("default" = 0.99))]
    confidence: Option<f64>,
    /// Before a step is over the candidate has answered so many requests.
    #[schemars(range(min = 1, max = 1_000_000), extend("default" = 200))]
    min_requests: Option<u32>,
}

/// The share of failures.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct ErrorRate {
    /// It may be higher than the stable version's by so many points of a hundred.
    #[schemars(range(min = 0.01, max = 100))]
    max_increase_percent: f64,
}

/// The latency.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Latency {
    /// Which quantile of it, per cent.
    #[schemars(range(min = 1, max = 99.9), extend("default" = 99))]
    quantile: Option<f64>,
    /// It may be so many times the stable version's.
    #[schemars(range(min = 1.01, max = 100), extend("default" = 1.2))]
    max_ratio: Option<f64>,
}

/// Exactly one way to ask.
#[derive(JsonSchema)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
struct Gate {
    /// A web service: 2xx says yes. Asked when a step would be over otherwise.
    webhook: Option<Webhook>,
    /// A number that Prometheus has. Asked all along.
    prometheus: Option<PrometheusGate>,
}

/// A web service.
#[derive(JsonSchema)]
struct Webhook {
    /// Where it is.
    #[schemars(regex(pattern = URL), length(max = 4096))]
    url: String,
    /// How long it may take.
    #[schemars(extend("default" = "10s"))]
    timeout: Option<Patience>,
}

/// A number that Prometheus has.
#[derive(JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("has(self.min) || has(self.max)", "every number is good; say min, max or both"),
    ("!has(self.min) || !has(self.max) || self.min <= self.max", "min is more than max"),
])))]
struct PrometheusGate {
    /// Where it answers.
    #[schemars(regex(pattern = URL), length(max = 4096))]
    url: String,
    /// The query, of one number.
    #[schemars(regex(pattern = "[^ \\t\\r\\n]"), length(max = 4096))]
    query: String,
    /// The number is not below this.
    min: Option<f64>,
    /// The number is not above this.
    max: Option<f64>,
}

/// What is done when the candidate is worse.
#[derive(JsonSchema)]
enum OnFailure {
    Rollback,
    Pause,
}
