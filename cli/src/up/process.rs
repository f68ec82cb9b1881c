//! A part of the mesh as a process of its own, and what keeps it running.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::strays::MARK_ENV;
use crate::netns::Namespace;
use crate::state::STATE_DIR_ENV;

/// The pid of `up`, for parts that have to renew their parent-death signal after they changed their uid.
pub(crate) const PARENT_ENV: &str = "MESHWRIGHT_PARENT_PID";
/// A part that lived that long starts again with the shortest wait.
const STEADY: Duration = Duration::from_secs(10);

/// How a part is started.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    /// The mesh's state directory.
    pub(crate) state: &'a Path,
    /// Where it runs.
    pub(crate) namespace: &'a Namespace,
    /// Files shown in the place of the system's.
    pub(crate) mounts: &'a [(PathBuf, PathBuf)],
    /// What it becomes.
    pub(crate) command: Vec<OsString>,
    /// Beside the environment of `up`.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Not from the environment of `up`.
    pub(crate) env_removed: &'a [&'a str],
    /// Its working directory.
    pub(crate) directory: Option<&'a Path>,
    /// Where its output goes.
    pub(crate) log: &'a Path,
    /// Its standard input; nothing otherwise.
    pub(crate) input: Option<OwnedFd>,
    /// An ordinary command: no right that the user does not have.
    pub(crate) drop_rights: bool,
}

/// A running part. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// Its process id; it leads a group of that number.
    pub(crate) pid: u32,
}

impl Start<'_> {
    /// Starts it, in a process group of its own so that Ctrl-C reaches `up` alone. Must be called on the main thread: the kernel kills the
    /// part when the thread that started it ends.
    ///
    /// # Errors
    /// The log cannot be opened, or no process can be made.
    pub(crate) fn spawn(self) -> anyhow::Result<Process> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.log)
            .with_context(|| format!("cannot open the log {}", self.log.display()))?;
        let own = std::env::current_exe().context("cannot find this program's own file")?;
        let parent = std::process::id().to_string();
        let mut command = Command::new(own);
        command.arg("enter").arg("--netns").arg(self.namespace.path()).args(["--pdeathsig", &parent]);
        for (source, target) in self.mounts {
            let mut mount = source.clone().into_os_string();
            mount.push("=");
            mount.push(target);
            command.arg("--mount").arg(mount);
        }
        if self.drop_rights {
            command.arg("--drop-rights");
        }
        command.arg("--").args(&self.command);
        for name in self.env_removed {
            command.env_remove(name);
        }
        command.envs(self.env).env(MARK_ENV, self.state).env(STATE_DIR_ENV, self.state).env(PARENT_ENV, &parent);
        if let Some(directory) = self.directory {
            command.current_dir(directory);
        }
        command.stdin(self.input.map_or_else(Stdio::null, Stdio::from));
        command.stdout(log.try_clone()?).stderr(log).process_group(0).kill_on_drop(true);
        let child = command.spawn().with_context(|| match self.directory {
            Some(directory) if !directory.is_dir() => format!("the working directory {} does not exist", directory.display()),
            _ => "cannot start a process".to_owned(),
        })?;
        let pid = child.id().context("a process ended before it had a number")?;
        Ok(Process { child, pid })
    }
}

impl Process {
    /// Waits until it ends, and says how. Cancel-safe.
    pub(crate) async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => describe(status),
            Err(error) => format!("was lost: {error}"),
        }
    }

    /// SIGTERM, and SIGKILL for its whole group when it takes longer than `grace`.
    pub(crate) async fn stop(mut self, grace: Duration) {
        let group = Pid::from_raw(self.pid.cast_signed());
        // It may have ended by itself; then the group is gone or holds only what it left.
        let _ = killpg(group, Signal::SIGTERM);
        let _ = timeout(grace, self.child.wait()).await;
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait().await;
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "ended".to_owned(),
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(number)) => {
            let name = Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |signal| signal.to_string());
            format!("was killed by {name}")
        }
        (None, None) => "ended".to_owned(),
    }
}

/// Waits between two starts of the same part: doubled each time up to a bound, short again after a steady while.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
    since: Instant,
}

impl Backoff {
    /// From `first` to `longest`.
    pub(crate) fn new(first: Duration, longest: Duration, now: Instant) -> Self {
        Self { first, longest, next: first, since: now }
    }

    /// The part starts now.
    pub(crate) fn started(&mut self, now: Instant) {
        self.since = now;
    }

    /// The part ended: how long to wait.
    pub(crate) fn wait(&mut self, now: Instant) -> Duration {
        if now.saturating_duration_since(self.since) > STEADY {
            self.next = self.first;
        }
        let wait = self.next;
        self.next = (self.next * 2).min(self.longest);
        wait
    }
}

/// The last error in the end of a log, else its last line that says something, for messages. At most 300 characters.
pub(crate) fn last_line(log: &Path) -> Option<String> {
    let text = std::fs::read(log).ok()?;
    let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]).into_owned();
    // Lines of an access log say nothing about their writer.
    let mut lines = tail.lines().rev().filter(|line| !line.trim().is_empty() && !line.starts_with('{'));
    let line = lines.clone().find(|line| line.starts_with("error")).or_else(|| lines.next())?;
    Some(line.trim().chars().take(300).collect())
}

/// Keeps the logs of a run from filling the disk: a log that grew beyond the bound is moved aside, one generation.
pub(crate) async fn bound_logs(folder: PathBuf) {
    /// Twice that per part, at most.
    const LOG_BYTES_MAX: u64 = 32 << 20;
    const LOOK: Duration = Duration::from_secs(2);
    loop {
        sleep(LOOK).await;
        let folder = folder.clone();
        let trim = move || {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let live = path.extension().is_some_and(|extension| extension == "log");
                if live && entry.metadata().is_ok_and(|facts| facts.len() > LOG_BYTES_MAX) {
                    // Writers append, so they go on at the new end. What comes between copy and cut is lost; that is the price of a bound.
                    let _ = std::fs::copy(&path, path.with_extension("log.old"));
                    let _ = OpenOptions::new().write(true).truncate(true).open(&path);
                }
            }
        };
        let _ = tokio::task::spawn_blocking(trim).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: waits double up to the bound, and a part that held out starts afresh.
    #[test]
    fn waits_double_and_start_afresh() {
        let now = Instant::now();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(400), now);
        let waits: Vec<u128> = (0..4).map(|_| backoff.wait(now).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 400]);
        backoff.started(now);
        assert_eq!(backoff.wait(now + STEADY * 2).as_millis(), 100);
    }

    /// Aim: the message shows the last thing a program said.
    #[test]
    fn last_lines() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("x.log");
        std::fs::write(&log, "one\n  two \n\n").unwrap();
        assert_eq!(last_line(&log).as_deref(), Some("two"));
        std::fs::write(&log, "one\nerror: two\n\nTry --help\n").unwrap();
        assert_eq!(last_line(&log).as_deref(), Some("error: two"));
        assert_eq!(last_line(Path::new("/nowhere")), None);
    }
}
