//! `meshwright exec`.

use std::ffi::OsString;
use std::fs;
use std::process::ExitCode;

use clap::Args;

use crate::state;
use crate::up::book::InstancesFile;
use crate::up::inside::{self, Passage};

/// Arguments of `meshwright exec`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright exec -n shop frontend -- curl -s http://catalog/\n  \
    The command keeps working directory, environment and standard streams, gets signals itself, and its exit status is the result.")]
pub(crate) struct ExecArgs {
    /// Namespace of the workload [default: `default`, or the only one that has it].
    #[arg(short, long)]
    namespace: Option<String>,
    /// A workload, or one of its instances.
    workload: String,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(crate) fn run(args: ExecArgs) -> anyhow::Result<ExitCode> {
    let place = state::find();
    let book = InstancesFile::read(&place)?;
    let instance = book.find(args.namespace.as_deref(), &args.workload)?;
    let entry = Passage {
        userns: book.userns.clone(),
        netns: Some(instance.netns.clone()),
        mounts: instance.mounts.clone(),
        parent: None,
        drop_rights: book.userns.is_some(),
        env: instance.spiffe_variable().into_iter().collect(),
        // `down` finds what is left of it, as of every part of the mesh.
        mark: Some(fs::canonicalize(&place).unwrap_or(place)),
    };
    inside::become_command(&entry, &args.command)
}
