//! `meshwright down`.

use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::output;
use crate::state;
use crate::up::{lock, strays, tidy};

/// `up` itself needs less than 10 s.
const STOP_MAX: Duration = Duration::from_secs(12);
/// What the kernel needs to end a killed process.
const KILL_MAX: Duration = Duration::from_secs(5);
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
    let stopped = lock::holder(&place).map(|pid| stop(&place, pid)).transpose()?;
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

/// Ends the `up` of that pid. It has gone when its lock is free: whoever started it may not have taken note of its end yet, and then its
/// pid is still there.
fn stop(place: &Path, pid: i32) -> anyhow::Result<i32> {
    let target = Pid::from_raw(pid);
    let gone = || lock::holder(place) != Some(pid);
    if let Err(error) = kill(target, Signal::SIGTERM)
        && !gone()
    {
        bail!("cannot stop `up` (pid {pid}): {}; run `down` as the user who started it", error.desc());
    }
    if !wait_until(&gone, STOP_MAX) {
        // It may have ended just now.
        let _ = kill(target, Signal::SIGKILL);
        if !wait_until(&gone, KILL_MAX) {
            bail!("`up` (pid {pid}) does not end, not even by SIGKILL; what is it doing? (`cat /proc/{pid}/stack` as root)");
        }
    }
    Ok(pid)
}

/// Whether it came true in time.
fn wait_until(came_true: &dyn Fn() -> bool, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    while !came_true() {
        if Instant::now() > until {
            return false;
        }
        thread::sleep(LOOK);
    }
    true
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    /// Aim: an `up` that has ended counts as ended, also while its parent has not asked for its status and its pid is still there.
    #[test]
    fn a_zombie_has_ended() {
        let state = tempfile::tempdir().unwrap();
        let script = format!("exec 9>{0}/up.pid; flock 9; echo $$ >&9; echo; exec sleep 30", state.path().display());
        let mut up = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
        // The child says a word once it holds the lock.
        up.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let pid = up.id().cast_signed();
        assert_eq!(lock::holder(state.path()), Some(pid));
        assert_eq!(stop(state.path(), pid).unwrap(), pid);
        assert_eq!(lock::holder(state.path()), None);
        assert!(kill(Pid::from_raw(pid), None).is_ok(), "nobody has taken note of its end");
        up.wait().unwrap();
    }
}
