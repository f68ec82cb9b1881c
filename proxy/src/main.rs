//! `meshwright-proxy`: the sidecar alone, for its own image.

use std::process::ExitCode;

use clap::Parser;
use proxy::settings::ProxyArgs;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Sidecar and edge proxy of Meshwright.
#[derive(Parser)]
#[command(
    name = "meshwright-proxy",
    version,
    after_help = "Example: meshwright-proxy --control 10.77.0.1:15012 --control-ca ca.pem --token-file token --workload shop/catalog"
)]
struct Line {
    #[command(flatten)]
    args: ProxyArgs,
}

fn main() -> ExitCode {
    match proxy::app::run(Line::parse().args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
