//! Jobs in the mesh.

use anyhow::ensure;
use tests::kube::Cluster;

const JOB: &str = r#"
apiVersion: batch/v1
kind: Job
metadata: {name: calls, namespace: shop}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      initContainers: [{name: before, image: tools, args: ["curl -sS -f -m 10 http://web.shop/"]}]
      containers: [{name: main, image: tools, args: ["curl -sS -f -m 10 http://web/"]}]
"#;

/// Aim: a Job's init container and its own one call a Service through the mesh, known by their identity, and the Job is complete when they
/// have ended, although its pod has a sidecar that never ends by itself.
pub(crate) fn a_job_completes(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(JOB)?;
    cluster.run("kubectl -n shop wait --for=condition=Complete job/calls --timeout=60s")?;
    let list = cluster.get("pods -n shop -l batch.kubernetes.io/job-name=calls")?;
    let pod = &list["items"][0];
    ensure!(pod["status"]["phase"] == "Succeeded", "{}", pod["status"]);
    let declared = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    ensure!(declared.filter(|it| it["name"] == "meshwright-proxy").count() == 1, "{}", pod["spec"]);
    for container in ["before", "main"] {
        let said = cluster.run(&format!("kubectl -n shop logs job/calls -c {container}"))?;
        ensure!(said.contains("spiffe://cluster.local/ns/shop/sa/default"), "{container} says {said}");
    }
    cluster.run("kubectl -n shop delete job calls").map(drop)
}
