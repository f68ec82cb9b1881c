//! What status says of an object of ours: Gateway API's `ancestors`, and conditions of the object itself.
#![allow(dead_code, reason = "they say what a schema is, and nothing else")]

use schemars::JsonSchema;

/// How the object stands.
#[derive(JsonSchema)]
pub(super) struct Standing {
    /// Of the object itself.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    conditions: Option<Vec<Condition>>,
    /// With each thing that it applies to.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    ancestors: Option<Vec<Ancestor>>,
}

/// How a Canary stands.
#[derive(JsonSchema)]
pub(super) struct CanaryState {
    /// Of the object itself.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    conditions: Option<Vec<Condition>>,
    /// Progressing, Paused, Promoted or RolledBack.
    #[schemars(length(max = 63))]
    phase: Option<String>,
    /// At which step, from 1.
    #[schemars(range(min = 0))]
    step: Option<i32>,
    /// Of how many.
    #[schemars(range(min = 0))]
    steps: Option<i32>,
    /// The candidate's share of all requests, per cent.
    #[schemars(range(min = 0, max = 100))]
    weight: Option<i32>,
}

/// How the object stands with one thing that it applies to.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Ancestor {
    /// The thing.
    ancestor_ref: AncestorRef,
    /// Who says so.
    #[schemars(length(min = 1, max = 253))]
    controller_name: String,
    /// How.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    conditions: Option<Vec<Condition>>,
}

/// A thing that objects apply to.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct AncestorRef {
    /// Its API group; empty: the core group.
    #[schemars(length(max = 253))]
    group: Option<String>,
    /// Its kind.
    #[schemars(length(max = 63))]
    kind: Option<String>,
    /// Its namespace.
    #[schemars(length(max = 253))]
    namespace: Option<String>,
    /// Its name.
    #[schemars(length(max = 253))]
    name: String,
    /// A port, rule or listener of it.
    #[schemars(length(max = 253))]
    section_name: Option<String>,
}

/// A condition, as Kubernetes writes it.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct Condition {
    /// Its type.
    #[schemars(rename = "type", length(min = 1, max = 316))]
    kind: String,
    /// Whether it holds.
    status: Truth,
    /// The word for programs.
    #[schemars(regex(pattern = "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"), length(min = 1, max = 1024))]
    reason: String,
    /// The sentence for people.
    #[schemars(length(max = 32_768))]
    message: String,
    /// When it last changed.
    #[schemars(extend("format" = "date-time"))]
    last_transition_time: String,
    /// The generation it speaks of.
    #[schemars(range(min = 0))]
    observed_generation: Option<i64>,
}

/// Whether a condition holds.
#[derive(JsonSchema)]
enum Truth {
    True,
    False,
    Unknown,
}
