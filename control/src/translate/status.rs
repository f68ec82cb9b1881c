//! What status says of each object.

use std::collections::BTreeMap;

use serde::Serialize;

/// One condition, as Kubernetes writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// The word for programs.
    pub reason: String,
    /// The sentence for people.
    pub message: String,
    /// The generation it speaks of.
    pub observed_generation: i64,
}

/// The status of one object; empty parts are left out of its JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Conditions of the object itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Of a route: one entry per parent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<ParentStatus>,
    /// Of a Gateway: one entry per listener.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<ListenerStatus>,
    /// Of a Gateway: where it is reached.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<BTreeMap<&'static str, String>>,
    /// Of our own kinds: one entry per thing they apply to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<AncestorStatus>,
}

/// A route's standing with one parent.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// The reference, as written.
    pub parent_ref: serde_json::Value,
    /// Who says so.
    pub controller_name: &'static str,
    /// The standing.
    pub conditions: Vec<Condition>,
}

/// One listener of a Gateway.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// Kinds of routes that may attach: group and kind.
    pub supported_kinds: Vec<BTreeMap<&'static str, String>>,
    /// How many routes are attached.
    pub attached_routes: usize,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

/// An object's standing with one thing it applies to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AncestorStatus {
    /// The thing.
    pub ancestor_ref: serde_json::Value,
    /// Who says so.
    pub controller_name: &'static str,
    /// The standing.
    pub conditions: Vec<Condition>,
}
