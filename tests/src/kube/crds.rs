//! Custom resource definitions for a test's server: Gateway API's own, as its Go module brings them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::ask::{ask, eventually};
use super::build::{api_module, go_command};

/// Installs Gateway API's definitions of a channel, `standard` or `experimental`, and waits until their kinds are served.
///
/// # Errors
/// Go or the module is missing, or the server refuses one.
pub async fn gateway_api(client: &kube::Client, channel: &str) -> anyhow::Result<()> {
    let folder = tokio::task::spawn_blocking(gateway_module).await??.join("config/crd").join(channel);
    let mut texts = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "yaml") {
            texts.push(fs::read_to_string(path)?);
        }
    }
    texts.sort();
    install(client, &texts.join("\n---\n")).await
}

/// Applies every CustomResourceDefinition of a text (other kinds in it are passed over) and waits until the kinds are served.
///
/// # Errors
/// The text is no YAML, or the server refuses one.
pub async fn install(client: &kube::Client, text: &str) -> anyhow::Result<()> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).context("not YAML")?;
    let mut served = Vec::new();
    for document in documents.iter().filter(|document| document["kind"] == "CustomResourceDefinition") {
        let name = document["metadata"]["name"].as_str().context("a definition without a name")?;
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        if let Err(refusal) = ask(client, "APPLY", &format!("{path}?force=true"), document.clone()).await {
            bail!("{name}: {}", refusal.message);
        }
        served.push((path, document));
    }
    for (path, document) in served {
        eventually(client, &path, |answer| answer.as_ref().is_ok_and(is_established)).await?;
        for version in document["spec"]["versions"].as_array().into_iter().flatten().filter(|version| version["served"] == true) {
            let group = document["spec"]["group"].as_str().unwrap_or_default();
            let plural = document["spec"]["names"]["plural"].as_str().unwrap_or_default();
            let list = format!("/apis/{group}/{}/{plural}?limit=1", version["name"].as_str().unwrap_or_default());
            eventually(client, &list, Result::is_ok).await?;
        }
    }
    Ok(())
}

fn is_established(definition: &Value) -> bool {
    let conditions = definition["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Established" && condition["status"] == "True")
}

/// Where the module cache has Gateway API, in the version that `tests/kube-api` names.
pub(super) fn gateway_module() -> anyhow::Result<PathBuf> {
    let module = "sigs.k8s.io/gateway-api";
    let fetched =
        go_command(api_module(), "go").args(["mod", "download", module]).output().context("cannot run go; install Go 1.26 or newer")?;
    let found = go_command(api_module(), "go").args(["list", "-m", "-f", "{{.Dir}}", module]).output()?;
    let folder = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    if !fetched.status.success() || folder.is_empty() {
        bail!("the module {module} cannot be fetched: {}", String::from_utf8_lossy(&fetched.stderr));
    }
    Ok(folder.into())
}
