//! `meshwright control`: the control plane and its certificate authority in one server.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use apiserver::client::{Access, connect};
use cli::plane::{means, replica};
use control::settings::ControlArgs as Flags;
use proxy::io::{Clock, Draw};
use proxy::shell::rights;
use tracing_subscriber::EnvFilter;

use crate::output;

/// Arguments of `meshwright control`.
pub(crate) type ControlArgs = Flags;

/// Threads of the control plane: it must leave the machine to the mesh.
const THREADS: usize = 2;

pub(crate) fn run(mut args: ControlArgs) -> anyhow::Result<ExitCode> {
    rights::keep_memory_private(rights::is_root() || rights::is_alone());
    if args.api_socket.is_none() {
        args.api_socket = Some(crate::state::create()?.join(crate::state::CONTROL_SOCKET));
    }
    // The client of the cluster writes a line for each failed call; whoever calls says what matters of it, once.
    let quiet = if args.log_level.contains("kube") { "" } else { ",kube_client=off" };
    let filter = EnvFilter::try_new(format!("{}{quiet}", args.log_level))
        .map_err(|error| output::usage(format!("--log-level {}: {error}; use `info`, or `control=debug`", args.log_level)))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    runtime.block_on(async {
        if args.kubernetes {
            return in_cluster(args).await;
        }
        let means = means(&args.data_dir, &args.external, Clock::System)?;
        control::app::run(args, means).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// One of several replicas of a cluster's control plane.
async fn in_cluster(args: ControlArgs) -> anyhow::Result<()> {
    let kubeconfig = args.kubeconfig.clone().or_else(|| std::env::var_os("KUBECONFIG").map(PathBuf::from));
    let client = connect(&Access { kubeconfig, context: None }, "control").await?;
    // As `meshwright install` says it to the pod; a process outside of one is in the namespace that its kubeconfig names.
    let namespace = std::env::var("POD_NAMESPACE").unwrap_or_else(|_| client.default_namespace().to_owned());
    let pod = std::env::var("POD_NAME").unwrap_or_else(|_| "control".to_owned());
    let me = format!("{pod}_{:016x}", Draw::from_entropy().next());
    let replica = replica(&args, client, &namespace, &me, Clock::System);
    control::app::run_replica(args, replica).await
}
