//! Who the control plane is at the API server, and what it may: each right is one that its code uses.

use control::app::{BOOK, LEASE, SAFE};
use proto::annotations::{CA_CONFIG_MAP, ROOT_NAMESPACE};
use proto::identity::CONTROL_ACCOUNT;
use serde_json::{Value, json};

use super::{GATEWAY_API, NAME, admission, cluster_wide, named};

/// Those of them that have no status of ours.
const WITHOUT_STATUS: [&str; 1] = ["referencegrants"];

pub(super) fn objects() -> Vec<Value> {
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named(CONTROL_ACCOUNT), "automountServiceAccountToken": false}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": cluster_wide(NAME), "rules": everywhere()}),
        bound("ClusterRoleBinding", "ClusterRole", cluster_wide(NAME)),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": named(NAME), "rules": at_home()}),
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
    let (watched, read) = (["list", "watch"], ["get", "list", "watch"]);
    let with_status = GATEWAY_API.iter().filter(|plural| !WITHOUT_STATUS.contains(plural));
    let statuses: Vec<String> = with_status.map(|plural| format!("{plural}/status")).collect();
    let ours = control::crds::DEFINITIONS.map(|definition| definition.plural);
    let our_statuses = ours.map(|plural| format!("{plural}/status"));
    let webhooks = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"];
    vec![
        // What the world is made of; a pod is looked at again when a token is bound to it.
        rule("", &["namespaces", "nodes", "serviceaccounts", "services"], &watched),
        rule("", &["pods"], &read),
        rule("discovery.k8s.io", &["endpointslices"], &watched),
        // Before a status is written, the object is read again.
        rule("gateway.networking.k8s.io", &GATEWAY_API, &read),
        rule("gateway.networking.k8s.io", &statuses.iter().map(String::as_str).collect::<Vec<_>>(), &["patch"]),
        // Of the experimental channel, which few clusters have.
        rule("gateway.networking.x-k8s.io", &["xbackends"], &read),
        rule("gateway.networking.x-k8s.io", &["xbackends/status"], &["patch"]),
        rule("meshwright.dev", &ours, &read),
        rule("meshwright.dev", &our_statuses.each_ref().map(String::as_str), &["patch"]),
        // Roots and certificates that policies and Gateways refer to: watched one by one, by name, but which ones only those objects know.
        rule("", &["configmaps", "secrets"], &watched),
        // Of which version Gateway API is.
        json!({
            "apiGroups": ["apiextensions.k8s.io"],
            "resources": ["customresourcedefinitions"],
            "resourceNames": ["gatewayclasses.gateway.networking.k8s.io"],
            "verbs": ["get"],
        }),
        // Whose a pod's token is.
        rule("authentication.k8s.io", &["tokenreviews"], &["create"]),
        // The roots that pods believe at their first contact, in each namespace. What is made has no name yet that RBAC knew.
        rule("", &["configmaps"], &["create"]),
        json!({"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [CA_CONFIG_MAP], "verbs": ["patch"]}),
        // `caBundle`, when the webhook's authority changes, and configurations that somebody has deleted, which go with this role.
        rule("admissionregistration.k8s.io", &webhooks, &["list", "watch", "create"]),
        json!({
            "apiGroups": ["rbac.authorization.k8s.io"],
            "resources": ["clusterroles"],
            "resourceNames": [NAME],
            "verbs": ["get"],
        }),
        json!({
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": webhooks,
            "resourceNames": [admission::INJECTOR, admission::ANALYZER],
            "verbs": ["patch"],
        }),
    ]
}

/// What outlives a replica. What is made has no name yet that RBAC knew.
fn at_home() -> Vec<Value> {
    let kept = |group: &str, resource: &str, name: &str, change: &str| {
        [
            json!({"apiGroups": [group], "resources": [resource], "verbs": ["create"]}),
            json!({"apiGroups": [group], "resources": [resource], "resourceNames": [name], "verbs": ["get", change]}),
        ]
    };
    let mut rules = Vec::from(kept("coordination.k8s.io", "leases", LEASE, "patch"));
    rules.extend(kept("", "configmaps", BOOK, "update"));
    // The key of sessions, and the authority's where it is the mesh's own.
    rules.extend(kept("", "secrets", SAFE, "update"));
    rules
}
