//! `meshwright policy`: least-privilege policies out of what was seen.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use proto::mesh::GetRequest;
use serde_json::Value;

use crate::client::{self, WhichMesh};
use crate::{duration, output};

/// Arguments of `meshwright policy`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright policy suggest -n shop > policies.yaml")]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Writes AuthorizationPolicies that allow just the calls that were seen.
    Suggest(SuggestArgs),
}

/// Arguments of `meshwright policy suggest`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: meshwright policy suggest -n shop --dry-run > policies.yaml\n  Then `meshwright apply -f policies.yaml`, and look at what the access log says would be denied."
)]
pub(crate) struct SuggestArgs {
    /// Only for the application of this workload
    workload: Option<String>,
    /// Only for workloads of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only by calls that were seen within this time; all that is remembered (eight days) where not given
    #[arg(long, value_name = "DURATION", value_parser = duration::positive)]
    since: Option<Duration>,
    /// Write policies that deny nothing, but log and count what they would
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: WhichMesh,
    /// How to print them
    #[arg(short, long, value_enum, default_value_t)]
    output: ManifestFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum ManifestFormat {
    /// Manifests, with remarks as comments
    #[default]
    Yaml,
    /// The policies and the remarks, one value
    Json,
}

pub(crate) fn run(args: PolicyArgs) -> anyhow::Result<ExitCode> {
    let PolicyCommand::Suggest(args) = args.command;
    output::block_on(async {
        let mut control = args.place.connect().await?;
        let request = GetRequest {
            kind: "suggestions".to_owned(),
            namespace: args.namespace.unwrap_or_default(),
            name: args.workload.unwrap_or_default(),
            since: args.since.map(prost_types::Duration::try_from).transpose().context("--since is too long")?,
            ..GetRequest::default()
        };
        let json = control.get(request).await.map_err(|status| client::refused(&status))?.into_inner().json;
        let mut suggestion = output::parse(&json)?;
        if args.dry_run {
            for policy in suggestion["policies"].as_array_mut().into_iter().flatten() {
                policy["object"]["spec"]["dryRun"] = true.into();
            }
        }
        match args.output {
            ManifestFormat::Json => output::print(&suggestion.to_string())?,
            ManifestFormat::Yaml => output::print(&manifests(&suggestion)?)?,
        }
        if suggestion["policies"].as_array().is_some_and(Vec::is_empty) {
            bail!("there is nothing to suggest: {}", texts(&suggestion["remarks"]).collect::<Vec<_>>().join("; "));
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Documents that `apply -f` takes, each below what is to be known of it.
fn manifests(suggestion: &Value) -> anyhow::Result<String> {
    let mut text: String = texts(&suggestion["remarks"]).map(comment).collect();
    for policy in suggestion["policies"].as_array().into_iter().flatten() {
        text += "---\n";
        text.extend(texts(&policy["remarks"]).map(comment));
        text += &serde_saphyr::to_string(&policy["object"]).context("cannot write a policy as YAML")?;
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Nothing of a remark can be read as a manifest.
fn comment(text: &str) -> String {
    text.lines().map(|line| format!("# {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Aim: what is printed can be applied as it is, and remarks stand above the policy that they are about.
    #[test]
    fn suggestions_are_manifests() {
        let policy = json!({"kind": "AuthorizationPolicy", "metadata": {"name": "store-callers"}});
        let suggestion = json!({"remarks": ["one\nkind: Mesh"], "policies": [{"object": policy, "remarks": ["two"]}]});
        let text = manifests(&suggestion).unwrap();
        assert_eq!(text, "# one\n# kind: Mesh\n---\n# two\nkind: AuthorizationPolicy\nmetadata:\n  name: store-callers\n");
    }
}
