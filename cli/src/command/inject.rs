//! `meshwright inject`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use injector::{Injection, SidecarSettings};
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
    /// The image that holds `meshwright`
    #[arg(long)]
    image: Option<String>,
    /// HOST:PORT of the control plane, as the pods reach it
    #[arg(long, value_name = "HOST:PORT")]
    control: Option<ControlAddress>,
    /// ConfigMap of each namespace whose key `ca.pem` holds the mesh's roots
    #[arg(long, value_name = "NAME")]
    ca_config_map: Option<String>,
}

pub(crate) fn run(args: InjectArgs) -> anyhow::Result<ExitCode> {
    let defaults = SidecarSettings::default();
    let settings = SidecarSettings {
        image: args.image.unwrap_or(defaults.image),
        control: args.control.map_or(defaults.control, |control| control.to_string()),
        ca_config_map: args.ca_config_map.unwrap_or(defaults.ca_config_map),
        ..defaults
    };
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
    }
    output::print(&injected.text)?;
    Ok(ExitCode::SUCCESS)
}
