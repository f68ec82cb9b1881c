//! Kubernetes: a real API server (`tests/kube-api`), and us in front of it. Needs Go; without it these tests fail, they never skip.

#![allow(clippy::unwrap_used, reason = "a test stops where its ground gives way")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "real processes run by the machine's own clock and sockets")]

#[path = "kube/acme.rs"]
mod acme;
#[path = "kube/canary.rs"]
mod canary;
#[path = "kube/faults.rs"]
mod faults;
#[path = "kube/gateway.rs"]
mod gateway;
#[path = "kube/ground.rs"]
mod ground;
#[path = "kube/repaired.rs"]
mod repaired;
#[path = "kube/rights.rs"]
mod rights;
#[path = "kube/webhooks.rs"]
mod webhooks;

use serde_json::{Value, json};
use tests::kube::{ask, eventually};

/// A namespace of a test's own, made now, with the account that a controller gives it.
async fn namespace(client: &kube::Client, name: &str) {
    ask(client, "POST", "/api/v1/namespaces", json!({"metadata": {"name": name}})).await.unwrap();
    eventually(client, &format!("/api/v1/namespaces/{name}/serviceaccounts/default"), Result::is_ok).await.unwrap();
    eventually(client, &format!("/api/v1/namespaces/{name}/configmaps/kube-root-ca.crt"), Result::is_ok).await.unwrap();
}

/// The least that is a pod.
fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"containers": [{"name": "main", "image": "echo:1"}]}})
}
