//! Processes of a mesh that outlived their `up`: found by a mark in their environment, ended by signal.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

/// Every process of a mesh has this variable, with the mesh's state directory as value. It is not the variable that people set.
pub(crate) const MARK_ENV: &str = "MESHWRIGHT_PART_OF";
/// How long a stray may take to end by itself.
const GRACE: Duration = Duration::from_secs(1);
/// How often we look whether they have gone.
const LOOK: Duration = Duration::from_millis(20);

/// Ends every process marked with this state directory, except this one and its ancestors. Returns how many there were.
pub(crate) fn end(state: &Path) -> usize {
    let found = find(state);
    signal(&found, Signal::SIGTERM);
    let until = Instant::now() + GRACE;
    while Instant::now() < until && !find(state).is_empty() {
        thread::sleep(LOOK);
    }
    let stubborn = find(state);
    signal(&stubborn, Signal::SIGKILL);
    let until = Instant::now() + GRACE;
    while Instant::now() < until && !find(state).is_empty() {
        thread::sleep(LOOK);
    }
    found.union(&stubborn).count()
}

/// Kills at once what is left; for the end of `up`, after everything had its chance.
pub(crate) fn kill_rest(state: &Path) {
    signal(&find(state), Signal::SIGKILL);
}

fn signal(pids: &BTreeSet<i32>, signal: Signal) {
    for pid in pids {
        // It may have ended by itself meanwhile.
        let _ = kill(Pid::from_raw(*pid), signal);
    }
}

fn find(state: &Path) -> BTreeSet<i32> {
    let mut mark = format!("{MARK_ENV}=").into_bytes();
    mark.extend_from_slice(state.as_os_str().as_bytes());
    let spared = ancestors();
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeSet::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| !spared.contains(pid))
        .filter(|pid| fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| marked(&environ, &mark)))
        .collect()
}

fn marked(environ: &[u8], mark: &[u8]) -> bool {
    environ.split(|byte| *byte == 0).any(|variable| variable == mark)
}

/// This process and all above it: `meshwright down` typed inside `meshwright exec … bash` must not kill itself halfway.
fn ancestors() -> BTreeSet<i32> {
    let mut pids = BTreeSet::new();
    let mut pid = getpid().as_raw();
    while pid > 0 && pids.insert(pid) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        pid = status.lines().find_map(|line| line.strip_prefix("PPid:")).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    }
    pids
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Aim: only whole variables with the very directory count.
    #[test]
    fn marks_are_exact() {
        let mark = b"MESHWRIGHT_PART_OF=/run/a";
        assert!(marked(b"A=1\0MESHWRIGHT_PART_OF=/run/a\0", mark));
        assert!(!marked(b"A=1\0MESHWRIGHT_PART_OF=/run/ab\0", mark));
        assert!(!marked(b"XMESHWRIGHT_PART_OF=/run/a\0", mark));
    }

    /// Aim: a marked process ends, also one that ignores SIGTERM; others live on.
    #[test]
    fn strays_end() {
        let state = tempfile::tempdir().unwrap();
        let spawn = |script: &str, mark: &Path| Command::new("sh").args(["-c", script]).env(MARK_ENV, mark).spawn().unwrap();
        let mut stray = spawn("trap '' TERM; while :; do sleep 0.05; done", state.path());
        let mut other = spawn("sleep 30", Path::new("/nowhere/else"));
        assert!(end(state.path()) >= 1);
        assert!(!stray.wait().unwrap().success());
        assert_eq!(other.try_wait().unwrap(), None);
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
