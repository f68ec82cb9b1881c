//! `meshwright inject`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use injector::settings::PullPolicy;
use injector::{Injection, KubernetesVersion, SidecarSettings};
use proxy::tls::dial::ControlAddress;

use crate::{documents, output};

/// Arguments of `meshwright inject`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: meshwright inject -f deployment.yaml | kubectl apply -f -\n  What happened to each pod is told on stderr."
)]
pub(crate) struct InjectArgs {
    /// A manifest file, a folder of them, or `-` for standard input; may be given several times
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    file: Vec<PathBuf>,
    #[command(flatten)]
    sidecar: SidecarArgs,
}

/// What `meshwright inject` and `meshwright injector` ask alike.
#[derive(Debug, Args)]
pub(crate) struct SidecarArgs {
    /// The image that holds `meshwright`
    #[arg(long)]
    image: Option<String>,
    /// When it is fetched: Always, IfNotPresent or Never; default: as Kubernetes does by itself
    #[arg(long, value_name = "POLICY")]
    pull_policy: Option<PullPolicy>,
    /// HOST:PORT of the control plane, as the pods reach it
    #[arg(long, value_name = "HOST:PORT")]
    control: Option<ControlAddress>,
    /// ConfigMap of each namespace whose key `ca.pem` holds the mesh's roots
    #[arg(long, value_name = "NAME")]
    ca_config_map: Option<String>,
    /// The cluster's version; before 1.29 the sidecar is an ordinary container
    #[arg(long, value_name = "VERSION")]
    kubernetes_version: Option<KubernetesVersion>,
}

impl SidecarArgs {
    /// Whether any of them is given.
    pub(crate) fn is_given(&self) -> bool {
        let texts = [&self.image, &self.ca_config_map];
        texts.into_iter().any(Option::is_some) || self.pull_policy.is_some() || self.control.is_some() || self.names_kubernetes()
    }

    /// Whether the flags say which Kubernetes it is.
    pub(crate) fn names_kubernetes(&self) -> bool {
        self.kubernetes_version.is_some()
    }

    pub(crate) fn settings(&self) -> SidecarSettings {
        let defaults = SidecarSettings::default();
        SidecarSettings {
            image: self.image.clone().unwrap_or(defaults.image),
            pull_policy: self.pull_policy,
            control: self.control.as_ref().map_or(defaults.control, ToString::to_string),
            ca_config_map: self.ca_config_map.clone().unwrap_or(defaults.ca_config_map),
            kubernetes: self.kubernetes_version.unwrap_or(defaults.kubernetes),
            ..defaults
        }
    }
}

pub(crate) fn run(args: InjectArgs) -> anyhow::Result<ExitCode> {
    let settings = args.sidecar.settings();
    // All documents at once: a Namespace may stand in another file than its pods.
    let mut text = String::new();
    for document in documents::read(&args.file)? {
        if !text.is_empty() && !document.text.starts_with("---") {
            text += "---\n";
        }
        text += &document.text;
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    let injected = injector::inject(&text, &settings).context("nothing was injected")?;
    for outcome in &injected.outcomes {
        let verdict = match outcome.decision {
            Injection::Inject => "gets a sidecar".to_owned(),
            Injection::Skip(why) => format!("is left alone: {why}"),
        };
        eprintln!("{} {}/{} {verdict}", outcome.kind, outcome.namespace, outcome.name);
        for warning in &outcome.warnings {
            eprintln!("  {warning}");
        }
    }
    output::print(&injected.text)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use injector::pod::add;
    use proxy::shell::settings::{Bootstrap, ProxyArgs};
    use serde_json::{Value, json};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        proxy: ProxyArgs,
    }

    /// A sidecar's environment as the kubelet would make it, as flags of the same names.
    fn started(sidecar: &Value, ca: &str) -> Bootstrap {
        let mut line = vec!["proxy".to_owned()];
        for one in sidecar["env"].as_array().unwrap() {
            let Some(name) = one["name"].as_str().unwrap().strip_prefix("MESHWRIGHT_") else { continue };
            let value = match one["value"].as_str() {
                Some(value) => value.replace("$(POD_NAMESPACE)", "shop").replace("$$(", "$("),
                None if one["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name" => "catalog-7d9f-x".to_owned(),
                None => "catalog".to_owned(),
            };
            let value = if name == "CONTROL_CA" { ca.to_owned() } else { value };
            line.push(format!("--{}={value}", name.to_lowercase().replace('_', "-")));
        }
        Line::try_parse_from(line).unwrap().proxy.bootstrap(false).unwrap()
    }

    /// Aim: what the injector says to a sidecar, the sidecar understands: each variable is one of its flags, and every probe is one that it
    /// would ask.
    #[test]
    fn the_sidecar_understands_its_environment() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, proxy::tls::testing::Authority::new("root").root_pem()).unwrap();
        let pod = json!({
            "metadata": {"annotations": {"meshwright.dev/log-level": "warn,proxy::xds=debug"}},
            "spec": {"restartPolicy": "Never", "containers": [{
                "name": "app",
                "startupProbe": {"httpGet": {"path": "/a b?c=$(x)", "port": 8443, "scheme": "HTTPS", "httpHeaders": [{"name": "Host", "value": "é"}]}},
                "readinessProbe": {"grpc": {"port": 9000, "service": "shop.Catalog"}, "timeoutSeconds": 20},
                "livenessProbe": {"tcpSocket": {"port": 8080}},
            }]},
        });
        for kubernetes in ["1.28", "1.29"] {
            let settings = SidecarSettings { kubernetes: kubernetes.parse().unwrap(), ..SidecarSettings::default() };
            let added = add(&pod, "catalog", &settings).unwrap().pod;
            let all = [&added["spec"]["initContainers"], &added["spec"]["containers"]];
            let sidecar = all.into_iter().filter_map(Value::as_array).flatten().find(|one| one["name"] == "meshwright-proxy").unwrap();
            let proxy = started(sidecar, ca.to_str().unwrap());
            assert_eq!(proxy.node.id.to_string(), "sidecar/shop/catalog-7d9f-x");
            assert_eq!((proxy.subject.workload.as_str(), proxy.subject.service_account.as_str()), ("catalog", "catalog"));
            assert_eq!((proxy.app_probes.len(), proxy.log_level.as_str()), (3, "warn,proxy::xds=debug"));
            assert_eq!(proxy.end_with_application.is_some(), kubernetes == "1.28");
            assert_eq!(proxy.spiffe.unwrap().mode, 0o666);
        }
    }
}
