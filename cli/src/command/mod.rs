//! One file per command; each has its `Args` and a `run` that starts whatever runtime it needs.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod analyze;
mod apply;
mod ca;
mod canary;
mod check;
mod completions;
mod control;
mod crds;
mod delete;
mod down;
mod echo;
mod enter;
mod exec;
mod explain;
mod get;
mod hook;
mod hops;
mod identity;
mod inject;
mod injector;
mod install;
mod intercept;
mod key;
mod logs;
mod policy;
mod proxy;
mod stat;
mod tap;
mod token;
mod uninstall;
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
    /// Shows what is live: objects, proxies, listeners, routes, clusters, endpoints, policies, certs, epochs, plaintext.
    Get(get::GetArgs),
    /// Says which listener, route, policies and endpoints a request would meet, or what became of one that failed.
    Explain(explain::ExplainArgs),
    /// Shows requests as they end.
    Tap(tap::TapArgs),
    /// Shows rate, success and latency per service, route or workload.
    Stat(stat::StatArgs),
    /// Suggests least-privilege policies from observed traffic.
    Policy(policy::PolicyArgs),
    /// Validates a folder of manifests offline.
    Analyze(analyze::AnalyzeArgs),
    /// Preflight and health: kernel, rights, ports, certificates, proxies and their epoch.
    Check(check::CheckArgs),
    /// Makes one-time join tokens.
    Token(token::TokenArgs),
    /// Makes, lists, replaces and revokes API keys of consumers.
    Key(key::KeyArgs),
    /// Shows canaries, and promotes, rolls back, pauses or approves them.
    Canary(canary::CanaryArgs),
    /// Shows the certificate authority's work.
    Ca(ca::CaArgs),
    /// Writes a workload's certificate, key and trust bundle as files, and keeps them fresh.
    Identity(identity::IdentityArgs),
    /// Runs the control plane.
    Control(control::ControlPlaneArgs),
    /// Runs the sidecar or edge proxy.
    Proxy(proxy::ProxyArgs),
    /// Installs, verifies or removes the redirection rules of a network namespace.
    Intercept(intercept::InterceptArgs),
    /// Puts the sidecar into manifests, offline.
    Inject(inject::InjectArgs),
    /// Prints or applies all that a cluster needs to run the mesh.
    Install(install::InstallArgs),
    /// Takes the mesh out of a cluster.
    Uninstall(uninstall::UninstallArgs),
    /// Prints the CustomResourceDefinitions of our own kinds.
    Crds(crds::CrdsArgs),
    /// Runs the admission webhook that puts sidecars into pods.
    Injector(injector::InjectorArgs),
    /// Runs the test service of examples and tests.
    Echo(echo::EchoArgs),
    /// Prints a shell completion script.
    Completions(completions::CompletionsArgs),
    /// Joins an instance's namespaces and becomes a command; used by `up` and `exec`.
    #[command(hide = true)]
    Enter(enter::EnterArgs),
    /// Waits for the sidecar's start or the application's end; where the sidecar is an ordinary container of a pod.
    #[command(hide = true)]
    Hook(hook::HookArgs),
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
            Command::Tap(args) => tap::run(args),
            Command::Stat(args) => stat::run(args),
            Command::Policy(args) => policy::run(args),
            Command::Analyze(args) => analyze::run(args),
            Command::Check(args) => check::run(args),
            Command::Token(args) => token::run(args),
            Command::Key(args) => key::run(args),
            Command::Canary(args) => canary::run(args),
            Command::Ca(args) => ca::run(args),
            Command::Identity(args) => identity::run(args),
            Command::Control(args) => control::run(args),
            Command::Proxy(args) => proxy::run(args),
            Command::Intercept(args) => intercept::run(args),
            Command::Inject(args) => inject::run(args),
            Command::Install(args) => install::run(args),
            Command::Uninstall(args) => uninstall::run(args),
            Command::Crds(args) => crds::run(args),
            Command::Injector(args) => injector::run(args),
            Command::Echo(args) => echo::run(args),
            Command::Completions(args) => completions::run(args),
            Command::Enter(args) => enter::run(args),
            Command::Hook(args) => hook::run(args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a command line ends with exit code 2. Not for `proxy`, which begins by changing the process; it has a test of its own.
    fn is_wrong(line: &str) -> bool {
        match Cli::try_parse_from(line.split(' ')) {
            Err(error) => error.exit_code() == 2,
            Ok(cli) => cli.run().is_err_and(|error| error.is::<clap::Error>()),
        }
    }

    /// Ways to write a command line wrong.
    const WRONG: [&str; 77] = [
        "meshwright",
        "meshwright nonsense",
        "meshwright get",
        "meshwright get nonsense",
        "meshwright get proxies -o xml",
        "meshwright apply",
        "meshwright apply -f x --timeout soon",
        "meshwright wait --timeout 0s",
        "meshwright wait --epoch 0",
        "meshwright get proxies --control 192.0.2.1:15012",
        "meshwright get proxies --control nonsense --control-ca x --token-file y",
        "meshwright get proxies --token-file y",
        "meshwright explain --from shop GET http://catalog/",
        "meshwright explain --from shop/frontend http://catalog/",
        "meshwright explain --from shop/frontend GET /items",
        "meshwright explain --from shop/frontend -H nonsense GET http://catalog/",
        "meshwright explain",
        "meshwright explain GET http://catalog/",
        "meshwright explain --from shop/frontend r1",
        "meshwright explain r1 -H x-beta:1",
        "meshwright tap --status 6xx",
        "meshwright tap --reason because",
        "meshwright tap --direction up",
        "meshwright tap -H authorization:x",
        "meshwright tap --slower 0s",
        "meshwright tap --rate 0",
        "meshwright tap --max 0",
        "meshwright tap --for soon",
        "meshwright stat pods",
        "meshwright stat --window 2m",
        "meshwright stat --window 1500ms",
        "meshwright stat --sort size",
        "meshwright stat --from frontend",
        "meshwright token create --workload catalog",
        "meshwright token create --workload shop/catalog --life 0s",
        "meshwright key create acme",
        "meshwright key revoke partners/acme",
        "meshwright key rotate partners/acme --overlap 0s",
        "meshwright canary",
        "meshwright canary abort -n shop",
        "meshwright canary status -o yaml",
        "meshwright ca audit --since yesterday",
        "meshwright identity --control nonsense --control-ca x --token-file y --dir z",
        "meshwright identity --control 192.0.2.1:1 --control-ca x --token-file y",
        "meshwright identity --control 192.0.2.1:1 --control-ca x --token-file y --dir z --workload catalog",
        "meshwright exec frontend",
        "meshwright policy",
        "meshwright policy suggest --since 0s",
        "meshwright policy suggest -o table",
        "meshwright logs",
        "meshwright logs control --proxy",
        "meshwright up --exit-after 5",
        "meshwright up --plaintext-xds=192.0.2.1:15010",
        "meshwright up --instance-cidr nonsense",
        "meshwright up --instance-cidr 10.78.0.0/16,10.79.0.0/16",
        "meshwright intercept install --exempt-mark 0",
        "meshwright intercept install --exclude-outbound-cidrs 10.0.0.0/33",
        "meshwright inject -f x --control nonsense",
        "meshwright install --replicas 0",
        "meshwright install --failure-policy Maybe",
        "meshwright install --trust-domain Upper.Case",
        "meshwright install --timeout 5s",
        "meshwright install --apply -o json",
        "meshwright uninstall --kubeconfig x",
        "meshwright crds -o table",
        "meshwright inject -f x --kubernetes-version latest",
        "meshwright inject -f x --pull-policy Sometimes",
        "meshwright injector",
        "meshwright injector --tls-cert x",
        "meshwright injector --tls-cert x --tls-key y --ca-cert z --ca-key z --ca-root z",
        "meshwright injector --tls-cert x --tls-key y --patch-webhooks",
        "meshwright injector --tls-cert x --tls-key y --service meshwright-injector",
        "meshwright echo --http 99999",
        "meshwright echo --http 8080 --tcp 8080",
        "meshwright echo --tcp-greeting hello",
        "meshwright echo --call nonsense",
        "meshwright completions cmd",
    ];

    /// Aim: exit code 2 for every way to write a command line wrong, whether clap sees it or we do; 1 for what only the world refuses.
    #[test]
    fn wrong_command_lines_are_usage_errors() {
        let control = "meshwright control --config . --data-dir /dev/null/x --api-socket /dev/null/y";
        let more = [format!("{control} --log-level control=loudly"), format!("{control} --plaintext-xds=0.0.0.0:15010")];
        for line in WRONG.into_iter().chain(more.iter().map(String::as_str)) {
            assert!(is_wrong(line), "{line}");
        }
        for line in ["meshwright apply -f /dev/null/nowhere", "meshwright analyze /dev/null/nowhere"] {
            assert!(!is_wrong(line), "{line}");
        }
    }
}
