//! The application that the tests roll, kill and call: a namespace `shop` with two replicas of `web`, its Service, and a `client`; and
//! somebody outside of the mesh.

use serde_json::Value;
use tests::kube::{Cluster, Said};

/// Everything, with the labels that namespace `shop` is to have (YAML, in braces).
pub(crate) fn manifests(labels: &str) -> String {
    SHOP.replace("LABELS", labels)
}

const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: LABELS}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: meshwright:0.1.0
        args: [echo, --http, "8080"]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1}
        lifecycle: {preStop: {sleep: {seconds: 2}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: client, namespace: shop}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec: {containers: [{name: client, image: tools, args: ["trap exit TERM; sleep 100000 & wait"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: outside}
spec: {containers: [{name: stranger, image: tools, args: ["trap exit TERM; sleep 100000 & wait"]}]}
"#;

/// A meshed cluster with the shop in it, and Gateway API.
pub(crate) fn meshed(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.gateway_api()?;
    cluster.run("meshwright install --image meshwright:0.1.0 --apply")?;
    cluster.apply(&manifests("{meshwright.dev/inject: enabled}"))?;
    rolled(cluster)
}

/// Waits until the shop's Deployments are complete.
pub(crate) fn rolled(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.run("kubectl -n shop rollout status deployment --timeout=90s")?;
    cluster.run("kubectl -n outside wait --for=condition=Ready pod/stranger --timeout=30s").map(drop)
}

/// What `web` answers to a call from that pod (`deploy/NAME`): how it ended, and the answer.
pub(crate) fn call(cluster: &Cluster, namespace: &str, pod: &str) -> anyhow::Result<(Said, Value)> {
    let said = cluster.exec(namespace, pod, "curl -sS -f -m 5 http://web.shop/")?;
    let answer = serde_json::from_str(&said.out).unwrap_or_default();
    Ok((said, answer))
}

/// The pods of a namespace that are not ending.
pub(crate) fn pods(cluster: &Cluster, namespace: &str) -> anyhow::Result<Vec<Value>> {
    let list = cluster.get(&format!("pods -n {namespace}"))?;
    let all = list["items"].as_array().cloned().unwrap_or_default();
    Ok(all.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect())
}

/// Whether a pod has our sidecar as a native one, ready.
pub(crate) fn has_sidecar(pod: &Value) -> bool {
    let declared = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    let running = pod["status"]["initContainerStatuses"].as_array().into_iter().flatten();
    declared.filter(|it| it["name"] == "meshwright-proxy" && it["restartPolicy"] == "Always").count() == 1
        && running.filter(|it| it["name"] == "meshwright-proxy" && it["ready"] == true).count() == 1
}
