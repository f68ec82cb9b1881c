//! `meshwright control`: the control plane and its certificate authority in one server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use apiserver::client::{Access, connect};
use clap::Args;
use cli::hooks::{Hooks, LINGER};
use cli::plane::{means, replica};
use control::app::{Means, Replica};
use control::settings::ControlArgs as Flags;
use control::traces::Traces;
use injector::bundle::HookService;
use proxy::io::{Clock, Draw};
use proxy::shell::rights;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::inject::SidecarArgs;
use super::injector::service;
use crate::output;

/// Arguments of `meshwright control`.
#[derive(Debug, Args)]
pub(crate) struct ControlPlaneArgs {
    #[command(flatten)]
    plane: Box<Flags>,
    #[command(flatten)]
    hooks: HookArgs,
}

/// The webhooks of a control plane in a cluster.
#[derive(Debug, Args)]
#[command(next_help_heading = "Admission webhooks, with --kubernetes")]
struct HookArgs {
    /// Where API servers reach the webhooks
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:15017", requires = "kubernetes")]
    webhook_listen: SocketAddr,
    /// The Service by which API servers reach them
    #[arg(long, value_name = "NS/NAME", value_parser = service, default_value = "meshwright-system/meshwright-webhook", requires = "kubernetes")]
    webhook_service: HookService,
    #[command(flatten)]
    sidecar: SidecarArgs,
}

/// Threads of the control plane: it must leave the machine to the mesh.
const THREADS: usize = 2;
/// Tasks that a thread runs, if so many want to, before it looks for what has come in: a change wakes every stream that it concerns, and that
/// all of them are told goes before what the first of them answer. A task takes some ten microseconds, so nobody waits long.
const TURNS_BEFORE_LOOK: u32 = 1024;

pub(crate) fn run(ControlPlaneArgs { plane, hooks }: ControlPlaneArgs) -> anyhow::Result<ExitCode> {
    let mut args = *plane;
    if !args.kubernetes && hooks.sidecar.is_given() {
        return Err(output::usage("flags about sidecars go with --kubernetes".to_owned()));
    }
    rights::keep_memory_private(rights::is_root() || rights::is_alone());
    if args.api_socket.is_none() {
        args.api_socket = Some(crate::state::create()?.join(crate::state::CONTROL_SOCKET));
    }
    let (traces, export) = control::traces::start(std::env::var("POD_NAME").unwrap_or_else(|_| "control".to_owned()));
    output::log_beside(&args.log_level, "control=debug", traces.layer())?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).event_interval(TURNS_BEFORE_LOOK).enable_all().build()?;
    runtime.block_on(async {
        let ended = CancellationToken::new();
        let exporting = tokio::spawn(export.run(ended.clone()));
        let run = async {
            if args.kubernetes {
                return in_cluster(args, hooks, traces).await;
            }
            let means = Means { traces, ..means(&args.data_dir, &args.external, Clock::System)? };
            control::app::run(args, means).await
        };
        let result = run.await;
        ended.cancel();
        exporting.await?;
        result
    })?;
    Ok(ExitCode::SUCCESS)
}

/// One of several replicas of a cluster's control plane.
async fn in_cluster(args: Flags, hooks: HookArgs, traces: Traces) -> anyhow::Result<()> {
    let kubeconfig = args.kubeconfig.clone().or_else(|| std::env::var_os("KUBECONFIG").map(PathBuf::from));
    let client = connect(&Access { kubeconfig, context: None }, "control").await?;
    // As `meshwright install` says it to the pod; a process outside of one is in the namespace that its kubeconfig names.
    let namespace = std::env::var("POD_NAMESPACE").unwrap_or_else(|_| client.default_namespace().to_owned());
    let pod = std::env::var("POD_NAME").unwrap_or_else(|_| "control".to_owned());
    let me = format!("{pod}_{:016x}", Draw::from_entropy().next());
    let leaving = CancellationToken::new();
    let hooks = Hooks {
        client: client.clone(),
        namespace: namespace.clone(),
        listen: hooks.webhook_listen,
        service: hooks.webhook_service,
        external: args.external.clone(),
        data_dir: args.data_dir.clone(),
        version_told: hooks.sidecar.names_kubernetes(),
        sidecar: hooks.sidecar.settings(),
        leaving: leaving.clone(),
    };
    let (believed, stop) = (watch::Sender::default(), CancellationToken::new());
    let replica = Replica { traces, ..replica(&args, client, &namespace, &me, Clock::System, hooks.in_turn(&believed)) };
    let mut serving = tokio::spawn(hooks.serve(replica.worlds.subscribe(), believed, stop.clone()));
    let turns = control::app::run_replica(args, replica);
    tokio::pin!(turns);
    let ended = tokio::select! {
        biased;
        ended = &mut turns => ended,
        served = &mut serving => return served?,
    };
    // Pods are still made while the doors close: the webhooks go last.
    leaving.cancel();
    if ended.is_ok() {
        tokio::select! {
            biased;
            served = &mut serving => return served?,
            () = tokio::time::sleep(LINGER) => {}
        }
    }
    stop.cancel();
    serving.await??;
    ended
}
