//! `meshwright enter` (hidden): joins namespaces, then becomes the command. One thread, no runtime.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::up::inside::{self, Passage};

/// Arguments of `meshwright enter`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright enter --netns /proc/4711/fd/9 -- ip addr")]
pub(crate) struct EnterArgs {
    /// User namespace to join first.
    #[arg(long, value_name = "FILE")]
    userns: Option<PathBuf>,
    /// Network namespace to join.
    #[arg(long, value_name = "FILE")]
    netns: Option<PathBuf>,
    /// Shows SOURCE in the place of TARGET, in a mount namespace of its own. May be repeated.
    #[arg(long, value_name = "SOURCE=TARGET", value_parser = mount)]
    mount: Vec<(PathBuf, PathBuf)>,
    /// Is killed with this process, which must be the parent.
    #[arg(long, value_name = "PID")]
    pdeathsig: Option<i32>,
    /// Gives up every capability that is not the user's own before the command starts.
    #[arg(long)]
    drop_rights: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

fn mount(text: &str) -> Result<(PathBuf, PathBuf), String> {
    text.split_once('=').map(|(source, target)| (source.into(), target.into())).ok_or_else(|| format!("`{text}` is not SOURCE=TARGET"))
}

pub(crate) fn run(args: EnterArgs) -> anyhow::Result<ExitCode> {
    let entry = Passage {
        userns: args.userns,
        netns: args.netns,
        mounts: args.mount,
        parent: args.pdeathsig,
        drop_rights: args.drop_rights,
        env: Vec::new(),
        mark: None,
    };
    inside::become_command(&entry, &args.command)
}
