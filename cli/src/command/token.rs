//! `meshwright token create`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use proto::mesh::TokenRequest;

use crate::client::{self, WhichMesh};
use crate::{duration, output};

/// Arguments of `meshwright token`.
#[derive(Debug, Args)]
#[command(after_help = "Example: (umask 077; meshwright token create --workload shop/catalog > token)")]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    action: TokenAction,
}

#[derive(Debug, Subcommand)]
enum TokenAction {
    /// Prints a one-time join token for one workload; it pins the root certificate's hash.
    #[command(after_help = "Example: (umask 077; meshwright token create --workload shop/catalog --life 10m > token)")]
    Create {
        /// The Workload (or Gateway) that may join with it
        #[arg(long, value_name = "NS/NAME", value_parser = workload)]
        workload: String,
        /// Only this instance of the workload
        #[arg(long)]
        instance: Option<String>,
        /// How long the token may be used; the authority's default where not given
        #[arg(long, value_name = "DURATION", value_parser = duration::positive)]
        life: Option<Duration>,
        #[command(flatten)]
        place: WhichMesh,
    },
}

/// `NS/NAME`, checked.
pub(super) fn workload(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is not of the form NAMESPACE/NAME, for example shop/catalog")),
    }
}

pub(crate) fn run(args: TokenArgs) -> anyhow::Result<ExitCode> {
    let TokenAction::Create { workload, instance, life, place } = args.action;
    output::block_on(async {
        let mut control = place.connect().await?;
        let request = TokenRequest { workload, life: life.map(duration::to_message), instance: instance.unwrap_or_default() };
        let answer = control.create_token(request).await.map_err(|status| client::refused(&status))?.into_inner();
        output::print(&answer.token)?;
        Ok(ExitCode::SUCCESS)
    })
}
