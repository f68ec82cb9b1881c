//! `meshwright install`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use proto::identity::Identity;

use crate::duration;
use crate::install::apply::{self, ClusterArgs};
use crate::install::{FailurePolicy, REPLICAS_MAX, Wishes, objects};
use crate::output::{self, Manifests};

/// Arguments of `meshwright install`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshwright install --image registry.example/meshwright:1.0 | kubectl apply --server-side -f -\n  meshwright install --image registry.example/meshwright:1.0 --apply"
)]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    wishes: WishArgs,
    /// Apply it to the cluster instead of printing it, and wait until the control plane runs
    #[arg(long, conflicts_with = "output")]
    apply: bool,
    /// Take over fields that somebody else has set
    #[arg(long, requires = "apply")]
    force_conflicts: bool,
    /// How long to wait for the control plane
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration::positive, requires = "apply")]
    timeout: Duration,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Manifests,
}

/// What an installation is told.
#[derive(Debug, Args)]
pub(crate) struct WishArgs {
    /// The image that holds `meshwright` [default: meshwright:VERSION]
    #[arg(long)]
    image: Option<String>,
    /// Replicas of the control plane: one serves, the others stand by
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=i64::from(REPLICAS_MAX)))]
    replicas: u32,
    /// SPIFFE trust domain of all identities, which cannot be changed without a moment of distrust later [default: cluster.local]
    #[arg(long, value_name = "NAME", value_parser = trust_domain)]
    trust_domain: Option<String>,
    /// What becomes of new pods of the mesh while the webhook does not answer
    #[arg(long, value_enum, default_value_t = FailurePolicy::Fail)]
    failure_policy: FailurePolicy,
    /// Secret with an authority of your own: tls.crt (an intermediate, and those above it), tls.key, ca.crt (the root)
    #[arg(long, value_name = "NAME")]
    ca_secret: Option<String>,
}

impl WishArgs {
    pub(crate) fn wishes(self) -> Wishes {
        let defaults = Wishes::default();
        Wishes {
            image: self.image.unwrap_or(defaults.image),
            replicas: self.replicas,
            trust_domain: self.trust_domain,
            failure_policy: self.failure_policy,
            ca_secret: self.ca_secret,
        }
    }
}

fn trust_domain(text: &str) -> Result<String, String> {
    match Identity::new(text, "a", "a") {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{}; write for example mesh.example.com", error.why)),
    }
}

pub(crate) fn run(args: InstallArgs) -> anyhow::Result<ExitCode> {
    let objects = objects(&args.wishes.wishes());
    if !args.apply {
        output::print(&args.output.text(&objects)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::block_on(apply::install(&objects, &args.cluster, args.force_conflicts, args.timeout))?;
    Ok(ExitCode::SUCCESS)
}
