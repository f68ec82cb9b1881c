//! `docs/kubernetes.md` is what happens: the lines of its blocks marked `sh run` are run from top to bottom by a shell, and after each of
//! its sections the cluster is what the page says.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tests::kube::Cluster;

use crate::shop;

/// The lines to run, by the heading that they stand under.
fn sections(page: &str) -> Vec<(String, Vec<String>)> {
    let mut sections: Vec<(String, Vec<String>)> = Vec::new();
    let mut runs = false;
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            sections.push((heading.to_owned(), Vec::new()));
        } else if line.starts_with("```") {
            runs = line == "```sh run";
        } else if let Some((_, lines)) = sections.last_mut().filter(|_| runs) {
            lines.push(line.to_owned());
        }
    }
    sections.retain(|(_, lines)| !lines.is_empty());
    sections
}

/// Aim: every line of the page runs, in its order, in a cluster with an application that knows nothing of the mesh; and what the page
/// promises of each step holds.
#[test]
fn the_page_is_what_happens() {
    Cluster::with(|cluster| {
        cluster.gateway_api()?;
        cluster.apply(&shop::manifests("{}"))?;
        shop::rolled(cluster)?;
        let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kubernetes.md"))?;
        let mut seen = Vec::new();
        for (heading, lines) in sections(&page) {
            for line in lines {
                eprintln!("$ {line}");
                let said = cluster.run(&line)?;
                eprint!("{said}");
            }
            match heading.as_str() {
                "Install" => installed(cluster),
                "Enable a namespace" => enabled(cluster),
                "Ask the control plane" => Ok(()),
                "Disable it" => disabled(cluster),
                "Uninstall" => uninstalled(cluster),
                other => anyhow::bail!("nothing here looks at what `{other}` promises"),
            }
            .with_context(|| format!("after `{heading}`"))?;
            seen.push(heading);
        }
        ensure!(seen == ["Install", "Enable a namespace", "Ask the control plane", "Disable it", "Uninstall"], "{seen:?}");
        Ok(())
    });
}

/// The control plane runs twice, what was printed is what is there, and nobody has a sidecar yet.
fn installed(cluster: &Cluster) -> anyhow::Result<()> {
    let control = cluster.get("deployment -n meshwright-system meshwright-control")?;
    ensure!(control["status"]["availableReplicas"] == 2, "{}", control["status"]);
    // As the page says: with its namespace and its kinds there, an API server has no objection to the manifest.
    cluster.run("kubectl apply --server-side --dry-run=server --field-manager=meshwright-install -f meshwright.yaml -f crds.yaml")?;
    let changed = cluster.run("kubectl diff --server-side --field-manager=meshwright-install -f meshwright.yaml || true")?;
    // The webhooks' own bundle is the control plane's to write.
    let lines: Vec<&str> = changed.lines().filter(|line| line.starts_with('-') && !line.starts_with("---")).collect();
    ensure!(lines.is_empty(), "what is there is not what was printed:\n{changed}");
    let pods = shop::pods(cluster, "shop")?;
    ensure!(pods.len() == 3 && !pods.iter().any(shop::has_sidecar), "{pods:?}");
    Ok(())
}

/// Every pod has a native sidecar; the caller is known by its identity; and in Strict a stranger gets nothing.
fn enabled(cluster: &Cluster) -> anyhow::Result<()> {
    let pods = shop::pods(cluster, "shop")?;
    ensure!(pods.len() == 3 && pods.iter().all(shop::has_sidecar), "{pods:?}");
    let (said, answer) = shop::call(cluster, "shop", "deploy/client")?;
    ensure!(said.ok && answer["identity"] == "spiffe://cluster.local/ns/shop/sa/default", "{said:?}");
    let strict = cluster.until("Strict", |cluster| {
        let (said, answer) = shop::call(cluster, "outside", "stranger")?;
        ensure!(!said.ok && answer == Value::Null, "a stranger is answered {said:?}");
        Ok(said)
    })?;
    ensure!(strict.out.is_empty(), "{strict:?}");
    let listed = cluster.run("kubectl get meshwright -A")?;
    ensure!(listed.contains("strict"), "{listed}");
    let (said, _) = shop::call(cluster, "shop", "deploy/client")?;
    ensure!(said.ok, "{said:?}");
    Ok(())
}

/// No pod has a sidecar, and anybody may call.
fn disabled(cluster: &Cluster) -> anyhow::Result<()> {
    let pods = shop::pods(cluster, "shop")?;
    ensure!(pods.len() == 3 && !pods.iter().any(shop::has_sidecar), "{pods:?}");
    for (namespace, pod) in [("shop", "deploy/client"), ("outside", "stranger")] {
        let (said, answer) = shop::call(cluster, namespace, pod)?;
        ensure!(said.ok && answer["identity"].is_null(), "{pod}: {said:?}");
    }
    Ok(())
}

/// Nothing of ours is left but the definitions.
fn uninstalled(cluster: &Cluster) -> anyhow::Result<()> {
    let everything = "namespaces,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations,gatewayclasses,configmaps,secrets,deployments,services,pods,leases,roles,rolebindings,serviceaccounts";
    let names = cluster.run(&format!("kubectl get {everything} -A -o name"))?;
    let ours: Vec<&str> = names.lines().filter(|name| name.contains("meshwright")).collect();
    ensure!(ours.is_empty(), "left behind: {ours:?}");
    let kinds = cluster.run("kubectl get crd -o name")?;
    ensure!(kinds.contains("meshwright.dev"), "the definitions are gone, too: {kinds}");
    Ok(())
}

/// Aim: what is printed and applied with kubectl, as the page says for who keeps manifests in git, is an installation, too; and `--crds` takes
/// the definitions away.
#[test]
#[ignore = "full: another installation"]
fn the_manifest_is_an_installation() {
    Cluster::with(|cluster| {
        cluster.gateway_api()?;
        cluster.run("meshwright install --image meshwright:0.1.0 > meshwright.yaml; meshwright crds > crds.yaml")?;
        cluster.run("kubectl apply --server-side -f crds.yaml")?;
        cluster.run("kubectl apply --server-side -f meshwright.yaml")?;
        cluster.run("kubectl -n meshwright-system rollout status deployment --timeout=90s")?;
        cluster.apply(&shop::manifests("{meshwright.dev/inject: enabled}"))?;
        shop::rolled(cluster)?;
        let (said, answer) = shop::call(cluster, "shop", "deploy/client")?;
        ensure!(said.ok && answer["identity"] == "spiffe://cluster.local/ns/shop/sa/default", "{said:?}");
        let refused = cluster.shell("meshwright uninstall --apply")?;
        ensure!(!refused.ok && refused.err.contains("3 pods have sidecars"), "{refused:?}");
        cluster.run("kubectl delete namespace shop --timeout=60s")?;
        cluster.run("meshwright uninstall --crds --apply")?;
        let kinds = cluster.run("kubectl get crd -o name")?;
        ensure!(!kinds.contains("meshwright.dev") && kinds.contains("gateway.networking.k8s.io"), "{kinds}");
        Ok(())
    });
}
