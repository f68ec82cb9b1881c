//! The `meshwright` binary: every command of the mesh.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "commands live in the world: nothing here runs in a simulation")]

mod client;
mod command;
mod documents;
mod duration;
mod echo;
mod install;
mod netns;
mod output;
mod shop;
mod state;
mod up;

use std::process::ExitCode;

use clap::Parser;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: proxy::io::Allocator = proxy::io::Allocator;

fn main() -> ExitCode {
    output::install_panic_hook();
    // No runtime is started here: `up` and `enter` change namespaces first, which needs a process of one thread.
    command::Cli::parse().run().unwrap_or_else(|error| output::print_error(&error))
}
