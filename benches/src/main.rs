//! The measuring programs: see `benches --help`.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "measuring needs the machine's own clock and sockets")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// As the floor that the goals are set against (docs/performance.md); load generator and backend do not mind.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures what proxies cost.
#[derive(Debug, Parser)]
#[command(name = "benches", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sends load and tells latency from the time each request was due.
    Load(benches::load::Args),
    /// Answers: HTTP/1.1, HTTP/2 with gRPC, and raw TCP.
    Backend(benches::backend::Args),
    /// Forwards, and does nothing else: the least that one side of a sidecar pair costs.
    Floor(benches::floor::Args),
    /// Measures whole systems side by side: direct, our pair, the floor, nginx, haproxy, Envoy.
    Pair(Box<benches::pair::Args>),
    /// Measures what a change costs control planes, side by side, and when the last of many proxies has it
    Plane(benches::plane::Args),
    /// Measures what a cluster costs a control plane: to read it, and pods that come and go
    Cluster(benches::cluster::Args),
    /// Takes spans over OTLP and keeps none.
    Collector(benches::pair::CollectorArgs),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Load(args) => benches::load::run(args).map(|()| ExitCode::SUCCESS),
        Command::Backend(args) => benches::backend::run(args).map(|()| ExitCode::SUCCESS),
        Command::Floor(args) => benches::floor::run(args).map(|()| ExitCode::SUCCESS),
        Command::Pair(args) => benches::pair::run(&args),
        Command::Plane(args) => benches::plane::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Cluster(args) => benches::cluster::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Collector(args) => benches::pair::collect(&args).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
