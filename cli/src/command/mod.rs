//! One file per command; each has its `Args` and a `run` that starts whatever runtime it needs.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod analyze;
mod apply;
mod ca;
mod check;
mod completions;
mod control;
mod delete;
mod down;
mod echo;
mod enter;
mod exec;
mod explain;
mod get;
mod inject;
mod intercept;
mod logs;
mod proxy;
mod token;
mod up;
mod wait;

/// A service mesh and edge gateway in one binary.
#[derive(Debug, Parser)]
#[command(
    name = "meshwright",
    version,
    propagate_version = true,
    after_help = "Example: meshwright up\n  Runs the shop of examples/shop as a whole mesh on this machine and prints what to try."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a whole mesh on this machine from a folder of manifests.
    Up(up::UpArgs),
    /// Runs a command inside a workload's namespace, its traffic captured like the workload's own.
    Exec(exec::ExecArgs),
    /// Removes whatever an interrupted `up` left.
    Down(down::DownArgs),
    /// Prints the output of a part of the running mesh.
    Logs(logs::LogsArgs),
    /// Applies manifests to the running mesh.
    Apply(apply::ApplyArgs),
    /// Takes objects out of the running mesh.
    Delete(delete::DeleteArgs),
    /// Waits until a configuration is live in every proxy.
    Wait(wait::WaitArgs),
    /// Shows what is live: objects, proxies, listeners, routes, clusters, endpoints, certs, epochs, plaintext.
    Get(get::GetArgs),
    /// Says which listener, route, policies and endpoints a request would meet.
    Explain(explain::ExplainArgs),
    /// Validates a folder of manifests offline.
    Analyze(analyze::AnalyzeArgs),
    /// Preflight and health: kernel, rights, ports, certificates, proxies and their epoch.
    Check(check::CheckArgs),
    /// Makes one-time join tokens.
    Token(token::TokenArgs),
    /// Shows the certificate authority's work.
    Ca(ca::CaArgs),
    /// Runs the control plane.
    Control(control::ControlArgs),
    /// Runs the sidecar or edge proxy.
    Proxy(proxy::ProxyArgs),
    /// Installs, verifies or removes the redirection rules of a network namespace.
    Intercept(intercept::InterceptArgs),
    /// Puts the sidecar into manifests, offline.
    Inject(inject::InjectArgs),
    /// Runs the test service of examples and tests.
    Echo(echo::EchoArgs),
    /// Prints a shell completion script.
    Completions(completions::CompletionsArgs),
    /// Joins an instance's namespaces and becomes a command; used by `up` and `exec`.
    #[command(hide = true)]
    Enter(enter::EnterArgs),
}

impl Cli {
    /// Runs the command that was named.
    ///
    /// # Errors
    /// Whatever stopped the command, as a sentence with its remedy.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Up(args) => up::run(args),
            Command::Exec(args) => exec::run(args),
            Command::Down(args) => down::run(args),
            Command::Logs(args) => logs::run(args),
            Command::Apply(args) => apply::run(args),
            Command::Delete(args) => delete::run(args),
            Command::Wait(args) => wait::run(args),
            Command::Get(args) => get::run(args),
            Command::Explain(args) => explain::run(args),
            Command::Analyze(args) => analyze::run(args),
            Command::Check(args) => check::run(args),
            Command::Token(args) => token::run(args),
            Command::Ca(args) => ca::run(args),
            Command::Control(args) => control::run(args),
            Command::Proxy(args) => proxy::run(args),
            Command::Intercept(args) => intercept::run(args),
            Command::Inject(args) => inject::run(args),
            Command::Echo(args) => echo::run(args),
            Command::Completions(args) => completions::run(args),
            Command::Enter(args) => enter::run(args),
        }
    }
}
