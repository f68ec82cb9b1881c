//! A namespace joins the mesh and leaves it under load.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests::kube::Cluster;

use crate::shop;

/// `web`, whose manifest says how it ends until it is taken out; nothing else helps a pod that has no sidecar yet.
const WEB: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: rolled}
---
apiVersion: v1
kind: Namespace
metadata: {name: callers, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: strangers}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: rolled}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: rolled}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: meshwright:0.1.0
        args: [echo, --http, "8080"]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        lifecycle: {preStop: {sleep: {seconds: 5}}}
"#;

/// Calls without a pause worth the name: two callers keep their connection, two open one for each call, and of these every fourth is a POST. A kept
/// connection that ended before a byte of an answer is no fault: every client asks again then (RFC 9110, section 9.2.2).
const CALLS: &str = r#"
import http.client, json, threading, time
said, lock = {"calls": 0, "faults": [], "identity": None}, threading.Lock()
def call(keeps):
    link, turn = http.client.HTTPConnection("web.rolled", 80, timeout=10), 0
    while True:
        turn += 1
        post, kept, fault, who = not keeps and turn % 4 == 0, link.sock is not None, None, None
        try:
            link.request("POST" if post else "GET", "/", body=b"hello" if post else None)
            answer = link.getresponse()
            body = answer.read()
            if answer.status == 200: who = json.loads(body).get("identity")
            else: fault = f"{answer.status} {answer.getheader('x-meshwright-reason')}"
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
            if not kept: fault = repr(error)
            link.close()
        except Exception as error:
            fault = repr(error)
        if fault or not keeps: link.close()
        with lock:
            said["calls"] += 1
            said["identity"] = who
            if fault and len(said["faults"]) < 20: said["faults"].append([round(time.time(), 2), fault])
        time.sleep(0.02)
for keeps in [True, True, False, False]: threading.Thread(target=call, args=[keeps], daemon=True).start()
while True:
    time.sleep(0.5)
    with lock: print(json.dumps(said))
"#;

/// A pod that calls from there.
fn caller(namespace: &str) -> String {
    let container = json!({"name": "calls", "image": "python", "args": [CALLS]});
    let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [container]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "calls", "namespace": namespace}, "spec": spec}).to_string()
}

fn said(cluster: &Cluster, namespace: &str) -> anyhow::Result<Value> {
    let said = cluster.run(&format!("kubectl -n {namespace} logs calls -c calls --tail=1"))?;
    serde_json::from_str(&said).with_context(|| format!("the calls from {namespace} say {said:?}"))
}

/// Rolls `web` once more, until the last of its former pods has gone; no call has failed since the beginning. `meshed`: its pods have sidecars then, and
/// whoever has one is known by name.
fn rolls(cluster: &Cluster, how: &str, meshed: bool) -> anyhow::Result<()> {
    let before = said(cluster, "callers")?["calls"].as_u64().context("no count")?;
    cluster.run(how)?;
    cluster.run("kubectl -n rolled rollout status deployment web --timeout=90s")?;
    cluster.until("the last of the former pods' end", |cluster| {
        let list = cluster.get("pods -n rolled")?;
        let pods = list["items"].as_array().context("no list")?;
        ensure!(pods.len() == 2 && pods.iter().all(|pod| shop::has_sidecar(pod) == meshed), "{} pods", pods.len());
        Ok(())
    })?;
    cluster.until("calls since then", |cluster| {
        for (namespace, named) in [("callers", meshed), ("strangers", false)] {
            let said = said(cluster, namespace)?;
            ensure!(said["calls"].as_u64() > Some(before + 200), "{said}");
            let name = if named { json!("spiffe://cluster.local/ns/callers/sa/default") } else { Value::Null };
            ensure!(said["identity"] == name, "{namespace}: {said}");
        }
        Ok(())
    })?;
    for namespace in ["callers", "strangers"] {
        let said = said(cluster, namespace)?;
        ensure!(said["faults"] == json!([]), "after `{how}` calls from {namespace} have failed: {said}");
        eprintln!("{} calls from {namespace}, the last after `{how}`", said["calls"]);
    }
    Ok(())
}

/// Aim: a namespace is labelled and its Deployment rolled, and the other way round, while callers with and without a sidecar go on, on kept connections
/// and on new ones: sidecars come and go, callers of the mesh are known by name in between, and not one call fails. In the mesh no manifest need
/// say how an application ends.
#[test]
#[ignore = "full: three rollouts, of which each pod takes its time to end"]
fn a_namespace_joins_and_leaves_without_a_failure() {
    Cluster::with(|cluster| {
        cluster.run("meshwright install --image meshwright:0.1.0 --apply")?;
        cluster.apply(WEB)?;
        cluster.run("kubectl -n rolled rollout status deployment web --timeout=90s")?;
        for namespace in ["callers", "strangers"] {
            cluster.apply(&caller(namespace))?;
            cluster.run(&format!("kubectl -n {namespace} wait --for=condition=Ready pod/calls --timeout=60s"))?;
        }
        cluster.until("the first calls", |cluster| {
            ["callers", "strangers"].into_iter().try_for_each(|namespace| said(cluster, namespace).map(drop))
        })?;
        cluster.run("kubectl label namespace rolled meshwright.dev/inject=enabled")?;
        rolls(cluster, "kubectl -n rolled rollout restart deployment web", true)?;
        let naive = r#"[{"op": "remove", "path": "/spec/template/spec/containers/0/lifecycle"}]"#;
        rolls(cluster, &format!("kubectl -n rolled patch deployment web --type=json -p '{naive}'"), true)?;
        cluster.run("kubectl label namespace rolled meshwright.dev/inject-")?;
        rolls(cluster, "kubectl -n rolled rollout restart deployment web", false)
    });
}
