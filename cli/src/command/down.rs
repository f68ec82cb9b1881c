//! `meshwright down`.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::output;
use crate::state;
use crate::up::{lock, strays, tidy};

/// `up` itself needs less than 10 s.
const STOP_MAX: Duration = Duration::from_secs(12);
/// How often we look whether it has gone.
const LOOK: Duration = Duration::from_millis(50);

/// Arguments of `meshwright down`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright down\n  \
    Stops a running `up` and removes what an interrupted one left. The certificate authority, epochs and applied objects stay.")]
pub(crate) struct DownArgs {}

pub(crate) fn run(_args: DownArgs) -> anyhow::Result<ExitCode> {
    let place = state::find();
    if !place.is_dir() {
        output::print("nothing to remove: no mesh has run here")?;
        return Ok(ExitCode::SUCCESS);
    }
    let place = std::fs::canonicalize(&place).unwrap_or(place);
    let stopped = lock::holder(&place).map(stop).transpose()?;
    let ended = strays::end(&place);
    tidy::leftovers(&place);
    let mut said = Vec::new();
    said.extend(stopped.map(|pid| format!("stopped `up` (pid {pid})")));
    if ended > 0 {
        said.push(format!("ended {ended} process{} of an interrupted `up`", if ended == 1 { "" } else { "es" }));
    }
    if said.is_empty() {
        said.push("nothing was running".to_owned());
    }
    output::print(&format!("{}; the state in {} stays", said.join(", "), place.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn stop(pid: i32) -> anyhow::Result<i32> {
    let target = Pid::from_raw(pid);
    if kill(target, Signal::SIGTERM).is_err() {
        return Ok(pid);
    }
    let until = Instant::now() + STOP_MAX;
    while kill(target, None).is_ok() {
        if Instant::now() > until {
            kill(target, Signal::SIGKILL)?;
        }
        thread::sleep(LOOK);
    }
    Ok(pid)
}
