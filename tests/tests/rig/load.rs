//! A client under load: a pod of the mesh that calls `web` without a pause worth the name, and remembers every call that failed.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tests::kube::Cluster;

/// Every call that does not end with 200 is a fault. Half of the callers keep their connection to the sidecar, the others open one for each call.
const CALLS: &str = r#"
import http.client, json, threading, time
count, faults, lock = [0], [], threading.Lock()
def call(keeps):
    link = http.client.HTTPConnection("web", 80, timeout=20)
    while True:
        fault = None
        try:
            link.request("GET", "/")
            answer = link.getresponse()
            answer.read()
            if answer.status != 200: fault = f"{answer.status} {answer.getheader('x-meshwright-reason')}"
        except Exception as error:
            fault = repr(error)
        if fault or not keeps: link.close()
        with lock:
            count[0] += 1
            if fault: faults.append([round(time.time(), 2), fault])
        time.sleep(0.02)
for keeps in [True, True, False, False]: threading.Thread(target=call, args=[keeps], daemon=True).start()
while True:
    time.sleep(0.5)
    with lock: print(json.dumps({"calls": count[0], "faults": faults[:20]}))
"#;

/// The pod that calls.
#[derive(Debug)]
pub(crate) struct Calls<'a>(&'a Cluster);

impl<'a> Calls<'a> {
    /// Starts it in namespace `shop`, and waits for its first calls.
    pub(crate) fn start(cluster: &'a Cluster) -> anyhow::Result<Self> {
        let container = serde_json::json!({"name": "calls", "image": "python", "args": [CALLS]});
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "calls", "namespace": "shop"},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
        });
        cluster.apply(&pod.to_string())?;
        cluster.run("kubectl -n shop wait --for=condition=Ready pod/calls --timeout=60s")?;
        let calls = Self(cluster);
        cluster.until("the first call", |_| {
            let said = calls.said()?;
            ensure!(said["calls"].as_u64() > Some(0), "{said}");
            Ok(())
        })?;
        Ok(calls)
    }

    /// What it has said last.
    fn said(&self) -> anyhow::Result<Value> {
        let said = self.0.run("kubectl -n shop logs calls -c calls --tail=1")?;
        serde_json::from_str(&said).with_context(|| format!("the calls say {said:?}"))
    }

    /// How many calls there were so far, none of which has failed.
    pub(crate) fn flawless(&self) -> anyhow::Result<u64> {
        let said = self.said()?;
        ensure!(said["faults"].as_array().is_some_and(Vec::is_empty), "calls failed: {said}");
        said["calls"].as_u64().context("no count")
    }
}
