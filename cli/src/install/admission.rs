//! What the API server asks before it takes an object: whether a pod gets a sidecar, and whether `analyze` has something against it.
//!
//! `caBundle` is not said here: the control plane writes it, as it holds the authority, and a later apply leaves it alone, because the
//! field is not ours.

use control::world::Kind;
use injector::decide::SYSTEM_NAMESPACES;
use proto::annotations::{ENABLED, INJECT, ROOT_NAMESPACE};
use serde_json::{Value, json};

use super::control::WEBHOOK_SERVICE;
use super::{GATEWAY_API, Wishes, cluster_wide};

/// Name of the mutating webhook configuration.
pub(crate) const INJECTOR: &str = "meshwright-injector";
/// Name of the validating one.
pub(crate) const ANALYZER: &str = "meshwright-analyzer";
/// An API server waits so long for an answer: ours takes milliseconds, and a pod's start must not hang on it.
const TIMEOUT_SECS: u32 = 5;

pub(super) fn objects(wishes: &Wishes) -> Vec<Value> {
    vec![injector(wishes), analyzer()]
}

/// The cluster's own namespaces, by the label that the API server itself puts on them: whatever fails, these go on.
fn not_ours() -> Value {
    json!({"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": SYSTEM_NAMESPACES})
}

fn client(path: &str) -> Value {
    json!({"service": {"name": WEBHOOK_SERVICE, "namespace": ROOT_NAMESPACE, "path": path, "port": 15017}})
}

/// Two entries, because selectors of a namespace and of a pod can only be joined by "and": pods of meshed namespaces that do not say no,
/// and pods of other namespaces that say yes. A pod without a label of its own in a namespace without one is never asked about.
fn injector(wishes: &Wishes) -> Value {
    let webhook = |name: &str, namespaces: Value, pods: Value| {
        json!({
            "name": name,
            "admissionReviewVersions": ["v1"],
            "clientConfig": client("/inject"),
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"], "scope": "Namespaced"}],
            "namespaceSelector": {"matchExpressions": [namespaces, not_ours()]},
            "objectSelector": {"matchExpressions": [pods]},
            "failurePolicy": wishes.failure_policy.text(),
            "matchPolicy": "Equivalent",
            // Another webhook may add containers after ours: they must come to stand behind the sidecar, too.
            "reinvocationPolicy": "IfNeeded",
            "sideEffects": "None",
            "timeoutSeconds": TIMEOUT_SECS,
        })
    };
    let says = |operator: &str| json!({"key": INJECT, "operator": operator, "values": [ENABLED]});
    let silent_or_yes = json!({"key": INJECT, "operator": "NotIn", "values": ["disabled"]});
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": cluster_wide(INJECTOR),
        "webhooks": [
            webhook("namespace.inject.meshwright.dev", says("In"), silent_or_yes),
            webhook("pod.inject.meshwright.dev", says("NotIn"), says("In")),
        ],
    })
}

/// Advice must never stand in the way of a repair: where nobody answers, objects are taken, and their status says what is wrong.
fn analyzer() -> Value {
    let rule = |group: &str, versions: &[&str], resources: &[&str]| json!({"apiGroups": [group], "apiVersions": versions, "operations": ["CREATE", "UPDATE"], "resources": resources, "scope": "*"});
    let ours = control::crds::DEFINITIONS.map(|definition| definition.plural);
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": cluster_wide(ANALYZER),
        "webhooks": [{
            "name": "analyze.meshwright.dev",
            "admissionReviewVersions": ["v1"],
            "clientConfig": client("/validate"),
            "rules": [
                rule("meshwright.dev", Kind::Mesh.versions(), &ours),
                rule("gateway.networking.k8s.io", &["*"], &GATEWAY_API),
                rule("gateway.networking.x-k8s.io", &["*"], &["xbackends"]),
            ],
            "namespaceSelector": {},
            "objectSelector": {},
            "failurePolicy": "Ignore",
            "matchPolicy": "Equivalent",
            "sideEffects": "None",
            "timeoutSeconds": TIMEOUT_SECS,
        }],
    })
}
