//! `meshwright-proxy`: the sidecar alone, for its own image.

use std::process::ExitCode;

use clap::Parser;
use proxy::shell::settings::ProxyArgs;

#[global_allocator]
static ALLOCATOR: proxy::io::Allocator = proxy::io::Allocator;

/// Sidecar and edge proxy of Meshwright.
#[derive(Parser)]
#[command(name = "meshwright-proxy", version)]
struct CommandLine {
    #[command(flatten)]
    args: ProxyArgs,
}

fn main() -> ExitCode {
    match proxy::shell::app::run(CommandLine::parse().args) {
        Ok(code) => code,
        Err(error) => match error.downcast::<clap::Error>() {
            Ok(usage) => usage.exit(),
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}
