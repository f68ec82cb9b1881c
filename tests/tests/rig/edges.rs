//! A Gateway with two proxies, from the manifest that users have.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use tests::kube::Cluster;

use crate::holder::asked;
use crate::shop;

const GATEWAY: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: public, namespace: shop}
spec: {gatewayClassName: meshwright, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: public, namespace: shop}
spec:
  parentRefs: [{name: public}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
"#;

/// Process ids of the Gateway's proxies as they say them in their reports, by their pods; two that both report.
fn edges(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, u64>> {
    let proxies = asked(cluster, "get proxies")?;
    let rows = proxies.as_array().into_iter().flatten().filter(|row| row["mode"] == "Edge");
    let edges: BTreeMap<String, u64> = rows
        .map(|row| {
            ensure!(row["epoch"].as_u64() > Some(0), "{row}");
            Ok((row["instance"].as_str().context("no name")?.to_owned(), row["pid"].as_u64().context("no report")?))
        })
        .collect::<Result<_, _>>()?;
    ensure!(edges.len() == 2, "{proxies}");
    Ok(edges)
}

fn programmed(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.run("kubectl -n shop wait --for=condition=Programmed gateway/public --timeout=60s").map(drop)
}

/// Aim: a Gateway is served by two pods: both are there, each with reports of its own that the other does not end; calls from outside reach
/// the mesh as the Gateway; one pod is replaced, and the Gateway stays what it is.
#[test]
#[ignore = "full: an installation and a Gateway's pods"]
fn a_gateway_has_two_proxies() {
    Cluster::with(|cluster| {
        shop::meshed(cluster)?;
        cluster.apply(GATEWAY)?;
        let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/edge.yaml"))?;
        ensure!(manifest.contains("\n  replicas: 1\n"), "the manifest says otherwise how many pods there are");
        fs::write(cluster.folder().join("work/edge.yaml"), manifest.replace("\n  replicas: 1\n", "\n  replicas: 2\n"))?;
        cluster.run("kubectl -n shop apply --server-side -f edge.yaml")?;
        cluster.run("kubectl -n shop rollout status deployment public --timeout=90s")?;
        programmed(cluster)?;
        let first = cluster.until("two proxies that report", edges)?;
        let call = |cluster: &Cluster| {
            let said = cluster.exec("outside", "stranger", "curl -sS -f -m 5 http://public.shop/")?;
            ensure!(said.ok && said.out.contains("spiffe://cluster.local/ns/shop/sa/public"), "{said:?}");
            Ok(())
        };
        for _ in 0..20 {
            cluster.until("an answer", call)?;
        }
        ensure!(edges(cluster)? == first, "{first:?} are {:?} now", edges(cluster)?);
        let (gone, _) = first.first_key_value().context("there are two")?;
        cluster.run(&format!("kubectl -n shop delete pod {gone} --timeout=60s"))?;
        let second = cluster.until("another pod in its place", |cluster| {
            let second = edges(cluster)?;
            ensure!(!second.contains_key(gone), "{second:?}");
            Ok(second)
        })?;
        ensure!(second.keys().filter(|pod| first.contains_key(*pod)).count() == 1, "{first:?}, and then {second:?}");
        programmed(cluster)?;
        cluster.until("an answer", call)
    });
}
