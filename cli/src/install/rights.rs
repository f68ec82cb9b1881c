//! Who the control plane is at the API server, and what it may: each right is one that its code uses.

use proto::annotations::{CA_CONFIG_MAP, ROOT_NAMESPACE};
use proto::identity::CONTROL_ACCOUNT;
use serde_json::{Value, json};

use super::{NAME, Wishes, admission, cluster_wide, named};

/// The lease by which replicas agree who serves.
pub(crate) const LEASE: &str = "meshwright-control";
/// The Secret with the keys of the mesh's own authority.
pub(crate) const CA_SECRET: &str = "meshwright-ca";
/// The ConfigMap with the epoch's number and the times of first acceptance.
pub(crate) const BOOK: &str = "meshwright-book";

/// Kinds of Gateway API that the world reads.
const GATEWAY_API: [&str; 9] = [
    "backendtlspolicies",
    "gatewayclasses",
    "gateways",
    "grpcroutes",
    "httproutes",
    "listenersets",
    "referencegrants",
    "tcproutes",
    "tlsroutes",
];
/// Those of them that have no status of ours.
const WITHOUT_STATUS: [&str; 1] = ["referencegrants"];

pub(super) fn objects(wishes: &Wishes) -> Vec<Value> {
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named(CONTROL_ACCOUNT), "automountServiceAccountToken": false}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": cluster_wide(NAME), "rules": everywhere()}),
        bound("ClusterRoleBinding", "ClusterRole", cluster_wide(NAME)),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": named(NAME), "rules": at_home(wishes)}),
        bound("RoleBinding", "Role", named(NAME)),
    ]
}

fn bound(kind: &str, role: &str, metadata: Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": NAME},
        "subjects": [{"kind": "ServiceAccount", "name": CONTROL_ACCOUNT, "namespace": ROOT_NAMESPACE}],
    })
}

fn everywhere() -> Vec<Value> {
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    let watched = ["get", "list", "watch"];
    let with_status = GATEWAY_API.iter().filter(|plural| !WITHOUT_STATUS.contains(plural));
    let statuses: Vec<String> = with_status.map(|plural| format!("{plural}/status")).collect();
    let ours = control::crds::DEFINITIONS.map(|definition| definition.plural);
    let our_statuses = ours.map(|plural| format!("{plural}/status"));
    let webhooks = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"];
    vec![
        // What the world is made of.
        rule("", &["namespaces", "nodes", "pods", "serviceaccounts", "services"], &watched),
        rule("discovery.k8s.io", &["endpointslices"], &watched),
        rule("gateway.networking.k8s.io", &GATEWAY_API, &watched),
        rule("meshwright.dev", &ours, &watched),
        // Roots and certificates that policies and Gateways refer to; which ones, only those objects know. Read one by one, by name.
        rule("", &["configmaps", "secrets"], &watched),
        // Conditions: read, and written back with the version that was read.
        rule("gateway.networking.k8s.io", &statuses.iter().map(String::as_str).collect::<Vec<_>>(), &["get", "patch", "update"]),
        rule("meshwright.dev", &our_statuses.each_ref().map(String::as_str), &["get", "patch", "update"]),
        // Whose a pod's token is.
        rule("authentication.k8s.io", &["tokenreviews"], &["create"]),
        // The roots that pods believe at their first contact, in each namespace of the mesh. What is made has no name yet that RBAC knew.
        rule("", &["configmaps"], &["create"]),
        json!({"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [CA_CONFIG_MAP], "verbs": ["patch", "update"]}),
        // `caBundle`, when the webhook's authority changes.
        json!({
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": webhooks,
            "resourceNames": [admission::INJECTOR, admission::ANALYZER],
            "verbs": ["get", "patch", "update"],
        }),
        rule("admissionregistration.k8s.io", &webhooks, &["list", "watch"]),
    ]
}

/// What outlives a replica. What is made has no name yet that RBAC knew.
fn at_home(wishes: &Wishes) -> Vec<Value> {
    let kept = |group: &str, resource: &str, name: &str| {
        [
            json!({"apiGroups": [group], "resources": [resource], "verbs": ["create"]}),
            json!({"apiGroups": [group], "resources": [resource], "resourceNames": [name], "verbs": ["get", "patch", "update"]}),
        ]
    };
    let mut rules = Vec::from(kept("coordination.k8s.io", "leases", LEASE));
    rules.extend(kept("", "configmaps", BOOK));
    // An authority of the user's own comes as files; without one the keys are kept in a Secret.
    if wishes.ca_secret.is_none() {
        rules.extend(kept("", "secrets", CA_SECRET));
    }
    rules
}
