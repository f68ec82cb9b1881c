//! The control plane: two replicas, of which the lease's holder serves and the others stand by with all they need in memory.

use proto::annotations::ROOT_NAMESPACE;
use proto::identity::CONTROL_ACCOUNT;
use serde_json::{Value, json};

use super::{NAME, Wishes, labels, named};
use crate::state::{CONTROL_SOCKET, STATE_DIR_ENV};

/// The Service by which API servers ask.
pub(crate) const WEBHOOK_SERVICE: &str = "meshwright-webhook";
/// As the proxy's, so that one rule of a cluster speaks of both.
const UID: u32 = 1337;
const STATE_DIR: &str = "/var/lib/meshwright";
const CA_DIR: &str = "/etc/meshwright/ca";
const API_TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Life of the token by which the API server knows us; the kubelet renews it.
const API_TOKEN_SECS: u32 = 3607;
/// A holder that ends gives its lease back first.
const GRACE_SECS: u32 = 30;

pub(super) fn objects(wishes: &Wishes) -> Vec<Value> {
    vec![service(), webhook_service(), deployment(wishes), disruption(), closed(), reachable()]
}

fn selector() -> Value {
    json!({"app.kubernetes.io/name": NAME})
}

/// One name, all replicas' addresses: a replica that stands by refuses 15012 at once, and a proxy tries the next address. Whether one answers
/// admission, which is what its readiness says, is nothing to proxies.
fn service() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": named(NAME),
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": true, "selector": selector(), "ports": [port("xds", 15012, "grpc"), port("metrics", 15014, "http")]},
    })
}

/// API servers ask through an address of its own: they find no way to a Service without one. Every replica answers.
fn webhook_service() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": named(WEBHOOK_SERVICE),
        "spec": {"selector": selector(), "ports": [port("webhook", 15017, "https")]},
    })
}

fn port(name: &str, port: u16, protocol: &str) -> Value {
    json!({"name": name, "port": port, "targetPort": name, "protocol": "TCP", "appProtocol": protocol})
}

fn deployment(wishes: &Wishes) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": named(NAME),
        "spec": {
            "replicas": wishes.replicas,
            "selector": {"matchLabels": selector()},
            // A new replica stands by before an old one goes.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": labels()}, "spec": pod(wishes)},
        },
    })
}

fn pod(wishes: &Wishes) -> Value {
    let spread = |topology: &str| {
        json!({
            "maxSkew": 1,
            "topologyKey": topology,
            // One node is enough to run on.
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector()},
        })
    };
    json!({
        "serviceAccountName": CONTROL_ACCOUNT,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": GRACE_SECS,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": UID,
            "runAsGroup": UID,
            "fsGroup": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [spread("kubernetes.io/hostname"), spread("topology.kubernetes.io/zone")],
        "containers": [container(wishes)],
        "volumes": volumes(wishes),
    })
}

fn container(wishes: &Wishes) -> Value {
    let probe = |path: &str, period: u32, failures: u32| json!({"httpGet": {"path": path, "port": "metrics"}, "periodSeconds": period, "failureThreshold": failures});
    let port = |name: &str, port: u16| json!({"name": name, "containerPort": port, "protocol": "TCP"});
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut args = vec![
        "control".to_owned(),
        "--kubernetes".to_owned(),
        format!("--data-dir={STATE_DIR}"),
        format!("--api-socket={STATE_DIR}/{CONTROL_SOCKET}"),
        format!("--name={NAME}"),
        format!("--name={NAME}.{ROOT_NAMESPACE}"),
        format!("--name={NAME}.{ROOT_NAMESPACE}.svc"),
        format!("--webhook-service={ROOT_NAMESPACE}/{WEBHOOK_SERVICE}"),
        // Sidecars are of the same image.
        format!("--image={}", wishes.image),
    ];
    let mut mounts =
        vec![json!({"name": "state", "mountPath": STATE_DIR}), json!({"name": "api-token", "mountPath": API_TOKEN_DIR, "readOnly": true})];
    if wishes.ca_secret.is_some() {
        args.extend(["cert", "key", "root"].map(|part| format!("--ca-{part}={CA_DIR}/{part}.pem")));
        mounts.push(json!({"name": "ca", "mountPath": CA_DIR, "readOnly": true}));
    }
    json!({
        "name": "control",
        "image": wishes.image,
        "command": ["meshwright"],
        "args": args,
        // The last is for commands that are run in the pod: they find the control plane by it.
        "env": [
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            {"name": STATE_DIR_ENV, "value": STATE_DIR},
        ],
        "ports": [port("xds", 15012), port("metrics", 15014), port("webhook", 15017)],
        // The first lists of a large cluster take their time.
        "startupProbe": probe("/healthz/live", 1, 120),
        "livenessProbe": probe("/healthz/live", 10, 3),
        // A replica that stands by is ready when it has read everything and answers admission: a rolling update waits for it.
        "readinessProbe": {
            "httpGet": {"path": "/healthz/ready", "port": "webhook", "scheme": "HTTPS"},
            "periodSeconds": 2,
            "failureThreshold": 2,
        },
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": true,
        },
        "volumeMounts": mounts,
    })
}

fn volumes(wishes: &Wishes) -> Vec<Value> {
    let downward = json!({"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}});
    let sources = json!([
        {"serviceAccountToken": {"path": "token", "expirationSeconds": API_TOKEN_SECS}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [downward]}},
    ]);
    let mut volumes = vec![
        // Memory, so that no key ever comes to a node's disk.
        json!({"name": "state", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}),
        json!({"name": "api-token", "projected": {"sources": sources}}),
    ];
    if let Some(secret) = &wishes.ca_secret {
        // As cert-manager and `kubectl create secret tls` name them.
        let items = json!([
            {"key": "tls.crt", "path": "cert.pem"},
            {"key": "tls.key", "path": "key.pem"},
            {"key": "ca.crt", "path": "root.pem"},
        ]);
        volumes.push(json!({"name": "ca", "secret": {"secretName": secret, "defaultMode": 0o400, "items": items}}));
    }
    volumes
}

/// A drained node takes one replica at a time.
fn disruption() -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": named(NAME),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector()}},
    })
}

/// Nothing of the namespace is reached but what another policy opens. What may be called from it is left open: only the cluster knows at
/// which address and port its API server is.
fn closed() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": named("default-deny"),
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    })
}

/// xDS and certificates, metrics: for pods of every namespace. Webhooks: for anybody, because the API server calls from the network of its
/// node, which no selector knows. Each of these doors asks who is there by itself.
fn reachable() -> Value {
    let pods = json!([{"namespaceSelector": {}}]);
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": named(NAME),
        "spec": {
            "podSelector": {"matchLabels": selector()},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": pods, "ports": [{"port": 15012, "protocol": "TCP"}, {"port": 15014, "protocol": "TCP"}]},
                {"ports": [{"port": 15017, "protocol": "TCP"}]},
            ],
        },
    })
}
